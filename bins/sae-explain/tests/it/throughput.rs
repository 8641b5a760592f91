//! Features per second of the pipeline itself, against a server that answers at once; and its memory, as features grow.
//!
//! `cargo test --release -p sae-explain --test it throughput -- --ignored --nocapture`

use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use act_cache::{
    BaseTile, CacheDescription, CacheWriter, DatasetSource, HookDescription, SampleCodes, SampleRecord,
    WriterOptions,
};
use explain::{Encoding, HeatMap, Masking};
use image::{Rgb, RgbImage};
use lmm_prep::Filter;
use mm_data::Dataset;
use pipeline_tests::chat::Server;
use sae_types::{FeatureId, HookPoint, SampleId, SparseCodes};
use serde_json::Value;
use stage_kit::hash_bytes;

const IMAGES: u32 = 500;
const SIDE: u32 = 336;
const PATCHES: u32 = 24;
/// Samples a feature is on in.
const SAMPLES: u32 = 20;

/// Numbers that look random, the same on every run.
fn mixed(a: u32, b: u32) -> u32 {
    let mut x = a.wrapping_mul(0x9E37_79B9) ^ b.wrapping_mul(0x85EB_CA6B);
    x ^= x >> 15;
    x = x.wrapping_mul(0x2C1B_3C6D);
    x ^ (x >> 13)
}

/// Smooth noise at two scales with a little grain: about as many bytes as a photograph has.
fn photo(sample: u32) -> RgbImage {
    let noise = |cells: u32, part: u32| {
        let coarse = RgbImage::from_fn(cells, cells, |x, y| {
            Rgb([0, 1, 2].map(|channel| mixed(sample * 7 + part, (y * cells + x) * 3 + channel) as u8))
        });
        lmm_prep::resize(&coarse, SIDE, SIDE, Filter::Bicubic)
    };
    let (large, small) = (noise(6, 0), noise(60, 1));
    RgbImage::from_fn(SIDE, SIDE, |x, y| {
        let grain = (mixed(sample, y * SIDE + x) % 9) as i32 - 4;
        let (large, small) = (large.get_pixel(x, y), small.get_pixel(x, y));
        Rgb([0, 1, 2]
            .map(|c| (((i32::from(large[c]) * 3 + i32::from(small[c])) / 4) + grain).clamp(0, 255) as u8))
    })
}

/// A round spot of 25 to 50 patches.
fn spot(feature: u32, sample: u32) -> Vec<(u32, f32)> {
    let (row, col) = (mixed(feature, sample) % PATCHES, mixed(sample, feature) % PATCHES);
    (0..PATCHES * PATCHES)
        .filter_map(|patch| {
            let (dr, dc) = ((patch / PATCHES).abs_diff(row), (patch % PATCHES).abs_diff(col));
            let distance = dr * dr + dc * dc;
            (distance <= 12).then(|| (patch, 4.0 - distance as f32 / 4.0))
        })
        .collect()
}

fn write_cache(folder: &Path, data: &Path, width: u32) {
    let dataset = Dataset::open(data, None).unwrap();
    let hook = HookPoint::layer(24);
    let mut description = CacheDescription {
        model: "m".into(),
        dataset: DatasetSource {
            fingerprint: dataset.fingerprint().to_owned(),
            n_samples: u64::from(IMAGES),
            ..DatasetSource::default()
        },
        ..CacheDescription::default()
    };
    description.hooks.insert(
        hook.clone(),
        HookDescription { width: width as usize, k: 256, ..HookDescription::default() },
    );
    description.token_layout.base = Some(BaseTile { start: 1, rows: PATCHES, cols: PATCHES });
    let mut writer = CacheWriter::create(folder, description, WriterOptions::default()).unwrap();
    let mut of_sample = vec![Vec::new(); IMAGES as usize];
    for feature in 0..width {
        for turn in 0..SAMPLES {
            of_sample[((mixed(feature, 1) + turn * 23) % IMAGES) as usize].push(feature);
        }
    }
    for (sample, features) in of_sample.into_iter().enumerate() {
        let sample = sample as u32;
        let mut rows = vec![Vec::new(); (PATCHES * PATCHES) as usize];
        for feature in features {
            for (patch, value) in spot(feature, sample) {
                rows[patch as usize].push((FeatureId(feature), value));
            }
        }
        let mut codes = SparseCodes::new(width as usize);
        for row in rows {
            codes.push_row(row).unwrap();
        }
        let record = SampleRecord {
            sample: SampleId(sample),
            n_tokens: 1 + PATCHES * PATCHES,
            width: SIDE,
            height: SIDE,
            image_sha256: Some(hash_bytes(&dataset.get(sample as usize).unwrap().images[0].bytes)),
            ..SampleRecord::default()
        };
        let tokens: Vec<u32> = (1..=PATCHES * PATCHES).collect();
        writer.push(&record, &[SampleCodes { hook: &hook, tokens: &tokens, codes: &codes }]).unwrap();
    }
    writer.finish().unwrap();
}

