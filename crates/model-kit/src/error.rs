//! The errors of this crate.

use std::path::PathBuf;

use sae_types::HookPoint;

/// Why a model could not be opened or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The device asked for is not there.
    #[error("cannot use --device {device}")]
    Device {
        /// The flag.
        device: torch_nn::DeviceChoice,
        /// What is wrong with it.
        #[source]
        source: Box<torch_nn::NnError>,
    },
    /// The model is neither a local folder nor a Hub repository that can be had.
    #[error("cannot find the model {model}")]
    Find {
        /// The argument.
        model: String,
        /// What was tried.
        #[source]
        source: Box<mm_data::DataError>,
    },
    /// The folder's processor files are unsound.
    #[error("cannot read the processor of {}", folder.display())]
    Processor {
        /// The model folder.
        folder: PathBuf,
        /// The file and what is wrong with it.
        #[source]
        source: Box<lmm_prep::PrepError>,
    },
    /// The folder's configuration or weights are unsound.
    #[error("cannot load the model {}", folder.display())]
    Network {
        /// The model folder.
        folder: PathBuf,
        /// The file or tensor and what is wrong with it.
        #[source]
        source: Box<lmm_hooks::HookError>,
    },
    /// A forward pass failed.
    #[error("cannot run the model {}", folder.display())]
    Run {
        /// The model folder.
        folder: PathBuf,
        /// The hook point or input and what is wrong with it.
        #[source]
        source: Box<lmm_hooks::HookError>,
    },
    /// The autoencoders are neither in a local folder nor in a Hub repository that can be had.
    #[error("cannot find the autoencoders {saes}")]
    FindSaes {
        /// The argument.
        saes: String,
        /// What was tried.
        #[source]
        source: Box<mm_data::DataError>,
    },
    /// A folder that holds no autoencoder, or an unsound one.
    #[error("cannot read an autoencoder of {}", folder.display())]
    ReadSae {
        /// The folder.
        folder: PathBuf,
        /// The file and what is wrong with it.
        #[source]
        source: Box<sae_core::SaeError>,
    },
    /// A hook point without an autoencoder.
    #[error("{saes} has no autoencoder for {hook}, it has {}", list(known))]
    NoSae {
        /// The argument.
        saes: String,
        /// The hook point asked for.
        hook: HookPoint,
        /// Those there are.
        known: Vec<HookPoint>,
    },
    /// An autoencoder of a hook point that the model does not have, or cannot feed.
    #[error("the model has no place for the autoencoder {}", folder.display())]
    SaeHook {
        /// The autoencoder's folder.
        folder: PathBuf,
        /// What the model lacks.
        #[source]
        source: Box<lmm_hooks::HookError>,
    },
    /// An autoencoder of another width than the model.
    #[error("the autoencoder {} reads vectors of {got}, the model gives {expected} at {hook}", folder.display())]
    SaeWidth {
        /// The autoencoder's folder.
        folder: PathBuf,
        /// Its hook point.
        hook: HookPoint,
        /// The model's width.
        expected: i64,
        /// The autoencoder's.
        got: usize,
    },
    /// A file that could not be hashed.
    #[error("cannot note what is read")]
    Hash {
        /// The file and what is wrong with it.
        #[source]
        source: Box<stage_kit::KitError>,
    },
    /// Hidden states of tokens were asked of the vision side, which knows tiles only.
    #[error(
        "{point} is on the vision side, where there are tiles and no tokens: choose a point such as model.layers.0"
    )]
    VisionPoint {
        /// The hook point.
        point: HookPoint,
    },
    /// A sample could not be read.
    #[error(transparent)]
    Data(#[from] mm_data::DataError),
    /// An evaluation failed.
    #[error("cannot evaluate the autoencoders")]
    Evaluate {
        /// The autoencoder or hook point and what is wrong with it.
        #[source]
        source: Box<sae_eval::EvalError>,
    },
}

fn list(hooks: &[HookPoint]) -> String {
    hooks.iter().map(HookPoint::as_str).collect::<Vec<_>>().join(", ")
}
