//! Parts: killed and resumed, divided among workers, merged; whatever happened, the same bytes.
#![allow(clippy::unwrap_used, reason = "tests and their helpers")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use act_cache::{
    Cache, CacheError, CacheJob, PartWriter, SampleCodes, Shard, lock_for_merge, merge, missing_parts,
    part_notes,
};
use common::{Dense, DenseSample, description, files, hook};
use proptest::prelude::*;
use sae_types::SampleId;
use serde_json::{Value, json};

const WIDTH: usize = 10;

/// `n` samples of `5 + number % 3` tokens with a third of their codes on.
fn dense(n: u32) -> Dense {
    let value = |sample: u32, token: u32, latent: u32| {
        let mixed = (sample * 31 + token * 17 + latent * 7) % 11;
        if mixed < 4 { mixed as f32 * 0.5 } else { 0.0 }
    };
    let row = |sample, token| (0..WIDTH as u32).map(move |latent| value(sample, token, latent)).collect();
    let samples = (0..n).map(|sample| DenseSample {
        sample,
        values: (0..5 + sample % 3).map(|token| row(sample, token)).collect(),
    });
    Dense { width: WIDTH, samples: samples.collect() }
}

fn job() -> CacheJob {
    let mut job = CacheJob::new(description(WIDTH));
    job.n_splits = 3;
    job.keep_tokens = true;
    job
}

fn push(part: &mut PartWriter, sample: &DenseSample) -> Result<(), CacheError> {
    let (tokens, codes) = sample.codes(WIDTH);
    let ids: Vec<u32> = tokens.iter().map(|token| token * 100 + sample.sample).collect();
    part.push(&sample.record(), Some(&ids), &[SampleCodes { hook: &hook(), tokens: &tokens, codes: &codes }])
}

/// The samples of a worker, as `sae-cache` divides them.
fn own(dense: &Dense, shard: Shard) -> &[DenseSample] {
    let cut = |index: usize| index * dense.samples.len() / shard.count;
    &dense.samples[cut(shard.index)..cut(shard.index + 1)]
}

/// Does a worker's part from where it stands, stopping as a kill would before sample `stop`.
fn work(parts: &Path, dense: &Dense, shard: Shard, budget: usize, every: u32, stop: Option<u32>) {
    let mut part = PartWriter::open(parts, &job(), shard, budget).unwrap();
    if part.is_complete() {
        return;
    }
    let next = part.next().unwrap_or(SampleId(0));
    for sample in own(dense, shard).iter().filter(|sample| sample.sample >= next.0) {
        if stop == Some(sample.sample) {
            return;
        }
        push(&mut part, sample).unwrap();
        let next = SampleId(sample.sample + 1);
        let note = json!([sample.sample]);
        if sample.sample % every == every - 1 {
            part.checkpoint(next, &note).unwrap();
        } else {
            part.advance(next, &note).unwrap();
        }
    }
    let end = own(dense, shard).last().map_or(0, |sample| sample.sample + 1);
    part.finish(SampleId(end), &Value::Null).unwrap();
}

fn merged(parts: &Path, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    std::fs::create_dir(dir).unwrap();
    merge(parts, dir).unwrap();
    files(dir)
}

/// The bytes of an uninterrupted run of one worker.
fn whole(dense: &Dense) -> BTreeMap<PathBuf, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let parts = folder.path().join("parts");
    work(&parts, dense, Shard::WHOLE, 1 << 20, u32::MAX, None);
    merged(&parts, &folder.path().join("cache"))
}

