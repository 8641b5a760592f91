//! The flags that `run` and `sweep` share: the model, the manner of steering, and how text is written.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use anyhow::Result;
use lmm_hooks::{GenerationOptions, Sampling};
use lmm_prep::GenerationConfig;
use model_kit::{ModelFolder, OpenModel, PrecisionArgs, SaeFolders, TorchArgs};
use sae_types::HookPoint;
use stage_kit::{RunManifest, UsageError, hash_file};
use steering::{ErrorTerm, Mode, Plan, Stage, Steerer, When, Where};
use tch::Kind;

#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// LLaVA-NeXT model: a folder in Hugging Face layout or a Hub id
    pub(crate) model: String,
    /// Sparse autoencoders: a folder of HOOKPOINT/{cfg.json,sae.safetensors} or a Hub id
    #[arg(long)]
    pub(crate) sae: String,
    #[command(flatten)]
    pub(crate) precision: PrecisionArgs,
    #[command(flatten)]
    pub(crate) torch: TorchArgs,
}

/// Whose behaviour is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Compat {
    /// multimodal-sae: features are set before TopK on all of the prompt, and the reconstruction takes the hidden state's place on
    /// every token of prompt and answer; the autoencoder computes in f32
    Msae,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MannerArgs {
    /// What is done to a feature: clamp (it has the value), add (the value is added, on or not), scale (its activation times the
    /// value), ablate (it is off), orthogonal (its direction in the hidden state is replaced by the value), cap (at most the value)
    #[arg(long, default_value_t, help_heading = "Steering")]
    pub(crate) mode: Mode,
    /// On which tokens: all, image, text, last (of the prompt), generated
    #[arg(long = "where", default_value_t, value_name = "PLACE", help_heading = "Steering")]
    place: Where,
    /// In which part: prefill (the prompt), decoding (the answer), both
    #[arg(long = "when", default_value_t, value_name = "TIME", help_heading = "Steering")]
    time: When,
    /// Keep what the autoencoder does not reconstruct; this is the default
    #[arg(long, conflicts_with = "drop_error", help_heading = "Steering")]
    keep_error: bool,
    /// Put the reconstruction in the hidden state's place on every token
    #[arg(long, help_heading = "Steering")]
    drop_error: bool,
    /// Change features before the autoencoder chooses the k largest, not after
    #[arg(long, help_heading = "Steering")]
    before_topk: bool,
    /// Steer as another project does
    #[arg(
        long,
        value_enum,
        conflicts_with_all = ["mode", "place", "time", "keep_error", "drop_error", "before_topk"],
        help_heading = "Steering"
    )]
    pub(crate) compat: Option<Compat>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct WritingArgs {
    /// Longest answer, in tokens; never longer than the model's context has room for
    #[arg(long, default_value_t = NonZeroUsize::new(512).expect("512 is not 0"), help_heading = "Writing")]
    pub(crate) max_new_tokens: NonZeroUsize,
    /// 0 for the likeliest token; above, tokens are drawn
    #[arg(long, default_value_t = 0.0, value_parser = temperature, help_heading = "Writing")]
    temperature: f64,
    /// Draw from the smallest set of tokens with this much probability
    #[arg(long, default_value_t = 1.0, help_heading = "Writing")]
    top_p: f64,
    /// Draw from this many of the likeliest tokens
    #[arg(long, help_heading = "Writing")]
    top_k: Option<NonZeroUsize>,
    /// Logits of tokens that were there before are divided by this
    #[arg(long, default_value_t = 1.0, help_heading = "Writing")]
    repetition_penalty: f64,
}

/// A model with the autoencoders to steer it by.
pub(crate) struct Steered {
    pub(crate) model: OpenModel,
    pub(crate) steerer: Steerer,
    /// What ends an answer.
    pub(crate) generation: GenerationConfig,
    /// Where the autoencoders lie.
    saes: SaeFolders,
}

/// A number that is not negative, nor infinite.
fn temperature(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "expected a number from 0".to_owned())
}

impl ModelArgs {
    /// Opens both, of the autoencoders those that are wanted.
    pub(crate) fn open(&self, wanted: impl Fn(&HookPoint) -> bool, manner: &MannerArgs) -> Result<Steered> {
        let saes = SaeFolders::find(&self.sae)?;
        let hooks: Vec<HookPoint> = saes.folders().keys().filter(|hook| wanted(hook)).cloned().collect();
        if hooks.is_empty() {
            let known = saes.folders().keys().map(HookPoint::as_str).collect::<Vec<_>>().join(", ");
            let problem = format!(
                "none of the hook points asked for has an autoencoder: {} has {known}",
                saes.root().display()
            );
            return Err(UsageError::new(problem).into());
        }
        let saes = saes.only(&hooks)?;
        let folder = ModelFolder::find(&self.model)?;
        let generation = folder.generation_config()?;
        let model = folder.load(self.torch, self.precision.weights())?;
        let kind = if manner.compat.is_some() { Kind::Float } else { model.network.kind() };
        let steerer = Steerer::load(saes.folders(), &model.network, kind)?;
        Ok(Steered { model, steerer, generation, saes })
    }
}

