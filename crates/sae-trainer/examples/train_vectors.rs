//! Trains on a file of vectors, for comparisons with other trainers.
//!
//! `x` `[n, d]`, F32, is gone through in order, `--batch` rows a step, from the start again at its end. With `w_enc` `[latents, d]` in the file
//! training starts there (`W_dec` its copy with rows of length 1), as another trainer can; with `y` `[n, d]` a transcoder is
//! trained. Prints one line of JSON a step, then one with the quantiles of the steps' time and the process's peak memory.
//!
//! ```text
//! cargo run --release -p sae-trainer --example train_vectors -- vectors.safetensors --latents 4096 -k 32 --steps 200
//! ```
#![expect(clippy::print_stdout, reason = "a program whose output is its figures")]

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use sae_core::{Activation, Sae, SaeConfig, SaeTensors, WeightDtype};
use sae_trainer::{
    BiasInit, Engine, Optimizer, Rows, Schedule, Selection, Trainer, TrainerConfig, geometric_median,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use tch::{Device, Kind, Tensor};

/// Train on a file of vectors and print loss and time of every step.
#[derive(Parser)]
#[expect(clippy::struct_excessive_bools, reason = "flags")]
struct Arguments {
    /// A safetensors file with `x` [n, d] and perhaps `w_enc` [latents, d] and `y` [n, d].
    vectors: PathBuf,
    /// Number of latents; not needed with `w_enc`.
    #[arg(long)]
    latents: Option<usize>,
    /// Codes a vector keeps.
    #[arg(short, default_value_t = 32)]
    k: usize,
    /// Vectors a step.
    #[arg(long, default_value_t = 2048)]
    batch: usize,
    /// Optimizer steps.
    #[arg(long, default_value_t = 100)]
    steps: u64,
    /// Peak learning rate, sparsify's law unless given.
    #[arg(long)]
    lr: Option<f64>,
    /// Steps over which the learning rate rises.
    #[arg(long, default_value_t = 0)]
    warmup: u64,
    /// How it falls.
    #[arg(long, value_enum, default_value = "linear")]
    schedule: ScheduleName,
    /// From gradients to changes.
    #[arg(long, value_enum, default_value = "adam")]
    optimizer: OptimizerName,
    /// Largest norm of all gradients; no clipping unless given.
    #[arg(long)]
    clip: Option<f64>,
    /// Where the decoder's bias starts.
    #[arg(long, value_enum, default_value = "mean")]
    bias: BiasName,
    /// Select over the whole batch.
    #[arg(long)]
    batch_topk: bool,
    /// Add 1/8 of the loss at 4k.
    #[arg(long)]
    multi_topk: bool,
    /// Weight of AuxK.
    #[arg(long, default_value_t = 0.0)]
    auxk: f64,
    /// Tokens after which a latent counts as dead.
    #[arg(long, default_value_t = 10_000_000)]
    dead_after: u64,
    /// Lengths of nested dictionaries.
    #[arg(long, value_delimiter = ',')]
    matryoshka: Vec<usize>,
    /// Parts of a batch that are worked on one after the other.
    #[arg(long, default_value_t = 1)]
    micro: u32,
    /// Give the first batch again and again, to time nothing else.
    #[arg(long)]
    repeat_timing: bool,
    /// Compute with libtorch instead of the kernels.
    #[arg(long)]
    libtorch: bool,
    /// Seed of the initial weights.
    #[arg(long, default_value_t = 42)]
    seed: u64,
    /// Save the autoencoder here.
    #[arg(long)]
    save: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum OptimizerName {
    Adam,
    Adam8bit,
    Signum,
}

#[derive(Clone, Copy, ValueEnum)]
enum ScheduleName {
    Linear,
    Cosine,
}

#[derive(Clone, Copy, ValueEnum)]
enum BiasName {
    Median,
    Mean,
    Zero,
}

/// A matrix of F32.
struct Matrix {
    rows: usize,
    width: usize,
    numbers: Vec<f32>,
}

fn matrix(tensors: &SafeTensors<'_>, name: &str) -> Result<Option<Matrix>> {
    let Ok(view) = tensors.tensor(name) else { return Ok(None) };
    ensure!(view.dtype() == Dtype::F32, "{name} is {:?}, expected F32", view.dtype());
    let &[rows, width] = view.shape() else { bail!("{name} is {:?}, expected a matrix", view.shape()) };
    let numbers = view.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    Ok(Some(Matrix { rows, width, numbers }))
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let bytes = std::fs::read(&arguments.vectors)
        .with_context(|| format!("cannot read {}", arguments.vectors.display()))?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let x = matrix(&tensors, "x")?.context("the file has no x")?;
    let y = matrix(&tensors, "y")?;
    let w_enc = matrix(&tensors, "w_enc")?;
    drop(bytes);
    let batch = arguments.batch.min(x.rows);
    let config = config(&arguments, &x, y.is_some(), w_enc.as_ref())?;
    let engine = if arguments.libtorch { Engine::Libtorch } else { Engine::Kernels };
    let mut trainer = match w_enc {
        None => Trainer::with_engine(config, Device::Cpu, engine)?,
        Some(w_enc) => {
            ensure!(y.is_none() && !arguments.libtorch, "w_enc is for autoencoders on the kernels");
            let first = Tensor::from_slice(&x.numbers[..batch * x.width]).reshape([-1, x.width as i64]);
            let bias = match arguments.bias {
                BiasName::Median => geometric_median(&first),
                BiasName::Mean => first.mean_dim([0_i64].as_slice(), false, Kind::Double),
                BiasName::Zero => first.get(0).zeros_like(),
            };
            let bias = Vec::try_from(bias.to_kind(Kind::Float))?;
            Trainer::from_sae(config, &tied(w_enc, bias, &arguments)?, Device::Cpu)?
        }
    };

    let batches = x.rows / batch;
    let of = |matrix: &Matrix, step: u64| {
        let index = if arguments.repeat_timing { 0 } else { step as usize % batches };
        let numbers = &matrix.numbers[index * batch * matrix.width..][..batch * matrix.width];
        Tensor::from_slice(numbers).reshape([batch as i64, matrix.width as i64])
    };
    let mut times = VecDeque::new();
    for step in 0..arguments.steps {
        let inputs = of(&x, step);
        let targets = y.as_ref().map(|y| of(y, step));
        let rows = Rows { inputs: &inputs, targets: targets.as_ref(), weights: None };
        if step == 0 {
            trainer.init(&rows)?;
        }
        let start = Instant::now();
        let report = trainer.step(&rows)?;
        let seconds = start.elapsed().as_secs_f64();
        times.push_back(seconds);
        let line = json!({
            "step": step, "loss": report.loss, "fvu": report.fvu, "l0": report.l0, "dead": report.dead_share, "seconds": seconds,
        });
        println!("{line}");
    }
    // The first step also fetches all memory from the system.
    if times.len() > 1 {
        times.pop_front();
    }
    let mut times: Vec<f64> = times.into();
    times.sort_unstable_by(f64::total_cmp);
    let quantile = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    let line = json!({
        "step_seconds": { "min": quantile(0.0), "p25": quantile(0.25), "median": quantile(0.5), "p75": quantile(0.75), "max": quantile(1.0) },
        "peak_rss_mib": peak_rss_mib(),
    });
    println!("{line}");
    if let Some(folder) = arguments.save {
        trainer.to_sae()?.save(&folder, WeightDtype::F32)?;
    }
    Ok(())
}

fn config(
    arguments: &Arguments,
    x: &Matrix,
    transcode: bool,
    w_enc: Option<&Matrix>,
) -> Result<TrainerConfig> {
    let latents = w_enc.map(|w_enc| w_enc.rows).or(arguments.latents);
    let latents = latents.context("--latents is needed where the file has no w_enc")?;
    let mut config = TrainerConfig::new(x.width, latents, arguments.k, arguments.steps);
    config.lr = arguments.lr;
    config.warmup_steps = arguments.warmup;
    config.schedule = match arguments.schedule {
        ScheduleName::Linear => Schedule::Linear,
        ScheduleName::Cosine => Schedule::Cosine,
    };
    config.optimizer = match arguments.optimizer {
        OptimizerName::Adam => Optimizer::Adam,
        OptimizerName::Adam8bit => Optimizer::Adam8bit,
        OptimizerName::Signum => Optimizer::Signum,
    };
    config.bias_init = match arguments.bias {
        BiasName::Median => BiasInit::GeometricMedian,
        BiasName::Mean => BiasInit::Mean,
        BiasName::Zero => BiasInit::Zero,
    };
    if arguments.batch_topk {
        config.activation = Selection::BatchTopK;
    }
    config.max_grad_norm = arguments.clip.unwrap_or(f64::INFINITY);
    config.multi_topk = arguments.multi_topk;
    config.auxk_alpha = arguments.auxk;
    config.dead_feature_threshold = arguments.dead_after;
    config.matryoshka.clone_from(&arguments.matryoshka);
    config.micro_acc_steps = arguments.micro;
    config.transcode = transcode;
    config.seed = arguments.seed;
    Ok(config)
}

/// The autoencoder with `w_enc`, whose decoder is its copy with rows of length 1, and with the decoder's bias.
fn tied(w_enc: Matrix, decoder_bias: Vec<f32>, arguments: &Arguments) -> Result<Sae> {
    let Matrix { rows, width, numbers } = w_enc;
    let mut decoder_weight = numbers.clone();
    for row in decoder_weight.chunks_mut(width) {
        let length = row.iter().map(|weight| f64::from(*weight).powi(2)).sum::<f64>().sqrt();
        for weight in row {
            *weight = (f64::from(*weight) / length) as f32;
        }
    }
    let tensors = SaeTensors {
        encoder_weight: numbers,
        encoder_bias: vec![0.0; rows],
        decoder_weight,
        decoder_bias,
        skip_weight: None,
    };
    let mut config = SaeConfig::new(width, rows, arguments.k);
    if arguments.batch_topk {
        config.activation = Activation::BatchTopK { threshold: 0.0 };
    }
    Ok(Sae::from_parts(config, tensors)?)
}

/// The most memory the process has held, where the system says so.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}
