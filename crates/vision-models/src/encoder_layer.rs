//! [`PreNormLayer`]: the transformer layer that CLIP's two towers and DINOv2 share.

use lmm_prep::Activation as ActivationName;
use torch_nn::tch::Tensor;
use torch_nn::{Activation, AttentionMask, LayerNorm, Linear, Scope, attention, merge_heads, split_heads};

/// Attention and an MLP, each behind a layer norm and added to what went in, perhaps scaled channel by channel.
#[derive(Debug)]
pub(crate) struct PreNormLayer {
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
    /// What the attention and the MLP are multiplied by, `[width]` each.
    scales: Option<[Tensor; 2]>,
}

/// Sizes of a tower's layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerSizes {
    pub(crate) width: usize,
    pub(crate) inner: usize,
    pub(crate) heads: usize,
    pub(crate) epsilon: f64,
    pub(crate) activation: ActivationName,
    pub(crate) qkv_bias: bool,
}

/// How a checkpoint names the parts of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerNames {
    norm1: &'static str,
    query: &'static str,
    key: &'static str,
    value: &'static str,
    output: &'static str,
    norm2: &'static str,
    scales: Option<[&'static str; 2]>,
}

impl LayerNames {
    pub(crate) const CLIP: Self = Self {
        norm1: "layer_norm1",
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        output: "self_attn.out_proj",
        norm2: "layer_norm2",
        scales: None,
    };

    pub(crate) const DINOV2: Self = Self {
        norm1: "norm1",
        query: "attention.attention.query",
        key: "attention.attention.key",
        value: "attention.attention.value",
        output: "attention.output.dense",
        norm2: "norm2",
        scales: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"]),
    };
}

impl PreNormLayer {
    pub(crate) fn load(scope: &Scope<'_>, names: &LayerNames, sizes: &LayerSizes) -> Self {
        let (width, inner) = (sizes.width as i64, sizes.inner as i64);
        let norm = |name| LayerNorm::load(&scope.sub(name), width, sizes.epsilon);
        let square = |name, bias| Linear::load(&scope.sub(name), width, width, bias);
        Self {
            norm1: norm(names.norm1),
            query: square(names.query, sizes.qkv_bias),
            key: square(names.key, sizes.qkv_bias),
            value: square(names.value, sizes.qkv_bias),
            output: square(names.output, true),
            norm2: norm(names.norm2),
            widen: Linear::load(&scope.sub("mlp.fc1"), width, inner, true),
            activation: activation(sizes.activation),
            narrow: Linear::load(&scope.sub("mlp.fc2"), inner, width, true),
            head_dim: width / sizes.heads as i64,
            scales: names.scales.map(|names| names.map(|name| scope.tensor(name, &[width]))),
        }
    }

    /// Maps `[n, tokens, width]` to the same shape.
    pub(crate) fn forward(&self, hidden: &Tensor, mask: &AttentionMask) -> Tensor {
        let x = self.norm1.forward(hidden);
        self.finish(hidden, &x, &x, mask)
    }

    /// What [`PreNormLayer::forward`] gives for the tokens `at` (`[n, chosen, width]`) of `hidden` alone. `mask` has a row for
    /// each of them.
    pub(crate) fn forward_at(&self, at: &Tensor, hidden: &Tensor, mask: &AttentionMask) -> Tensor {
        self.finish(at, &self.norm1.forward(at), &self.norm1.forward(hidden), mask)
    }

    fn finish(&self, hidden: &Tensor, asking: &Tensor, asked: &Tensor, mask: &AttentionMask) -> Tensor {
        let heads = |projection: &Linear, x: &Tensor| split_heads(&projection.forward(x), self.head_dim);
        let query = heads(&self.query, asking);
        let (key, value) = (heads(&self.key, asked), heads(&self.value, asked));
        let mixed = self.output.forward(&merge_heads(&attention(&query, &key, &value, mask)));
        let hidden = hidden + self.scaled(0, mixed);
        let wide = self.activation.forward(&self.widen.forward(&self.norm2.forward(&hidden)));
        let narrow = self.narrow.forward(&wide);
        hidden + self.scaled(1, narrow)
    }

    fn scaled(&self, branch: usize, x: Tensor) -> Tensor {
        match &self.scales {
            Some(scales) => x * &scales[branch],
            None => x,
        }
    }
}

/// Hands over the name, within the layer, and the shape of each of its tensors.
pub(crate) fn layer_shapes(names: &LayerNames, sizes: &LayerSizes, mut put: impl FnMut(&str, Vec<i64>)) {
    let (width, inner) = (sizes.width as i64, sizes.inner as i64);
    let mut with_bias = |name: &str, weight: Vec<i64>, bias: bool| {
        if bias {
            put(&format!("{name}.bias"), vec![weight[0]]);
        }
        put(&format!("{name}.weight"), weight);
    };
    for norm in [names.norm1, names.norm2] {
        with_bias(norm, vec![width], true);
    }
    for name in [names.query, names.key, names.value] {
        with_bias(name, vec![width, width], sizes.qkv_bias);
    }
    with_bias(names.output, vec![width, width], true);
    with_bias("mlp.fc1", vec![inner, width], true);
    with_bias("mlp.fc2", vec![width, inner], true);
    for scale in names.scales.into_iter().flatten() {
        put(scale, vec![width]);
    }
}

pub(crate) fn activation(named: ActivationName) -> Activation {
    match named {
        ActivationName::Silu => Activation::Silu,
        ActivationName::Gelu => Activation::Gelu,
        ActivationName::GeluTanh => Activation::GeluTanh,
        ActivationName::QuickGelu => Activation::QuickGelu,
        ActivationName::Relu => Activation::Relu,
    }
}
