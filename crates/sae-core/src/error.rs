//! [`SaeError`]: everything that can go wrong with outside data.

use std::path::PathBuf;

use crate::WeightDtype;

/// What went wrong, with the file, tensor or field it concerns.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaeError {
    /// A file or folder that could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file or folder that could not be written; what stood there before still stands.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A `cfg.json` that is not JSON, lacks `d_in`, or has a value of the wrong type.
    #[error("{} is not the configuration of a sparse autoencoder", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The cause, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// A `cfg.json` whose fields cannot be used.
    #[error("cannot use {}", path.display())]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// Which field, and why.
        #[source]
        source: Box<SaeError>,
    },
    /// A configuration field out of range.
    #[error("field {field}: expected {expected}, got {got}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A configuration field that asks for another kind of autoencoder.
    #[error("field {field} is {got}: {reason}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// Its value.
        got: String,
        /// What that would mean, and what is supported.
        reason: &'static str,
    },
    /// A weight file that is truncated, damaged or not safetensors.
    #[error("{} is not a complete safetensors file; fetch or write it again", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: safetensors::SafeTensorError,
    },
    /// A tensor the file lacks.
    #[error("{} has no tensor {tensor}; it has {}", path.display(), present.join(", "))]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The tensor looked for.
        tensor: &'static str,
        /// The tensors there are.
        present: Vec<String>,
    },
    /// A tensor that an autoencoder of this configuration does not have, and whose meaning would be lost.
    #[error("{} holds tensor {tensor}, which an autoencoder as its cfg.json says does not have", path.display())]
    UnexpectedTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor whose shape contradicts `cfg.json`.
    #[error("{}: tensor {tensor} has shape {got:?}, cfg.json says {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: &'static str,
        /// The shape that follows from `cfg.json`.
        expected: Vec<usize>,
        /// The shape in the file.
        got: Vec<usize>,
    },
    /// A tensor stored as something else than numbers this crate reads.
    #[error("{}: tensor {tensor} is stored as {got}, expected F32, F16 or BF16", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: &'static str,
        /// The dtype in the file.
        got: String,
    },
    /// A tensor given to [`Sae::from_parts`](crate::Sae::from_parts) with the wrong number of elements.
    #[error("tensor {tensor} has {got} elements, shape {expected:?} needs {}", expected.iter().product::<usize>())]
    Length {
        /// The tensor.
        tensor: &'static str,
        /// The shape that follows from the configuration.
        expected: Vec<usize>,
        /// The number of elements given.
        got: usize,
    },
    /// A skip weight where the configuration has no skip connection, or none where it has one.
    #[error("field skip_connection is {skip_connection}, but the tensor W_skip is {}",
        if *skip_connection { "missing" } else { "given" })]
    SkipWeight {
        /// What the configuration says.
        skip_connection: bool,
    },
    /// A weight too large for the dtype it is to be saved in.
    #[error("tensor {tensor} holds {value}, which does not fit {dtype}; save as F32 or BF16")]
    Overflow {
        /// The tensor.
        tensor: &'static str,
        /// The weight.
        value: f32,
        /// The dtype asked for.
        dtype: WeightDtype,
    },
    /// An input vector with an entry that is infinite or not a number.
    #[error("input row {row} has {value} in column {column}, expected finite numbers")]
    InputNotFinite {
        /// The first such row.
        row: usize,
        /// Its first such column.
        column: usize,
        /// The entry.
        value: f32,
    },
    /// A pre-activation that overflowed, or that a weight which is not a number spoilt.
    #[error("input row {row} gives latent {latent} the pre-activation {value}, expected a finite number")]
    PreActivationNotFinite {
        /// The first such row.
        row: usize,
        /// Its first such latent.
        latent: usize,
        /// The pre-activation.
        value: f32,
    },
    /// A folder without any autoencoder.
    #[error("{} holds no sparse autoencoder: expected <hook point>/cfg.json, such as model.layers.24/cfg.json", root.display())]
    NoneFound {
        /// The folder.
        root: PathBuf,
    },
    /// An autoencoder in a folder whose name does not say where in the model it belongs.
    #[error("{} holds an autoencoder, but its name is no hook point such as model.layers.24; rename it or give its parent", folder.display())]
    NoHookPoint {
        /// The folder.
        folder: PathBuf,
    },
    /// A hook point trained with several seeds, where one must be chosen.
    #[error("{} holds one autoencoder per seed; give the folder of one of them, such as {}", folder.display(), first.display())]
    SeveralSeeds {
        /// The hook point's folder.
        folder: PathBuf,
        /// The first seed's folder.
        first: PathBuf,
    },
}
