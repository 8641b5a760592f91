//! CLIP's vision tower.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::ControlFlow;

use lmm_prep::ClipVisionConfig;
use torch_nn::tch::Tensor;
use torch_nn::{AttentionMask, LayerNorm, Scope};

use crate::encoder_layer::{LayerNames, LayerSizes, PreNormLayer, layer_shapes};

/// CLIP's vision transformer, or its first layers.
#[derive(Debug)]
pub struct ClipVision {
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Tensor,
    first_norm: LayerNorm,
    layers: Vec<PreNormLayer>,
    layers_in_config: usize,
    image_size: i64,
    patch_size: i64,
}

/// Resolves `vision_feature_layer` the way Python indexes `hidden_states`, a list of `num_hidden_layers + 1`: 0 is the
/// embedding, `i` the output of layer `i - 1`, negative numbers count from the end. `None` when it is out of range.
pub fn state_index(num_hidden_layers: usize, layer: i64) -> Option<usize> {
    let states = num_hidden_layers as i64 + 1;
    let index = if layer < 0 { states + layer } else { layer };
    (0..states).contains(&index).then_some(index as usize)
}

impl ClipVision {
    /// Takes the whole tower from a scope that holds `embeddings`, `pre_layrnorm` and `encoder`.
    pub fn load(scope: &Scope<'_>, config: &ClipVisionConfig) -> Self {
        Self::load_up_to(scope, config, config.num_hidden_layers)
    }

    /// Takes what hidden state `state` needs: the first `state` layers. The others' weights are skipped.
    pub fn load_up_to(scope: &Scope<'_>, config: &ClipVisionConfig, state: usize) -> Self {
        let width = config.hidden_size as i64;
        let patch = config.patch_size as i64;
        let positions = (config.patches_per_side() * config.patches_per_side()) as i64 + 1;
        let embeddings = scope.sub("embeddings");
        let encoder = scope.sub("encoder.layers");
        let sizes = sizes(config);
        scope.skip("post_layernorm");
        for unneeded in state..config.num_hidden_layers {
            encoder.skip(unneeded.to_string());
        }
        Self {
            class_embedding: embeddings.tensor("class_embedding", &[width]),
            patch_embedding: embeddings
                .tensor("patch_embedding.weight", &[width, config.num_channels as i64, patch, patch]),
            position_embedding: embeddings.tensor("position_embedding.weight", &[positions, width]),
            first_norm: LayerNorm::load(&scope.sub("pre_layrnorm"), width, config.layer_norm_eps),
            layers: (0..state.min(config.num_hidden_layers))
                .map(|index| PreNormLayer::load(&encoder.sub(index.to_string()), &LayerNames::CLIP, &sizes))
                .collect(),
            layers_in_config: config.num_hidden_layers,
            image_size: config.image_size as i64,
            patch_size: patch,
        }
    }

    /// How many layers are loaded.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// The hidden state `layer` of `pixels [n, 3, side, side]`, as transformers' `output_hidden_states` lists them
    /// (see [`state_index`]): `[n, 1 + patches, width]`, class token first. Differentiable.
    ///
    /// # Panics
    /// When the pixels have another shape or the hidden state is not among those loaded.
    #[track_caller]
    pub fn hidden_states(&self, pixels: &Tensor, layer: i64) -> Tensor {
        let state = state_index(self.layers_in_config, layer);
        let state =
            state.unwrap_or_else(|| panic!("hidden state {layer} of {} layers", self.layers_in_config));
        let unobserved = |_: usize, hidden: Tensor| ControlFlow::<Infallible, Tensor>::Continue(hidden);
        match self.forward(pixels, state, unobserved) {
            ControlFlow::Continue(hidden) => hidden,
            ControlFlow::Break(never) => match never {},
        }
    }

    /// Runs the first `state` layers; `observe` gets each layer's number and output and gives what goes on from there,
    /// or breaks off.
    ///
    /// # Errors
    /// Breaks with whatever `observe` breaks with.
    ///
    /// # Panics
    /// As [`ClipVision::hidden_states`].
    #[track_caller]
    pub fn forward<B>(
        &self,
        pixels: &Tensor,
        state: usize,
        mut observe: impl FnMut(usize, Tensor) -> ControlFlow<B, Tensor>,
    ) -> ControlFlow<B, Tensor> {
        assert!(
            state <= self.layers.len(),
            "hidden state {state} asked of {} loaded layers",
            self.layers.len()
        );
        let mut hidden = self.embed(pixels);
        for (index, layer) in self.layers[..state].iter().enumerate() {
            hidden = observe(index, layer.forward(&hidden, &AttentionMask::Full))?;
        }
        ControlFlow::Continue(hidden)
    }

