//! `sae-steer judge`: a model sorts what each change did to the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chat_client::ChatError;
use explain::parse::{SteeringEffect, steering_effect};
use explain::{Asked, FeatureKey, Outcome, prompt};
use explain_kit::{EXPLANATIONS, Explanations, Instruction, RunArgs, Server, ServerArgs, settings};
use scoring::Proportion;
use serde::Serialize;
use stage_kit::{CommonArgs, Interrupt, Interrupted, Progress, RunManifest, UsageError, write_whole};
use tokio::task::JoinSet;

use crate::answering::print;
use crate::published::{self, Verdicts};
use crate::record::{Key, Record};
use crate::store::{Earlier, JUDGE, Merged, SWEEP, Store, any};
use crate::verdict::{Asking, Found, Matter, Verdict};

/// How often a wait looks up whether to stop.
const LOOK_UP: Duration = Duration::from_millis(100);
/// How long a run that is interrupted, or told to stop, waits for what is on its way.
const LAST_WAIT: Duration = Duration::from_secs(30);

pub(crate) const EXAMPLE: &str = "\
Example:
  sae-steer judge --sweep swept --explanations explanations --endpoint http://127.0.0.1:30000/v1

Unchanged answers are not asked about. SWEEP/judge.jsonl has a line per changed one; docs/steering.md says what the words mean.";

