//! Which features agree with which concept, and by how much.

use std::collections::{BTreeMap, BTreeSet};

use act_cache::HookCache;
use anyhow::{Context, Result};
use explain::{Cut, Example, top_examples};
use mm_data::Dataset;
use rayon::prelude::*;
use sae_types::{FeatureId, SampleId};
use scoring::{Agreement, Summary};
use serde::Serialize;

use crate::naming::Naming;
use crate::page::Card;
use crate::truth::Annotated;

/// Features that fire in fewer samples say too little.
const LEAST_SAMPLES: u64 = 10;

/// The features most specific to one concept, and how all of them fare.
pub(crate) struct Measured {
    pub(crate) cards: Vec<Card>,
    /// Features that fire on a base tile at all.
    pub(crate) alive: usize,
    /// Over the cards: the overlap with each feature's best concept.
    pub(crate) agreement: Option<Summary>,
    /// The same, each feature's pictures against the best concept of the next feature.
    pub(crate) shuffled: Option<Summary>,
    /// Over all specific features: whether their explanations name the concept. `None` without explanations.
    pub(crate) naming: Option<Naming>,
    /// All specific features, the most specific first.
    pub(crate) specific: Vec<Specific>,
}

/// A feature that stands for one concept.
#[derive(Debug, Serialize)]
pub(crate) struct Specific {
    feature: FeatureId,
    /// The concept it overlaps most.
    concept: String,
    overlap: f64,
    /// Its largest activation anywhere.
    peak: f32,
    explanation: Option<String>,
}

impl Specific {
    pub(crate) fn feature(&self) -> FeatureId {
        self.feature
    }
}

/// What to measure.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    /// Features to show, and of one concept at most.
    pub(crate) features: usize,
    pub(crate) per_concept: usize,
    /// Samples per feature.
    pub(crate) examples: usize,
    /// Features that overlap their best concept by at least this much are specific.
    pub(crate) specific: f64,
    /// What was said of features.
    pub(crate) explanations: Option<&'a BTreeMap<FeatureId, String>>,
}

/// A feature with its examples and its overlap with each concept on them.
struct Scored {
    samples: u64,
    peak: f32,
    feature: u32,
    examples: Vec<Example>,
    concepts: Vec<(String, f64)>,
}

/// Scores every feature of the hook point on its top examples.
pub(crate) fn measure(hook: &HookCache<'_>, dataset: &Dataset, wanted: &Wanted<'_>) -> Result<Measured> {
    let n = wanted.examples;
    let mut found = Vec::new();
    let mut alive = 0;
    for statistics in hook.statistics() {
        let slice = hook.feature(statistics.feature)?;
        let examples = top_examples(&slice, n)?;
        alive += usize::from(!examples.is_empty());
        if examples.len() == n && statistics.n_samples >= LEAST_SAMPLES {
            found.push((statistics, examples));
        }
    }
    let samples: BTreeSet<SampleId> = found.iter().flat_map(|(_, e)| e.iter().map(|e| e.sample)).collect();
    let truth: BTreeMap<SampleId, Annotated> = samples
        .into_par_iter()
        .map(|sample| {
            let annotated =
                dataset.get(sample.index()).map_err(anyhow::Error::from).and_then(|s| Annotated::of(&s));
            Ok((sample, annotated.with_context(|| format!("sample {sample}"))?))
        })
        .collect::<Result<_>>()?;
    let mut scored: Vec<Scored> = found
        .into_par_iter()
        .map(|(statistics, examples)| {
            let names: BTreeSet<&String> =
                examples.iter().flat_map(|e| truth[&e.sample].concepts.keys()).collect();
            let mut concepts: Vec<(String, f64)> =
                names.iter().map(|name| ((*name).clone(), overlap(&examples, &truth, name))).collect();
            // Of equals the one with more words comes first: it says more and fits as well.
            let words = |name: &str| name.split(' ').count();
            concepts.sort_by(|a, b| {
                b.1.total_cmp(&a.1).then_with(|| words(&b.0).cmp(&words(&a.0))).then_with(|| a.0.cmp(&b.0))
            });
            let (samples, peak, feature) = (statistics.n_samples, statistics.max, statistics.feature.0);
            Scored { samples, peak, feature, examples, concepts }
        })
        .collect();
    scored.sort_by(|a, b| best(b).total_cmp(&best(a)).then(a.feature.cmp(&b.feature)));
    let specific: Vec<Specific> = scored
        .iter()
        .filter_map(|scored| {
            let (concept, overlap) = scored.concepts.first()?;
            let feature = FeatureId(scored.feature);
            let explanation = wanted.explanations.and_then(|said| said.get(&feature)).cloned();
            let (concept, overlap) = (concept.clone(), *overlap);
            Some(Specific { feature, concept, overlap, peak: scored.peak, explanation })
        })
        .filter(|feature| feature.overlap >= wanted.specific)
        .collect();
    let naming = wanted.explanations.map(|_| {
        Naming::of(specific.iter().map(|feature| (feature.concept.as_str(), feature.explanation.as_deref())))
    });
    let mut shown: BTreeMap<String, usize> = BTreeMap::new();
    scored.retain(|feature| {
        let Some((concept, _)) = feature.concepts.first() else { return false };
        let shown = shown.entry(concept.clone()).or_default();
        *shown += 1;
        *shown <= wanted.per_concept
    });
    scored.truncate(wanted.features);

    let shuffled = scored
        .iter()
        .zip(scored.iter().cycle().skip(1))
        .filter_map(|(feature, other)| Some(overlap(&feature.examples, &truth, &other.concepts.first()?.0)));
    Ok(Measured {
        alive,
        agreement: Summary::of(scored.iter().map(best)),
        shuffled: Summary::of(shuffled),
        cards: scored.iter().map(|feature| card(feature, &truth, wanted.explanations)).collect(),
        naming,
        specific,
    })
}

fn best(feature: &Scored) -> f64 {
    feature.concepts.first().map_or(0.0, |concept| concept.1)
}

/// Mean overlap of the half-maximum masks with a concept's pixels; an image without the concept counts as 0.
fn overlap(examples: &[Example], truth: &BTreeMap<SampleId, Annotated>, concept: &str) -> f64 {
    let score = |example: &Example| {
        let annotated = &truth[&example.sample];
        let (width, height) = annotated.image.dimensions();
        let pixels = annotated.concepts.get(concept)?;
        Agreement::of(example.heat.mask(width, height, Cut::HalfMaximum).pixels(), pixels).iou()
    };
    Summary::of(examples.iter().map(|example| score(example).unwrap_or(0.0)))
        .map_or(0.0, |summary| summary.mean)
}

fn card(
    feature: &Scored,
    truth: &BTreeMap<SampleId, Annotated>,
    explanations: Option<&BTreeMap<FeatureId, String>>,
) -> Card {
    let picture = |example: &Example| {
        let image = truth[&example.sample].image.clone();
        let lit = example.heat.overlay(&image);
        (image, lit)
    };
    Card {
        feature: feature.feature,
        explanation: explanations.and_then(|said| said.get(&FeatureId(feature.feature))).cloned(),
        samples: feature.samples as usize,
        peak: feature.peak,
        concepts: feature.concepts.clone(),
        pictures: feature.examples.iter().map(picture).collect(),
    }
}
