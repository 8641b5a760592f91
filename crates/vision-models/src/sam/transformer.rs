//! [`TwoWayTransformer`]: tokens attend to each other and to the image, and the image to the tokens.

use torch_nn::tch::Tensor;
use torch_nn::{Activation, AttentionMask, LayerNorm, Linear, Scope, attention, merge_heads, split_heads};

use super::config::{LAYER_DOWNSAMPLE_RATE, SamMaskDecoderConfig};
use crate::encoder_layer::activation;

/// Epsilon of the norm after the last attention; Python leaves it at PyTorch's default.
const FINAL_NORM_EPSILON: f64 = 1e-5;

#[derive(Debug)]
pub(super) struct TwoWayTransformer {
    layers: Vec<TwoWayLayer>,
    last: CrossAttention,
    last_norm: LayerNorm,
}

#[derive(Debug)]
struct TwoWayLayer {
    among_tokens: CrossAttention,
    norm1: LayerNorm,
    token_to_image: CrossAttention,
    norm2: LayerNorm,
    widen: Linear,
    activation: Activation,
    narrow: Linear,
    norm3: LayerNorm,
    image_to_token: CrossAttention,
    norm4: LayerNorm,
}

/// Attention whose queries, keys and values may be narrower than what they are made of.
#[derive(Debug)]
struct CrossAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    head_dim: i64,
}

impl TwoWayTransformer {
    pub(super) fn load(scope: &Scope<'_>, config: &SamMaskDecoderConfig) -> Self {
        let layers = scope.sub("layers");
        let layer = |index: usize| TwoWayLayer::load(&layers.sub(index.to_string()), config);
        let last = scope.sub("final_attn_token_to_image");
        Self {
            layers: (0..config.num_hidden_layers).map(layer).collect(),
            last: CrossAttention::load(&last, config, config.attention_downsample_rate),
            last_norm: LayerNorm::load(
                &scope.sub("layer_norm_final_attn"),
                config.hidden_size as i64,
                FINAL_NORM_EPSILON,
            ),
        }
    }

    /// Of `tokens [prompts, tokens, width]`, and of the image and its places `[1, patches, width]`: tokens and image of each
    /// prompt. As long as all prompts see the same image, it is projected once for all of them.
    pub(super) fn forward(&self, tokens: &Tensor, image: &Tensor, places: &Tensor) -> (Tensor, Tensor) {
        let (mut queries, mut keys) = (tokens.shallow_clone(), image.shallow_clone());
        for (index, layer) in self.layers.iter().enumerate() {
            (queries, keys) = layer.forward(index == 0, &queries, &keys, tokens, places);
        }
        let attended = self.last.forward(&(&queries + tokens), &(&keys + places), &keys);
        (self.last_norm.forward(&(queries + attended)), keys)
    }
}

impl TwoWayLayer {
    fn load(scope: &Scope<'_>, config: &SamMaskDecoderConfig) -> Self {
        let (width, inner) = (config.hidden_size as i64, config.mlp_dim as i64);
        let norm = |name| LayerNorm::load(&scope.sub(name), width, config.layer_norm_eps);
        let attention = |name, rate| CrossAttention::load(&scope.sub(name), config, rate);
        Self {
            among_tokens: attention("self_attn", 1),
            norm1: norm("layer_norm1"),
            token_to_image: attention("cross_attn_token_to_image", LAYER_DOWNSAMPLE_RATE),
            norm2: norm("layer_norm2"),
            widen: Linear::load(&scope.sub("mlp.lin1"), width, inner, true),
            activation: activation(config.hidden_act),
            narrow: Linear::load(&scope.sub("mlp.lin2"), inner, width, true),
            norm3: norm("layer_norm3"),
            image_to_token: attention("cross_attn_image_to_token", LAYER_DOWNSAMPLE_RATE),
            norm4: norm("layer_norm4"),
        }
    }

    /// The first layer's queries are the tokens themselves: these are not added again, and what attention makes of them
    /// takes their place.
    fn forward(
        &self,
        is_first: bool,
        queries: &Tensor,
        keys: &Tensor,
        tokens: &Tensor,
        places: &Tensor,
    ) -> (Tensor, Tensor) {
        let queries = if is_first {
            self.among_tokens.forward(queries, queries, queries)
        } else {
            let placed = queries + tokens;
            queries + self.among_tokens.forward(&placed, &placed, queries)
        };
        let queries = self.norm1.forward(&queries);
        let placed_keys = keys + places;
        let attended = self.token_to_image.forward(&(&queries + tokens), &placed_keys, keys);
        let queries = self.norm2.forward(&(queries + attended));
        let wide = self.activation.forward(&self.widen.forward(&queries));
        let queries = self.norm3.forward(&(&queries + self.narrow.forward(&wide)));
        let attended = self.image_to_token.forward(&placed_keys, &(&queries + tokens), &queries);
        let keys = self.norm4.forward(&(keys + attended));
        (queries, keys)
    }
}

impl CrossAttention {
    fn load(scope: &Scope<'_>, config: &SamMaskDecoderConfig, downsample_rate: usize) -> Self {
        let width = config.hidden_size as i64;
        let inner = (config.hidden_size / downsample_rate) as i64;
        let inwards = |name: &str| Linear::load(&scope.sub(name), width, inner, true);
        Self {
            query: inwards("q_proj"),
            key: inwards("k_proj"),
            value: inwards("v_proj"),
            output: Linear::load(&scope.sub("out_proj"), inner, width, true),
            head_dim: inner / config.num_attention_heads as i64,
        }
    }

    /// Of `[n or 1, .., width]` each; the side with one batch serves all of the other.
    fn forward(&self, query: &Tensor, key: &Tensor, value: &Tensor) -> Tensor {
        let batch = query.size()[0].max(key.size()[0]);
        let heads = |projection: &Linear, x: &Tensor| {
            split_heads(&projection.forward_rows(x), self.head_dim).expand([batch, -1, -1, -1], false)
        };
        let (query, key, value) =
            (heads(&self.query, query), heads(&self.key, key), heads(&self.value, value));
        let mixed = attention(&query, &key, &value, &AttentionMask::Full);
        self.output.forward_rows(&merge_heads(&mixed))
    }
}
