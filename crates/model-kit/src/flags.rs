//! `--device` and `--dtype`, for the binaries that run a model.

use lmm_hooks::WeightPrecision;
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

/// How a model's weights are held: flatten it into a binary's arguments.
#[derive(Clone, Copy, Debug, Default, serde::Serialize, clap::Args)]
#[serde(rename_all = "kebab-case")]
pub struct PrecisionArgs {
    /// Hold the language model's matrices in 8 bits; the error this makes is reported
    #[arg(long)]
    pub load_in_8bit: bool,
}

impl PrecisionArgs {
    /// What that asks of the weights.
    pub fn weights(self) -> WeightPrecision {
        if self.load_in_8bit { WeightPrecision::Int8 } else { WeightPrecision::Full }
    }
}
