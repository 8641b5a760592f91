//! `sae-explain text`: what the marked tokens of pieces of text share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use act_cache::{Cache, CachedTokens, HookCache, Selection as Picked};
use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use explain::prompt::TextParts;
use explain::{FeatureKey, Outcome, Shown, TextStyle, Unembedding, parse, prompt};
use explain_kit::{
    FeatureArgs, Instruction, Job, Nothing, Once, Picks, Plan, Prepared, Question, RunArgs, Selection,
    ServerArgs, Texts, hook_of, hooks_of, note_cache, open_cache, share, stored,
};
use lmm_prep::Tokenizer;
use mm_data::hub::{self, RepoKind};
use sae_core::Sae;
use sae_types::HookPoint;
use stage_kit::{CommonArgs, RunManifest, hash_bytes, hash_file};

use crate::publish::{EXPLAINED, publish};

pub(crate) const EXAMPLE: &str = "\
Example:
  sae-explain text --cache cache --model MODEL --explanation-dir explained --activations --cot --logits 10 --sae SAE";

#[derive(Debug, clap::Args)]
pub(crate) struct TextArgs {
    /// Cache with token ids: a folder that sae-cache text wrote
    #[arg(long)]
    cache: PathBuf,
    /// The model it was made with, whose tokenizer is needed: a folder or a Hub id
    #[arg(long)]
    model: String,
    /// Folder to write
    #[arg(long)]
    explanation_dir: PathBuf,
    /// Pieces of text per feature
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Examples")]
    max_examples: u32,
    /// Pass over features that are active in fewer samples
    #[arg(long, default_value_t = 10, help_heading = "Examples")]
    min_activating: usize,
    /// Which samples, by largest activation
    #[arg(long, value_enum, default_value_t = Picks::Top, help_heading = "Examples")]
    examples: Picks,
    /// Tokens per piece, the strongest in the middle
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Examples")]
    context: u32,
    /// Mark tokens from this share of a piece's largest activation on
    #[arg(long, default_value_t = 0.3, value_parser = share, help_heading = "Examples")]
    threshold: f32,
    /// List the marked tokens with their activation, 0 to 10
    #[arg(long, help_heading = "Examples")]
    activations: bool,
    /// Ask the model to think aloud first
    #[arg(long, help_heading = "Examples")]
    cot: bool,
    /// List this many tokens that the feature makes likelier; reads the model's unembedding once per feature
    #[arg(long, default_value_t = 0, requires = "sae", help_heading = "Examples")]
    logits: usize,
    /// Sparse autoencoders, for --logits: a folder of HOOKPOINT/{cfg.json,sae.safetensors} or a Hub id
    #[arg(long, help_heading = "Examples")]
    sae: Option<String>,
    #[command(flatten)]
    features: FeatureArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    server: ServerArgs,
}

/// What makes a question of a feature.
struct Asker {
    hooks: BTreeMap<HookPoint, HookCache<'static>>,
    tokens: CachedTokens,
    tokenizer: Tokenizer,
    likelier: Option<Likelier>,
    picked: Picked,
    max_examples: usize,
    min_activating: usize,
    context: usize,
    style: TextStyle,
    instruction: Instruction,
}

/// What tells which tokens a feature makes likelier.
struct Likelier {
    unembedding: Unembedding,
    saes: BTreeMap<HookPoint, Sae>,
    /// The autoencoders by content: those of the cache, or their hashes.
    source: String,
    n: usize,
}

