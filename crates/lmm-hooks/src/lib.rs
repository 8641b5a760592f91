//! LLaVA-NeXT on libtorch with named hook points: read, replace, stop, generate.
//!
//! [`LlavaNext`] is transformers' `LlavaNextForConditionalGeneration` with a Llama, Vicuna, Mistral or Qwen2 text model
//! and a CLIP tower, loaded strictly from a folder in Hugging Face layout ([`LlavaNext::load`]) or built on tensors in
//! memory ([`LlavaNext::from_weights`]). Inputs come from `lmm-prep` and are padded into a [`Batch`].
//!
//! Every module worth looking at has a [`HookPoint`], named relative to the language model as msae does:
//!
//! | hook point | tensor |
//! |---|---|
//! | `vision_tower.vision_model.encoder.layers.{i}` | tower layer's output, `[n_tiles, 1 + patches, tower width]`; up to the layer whose features are used |
//! | `multi_modal_projector` | image embeddings, `[n_tiles, patches, width]`, before tiles are packed into rows |
//! | `model.embed_tokens` | input embeddings with the images merged in, `[batch, tokens, width]` |
//! | `model.layers.{i}` | decoder layer's output |
//! | `model.layers.{i}.input_layernorm`, `.self_attn`, `.post_attention_layernorm`, `.mlp` | that module's output, before it is added to the residual stream |
//! | `model.norm` | what the output head reads |
//!
//! [`Hooks`] say what happens there. A pass that stops after its last hook computes nothing more: neither later layers
//! nor logits, and no language model at all for a hook in the tower.
//!
//! A pass can be taken up between two layers any number of times ([`LlavaNext::run_up_to`], [`LlavaNext::run_on`]), and
//! [`LlavaNext::gradients`] says how a score depends on the states at some hook points.
//!
//! A model that is only read fits in less memory with [`WeightPrecision::Int8`]; [`LlavaNext::quantisation`] says how far its
//! matrices are from the stored ones.
//!
//! Forward passes are differentiable; [`LlavaNext::hidden_states`] and [`LlavaNext::generate`] turn gradients off
//! themselves. On the CPU equal inputs give equal bits. This crate knows no sparse autoencoder, file of samples or flag.
//!
//! ```
//! use std::collections::BTreeMap;
//! use lmm_hooks::{Batch, GenerationOptions, HookPoint, Hooks, LlavaNext, PaddingSide};
//! use lmm_prep::{ClipVisionConfig, Inputs, LlavaNextConfig, TextConfig, TextFamily, TokenLayout};
//! use torch_nn::Weights;
//! use torch_nn::tch::{Device, Kind, Tensor};
//!
//! // A model of random numbers; `LlavaNext::load(folder, &LoadOptions::default())` reads a real one.
//! let mut text = TextConfig::new(TextFamily::Llama);
//! (text.vocab_size, text.hidden_size, text.intermediate_size, text.head_dim) = (50, 16, 32, 8);
//! (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads) = (3, 2, 1);
//! let mut vision = ClipVisionConfig::default();
//! (vision.hidden_size, vision.intermediate_size, vision.num_attention_heads) = (8, 16, 2);
//! (vision.num_hidden_layers, vision.image_size, vision.patch_size) = (2, 8, 4);
//! let config = LlavaNextConfig::new(text, vision);
//! let random = |(name, shape): (String, Vec<i64>)| (name, Tensor::randn(shape, (Kind::Float, Device::Cpu)));
//! let tensors: BTreeMap<_, _> = LlavaNext::parameter_shapes(&config).into_iter().map(random).collect();
//! let model = LlavaNext::from_weights(config, &Weights::from_tensors(tensors))?;
//!
//! // `lmm_prep::Processor::prepare` makes inputs of a prompt and its images.
//! let layout = TokenLayout { images: Vec::new(), n_tokens: 4 };
//! let inputs = Inputs { input_ids: vec![1, 7, 8, 9], images: Vec::new(), layout, turns: Vec::new() };
//! let batch = Batch::new(&[&inputs], 0, Device::Cpu, Kind::Float, PaddingSide::Left)?;
//!
//! // Read layer 1: layer 2 and the logits are not computed.
//! let point = HookPoint::layer(1);
//! let states = model.hidden_states(&batch, &[point.clone()])?;
//! assert_eq!(states[&point].size(), [1, 4, 16]);
//!
//! // Switch a layer's MLP off and write on.
//! let mut hooks = Hooks::new().replace("model.layers.0.mlp".parse()?, |_, tensor| tensor.zeros_like());
//! let text = model.generate(&batch, &GenerationOptions::greedy(5, vec![2]), &mut hooks)?;
//! assert!(text[0].len() <= 5);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
mod cache;
mod decoder;
mod error;
mod generation;
mod hooks;
mod layout;
mod midway;
mod model;
mod options;
mod points;
mod sampling;

pub use batch::{Batch, PaddingSide};
pub use error::HookError;
pub use generation::{Generation, NewToken};
pub use hooks::{HookContext, Hooks, Phase};
pub use midway::{Gradients, Midway};
pub use model::{LlavaNext, LoadOptions, Output};
pub use options::{GenerationOptions, Sampling};
pub use sae_types::HookPoint;
pub use torch_nn::{Quantisation, WeightPrecision};
