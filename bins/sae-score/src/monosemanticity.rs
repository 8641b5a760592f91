//! `sae-score monosemanticity`: how alike the images are in which a feature is strong, without any explanation.

mod embeddings;

use std::io::Write;
use std::path::{Path, PathBuf};

use act_cache::{Duplicates, HookCache, Ranking, Selection as Picked};
use anyhow::{Context, Result};
use clap::ValueEnum;
use explain::FeatureKey;
use explain_kit::{
    FeatureArgs, RunArgs, Selection, SourceArgs, compare, hook_of, hooks_of, open_cache, require_base_tile,
    stored,
};
use mm_data::Field;
use model_kit::TorchArgs;
use rayon::prelude::*;
use scoring::report::{Card, Extremes, Report, Section};
use scoring::{Embeddings, FeatureEntry, FeatureOutcome, ScoreTable};
use serde::Serialize;
use stage_kit::{CommonArgs, RunManifest, UsageError, write_whole};
use vision_models::ImageEncoder;

use crate::chance::{Draw, random};
use crate::images::{Finder, ImageArgs};
use crate::{models, pictures};
use embeddings::Shards;

/// What is read of a model's folder.
const FILES: [&str; 4] = ["config.json", "preprocessor_config.json", "tokenizer*", "*.safetensors*"];

/// What is made of the embeddings.
const WRITTEN: [&str; 2] = ["monosemanticity.json", "monosemanticity.html"];

/// What a score is to be held against.
const BASELINES: [&str; 1] = ["activations shuffled"];

pub(crate) const EXAMPLE: &str = "\
Example, as Pach et al. with DINOv2:
  sae-score monosemanticity --cache cache --dataset DATASET --encoder facebook/dinov2-base --save-dir ms --device cuda

SAVE_DIR/monosemanticity.json holds a score per feature and their mean, monosemanticity.html shows them. The embeddings of the images
stay in SAVE_DIR: --resume goes on with them, and computes the scores of other features from them in no time.";

#[derive(Debug, clap::Args)]
pub(crate) struct MonosemanticityArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Folder to write
    #[arg(long)]
    save_dir: PathBuf,
    /// What judges which images are alike: CLIP, DINOv2 or the tower of a LLaVA-NeXT, a folder in Hugging Face layout or a Hub id. Another
    /// one than the model's own tower, whose view the features already have
    #[arg(long, default_value = "facebook/dinov2-base")]
    encoder: String,
    /// How strong a feature is in an image
    #[arg(long, value_enum, default_value_t = Pool::Mean)]
    pool: Pool,
    /// Features with pictures in the report, half of them the best and half the worst
    #[arg(long, default_value_t = 24)]
    shown: usize,
    #[command(flatten)]
    images: ImageArgs,
    #[command(flatten)]
    features: FeatureArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// How the activations on the base tile become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Pool {
    /// Their mean, zeros counted
    Mean,
    /// The largest
    Max,
}

/// `monosemanticity.json`.
#[derive(Debug, Serialize)]
struct Summary {
    table: ScoreTable,
    /// What the images are alike to.
    encoder: String,
    /// How the activations in an image become one number.
    pool: Pool,
    /// How many were embedded, no image twice.
    images: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    features: Vec<FeatureSummary>,
}

#[derive(Clone, Debug, Serialize)]
struct FeatureSummary {
    feature: String,
    /// `null` of a feature that is on in fewer than two images.
    score: Option<f64>,
    /// With its activations on other images.
    shuffled: Option<f64>,
    /// In how many images it is on, no image counted twice.
    images: usize,
}

