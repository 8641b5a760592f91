//! Reading holds a window, not the file: every other test would pass if a row group, or all of them, were kept.

#![expect(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow_array::{ArrayRef, BinaryArray, RecordBatch};
use mm_data::Dataset;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes every call to the system's allocator unchanged; the default `realloc` goes through these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::SeqCst) + layout.size();
        PEAK.fetch_max(held, Ordering::SeqCst);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One row group of 2,000 images of 50 kB, 100 MB in all.
#[test]
fn one_large_row_group_is_read_in_little_memory() {
    const ROWS: usize = 2000;
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("x.parquet");
    let properties = WriterProperties::builder()
        .set_max_row_group_size(ROWS)
        .set_dictionary_enabled(false)
        .set_write_batch_size(8)
        .build();
    let batch = |first: usize| {
        let images: Vec<Vec<u8>> = (first..first + 100).map(|row| vec![row as u8; 50_000]).collect();
        let images = BinaryArray::from_vec(images.iter().map(Vec::as_slice).collect());
        RecordBatch::try_from_iter([("image", Arc::new(images) as ArrayRef)]).unwrap()
    };
    let handle = std::fs::File::create(&file).unwrap();
    let mut writer = ArrowWriter::try_new(handle, batch(0).schema(), Some(properties)).unwrap();
    (0..ROWS).step_by(100).for_each(|first| writer.write(&batch(first)).unwrap());
    writer.close().unwrap();

    let set = Dataset::open(&file, None).unwrap();
    let before = HELD.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let order = mm_data::shuffled_order(ROWS, 1).into_iter().step_by(20);
    for index in (0..ROWS as u32).chain(order) {
        assert_eq!(set.get(index as usize).unwrap().images[0].bytes, vec![index as u8; 50_000]);
    }
    let peak = PEAK.load(Ordering::SeqCst) - before;
    // Eight idle cursors and the one in use, each a window of 16 images (0.8 MB, in a buffer grown by doubling) and
    // a page (1 MB): 23 MB, whatever the file's size.
    assert!(peak < 25_000_000, "held {peak} bytes");
}
