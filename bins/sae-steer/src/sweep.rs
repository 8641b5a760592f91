//! `sae-steer sweep`: features at strengths on prompts, and what each moves.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, Result};
use explain::FeatureKey;
use explain_kit::{FeatureArgs, Wanted};
use lmm_hooks::{GenerationOptions, Hooks};
use lmm_prep::Inputs;
use sae_types::FeatureId;
use stage_kit::{CommonArgs, Interrupt, Interrupted, Progress, RunManifest, UsageError, World};
use steering::{Change, Effects, Plan, repetition};

use crate::answering::{Wording, inputs, text};
use crate::args::{MannerArgs, ModelArgs, Steered, WritingArgs};
use crate::prompts::{Prompt, PromptArgs, Prompts};
use crate::published::{self, Verdicts};
use crate::record::Record;
use crate::store::{Earlier, SWEEP, Store};
use crate::table;

/// What multimodal-sae's sweep sets features to.
const STRENGTH: f32 = 50.0;

pub(crate) const EXAMPLE: &str = "\
Example:
  sae-steer sweep assets/shapes-lmm-s --sae sae --dataset shapes-test --samples 100 -t \"what colour is the circle ?\" \\
    --filters red.json -k 5 20 --max-new-tokens 8 --save-dir swept

SAVE_DIR/sweep.jsonl has a line per prompt, feature and strength; docs/steering.md explains it and the table.";

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags")]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompts: PromptArgs,
    #[command(flatten)]
    features: FeatureArgs,
    /// Strengths, the values of --mode; default: 50
    #[arg(short = 'k', long = "strengths", num_args = 1.., allow_negative_numbers = true)]
    strengths: Vec<f32>,
    /// Put prompts to the model as they stand, behind their images, without chat template
    #[arg(long)]
    pure_text: bool,
    /// Features and strengths in one forward pass
    #[arg(long, default_value_t = NonZeroUsize::new(8).expect("8 is not 0"))]
    batch_size: NonZeroUsize,
    /// Only write the answers: no divergence, no perplexity
    #[arg(long)]
    no_measures: bool,
    /// Folder to write
    #[arg(long)]
    save_dir: PathBuf,
    /// Go on with what the folder holds, if anything: only what is missing is answered
    #[arg(long)]
    resume: bool,
    /// Remove what the folder holds of a sweep and start anew
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    #[command(flatten)]
    manner: MannerArgs,
    #[command(flatten)]
    writing: WritingArgs,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// A feature at a strength, of a prompt.
type Item = (FeatureKey, f32);

/// Everything a worker needs.
struct Sweep<'a> {
    args: &'a SweepArgs,
    steered: Steered,
    prompts: Prompts,
    /// All features at all strengths, in order; every prompt meets them all.
    items: Vec<Item>,
    options: GenerationOptions,
}

pub(crate) fn run(args: &SweepArgs, common: &CommonArgs) -> Result<()> {
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(common.seed);
    let world = common.world()?;
    manifest.world(world);
    let prompts = args.prompts.open(&mut manifest)?;
    let wanted = args.features.wanted()?;
    let steered = args.model.open(|hook| wanted.concerns(hook), &args.manner)?;
    let items = items(args, &wanted, &steered)?;
    steered.note(&args.model, &mut manifest)?;
    let options = args.writing.options(&steered.generation, common.seed);
    manifest.settings = settings(args, &manifest, common.seed);
    let earlier = Earlier::of(args.resume, args.overwrite);
    let store = Store::open(&args.save_dir, &SWEEP, earlier, world, Record::key, &mut manifest)?;
    if earlier == Earlier::Replace {
        published::clear(&args.save_dir)?;
    }
    let sweep = Sweep { args, steered, prompts, items, options };
    let interrupt = Interrupt::defer();
    let go_on = || format!("what was answered is in {}: go on with --resume", args.save_dir.display());
    sweep.run(store, world, &interrupt, &mut manifest).with_context(go_on)?;
    match interrupt.signal() {
        Some(signal) => Err(Interrupted(signal)).with_context(go_on),
        None => Ok(()),
    }
}

