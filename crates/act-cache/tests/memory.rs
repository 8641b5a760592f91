//! Writing and merging, importing and exporting take the memory the budget says, however much data there is.
#![allow(clippy::unwrap_used, reason = "for tests only")]
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use act_cache::foreign::{ForeignCache, ImportOptions, MsaeOptions, export_msae, import};
use act_cache::{
    Cache, CacheDescription, CacheJob, HookDescription, PartWriter, SampleCodes, SampleRecord, Shard, merge,
};
use sae_types::{FeatureId, HookPoint, SampleId, SparseCodes};
use serde_json::Value;

/// The system's allocator, counting what is held and the most that was.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grow(bytes: usize) {
    let held = HELD.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(held, Ordering::Relaxed);
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WIDTH: usize = 8192;
const K: usize = 64;
const TOKENS: u32 = 100;
const MIB: usize = 1 << 20;

/// The most bytes that `work` held at once, beyond those held before.
fn peak(work: impl FnOnce()) -> usize {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed) - before
}

/// Writes and merges a cache of `n` samples at `folder`/cache.
fn write(folder: &Path, n: u32, budget: usize) {
    let hook = HookPoint::layer(3);
    let mut description = CacheDescription::default();
    let about = HookDescription { width: WIDTH, k: K, ..HookDescription::default() };
    description.hooks.insert(hook.clone(), about);
    let mut job = CacheJob::new(description);
    job.keep_tokens = true;

    let parts = folder.join("parts");
    let mut part = PartWriter::open(&parts, &job, Shard::WHOLE, budget).unwrap();
    let tokens: Vec<u32> = (0..TOKENS).collect();
    let mut state = 1_u64;
    for sample in 0..n {
        let mut codes = SparseCodes::with_capacity(WIDTH, TOKENS as usize, TOKENS as usize * K);
        for _ in 0..TOKENS {
            // One latent in each of K equal ranges.
            let row = (0..K).map(|i| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let within = (state >> 33) as usize % (WIDTH / K);
                (FeatureId((i * (WIDTH / K) + within) as u32), 0.5)
            });
            codes.push_row(row).unwrap();
        }
        let record = SampleRecord { sample: SampleId(sample), n_tokens: TOKENS, ..SampleRecord::default() };
        let codes = [SampleCodes { hook: &hook, tokens: &tokens, codes: &codes }];
        part.push(&record, Some(&tokens), &codes).unwrap();
        part.advance(SampleId(sample + 1), &Value::Null).unwrap();
    }
    part.finish(SampleId(n), &Value::Null).unwrap();
    let dir = folder.join("cache");
    std::fs::create_dir(&dir).unwrap();
    let manifest = merge(&parts, &dir).unwrap();
    assert_eq!(manifest.counts.activations, u64::from(n * TOKENS) * K as u64);
}

fn write_peak(n: u32, budget: usize) -> usize {
    let folder = tempfile::tempdir().unwrap();
    peak(|| write(folder.path(), n, budget))
}

/// Exporting a cache of `n` samples, and importing it again.
fn foreign_peaks(n: u32, budget: usize) -> [usize; 2] {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), n, 1 << 30);
    let at = |name: &str| folder.path().join(name);
    let cache = Cache::open(&at("cache")).unwrap();
    let options = MsaeOptions { memory_budget: budget, ..MsaeOptions::default() };
    let export = peak(|| _ = export_msae(&cache, &at("msae"), &options).unwrap());
    drop(cache);
    let foreign = ForeignCache::open(&at("msae"), None).unwrap();
    let options = ImportOptions { memory_budget: budget, ..ImportOptions::default() };
    let import = peak(|| _ = import(&foreign, &at("native"), &options).unwrap());
    [export, import]
}

#[test]
fn memory_is_set_by_the_budget_and_not_by_the_data() {
    // Threads and their queues are made once.
    write_peak(1, MIB);
    let budget = 4 * MIB;
    // As entries in memory these would be 39 and 156 MiB.
    let (some, many) = (write_peak(400, budget), write_peak(1600, budget));
    // Beside the budget: 1 MiB of column buffers for each split being written, the codes of one sample.
    let slack = (2 + rayon_threads()) * MIB;
    assert!(some < budget + slack, "{some} bytes with a budget of {budget}");
    assert!(many < budget + slack, "{many} bytes with a budget of {budget}");
    assert!(many < some + MIB / 2, "{many} bytes for four times the data, {some} before");
    let wide = write_peak(400, 4 * budget);
    assert!(wide > some + 2 * budget, "the budget is used: {wide} against {some}");

    // As entries 39 and 156 MiB again. Tables of latents and samples are small here.
    let (some, many) = (foreign_peaks(400, budget), foreign_peaks(1600, budget));
    for (way, (some, many)) in ["export", "import"].iter().zip(some.into_iter().zip(many)) {
        assert!(many < budget + slack, "{way}: {many} bytes with a budget of {budget}");
        assert!(many < some + MIB, "{way}: {many} bytes for four times the data, {some} before");
    }
}

fn rayon_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
