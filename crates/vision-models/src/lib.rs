//! Vision models on libtorch: CLIP, whole or its image half alone, DINOv2, GroundingDINO and Segment Anything.
//!
//! * [`Clip`] is a model folder: pictures and texts become vectors of unit length, whose dot products are the cosines that CLIP
//!   scores are made of. [`ClipModel`] is the same without files, for training: its parts are differentiable.
//! * [`ClipVision`] is the image tower as transformers' `CLIPVisionModel` computes it, up to whichever hidden state is wanted:
//!   later layers are neither loaded nor computed. [`ClipText`] is the text tower. Their layers are one piece of code, DINOv2's
//!   too.
//! * [`ImageEncoder`] opens whichever of these models a folder holds, for scores that only compare pictures.
//! * [`grounding_dino`] finds in a picture what a phrase names; [`swin`] and [`bert`] are its encoders of picture and phrase.
//! * [`sam`] cuts out of a picture what lies in a box or at a point.
//!
//! The crate knows no model that generates text. What it computes is held against transformers 4.57 stage by stage (`tests/parity`),
//! on a CPU. On a GPU sums are taken in other orders; f32 stays f32, as convolutions there are kept from TF32 while no gradients are
//! asked for ([`torch_nn::Conv2d`]). Of detections and masks, a model that overflows (in f16) makes errors, not empty results.
//!
//! ```
//! use lmm_prep::ClipVisionConfig;
//! use torch_nn::Weights;
//! use torch_nn::tch::{Device, Kind, Tensor};
//! use vision_models::{ClipVision, parameter_shapes};
//!
//! let mut config = ClipVisionConfig::default();
//! (config.hidden_size, config.intermediate_size, config.num_attention_heads) = (8, 16, 2);
//! (config.num_hidden_layers, config.image_size, config.patch_size) = (3, 8, 4);
//!
//! let options = (Kind::Float, Device::Cpu);
//! let random = |(name, shape): (String, Vec<i64>)| (name, Tensor::randn(shape, options));
//! let weights = Weights::from_tensors(parameter_shapes(&config).into_iter().map(random).collect());
//! let tower = ClipVision::load_up_to(&weights.root(), &config, 2);
//! weights.finish()?;
//!
//! let pixels = Tensor::randn([1, 3, 8, 8], options);
//! assert_eq!(tower.hidden_states(&pixels, -2).size(), [1, 1 + 4, 8]); // after layer 2 of 3, class token first
//! # Ok::<(), torch_nn::NnError>(())
//! ```

pub mod bert;
mod clip;
mod dinov2;
mod encoder_layer;
mod error;
pub mod grounding_dino;
mod image_encoder;
mod pixels;
pub mod sam;
pub mod swin;

pub use clip::{
    Clip, ClipModel, ClipText, ClipVision, PooledClipVision, TokenBatch, parameter_shapes, state_index,
};
pub use dinov2::Dinov2;
pub use error::VisionError;
pub use image_encoder::ImageEncoder;
