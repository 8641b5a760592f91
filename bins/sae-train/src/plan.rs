//! What is trained: an autoencoder for every hook point and every combination of the flags that take several values.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lmm_hooks::LlavaNext;
use model_kit::{FittingSae, SaeFolders};
use sae_core::{Activation as Kind, Sae};
use sae_trainer::{Distribution, Engine, Selection, Trainer, TrainerConfig};
use sae_types::HookPoint;

use crate::args::{Activation, StageArgs};

/// One autoencoder to train.
#[derive(Debug)]
pub(crate) struct Planned {
    /// Its folder below the output folder: the hook point, below a folder for the variant where there are several.
    pub(crate) name: String,
    /// Whose output it reconstructs.
    pub(crate) hook: HookPoint,
    /// Where a transcoder reads.
    pub(crate) input: Option<HookPoint>,
    pub(crate) config: TrainerConfig,
    /// Where it starts from, with `--finetune`.
    pub(crate) start: Option<PathBuf>,
}

impl Planned {
    /// The hook points it needs the states of.
    pub(crate) fn points(&self) -> impl Iterator<Item = &HookPoint> {
        std::iter::once(&self.hook).chain(&self.input)
    }

    /// A trainer at its beginning, one of those of `distribution`.
    pub(crate) fn trainer(&self, device: tch::Device, distribution: Distribution) -> Result<Trainer> {
        let config = self.config.clone();
        let trainer = match &self.start {
            None => Trainer::distributed(config, device, Engine::usual(device), distribution)?,
            Some(folder) => Trainer::distributed_from_sae(config, &Sae::load(folder)?, device, distribution)?,
        };
        Ok(trainer)
    }
}

