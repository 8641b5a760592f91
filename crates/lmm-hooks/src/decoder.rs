//! The language model: a Llama-family decoder (Llama, Vicuna, Mistral, Qwen2).

use lmm_prep::TextConfig;
use torch_nn::tch::{Kind, Tensor};
use torch_nn::{
    Activation, AttentionMask, Embedding, Linear, RmsNorm, Rope, RopeScaling, RotaryTable, Scope,
    WeightPrecision, attention, merge_heads, split_heads,
};

use crate::cache::KvCache;
use crate::hooks::{Flow, Pass};
use crate::points::{Part, Site};

/// The decoder without its output head.
#[derive(Debug)]
pub(crate) struct Decoder {
    pub(crate) embeddings: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    rope: Rope,
}

#[derive(Debug)]
struct Layer {
    input_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
    head_dim: i64,
    window: Option<usize>,
}

impl Decoder {
    pub(crate) fn load(
        scope: &Scope<'_>,
        config: &TextConfig,
        rope: Rope,
        precision: WeightPrecision,
    ) -> Self {
        let width = config.hidden_size as i64;
        let layers = scope.sub("layers");
        Self {
            embeddings: Embedding::load(&scope.sub("embed_tokens"), config.vocab_size as i64, width),
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::load(&layers.sub(index.to_string()), config, index, precision))
                .collect(),
            norm: RmsNorm::load(&scope.sub("norm"), width, config.rms_norm_eps),
            rope,
        }
    }

    /// How many layers there are.
    pub(crate) fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Runs all layers and the final norm over `embeddings [batch, tokens, width]`.
    pub(crate) fn forward(
        &self,
        embeddings: Tensor,
        cache: Option<&mut KvCache>,
        pass: &mut Pass<'_, '_>,
    ) -> Flow<Tensor> {
        self.forward_from(0, embeddings, cache, pass)
    }

    /// Runs the layers from `first` on and the final norm over what comes in there, `[batch, tokens, width]`.
    pub(crate) fn forward_from(
        &self,
        first: usize,
        hidden: Tensor,
        mut cache: Option<&mut KvCache>,
        pass: &mut Pass<'_, '_>,
    ) -> Flow<Tensor> {
        let mut hidden = pass.visit(Site::before_layer(first), hidden)?;
        let tokens = pass.positions.size()[1];
        let mut steps = self.steps(cache.as_deref().map_or(0, KvCache::len), pass);
        for index in first..self.layers.len() {
            let entry = cache.as_deref_mut().map(|cache| (cache, index));
            hidden = steps.layer(index, hidden, entry, pass)?;
        }
        if let Some(cache) = cache {
            cache.advance(tokens);
        }
        self.finish(&hidden, pass)
    }

    /// The final norm.
    pub(crate) fn finish(&self, hidden: &Tensor, pass: &mut Pass<'_, '_>) -> Flow<Tensor> {
        pass.visit(Site::Norm, self.norm.forward(hidden))
    }

    /// What the layers of one pass share, after `seen` tokens that were read before.
    pub(crate) fn steps(&self, seen: i64, pass: &Pass<'_, '_>) -> Steps<'_> {
        let kind = self.layers.first().map_or(Kind::Float, |layer| layer.query.kind());
        let table = self.rope.table(&pass.positions).to_kind(kind);
        Steps { layers: &self.layers, table, masks: Masks::new(pass, seen, pass.positions.size()[1]) }
    }
}

/// The layers with what they share in one pass.
pub(crate) struct Steps<'d> {
    layers: &'d [Layer],
    table: RotaryTable,
    masks: Masks,
}

impl Steps<'_> {
    /// Runs one layer over `hidden [batch, tokens, width]`.
    pub(crate) fn layer(
        &mut self,
        index: usize,
        hidden: Tensor,
        cache: Option<(&mut KvCache, usize)>,
        pass: &mut Pass<'_, '_>,
    ) -> Flow<Tensor> {
        let layer = &self.layers[index];
        let mask = self.masks.for_window(layer.window);
        layer.forward(index, hidden, &self.table, mask, cache, pass)
    }
}

