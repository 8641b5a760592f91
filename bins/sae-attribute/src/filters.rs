//! `sae-attribute filters`: the top features of a run, as a filters file and as heat maps.

use std::collections::BTreeMap;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use activation_view::Page;
use anyhow::{Context, Result, ensure};
use attribution::{Effects, Pool, Tokens};
use image::RgbImage;
use sae_types::{FeatureId, Filters, HookPoint};
use stage_kit::{CommonArgs, Existing, OutputFolder, RunManifest, hash_file};

use crate::store::{About, AboutQuestion, read};
use crate::views;

/// How the effects of a feature on several tokens become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum PoolChoice {
    /// The mean over the tokens
    #[default]
    Avg,
    /// The largest
    Max,
}

#[derive(Debug, clap::Args)]
pub(crate) struct FiltersArgs {
    /// Folder that `sae-attribute run` wrote
    effects: PathBuf,
    /// Features to take over image tokens, and as many over text tokens
    #[arg(long, short = 'k', default_value_t = NonZeroUsize::new(50).expect("50 is not 0"))]
    top_k: NonZeroUsize,
    /// How the effects of a feature on several tokens become one number
    #[arg(long, value_enum, default_value_t = PoolChoice::Avg)]
    pool: PoolChoice,
    /// Put only the features of image tokens into the filters file
    #[arg(long)]
    image_only: bool,
    /// Folder to write: filters.json, index.html and images/
    #[arg(long)]
    save_dir: PathBuf,
    /// Replace the folder if it is there
    #[arg(long)]
    overwrite: bool,
}

/// The two kinds of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Image,
    Text,
}

/// The top features of one hook point over one kind of tokens, with the mean over the questions of what they add.
type Top = Vec<(FeatureId, f64)>;

pub(crate) fn run(args: &FiltersArgs, common: &CommonArgs) -> Result<()> {
    ensure!(common.world()?.size == 1, "sae-attribute filters runs as one process");
    let (about, effects) = read(&args.effects)?;
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    let source = args.effects.join("effects.safetensors");
    manifest.input("effects", &args.effects.display(), hash_file(&source)?);
    let output = OutputFolder::create(&args.save_dir, Existing::from_overwrite(args.overwrite))?;

    let mut lists: BTreeMap<HookPoint, Vec<FeatureId>> = BTreeMap::new();
    let mut page = Page::new(format!("Top features of {}", args.effects.display()));
    let pictures = about.questions.iter().map(views::pictures).collect::<Result<Vec<_>>>()?;
    let folder = output.path().join("images");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut stdout = stage_kit::stdout();
    for (number, hook) in about.hooks.keys().enumerate() {
        let of_hook: Vec<&Effects> = effects.iter().map(|effects| &effects[number]).collect();
        for side in [Side::Image, Side::Text] {
            let top = args.top(&about, &of_hook, side);
            let name = if side == Side::Image { "image" } else { "text" };
            let listed: Vec<String> =
                top.iter().map(|(feature, value)| format!("{feature} ({value:+.4})")).collect();
            writeln!(stdout, "{hook}, {name} tokens: {}", listed.join(", "))?;
            if side == Side::Image || !args.image_only {
                lists.entry(hook.clone()).or_default().extend(top.iter().map(|&(feature, _)| feature));
            }
            for (rank, &(feature, value)) in top.iter().enumerate() {
                page.section(
                    &format!("{hook} feature {feature}"),
                    &format!("number {} over {name} tokens, {value:+.5} on a token", rank + 1),
                );
                for (q, (question, pictures)) in about.questions.iter().zip(&pictures).enumerate() {
                    let row = of_hook[q].row(feature);
                    page.tokens(&views::tokens(question, &row));
                    if side == Side::Text || pictures.is_empty() {
                        continue;
                    }
                    let overlays = views::overlays(question, pictures, &row);
                    save(&folder, hook, feature, q, &overlays)?;
                    let captioned = |(i, overlay)| (overlay, caption(question, q, i));
                    page.pictures(&overlays.into_iter().enumerate().map(captioned).collect::<Vec<_>>())?;
                }
            }
        }
    }
    let filters = Filters::from(lists);
    let write = |name: &str, text: String| {
        let path = output.path().join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let features: usize = filters.hooks().filter_map(|hook| filters.features(hook)).map(<[_]>::len).sum();
    write("filters.json", format!("{}\n", serde_json::to_string(&filters)?))?;
    write("index.html", page.html())?;
    manifest.count("features", features as u64);
    Ok(output.commit(manifest)?)
}

impl FiltersArgs {
    /// The best features over one kind of tokens by the mean over all questions, a feature that is off in one counting 0 there.
    fn top(&self, about: &About, effects: &[&Effects], side: Side) -> Top {
        let pool = match self.pool {
            PoolChoice::Avg => Pool::Mean,
            PoolChoice::Max => Pool::Max,
        };
        let mut sums: BTreeMap<FeatureId, f64> = BTreeMap::new();
        for (question, effects) in about.questions.iter().zip(effects) {
            let layout = question.layout();
            let tokens = if side == Side::Image { Tokens::images(&layout) } else { Tokens::text(&layout) };
            for (feature, value) in effects.pooled(&tokens, pool) {
                *sums.entry(feature).or_default() += value / about.questions.len() as f64;
            }
        }
        let mut top: Top = sums.into_iter().collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        top.truncate(self.top_k.get());
        top
    }
}

fn caption(question: &AboutQuestion, number: usize, image: usize) -> String {
    let name = question.images[image].path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let texts = |tokens: &[crate::data::NamedToken]| {
        tokens.iter().map(|token| token.text.as_str()).collect::<Vec<_>>().join(" or ")
    };
    let baselines = texts(&question.baselines);
    let over = if baselines.is_empty() { String::new() } else { format!(" over {baselines}") };
    format!("question {number}, {name}: {}{over}", texts(&question.answers))
}

fn save(
    folder: &std::path::Path,
    hook: &HookPoint,
    feature: FeatureId,
    question: usize,
    overlays: &[RgbImage],
) -> Result<()> {
    for (image, overlay) in overlays.iter().enumerate() {
        let name = format!("{}_feature{feature}_question{question}_image{image}.png", hook.file_stem());
        let path = folder.join(name);
        overlay.save(&path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
