//! The two key layouts of LLaVA-NeXT checkpoints, and the tensors transformers writes.

use std::collections::BTreeMap;

use lmm_prep::LlavaNextConfig;
use torch_nn::WeightPrecision;
use torch_nn::tch::Kind;

use crate::model::feature_state;
use crate::{HookError, LlavaNext};

/// Which names a checkpoint uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `language_model.model.layers…`, `language_model.lm_head`, `vision_tower…`: what transformers saves, before and
    /// since it changed its modules around.
    Saved,
    /// `model.language_model.layers…`, `lm_head`, `model.vision_tower…`: the module paths of transformers 4.52 on.
    Modules,
}

impl Layout {
    pub(crate) fn detect<'a>(mut names: impl Iterator<Item = &'a str>) -> Self {
        if names.any(|name| name.starts_with("model.language_model.")) { Self::Modules } else { Self::Saved }
    }

    pub(crate) fn decoder(self) -> &'static str {
        match self {
            Self::Saved => "language_model.model",
            Self::Modules => "model.language_model",
        }
    }

    pub(crate) fn head(self) -> &'static str {
        match self {
            Self::Saved => "language_model.lm_head",
            Self::Modules => "lm_head",
        }
    }

    pub(crate) fn tower(self) -> &'static str {
        match self {
            Self::Saved => "vision_tower.vision_model",
            Self::Modules => "model.vision_tower.vision_model",
        }
    }

    pub(crate) fn projector(self) -> &'static str {
        match self {
            Self::Saved => "multi_modal_projector",
            Self::Modules => "model.multi_modal_projector",
        }
    }

    pub(crate) fn newline(self) -> &'static str {
        match self {
            Self::Saved => "image_newline",
            Self::Modules => "model.image_newline",
        }
    }
}

impl LlavaNext {
    /// Names and shapes of every tensor that transformers 4.57 writes when it saves a model of this configuration.
    pub fn parameter_shapes(config: &LlavaNextConfig) -> BTreeMap<String, Vec<i64>> {
        let (text, layout) = (&config.text_config, Layout::Saved);
        let (width, inner) = (text.hidden_size as i64, text.intermediate_size as i64);
        let head_dim = text.head_dim as i64;
        let queries = text.num_attention_heads as i64 * head_dim;
        let keys = text.num_key_value_heads as i64 * head_dim;
        let mut shapes = BTreeMap::new();
        let mut linear = |name: String, outputs: i64, inputs: i64, bias: bool| {
            if bias {
                shapes.insert(format!("{name}.bias"), vec![outputs]);
            }
            shapes.insert(format!("{name}.weight"), vec![outputs, inputs]);
        };
        let bias = config.multimodal_projector_bias;
        let projector = layout.projector();
        linear(format!("{projector}.linear_1"), width, config.vision_config.hidden_size as i64, bias);
        linear(format!("{projector}.linear_2"), width, width, bias);
        let decoder = layout.decoder();
        for layer in 0..text.num_hidden_layers {
            let at = |name: &str| format!("{decoder}.layers.{layer}.{name}");
            linear(at("self_attn.q_proj"), queries, width, text.qkv_bias());
            linear(at("self_attn.k_proj"), keys, width, text.qkv_bias());
            linear(at("self_attn.v_proj"), keys, width, text.qkv_bias());
            linear(at("self_attn.o_proj"), width, queries, text.output_bias());
            linear(at("mlp.gate_proj"), inner, width, text.mlp_bias);
            linear(at("mlp.up_proj"), inner, width, text.mlp_bias);
            linear(at("mlp.down_proj"), width, inner, text.mlp_bias);
        }
        linear(format!("{decoder}.embed_tokens"), text.vocab_size as i64, width, false);
        if !text.tie_word_embeddings {
            linear(layout.head().to_owned(), text.vocab_size as i64, width, false);
        }
        for layer in 0..text.num_hidden_layers {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                shapes.insert(format!("{decoder}.layers.{layer}.{norm}.weight"), vec![width]);
            }
        }
        shapes.insert(format!("{decoder}.norm.weight"), vec![width]);
        shapes.insert(layout.newline().to_owned(), vec![width]);
        for (name, shape) in vision_models::parameter_shapes(&config.vision_config) {
            shapes.insert(format!("{}.{name}", layout.tower()), shape);
        }
        shapes
    }
    /// The bytes of the tensors that [`LlavaNext::load`] keeps of a model of this configuration, in dtype `kind`: without the
    /// layers of the tower past the one used, and without what a forward pass takes.
    ///
    /// # Errors
    /// When the configuration names a layer of the tower that is not there.
    pub fn parameter_bytes(
        config: &LlavaNextConfig,
        kind: Kind,
        precision: WeightPrecision,
    ) -> Result<u64, HookError> {
        let state = feature_state(config)?;
        let tower = format!("{}.", Layout::Saved.tower());
        let layers = format!("{}.layers.", Layout::Saved.decoder());
        let is_unused = |name: &str| {
            name.strip_prefix(&tower).is_some_and(|rest| match rest.strip_prefix("encoder.layers.") {
                Some(rest) => rest
                    .split('.')
                    .next()
                    .and_then(|layer| layer.parse().ok())
                    .is_some_and(|layer: usize| layer >= state),
                None => rest.starts_with("post_layernorm."),
            })
        };
        let bytes = |name: &str, shape: &[i64]| {
            let count = shape.iter().product::<i64>() as u64;
            match (precision, shape) {
                // A byte per entry and an f32 scale per output.
                (WeightPrecision::Int8, [outputs, _]) if name.starts_with(&layers) => {
                    count + 4 * *outputs as u64
                }
                _ => count * kind.elt_size_in_bytes() as u64,
            }
        };
        let shapes = Self::parameter_shapes(config);
        Ok(shapes.iter().filter(|(name, _)| !is_unused(name)).map(|(name, shape)| bytes(name, shape)).sum())
    }
}
