//! [`Encoder`]: layers in which image and text look at each other and then each at itself.

use torch_nn::tch::Tensor;
use torch_nn::{Activation, AttentionMask, LayerNorm, Linear, Scope};

use super::GroundingDinoConfig;
use super::attention::MultiheadAttention;
use super::deformable::DeformableAttention;
use super::features::FeatureMaps;
use super::fusion::FusionLayer;
use super::positions;
use super::text::TextBatch;
use crate::encoder_layer::activation;

/// What the encoder makes of image and text.
#[derive(Debug)]
pub struct Encoded {
    /// `[n, places, d_model]`.
    pub vision: Tensor,
    /// `[n, tokens, d_model]`.
    pub text: Tensor,
}

/// The encoder.
#[derive(Debug)]
pub(super) struct Encoder {
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    fusion: FusionLayer,
    text: TextLayer,
    vision: DeformableLayer,
}

#[derive(Debug)]
struct TextLayer {
    attention: MultiheadAttention,
    attention_norm: LayerNorm,
    mlp: Mlp,
}

#[derive(Debug)]
struct DeformableLayer {
    attention: DeformableAttention,
    attention_norm: LayerNorm,
    mlp: Mlp,
}

/// A wider layer and back, added to what went in and normalised.
#[derive(Debug)]
pub(super) struct Mlp {
    widen: Linear,
    activation: Activation,
    narrow: Linear,
    norm: LayerNorm,
}

impl Mlp {
    /// Takes `fc1` and `fc2` and the norm of the given name.
    pub(super) fn load(scope: &Scope<'_>, config: &GroundingDinoConfig, inner: usize, norm: &str) -> Self {
        let (width, inner) = (config.d_model as i64, inner as i64);
        Self {
            widen: Linear::load(&scope.sub("fc1"), width, inner, true),
            activation: activation(config.activation_function),
            narrow: Linear::load(&scope.sub("fc2"), inner, width, true),
            norm: LayerNorm::load(&scope.sub(norm), width, config.layer_norm_eps),
        }
    }

    pub(super) fn forward(&self, x: &Tensor) -> Tensor {
        let wide = self.activation.forward(&self.widen.forward(x));
        self.norm.forward(&(x + self.narrow.forward(&wide)))
    }
}

impl Encoder {
    pub(super) fn load(scope: &Scope<'_>, config: &GroundingDinoConfig) -> Self {
        let load = |index: usize| Layer::load(&scope.sub(format!("layers.{index}")), config);
        Self { layers: (0..config.encoder_layers).map(load).collect() }
    }

    /// Runs all layers; `observe` sees what comes out of each.
    pub(super) fn forward(
        &self,
        maps: &FeatureMaps,
        text: &Tensor,
        texts: &TextBatch,
        mut observe: impl FnMut(usize, &Encoded),
    ) -> Encoded {
        // [n, places, maps, 2]: every place is looked for at the same share of every map.
        let reference = maps.relative_centres().unsqueeze(2) * maps.valid_ratios().unsqueeze(1);
        let places = texts.positions.to_kind(reference.kind()).unsqueeze(-1);
        let text_positions = positions::of_values(&places, text.size()[2]).to_kind(text.kind());
        let within_phrases = texts.within_phrases();
        let mut state = Encoded { vision: maps.tokens.shallow_clone(), text: text.shallow_clone() };
        for (index, layer) in self.layers.iter().enumerate() {
            let (vision, text) = layer.fusion.forward(&state.vision, &state.text, maps, texts);
            state = Encoded {
                text: layer.text.forward(&text, &text_positions, &within_phrases),
                vision: layer.vision.forward(&vision, maps, &reference),
            };
            observe(index, &state);
        }
        state
    }
}

impl Layer {
    fn load(scope: &Scope<'_>, config: &GroundingDinoConfig) -> Self {
        let (width, heads) = (config.d_model as i64, config.encoder_attention_heads as i64);
        let norm =
            |scope: &Scope<'_>, name: &str| LayerNorm::load(&scope.sub(name), width, config.layer_norm_eps);
        let text = scope.sub("text_enhancer_layer");
        let vision = scope.sub("deformable_layer");
        let (levels, points) = (config.num_feature_levels as i64, config.encoder_n_points as i64);
        Self {
            fusion: FusionLayer::load(&scope.sub("fusion_layer"), config),
            text: TextLayer {
                attention: MultiheadAttention::load(&text.sub("self_attn"), width, heads / 2),
                attention_norm: norm(&text, "layer_norm_before"),
                mlp: Mlp::load(&text, config, config.encoder_ffn_dim / 2, "layer_norm_after"),
            },
            vision: DeformableLayer {
                attention: DeformableAttention::load(&vision.sub("self_attn"), width, levels, heads, points),
                attention_norm: norm(&vision, "self_attn_layer_norm"),
                mlp: Mlp::load(&vision, config, config.encoder_ffn_dim, "final_layer_norm"),
            },
        }
    }
}

impl TextLayer {
    fn forward(&self, text: &Tensor, positions: &Tensor, mask: &AttentionMask) -> Tensor {
        let placed = text + positions;
        let mixed = self.attention.forward(&placed, &placed, text, mask);
        self.mlp.forward(&self.attention_norm.forward(&(text + mixed)))
    }
}

impl DeformableLayer {
    fn forward(&self, vision: &Tensor, maps: &FeatureMaps, reference: &Tensor) -> Tensor {
        let placed = vision + &maps.positions;
        let mixed = self.attention.forward(&placed, vision, maps, reference);
        self.mlp.forward(&self.attention_norm.forward(&(vision + mixed)))
    }
}