#[derive(Debug, clap::Args)]
pub(crate) struct JudgeArgs {
    /// Folder of a sweep; what is judged goes into it, too
    #[arg(long)]
    sweep: PathBuf,
    /// What the features are about: a folder of sae-explain, a ledger (.jsonl), or a file that multimodal-sae published (.json)
    #[arg(long)]
    explanations: PathBuf,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// What came of all pairs, at one strength or at all.
#[derive(Debug, Default, Serialize)]
struct Counts {
    /// Answers, changed or not, to features with an explanation.
    n: u64,
    unchanged: u64,
    none: u64,
    mention: u64,
    reasoning: u64,
    unrelated: u64,
    unparsed: u64,
    failed: u64,
    /// Changed, but not asked about yet.
    open: u64,
    /// The share of all answers in which the change shows in what is said: mention and reasoning. Answers to one prompt, or of
    /// one feature, are no independent draws, so that it has no interval.
    related: Option<f64>,
    /// How many features and prompts these are answers of.
    features: usize,
    prompts: usize,
    #[serde(skip)]
    seen: (BTreeSet<FeatureKey>, BTreeSet<u32>),
}

#[derive(Debug, Serialize)]
struct Summary {
    model: String,
    /// Features that the sweep changed and nobody explained.
    without_explanation: u64,
    all: Counts,
    strengths: BTreeMap<String, Counts>,
}

/// What the tasks share.
struct Judge {
    server: Server,
    instruction: Instruction,
}

type Told = (Record, String, Result<(Outcome, Asked), ChatError>);

pub(crate) fn run(args: &JudgeArgs, common: &CommonArgs) -> Result<()> {
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(common.seed);
    let world = common.world()?;
    manifest.world(world);
    let instruction = Instruction::of(&args.server, prompt::steering_instruction())?;
    let explanations = Explanations::open(&args.explanations, EXPLANATIONS)?;
    let swept = Merged::read(&args.sweep, &SWEEP, Record::key)?;
    if swept.keys().is_empty() {
        let problem = format!("{} holds no sweep.jsonl with answers", args.sweep.display());
        return Err(UsageError::new(problem).into());
    }
    let matter = Matter::new(&args.sweep, explanations)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the threads that send")?;
    let server = Server::connect(&args.server, common.seed, &runtime)?;
    manifest.settings = settings(&args.server, &server.model, &instruction, common.seed);
    let earlier = Earlier::of(args.run.resume, args.run.overwrite);
    let mut store = Store::open(&args.sweep, &JUDGE, earlier, world, Verdict::key, &mut manifest)?;
    let (open, without) = matter.open(args.run.retry_failed, &swept, &store, world)?;
    let interrupt = Interrupt::defer();
    let judge = Arc::new(Judge { server, instruction });
    let concurrency = args.server.concurrency.get();
    let questions = open.into_iter().map(|key| matter.asking(&swept, key));
    let asked = runtime.block_on(ask_all(&judge, questions, concurrency, &mut store, &interrupt));
    runtime.shutdown_background();

    let model = judge.server.model.clone();
    let summary = store.finish(&mut manifest, |verdicts| {
        let summary = Summary::of(model, without, &matter, &swept, verdicts)?;
        let text = serde_json::to_string_pretty(&summary)? + "\n";
        write_whole(&args.sweep.join(JUDGE.summary), text.as_bytes())?;
        let judged = |record: &Record| matter.judged(record, verdicts);
        published::write(&swept, &Verdicts::Of(&judged), &args.sweep)?;
        Ok(summary)
    })?;
    let go_on = || format!("what was judged is in {}: go on with --resume", args.sweep.display());
    asked.with_context(go_on)?;
    if let Some(signal) = interrupt.signal() {
        return Err(Interrupted(signal)).with_context(go_on);
    }
    print(&(serde_json::to_string(&summary)? + "\n"))
}

impl Summary {
    fn of(
        model: String,
        without_explanation: u64,
        matter: &Matter,
        swept: &Merged<Key, Record>,
        verdicts: &Merged<Key, Verdict>,
    ) -> Result<Self> {
        let mut summary =
            Self { model, without_explanation, all: Counts::default(), strengths: BTreeMap::new() };
        for record in swept.records(&any) {
            let record = record?;
            let Some(Found { verdict, effect, .. }) = matter.found(&record, verdicts)? else { continue };
            let of_strength = summary.strengths.entry(record.strength.to_string()).or_default();
            for counts in [&mut summary.all, of_strength] {
                counts.add(&record, verdict.as_ref(), effect);
            }
        }
        summary.all.finish();
        summary.strengths.values_mut().for_each(Counts::finish);
        Ok(summary)
    }
}

/// Asks about all pairs side by side and records each verdict as it comes.
async fn ask_all(
    judge: &Arc<Judge>,
    questions: impl ExactSizeIterator<Item = Result<Asking>>,
    concurrency: usize,
    store: &mut Store<Key, Verdict>,
    interrupt: &Interrupt,
) -> Result<()> {
    let progress = Progress::new("judging", "answers", Some(questions.len() as u64));
    let mut questions = questions;
    let mut tasks: JoinSet<Told> = JoinSet::new();
    let (mut halt, mut stopping) = (None, None);
    loop {
        let stops = interrupt.requested() || halt.is_some();
        while !stops && tasks.len() < concurrency {
            let Some(asking) = questions.next().transpose()? else { break };
            let judge = Arc::clone(judge);
            tasks.spawn(async move { judge.ask(asking).await });
        }
        if stops && stopping.get_or_insert_with(Instant::now).elapsed() >= LAST_WAIT {
            break;
        }
        match tokio::time::timeout(LOOK_UP, tasks.join_next()).await {
            Err(_) => {}
            Ok(None) => break,
            Ok(Some(told)) => {
                let (record, about, told) = told.context("a question ended in a panic")?;
                match told {
                    Ok((outcome, asked)) => {
                        store.add(&Verdict::of(&record, about, outcome, Some(asked)))?;
                        progress.inc(1);
                    }
                    Err(error) => drop(halt.get_or_insert(error)),
                }
            }
        }
    }
    progress.finish();
    halt.map_or(Ok(()), |error| Err(error.into()))
}

impl Judge {
    async fn ask(&self, Asking { record, explanation, change, about }: Asking) -> Told {
        let Record { original, steered, .. } = &record;
        let said = prompt::Steered { explanation: &explanation, change: &change, original, steered };
        let messages = prompt::about_steering(said, &self.instruction.text);
        let told = self.server.ask(messages, self.instruction.short_hash(), steering_effect).await;
        (record, about, told)
    }
}

impl Counts {
    fn add(&mut self, record: &Record, verdict: Option<&Verdict>, effect: Option<SteeringEffect>) {
        self.n += 1;
        self.seen.0.insert(record.feature());
        self.seen.1.insert(record.sample);
        let counter = match (record.changed, effect, verdict.map(|verdict| &verdict.outcome)) {
            (false, ..) => &mut self.unchanged,
            (true, Some(SteeringEffect::None), _) => &mut self.none,
            (true, Some(SteeringEffect::Mention), _) => &mut self.mention,
            (true, Some(SteeringEffect::Reasoning), _) => &mut self.reasoning,
            (true, Some(SteeringEffect::Unrelated), _) => &mut self.unrelated,
            (true, None, Some(Outcome::Failed(_))) => &mut self.failed,
            (true, None, Some(_)) => &mut self.unparsed,
            (true, None, None) => &mut self.open,
        };
        *counter += 1;
    }

    fn finish(&mut self) {
        let known = self.n - self.unparsed - self.failed - self.open;
        self.related = Proportion { yes: self.mention + self.reasoning, n: known }.share();
        (self.features, self.prompts) = (self.seen.0.len(), self.seen.1.len());
        self.seen = Default::default();
    }
}