/// What a run took: its summary, the peaks of its memory (all resident, and without mapped files) in MiB, and its CPU time.
struct Run {
    summary: Value,
    resident: f64,
    anonymous: f64,
    cpu_seconds: f64,
}

fn run(folder: &Path, cache: &str, more: &str) -> Run {
    let server = Server::instant();
    let arguments = format!(
        "images --cache {cache} --dataset data --explanation-dir out --overwrite --endpoint {} {more}",
        server.endpoint()
    );
    let mut child = Command::new(env!("CARGO_BIN_EXE_sae-explain"))
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut resident, mut anonymous, mut cpu_seconds) = (0.0, 0.0f64, 0.0);
    while child.try_wait().unwrap().is_none() {
        let proc = format!("/proc/{}", child.id());
        let status = std::fs::read_to_string(format!("{proc}/status")).unwrap_or_default();
        let mebibytes = |name: &str| -> Option<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
        };
        resident = mebibytes("VmHWM:").unwrap_or(resident);
        anonymous = anonymous.max(mebibytes("RssAnon:").unwrap_or(0.0));
        let stat = std::fs::read_to_string(format!("{proc}/stat")).unwrap_or_default();
        let fields: Vec<f64> = stat
            .rsplit(')')
            .next()
            .unwrap_or("")
            .split_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        // utime and stime, in hundredths of a second.
        if let [.., _] = fields[..]
            && fields.len() > 12
        {
            cpu_seconds = (fields[10] + fields[11]) / 100.0;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    Run { summary: serde_json::from_slice(&output.stdout).unwrap(), resident, anonymous, cpu_seconds }
}

/// Milliseconds that `work` takes, the mean over the photographs.
fn milliseconds<T>(name: &str, photos: &[RgbImage], mut work: impl FnMut(&RgbImage) -> T) {
    let started = Instant::now();
    for photo in photos {
        black_box(work(photo));
    }
    println!("  {name}: {:.3} ms", started.elapsed().as_secs_f64() * 1000.0 / photos.len() as f64);
}

#[test]
#[ignore = "a measurement of a minute: run it in release"]
fn throughput_and_memory() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    for sample in 0..IMAGES {
        let bytes = Encoding::Jpeg(90).encode(&photo(sample)).unwrap();
        std::fs::write(data.join(format!("{sample:04}.jpg")), bytes).unwrap();
    }
    let photos: Vec<RgbImage> = (0..60).map(photo).collect();
    let mut values = vec![0.0; (PATCHES * PATCHES) as usize];
    for (patch, value) in spot(1, 1) {
        values[patch as usize] = value;
    }
    let heat = HeatMap::new(PATCHES as usize, PATCHES as usize, values).unwrap();
    let masking = Masking::default();
    let lit: Vec<RgbImage> = photos.iter().map(|photo| masking.apply(photo, &heat)).collect();
    let jpeg = Encoding::Jpeg(90).encode(&photos[0]).unwrap();
    println!("parts, per picture of {SIDE} x {SIDE} ({} bytes as JPEG):", jpeg.len());
    milliseconds("decode", &photos, |_| lmm_prep::decode_image_upright(&jpeg).unwrap());
    milliseconds("hash", &photos, |_| hash_bytes(&jpeg));
    milliseconds("mask", &photos, |photo| masking.apply(photo, &heat));
    milliseconds("encode, quality 90", &lit, |lit| Encoding::Jpeg(90).encode(lit).unwrap());
    milliseconds("encode, quality 85", &lit, |lit| Encoding::Jpeg(85).encode(lit).unwrap());
    let lit_jpeg = Encoding::Jpeg(90).encode(&lit[0]).unwrap();
    milliseconds("base64 and JSON", &photos, |_| {
        let image = chat_client::Image::new("image/jpeg", lit_jpeg.clone());
        serde_json::to_vec(&chat_client::ChatMessage::user("x").with_image(image)).unwrap()
    });
    for (features, more) in
        [(2000, ""), (8000, ""), (2000, "--jpeg-quality 85"), (2000, "--picture-memory 16")]
    {
        let cache = format!("cache{features}");
        if !folder.path().join(&cache).exists() {
            write_cache(&folder.path().join(&cache), &data, features);
        }
        let Run { summary, resident, anonymous, cpu_seconds } = run(folder.path(), &cache, more);
        assert_eq!(summary["answered"], features);
        println!(
            "{features} features {more}: {} features/s, {} s, {:.2} ms of CPU per feature, peak {resident:.0} MiB \
             ({anonymous:.0} MiB without mapped files)",
            summary["features_per_second"],
            summary["seconds"],
            cpu_seconds * 1000.0 / f64::from(features)
        );
    }
}
