//! Reading holds a window and writing a row group, not the file: every other test would pass if all were kept.

#![expect(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::{ArrayRef, BinaryArray, RecordBatch};
use mm_data::{
    Choice, Concat, Dataset, EncodedImage, Field, ImageColumn, OpenOptions, ParquetWriter, Sample,
    TokenDtype, TokenFileInfo, TokenOptions, TokenWriter,
};
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

/// One test at a time counts.
static ALONE: Mutex<()> = Mutex::new(());

/// The most bytes held at once while `work` runs, beyond those held before.
fn peak_of(work: impl FnOnce()) -> usize {
    let before = HELD.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    work();
    PEAK.load(Ordering::SeqCst) - before
}

/// 4,000 images of 50 kB, 200 MB in all, from two sources into one file, as `sae-data cache-set` does it.
#[test]
fn a_large_set_is_joined_in_little_memory() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let root = tempfile::tempdir().unwrap();
    let source = |name: &str| {
        let folder = root.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("one.bin.png"), vec![7; 50_000]).unwrap();
        let line = "{\"image\": \"one.bin.png\", \"conversations\": []}\n";
        std::fs::write(folder.join("x.jsonl"), line.repeat(2500)).unwrap();
        Dataset::open(&folder.join("x.jsonl"), None).unwrap()
    };
    let parts = ["a", "b"].map(|name| {
        let set = source(name);
        let chosen = Choice::Seeded(1).indices(2000, set.len());
        (set, chosen)
    });
    let set = Concat::new(parts);
    let peak = peak_of(|| {
        let path = root.path().join("all.parquet");
        let mut writer = ParquetWriter::with_fields(&path, ImageColumn::Single, &[Field::Images]).unwrap();
        for index in 0..set.len() {
            let mut sample = set.get(index).unwrap();
            sample.id = Some(index.to_string());
            writer.push(sample).unwrap();
        }
        writer.finish().unwrap();
    });
    // A row group of 256 images is 12.8 MB: as samples, as an Arrow array in a buffer grown by doubling, in pages.
    assert!(peak < 45_000_000, "held {peak} bytes");
}

/// Eight million tokens are written in a buffer's worth of memory, and read a piece at a time.
#[test]
fn tokens_are_streamed_and_mapped() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train.bin");
    let piece: Vec<u32> = (0..4096).collect();
    let peak = peak_of(|| {
        let mut writer = TokenWriter::create(&path, TokenFileInfo::new(TokenDtype::U32)).unwrap();
        (0..2000).for_each(|_| writer.push(&piece).unwrap());
        writer.finish().unwrap();
        let tokens = TokenOptions { ctx_len: NonZeroUsize::new(4096), dtype: None };
        let set = Dataset::open_with(&path, &OpenOptions { tokens, ..OpenOptions::default() }).unwrap();
        for index in mm_data::shuffled_order(set.len(), 1) {
            assert_eq!(set.get(index as usize).unwrap().tokens.as_deref(), Some(piece.as_slice()));
        }
    });
    assert!(peak < 2_000_000, "held {peak} bytes of a file of 33 MB");
}

/// A row group ends by bytes as well as by rows: 400 images of 1 MB are written in a few groups' memory.
#[test]
fn large_images_make_small_row_groups() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.parquet");
    let peak = peak_of(|| {
        let mut writer = ParquetWriter::create(&path, ImageColumn::List).unwrap();
        for number in 0..400_u32 {
            let image = EncodedImage { name: None, bytes: vec![number as u8; 1 << 20] };
            writer.push(Sample { images: vec![image], ..Sample::default() }).unwrap();
        }
        writer.finish().unwrap();
    });
    assert!(peak < 130_000_000, "held {peak} bytes of 400 MB");
}

/// One row group of 2,000 images of 50 kB, 100 MB in all.
#[test]
fn one_large_row_group_is_read_in_little_memory() {
    const ROWS: usize = 2000;
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
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
    let peak = peak_of(|| {
        let order = mm_data::shuffled_order(ROWS, 1).into_iter().step_by(20);
        for index in (0..ROWS as u32).chain(order) {
            assert_eq!(set.get(index as usize).unwrap().images[0].bytes, vec![index as u8; 50_000]);
        }
    });
    // Eight idle cursors and the one in use, each a window of 16 images (0.8 MB, in a buffer grown by doubling) and
    // a page (1 MB): 23 MB, whatever the file's size.
    assert!(peak < 25_000_000, "held {peak} bytes");
}
