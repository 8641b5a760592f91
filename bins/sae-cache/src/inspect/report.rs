//! [`Report`]: everything `sae-cache inspect` says, as programs read it.

use std::collections::BTreeMap;
use std::path::Path;

use act_cache::{
    ActivationDtype, Cache, CoOccurrence, Counts, DatasetSource, Duplicates, FeatureStatistics, Finding,
    HookCache, RankedSample, Ranking, SaeSource, SampleRecord, SampleView, Selection, Together,
    TokenLayoutDescription,
};
use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use sae_types::{FeatureId, HookPoint};
use serde::Serialize;
use stage_kit::UsageError;

use super::{By, InspectArgs, On, Sort};

/// Features whose co-occurrence is counted, each with each.
const MOST_TOGETHER: usize = 2000;

#[derive(Serialize)]
pub(super) struct Report {
    pub(super) folder: String,
    pub(super) model: String,
    pub(super) dataset: DatasetSource,
    pub(super) token_layout: TokenLayoutDescription,
    pub(super) activation_dtype: ActivationDtype,
    pub(super) counts: Counts,
    pub(super) token_ids: bool,
    /// Hook points whose files are sound.
    pub(super) hooks: BTreeMap<HookPoint, HookReport>,
    /// Worst first.
    pub(super) findings: Vec<Finding>,
}

#[derive(Serialize)]
pub(super) struct HookReport {
    pub(super) sae: SaeSource,
    pub(super) width: usize,
    pub(super) k: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reads: Option<HookPoint>,
    pub(super) n_splits: usize,
    pub(super) tokens: u64,
    pub(super) image_tokens: u64,
    pub(super) activations: u64,
    /// Of the split files.
    pub(super) bytes: u64,
    pub(super) bytes_per_activation: Option<f64>,
    /// Features that were stored wherever they were active.
    pub(super) stored: usize,
    pub(super) lost: usize,
    pub(super) never_active: usize,
    /// Of the features that are active.
    pub(super) distribution: BTreeMap<&'static str, Quantiles>,
    /// How many the flags choose, listed or not.
    pub(super) n_chosen: usize,
    pub(super) features: Vec<FeatureReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) co_occurrence: Option<CoOccurrenceReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sample: Option<SampleReport>,
}

/// Nearest-rank quantiles.
#[derive(Serialize)]
pub(super) struct Quantiles {
    /// Features that have the figure.
    pub(super) n: usize,
    pub(super) min: f64,
    pub(super) p1: f64,
    pub(super) p25: f64,
    pub(super) median: f64,
    pub(super) p75: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

#[derive(Serialize)]
pub(super) struct FeatureReport {
    #[serde(flatten)]
    pub(super) statistics: FeatureStatistics,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) samples: Vec<TopSample>,
}

#[derive(Serialize)]
pub(super) struct TopSample {
    #[serde(flatten)]
    pub(super) ranked: RankedSample,
    pub(super) id: Option<String>,
}

#[derive(Serialize)]
pub(super) struct CoOccurrenceReport {
    pub(super) on: &'static str,
    pub(super) features: Vec<FeatureId>,
    /// `[features][features]`, each feature's own count on the diagonal.
    pub(super) counts: Vec<Vec<u64>>,
    /// Of the same shape.
    pub(super) jaccard: Vec<Vec<Option<f64>>>,
}

#[derive(Serialize)]
pub(super) struct SampleReport {
    pub(super) record: SampleRecord,
    /// Strongest first.
    pub(super) features: Vec<SampleFeature>,
    /// What is active on the token asked for, strongest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<Vec<(FeatureId, f32)>>,
}

#[derive(Serialize)]
pub(super) struct SampleFeature {
    pub(super) feature: FeatureId,
    pub(super) max: f32,
    /// Position and value, ascending by position.
    pub(super) activations: Vec<(u32, f32)>,
}

