//! `sae-steer judge`: a model sorts what each change did to the answers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chat_client::ChatError;
use explain::parse::{SteeringEffect, steering_effect};
use explain::{Asked, FeatureKey, Outcome, prompt};
use explain_kit::{
    EXPLANATIONS, Explanations, Instruction, RunArgs, Server, ServerArgs, settings, short_hash,
};
use sae_types::{FeatureId, HookPoint};
use scoring::{Confidence, Proportion};
use serde::{Deserialize, Serialize};
use stage_kit::{CommonArgs, Interrupt, Interrupted, Progress, RunManifest, UsageError, World, write_whole};
use tokio::task::JoinSet;

use crate::answering::print;
use crate::published::{self, Judged};
use crate::record::{Key, Record};
use crate::store::{Earlier, Merged, Store};
use crate::sweep::SWEEP;

const JUDGE: &str = "judge";
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

/// A line of `judge.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Verdict {
    sample: u32,
    hook: HookPoint,
    feature: FeatureId,
    strength: f32,
    /// One of the four words, or why there is none.
    outcome: Outcome,
    /// The start of the SHA-256 of the explanation and both answers.
    about: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asked: Option<Asked>,
}

impl Verdict {
    fn key(&self) -> Key {
        let feature = FeatureKey { hook: self.hook.clone(), feature: self.feature };
        (self.sample, feature, self.strength.to_bits())
    }

    fn of(record: &Record, about: String, outcome: Outcome, asked: Option<Asked>) -> Self {
        let (hook, feature) = (record.hook.clone(), record.feature);
        let (sample, strength) = (record.sample, record.strength);
        Self { sample, hook, feature, strength, outcome, about, asked }
    }

