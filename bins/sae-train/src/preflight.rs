//! What a run will need, before it starts: parameters, memory, disk.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use lmm_hooks::LlavaNext;
use lmm_prep::{LlavaNextConfig, Processor};
use mm_data::Concat;
use model_kit::TorchArgs;
use sae_trainer::{MemoryEstimate, TrainerConfig};
use stage_kit::{HostMemory, format_bytes, free_disk};
use tch::Device;
use torch_nn::DeviceChoice;

use crate::args::{Distribute, StageArgs};
use crate::plan::Planned;
use crate::team::Team;

/// Tokens whose logits an evaluation holds at once.
const LOGIT_ROWS: u64 = 1024;

/// More than fit into any memory, and few enough to count bytes with.
const MOST_TOKENS: u64 = 1 << 36;
/// Samples looked at to know how long they are.
const PROBED: usize = 8;

/// What a run needs, and what there is.
#[derive(Debug)]
pub(crate) struct Needs {
    /// Autoencoder, latents, k, parameters.
    autoencoders: Vec<(String, usize, usize, u64)>,
    steps: u64,
    tokens_per_pass: u64,
    /// What takes memory where the model runs, of one process.
    memory: Vec<(&'static str, u64)>,
    /// Memory there is, and where; unknown on some systems.
    has_memory: (Option<u64>, String),
    /// Processes that share this memory.
    sharing: usize,
    /// Whether some of it is for measuring autoencoders of which no process has the whole.
    gathers: bool,
    disk: Vec<(&'static str, u64)>,
    has_disk: Option<u64>,
    folder: PathBuf,
}

/// Predicts a run's needs from its flags, the model's configuration and `longest`, the tokens of the longest of some samples: the memory of
/// one process of `team`, the disk of all. `device` is absent where a dry run is made for a machine that has another.
#[expect(clippy::too_many_arguments, reason = "each is one thing that a run is made of")]
pub(crate) fn estimate(
    args: &StageArgs,
    config: &LlavaNextConfig,
    torch: TorchArgs,
    device: Option<Device>,
    planned: &[Planned],
    team: &Team,
    steps: u64,
    longest: usize,
) -> Result<Needs> {
    let kind = torch.dtype.kind();
    let on_cpu = torch.device == DeviceChoice::Cpu;
    let text = &config.text_config;
    let tokens = (longest as u64).saturating_mul(args.data.batch_size.get() as u64).min(MOST_TOKENS);
    let own = args.data.batch_size.get().div_ceil(team.size());
    let at_once = args.data.forward_batch_size.map_or(own, |size| size.get().min(own));
    let forward = (longest as u64).saturating_mul(at_once as u64).min(MOST_TOKENS);
    let element = kind.elt_size_in_bytes() as u64;
    let (width, inner) = (text.hidden_size as u64, text.intermediate_size as u64);
    let weights = LlavaNext::parameter_bytes(config, kind, args.run.precision.weights())?;
    let points =
        planned.iter().flat_map(Planned::points).collect::<std::collections::BTreeSet<_>>().len() as u64;
    let whole: Vec<MemoryEstimate> = planned.iter().map(|planned| planned.config.memory()).collect();
    let estimates: Vec<MemoryEstimate> = team.own_parts(planned).iter().map(TrainerConfig::memory).collect();
    let sum_of = |estimates: &[MemoryEstimate], of: fn(&MemoryEstimate) -> usize| {
        estimates.iter().map(|estimate| of(estimate) as u64).sum::<u64>()
    };
    let sum = |of| sum_of(&estimates, of);
    let largest = |of: &dyn Fn(&MemoryEstimate) -> usize| estimates.iter().map(of).max().unwrap_or(0) as u64;
    let part = (tokens as usize).div_ceil(args.step.micro_acc_steps.get());
    // One trainer works at a time.
    let working = largest(&|estimate| {
        let on_device = if on_cpu { 0 } else { estimate.gradient_temporaries + estimate.pre_activations };
        estimate.per_token_bytes * part + on_device
    });
    let parameters = sum(|estimate| estimate.parameters);
    let gathers =
        args.team.distribute == Distribute::Latents && team.size() > 1 && args.run.eval_examples > 0;
    // As `evaluate` gives them out: each process loads the whole of those that it measures.
    let mut measured = vec![0; if gathers { team.size() } else { 1 }];
    if gathers {
        let ranks = measured.len();
        for (index, estimate) in whole.iter().enumerate() {
            measured[index % ranks] += estimate.parameters as u64;
        }
    }
    let measured = measured.into_iter().max().unwrap_or(0);
    let memory = vec![
        ("model", weights),
        // Residual stream, norms, attention's in- and outputs, the three inner vectors of the MLP.
        ("forward pass, about", forward * (10 * width + 3 * inner) * element),
        ("hidden states", tokens * width * 4 * points),
        ("autoencoders", parameters),
        ("optimizer", sum(|estimate| estimate.optimizer_state)),
        ("gradients", sum(|estimate| estimate.gradients)),
        ("a step's buffers", working),
        ("evaluation and saving, about", parameters + measured + 3 * LOGIT_ROWS * text.vocab_size as u64 * 4),
    ];
    let parameters = sum_of(&whole, |estimate| estimate.parameters);
    let state = parameters
        + sum_of(&whole, |estimate| estimate.optimizer_state)
        + sum_of(&whole, |estimate| estimate.gradients);
    let mut disk = vec![("autoencoders", parameters)];
    if args.run.save_every > 0 {
        // A new checkpoint is whole before the old one goes.
        disk.push(if args.run.resume {
            ("another checkpoint", parameters + state)
        } else {
            ("two checkpoints", 2 * (parameters + state))
        });
    }
    if args.run.eval_every > 0 {
        disk.push(("the best autoencoders", parameters));
    }
    let folder = args.run.save_dir.clone();
    let has_memory = if on_cpu {
        (HostMemory::now().map(|memory| memory.available), "this machine".to_owned())
    } else {
        (device.and_then(torch_nn::device_memory).map(|(free, _)| free), torch.device.to_string())
    };
    Ok(Needs {
        autoencoders: planned
            .iter()
            .zip(&whole)
            .map(|(planned, estimate)| {
                (
                    planned.name.clone(),
                    planned.config.num_latents,
                    planned.config.k,
                    estimate.parameters as u64 / 4,
                )
            })
            .collect(),
        steps,
        tokens_per_pass: forward,
        memory,
        has_memory,
        sharing: if on_cpu { team.on_this_machine()? } else { 1 },
        gathers,
        has_disk: free_disk(&folder).ok(),
        disk,
        folder,
    })
}

/// The tokens of the longest of the first few samples that can be read.
pub(crate) fn longest(dataset: &Concat, processor: &Processor, order: impl Iterator<Item = u32>) -> usize {
    let tokens = order.take(PROBED).filter_map(|number| {
        let sample = dataset.get(number as usize).ok()?;
        Some(model_kit::sample_inputs(processor, &sample).ok()?.input_ids.len())
    });
    tokens.max().unwrap_or(0)
}

fn total(parts: &[(&str, u64)]) -> u64 {
    parts.iter().map(|(_, bytes)| bytes).sum()
}

impl Needs {
    /// Whether the run can start.
    pub(crate) fn fits(&self) -> Result<()> {
        let (one, disk) = (total(&self.memory), total(&self.disk));
        let memory = one.saturating_mul(self.sharing as u64);
        if let (Some(has), place) = &self.has_memory
            && memory > *has
        {
            let each = match self.sharing {
                1 => String::new(),
                processes => format!(" ({} for each of {processes} processes)", format_bytes(one)),
            };
            let whole =
                if self.gathers { ", or --eval-examples 0, which measures no whole autoencoder" } else { "" };
            let fewer = if self.sharing > 1 { ", fewer processes on a machine" } else { "" };
            bail!(
                "this run needs about {}{each} of memory, {place} has {} free: lower --batch-size, raise \
                 --micro-acc-steps, use --optimizer adam8bit, --load-in-8bit, --dtype bf16 or fewer latents{fewer}{whole}",
                format_bytes(memory),
                format_bytes(*has)
            );
        }
        if let Some(has) = self.has_disk
            && disk > has
        {
            bail!(
                "this run writes about {}, the disk of {} has {} free: free some, use another --save-dir, or \
                 --save-every 0, which does without checkpoints",
                format_bytes(disk),
                self.folder.display(),
                format_bytes(has)
            );
        }
        Ok(())
    }
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, latents, k, parameters) in &self.autoencoders {
            writeln!(f, "{name}: {latents} latents, k {k}, {parameters} parameters")?;
        }
        writeln!(
            f,
            "{} optimizer steps, up to {} tokens per forward pass",
            self.steps, self.tokens_per_pass
        )?;
        let mut table = |title: &str, parts: &[(&str, u64)], has: Option<u64>, place: &str| {
            writeln!(f, "\n{title}")?;
            for (name, bytes) in parts {
                writeln!(f, "  {name:30} {:>10}", format_bytes(*bytes))?;
            }
            let free = has.map_or_else(|| "unknown".to_owned(), format_bytes);
            writeln!(f, "  {:30} {:>10}   free on {place}: {free}", "in all", format_bytes(total(parts)))
        };
        let memory = match self.sharing {
            1 => "memory".to_owned(),
            processes => format!("memory of each of {processes} processes"),
        };
        table(&memory, &self.memory, self.has_memory.0, &self.has_memory.1)?;
        table("disk", &self.disk, self.has_disk, &self.folder.display().to_string())
    }
}