pub(crate) fn run(args: &TextArgs, common: &CommonArgs) -> Result<()> {
    let mut manifest = RunManifest::start(env!("CARGO_BIN_NAME"), env!("CARGO_PKG_VERSION"));
    manifest.seed = Some(common.seed);
    let world = common.world()?;
    manifest.world(world);
    let parts =
        TextParts { activations: args.activations, logits: args.logits > 0, chain_of_thought: args.cot };
    let instruction = Instruction::of(&args.server, prompt::text_instruction(parts))?;
    let cache = open_cache(&args.cache)?;
    let tokens = cache.tokens()?.with_context(|| {
        format!(
            "{} keeps no token ids: make it with `sae-cache text`, or with --keep-tokens",
            args.cache.display()
        )
    })?;
    let selection = args.features.wanted()?.among(stored(cache)?.into_iter(), world)?;
    let model = args.model()?;
    let asker = args.asker(cache, tokens, &model, &selection, instruction.clone(), common.seed)?;
    note_cache(&args.cache, &mut manifest)?;
    args.note_settings(common.seed, &mut manifest);
    asker.note_settings(&model, &mut manifest)?;
    let plan = Plan {
        label: "explaining",
        stage: EXPLAINED,
        path: &args.explanation_dir,
        run: &args.run,
        server: &args.server,
        instruction: &instruction,
        common,
    };
    let job = Job::open(plan, Once(parse::explanation), selection, Texts::default(), &mut manifest)?;
    let (summary, ()) = explain_kit::run(job, manifest, move |key| asker.question(key), publish)?;
    Ok(summary.print(&Nothing {})?)
}

impl TextArgs {
    /// The model's folder, with as much in it as is needed.
    fn model(&self) -> Result<PathBuf> {
        let mut patterns = vec!["tokenizer*", "special_tokens_map.json", "config.json"];
        if self.logits > 0 {
            patterns.extend(["*.safetensors", "*.safetensors.index.json"]);
        }
        Ok(hub::resolve(&self.model, RepoKind::Model, &patterns)?)
    }

    fn asker(
        &self,
        cache: &'static Cache,
        tokens: CachedTokens,
        model: &Path,
        selection: &Selection,
        instruction: Instruction,
        seed: u64,
    ) -> Result<Asker> {
        let n = self.max_examples as usize;
        let picked = match self.examples {
            // Some may be of images alone, or the same words again.
            Picks::Top => Picked::Top(2 * n),
            Picks::Random => Picked::Random { n, seed },
            Picks::Quantiles => Picked::TopAndQuantiles { top: n - n / 2, parts: n / 2, per_part: 1, seed },
        };
        Ok(Asker {
            hooks: hooks_of(cache, selection)?,
            tokens,
            tokenizer: Tokenizer::load(model)?,
            likelier: self.likelier(cache, model, selection)?,
            picked,
            max_examples: n,
            min_activating: self.min_activating,
            context: self.context as usize,
            style: TextStyle { threshold: self.threshold, activations: self.activations },
            instruction,
        })
    }

    fn likelier(&self, cache: &Cache, model: &Path, selection: &Selection) -> Result<Option<Likelier>> {
        let Some(source) = self.sae.as_deref().filter(|_| self.logits > 0) else { return Ok(None) };
        let unembedding = Unembedding::open(model)?;
        let root = hub::resolve(source, RepoKind::Model, &["*cfg.json", "*sae.safetensors"])?;
        let found = Sae::find(&root)?;
        let (mut saes, mut others) = (BTreeMap::new(), Vec::new());
        for hook in selection.hooks() {
            let folder = found.get(hook).with_context(|| format!("{source} has no autoencoder of {hook}"))?;
            let sae = Sae::load(folder)?;
            ensure!(
                sae.d_in() == unembedding.d_model(),
                "the autoencoder of {hook} writes vectors of {}, the model's unembedding reads {}: --logits needs one of the \
                 language model's residual stream",
                sae.d_in(),
                unembedding.d_model()
            );
            let width = cache.hook(hook)?.width();
            ensure!(
                sae.num_latents() == width,
                "the autoencoder of {hook} in {source} has {} latents, the cache was made with one of {width}",
                sae.num_latents()
            );
            let (then, now) =
                (&cache.manifest().hooks[hook].sae.sha256, hash_file(&folder.join("sae.safetensors"))?);
            if *then != now {
                if !then.is_empty() {
                    tracing::warn!(
                        "the autoencoder of {hook} in {source} is not the one the cache was made with"
                    );
                }
                others.push(format!("{hook} {now}"));
            }
            saes.insert(hook.clone(), sae);
        }
        let source = if others.is_empty() { "of the cache".to_owned() } else { others.join(", ") };
        Ok(Some(Likelier { unembedding, saes, source, n: self.logits }))
    }

