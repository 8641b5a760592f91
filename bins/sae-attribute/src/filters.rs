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
    /// Features to take over image tokens, and as many over text tokens; fewer where fewer support the answer
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

/// Questions shown of a feature.
const SHOWN: usize = 5;

/// Where heat maps lie below the folder.
const IMAGES: &str = "images";

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
    let folder = output.path().join(IMAGES);
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
                let most = args.most(&about, &of_hook, side, feature);
                let shown = match about.questions.len() {
                    all if all == most.len() => String::new(),
                    all => format!("; shown are the {} of {all} questions where it is strongest", most.len()),
                };
                page.section(
                    &format!("{hook} feature {feature}"),
                    &format!("number {} over {name} tokens, {value:+.5} on a token{shown}", rank + 1),
                );
                for q in most {
                    let (question, pictures) = (&about.questions[q], &pictures[q]);
                    let row = of_hook[q].row(feature);
                    page.tokens(&views::tokens(question, &row));
                    if side == Side::Text || pictures.is_empty() {
                        continue;
                    }
                    let overlays = views::overlays(question, pictures, &row);
                    let names = save(&folder, hook, feature, q, &overlays)?;
                    let linked =
                        |(i, name): (usize, String)| (format!("{IMAGES}/{name}"), caption(question, q, i));
                    page.linked(&names.into_iter().enumerate().map(linked).collect::<Vec<_>>());
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
    /// The features that support the answer most over one kind of tokens, by the mean over all questions; a feature that is off in
    /// one counts 0 there. Those that oppose it on the whole are left out.
    fn top(&self, about: &About, effects: &[&Effects], side: Side) -> Top {
        let mut sums: BTreeMap<FeatureId, f64> = BTreeMap::new();
        for (question, effects) in about.questions.iter().zip(effects) {
            for (feature, value) in effects.pooled(&tokens(question, side), self.pool()) {
                *sums.entry(feature).or_default() += value / about.questions.len() as f64;
            }
        }
        let mut top: Top = sums.into_iter().filter(|&(_, value)| value > 0.0).collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        top.truncate(self.top_k.get());
        top
    }

    /// The few questions whose answers a feature supports most, best first.
    fn most(&self, about: &About, effects: &[&Effects], side: Side, feature: FeatureId) -> Vec<usize> {
        let value = |(number, (question, effects)): (usize, (&AboutQuestion, &&Effects))| {
            let value = effects.pooled_of(feature, &tokens(question, side), self.pool())?;
            (value > 0.0).then_some((number, value))
        };
        let mut most: Vec<(usize, f64)> =
            about.questions.iter().zip(effects).enumerate().filter_map(value).collect();
        most.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        most.truncate(SHOWN);
        most.into_iter().map(|(number, _)| number).collect()
    }

    fn pool(&self) -> Pool {
        match self.pool {
            PoolChoice::Avg => Pool::Mean,
            PoolChoice::Max => Pool::Max,
        }
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

/// The tokens of one kind.
fn tokens(question: &AboutQuestion, side: Side) -> Tokens {
    let layout = question.layout();
    if side == Side::Image { Tokens::images(&layout) } else { Tokens::text(&layout) }
}

/// Writes the overlays of a question; gives the names of the files.
fn save(
    folder: &std::path::Path,
    hook: &HookPoint,
    feature: FeatureId,
    question: usize,
    overlays: &[RgbImage],
) -> Result<Vec<String>> {
    let write = |(image, overlay): (usize, &RgbImage)| {
        let name = format!("{}_feature{feature}_question{question}_image{image}.png", hook.file_stem());
        let path = folder.join(&name);
        overlay.save(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(name)
    };
    overlays.iter().enumerate().map(write).collect()
}

#[cfg(test)]
mod tests {
    use attribution::Effect;
    use clap::Parser;
    use sae_types::TokenIndex;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        filters: FiltersArgs,
    }

    /// Questions of three tokens of text, with the effects of features on their tokens.
    fn of(questions: &[&[(u32, u32, f32)]]) -> (About, Vec<Effects>) {
        let hook = HookPoint::layer(2);
        let mut about = About::new("one-pass", None, "model", "sae");
        about.hooks.insert(hook.clone(), 9);
        let effects = questions.iter().map(|entries| {
            about.questions.push(AboutQuestion {
                prompt: String::new(),
                answers: Vec::new(),
                baselines: Vec::new(),
                score: 1.0,
                tokens: vec!["t".to_owned(); 3],
                images: Vec::new(),
            });
            let entry = |&(feature, token, value): &(u32, u32, f32)| Effect {
                feature: FeatureId(feature),
                token: TokenIndex(token),
                value,
            };
            Effects::new(hook.clone(), 9, 3, entries.iter().map(entry).collect(), [Vec::new(), Vec::new()])
        });
        let effects = effects.collect();
        (about, effects)
    }

    #[test]
    fn what_opposes_the_answer_is_no_filter() {
        let (about, effects) = of(&[
            &[(1, 0, -3.0), (2, 0, 3.0), (3, 1, 1.0), (4, 0, -1.0)],
            &[(2, 2, -1.5), (3, 1, -4.0), (4, 1, 1.75)],
        ]);
        let effects: Vec<&Effects> = effects.iter().collect();
        let top = |flags: &str| {
            let flags = ["x", "effects", "--save-dir", "out"].into_iter().chain(flags.split_whitespace());
            let top = Flags::parse_from(flags).filters.top(&about, &effects, Side::Text);
            top.into_iter()
                .map(|(feature, value)| (feature.0, (value * 1e6).round() / 1e6))
                .collect::<Vec<_>>()
        };
        // Over both questions, of three tokens each: 2 has (3 - 1.5) / 6, 4 has (-1 + 1.75) / 6; 1 and 3 are below 0.
        assert_eq!(top(""), [(2, 0.25), (4, 0.125)]);
        assert_eq!(top("--pool max"), [(2, 1.5), (4, 0.875), (3, 0.5)]);
        assert_eq!(top("-k 1"), [(2, 0.25)]);
    }

    #[test]
    fn few_questions_are_shown_the_strongest_first() {
        let values: Vec<[(u32, u32, f32); 1]> = (0..8).map(|q| [(1, 0, q as f32 - 1.0)]).collect();
        let (about, effects) = of(&values.iter().map(<[_; 1]>::as_slice).collect::<Vec<_>>());
        let effects: Vec<&Effects> = effects.iter().collect();
        let args = Flags::parse_from(["x", "effects", "--save-dir", "out"]).filters;
        assert_eq!(args.most(&about, &effects, Side::Text, FeatureId(1)), [7, 6, 5, 4, 3]);
        assert_eq!(args.most(&about, &effects, Side::Text, FeatureId(2)), [0; 0]);
        let (about, effects) = of(&[&[(1, 0, -1.0)], &[(1, 2, 0.5)]]);
        assert_eq!(args.most(&about, &effects.iter().collect::<Vec<_>>(), Side::Text, FeatureId(1)), [1]);
    }
}
