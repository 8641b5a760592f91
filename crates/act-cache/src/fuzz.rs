//! Whatever the bytes of a file are, reading answers or refuses: it neither panics, nor runs away, nor hangs.
//!
//! Sound files of small caches are changed in the places that matter (numbers, dtypes and names of headers and JSON, numbers
//! of columns) and in any others, and everything that can be read is read. Input `i` is a function of `i`. How many there
//! are says the variable `ACT_CACHE_FUZZ_INPUTS`.

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use sae_types::{FeatureId, HookPoint, SampleId, SparseCodes};

use crate::foreign::{
    DelphiOptions, ForeignCache, ImportOptions, Layout, MsaeOptions, compare, export_delphi, export_msae,
    import,
};
use crate::manifest::{MANIFEST_FILE, SAMPLES_FILE};
use crate::mmap::Bytes;
use crate::reader::parse_samples;
use crate::split::SplitFile;
use crate::tokens::TOKENS_FILE;
use crate::{
    ActivationDtype, BaseTile, Cache, CacheDescription, CacheError, CacheJob, CachedTokens, Duplicates,
    HookCache, HookDescription, Manifest, PartWriter, Ranking, SampleCodes, SampleRecord, Selection, Shard,
    hash, merge,
};

const DEFAULT_INPUTS: u64 = 20_000;
/// Far more than an input takes, on a machine that is busy with other things.
const LONGEST: Duration = Duration::from_secs(20);
/// Every so many inputs one is imported to disk.
const IMPORT_EVERY: u64 = 4096;
const WIDTH: usize = 10;

/// A generator of numbers (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// The files of a native cache and of its exports.
struct Corpus {
    manifest: Manifest,
    records: Vec<SampleRecord>,
    manifest_json: Vec<u8>,
    samples_jsonl: Vec<u8>,
    tokens: Vec<u8>,
    splits: Vec<(Range<usize>, Vec<u8>)>,
    msae: Vec<(Range<usize>, Vec<u8>)>,
    delphi: Vec<(Range<usize>, Vec<u8>)>,
}

fn hook() -> HookPoint {
    HookPoint::layer(0)
}

fn corpus(dtype: ActivationDtype) -> Corpus {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let mut about = CacheDescription { model: "a model".to_owned(), ..CacheDescription::default() };
    about.token_layout.base = Some(BaseTile { start: 1, rows: 2, cols: 2 });
    about.hooks.insert(hook(), HookDescription { width: WIDTH, k: 3, ..HookDescription::default() });
    let job = CacheJob { n_splits: 2, dtype, keep_tokens: true, ..CacheJob::new(about) };
    let mut part = PartWriter::open(&at("parts"), &job, Shard::WHOLE, 1 << 20).unwrap();
    for sample in 0..4u32 {
        let n = 5 + sample % 2;
        let mut codes = SparseCodes::new(WIDTH);
        for token in 0..n {
            let on = (0..WIDTH as u32).filter(|latent| (sample + token * 3 + latent * 5) % 4 == 0);
            codes.push_row(on.map(|latent| (FeatureId(latent), 0.5 + latent as f32))).unwrap();
        }
        let record = SampleRecord {
            sample: SampleId(sample),
            n_tokens: n,
            width: 8,
            height: 8,
            image_sha256: Some((sample % 3).to_string()),
            image_tokens: vec![[1, n]],
            ..SampleRecord::default()
        };
        let positions: Vec<u32> = (0..n).collect();
        let ids: Vec<u32> = (0..n).map(|token| token * 7).collect();
        let codes = [SampleCodes { hook: &hook(), tokens: &positions, codes: &codes }];
        part.push(&record, Some(&ids), &codes).unwrap();
    }
    part.finish(SampleId(4), &serde_json::Value::Null).unwrap();
    std::fs::create_dir(at("native")).unwrap();
    let manifest = merge(&at("parts"), &at("native")).unwrap();
    let native = Cache::open(&at("native")).unwrap();
    export_msae(&native, &at("msae"), &MsaeOptions::default()).unwrap();
    export_delphi(&native, &at("delphi"), &DelphiOptions { ctx_len: 4, ..DelphiOptions::default() }).unwrap();
    let splits = |name: &str| {
        let split = |entry: &crate::SplitManifest| {
            (entry.start..entry.end, std::fs::read(at(name).join(&entry.file)).unwrap())
        };
        manifest.hooks[&hook()].splits.iter().map(split).collect()
    };
    let read = |file: &str| std::fs::read(at("native").join(file)).unwrap();
    Corpus {
        records: native.samples().to_vec(),
        manifest_json: read(MANIFEST_FILE),
        samples_jsonl: read(SAMPLES_FILE),
        tokens: read(TOKENS_FILE),
        splits: splits("native"),
        msae: splits("msae"),
        delphi: splits("delphi"),
        manifest,
    }
}

