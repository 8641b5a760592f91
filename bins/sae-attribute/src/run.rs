//! `sae-attribute run`: the effects of every question, written to a folder.

use std::collections::BTreeMap;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use attribution::{Ablation, Asked, Effects, Pool, Tokens, integrated, integrated_each, msae, one_pass};
use lmm_prep::Processor;
use model_kit::TorchArgs;
use sae_types::{FeatureId, HookPoint};
use stage_kit::{CommonArgs, Existing, OutputFolder, Progress, RunManifest, UsageError};

use crate::asking::{AskingArgs, Session, Shortlist, ShortlistArgs};
use crate::data::{Prepared, Reading};
use crate::store::{About, AboutImage, AboutQuestion, Found, write, write_dense};

pub(crate) const EXAMPLE: &str = "Example:
  sae-attribute run llava-hf/llama3-llava-next-8b-hf --sae lmms-lab/llama3-llava-next-8b-hf-sae-131k \\
    --data questions.json --load-in-8bit --device cuda --dtype bf16 --save-dir effects
  with questions.json: [{\"prompt\": \"...<image>...\", \"answer\": \"yes\", \"baseline\": \"no\", \"image\": \"map.png\"}]";

/// How effects are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Method {
    /// All features from one pass forward and one backward
    #[default]
    OnePass,
    /// Integrated gradients: --steps passes for each feature, or for all that go together (--path)
    Ig,
    /// Features switched off one at a time, a pass for each
    Exact,
    /// multimodal-sae's: masked before TopK, the error dropped, two passes per feature
    Msae,
}

/// Whose behaviour is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Compat {
    /// multimodal-sae's, as --method msae
    Msae,
}

/// The way that integrated gradients go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Way {
    /// Each feature goes alone, the others stay: adds up to what switching it off does
    #[default]
    Each,
    /// All features of a hook point go together: adds up to what switching all of them off does
    Together,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    asking: AskingArgs,
    /// How effects are found
    #[arg(long, value_enum, default_value_t = Method::OnePass)]
    method: Method,
    /// Behave as another tool does
    #[arg(long, value_enum, conflicts_with = "method")]
    compat: Option<Compat>,
    /// Points of the integrated gradients
    #[arg(long, default_value_t = NonZeroUsize::new(10).expect("10 is not 0"))]
    steps: NonZeroUsize,
    /// The way that integrated gradients go
    #[arg(long, value_enum, default_value_t = Way::Each)]
    path: Way,
    #[command(flatten)]
    shortlist: ShortlistArgs,
    /// With --method exact or ig and no features named: the strongest so many, by one pass
    #[arg(long, default_value_t = NonZeroUsize::new(100).expect("100 is not 0"))]
    top: NonZeroUsize,
    /// With --method exact: switch each feature off on one token at a time, a pass for each of its tokens
    #[arg(long)]
    per_token: bool,
    /// Also write multimodal-sae's tensor, [num_latents, tokens] f32, a file per hook point
    #[arg(long)]
    dense: bool,
    /// Folder to write
    #[arg(long)]
    save_dir: PathBuf,
    /// Replace the folder if it is there
    #[arg(long)]
    overwrite: bool,
}

impl RunArgs {
    fn is_together(&self) -> bool {
        self.method() == Method::Ig && self.path == Way::Together
    }

    fn method(&self) -> Method {
        if self.compat.is_some() { Method::Msae } else { self.method }
    }

    fn check(&self, shortlist: &Shortlist) -> Result<(), UsageError> {
        let method = self.method();
        let named = !matches!(shortlist, Shortlist::None);
        if named && (method == Method::OnePass || self.is_together()) {
            return Err(UsageError::new(
                "this method gives all features at once: --features and --filters are for ig --path each, exact and msae",
            ));
        }
        if self.per_token && method != Method::Exact {
            return Err(UsageError::new("--per-token is for --method exact; the other methods always are"));
        }
        if self.dense && method == Method::Exact && !self.per_token {
            return Err(UsageError::new("--dense needs effects by token: add --per-token"));
        }
        if self.asking.chat && method == Method::Msae {
            return Err(UsageError::new("msae takes prompts as they stand: leave out --chat"));
        }
        Ok(())
    }

    fn reading(&self) -> Reading {
        match self.method() {
            Method::Msae => Reading::WithoutBos,
            _ if self.asking.chat => Reading::Chat,
            _ => Reading::Plain,
        }
    }
}

pub(crate) fn run(args: &RunArgs, torch: TorchArgs, common: &CommonArgs) -> Result<()> {
    let shortlist = args.shortlist.read()?;
    args.check(&shortlist)?;
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    let output = OutputFolder::create(&args.save_dir, Existing::from_overwrite(args.overwrite))?;
    let session = args.asking.open(args.reading(), shortlist.filters(), torch, common, &mut manifest)?;
    let (method, steps) = match args.method() {
        Method::OnePass => ("one-pass", None),
        Method::Ig if args.is_together() => ("ig-together", Some(args.steps.get())),
        Method::Ig => ("ig", Some(args.steps.get())),
        Method::Exact => ("exact", None),
        Method::Msae => ("msae", None),
    };
    let mut about = About::new(method, steps, &args.asking.model, &args.asking.sae);
    about.hooks =
        session.places.iter().map(|place| (place.point().clone(), place.sae().num_latents())).collect();
    let progress = Progress::new("attributing", "questions", Some(session.questions.len() as u64));
    let mut all = Vec::with_capacity(session.questions.len());
    for (question, prepared) in session.questions.iter().enumerate() {
        let started = Instant::now();
        let (score, found) = args.effects(&session, prepared, &shortlist)?;
        tracing::info!(
            question,
            tokens = prepared.question.inputs.input_ids.len(),
            seconds = started.elapsed().as_secs_f64(),
            "attributed"
        );
        about.questions.push(describe(&session.model.processor, prepared, score)?);
        all.push(found);
        progress.inc(1);
    }
    progress.finish();
    write(output.path(), &about, &all)?;
    if args.dense {
        // msae's score is the mean over its batch of questions.
        let share = if args.method() == Method::Msae { 1.0 / all.len() as f32 } else { 1.0 };
        write_dense(output.path(), &args.asking.model, &about.hooks, &all, share)?;
    }
    let effects = all.iter().flat_map(BTreeMap::values).map(|found| match found {
        Found::Tokens(effects) => effects.entries().len(),
        Found::Whole { features, .. } => features.len(),
    });
    manifest.count("questions", all.len() as u64);
    manifest.count("effects", effects.sum::<usize>() as u64);
    output.commit(manifest)?;
    report(&about, &all)
}