pub(crate) fn run(args: &MonosemanticityArgs, torch: TorchArgs, common: &CommonArgs) -> Result<()> {
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(common.seed);
    let world = common.world()?;
    manifest.world(world);
    let cache = open_cache(&args.source.cache)?;
    require_base_tile(cache, &args.source.cache)?;
    let whole = stage_kit::World { rank: 0, size: 1 };
    let selection = args.features.wanted()?.among(stored(cache)?.into_iter(), whole)?;
    let fields = [Field::Images];
    let finder = args.images.open(&args.source, cache, &selection, &fields, common.seed, &mut manifest)?;
    let model = models::find("--encoder", &args.encoder, &FILES, torch, &mut manifest)?;
    // What the embeddings do not depend on may differ from run to run: scores are computed anew each time.
    for flag in ["--max-examples", "--random-images", "--image-side or --square", "--seed"] {
        manifest.settings.remove(flag);
    }
    let encoder = ImageEncoder::open(&model, torch.device.open()?, torch.dtype.kind())
        .context("opening the image encoder")?;
    open_folder(args, world, &mut manifest)?;
    let shards = Shards::new(&args.save_dir, world, finder.distinct().samples(), encoder.width());
    shards.embed(&encoder, finder.originals())?;
    let Some(values) = shards.read()? else {
        tracing::info!("other workers are still embedding: the last one computes the scores");
        return Ok(());
    };
    let embeddings = Embeddings::new(&values, encoder.width())?;
    let hooks = hooks_of(cache, &selection)?;
    let scorer = Scorer { args, hooks, finder: &finder, seed: common.seed };
    let summary = scorer.score(&embeddings, selection)?;
    manifest.count("features", summary.table.total.features as u64);
    manifest.count("images", summary.images as u64);
    manifest.write(&run_json(&args.save_dir))?;
    writeln!(stage_kit::stdout(), "{}", serde_json::to_string(&summary)?)?;
    Ok(())
}

fn run_json(folder: &Path) -> PathBuf {
    folder.join("monosemanticity.run.json")
}

/// Makes the folder ready, or checks that the run goes on with what is in it.
fn open_folder(
    args: &MonosemanticityArgs,
    world: stage_kit::World,
    manifest: &mut RunManifest,
) -> Result<()> {
    let folder = &args.save_dir;
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let begun = run_json(folder).exists();
    if args.run.overwrite {
        if world.size > 1 {
            let problem =
                "several workers cannot agree on --overwrite: remove the folder, and start them without";
            return Err(UsageError::new(problem).into());
        }
        embeddings::clear(folder)?;
        for name in WRITTEN {
            match std::fs::remove_file(folder.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("cannot remove {name} of {}", folder.display()));
                }
                _ => {}
            }
        }
        manifest.write(&run_json(folder))?;
        return Ok(());
    }
    if begun && !args.run.resume && world.size == 1 {
        let problem = format!(
            "{} holds embeddings of an earlier run: go on with --resume, or start anew with --overwrite",
            folder.display()
        );
        return Err(UsageError::new(problem).into());
    }
    if begun || !manifest.write_new(&run_json(folder))? {
        compare(&run_json(folder), &manifest.settings)?;
    }
    Ok(())
}

struct Scorer<'a> {
    args: &'a MonosemanticityArgs,
    hooks: std::collections::BTreeMap<sae_types::HookPoint, HookCache<'static>>,
    finder: &'a Finder,
    seed: u64,
}

