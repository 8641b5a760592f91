//! The project's chores, run as `cargo xtask <chore>`: setup, demo, test, check, floors.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a chore's report is what it is run for")]

mod check;
mod demo;
mod file_rules;
mod floors;
mod project;
mod setup;
mod steps;
mod suite;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::project::{Project, Targets};
use crate::steps::Steps;

/// The chores of the lmm-sae workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install the libtorch the workspace is built against, unless it is there already.
    Setup {
        /// Take the whole wheel with its CUDA libraries (2.5 GB to download) instead of the CPU part.
        #[arg(long)]
        cuda: bool,
        /// Install again even if a usable libtorch is in place.
        #[arg(long)]
        force: bool,
        /// Install into this folder instead of the one LIBTORCH names (default: .libtorch).
        #[arg(long, value_name = "FOLDER")]
        to: Option<PathBuf>,
    },
    /// Run the whole pipeline on the embedded data set and model, and write one HTML page.
    Demo,
    /// Everything the project checks: setup, check, every test. This is what CI runs.
    Test,
    /// Format, floors, file rules, lints and documentation, cheapest first.
    Check,
    /// Check that dependencies between the workspace's crates point down only.
    Floors,
}

fn main() -> ExitCode {
    match run(Arguments::parse().chore) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Display, not Debug: the chain of causes without a backtrace.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> Result<()> {
    let project = Project::find()?;
    match chore {
        Chore::Setup { cuda, force, to } => {
            let flavour = if cuda { setup::Flavour::Cuda } else { setup::Flavour::Cpu };
            let existing = if force { setup::Existing::Replace } else { setup::Existing::Keep };
            setup::run(&project, flavour, existing, to.as_deref())
        }
        Chore::Demo => Steps::run("demo", |steps| demo::run(&project, steps, Targets::Binaries)),
        Chore::Test => Steps::run("test", |steps| suite::run(&project, steps)),
        Chore::Check => Steps::run("check", |steps| check::run(&project, steps)),
        Chore::Floors => floors::run(&project).map(|summary| println!("{summary}")),
    }
}
