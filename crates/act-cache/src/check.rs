//! Whether a job makes a cache, and a sample fits its job.

use sae_types::{FeatureId, HookPoint};

use crate::{CacheError, CacheJob, SampleCodes, SampleRecord};

/// Refuses a job that makes no cache.
pub(crate) fn job(job: &CacheJob) -> Result<(), CacheError> {
    let CacheJob { description, n_splits, .. } = job;
    let wrong =
        |field: String, expected: String, got: String| Err(CacheError::Description { field, expected, got });
    if description.hooks.is_empty() {
        return wrong("the list of hook points".to_owned(), "at least one".to_owned(), "empty".to_owned());
    }
    for (hook, about) in &description.hooks {
        if about.width == 0 || about.width > u32::MAX as usize {
            return wrong(
                format!("the width of {hook}"),
                "1 to 4294967295".to_owned(),
                about.width.to_string(),
            );
        }
        if *n_splits == 0 || *n_splits > about.width {
            let expected = format!("1 to the {} latents of {hook}", about.width);
            return wrong("n_splits".to_owned(), expected, n_splits.to_string());
        }
    }
    if let Some(base) = description.token_layout.base
        && base.n_tokens().is_none_or(|n| n == 0 || base.start.checked_add(n).is_none())
    {
        return wrong(
            "the base tile".to_owned(),
            "a grid of at least one patch".to_owned(),
            format!("{base:?}"),
        );
    }
    if let Some(filters) = &description.filters {
        for hook in filters.hooks() {
            if !description.hooks.contains_key(hook) {
                let known = description.hooks.keys().cloned().collect();
                return Err(CacheError::UnknownHook { hook: hook.clone(), known });
            }
        }
        for (hook, about) in &description.hooks {
            if filters.features(hook).is_none() {
                let expected = format!("features of {hook}, or no such hook point in the description");
                return wrong("the filters' list".to_owned(), expected, "absent".to_owned());
            }
            filters.check_width(hook, about.width).map_err(|source| CacheError::Filters { source })?;
        }
    }
    Ok(())
}

/// Refuses a sample that does not fit the job.
pub(crate) fn sample(
    job: &CacheJob,
    record: &SampleRecord,
    token_ids: Option<&[u32]>,
    codes: &[SampleCodes<'_>],
) -> Result<(), CacheError> {
    let misfit = |what: &str, expected: String, got: String| {
        Err(CacheError::Sample { sample: record.sample, what: what.to_owned(), expected, got })
    };
    let n_samples = job.description.dataset.n_samples;
    if n_samples > 0 && u64::from(record.sample.0) >= n_samples {
        return misfit("its number", format!("one of the data set's {n_samples}"), record.sample.to_string());
    }
    if let Some(base) = job.description.token_layout.base
        && record.has_image()
        && record.base_tokens(&job.description.token_layout).is_none()
    {
        let start = record.base_start.unwrap_or(base.start);
        let expected = format!("at least {start} + {} x {} of the base tile", base.rows, base.cols);
        return misfit("its number of tokens", expected, record.n_tokens.to_string());
    }
    let mut end = 0;
    for &[from, to] in &record.image_tokens {
        if from < end || to <= from || to > record.n_tokens {
            let expected = format!("spans that rise below {}", record.n_tokens);
            return misfit("its list of image tokens", expected, format!("{:?}", record.image_tokens));
        }
        end = to;
    }
    let expected = job.keep_tokens.then_some(record.n_tokens as usize);
    let got = token_ids.map(<[u32]>::len);
    if got != expected {
        let number = |n: Option<usize>| n.map_or_else(|| "none".to_owned(), |n| n.to_string());
        return misfit("the number of its token ids", number(expected), number(got));
    }
    self::codes(job, record, codes)
}

fn codes(job: &CacheJob, record: &SampleRecord, codes: &[SampleCodes<'_>]) -> Result<(), CacheError> {
    let sample = record.sample;
    let hooks = &job.description.hooks;
    let misfit =
        |what: String, expected: String, got: String| Err(CacheError::Sample { sample, what, expected, got });
    let listed =
        |hooks: Vec<&HookPoint>| format!("{:?}", hooks.iter().map(|h| h.as_str()).collect::<Vec<_>>());
    let mut given: Vec<&HookPoint> = codes.iter().map(|codes| codes.hook).collect();
    given.sort_unstable();
    if !given.iter().copied().eq(hooks.keys()) {
        return misfit("its list of hook points".to_owned(), listed(hooks.keys().collect()), listed(given));
    }
    for SampleCodes { hook, tokens, codes } in codes {
        let width = hooks[*hook].width;
        if codes.num_latents() != width {
            let got = codes.num_latents().to_string();
            return misfit(format!("the width of its codes of {hook}"), width.to_string(), got);
        }
        if tokens.len() != codes.n_rows() {
            let got = codes.n_rows().to_string();
            return misfit(format!("the number of code rows of {hook}"), tokens.len().to_string(), got);
        }
        let ascending = tokens.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending || tokens.last().is_some_and(|&last| last >= record.n_tokens) {
            let expected = format!("strictly ascending below {}", record.n_tokens);
            return misfit(format!("the list of positions of {hook}"), expected, format!("{tokens:?}"));
        }
        let dtype = job.dtype;
        for (&latent, &value) in codes.latents().iter().zip(codes.values()) {
            if !dtype.round(value).is_finite() {
                return Err(CacheError::Overflow { sample, feature: FeatureId(latent), value, dtype });
            }
        }
    }
    Ok(())
}
