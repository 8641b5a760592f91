//! [`NnError`]: what can go wrong between a device flag, a weights file and a loaded layer.

use std::path::PathBuf;

/// A tensor whose stored form is not the one the model needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The tensor's name in the file.
    pub name: String,
    /// The shape the model needs.
    pub expected: Vec<i64>,
    /// What the file holds: its shape, or its dtype where that cannot be read as numbers.
    pub got: String,
}

/// Why a device could not be opened or weights could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NnError {
    /// A device flag that is neither `cpu` nor `cuda` nor `cuda:N`.
    #[error("unknown device {text:?}: expected cpu, cuda or cuda:N")]
    UnknownDevice {
        /// What was given.
        text: String,
    },
    /// A dtype flag that is none of the known ones.
    #[error("unknown dtype {text:?}: expected f32, bf16 or f16")]
    UnknownDtype {
        /// What was given.
        text: String,
    },
    /// CUDA was asked for, and its part of libtorch cannot be loaded.
    #[error(
        "no CUDA: libtorch_cuda.so cannot be loaded; install a CUDA libtorch (cargo xtask setup --cuda) or use --device cpu"
    )]
    CudaLibrary {
        /// What the dynamic loader said.
        #[source]
        source: libloading::Error,
    },
    /// CUDA was asked for, and libtorch sees no usable GPU.
    #[error("no CUDA: libtorch finds no usable GPU and driver; use --device cpu")]
    NoGpu,
    /// The GPU asked for does not exist.
    #[error("no device cuda:{index}: this machine has {count} GPU(s), numbered from 0")]
    NoSuchGpu {
        /// The number asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A folder holds no weights.
    #[error(
        "{} holds neither model.safetensors nor model.safetensors.index.json (of some of the Hub's models only a pull request \
         does: OWNER/NAME@refs/pr/NUMBER)",
        folder.display()
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// A file is truncated, damaged or no safetensors file.
    #[error("{} is no sound safetensors file", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// An index of shards that is no JSON of the expected form.
    #[error("{} is no index of safetensors shards", path.display())]
    IndexJson {
        /// The index.
        path: PathBuf,
        /// What the JSON reader said.
        #[source]
        source: serde_json::Error,
    },
    /// An index of shards that contradicts the folder it lies in.
    #[error("{}: tensor {tensor} is said to be in {shard:?}, {reason}", path.display())]
    IndexEntry {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard its entry names.
        shard: String,
        /// What is wrong with that.
        reason: &'static str,
    },
    /// Two tensors of one name, in two shards or after renaming.
    #[error("{origin}: two tensors are named {name}")]
    Duplicate {
        /// Where the tensors come from.
        origin: String,
        /// The name.
        name: String,
    },
    /// The tensors present are not those the model needs.
    #[error("{}", describe(origin, missing, mismatched, unused))]
    Weights {
        /// Where the tensors come from.
        origin: String,
        /// Tensors the model needs and the source lacks.
        missing: Vec<String>,
        /// Tensors of another shape or dtype.
        mismatched: Vec<Mismatch>,
        /// Tensors the model has no use for.
        unused: Vec<String>,
    },
}

fn describe(origin: &str, missing: &[String], mismatched: &[Mismatch], unused: &[String]) -> String {
    let mismatched: Vec<String> = mismatched
        .iter()
        .map(|tensor| format!("{} (expected {:?}, got {})", tensor.name, tensor.expected, tensor.got))
        .collect();
    let faults = [("missing", missing), ("mis-shaped", &mismatched), ("unused", unused)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(fault, names)| format!("; {fault}: {}", names.join(", ")));
    format!("{origin}: the weights do not fit the configuration{}", faults.collect::<String>())
}
