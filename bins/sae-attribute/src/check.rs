//! `sae-attribute check`: fast methods against switching features off.

use std::io::Write;
use std::num::NonZeroUsize;

use anyhow::Result;
use attribution::{
    Ablation, Agreement, Asked, AttributionError, Clean, Effects, integrated, integrated_each, one_pass,
};
use model_kit::TorchArgs;
use sae_types::{FeatureId, HookPoint};
use serde::Serialize;
use stage_kit::{CommonArgs, Progress, RunManifest, UsageError};

use crate::asking::{AskingArgs, STEPS, Shortlist};
use crate::data::Reading;

/// A method that gives all features at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Fast {
    /// One pass forward and one backward
    OnePass,
    /// Integrated gradients, each of the strongest features by one pass going alone
    Ig,
    /// Integrated gradients, all features going together
    IgTogether,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    asking: AskingArgs,
    /// Methods to check
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["one-pass", "ig"])]
    method: Vec<Fast>,
    /// With --method ig or ig-together: points of the integrated gradients; default: 10
    #[arg(long)]
    steps: Option<NonZeroUsize>,
    /// How many of the strongest features to switch off, per question and hook point
    #[arg(long, default_value_t = NonZeroUsize::new(100).expect("100 is not 0"))]
    top: NonZeroUsize,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    question: usize,
    hook: HookPoint,
    method: Fast,
    #[serde(flatten)]
    agreement: Agreement,
    /// The score in the model's own pass.
    score: f64,
    /// What the score loses without the reconstruction error.
    error: f64,
}

pub(crate) fn run(args: &CheckArgs, torch: TorchArgs, common: &CommonArgs) -> Result<()> {
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    if args.steps.is_some() && args.method.iter().all(|&method| method == Fast::OnePass) {
        return Err(UsageError::new("--steps is for the methods ig and ig-together").into());
    }
    let reading = if args.asking.chat { Reading::Chat } else { Reading::Plain };
    let asking = args.asking.prepare(reading, &Shortlist::None, common, &mut manifest)?;
    let session = asking.open(&args.asking, torch)?;
    let progress = Progress::new("checking", "questions", Some(session.questions.len() as u64));
    let mut rows = Vec::new();
    for (question, prepared) in session.questions.iter().enumerate() {
        let asked = Asked::new(&session.model.network, &prepared.question, &session.places)?;
        let clean = Clean::new(&asked)?;
        let exact = Ablation::new(&clean, args.asking.rows);
        let said = args.method.iter().map(|&method| args.effects(method, &clean));
        let said = said.collect::<Result<Vec<_>, _>>()?;
        let mut of_question = Vec::new();
        for (site, place) in session.places.iter().enumerate() {
            let fast: Vec<&Effects> = said.iter().map(|effects| &effects[site]).collect();
            let (checks, error) = (exact.check(site, &fast, args.top.get())?, exact.error(site)?);
            for (number, (&method, check)) in args.method.iter().zip(checks).enumerate() {
                let (hook, agreement, score) = (place.point().clone(), check.agreement, clean.score());
                of_question.push((number, Row { question, hook, method, agreement, score, error }));
            }
        }
        // Method by method, then by hook point.
        of_question.sort_by_key(|&(number, _)| number);
        rows.extend(of_question.into_iter().map(|(_, row)| row));
        progress.inc(1);
    }
    progress.finish();
    print(args, &rows)
}

impl CheckArgs {
    fn effects(&self, method: Fast, clean: &Clean<'_, Asked<'_>>) -> Result<Vec<Effects>, AttributionError> {
        let steps = self.steps.unwrap_or(STEPS);
        match method {
            Fast::OnePass => one_pass(clean),
            Fast::IgTogether => integrated(clean, steps),
            Fast::Ig => {
                let each = |(site, fast): (usize, Effects)| {
                    let strongest = fast.strongest(self.top.get());
                    let features: Vec<FeatureId> =
                        strongest.into_iter().map(|(feature, _)| feature).collect();
                    integrated_each(clean, site, &features, steps, self.asking.rows)
                };
                one_pass(clean)?.into_iter().enumerate().map(each).collect()
            }
        }
    }
}

fn print(args: &CheckArgs, rows: &[Row]) -> Result<()> {
    let mut stdout = stage_kit::stdout();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(rows)?)?;
        return Ok(());
    }
    let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
    let name = |method| match method {
        Fast::OnePass => "one-pass",
        Fast::Ig => "ig",
        Fast::IgTogether => "ig-together",
    };
    writeln!(
        stdout,
        "{:>8}  {:<24} {:<11} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "question", "hook point", "method", "features", "spearman", "slope", "score", "error"
    )?;
    for row in rows {
        writeln!(
            stdout,
            "{:>8}  {:<24} {:<11} {:>8} {:>8} {:>8} {:>9.3} {:>9.3}",
            row.question,
            row.hook.as_str(),
            name(row.method),
            row.agreement.n,
            shown(row.agreement.spearman),
            shown(row.agreement.slope),
            row.score,
            row.error
        )?;
    }
    for &method in &args.method {
        let of = |value: fn(&Agreement) -> Option<f64>| {
            let values: Vec<f64> = rows
                .iter()
                .filter(|row| row.method == method)
                .filter_map(|row| value(&row.agreement))
                .collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        writeln!(
            stdout,
            "mean of {}: spearman {}, slope {}",
            name(method),
            shown(of(|agreement| agreement.spearman)),
            shown(of(|agreement| agreement.slope))
        )?;
    }
    Ok(())
}
