//! Vision towers on libtorch: CLIP.
//!
//! [`ClipVision`] is the image half of CLIP as transformers' `CLIPVisionModel` computes it, up to whichever hidden
//! state is wanted: later layers are neither loaded nor computed. It knows no language model and no image file; pixels
//! come in resized and normalised (`lmm-prep`).
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

mod clip;

pub use clip::{ClipVision, parameter_shapes, state_index};