impl Sweep<'_> {
    fn run(
        &self,
        mut store: Store<crate::record::Key, Record>,
        world: World,
        interrupt: &Interrupt,
        manifest: &mut RunManifest,
    ) -> Result<()> {
        let share = self.share(world);
        let progress = Progress::new("steering", "answers", Some(share.len() as u64));
        let (mut at, mut done) = (share.start, 0);
        while at < share.end && !interrupt.requested() {
            let number = at / self.items.len();
            let first = at - number * self.items.len();
            let last = (first + share.end - at).min(self.items.len());
            at += last - first;
            let wanted: Vec<&Item> = self.items[first..last]
                .iter()
                .filter(|(key, strength)| !store.contains(&(number as u32, key.clone(), strength.to_bits())))
                .collect();
            progress.skip((last - first - wanted.len()) as u64);
            if !wanted.is_empty() {
                done += self.prompt(number, &wanted, &mut store, interrupt, &progress)?;
            }
        }
        progress.finish();
        manifest.count("prompts", self.prompts.len() as u64);
        manifest.count("features and strengths", self.items.len() as u64);
        manifest.count("answers", done);
        store.finish(manifest, |records| {
            let table = table::Table::of(records)?;
            table.write(&self.args.save_dir)?;
            published::write(records, &Verdicts::Kept, &self.args.save_dir)?;
            table.print(self.args.json)
        })
    }

    /// A worker's share of all prompts' items, prompt after prompt.
    fn share(&self, world: World) -> std::ops::Range<usize> {
        let all = self.prompts.len() * self.items.len();
        let boundary = |rank: usize| (all as u128 * rank as u128 / world.size as u128) as usize;
        boundary(world.rank)..boundary(world.rank + 1)
    }

    /// Steers the answer to one prompt; gives how many answers were written.
    fn prompt(
        &self,
        number: usize,
        wanted: &[&Item],
        store: &mut Store<crate::record::Key, Record>,
        interrupt: &Interrupt,
        progress: &Progress,
    ) -> Result<u64> {
        let prompt = self.prompts.get(number)?;
        let model = &self.steered.model;
        let wording = Wording::of(self.args.pure_text);
        let inputs = inputs(&model.processor, &prompt.text, &prompt.images, wording)
            .with_context(|| format!("prompt {number}"))?;
        let original = self.write(&inputs, 1, number, &mut Hooks::new())?.remove(0);
        let effects = if self.args.no_measures {
            None
        } else {
            Some(Effects::new(&model.network, &inputs, model.pad(), &original)?)
        };
        let original_perplexity = effects.as_ref().and_then(Effects::original_perplexity);
        let mut done = 0;
        for batch in wanted.chunks(self.args.batch_size.get()) {
            if interrupt.requested() {
                break;
            }
            let plans: Vec<Plan> = batch.iter().map(|item| self.plan(item)).collect();
            let steering = self.steered.steerer.steering(&plans)?;
            let texts = self.write(&inputs, batch.len(), number, &mut steering.hooks())?;
            let measured = match &effects {
                Some(effects) => effects.of(&steering, &texts)?.into_iter().map(Some).collect(),
                None => vec![None; texts.len()],
            };
            for ((item, tokens), effect) in batch.iter().zip(&texts).zip(measured) {
                let record = self.record(&prompt, item, &original, tokens, original_perplexity)?;
                store.add(&Record { effect, ..record })?;
            }
            done += batch.len() as u64;
            progress.inc(batch.len() as u64);
        }
        Ok(done)
    }

    /// Answers a prompt in so many rows, each drawing from the random stream of the prompt's number whatever is changed.
    fn write(
        &self,
        prompt: &Inputs,
        rows: usize,
        number: usize,
        hooks: &mut Hooks<'_>,
    ) -> Result<Vec<Vec<u32>>> {
        let batch = self.steered.model.repeated(prompt, rows)?;
        let options = self.steered.fitting(&self.options, prompt.input_ids.len())?;
        let options = vec![GenerationOptions { stream: number as u64, ..options }; rows];
        let mut generation = self.steered.model.network.start_generation(&batch, &options, hooks)?;
        let mut texts = vec![Vec::new(); rows];
        while let Some(tokens) = generation.step()? {
            for (text, token) in texts.iter_mut().zip(tokens) {
                text.extend(token.map(|token| token.id));
            }
        }
        Ok(texts)
    }

    fn plan(&self, (key, strength): &Item) -> Plan {
        let change = Change { mode: self.args.manner.mode, value: *strength };
        self.args.manner.plan().with(key.hook.clone(), key.feature, change)
    }

    fn record(
        &self,
        prompt: &Prompt,
        (key, strength): &Item,
        original: &[u32],
        steered: &[u32],
        original_perplexity: Option<f64>,
    ) -> Result<Record> {
        let processor = &self.steered.model.processor;
        let (original_text, steered_text) = (text(processor, original)?, text(processor, steered)?);
        Ok(Record {
            sample: prompt.number,
            id: prompt.id.clone(),
            hook: key.hook.clone(),
            feature: key.feature,
            strength: *strength,
            prompt: prompt.text.clone(),
            changed: original_text != steered_text,
            original: original_text,
            steered: steered_text,
            expected: prompt.expected.clone(),
            original_tokens: original.len() as u32,
            steered_tokens: steered.len() as u32,
            original_repetition: repetition(original),
            original_perplexity: original_perplexity.filter(|number| number.is_finite()),
            effect: None,
        })
    }
}