impl Report {
    pub(super) fn of(cache: &Cache, args: &InspectArgs, seed: u64, findings: Vec<Finding>) -> Result<Self> {
        let manifest = cache.manifest();
        let mut hooks = BTreeMap::new();
        let wanted = args.hook.as_ref();
        if let Some(hook) = wanted {
            ensure!(
                manifest.hooks.contains_key(hook),
                "{} does not hold hook point {hook}; it holds {}",
                args.dir.display(),
                cache.hooks().map(HookPoint::as_str).collect::<Vec<_>>().join(", ")
            );
        }
        for hook in cache.hooks().filter(|hook| wanted.is_none_or(|wanted| wanted == *hook)) {
            // What is wrong with it is among the findings.
            let Ok(layer) = cache.hook(hook) else { continue };
            let report = HookReport::of(&layer, args, seed).with_context(|| format!("inspecting {hook}"))?;
            hooks.insert(hook.clone(), report);
        }
        Ok(Self {
            folder: args.dir.display().to_string(),
            model: manifest.model.clone(),
            dataset: manifest.dataset.clone(),
            token_layout: manifest.token_layout.clone(),
            activation_dtype: manifest.activation_dtype,
            counts: manifest.counts,
            token_ids: manifest.tokens.is_some(),
            hooks,
            findings,
        })
    }

    /// The features that the flags choose, per hook point.
    pub(super) fn chosen(&self) -> BTreeMap<HookPoint, Vec<FeatureId>> {
        let features =
            |hook: &HookReport| hook.features.iter().map(|feature| feature.statistics.feature).collect();
        self.hooks.iter().map(|(name, hook)| (name.clone(), features(hook))).collect()
    }
}

impl HookReport {
    fn of(layer: &HookCache<'_>, args: &InspectArgs, seed: u64) -> Result<Self> {
        let entry = &layer.cache().manifest().hooks[layer.hook()];
        let statistics = layer.statistics();
        let active = || statistics.iter().filter(|facts| facts.n_activations > 0);
        let figures = [Sort::Density, Sort::Samples, Sort::Mean, Sort::Max, Sort::Spread, Sort::TextRatio];
        let quantiles =
            |sort: Sort| Some((sort.name(), Quantiles::of(active().filter_map(|f| sort.key(f)))?));
        let distribution = figures.into_iter().filter_map(quantiles).collect();

        let mut chosen = choose(layer, &statistics, args)?;
        let n_chosen = chosen.len();
        chosen.truncate(args.limit());
        let ids: Vec<FeatureId> = chosen.iter().map(|facts| facts.feature).collect();
        if args.co_occurrence.is_some() && ids.len() > MOST_TOGETHER {
            let n = ids.len();
            let problem = format!(
                "--co-occurrence of {n} features is a matrix of {n} x {n}: --features or --top choose at most {MOST_TOGETHER}"
            );
            return Err(UsageError::new(problem).into());
        }
        let co_occurrence =
            args.co_occurrence.map(|on| layer.co_occurrence(&ids, on.together()).map(|c| on.report(&c)));
        let sample = args.asked_sample().map(|sample| layer.sample(sample)).transpose()?;
        let features = chosen.into_par_iter().map(|statistics| feature(layer, statistics, args, seed));
        let activations = entry.splits.iter().map(|split| split.n).sum();
        let sizes = entry.splits.iter().map(|split| size(&args.dir.join(&split.file)));
        let bytes = sizes.sum::<Result<u64>>()?;
        Ok(Self {
            sae: entry.sae.clone(),
            width: entry.width,
            k: entry.k,
            reads: entry.reads.clone(),
            n_splits: entry.splits.len(),
            tokens: layer.n_tokens(),
            image_tokens: layer.n_image_tokens(),
            activations,
            bytes,
            bytes_per_activation: (activations > 0).then(|| bytes as f64 / activations as f64),
            stored: statistics.len(),
            lost: entry.lost.len(),
            never_active: statistics.len() - active().count(),
            distribution,
            n_chosen,
            features: features.collect::<Result<_>>()?,
            co_occurrence: co_occurrence.transpose()?,
            sample: sample.map(|view| SampleReport::of(&view, args)),
        })
    }
}

/// The features of `--features`, or else those that pass the bounds, sorted.
fn choose(
    layer: &HookCache<'_>,
    statistics: &[FeatureStatistics],
    args: &InspectArgs,
) -> Result<Vec<FeatureStatistics>> {
    if !args.features.is_empty() {
        let facts = |feature: FeatureId| {
            layer.feature(feature)?;
            let at = statistics.binary_search_by_key(&feature, |facts| facts.feature);
            Ok(statistics[at.unwrap_or_default()])
        };
        return args.numbers().map(facts).collect();
    }
    let passes = |facts: &&FeatureStatistics| {
        facts.n_activations > 0 && facts.n_samples >= args.min_samples && facts.density <= args.max_density
    };
    let mut chosen: Vec<FeatureStatistics> = statistics.iter().filter(passes).copied().collect();
    // Features without the figure come last either way; of equal ones the lower first.
    chosen.sort_by(|a, b| match (args.sort.key(a), args.sort.key(b)) {
        (Some(a), Some(b)) if args.ascending => a.total_cmp(&b),
        (Some(a), Some(b)) => b.total_cmp(&a),
        (a, b) => b.is_some().cmp(&a.is_some()),
    });
    Ok(chosen)
}

