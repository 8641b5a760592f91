//! Serve a LLaVA-NeXT model behind OpenAI's chat interface, steered by a sparse autoencoder if asked to.

mod api;
mod args;
mod engine;
mod key;
mod media;
mod metrics;
mod prepare;
mod problem;
mod queue;
mod request;
mod row;
mod server;
mod service;
mod steer;
mod tokens;
mod work;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    stage_kit::main_with(|| {
        let args = args::Args::parse();
        args.common.init_logging();
        service::run(&args)
    })
}
