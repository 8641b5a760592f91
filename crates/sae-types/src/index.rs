//! Index newtypes: a feature, a sample and a token position cannot be mixed up.

use serde::{Deserialize, Serialize};

macro_rules! index {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl $name {
            /// The index as a `usize`, for slices.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<u32> for $name {
            fn from(value: u32) -> Self {
                Self(value)
            }
        }
    };
}

index! {
    /// One latent of a sparse autoencoder, `0 .. num_latents`.
    FeatureId
}
index! {
    /// One record of a data set, in the data set's own order.
    SampleId
}
index! {
    /// One position of a sample's token sequence, after image placeholders were expanded; 0 is the first token (BOS, if any).
    TokenIndex
}
