//! CLIP's vision tower.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::ControlFlow;

use lmm_prep::ClipVisionConfig;
use torch_nn::tch::Tensor;
use torch_nn::{Activation, AttentionMask, LayerNorm, Linear, Scope, attention, merge_heads, split_heads};

/// CLIP's vision transformer, or its first layers.
#[derive(Debug)]
pub struct ClipVision {
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Tensor,
    first_norm: LayerNorm,
    layers: Vec<Layer>,
    layers_in_config: usize,
    image_size: i64,
    patch_size: i64,
}

#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm2: LayerNorm,
    widen: Linear,
    activation: Activation,
    narrow: Linear,
    head_dim: i64,
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
                .map(|index| Layer::load(&encoder.sub(index.to_string()), config))
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
            hidden = observe(index, layer.forward(&hidden))?;
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

impl Layer {
    fn load(scope: &Scope<'_>, config: &ClipVisionConfig) -> Self {
        let (width, inner) = (config.hidden_size as i64, config.intermediate_size as i64);
        let norm = |name| LayerNorm::load(&scope.sub(name), width, config.layer_norm_eps);
        let square = |name| Linear::load(&scope.sub("self_attn").sub(name), width, width, true);
        Self {
            norm1: norm("layer_norm1"),
            query: square("q_proj"),
            key: square("k_proj"),
            value: square("v_proj"),
            output: square("out_proj"),
            norm2: norm("layer_norm2"),
            widen: Linear::load(&scope.sub("mlp.fc1"), width, inner, true),
            activation: activation(config.hidden_act),
            narrow: Linear::load(&scope.sub("mlp.fc2"), inner, width, true),
            head_dim: width / config.num_attention_heads as i64,
        }
    }

    fn forward(&self, hidden: &Tensor) -> Tensor {
        let x = self.norm1.forward(hidden);
        let heads = |projection: &Linear| split_heads(&projection.forward(&x), self.head_dim);
        let (query, key, value) = (heads(&self.query), heads(&self.key), heads(&self.value));
        let mixed = attention(&query, &key, &value, &AttentionMask::Full);
        let hidden = hidden + self.output.forward(&merge_heads(&mixed));
        let wide = self.activation.forward(&self.widen.forward(&self.norm2.forward(&hidden)));
        hidden + self.narrow.forward(&wide)
    }
}

/// Names and shapes of every tensor transformers writes for this tower, relative to `vision_model`.
pub fn parameter_shapes(config: &ClipVisionConfig) -> BTreeMap<String, Vec<i64>> {
    let (width, inner) = (config.hidden_size as i64, config.intermediate_size as i64);
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
    let mut with_bias = |name: String, weight: Vec<i64>| {
        shapes.insert(format!("{name}.bias"), vec![weight[0]]);
        shapes.insert(format!("{name}.weight"), weight);
    };
    with_bias("pre_layrnorm".to_owned(), vec![width]);
    with_bias("post_layernorm".to_owned(), vec![width]);
    for layer in 0..config.num_hidden_layers {
        let within = |name: &str| format!("encoder.layers.{layer}.{name}");
        with_bias(within("layer_norm1"), vec![width]);
        with_bias(within("layer_norm2"), vec![width]);
        for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            with_bias(within(&format!("self_attn.{name}")), vec![width, width]);
        }
        with_bias(within("mlp.fc1"), vec![inner, width]);
        with_bias(within("mlp.fc2"), vec![width, inner]);
    }
    shapes
}

fn activation(named: lmm_prep::Activation) -> Activation {
    match named {
        lmm_prep::Activation::Silu => Activation::Silu,
        lmm_prep::Activation::Gelu => Activation::Gelu,
        lmm_prep::Activation::GeluTanh => Activation::GeluTanh,
        lmm_prep::Activation::QuickGelu => Activation::QuickGelu,
        lmm_prep::Activation::Relu => Activation::Relu,
    }
}
