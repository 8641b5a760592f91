//! `--device` and `--dtype`, for the binaries that run a model.

use torch_nn::{DeviceChoice, DtypeChoice};

/// Where a model runs and in which number type: flatten it into a binary's arguments.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct TorchArgs {
    /// Where to run: cpu, cuda or cuda:N.
    #[arg(long, default_value = "cpu", global = true)]
    pub device: DeviceChoice,
    /// Number type of the model: f32, bf16 or f16.
    #[arg(long, default_value = "f32", global = true)]
    pub dtype: DtypeChoice,
}
