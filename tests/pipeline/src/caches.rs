//! Pictures of coloured patches, and caches whose features are on where a test says, so that all that is made of them is known.

#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::path::Path;

use act_cache::{
    BaseTile, CacheDescription, CacheWriter, DatasetSource, HookDescription, SampleCodes, SampleRecord,
    WriterOptions,
};
use image::{Rgb, RgbImage};
use mm_data::Dataset;
use sae_types::{FeatureId, HookPoint, SampleId, SparseCodes};
use stage_kit::hash_bytes;

/// Rows and columns of patches: neither square nor what any model has.
pub const GRID: (u32, u32) = (3, 5);
/// Pixels of a patch of a [`painted`] picture: every patch is whole.
pub const PATCH: u32 = 8;
const GROUND: [u8; 3] = [200, 200, 200];

/// The patch that a pixel of a [`painted`] picture lies in.
pub fn patch_at(x: u32, y: u32) -> u32 {
    y / PATCH * GRID.1 + x / PATCH
}

/// A picture whose patches have these colours, or that of the ground; no two samples have the same.
pub fn painted(sample: u32, colour: impl Fn(u32) -> Option<[u8; 3]>) -> RgbImage {
    let mut picture = RgbImage::from_fn(GRID.1 * PATCH, GRID.0 * PATCH, |x, y| {
        Rgb(colour(patch_at(x, y)).unwrap_or(GROUND))
    });
    picture.put_pixel(0, 0, Rgb([sample as u8, 1, 2]));
    picture
}

/// Writes `cache` into a folder, of the pictures of the data set in its `data`: `width` features at layer 1, of which `on` gives
/// those that are on in a patch of a sample, ascending, with how strongly.
pub fn write_cache(folder: &Path, width: usize, k: usize, on: impl Fn(u32, u32) -> Vec<(u32, f32)>) {
    write_cache_without(folder, &[], width, k, on);
}

/// As [`write_cache`], as if these samples had been unreadable: they have no record.
pub fn write_cache_without(
    folder: &Path,
    without: &[u32],
    width: usize,
    k: usize,
    on: impl Fn(u32, u32) -> Vec<(u32, f32)>,
) {
    let dataset = Dataset::open(&folder.join("data"), None).unwrap();
    let mut description = CacheDescription { model: "m".into(), ..CacheDescription::default() };
    description.dataset = DatasetSource {
        name: "data".into(),
        fingerprint: dataset.fingerprint().to_owned(),
        n_samples: dataset.len() as u64,
        ..DatasetSource::default()
    };
    let hook = HookPoint::layer(1);
    description.hooks.insert(hook.clone(), HookDescription { width, k, ..HookDescription::default() });
    let (rows, cols) = GRID;
    description.token_layout.base = Some(BaseTile { start: 1, rows, cols });
    let options = WriterOptions { n_splits: 2, ..WriterOptions::default() };
    let mut writer = CacheWriter::create(&folder.join("cache"), description, options).unwrap();
    let tokens: Vec<u32> = (1..=rows * cols).collect();
    for sample in (0..dataset.len() as u32).filter(|sample| !without.contains(sample)) {
        let mut codes = SparseCodes::new(width);
        for patch in 0..rows * cols {
            let row = on(sample, patch).into_iter().map(|(feature, value)| (FeatureId(feature), value));
            codes.push_row(row).unwrap();
        }
        let bytes = dataset.get(sample as usize).unwrap().images[0].bytes.clone();
        let (width, height) = lmm_prep::decode_image(&bytes).unwrap().dimensions();
        let record = SampleRecord {
            sample: SampleId(sample),
            n_tokens: 1 + rows * cols,
            width,
            height,
            image_sha256: Some(hash_bytes(&bytes)),
            ..SampleRecord::default()
        };
        writer.push(&record, &[SampleCodes { hook: &hook, tokens: &tokens, codes: &codes }]).unwrap();
    }
    writer.finish().unwrap();
}
