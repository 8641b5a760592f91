//! What every lmm-sae binary that runs a model shares.
//!
//! * [`TorchArgs`]: `--device` and `--dtype`, to flatten into a binary's arguments.
//! * [`OpenModel`]: a model folder or Hub id, opened as the flags say, and the hidden states of prompts.
//! * [`SharedModel`]: one model, run by several threads at once.
//! * [`TokenArgs`]: which tokens of a prompt count.
//! * [`SampleBatches`]: a data set in batches of inputs, made ready in the background, bad records left out as allowed.
//! * [`evaluate`]: autoencoders against the live model.
//! * [`sample_inputs`]: a sample of a data set in the model's chat template.
//! * [`token_texts`]: what each token of a prompt looks like.
//!
//! It is a crate of its own, not a feature of `stage-kit`, because cargo builds a workspace with the features of all its
//! members together: binaries that need no model would be linked against libtorch.
//!
//! ```no_run
//! use model_kit::{OpenModel, TokenArgs, TorchArgs};
//!
//! let model = OpenModel::open("assets/shapes-lmm-s", TorchArgs::default())?;
//! let image = lmm_prep::decode_image_upright(&std::fs::read("scene.png")?)?;
//! let inputs = model.processor.prepare(model_kit::IMAGE_PROMPT, &[image])?;
//! let positions = TokenArgs::default().positions(&model.processor, &inputs);
//! let batch = model.batch(&[&inputs])?;
//! for (point, rows) in model.states(&batch, &[positions], &["model.layers.2".parse()?])? {
//!     println!("{point}: {:?}", rows.size()); // tokens without BOS, width
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod evaluate;
mod flags;
mod open;
mod saes;
mod samples;
mod shared;
mod texts;
mod tokens;

pub use error::ModelError;
pub use evaluate::evaluate;
pub use flags::{PrecisionArgs, TorchArgs};
pub use open::{IMAGE_PROMPT, ModelFolder, OpenModel};
pub use saes::{FittingSae, SaeFolders};
pub use samples::{LeftOut, SampleBatch, SampleBatches, sample_inputs};
pub use shared::SharedModel;
pub use texts::token_texts;
pub use tokens::{Roles, TokenArgs};