    fn effect(&self) -> Option<SteeringEffect> {
        let Outcome::Answered(word) = &self.outcome else { return None };
        SteeringEffect::ALL.into_iter().find(|effect| effect.name() == word)
    }
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
    /// The share of all answers in which the change shows in what is said: mention and reasoning.
    related: Option<f64>,
    related_interval_95: Option<[f64; 2]>,
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
    let swept = Merged::read(&args.sweep, SWEEP, Record::key)?;
    if swept.records().next().is_none() {
        let problem = format!("{} holds no sweep.jsonl with answers", args.sweep.display());
        return Err(UsageError::new(problem).into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the threads that send")?;
    let server = Server::connect(&args.server, common.seed, &runtime)?;
    manifest.settings = settings(&args.server, &server.model, &instruction, common.seed);
    let earlier = Earlier::of(args.run.resume, args.run.overwrite);
    let mut store = Store::open(&args.sweep, JUDGE, earlier, world, Verdict::key, &mut manifest)?;
    let (open, without) = open_pairs(args, &swept, &explanations, &store, world)?;
    let interrupt = Interrupt::defer();
    let judge = Arc::new(Judge { server, instruction });
    let concurrency = args.server.concurrency.get();
    let asked = runtime.block_on(ask_all(&judge, open, concurrency, &mut store, &interrupt));
    runtime.shutdown_background();

    let model = judge.server.model.clone();
    let summary = store.finish(&mut manifest, |verdicts| {
        let (summary, judged) = summarise(model, without, &swept, verdicts, &explanations)?;
        let text = serde_json::to_string_pretty(&summary)? + "\n";
        write_whole(&args.sweep.join("judge.json"), text.as_bytes())?;
        published::write(&swept, &judged, &args.sweep)?;
        Ok(summary)
    })?;
    let go_on = || format!("what was judged is in {}: go on with --resume", args.sweep.display());
    asked.with_context(go_on)?;
    if let Some(signal) = interrupt.signal() {
        return Err(Interrupted(signal)).with_context(go_on);
    }
    print(&(serde_json::to_string(&summary)? + "\n"))
}

/// Changed answers that need asking, of a worker's share, with their explanations; and how many features have none.
fn open_pairs(
    args: &JudgeArgs,
    swept: &Merged<Key, Record>,
    explanations: &Explanations,
    store: &Store<Key, Verdict>,
    world: World,
) -> Result<(Vec<(Record, String)>, u64)> {
    let (mut open, mut without) = (Vec::new(), std::collections::BTreeSet::new());
    let mut at = 0;
    for record in swept.records() {
        let record = record?;
        let Some(text) = explanations.texts.get(&record.feature()) else {
            without.insert(record.feature());
            continue;
        };
        if !record.changed {
            continue;
        }
        at += 1;
        let before = store.get(&record.key())?.filter(|before| before.about == about(&record, text));
        let failed = |verdict: &Verdict| matches!(verdict.outcome, Outcome::Failed(_) | Outcome::Unparsed);
        let done = before.is_some_and(|before| !(args.run.retry_failed && failed(&before)));
        if (at - 1) % world.size == world.rank && !done {
            open.push((record, text.clone()));
        }
    }
    if !without.is_empty() {
        tracing::warn!("{} features of the sweep have no explanation and are passed over", without.len());
    }
    Ok((open, without.len() as u64))
}

fn about(record: &Record, explanation: &str) -> String {
    short_hash(&[explanation, &record.original, &record.steered].join("\0"))
}

/// Asks about all pairs side by side and records each verdict as it comes.
async fn ask_all(
    judge: &Arc<Judge>,
    open: Vec<(Record, String)>,
    concurrency: usize,
    store: &mut Store<Key, Verdict>,
    interrupt: &Interrupt,
) -> Result<()> {
    let progress = Progress::new("judging", "answers", Some(open.len() as u64));
    let mut open = open.into_iter();
    let mut tasks: JoinSet<Told> = JoinSet::new();
    let (mut halt, mut stopping) = (None, None);
    loop {
        let stops = interrupt.requested() || halt.is_some();
        while !stops && tasks.len() < concurrency {
            let Some((record, text)) = open.next() else { break };
            let judge = Arc::clone(judge);
            tasks.spawn(async move { judge.ask(record, text).await });
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
    async fn ask(&self, record: Record, explanation: String) -> Told {
        let about = about(&record, &explanation);
        let Record { original, steered, .. } = &record;
        let messages = prompt::about_steering(&explanation, original, steered, &self.instruction.text);
        let told = self.server.ask(messages, self.instruction.short_hash(), steering_effect).await;
        (record, about, told)
    }
}

fn summarise(
    model: String,
    without_explanation: u64,
    swept: &Merged<Key, Record>,
    verdicts: &Merged<Key, Verdict>,
    explanations: &Explanations,
) -> Result<(Summary, BTreeMap<Key, Judged>)> {
    let mut found: BTreeMap<Key, Verdict> = BTreeMap::new();
    for verdict in verdicts.records() {
        let verdict = verdict?;
        found.insert(verdict.key(), verdict);
    }
    let mut summary =
        Summary { model, without_explanation, all: Counts::default(), strengths: BTreeMap::new() };
    let mut judged = BTreeMap::new();
    for record in swept.records() {
        let record = record?;
        let Some(text) = explanations.texts.get(&record.feature()) else { continue };
        let verdict = found.get(&record.key()).filter(|verdict| verdict.about == about(&record, text));
        let effect = match verdict {
            _ if !record.changed => Some(SteeringEffect::None),
            verdict => verdict.and_then(Verdict::effect),
        };
        if let Some(effect) = effect {
            let category = (effect as u8 + 1).to_string();
            judged.insert(record.key(), Judged { explanation: text.clone(), category });
        }
        let of_strength = summary.strengths.entry(record.strength.to_string()).or_default();
        for counts in [&mut summary.all, of_strength] {
            counts.add(&record, verdict, effect);
        }
    }
    summary.all.finish();
    summary.strengths.values_mut().for_each(Counts::finish);
    Ok((summary, judged))
}

impl Counts {
    fn add(&mut self, record: &Record, verdict: Option<&Verdict>, effect: Option<SteeringEffect>) {
        self.n += 1;
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
        let related = Proportion { yes: self.mention + self.reasoning, n: known };
        self.related = related.share();
        self.related_interval_95 = related.wilson(Confidence::P95);
    }
}
