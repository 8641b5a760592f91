//! BERT's text encoder, as transformers 4.57's `BertModel` without its pooling layer computes it.

use lmm_prep::{Activation as ActivationName, Fields, PrepError};
use serde_json::{Map, Value};
use torch_nn::tch::Tensor;
use torch_nn::{
    Activation, AttentionMask, Embedding, LayerNorm, Linear, Scope, attention, merge_heads, split_heads,
};

use crate::encoder_layer::activation;

/// The largest number that a size of a model may have: far above any real one, and small enough to be multiplied.
pub(crate) const LARGEST: usize = 1 << 20;

/// Mirror of transformers 4.57's `BertConfig`, with that class's defaults ([`BertConfig::default`]).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BertConfig {
    /// Rows of the table of word embeddings.
    pub vocab_size: usize,
    /// Width of the encoder.
    pub hidden_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the MLPs.
    pub intermediate_size: usize,
    /// Activation of the MLPs.
    pub hidden_act: ActivationName,
    /// Rows of the table of position embeddings.
    pub max_position_embeddings: usize,
    /// Rows of the table of segment embeddings.
    pub type_vocab_size: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Keys that nothing here reads.
    pub extra: Map<String, Value>,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30_522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: ActivationName::Gelu,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            extra: Map::new(),
        }
    }
}

impl BertConfig {
    /// Takes the configuration out of a JSON object.
    ///
    /// # Errors
    /// [`PrepError::Field`] naming the field at fault.
    pub fn from_fields(mut fields: Fields) -> Result<Self, PrepError> {
        let model_type: String = fields.or("model_type", "bert".into())?;
        if model_type != "bert" {
            return Err(fields.error("model_type", "\"bert\"", format!("{model_type:?}")));
        }
        let positions: String = fields.or("position_embedding_type", "absolute".into())?;
        if positions != "absolute" {
            return Err(fields.error("position_embedding_type", "\"absolute\"", format!("{positions:?}")));
        }
        let is_decoder = fields.or("is_decoder", false)?;
        if is_decoder {
            return Err(fields.error("is_decoder", "false", "true"));
        }
        let default = Self::default();
        let mut config = Self {
            vocab_size: fields.within("vocab_size", default.vocab_size, 1..=LARGEST)?,
            hidden_size: fields.within("hidden_size", default.hidden_size, 1..=LARGEST)?,
            num_hidden_layers: fields.within("num_hidden_layers", default.num_hidden_layers, 0..=1024)?,
            num_attention_heads: fields.within(
                "num_attention_heads",
                default.num_attention_heads,
                1..=LARGEST,
            )?,
            intermediate_size: fields.within("intermediate_size", default.intermediate_size, 1..=LARGEST)?,
            hidden_act: ActivationName::take(&mut fields, "hidden_act", default.hidden_act)?,
            max_position_embeddings: fields.within(
                "max_position_embeddings",
                default.max_position_embeddings,
                1..=LARGEST,
            )?,
            type_vocab_size: fields.within("type_vocab_size", default.type_vocab_size, 1..=LARGEST)?,
            layer_norm_eps: fields.positive("layer_norm_eps", default.layer_norm_eps)?,
            extra: Map::new(),
        };
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let expected = format!("a divisor of hidden_size = {}", config.hidden_size);
            let got = config.num_attention_heads.to_string();
            return Err(fields.error("num_attention_heads", expected, got));
        }
        config.extra = fields.into_extra();
        Ok(config)
    }
}

/// The encoder.
#[derive(Debug)]
pub struct Bert {
    words: Embedding,
    positions: Embedding,
    /// That of the first segment, `[1, width]`: there is no other text.
    segment: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

/// Attention and an MLP, each added to what went in and normalised then.
#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: LayerNorm,
    widen: Linear,
    activation: Activation,
    narrow: Linear,
    norm: LayerNorm,
    head_dim: i64,
}

impl Bert {
    /// Takes the encoder from a scope that holds `embeddings` and `encoder`. A `pooler` is skipped.
    pub fn load(scope: &Scope<'_>, config: &BertConfig) -> Self {
        let width = config.hidden_size as i64;
        let embeddings = scope.sub("embeddings");
        let table = |name: &str, rows: usize| Embedding::load(&embeddings.sub(name), rows as i64, width);
        scope.skip("pooler");
        embeddings.skip("position_ids");
        embeddings.skip("token_type_ids");
        let segments = table("token_type_embeddings", config.type_vocab_size);
        Self {
            words: table("word_embeddings", config.vocab_size),
            positions: table("position_embeddings", config.max_position_embeddings),
            segment: segments.weight().narrow(0, 0, 1),
            norm: LayerNorm::load(&embeddings.sub("LayerNorm"), width, config.layer_norm_eps),
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::load(&scope.sub(format!("encoder.layer.{index}")), config))
                .collect(),
        }
    }

    /// The last hidden state, `[n, tokens, width]`, of `ids [n, tokens]` (i64) at `positions [n, tokens]` (i64), where each
    /// token sees what `mask` allows it.
    ///
    /// # Panics
    /// When shapes do not fit or an id or position lies outside its table.
    #[track_caller]
    pub fn forward(&self, ids: &Tensor, positions: &Tensor, mask: &AttentionMask) -> Tensor {
        let embedded = self.words.forward(ids) + &self.segment + self.positions.forward(positions);
        let embedded = self.norm.forward(&embedded);
        self.layers.iter().fold(embedded, |hidden, layer| layer.forward(&hidden, mask))
    }
}

impl Layer {
    fn load(scope: &Scope<'_>, config: &BertConfig) -> Self {
        let (width, inner) = (config.hidden_size as i64, config.intermediate_size as i64);
        let square = |name: &str| Linear::load(&scope.sub(name), width, width, true);
        let norm = |name: &str| LayerNorm::load(&scope.sub(name), width, config.layer_norm_eps);
        Self {
            query: square("attention.self.query"),
            key: square("attention.self.key"),
            value: square("attention.self.value"),
            output: square("attention.output.dense"),
            attention_norm: norm("attention.output.LayerNorm"),
            widen: Linear::load(&scope.sub("intermediate.dense"), width, inner, true),
            activation: activation(config.hidden_act),
            narrow: Linear::load(&scope.sub("output.dense"), inner, width, true),
            norm: norm("output.LayerNorm"),
            head_dim: width / config.num_attention_heads as i64,
        }
    }

    fn forward(&self, hidden: &Tensor, mask: &AttentionMask) -> Tensor {
        let heads = |projection: &Linear| split_heads(&projection.forward(hidden), self.head_dim);
        let (query, key, value) = (heads(&self.query), heads(&self.key), heads(&self.value));
        let mixed = merge_heads(&attention(&query, &key, &value, mask));
        let hidden = self.attention_norm.forward(&(hidden + self.output.forward(&mixed)));
        let wide = self.activation.forward(&self.widen.forward(&hidden));
        self.norm.forward(&(hidden + self.narrow.forward(&wide)))
    }
}
