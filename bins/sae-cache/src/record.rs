//! [`record`]: what a cache says of a sample.

use act_cache::{BaseTile, SampleRecord};
use lmm_prep::Inputs;
use sae_types::SampleId;
use stage_kit::hash_bytes;

/// The record of a sample whose first image, if it has any, is stored in `image`. `base` is where the cache's layout has base
/// tiles.
pub(crate) fn record(
    index: usize,
    id: Option<String>,
    image: Option<&[u8]>,
    inputs: &Inputs,
    base: Option<BaseTile>,
) -> SampleRecord {
    let spans = &inputs.layout.images;
    let size = inputs.images.first().map(|tiles| tiles.original);
    let first = spans.first();
    let start = first.map(|span| span.start as u32);
    SampleRecord {
        sample: SampleId(index as u32),
        id,
        n_tokens: inputs.input_ids.len() as u32,
        width: size.map_or(0, |size| size.width),
        height: size.map_or(0, |size| size.height),
        image_sha256: image.map(hash_bytes),
        high: first.map(|span| [span.high.0 as u32, span.high.1 as u32]),
        base_start: start.filter(|start| base.is_some_and(|base| base.start != *start)),
        image_tokens: spans
            .iter()
            .map(|span| [span.positions().start as u32, span.positions().end as u32])
            .collect(),
    }
}