impl Steered {
    /// Notes model and autoencoders, by hash.
    pub(crate) fn note(&self, args: &ModelArgs, run: &mut RunManifest) -> Result<()> {
        run.input("model", &args.model, hash_file(&self.model.folder.join("config.json"))?);
        Ok(self.saes.note(run)?)
    }

    /// The options for an answer to a prompt of `length` tokens: not longer than the model's context has room for.
    pub(crate) fn fitting(&self, options: &GenerationOptions, length: usize) -> Result<GenerationOptions> {
        let context = self.model.network.config().text_config.max_position_embeddings;
        let Some(room) = context.checked_sub(length).filter(|&room| room > 0) else {
            let problem =
                format!("the prompt is {length} tokens long, the model reads {context}, its answer included");
            return Err(UsageError::new(problem).into());
        };
        Ok(GenerationOptions { max_new_tokens: options.max_new_tokens.min(room), ..options.clone() })
    }
}

impl MannerArgs {
    /// A plan without changes.
    pub(crate) fn plan(&self) -> Plan {
        match self.compat {
            Some(Compat::Msae) => Plan::msae(),
            None => Plan {
                place: self.place,
                time: self.time,
                stage: if self.before_topk { Stage::BeforeTopK } else { Stage::AfterTopK },
                error: if self.drop_error { ErrorTerm::Drop } else { ErrorTerm::Keep },
                ..Plan::default()
            },
        }
    }

    /// What decides how a feature changes, by flag.
    pub(crate) fn settings(&self) -> BTreeMap<String, String> {
        let plan = self.plan();
        let stage = if plan.stage == Stage::BeforeTopK { "before" } else { "after" };
        let error = if plan.error == ErrorTerm::Drop { "dropped" } else { "kept" };
        [
            ("--mode", self.mode.to_string()),
            ("--where", plan.place.to_string()),
            ("--when", plan.time.to_string()),
            ("error term", error.to_owned()),
            ("TopK", stage.to_owned()),
            ("--compat", self.compat.map_or("not set", |_| "msae").to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

impl WritingArgs {
    /// How an answer is written, and by what it ends.
    pub(crate) fn options(&self, generation: &GenerationConfig, seed: u64) -> GenerationOptions {
        let sampling = if self.temperature > 0.0 {
            let (temperature, top_p, top_k) =
                (self.temperature, self.top_p, self.top_k.map(NonZeroUsize::get));
            Sampling::Sample { temperature, top_p, top_k, seed }
        } else {
            Sampling::Greedy
        };
        GenerationOptions {
            sampling,
            repetition_penalty: self.repetition_penalty,
            ..GenerationOptions::greedy(self.max_new_tokens.get(), generation.eos_token_id.clone())
        }
    }

    /// What decides an answer, by flag.
    pub(crate) fn settings(&self, seed: u64) -> BTreeMap<String, String> {
        let seed = if self.temperature > 0.0 { seed.to_string() } else { "of no account".to_owned() };
        [
            ("--seed", seed),
            ("--max-new-tokens", self.max_new_tokens.to_string()),
            ("--temperature", self.temperature.to_string()),
            ("--top-p", self.top_p.to_string()),
            ("--top-k", self.top_k.map_or("not set".to_owned(), |k| k.to_string())),
            ("--repetition-penalty", self.repetition_penalty.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        manner: MannerArgs,
    }

    #[test]
    fn msae_is_a_manner_of_its_own() {
        let plan = |flags: &str| {
            let flags = std::iter::once("x").chain(flags.split_whitespace());
            Flags::try_parse_from(flags).map(|flags| flags.manner.plan())
        };
        assert_eq!(plan("").unwrap(), Plan::default());
        assert_eq!(plan("--compat msae").unwrap(), Plan::msae());
        let other = plan("--where image --when prefill --drop-error --before-topk").unwrap();
        assert_eq!(other, Plan { place: Where::Image, ..Plan::msae() });
        assert!(plan("--compat msae --drop-error").is_err() && plan("--where sky").is_err());
    }

    #[test]
    fn temperatures_are_not_negative() {
        for good in ["0", "0.7", "1e2"] {
            assert!(temperature(good).is_ok(), "{good}");
        }
        for bad in ["-1", "-0.1", "inf", "NaN", "warm"] {
            assert!(temperature(bad).is_err(), "{bad}");
        }
    }
}
