//! [`SteeringError`].

use std::path::PathBuf;

use lmm_hooks::HookError;
use sae_core::SaeError;
use sae_torch::TorchSaeError;
use sae_types::{FeatureId, HookPoint};

/// Why a model cannot be steered so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SteeringError {
    /// There is no autoencoder at all.
    #[error("there is no sparse autoencoder to steer by")]
    NoAutoencoder,
    /// An autoencoder that cannot be read.
    #[error("cannot read the autoencoder {}", folder.display())]
    Read {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: Box<SaeError>,
    },
    /// An autoencoder that the device has no room for.
    #[error("cannot load the autoencoder of {hook}")]
    Place {
        /// Its hook point.
        hook: HookPoint,
        /// Why.
        #[source]
        source: Box<TorchSaeError>,
    },
    /// A model that lacks the hook point, or cannot be run.
    #[error("the model cannot be steered")]
    Model {
        /// Why.
        #[source]
        source: Box<HookError>,
    },
    /// An autoencoder of vectors of another length.
    #[error("the autoencoder of {hook} reads vectors of {got}, but the model gives {expected}")]
    Width {
        /// Its hook point.
        hook: HookPoint,
        /// The model's width.
        expected: i64,
        /// The autoencoder's.
        got: usize,
    },
    /// A transcoder, whose decoder does not write where it reads.
    #[error("{hook} has a transcoder; only autoencoders steer")]
    Transcoder {
        /// Its hook point.
        hook: HookPoint,
    },
    /// A hook point before the language model.
    #[error("{hook} is on the vision side, where there are tiles and no tokens to steer")]
    Vision {
        /// The hook point.
        hook: HookPoint,
    },
    /// A feature without its hook point, where there are several.
    #[error("say where feature {feature} is, HOOK:{feature}, one of {}", list(known))]
    Ambiguous {
        /// The feature.
        feature: FeatureId,
        /// The hook points there are.
        known: Vec<HookPoint>,
    },
    /// A hook point without an autoencoder.
    #[error("there is no autoencoder at {:?}; there are: {}", hook.as_str(), list(known))]
    UnknownHook {
        /// What was asked for.
        hook: HookPoint,
        /// The hook points there are.
        known: Vec<HookPoint>,
    },
    /// A feature that the autoencoder does not have.
    #[error("feature {feature} of {hook}: there are {width}, counted from 0")]
    UnknownFeature {
        /// The hook point.
        hook: HookPoint,
        /// What was asked for.
        feature: FeatureId,
        /// How many there are.
        width: usize,
    },
    /// A feature that is to be changed in two ways.
    #[error("feature {feature} of {hook} is named twice")]
    Twice {
        /// The hook point.
        hook: HookPoint,
        /// The feature.
        feature: FeatureId,
    },
    /// A value that the model's numbers cannot hold.
    #[error(
        "feature {feature} of {hook} cannot be held at {value:e}: the model's numbers go up to {largest:e}"
    )]
    Value {
        /// The hook point.
        hook: HookPoint,
        /// The feature.
        feature: FeatureId,
        /// What was asked for.
        value: f32,
        /// The largest there is.
        largest: f32,
    },
    /// A plan for tokens that there are none of.
    #[error("no token is both {place} and {time}: change one of the two")]
    Nowhere {
        /// The place asked for.
        place: crate::Where,
        /// The time asked for.
        time: crate::When,
    },
    /// Plans of one batch that no one pass can follow.
    #[error("all rows of a batch keep or drop the error term alike, and change features at the same stage")]
    Mixed,
}

fn list(hooks: &[HookPoint]) -> String {
    hooks.iter().map(HookPoint::as_str).collect::<Vec<_>>().join(", ")
}