    #[track_caller]
    fn embed(&self, pixels: &Tensor) -> Tensor {
        let size = pixels.size();
        let channels = self.patch_embedding.size()[1];
        assert!(
            size.len() == 4 && size[1..] == [channels, self.image_size, self.image_size],
            "pixels {size:?} given to a tower for [n, {channels}, {side}, {side}]",
            side = self.image_size
        );
        let pixels = pixels.to_kind(self.patch_embedding.kind());
        let stride = [self.patch_size, self.patch_size];
        let patches = pixels.conv2d(&self.patch_embedding, None::<Tensor>, stride, [0, 0], [1, 1], 1);
        let patches = patches.flatten(2, 3).transpose(1, 2);
        let class = self.class_embedding.to_kind(patches.kind()).expand([size[0], 1, -1], false);
        self.first_norm.forward(&(Tensor::cat(&[class, patches], 1) + &self.position_embedding))
    }
}

/// A whole vision transformer with the norm of its class token.
#[derive(Debug)]
pub struct PooledClipVision {
    tower: ClipVision,
    last_norm: LayerNorm,
}

impl PooledClipVision {
    /// Takes a scope that holds `embeddings`, `pre_layrnorm`, `encoder` and `post_layernorm`.
    pub fn load(scope: &Scope<'_>, config: &ClipVisionConfig) -> Self {
        let width = config.hidden_size as i64;
        Self {
            tower: ClipVision::load(scope, config),
            last_norm: LayerNorm::load(&scope.sub("post_layernorm"), width, config.layer_norm_eps),
        }
    }

    /// The transformer.
    pub fn tower(&self) -> &ClipVision {
        &self.tower
    }

    /// The class token of `pixels [n, 3, side, side]` behind the last norm, `[n, width]`: transformers' `pooler_output`.
    /// The last layer computes no other token. Differentiable.
    ///
    /// # Panics
    /// When the pixels have another shape.
    #[track_caller]
    pub fn pooled(&self, pixels: &Tensor) -> Tensor {
        let Some((last, before)) = self.tower.layers.split_last() else {
            return self.last_norm.forward(&self.tower.embed(pixels).select(1, 0));
        };
        let mut hidden = self.tower.embed(pixels);
        for layer in before {
            hidden = layer.forward(&hidden, &AttentionMask::Full);
        }
        let class = last.forward_at(&hidden.narrow(1, 0, 1), &hidden, &AttentionMask::Full);
        self.last_norm.forward(&class.squeeze_dim(1))
    }

    /// The last hidden state of `pixels [n, 3, side, side]`, all tokens of it behind the last norm, `[n, 1 + patches, width]`.
    /// Its first token is what [`PooledClipVision::pooled`] gives. Differentiable.
    ///
    /// # Panics
    /// When the pixels have another shape.
    #[track_caller]
    pub fn normed_tokens(&self, pixels: &Tensor) -> Tensor {
        self.last_norm.forward(&self.tower.hidden_states(pixels, -1))
    }
}

fn sizes(config: &ClipVisionConfig) -> LayerSizes {
    LayerSizes {
        width: config.hidden_size,
        inner: config.intermediate_size,
        heads: config.num_attention_heads,
        epsilon: config.layer_norm_eps,
        activation: config.hidden_act,
        qkv_bias: true,
    }
}

/// Names and shapes of every tensor transformers writes for this tower, relative to `vision_model`.
pub fn parameter_shapes(config: &ClipVisionConfig) -> BTreeMap<String, Vec<i64>> {
    let width = config.hidden_size as i64;
    let patch = config.patch_size as i64;
    let positions = (config.patches_per_side() * config.patches_per_side()) as i64 + 1;
    let mut shapes = BTreeMap::from([
        ("embeddings.class_embedding".to_owned(), vec![width]),
        (
            "embeddings.patch_embedding.weight".to_owned(),
            vec![width, config.num_channels as i64, patch, patch],
        ),
        ("embeddings.position_embedding.weight".to_owned(), vec![positions, width]),
    ]);
    for norm in ["pre_layrnorm", "post_layernorm"] {
        shapes.insert(format!("{norm}.bias"), vec![width]);
        shapes.insert(format!("{norm}.weight"), vec![width]);
    }
    for layer in 0..config.num_hidden_layers {
        layer_shapes(&LayerNames::CLIP, &sizes(config), |name, shape| {
            shapes.insert(format!("encoder.layers.{layer}.{name}"), shape);
        });
    }
    shapes
}
