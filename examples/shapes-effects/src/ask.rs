//! `shapes-effects ask`: scenes to ask about, the feature that should change the answer, and features that should not.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use act_cache::Cache;
use anyhow::{Context, Result, bail, ensure};
use mm_data::{Dataset, Field, OpenOptions, Role, Sample, hub};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use sae_types::{FeatureId, HookPoint};
use serde::{Deserialize, Serialize};

#[derive(Debug, clap::Args)]
pub(crate) struct AskArgs {
    /// Data set of scenes with questions
    #[arg(long)]
    dataset: String,
    /// Folder that sae-cache wrote about them: the random features are among those that fire
    #[arg(long)]
    cache: PathBuf,
    /// What feature-page --report wrote
    #[arg(long)]
    report: PathBuf,
    /// What to ask; scenes that do not answer it are passed over
    #[arg(long, default_value = "what colour is the circle ?")]
    question: String,
    /// The answer that steering is to bring about; scenes that show it anywhere are passed over
    #[arg(long, default_value = "red")]
    concept: String,
    /// Random features to compare with
    #[arg(long, default_value_t = 10)]
    random: usize,
    /// Questions of the second, short file
    #[arg(long, default_value_t = 5)]
    few: usize,
    /// Folder to make
    #[arg(long)]
    out: PathBuf,
}

/// A scene and what it is asked, as multimodal-sae's attribution reads it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Question {
    /// Number of the sample in the data set.
    pub(crate) sample: u32,
    pub(crate) prompt: String,
    /// File beside the questions'.
    pub(crate) image: String,
    pub(crate) answer: String,
    pub(crate) baseline: String,
}

/// The features that are clamped.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Features {
    pub(crate) hook: HookPoint,
    /// The one that was explained as the concept.
    pub(crate) named: FeatureId,
    /// Others that fire, drawn at random.
    pub(crate) random: Vec<FeatureId>,
}

#[derive(Deserialize)]
struct Report {
    features: Vec<Specific>,
}

/// A specific feature of the report.
#[derive(Deserialize)]
struct Specific {
    feature: FeatureId,
    concept: String,
    /// Its largest activation anywhere.
    peak: f32,
    explanation: Option<String>,
}

pub(crate) const QUESTIONS: &str = "questions.json";
pub(crate) const FEATURES: &str = "features.json";
const FILTERS: &str = "filters.json";
/// The first few questions again, for what takes long.
const FEW: &str = "few.json";

pub(crate) fn run(args: &AskArgs, seed: u64) -> Result<()> {
    let text =
        fs::read_to_string(&args.report).with_context(|| format!("cannot read {}", args.report.display()))?;
    let report: Report =
        serde_json::from_str(&text).with_context(|| format!("{} is no report", args.report.display()))?;
    let features = features(args, &report, seed)?;

    let fields = vec![Field::Images, Field::Conversations, Field::Masks];
    let dataset = hub::open_dataset(&args.dataset, &OpenOptions { fields, ..OpenOptions::default() })?;
    let images = args.out.join("images");
    fs::create_dir_all(&images).with_context(|| format!("cannot make {}", images.display()))?;
    let questions = questions(args, &dataset)?;
    ensure!(!questions.is_empty(), "no scene of {} answers {:?}", args.dataset, args.question);

    let filters = BTreeMap::from([(&features.hook, {
        let mut all = features.random.clone();
        all.push(features.named);
        all.sort_unstable();
        all
    })]);
    for (name, text) in [
        (QUESTIONS, serde_json::to_string_pretty(&questions)?),
        (FEW, serde_json::to_string_pretty(&questions[..args.few.min(questions.len())])?),
        (FEATURES, serde_json::to_string_pretty(&features)?),
        (FILTERS, serde_json::to_string(&filters)?),
    ] {
        let path = args.out.join(name);
        fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    tracing::info!(questions = questions.len(), feature = %features.named, "wrote {}", args.out.display());
    Ok(())
}

/// The feature that gets strongest of those whose explanation is the concept and right, and others.
fn features(args: &AskArgs, report: &Report, seed: u64) -> Result<Features> {
    let named = report
        .features
        .iter()
        .filter(|feature| {
            feature.concept == args.concept && feature.explanation.as_ref() == Some(&args.concept)
        })
        .max_by(|a, b| a.peak.total_cmp(&b.peak))
        .with_context(|| format!("no feature is about {0:?} and explained as {0:?}", args.concept))?
        .feature;
    let about = |feature: FeatureId| {
        let own = report.features.iter().find(|specific| specific.feature == feature);
        own.is_some_and(|own| own.concept.split(' ').any(|word| word == args.concept))
    };
    let cache = Cache::open(&args.cache)?;
    let hooks: Vec<&HookPoint> = cache.hooks().collect();
    let &[hook] = &hooks[..] else {
        bail!("the cache must be of one hook point, whose features the report is about; it is of {hooks:?}");
    };
    let hook = hook.clone();
    let mut others: Vec<FeatureId> = cache
        .hook(&hook)?
        .statistics()
        .iter()
        .map(|statistics| statistics.feature)
        .filter(|&f| !about(f))
        .collect();
    others.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    others.truncate(args.random);
    Ok(Features { hook, named, random: others })
}

/// The scenes that answer the question with something else than the concept, which they do not show; their pictures are written.
fn questions(args: &AskArgs, dataset: &Dataset) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for number in 0..dataset.len() {
        let sample = dataset.get(number)?;
        let shows = sample.masks.iter().any(|mask| mask.labels.contains(&args.concept));
        let Some(answer) = answer(&sample, &args.question).filter(|_| !shows) else { continue };
        let picture = sample.images.first().with_context(|| format!("sample {number} has no image"))?;
        let image = format!("images/{number}.png");
        fs::write(args.out.join(&image), &picture.bytes).with_context(|| format!("cannot write {image}"))?;
        questions.push(Question {
            sample: number as u32,
            prompt: args.question.clone(),
            image,
            answer: answer.to_owned(),
            baseline: args.concept.clone(),
        });
    }
    Ok(questions)
}

/// What the conversation answers to the question.
fn answer<'a>(sample: &'a Sample, question: &str) -> Option<&'a str> {
    let asked = |text: &str| text.strip_prefix("<image>\n").unwrap_or(text) == question;
    let mut turns = sample.conversations.windows(2);
    turns.find(|pair| pair[0].role == Role::User && asked(&pair[0].text)).map(|pair| pair[1].text.as_str())
}