/// Reads what is asked of a native cache: everything.
fn read_features(hook: &HookCache<'_>) -> Result<(), CacheError> {
    for slice in hook.features() {
        std::hint::black_box(slice.iter().map(|activation| f64::from(activation.value)).sum::<f64>());
        std::hint::black_box(
            slice.by_sample().map(|(sample, part)| sample.index() + part.len()).sum::<usize>(),
        );
        std::hint::black_box(slice.in_sample(SampleId(2)).len());
        let _ = slice.pick(Ranking::BaseMean, Selection::Top(2), Duplicates::Drop);
    }
    hook.verify_entries()
}

fn read_split(corpus: &Corpus, which: usize, bytes: &[u8]) -> Result<(), CacheError> {
    let cache = Cache::of_parts(corpus.manifest.clone(), corpus.records.clone());
    let open = |(i, (latents, sound)): (usize, &(Range<usize>, Vec<u8>))| {
        let bytes = Bytes::held(if i == which { bytes } else { sound });
        let entry = &corpus.manifest.hooks[&hook()].splits[i];
        SplitFile::of_bytes(
            Path::new("split"),
            bytes,
            latents.clone(),
            entry.n,
            corpus.manifest.activation_dtype,
        )
    };
    let splits = corpus.splits.iter().enumerate().map(open).collect::<Result<_, _>>()?;
    read_features(&HookCache::of_splits(&cache, &hook(), splits))
}

fn read_manifest(corpus: &Corpus, bytes: &[u8]) -> Result<(), CacheError> {
    let manifest = Manifest::parse(Path::new("manifest"), bytes)?;
    parse_samples(Path::new("samples"), &corpus.samples_jsonl, &manifest)?;
    for entry in manifest.hooks.values() {
        for (split, (_, bytes)) in entry.splits.iter().zip(&corpus.splits) {
            let latents = split.start..split.end;
            let bytes = Bytes::held(bytes);
            SplitFile::of_bytes(Path::new("split"), bytes, latents, split.n, manifest.activation_dtype)?;
        }
    }
    Ok(())
}

fn read_samples(corpus: &Corpus, bytes: &[u8]) -> Result<(), CacheError> {
    let mut manifest = corpus.manifest.clone();
    manifest.samples_sha256 = hash::sha256(bytes);
    manifest.counts.samples =
        bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).count() as u64;
    let records = parse_samples(Path::new("samples"), bytes, &manifest)?;
    let lengths = records.iter().map(|record| record.n_tokens);
    let _ = CachedTokens::of_bytes(Path::new("tokens"), Bytes::held(&corpus.tokens), lengths);
    let cache = Cache::of_parts(manifest, records);
    let open = |(i, (latents, bytes)): (usize, &(Range<usize>, Vec<u8>))| {
        let n = corpus.manifest.hooks[&hook()].splits[i].n;
        let dtype = corpus.manifest.activation_dtype;
        SplitFile::of_bytes(Path::new("split"), Bytes::held(bytes), latents.clone(), n, dtype)
    };
    let splits = corpus.splits.iter().enumerate().map(open).collect::<Result<_, _>>()?;
    read_features(&HookCache::of_splits(&cache, &hook(), splits))
}

fn read_tokens(corpus: &Corpus, bytes: &[u8]) -> Result<(), CacheError> {
    let lengths = corpus.records.iter().map(|record| record.n_tokens);
    let tokens = CachedTokens::of_bytes(Path::new("tokens"), Bytes::held(bytes), lengths)?;
    let ids = (0..corpus.records.len()).flat_map(|line| tokens.of_line(line));
    std::hint::black_box(ids.map(|&id| u64::from(id)).sum::<u64>());
    Ok(())
}

