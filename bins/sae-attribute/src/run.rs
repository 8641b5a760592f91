//! `sae-attribute run`: the effects of every question, written to a folder.

use std::collections::BTreeMap;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use attribution::{
    Ablation, Asked, Clean, Effects, Pool, Tokens, integrated, integrated_each, msae, one_pass,
};
use lmm_prep::Processor;
use model_kit::TorchArgs;
use sae_types::{FeatureId, HookPoint};
use stage_kit::{CommonArgs, Existing, OutputFolder, Progress, RunManifest, UsageError};

use crate::asking::{AskingArgs, STEPS, Session, Shortlist, ShortlistArgs};
use crate::data::{Prepared, Reading};
use crate::parts::Parts;
use crate::store::{About, AboutImage, AboutQuestion, Found, write, write_dense};

pub(crate) const EXAMPLE: &str = "Example:
  sae-attribute run llava-hf/llama3-llava-next-8b-hf --sae lmms-lab/llama3-llava-next-8b-hf-sae-131k \\
    --data questions.json --load-in-8bit --device cuda --dtype bf16 --save-dir effects
  with questions.json: [{\"prompt\": \"...<image>...\", \"answer\": \"yes\", \"baseline\": \"no\", \"image\": \"map.png\"}]";

/// Features of a shortlist unless told otherwise.
const TOP: NonZeroUsize = NonZeroUsize::new(100).expect("100 is not 0");

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
    /// With --method ig: points of the integrated gradients; default: 10
    #[arg(long)]
    steps: Option<NonZeroUsize>,
    /// With --method ig: the way that integrated gradients go; default: each
    #[arg(long, value_enum)]
    path: Option<Way>,
    #[command(flatten)]
    shortlist: ShortlistArgs,
    /// With --method exact or ig and no features named: the strongest so many, by one pass; default: 100
    #[arg(long)]
    top: Option<NonZeroUsize>,
    /// With --method exact: switch each feature off on one token at a time, a pass for each of its tokens
    #[arg(long)]
    per_token: bool,
    /// Also write multimodal-sae's tensor, [num_latents, tokens] f32, a file per hook point
    #[arg(long)]
    dense: bool,
    /// Folder to write. What is found of each question lies beside it, in SAVE_DIR.parts, until all is done
    #[arg(long)]
    save_dir: PathBuf,
    /// Replace the folder if it is there, and what a run that did not end left in SAVE_DIR.parts
    #[arg(long)]
    overwrite: bool,
}

impl RunArgs {
    fn is_together(&self) -> bool {
        self.method() == Method::Ig && self.path == Some(Way::Together)
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
        if (self.steps.is_some() || self.path.is_some()) && method != Method::Ig {
            return Err(UsageError::new("--steps and --path are for --method ig"));
        }
        let is_shortlisted = method == Method::Exact || (method == Method::Ig && !self.is_together());
        if self.top.is_some() && (named || !is_shortlisted) {
            return Err(UsageError::new(
                "--top is for --method exact and ig --path each, where neither --features nor --filters name features",
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

    /// Refuses questions that what is to be written has no room for, before anything is computed.
    fn check_questions(&self, questions: &[Prepared]) -> Result<(), UsageError> {
        let lengths: Vec<usize> =
            questions.iter().map(|prepared| prepared.question.inputs.input_ids.len()).collect();
        if self.dense && lengths.windows(2).any(|two| two[0] != two[1]) {
            return Err(UsageError::new(format!(
                "--dense: msae's tensor needs prompts of one length, these have {lengths:?} tokens: ask one question at a time"
            )));
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
    let parts = Parts::open(&args.save_dir, args.overwrite)?;
    let asking = args.asking.prepare(args.reading(), &shortlist, common, &mut manifest)?;
    args.check_questions(&asking.questions)?;
    let session = asking.open(&args.asking, torch)?;
    let steps = args.steps.unwrap_or(STEPS);
    let (method, steps) = match args.method() {
        Method::OnePass => ("one-pass", None),
        Method::Ig if args.is_together() => ("ig-together", Some(steps.get())),
        Method::Ig => ("ig", Some(steps.get())),
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
        let described = describe(&session.model.processor, prepared, score)?;
        parts.add(question, &about, &described, &found)?;
        about.questions.push(described);
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
    parts.remove()?;
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
        let (clean, rows) = (Clean::new(&asked)?, self.asking.rows);
        let steps = self.steps.unwrap_or(STEPS);
        let found = match self.method() {
            Method::OnePass => by_token(one_pass(&clean)?),
            Method::Ig if self.is_together() => by_token(integrated(&clean, steps)?),
            Method::Ig => {
                let fast = one_pass(&clean)?;
                let each = |site: usize| {
                    let features = self.chosen(shortlist, &points[site], &fast[site]);
                    integrated_each(&clean, site, &features, steps, rows)
                };
                by_token((0..points.len()).map(each).collect::<Result<_, _>>()?)
            }
            Method::Msae => {
                let of = |site| msae(&clean, site, shortlist.of(&points[site]), rows);
                by_token((0..points.len()).map(of).collect::<Result<_, _>>()?)
            }
            Method::Exact => {
                let ablation = Ablation::new(&clean, rows);
                let fast = one_pass(&clean)?;
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
                found
            }
        };
        Ok((clean.score(), found))
    }

    /// The features asked for at a hook point, or else the strongest.
    fn chosen(&self, shortlist: &Shortlist, hook: &HookPoint, fast: &Effects) -> Vec<FeatureId> {
        let top = self.top.unwrap_or(TOP).get();
        let strongest = || fast.strongest(top).into_iter().map(|(feature, _)| feature).collect();
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

/// Prints the features that support the answer of each question most.
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