impl Scorer<'_> {
    fn score(&self, embeddings: &Embeddings<'_>, selection: Selection) -> Result<Summary> {
        let keys: Vec<FeatureKey> = selection.keys().collect();
        let n_images = embeddings.len();
        let feature = |key: &FeatureKey| -> Result<FeatureSummary> {
            let on = self.on(key)?;
            let mut random = random(self.seed, key, Draw::Shuffled);
            let others = random.choose(on.len(), n_images).into_iter().zip(&on);
            let shuffled: Vec<(u32, f32)> =
                others.map(|(image, &(_, value))| (image as u32, value)).collect();
            Ok(FeatureSummary {
                feature: key.to_string(),
                score: embeddings.monosemanticity(&on)?,
                shuffled: embeddings.monosemanticity(&shuffled)?,
                images: on.len(),
            })
        };
        let features = keys.par_iter().map(feature).collect::<Result<Vec<_>>>()?;
        let entry = |feature: &FeatureSummary| FeatureEntry {
            concept: None,
            outcome: FeatureOutcome::from(feature.score),
            baselines: vec![feature.shuffled],
        };
        let entries: Vec<FeatureEntry> = features.iter().map(entry).collect();
        let table = ScoreTable::of(BASELINES.map(str::to_owned).to_vec(), &entries);
        let (encoder, pool) = (self.args.encoder.clone(), self.args.pool);
        let summary = Summary { table, encoder, pool, images: n_images, features };
        let folder = &self.args.save_dir;
        let text = serde_json::to_string_pretty(&summary)? + "\n";
        let [json, html] = WRITTEN.map(|name| folder.join(name));
        write_whole(&json, text.as_bytes())?;
        write_whole(&html, self.page(&summary, &keys).html().as_bytes())?;
        Ok(Summary { features: Vec::new(), ..summary })
    }

    /// The images in which a feature is on, by their places among the embeddings, no image twice, with how strong it is.
    fn on(&self, key: &FeatureKey) -> Result<Vec<(u32, f32)>> {
        let ranking = match self.args.pool {
            Pool::Mean => Ranking::BaseMean,
            Pool::Max => Ranking::BaseMax,
        };
        let feature = hook_of(&self.hooks, &key.hook)?.feature(key.feature)?;
        let distinct = self.finder.distinct();
        let ranked = feature.pick(ranking, Picked::Top(usize::MAX), Duplicates::Drop)?;
        let placed = |ranked: act_cache::RankedSample| {
            let place = distinct.place(ranked.sample);
            let place = place.with_context(|| format!("sample {} shows no image", ranked.sample))?;
            Ok((place as u32, ranked.score as f32))
        };
        ranked.into_iter().map(placed).collect()
    }

    fn page(&self, summary: &Summary, keys: &[FeatureKey]) -> Report {
        let scores: Vec<Option<f64>> = summary.features.iter().map(|feature| feature.score).collect();
        let Extremes { best, worst } = Extremes::of(&scores, self.args.shown / 2);
        let cards = |places: Vec<usize>| -> Vec<Card> {
            let card = |at: usize| {
                let feature = &summary.features[at];
                let shuffled = feature.shuffled.map(|score| (BASELINES[0].to_owned(), format!("{score:.3}")));
                let mut facts = vec![("images".to_owned(), feature.images.to_string())];
                facts.extend(shuffled);
                Card {
                    feature: feature.feature.clone(),
                    explanation: String::new(),
                    score: feature.score.unwrap_or_default(),
                    facts,
                    pictures: pictures::of(self.finder, &keys[at]),
                }
            };
            places.into_iter().map(card).collect()
        };
        let of = |read: fn(&FeatureSummary) -> Option<f64>| -> Vec<f64> {
            summary.features.iter().filter_map(read).collect()
        };
        Report {
            title: "Monosemanticity".to_owned(),
            introduction: vec![format!(
                "{} features over {} images, as {} sees them. The mean cosine of two images, weighted by how strong the feature is in both \
                 (Pach et al., arXiv 2504.02821).",
                summary.features.len(),
                summary.images,
                self.args.encoder
            )],
            sections: vec![Section {
                heading: "Monosemanticity score".to_owned(),
                note: "1 where all images in which a feature is strong look alike to the encoder. What a feature scores whose activations \
                       lie on other images is the floor, which differs from encoder to encoder: only the distance to it says something. A \
                       feature that is on in few images can be high by chance."
                    .to_owned(),
                decimals: 3,
                range: [0.0, 1.0],
                table: summary.table.clone(),
                distributions: vec![
                    ("features".to_owned(), of(|feature| feature.score)),
                    (BASELINES[0].to_owned(), of(|feature| feature.shuffled)),
                ],
                best: cards(best),
                worst: cards(worst),
            }],
        }
    }
}