/// Values of the flags that may have several.
#[derive(Clone, Copy, Debug)]
struct Variant {
    latents: Latents,
    k: usize,
    activation: Activation,
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Latents {
    Number(usize),
    PerDimension(usize),
}

impl Latents {
    fn of(self, width: usize) -> Result<usize> {
        match self {
            Self::Number(latents) => Ok(latents),
            Self::PerDimension(factor) => width
                .checked_mul(factor)
                .context("--expansion-factor is too large for the width of the vectors"),
        }
    }
}

/// The autoencoders that the flags ask for, in the order of the hook points, and `steps` optimizer steps for each.
pub(crate) fn plan(args: &StageArgs, network: &LlavaNext, seed: u64, steps: u64) -> Result<Vec<Planned>> {
    let hooks = hook_points(args, network)?;
    if let Some(source) = &args.sae.finetune {
        return finetuned(args, network, &hooks, source, seed, steps);
    }
    let variants = variants(args, seed);
    let mut planned = Vec::new();
    for variant in &variants {
        for hook in &hooks {
            let width = network.width(hook)? as usize;
            let mut config = config(args, width, variant.latents.of(width)?, variant.k, steps)?;
            config.activation = variant.activation.into();
            config.seed = variant.seed;
            let name = match folder(variant, &variants) {
                None => hook.to_string(),
                Some(folder) => format!("{folder}/{hook}"),
            };
            planned.push(Planned {
                name,
                hook: hook.clone(),
                input: input(args, network, hook)?,
                config,
                start: None,
            });
        }
    }
    Ok(planned)
}

/// Autoencoders that go on from saved ones, whose width, k and kind they take.
fn finetuned(
    args: &StageArgs,
    network: &LlavaNext,
    hooks: &[HookPoint],
    source: &str,
    seed: u64,
    steps: u64,
) -> Result<Vec<Planned>> {
    let found = SaeFolders::find(source)?.only(hooks)?.load(network)?;
    hooks
        .iter()
        .map(|hook| {
            let FittingSae { sae, folder, .. } = &found[hook];
            let saved = sae.config();
            let width = saved.d_in;
            ensure!(
                saved.transcode == args.hooks.transcode,
                "{} is {} transcoder: {} --transcode",
                folder.display(),
                if saved.transcode { "a" } else { "no" },
                if saved.transcode { "give" } else { "leave out" },
            );
            let mut config = config(args, width, saved.num_latents, saved.k, steps)?;
            config.activation = match saved.activation {
                Kind::BatchTopK { .. } => Selection::BatchTopK,
                _ => Selection::TopK,
            };
            config.matryoshka.clone_from(&saved.matryoshka);
            config.skip_connection = saved.skip_connection;
            config.normalize_decoder = saved.normalize_decoder;
            config.seed = seed;
            let input = input(args, network, hook)?;
            Ok(Planned {
                name: hook.to_string(),
                hook: hook.clone(),
                input,
                config,
                start: Some(folder.clone()),
            })
        })
        .collect()
}

fn config(args: &StageArgs, width: usize, num_latents: usize, k: usize, steps: u64) -> Result<TrainerConfig> {
    let (sae, step) = (&args.sae, &args.step);
    let mut config = TrainerConfig::new(width, num_latents, k, steps);
    config.multi_topk = sae.multi_topk;
    config.auxk_alpha = sae.auxk_alpha;
    config.dead_feature_threshold = sae.dead_feature_threshold;
    config.transcode = args.hooks.transcode;
    config.skip_connection = sae.skip_connection;
    config.bias_init = sae.bias_init.into();
    config.centre = sae.centre;
    config.scale_norm = sae.scale_norm;
    config.optimizer = step.optimizer.into();
    config.lr = step.lr;
    config.warmup_steps = step.lr_warmup_steps.min(steps / 10);
    config.schedule = step.lr_schedule.into();
    config.grad_acc_steps =
        u32::try_from(step.grad_acc_steps.get()).context("--grad-acc-steps is too large")?;
    config.micro_acc_steps =
        u32::try_from(step.micro_acc_steps.get()).context("--micro-acc-steps is too large")?;
    config.max_grad_norm = step.max_grad_norm;
    config.matryoshka = prefixes(&sae.matryoshka, num_latents)?;
    config.validate()?;
    Ok(config)
}

/// Lengths of the nested dictionaries: the shares, rounded, and the whole.
fn prefixes(shares: &[f64], num_latents: usize) -> Result<Vec<usize>> {
    if shares.is_empty() {
        return Ok(Vec::new());
    }
    let lengths = shares.iter().map(|share| (share * num_latents as f64).round() as usize);
    let prefixes: BTreeSet<usize> = lengths.chain([num_latents]).collect();
    ensure!(
        prefixes.len() == shares.len() + 1 && !prefixes.contains(&0),
        "--matryoshka {shares:?} of {num_latents} latents gives the prefixes {prefixes:?}: choose shares that differ more"
    );
    Ok(prefixes.into_iter().collect())
}

fn input(args: &StageArgs, network: &LlavaNext, hook: &HookPoint) -> Result<Option<HookPoint>> {
    if args.hooks.transcode { Ok(Some(network.input_point(hook)?)) } else { Ok(None) }
}

fn hook_points(args: &StageArgs, network: &LlavaNext) -> Result<Vec<HookPoint>> {
    let flags = &args.hooks;
    let mut patterns = flags.hookpoints.clone();
    patterns.extend(flags.layers.iter().map(|&layer| HookPoint::layer(layer).to_string()));
    if patterns.is_empty() {
        let layers = network.config().text_config.num_hidden_layers;
        patterns.extend((0..layers).map(|layer| HookPoint::layer(layer).to_string()));
    }
    let stride = flags.layer_stride.map_or(1, std::num::NonZeroUsize::get);
    Ok(network.matching_points(&patterns)?.into_iter().step_by(stride).collect())
}

/// All combinations, each once.
fn variants(args: &StageArgs, seed: u64) -> Vec<Variant> {
    let flags = &args.sae;
    let latents: Vec<Latents> = if flags.num_latents.is_empty() {
        flags.expansion_factor.iter().map(|&factor| Latents::PerDimension(factor)).collect()
    } else {
        flags.num_latents.iter().map(|&latents| Latents::Number(latents)).collect()
    };
    let seeds = if flags.init_seeds.is_empty() { vec![seed] } else { flags.init_seeds.clone() };
    let mut variants = Vec::new();
    for latents in distinct(latents) {
        for k in distinct(flags.k.clone()) {
            for activation in distinct(flags.activation.clone()) {
                for seed in distinct(seeds.clone()) {
                    variants.push(Variant { latents, k, activation, seed });
                }
            }
        }
    }
    variants
}

fn distinct<T: PartialEq>(values: Vec<T>) -> Vec<T> {
    let mut kept = Vec::with_capacity(values.len());
    for value in values {
        if !kept.contains(&value) {
            kept.push(value);
        }
    }
    kept
}

/// The variant's folder: the values in which variants differ; none where there is one.
fn folder(variant: &Variant, all: &[Variant]) -> Option<String> {
    let mut parts = Vec::new();
    if all.iter().any(|other| other.latents != variant.latents) {
        parts.push(match variant.latents {
            Latents::Number(latents) => format!("latents-{latents}"),
            Latents::PerDimension(factor) => format!("expansion-{factor}"),
        });
    }
    if all.iter().any(|other| other.k != variant.k) {
        parts.push(format!("k-{}", variant.k));
    }
    if all.iter().any(|other| other.activation != variant.activation) {
        parts.push(match variant.activation {
            Activation::Topk => "topk".to_owned(),
            Activation::BatchTopk => "batch-topk".to_owned(),
        });
    }
    if all.iter().any(|other| other.seed != variant.seed) {
        parts.push(format!("seed-{}", variant.seed));
    }
    (!parts.is_empty()).then(|| parts.join("_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_name_what_differs() {
        let base = Variant { latents: Latents::Number(64), k: 4, activation: Activation::Topk, seed: 1 };
        assert_eq!(folder(&base, &[base]), None);
        let wider = Variant { latents: Latents::Number(128), ..base };
        assert_eq!(folder(&wider, &[base, wider]).unwrap(), "latents-128");
        let other = Variant { activation: Activation::BatchTopk, seed: 2, ..base };
        assert_eq!(folder(&other, &[base, other]).unwrap(), "batch-topk_seed-2");
        assert_eq!(folder(&base, &[base, other]).unwrap(), "topk_seed-1");
    }

    #[test]
    fn prefixes_end_with_the_whole_and_differ() {
        assert_eq!(prefixes(&[], 64).unwrap(), [0_usize; 0]);
        assert_eq!(prefixes(&[0.5, 0.25], 64).unwrap(), [16, 32, 64]);
        for bad in [&[0.001][..], &[0.5, 0.501], &[0.999]] {
            assert!(prefixes(bad, 64).is_err(), "{bad:?}");
        }
    }
}