/// The features the flags choose, each at all strengths.
fn items(args: &SweepArgs, wanted: &Wanted<'_>, steered: &Steered) -> Result<Vec<Item>> {
    for (hook, &width) in steered.steerer.steerable().features() {
        wanted.check_width(hook, width)?;
    }
    let there: Vec<_> = steered
        .steerer
        .steerable()
        .features()
        .iter()
        .map(|(hook, &width)| (hook, (0..width as u32).map(FeatureId).collect()))
        .collect();
    let chosen = wanted.among(there.into_iter(), World { rank: 0, size: 1 })?;
    let strengths = if args.strengths.is_empty() { vec![STRENGTH] } else { args.strengths.clone() };
    let of_feature = |key: FeatureKey| strengths.iter().map(move |&k| (key.clone(), k)).collect::<Vec<_>>();
    let items: Vec<Item> = chosen.keys().flat_map(of_feature).collect();
    // The first feature stands for all: what may be wrong is the value, and the manner.
    for (key, strength) in items.iter().take(strengths.len()) {
        let change = Change { mode: args.manner.mode, value: *strength };
        let plan = args.manner.plan().with(key.hook.clone(), key.feature, change);
        let checked = steered.steerer.steerable().check(&plan);
        checked.map_err(|error| UsageError::new(error.to_string()))?;
    }
    Ok(items)
}

/// What decides an answer: a run that goes on with the folder must have the same.
fn settings(args: &SweepArgs, manifest: &RunManifest, seed: u64) -> BTreeMap<String, String> {
    let mut settings = args.manner.settings();
    settings.extend(args.writing.settings(seed));
    settings.extend(manifest.inputs.iter().map(|input| (input.role.clone(), input.sha256.clone())));
    let of = |name: &str, value: String| (name.to_owned(), value);
    settings.extend([
        of("--text (SHA-256)", args.prompts.setting()),
        of("--pure-text", args.pure_text.to_string()),
        of("--no-measures", args.no_measures.to_string()),
        of("--dtype", args.model.torch.dtype.to_string()),
        of("--load-in-8bit", args.model.precision.load_in_8bit.to_string()),
    ]);
    settings
}
