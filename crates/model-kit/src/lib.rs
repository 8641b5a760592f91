//! What every lmm-sae binary that runs a model shares.
//!
//! * [`TorchArgs`]: `--device` and `--dtype`, to flatten into a binary's arguments.
//! * [`OpenModel`]: a model folder or Hub id, opened as the flags say, and the hidden states of prompts.
//! * [`sample_inputs`]: a sample of a data set in the model's chat template.
//!
//! It is a crate of its own, not a feature of `stage-kit`, because cargo builds a workspace with the features of all its
//! members together: binaries that need no model would be linked against libtorch.
//!
//! ```no_run
//! use model_kit::{OpenModel, TorchArgs};
//!
//! let model = OpenModel::open("assets/shapes-lmm-s", TorchArgs::default())?;
//! let image = lmm_prep::decode_image_upright(&std::fs::read("scene.png")?)?;
//! let inputs = model.processor.prepare(model_kit::IMAGE_PROMPT, &[image])?;
//! for (point, rows) in model.rows(&[&inputs], &["model.layers.2".parse()?])? {
//!     println!("{point}: {:?}", rows[0].size()); // tokens without BOS, width
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod flags;
mod open;

pub use error::ModelError;
pub use flags::TorchArgs;
pub use open::{IMAGE_PROMPT, OpenModel, counted_tokens, sample_inputs};
