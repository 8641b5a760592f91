//! DINOv2: a vision transformer that was trained without words.

use std::collections::BTreeMap;

use lmm_prep::Dinov2Config;
use torch_nn::tch::{Kind, Tensor};
use torch_nn::{AttentionMask, Conv2d, LayerNorm, Scope};

use crate::encoder_layer::{LayerNames, LayerSizes, PreNormLayer, layer_shapes};

/// DINOv2 as transformers' `Dinov2Model` computes it, for square images of one size.
#[derive(Debug)]
pub struct Dinov2 {
    class_token: Tensor,
    patches: Conv2d,
    /// For the size it takes, `[1, 1 + patches, width]`.
    positions: Tensor,
    layers: Vec<PreNormLayer>,
    last_norm: LayerNorm,
    side: i64,
}

impl Dinov2 {
    /// Takes a scope that holds `embeddings`, `encoder` and `layernorm`, for images of `side` pixels: where the position
    /// embeddings were made for another size, they are stretched as transformers does it.
    ///
    /// # Panics
    /// When `side` is less than a patch.
    #[track_caller]
    pub fn load(scope: &Scope<'_>, config: &Dinov2Config, side: usize) -> Self {
        let width = config.hidden_size as i64;
        let patch = config.patch_size as i64;
        assert!(side as i64 >= patch, "images of {side} pixels given to a tower with patches of {patch}");
        let embeddings = scope.sub("embeddings");
        // Only training masks patches.
        embeddings.skip("mask_token");
        let own = config.patches_per_side() as i64;
        let positions = embeddings.tensor("position_embeddings", &[1, own * own + 1, width]);
        let encoder = scope.sub("encoder.layer");
        let sizes = sizes(config);
        Self {
            class_token: embeddings.tensor("cls_token", &[1, 1, width]),
            patches: Conv2d::load(
                &embeddings.sub("patch_embeddings.projection"),
                config.num_channels as i64,
                width,
                patch,
                true,
            )
            .stride(patch),
            positions: stretched(&positions, own, side as i64 / patch),
            layers: (0..config.num_hidden_layers)
                .map(|index| PreNormLayer::load(&encoder.sub(index.to_string()), &LayerNames::DINOV2, &sizes))
                .collect(),
            last_norm: LayerNorm::load(&scope.sub("layernorm"), width, config.layer_norm_eps),
            side: side as i64,
        }
    }

    /// The hidden state `layer` of `pixels [n, 3, side, side]` as transformers' `output_hidden_states` lists them, before the
    /// last norm: `[n, 1 + patches, width]`, class token first; 0 is the embedding. Differentiable.
    ///
    /// # Panics
    /// When the pixels have another shape or there is no such layer.
    #[track_caller]
    pub fn hidden_states(&self, pixels: &Tensor, layer: usize) -> Tensor {
        assert!(layer <= self.layers.len(), "hidden state {layer} of {} layers", self.layers.len());
        let embedded = self.embed(pixels);
        self.layers[..layer]
            .iter()
            .fold(embedded, |hidden, layer| layer.forward(&hidden, &AttentionMask::Full))
    }

    /// The class token of `pixels [n, 3, side, side]` behind the last norm, `[n, width]`: transformers' `pooler_output`. The last
    /// layer computes no other token. Differentiable.
    ///
    /// # Panics
    /// When the pixels have another shape.
    #[track_caller]
    pub fn pooled(&self, pixels: &Tensor) -> Tensor {
        let Some(last) = self.layers.last() else {
            return self.last_norm.forward(&self.embed(pixels).select(1, 0));
        };
        let hidden = self.hidden_states(pixels, self.layers.len() - 1);
        let class = last.forward_at(&hidden.narrow(1, 0, 1), &hidden, &AttentionMask::Full);
        self.last_norm.forward(&class.squeeze_dim(1))
    }

    /// Names and shapes of every tensor that transformers 4.57 writes when it saves a `Dinov2Model` of this configuration.
    pub fn parameter_shapes(config: &Dinov2Config) -> BTreeMap<String, Vec<i64>> {
        let (width, patch) = (config.hidden_size as i64, config.patch_size as i64);
        let own = config.patches_per_side() as i64;
        let mut shapes: BTreeMap<String, Vec<i64>> = [
            ("embeddings.cls_token", vec![1, 1, width]),
            ("embeddings.mask_token", vec![1, width]),
            ("embeddings.position_embeddings", vec![1, own * own + 1, width]),
            ("embeddings.patch_embeddings.projection.bias", vec![width]),
            (
                "embeddings.patch_embeddings.projection.weight",
                vec![width, config.num_channels as i64, patch, patch],
            ),
            ("layernorm.bias", vec![width]),
            ("layernorm.weight", vec![width]),
        ]
        .map(|(name, shape)| (name.to_owned(), shape))
        .into();
        for layer in 0..config.num_hidden_layers {
            layer_shapes(&LayerNames::DINOV2, &sizes(config), |name, shape| {
                shapes.insert(format!("encoder.layer.{layer}.{name}"), shape);
            });
        }
        shapes
    }

    #[track_caller]
    fn embed(&self, pixels: &Tensor) -> Tensor {
        let size = pixels.size();
        let side = self.side;
        assert!(
            size.len() == 4 && size[1..] == [3, side, side],
            "pixels {size:?} given to a tower for [n, 3, {side}, {side}]"
        );
        let patches = self.patches.forward(pixels).flatten(2, 3).transpose(1, 2);
        let class = self.class_token.to_kind(patches.kind()).expand([size[0], 1, -1], false);
        Tensor::cat(&[class, patches], 1) + &self.positions
    }
}

/// The position embeddings of a square of `from` patches for one of `to`: bicubic, aligned by edges, in f32; the class token's
/// stays.
fn stretched(positions: &Tensor, from: i64, to: i64) -> Tensor {
    if from == to {
        return positions.shallow_clone();
    }
    let width = positions.size()[2];
    let class = positions.narrow(1, 0, 1);
    let grid = positions.narrow(1, 1, from * from).reshape([1, from, from, width]).permute([0, 3, 1, 2]);
    let grid = grid.to_kind(Kind::Float).upsample_bicubic2d([to, to], false, None, None);
    let grid = grid.to_kind(positions.kind()).permute([0, 2, 3, 1]).reshape([1, to * to, width]);
    Tensor::cat(&[class, grid], 1)
}

fn sizes(config: &Dinov2Config) -> LayerSizes {
    LayerSizes {
        width: config.hidden_size,
        inner: config.intermediate_size(),
        heads: config.num_attention_heads,
        epsilon: config.layer_norm_eps,
        activation: config.hidden_act,
        qkv_bias: config.qkv_bias,
    }
}