#[test]
fn any_number_of_workers_gives_the_same_bytes() {
    let dense = dense(29);
    let want = whole(&dense);
    for count in [1, 3, 12, 40] {
        let folder = tempfile::tempdir().unwrap();
        let parts = folder.path().join("parts");
        for index in (0..count).rev() {
            let missing = if parts.exists() { missing_parts(&parts).unwrap().len() } else { count };
            assert_eq!(missing, index + 1, "of {count}");
            work(&parts, &dense, Shard { index, count }, 2000, 4, None);
        }
        assert_eq!(missing_parts(&parts).unwrap(), []);
        let dir = folder.path().join("cache");
        assert_eq!(merged(&parts, &dir), want, "{count} workers");
        let cache = Cache::open(&dir).unwrap();
        cache.verify().unwrap();
        let tokens = cache.tokens().unwrap().unwrap();
        assert_eq!(tokens.of_line(7), [7, 107, 207, 307, 407, 507]);
        // Merging again gives the same again.
        assert_eq!(merged(&parts, &folder.path().join("again")), want);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stopping_anywhere_changes_no_byte(
        n in 1u32..14,
        mut stops in prop::collection::vec(0u32..14, 0..3),
        every in 1u32..6,
        budget in 0usize..4000,
        torn in 0usize..40,
    ) {
        let dense = dense(n);
        let folder = tempfile::tempdir().unwrap();
        let parts = folder.path().join("parts");
        stops.sort_unstable();
        for stop in stops {
            work(&parts, &dense, Shard::WHOLE, budget, every, Some(stop));
            // What a kill leaves: a line half written, and files of the checkpoint in the making.
            let part = parts.join("0-of-1");
            let ledger = part.join("ledger.jsonl");
            let mut text = std::fs::read(&ledger).unwrap();
            if !text.ends_with(b"\"complete\":true}\n") {
                text.extend_from_slice(&br#"{"next":12,"runs":{"model.layers.3":[{"file":"model.layers.3/run"#[..torn]);
                std::fs::write(&ledger, text).unwrap();
                std::fs::write(part.join("model.layers.3/run-000099.safetensors"), "half").unwrap();
                std::fs::write(part.join("samples-000099.jsonl"), "half").unwrap();
            }
        }
        work(&parts, &dense, Shard::WHOLE, budget, every, None);
        prop_assert_eq!(merged(&parts, &folder.path().join("cache")), whole(&dense));
    }
}

#[test]
fn a_ledger_torn_in_its_first_line_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let part = folder.path().join("0-of-1");
    std::fs::create_dir(&part).unwrap();
    std::fs::write(part.join("ledger.jsonl"), r#"{"format":"lmm-sae ca"#).unwrap();
    work(folder.path(), &dense(3), Shard::WHOLE, 2000, 1, None);
    assert_eq!(merged(folder.path(), &folder.path().join("cache")), whole(&dense(3)));
}

#[test]
fn notes_come_back_and_done_samples_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dense = dense(6);
    work(folder.path(), &dense, Shard::WHOLE, 1 << 20, 2, Some(5));
    let mut part = PartWriter::open(folder.path(), &job(), Shard::WHOLE, 1 << 20).unwrap();
    assert_eq!((part.next(), part.notes()), (Some(SampleId(4)), &[json!([1]), json!([3])][..]));
    assert_eq!(
        push(&mut part, &dense.samples[2]).unwrap_err().to_string(),
        "sample 2 comes after sample 3: push samples in ascending order, each once"
    );
    drop(part);
    work(folder.path(), &dense, Shard::WHOLE, 1 << 20, 2, None);
    assert_eq!(part_notes(folder.path()).unwrap(), [json!([1]), json!([3]), json!([5]), Value::Null]);
}

#[test]
fn one_process_writes_a_part_and_one_merges() {
    let folder = tempfile::tempdir().unwrap();
    let part = PartWriter::open(folder.path(), &job(), Shard::WHOLE, 0).unwrap();
    let second = PartWriter::open(folder.path(), &job(), Shard::WHOLE, 0).unwrap_err();
    assert!(matches!(second, CacheError::Locked { .. }), "{second}");
    drop(part);
    PartWriter::open(folder.path(), &job(), Shard::WHOLE, 0).unwrap();
    let lock = lock_for_merge(folder.path()).unwrap();
    assert!(lock.is_some() && lock_for_merge(folder.path()).unwrap().is_none());
    drop(lock);
    assert!(lock_for_merge(folder.path()).unwrap().is_some());
}

/// A finished part, and the error of opening it after `change`.
fn after(change: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    work(folder.path(), &dense(6), Shard::WHOLE, 1 << 20, 2, Some(5));
    change(&folder.path().join("0-of-1"));
    PartWriter::open(folder.path(), &job(), Shard::WHOLE, 1 << 20).unwrap_err().to_string()
}

#[test]
fn damaged_and_foreign_files_are_named() {
    let run = "model.layers.3/run-000001.safetensors";
    let error = after(|part| {
        let bytes = std::fs::read(part.join(run)).unwrap();
        std::fs::write(part.join(run), &bytes[..bytes.len() - 1]).unwrap();
    });
    assert!(error.contains("run-000001.safetensors has SHA-256"), "{error}");
    let error = after(|part| {
        std::fs::copy(part.join("model.layers.3/run-000000.safetensors"), part.join(run)).unwrap();
    });
    assert!(error.contains("run-000001.safetensors has SHA-256"), "{error}");
    let error = after(|part| std::fs::remove_file(part.join("samples-000000.jsonl")).unwrap());
    assert!(error.contains("cannot open") && error.contains("samples-000000.jsonl"), "{error}");
    let error = after(|part| std::fs::write(part.join("model.layers.3/notes.txt"), "mine").unwrap());
    assert!(error.contains("notes.txt is not of this cache"), "{error}");
    let error = after(|part| {
        let ledger = part.join("ledger.jsonl");
        let text = std::fs::read_to_string(&ledger).unwrap();
        std::fs::write(ledger, text.replacen("\"next\":2", "\"next\":x", 1)).unwrap();
    });
    assert!(error.contains("ledger.jsonl, line 2,"), "{error}");
}

#[test]
fn another_job_or_division_is_refused_and_named() {
    let folder = tempfile::tempdir().unwrap();
    work(folder.path(), &dense(6), Shard { index: 0, count: 2 }, 1 << 20, 2, None);
    let mut other = job();
    other.description.hooks.get_mut(&hook()).unwrap().sae.sha256 = "other".to_owned();
    let error = PartWriter::open(folder.path(), &other, Shard { index: 1, count: 2 }, 0).unwrap_err();
    let member = "description.hooks.model.layers.3.sae.sha256 \"\", now it is \"other\"";
    assert!(error.to_string().contains(member), "{error}");
    let error = PartWriter::open(folder.path(), &job(), Shard { index: 0, count: 3 }, 0).unwrap_err();
    assert!(error.to_string().contains("was begun by 2 workers, not 3"), "{error}");
}

#[test]
fn a_merge_without_all_parts_names_the_missing() {
    let folder = tempfile::tempdir().unwrap();
    let count = 3;
    work(folder.path(), &dense(9), Shard { index: 1, count }, 1 << 20, 2, None);
    work(folder.path(), &dense(9), Shard { index: 2, count }, 1 << 20, 2, Some(8));
    let dir = folder.path().join("cache");
    std::fs::create_dir(&dir).unwrap();
    let error = merge(folder.path(), &dir).unwrap_err().to_string();
    assert!(error.contains("not complete: rank 0, 2 of 3"), "{error}");
    assert_eq!(missing_parts(folder.path()).unwrap(), [0, 2].map(|index| Shard { index, count }));
}