fn read_foreign(
    sound: &[(Range<usize>, Vec<u8>)],
    which: usize,
    bytes: &[u8],
    layout: Option<Layout>,
    to_disk: bool,
) -> Result<(), CacheError> {
    let split = |(i, (latents, sound)): (usize, &(Range<usize>, Vec<u8>))| {
        (latents.clone(), Bytes::held(if i == which { bytes } else { sound }))
    };
    let cache = ForeignCache::of_bytes(layout, sound.iter().enumerate().map(split).collect())?;
    std::hint::black_box(cache.findings().len());
    if to_disk {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("native");
        // A small budget: some inputs are read in pieces.
        let options = ImportOptions { first: Some(0), memory_budget: 1 << 12, ..ImportOptions::default() };
        import(&cache, &dir, &options)?;
        let native = Cache::open(&dir)?;
        native.verify()?;
        compare(&cache, &native, 0)?;
    }
    Ok(())
}

/// Numbers that tend to be one too many.
const NUMBERS: [u64; 14] = [0, 1, 2, 3, 4, 5, 7, 8, 255, 65_535, u32::MAX as u64, 1 << 32, 1 << 63, u64::MAX];
const WORDS: [&[u8]; 22] = [
    b"U8",
    b"U16",
    b"I16",
    b"F16",
    b"BF16",
    b"U32",
    b"I32",
    b"F32",
    b"U64",
    b"I64",
    b"F64",
    b"BOOL",
    b"F4",
    b"locations",
    b"activations",
    b"tokens",
    b"sample",
    b"token",
    b"activation",
    b"latent_offsets",
    b"token_id",
    b"",
];

/// Runs of bytes in `text` that `is` holds for.
fn runs(text: &[u8], is: impl Fn(u8) -> bool) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = None;
    for (i, &byte) in text.iter().enumerate() {
        match (is(byte), start) {
            (true, None) => start = Some(i),
            (false, Some(begun)) => {
                found.push(begun..i);
                start = None;
            }
            _ => {}
        }
    }
    found.extend(start.map(|begun| begun..text.len()));
    found
}

/// Puts another number, dtype or name in one place of JSON.
fn change_text(numbers: &mut Numbers, text: &mut Vec<u8>) {
    let digits = runs(text, |byte| byte.is_ascii_digit());
    let words = runs(text, |byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if numbers.below(3) > 0 && !digits.is_empty() {
        let place = numbers.of(&digits).clone();
        let old: u64 =
            std::str::from_utf8(&text[place.clone()]).ok().and_then(|old| old.parse().ok()).unwrap_or(0);
        let new = match numbers.below(4) {
            0 => old.wrapping_add(1),
            1 => old.wrapping_sub(1),
            2 => *numbers.of(&NUMBERS),
            _ => numbers.next() >> numbers.below(64),
        };
        text.splice(place, new.to_string().into_bytes());
    } else if !words.is_empty() {
        let place = numbers.of(&words).clone();
        let word = *numbers.of(&WORDS);
        text.splice(place, word.iter().copied());
    }
}

fn mutate(numbers: &mut Numbers, bytes: &mut Vec<u8>, other: &[u8], json: bool) {
    for _ in 0..=numbers.below(3) {
        let n = bytes.len();
        let header = bytes.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes)) as usize;
        match numbers.below(9) {
            0 if n > 0 => bytes[numbers.below(n)] ^= 1 << numbers.below(8),
            1 if n > 0 => bytes[numbers.below(n)] = numbers.next() as u8,
            2 => bytes.truncate(numbers.below(n + 1)),
            3 => bytes.extend((0..numbers.below(24)).map(|_| numbers.next() as u8)),
            4 if n > 0 => {
                let from = numbers.below(other.len());
                let piece = &other[from..(from + 1 + numbers.below(40)).min(other.len())];
                let at = numbers.below(n);
                let end = (at + numbers.below(40)).min(n);
                bytes.splice(at..end, piece.iter().copied());
            }
            5 if n >= 8 => {
                let at = if json { numbers.below(n - 7) } else { numbers.below(n / 8) * 8 };
                bytes[at..at + 8].copy_from_slice(&numbers.of(&NUMBERS).to_le_bytes());
            }
            _ if json => change_text(numbers, bytes),
            _ if n >= 8 && header <= n - 8 => {
                let mut text = bytes[8..8 + header].to_vec();
                change_text(numbers, &mut text);
                // The length prefix follows, and mostly the padding that keeps the columns aligned.
                if numbers.below(4) > 0 {
                    text.truncate(text.trim_ascii_end().len());
                    text.resize(text.len().next_multiple_of(8), b' ');
                }
                let length = (text.len() as u64).to_le_bytes();
                bytes.splice(..8 + header, length.into_iter().chain(text));
            }
            _ => {}
        }
    }
}