fn feature(
    layer: &HookCache<'_>,
    statistics: FeatureStatistics,
    args: &InspectArgs,
    seed: u64,
) -> Result<FeatureReport> {
    let n = args.samples_per_feature();
    let mut samples = Vec::new();
    if n > 0 {
        let (ranking, selection) = args.picking(layer.cache(), n, seed);
        let ranked = layer.feature(statistics.feature)?.pick(ranking, selection, Duplicates::Drop)?;
        let id =
            |ranked: &RankedSample| layer.cache().sample(ranked.sample).and_then(|record| record.id.clone());
        samples = ranked.into_iter().map(|ranked| TopSample { ranked, id: id(&ranked) }).collect();
    }
    Ok(FeatureReport { statistics, samples })
}

impl InspectArgs {
    /// What `--by` means in this cache.
    pub(super) fn picking(&self, cache: &Cache, n: usize, seed: u64) -> (Ranking, Selection) {
        let images = cache.manifest().token_layout.base.is_some();
        let ranking = match self.by {
            Some(By::BaseMean) => Ranking::BaseMean,
            Some(By::BaseMax) => Ranking::BaseMax,
            Some(By::Max) => Ranking::Max,
            _ if images => Ranking::BaseMean,
            _ => Ranking::Max,
        };
        let selection = match self.by {
            Some(By::Random) => Selection::Random { n, seed },
            Some(By::Quantiles) => Selection::Quantiles { parts: n, per_part: 1, seed },
            _ => Selection::Top(n),
        };
        (ranking, selection)
    }
}

impl Sort {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Density => "density",
            Self::Mean => "mean",
            Self::Max => "max",
            Self::Spread => "spread",
            Self::TextRatio => "text_ratio",
            Self::Samples => "samples",
            Self::Activations => "activations",
        }
    }

    fn key(self, facts: &FeatureStatistics) -> Option<f64> {
        Some(match self {
            Self::Density => facts.density,
            Self::Mean => facts.mean,
            Self::Max => f64::from(facts.max),
            Self::Spread => return facts.spread,
            Self::TextRatio => return facts.text_ratio,
            Self::Samples => facts.n_samples as f64,
            Self::Activations => facts.n_activations as f64,
        })
    }
}

impl On {
    fn together(self) -> Together {
        match self {
            Self::Token => Together::Token,
            Self::Sample => Together::Sample,
        }
    }

    fn report(self, counts: &CoOccurrence) -> CoOccurrenceReport {
        let features = counts.features().to_vec();
        let all = 0..features.len();
        let row = |i: usize| all.clone().map(|j| counts.count(i, j)).collect();
        let shares = |i: usize| all.clone().map(|j| counts.jaccard(i, j)).collect();
        CoOccurrenceReport {
            on: match self {
                Self::Token => "token",
                Self::Sample => "sample",
            },
            counts: all.clone().map(row).collect(),
            jaccard: all.clone().map(shares).collect(),
            features,
        }
    }
}

impl SampleReport {
    fn of(view: &SampleView<'_>, args: &InspectArgs) -> Self {
        let mut features: Vec<SampleFeature> = view
            .features()
            .map(|(feature, part)| SampleFeature {
                feature,
                max: part.iter().map(|activation| activation.value).fold(f32::NEG_INFINITY, f32::max),
                activations: part.iter().map(|activation| (activation.token.0, activation.value)).collect(),
            })
            .collect();
        features.sort_by(|a, b| b.max.total_cmp(&a.max).then(a.feature.cmp(&b.feature)));
        let on = |token| {
            view.token(token).iter().map(|activation| (activation.feature, activation.value)).collect()
        };
        Self { record: view.record().clone(), features, token: args.asked_token().map(on) }
    }
}

impl Quantiles {
    fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let at = |share: f64| values[(share * last as f64).round() as usize];
        Some(Self {
            n: values.len(),
            min: at(0.0),
            p1: at(0.01),
            p25: at(0.25),
            median: at(0.5),
            p75: at(0.75),
            p99: at(0.99),
            max: at(1.0),
        })
    }
}

fn size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len())
}
