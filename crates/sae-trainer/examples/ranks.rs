//! One autoencoder trained on random vectors by several processes: how long a step takes, and what of it goes into collectives.
//!
//! ```text
//! cargo build --release -p sae-trainer --example ranks --features collectives/mpi
//! mpirun -n 2 target/release/examples/ranks --mode codes
//! ```
//!
//! Without mpirun it is one process. Rank 0 prints one line of JSON; bytes are payload that it received, per step, beside those of a
//! dense all-reduce of all gradients in a ring.
#![expect(clippy::print_stdout, reason = "an example")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use collectives::{Collective, Kind, Launch};
use sae_trainer::{Distribution, Engine, Exchange, Rows, Trainer, TrainerConfig};
use serde_json::json;
use tch::{Device, Kind as Number, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Codes,
    Gradients,
    Latents,
}

#[derive(Parser)]
struct Args {
    #[arg(long, value_enum, default_value_t = Mode::Codes)]
    mode: Mode,
    #[arg(long, default_value_t = 1024)]
    d_in: usize,
    #[arg(long, default_value_t = 16_384)]
    num_latents: usize,
    #[arg(long, default_value_t = 64)]
    k: usize,
    /// Rows of a batch, of all processes together
    #[arg(long, default_value_t = 2048)]
    rows: usize,
    #[arg(long, default_value_t = 8)]
    steps: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let (rank, size) =
        (variable("OMPI_COMM_WORLD_RANK").unwrap_or(0), variable("OMPI_COMM_WORLD_SIZE").unwrap_or(1));
    let launch = Launch { rank, size, timeout: Duration::from_mins(5), device: 0, rendezvous: None };
    let kind = if size == 1 { Kind::Single } else { Kind::Mpi };
    let team: Arc<dyn Collective> = Arc::from(collectives::open(kind, &launch)?);

    let mut config = TrainerConfig::new(args.d_in, args.num_latents, args.k, args.steps + 2);
    config.lr = Some(1e-4);
    let distribution = match args.mode {
        _ if size == 1 => Distribution::Alone,
        Mode::Codes => Distribution::Data { team: Arc::clone(&team), exchange: Exchange::Codes },
        Mode::Gradients => Distribution::Data { team: Arc::clone(&team), exchange: Exchange::Gradients },
        Mode::Latents => Distribution::Latents { team: Arc::clone(&team) },
    };
    tch::manual_seed(rank as i64);
    let own = (args.rows / size) as i64;
    let batch = Tensor::randn([own, args.d_in as i64], (Number::Float, Device::Cpu));
    let rows = Rows::new(&batch);
    let mut trainer = Trainer::distributed(config, Device::Cpu, Engine::Kernels, distribution)?;
    trainer.init(&rows)?;
    trainer.step(&rows)?;

    team.barrier()?;
    let (before, start) = (team.traffic(), Instant::now());
    for _ in 0..args.steps {
        trainer.step(&rows)?;
    }
    let (after, seconds) = (team.traffic(), start.elapsed().as_secs_f64());
    team.barrier()?;
    if rank == 0 {
        let steps = args.steps as f64;
        let parameters = args.num_latents * (2 * args.d_in + 1) + args.d_in;
        let dense = 8 * parameters * (size - 1) / size;
        let in_collectives = after.seconds - before.seconds;
        println!(
            "{}",
            json!({
                "mode": format!("{:?}", args.mode), "processes": size, "rows": args.rows,
                "step_milliseconds": 1000.0 * seconds / steps,
                "in_collectives_milliseconds": 1000.0 * in_collectives / steps,
                "share": in_collectives / seconds,
                "calls": (after.calls - before.calls) as f64 / steps,
                "received_bytes": (after.received_bytes - before.received_bytes) as f64 / steps,
                "dense_all_reduce_bytes": dense,
            })
        );
    }
    Ok(())
}