/// Which file input `i` is, and whether it was read to its end.
fn run(i: u64, corpora: &[Corpus]) -> (usize, bool) {
    let mut numbers = Numbers(i.wrapping_mul(0x5851_f42d_4c95_7f2d));
    let corpus = &corpora[numbers.below(corpora.len())];
    let which = numbers.below(2);
    let kind = numbers.below(6);
    let (sound, other, json) = match kind {
        0 => (&corpus.splits[which].1, &corpus.splits[1 - which].1, false),
        1 => (&corpus.manifest_json, &corpus.samples_jsonl, true),
        2 => (&corpus.samples_jsonl, &corpus.samples_jsonl, true),
        3 => (&corpus.tokens, &corpus.splits[which].1, false),
        4 => (&corpus.msae[which].1, &corpus.delphi[which].1, false),
        _ => (&corpus.delphi[which].1, &corpus.msae[which].1, false),
    };
    let mut bytes = sound.clone();
    mutate(&mut numbers, &mut bytes, other, json);
    let layout = *numbers.of(&[None, None, Some(Layout::Msae), Some(Layout::Delphi)]);
    let to_disk = i.is_multiple_of(IMPORT_EVERY);
    let result = match kind {
        0 => read_split(corpus, which, &bytes),
        1 => read_manifest(corpus, &bytes),
        2 => read_samples(corpus, &bytes),
        3 => read_tokens(corpus, &bytes),
        4 => read_foreign(&corpus.msae, which, &bytes, layout, to_disk),
        _ => read_foreign(&corpus.delphi, which, &bytes, layout, to_disk),
    };
    (kind, result.is_ok())
}

#[test]
fn no_bytes_of_any_file_break_a_reader() {
    let told = std::env::var("ACT_CACHE_FUZZ_INPUTS");
    let n: u64 = told.ok().map_or(DEFAULT_INPUTS, |told| told.parse().unwrap());
    let corpora = [ActivationDtype::F32, ActivationDtype::F16, ActivationDtype::Bf16].map(corpus);
    let workers = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let failed: OnceLock<String> = OnceLock::new();
    // Per file: inputs, and inputs that were read to their end.
    let tallies: Vec<[[u64; 2]; 6]> = std::thread::scope(|scope| {
        let work = |worker: u64| {
            let (corpora, failed) = (&corpora, &failed);
            scope.spawn(move || {
                let mut tally = [[0; 2]; 6];
                for i in (worker..n).step_by(workers as usize) {
                    let start = Instant::now();
                    match std::panic::catch_unwind(AssertUnwindSafe(|| run(i, corpora))) {
                        Ok((kind, good)) => {
                            tally[kind][0] += 1;
                            tally[kind][1] += u64::from(good);
                        }
                        Err(_) => _ = failed.set(format!("input {i} panics")),
                    }
                    if start.elapsed() > LONGEST {
                        let _ = failed.set(format!("input {i} takes {:?}", start.elapsed()));
                    }
                    if failed.get().is_some() {
                        break;
                    }
                }
                tally
            })
        };
        let workers: Vec<_> = (0..workers).map(work).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert_eq!(failed.get(), None);
    for kind in 0..6 {
        let [inputs, good] = [0, 1].map(|part| tallies.iter().map(|tally| tally[kind][part]).sum::<u64>());
        // Both happen: what is damaged is found, and what is not damaged where it matters is read.
        assert!(
            n < 1000 || (good > 0 && good < inputs),
            "file {kind}: {good} of {inputs} inputs were read to the end"
        );
    }
}
