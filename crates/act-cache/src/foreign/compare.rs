//! [`compare`]: whether a foreign cache and a native one say the same.

use sae_types::{FeatureId, SampleId, TokenIndex};

use super::export::line_of;
use super::split::{ForeignSplit, TokenGrid};
use super::{ForeignCache, samples};
use crate::{ActivationDtype, Cache, CacheError, FeatureSlice, HookCache};

/// What [`compare`] went through.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Comparison {
    /// Activations found in both.
    pub activations: u64,
    /// Foreign activations that are zero, or round to it, and so not in the native cache.
    pub zeros: u64,
    /// Token ids found in both.
    pub tokens: u64,
    /// The largest difference between two values; 0 where both store the same dtype.
    pub largest_difference: f32,
}

/// Reads every entry of `foreign` from its files and finds it in `native`: feature, sample, position (`first` more than the
/// foreign token) and value, one rounded to the other's dtype; then that `native` has no others. Where both keep token ids
/// those are compared as well. Features that `native` lost ([`HookManifest::lost`](crate::HookManifest::lost)) have no
/// entries in either.
///
/// # Errors
/// Names the first entry that differs, or the first feature with more activations in `native`; also when one of the two
/// cannot be read.
pub fn compare(foreign: &ForeignCache, native: &Cache, first: u32) -> Result<Comparison, CacheError> {
    let mut comparison = Comparison::default();
    for (name, theirs) in foreign.entries() {
        let ours = native.hook(name)?;
        let mut next = 0;
        for split in &theirs.splits {
            absent(&ours, next..split.latents().start, split)?;
            compare_split(foreign, split, &ours, first, &mut comparison)?;
            next = split.latents().end;
        }
        if let Some(split) = theirs.splits.last() {
            absent(&ours, next..ours.width(), split)?;
        }
    }
    if let Some((grid, tokens)) = samples::grid(foreign).zip(native.tokens()?) {
        comparison.tokens = compare_tokens(grid, native, &tokens)?;
    }
    Ok(comparison)
}

fn differs(split: &ForeignSplit, entry: usize, problem: String) -> CacheError {
    CacheError::ForeignEntry { path: split.path().to_owned(), entry, problem }
}

/// No feature of a gap between splits is active.
fn absent(
    ours: &HookCache<'_>,
    latents: std::ops::Range<usize>,
    split: &ForeignSplit,
) -> Result<(), CacheError> {
    for latent in latents.start..latents.end.min(ours.width()) {
        let n = ours.slice(FeatureId(latent as u32)).len();
        if n > 0 {
            return Err(differs(
                split,
                0,
                format!("no split holds feature {latent}, the native cache {n} of it"),
            ));
        }
    }
    Ok(())
}

fn compare_split(
    foreign: &ForeignCache,
    split: &ForeignSplit,
    ours: &HookCache<'_>,
    first: u32,
    comparison: &mut Comparison,
) -> Result<(), CacheError> {
    let latents = split.latents();
    if latents.end > ours.width() {
        return Err(differs(split, 0, format!("the native cache has {} latents", ours.width())));
    }
    let (here, there) = (split.activation_dtype(), ours.cache().manifest().activation_dtype);
    let slices: Vec<FeatureSlice<'_>> =
        latents.clone().map(|latent| ours.slice(FeatureId(latent as u32))).collect();
    // Of a file in order, the next entry of each feature is the one after its last.
    let mut cursors = vec![0usize; slices.len()];
    let mut found = vec![0u64; slices.len()];
    for i in 0..split.len() {
        let entry = split.entry(i, foreign.layout(), first).map_err(|problem| differs(split, i, problem))?;
        if there.round(entry.value) == 0.0 {
            comparison.zeros += 1;
            continue;
        }
        let at = entry.latent as usize - latents.start;
        let slice = &slices[at];
        let (sample, token) = (SampleId(entry.sample), TokenIndex(entry.token));
        let is = |j: usize| slice.samples().get(j) == Some(&sample.0) && slice.token(j) == token;
        if !is(cursors[at]) {
            cursors[at] = find(slice, sample, token);
        }
        let j = cursors[at];
        if !is(j) {
            let problem = format!(
                "feature {}, sample {sample}, position {token} is not in the native cache",
                entry.latent
            );
            return Err(differs(split, i, problem));
        }
        let value = slice.activation(j);
        if !same(entry.value, here, value, there) {
            let problem = format!(
                "feature {}, sample {sample}, position {token} is {}, in the native cache {value}",
                entry.latent, entry.value
            );
            return Err(differs(split, i, problem));
        }
        comparison.largest_difference = comparison.largest_difference.max((entry.value - value).abs());
        comparison.activations += 1;
        cursors[at] = j + 1;
        found[at] += 1;
    }
    for (at, (slice, found)) in slices.iter().zip(found).enumerate() {
        let stored = (0..slice.len()).filter(|&j| here.round(slice.activation(j)) != 0.0).count() as u64;
        if stored != found {
            let feature = latents.start + at;
            let problem = format!("feature {feature} has {found} activations, in the native cache {stored}");
            return Err(differs(split, split.len(), problem));
        }
    }
    Ok(())
}

/// Where (sample, token) would stand in a sorted slice.
fn find(slice: &FeatureSlice<'_>, sample: SampleId, token: TokenIndex) -> usize {
    let start = slice.samples().partition_point(|&other| other < sample.0);
    let within = slice.in_sample(sample);
    let (mut low, mut high) = (0, within.len());
    while low < high {
        let middle = low.midpoint(high);
        if within.token(middle) < token { low = middle + 1 } else { high = middle }
    }
    start + low
}

/// One is the other, or the other rounded.
fn same(a: f32, a_dtype: ActivationDtype, b: f32, b_dtype: ActivationDtype) -> bool {
    a == b || a_dtype.round(b) == a || b_dtype.round(a) == b
}

fn compare_tokens(
    (split, grid): (&ForeignSplit, &TokenGrid),
    native: &Cache,
    tokens: &crate::CachedTokens,
) -> Result<u64, CacheError> {
    let mut n = 0;
    for record in native.samples() {
        let Some(line) = line_of(native, record.sample) else { continue };
        let ids = tokens.of_line(line);
        let row = record.sample.index();
        let equal = row < grid.rows
            && ids.len() <= grid.cols
            && split.token_row(grid, row).zip(ids).all(|(here, &there)| here == i64::from(there));
        if !equal {
            return Err(CacheError::Tensor {
                path: split.path().to_owned(),
                tensor: super::split::TOKENS,
                problem: format!("differs from the token ids of sample {row}"),
                expected: "the ids of the native cache".to_owned(),
            });
        }
        n += ids.len() as u64;
    }
    Ok(n)
}