    fn note_settings(&self, seed: u64, manifest: &mut RunManifest) {
        let picks =
            self.examples.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        manifest.settings.extend(
            [
                ("--max-examples", self.max_examples.to_string()),
                ("--min-activating", self.min_activating.to_string()),
                ("--examples", picks),
                ("--context", self.context.to_string()),
                ("--threshold", self.threshold.to_string()),
                ("--activations", self.activations.to_string()),
                ("--cot", self.cot.to_string()),
                ("--logits", self.logits.to_string()),
            ]
            .map(|(flag, value)| (flag.to_owned(), value)),
        );
        if self.examples != Picks::Top {
            manifest.settings.insert("--seed".to_owned(), seed.to_string());
        }
    }
}

impl Asker {
    /// Notes what was read of the model and the autoencoders, by content.
    fn note_settings(&self, model: &Path, manifest: &mut RunManifest) -> Result<()> {
        let mut note = |name: &str, value: String| drop(manifest.settings.insert(name.to_owned(), value));
        note("--model (SHA-256 of tokenizer.json)", hash_file(&model.join("tokenizer.json"))?);
        if let Some(likelier) = &self.likelier {
            note("--model (SHA-256 of the unembedding)", hash_bytes(likelier.unembedding.bytes()));
            note("--sae (SHA-256)", likelier.source.clone());
        }
        Ok(())
    }

    fn question(&self, key: &FeatureKey) -> Result<Prepared, Outcome> {
        let failed = |error: anyhow::Error| Outcome::Failed(format!("{error:#}"));
        let made = self.examples(key).map_err(failed)?;
        let (text, shown) = made.ok_or_else(|| {
            Outcome::Skipped(format!(
                "active in the text of fewer than {} samples",
                self.min_activating.max(1)
            ))
        })?;
        let messages = prompt::about_text(&text, &self.instruction.text);
        Ok(Prepared::Ask(Question::one(key, messages, shown, self.instruction.short_hash())))
    }

    /// The examples as text; `None` if there are too few.
    fn examples(&self, key: &FeatureKey) -> Result<Option<(String, Vec<Shown>)>> {
        let hook = hook_of(&self.hooks, &key.hook)?;
        let feature = hook.feature(key.feature)?;
        if explain::count_text_up_to(&feature, self.min_activating) < self.min_activating {
            return Ok(None);
        }
        let mut examples =
            explain::text_examples(&feature, &self.tokens, &self.tokenizer, self.picked, self.context)?;
        examples.truncate(self.max_examples);
        if examples.is_empty() {
            return Ok(None);
        }
        let likelier =
            self.likelier.as_ref().map(|likelier| likelier.tokens(key, &self.tokenizer)).transpose()?;
        let text = explain::write_examples(&examples, self.style, &likelier.unwrap_or_default());
        let shown = |example: &explain::TextExample| Shown::example(example.sample, f64::from(example.peak));
        Ok(Some((text, examples.iter().map(shown).collect())))
    }
}

impl Likelier {
    fn tokens(&self, key: &FeatureKey, tokenizer: &Tokenizer) -> Result<Vec<String>> {
        let sae = self.saes.get(&key.hook).with_context(|| format!("no autoencoder of {}", key.hook))?;
        let row = key.feature.index();
        let mut scratch = Vec::new();
        let direction = sae.decoder_weight().rows_f32(row..row + 1, &mut scratch).to_vec();
        let top = self.unembedding.top(&direction, self.n)?;
        top.into_iter().map(|(id, _)| Ok(tokenizer.decode(&[id], false)?)).collect()
    }
}