impl RunArgs {
    /// The score of a question and its effects at each hook point.
    fn effects(
        &self,
        session: &Session,
        prepared: &Prepared,
        shortlist: &Shortlist,
    ) -> Result<(f64, BTreeMap<HookPoint, Found>)> {
        let asked = Asked::new(&session.model.network, &prepared.question, &session.places)?;
        let points: Vec<HookPoint> = session.places.iter().map(|place| place.point().clone()).collect();
        let by_token = |effects: Vec<Effects>| {
            points.iter().cloned().zip(effects.into_iter().map(Found::Tokens)).collect()
        };
        match self.method() {
            Method::OnePass => Ok((asked.score()?, by_token(one_pass(&asked)?))),
            Method::Ig if self.is_together() => {
                Ok((asked.score()?, by_token(integrated(&asked, self.steps)?)))
            }
            Method::Ig => {
                let fast = one_pass(&asked)?;
                let each = |site: usize| {
                    let features = self.chosen(shortlist, &points[site], &fast[site]);
                    integrated_each(&asked, site, &features, self.steps, self.asking.rows)
                };
                let effects = (0..points.len()).map(each).collect::<Result<_, _>>()?;
                Ok((asked.score()?, by_token(effects)))
            }
            Method::Msae => {
                let of = |site| msae(&asked, site, shortlist.of(&points[site]), self.asking.rows);
                let effects = (0..points.len()).map(of).collect::<Result<_, _>>()?;
                Ok((asked.score()?, by_token(effects)))
            }
            Method::Exact => {
                let ablation = Ablation::new(&asked, self.asking.rows)?;
                let fast = one_pass(&asked)?;
                let mut found = BTreeMap::new();
                for (site, point) in points.iter().enumerate() {
                    let features = self.chosen(shortlist, point, &fast[site]);
                    let one = if self.per_token {
                        Found::Tokens(ablation.per_token(site, Some(&features))?)
                    } else {
                        let values = ablation.features(site, &features)?;
                        Found::Whole { features, values, error: ablation.error(site)? }
                    };
                    found.insert(point.clone(), one);
                }
                Ok((ablation.score(), found))
            }
        }
    }
}

impl RunArgs {
    /// The features asked for at a hook point, or else the strongest.
    fn chosen(&self, shortlist: &Shortlist, hook: &HookPoint, fast: &Effects) -> Vec<FeatureId> {
        let strongest = || fast.strongest(self.top.get()).into_iter().map(|(feature, _)| feature).collect();
        shortlist.of(hook).map_or_else(strongest, <[_]>::to_vec)
    }
}

fn describe(processor: &Processor, prepared: &Prepared, score: f64) -> Result<AboutQuestion> {
    let inputs = &prepared.question.inputs;
    let image = |(span, path): (&lmm_prep::ImageSpan, &PathBuf)| AboutImage {
        path: std::path::absolute(path).unwrap_or_else(|_| path.clone()),
        start: span.start,
        base: span.base,
        high: span.high,
    };
    Ok(AboutQuestion {
        prompt: prepared.prompt.clone(),
        answers: prepared.answers.clone(),
        baselines: prepared.baselines.clone(),
        score,
        tokens: model_kit::token_texts(processor, inputs)?,
        images: inputs.layout.images.iter().zip(&prepared.images).map(image).collect(),
    })
}

/// Prints the strongest features of every question.
fn report(about: &About, all: &[BTreeMap<HookPoint, Found>]) -> Result<()> {
    const SHOWN: usize = 10;
    let mut stdout = stage_kit::stdout();
    for (number, (question, hooks)) in about.questions.iter().zip(all).enumerate() {
        writeln!(stdout, "question {number}: score {:.4}", question.score)?;
        for (hook, found) in hooks {
            let (top, error) = match found {
                Found::Tokens(effects) => {
                    let all = Tokens::all(effects.n_tokens);
                    let error: f64 = effects.error.iter().map(|&value| f64::from(value)).sum();
                    (effects.top(SHOWN, &all, Pool::Sum), (!effects.error.is_empty()).then_some(error))
                }
                Found::Whole { features, values, error } => {
                    let mut top: Vec<_> = features.iter().copied().zip(values.iter().copied()).collect();
                    top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                    top.truncate(SHOWN);
                    (top, Some(*error))
                }
            };
            let top: Vec<String> =
                top.iter().map(|(feature, value)| format!("{feature} ({value:+.4})")).collect();
            let error = error.map_or_else(String::new, |error| format!("; error {error:+.4}"));
            writeln!(stdout, "  {hook}: {}{error}", top.join(", "))?;
        }
    }
    Ok(())
}