impl Layer {
    fn load(scope: &Scope<'_>, config: &TextConfig, index: usize, precision: WeightPrecision) -> Self {
        let (width, inner) = (config.hidden_size as i64, config.intermediate_size as i64);
        let head_dim = config.head_dim as i64;
        let (queries, keys) =
            (config.num_attention_heads as i64 * head_dim, config.num_key_value_heads as i64 * head_dim);
        let norm = |name| RmsNorm::load(&scope.sub(name), width, config.rms_norm_eps);
        let (own, mlp) = (scope.sub("self_attn"), scope.sub("mlp"));
        let (qkv_bias, mlp_bias) = (config.qkv_bias(), config.mlp_bias);
        let linear = |scope: &Scope<'_>, name: &str, inputs, outputs, bias| {
            Linear::load_in(&scope.sub(name), inputs, outputs, bias, precision)
        };
        Self {
            input_norm: norm("input_layernorm"),
            query: linear(&own, "q_proj", width, queries, qkv_bias),
            key: linear(&own, "k_proj", width, keys, qkv_bias),
            value: linear(&own, "v_proj", width, keys, qkv_bias),
            output: linear(&own, "o_proj", queries, width, config.output_bias()),
            attention_norm: norm("post_attention_layernorm"),
            gate: linear(&mlp, "gate_proj", width, inner, mlp_bias),
            up: linear(&mlp, "up_proj", width, inner, mlp_bias),
            down: linear(&mlp, "down_proj", inner, width, mlp_bias),
            activation: activation(config.hidden_act),
            head_dim,
            window: config.sliding_window_of(index),
        }
    }

    fn forward(
        &self,
        index: usize,
        hidden: Tensor,
        table: &RotaryTable,
        mask: &AttentionMask,
        cache: Option<(&mut KvCache, usize)>,
        pass: &mut Pass<'_, '_>,
    ) -> Flow<Tensor> {
        let x = pass.visit(Site::Layer(index, Part::InputNorm), self.input_norm.forward(&hidden))?;
        let heads = |projection: &Linear| split_heads(&projection.forward(&x), self.head_dim);
        let query = table.rotate(&heads(&self.query));
        let (mut key, mut value) = (table.rotate(&heads(&self.key)), heads(&self.value));
        if let Some((cache, layer)) = cache {
            (key, value) = cache.extend(layer, &key, &value);
        }
        let mixed = self.output.forward(&merge_heads(&attention(&query, &key, &value, mask)));
        let hidden = hidden + pass.visit(Site::Layer(index, Part::Attention), mixed)?;

        let normed = self.attention_norm.forward(&hidden);
        let x = pass.visit(Site::Layer(index, Part::AttentionNorm), normed)?;
        let wide = self.activation.forward(&self.gate.forward(&x)) * self.up.forward(&x);
        let narrow = pass.visit(Site::Layer(index, Part::Mlp), self.down.forward(&wide))?;
        pass.visit(Site::Layer(index, Part::Whole), hidden + narrow)
    }
}

/// The attention masks of one pass, each made when first needed.
struct Masks {
    /// Which keys are real, `[batch, keys]`; `None` when no query could see padding.
    real_keys: Option<Tensor>,
    device: torch_nn::tch::Device,
    seen: i64,
    tokens: i64,
    plain: Option<AttentionMask>,
    /// One window size per model in practice; kept with the size it was made for.
    windowed: Option<(i64, AttentionMask)>,
    /// The caller's own mask, which stands for both.
    given: Option<AttentionMask>,
}

impl Masks {
    fn new(pass: &Pass<'_, '_>, seen: i64, tokens: i64) -> Self {
        let real_keys = pass.batch.is_padded_left().then(|| {
            let later = seen + tokens - pass.batch.width() as i64;
            let rows = pass.batch.len() as i64;
            let ones = Tensor::ones([rows, later], (Kind::Bool, pass.real.device()));
            Tensor::cat(&[pass.batch.real(), &ones], 1)
        });
        let given = pass.batch.allowed.as_ref().map(|mask| AttentionMask::Allowed(mask.shallow_clone()));
        Self { real_keys, device: pass.real.device(), seen, tokens, plain: None, windowed: None, given }
    }

    fn for_window(&mut self, window: Option<usize>) -> &AttentionMask {
        if let Some(given) = &self.given {
            return given;
        }
        match window.map(|window| window as i64).filter(|&window| self.seen + self.tokens > window) {
            None => {
                if self.plain.is_none() {
                    self.plain = Some(self.build(None));
                }
                self.plain.as_ref().unwrap_or(&AttentionMask::Causal)
            }
            Some(window) => {
                if self.windowed.as_ref().is_none_or(|(made_for, _)| *made_for != window) {
                    self.windowed = Some((window, self.build(Some(window))));
                }
                self.windowed.as_ref().map_or(&AttentionMask::Causal, |(_, mask)| mask)
            }
        }
    }

    fn build(&self, window: Option<i64>) -> AttentionMask {
        if window.is_none() && self.real_keys.is_none() {
            return if self.seen == 0 { AttentionMask::Causal } else { AttentionMask::Full };
        }
        let options = (Kind::Int64, self.device);
        let query = Tensor::arange_start(self.seen, self.seen + self.tokens, options).unsqueeze(1);
        let key = Tensor::arange(self.seen + self.tokens, options).unsqueeze(0);
        let mut allowed = key.le_tensor(&query);
        if let Some(window) = window {
            allowed = allowed.logical_and(&key.gt_tensor(&(&query - window)));
        }
        let mut allowed = allowed.unsqueeze(0);
        if let Some(real) = &self.real_keys {
            // Every query sees itself, padding too: a row without any key would be NaN.
            let visible = real.unsqueeze(1).logical_or(&key.eq_tensor(&query).unsqueeze(0));
            allowed = allowed.logical_and(&visible);
        }
        AttentionMask::Allowed(allowed.unsqueeze(1))
    }
}

pub(crate) fn rope(config: &TextConfig, device: torch_nn::tch::Device) -> Rope {
    let scaling = match config.rope_scaling {
        None => RopeScaling::None,
        Some(lmm_prep::RopeScaling::Linear { factor }) => RopeScaling::Linear { factor },
        Some(lmm_prep::RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        }) => RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original_max_position_embeddings as f64,
        },
    };
    Rope::new(config.head_dim as i64, config.rope_theta, scaling, device)
}

pub(crate) fn activation(named: lmm_prep::Activation) -> Activation {
    match named {
        lmm_prep::Activation::Silu => Activation::Silu,
        lmm_prep::Activation::Gelu => Activation::Gelu,
        lmm_prep::Activation::GeluTanh => Activation::GeluTanh,
        lmm_prep::Activation::QuickGelu => Activation::QuickGelu,
        lmm_prep::Activation::Relu => Activation::Relu,
    }
}
