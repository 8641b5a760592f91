//! CLIP's text tower.

use std::collections::BTreeMap;

use lmm_prep::ClipTextConfig;
use torch_nn::tch::{Device, Kind, Tensor};
use torch_nn::{AttentionMask, Embedding, LayerNorm, Scope};

use crate::encoder_layer::{LayerNames, LayerSizes, PreNormLayer, layer_shapes};

/// The value of `eos_token_id` that old configurations have, where a text is pooled at its highest id.
const OLD_END: u32 = 2;

/// CLIP's text transformer, in which a token sees those before it.
#[derive(Debug)]
pub struct ClipText {
    tokens: Embedding,
    positions: Tensor,
    layers: Vec<PreNormLayer>,
    last_norm: LayerNorm,
    end: u32,
}

/// Texts as token ids, padded on the right to the longest.
///
/// No text sees its padding, which comes after all that it is made of.
#[derive(Debug)]
pub struct TokenBatch {
    /// `[n, longest]`, i64.
    ids: Tensor,
    /// Where each text is pooled, `[n, 1]`, i64.
    ends: Tensor,
}

impl TokenBatch {
    /// The ids, `[n, longest]`, i64.
    pub fn ids(&self) -> &Tensor {
        &self.ids
    }
}

impl ClipText {
    /// Takes a scope that holds `embeddings`, `encoder` and `final_layer_norm`.
    pub fn load(scope: &Scope<'_>, config: &ClipTextConfig) -> Self {
        let width = config.hidden_size as i64;
        let embeddings = scope.sub("embeddings");
        let encoder = scope.sub("encoder.layers");
        let sizes = sizes(config);
        Self {
            tokens: Embedding::load(&embeddings.sub("token_embedding"), config.vocab_size as i64, width),
            positions: embeddings
                .tensor("position_embedding.weight", &[config.max_position_embeddings as i64, width]),
            layers: (0..config.num_hidden_layers)
                .map(|index| PreNormLayer::load(&encoder.sub(index.to_string()), &LayerNames::CLIP, &sizes))
                .collect(),
            last_norm: LayerNorm::load(&scope.sub("final_layer_norm"), width, config.layer_norm_eps),
            end: config.eos_token_id,
        }
    }

    /// How many layers there are.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Texts of these ids, on `device`.
    ///
    /// # Panics
    /// When there is no text, or one without ids or with more than the tower has positions.
    #[track_caller]
    pub fn batch(&self, texts: &[Vec<u32>], device: Device) -> TokenBatch {
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        let positions = self.positions.size()[0] as usize;
        let shortest = texts.iter().map(Vec::len).min().unwrap_or(0);
        assert!(
            shortest > 0 && longest <= positions,
            "texts of {shortest} to {longest} tokens given to a tower for 1 to {positions}"
        );
        let padded = texts.iter().flat_map(|ids| {
            let padding = std::iter::repeat_n(0, longest - ids.len());
            ids.iter().map(|&id| i64::from(id)).chain(padding)
        });
        let padded: Vec<i64> = padded.collect();
        let ends: Vec<i64> = texts.iter().map(|ids| pooled_place(ids, self.end) as i64).collect();
        let n = texts.len() as i64;
        TokenBatch {
            ids: Tensor::from_slice(&padded).view([n, longest as i64]).to_device(device),
            ends: Tensor::from_slice(&ends).view([n, 1]).to_device(device),
        }
    }

    /// The hidden state `layer` as transformers' `output_hidden_states` lists them, `[n, longest, width]`: 0 is the embedding,
    /// `i` the output of layer `i - 1`. Differentiable.
    ///
    /// # Panics
    /// When there is no such layer.
    #[track_caller]
    pub fn hidden_states(&self, texts: &TokenBatch, layer: usize) -> Tensor {
        assert!(layer <= self.layers.len(), "hidden state {layer} of {} layers", self.layers.len());
        let embedded = self.embed(texts);
        self.layers[..layer]
            .iter()
            .fold(embedded, |hidden, layer| layer.forward(&hidden, &AttentionMask::Causal))
    }

    /// The token at which each text is pooled, behind the last norm, `[n, width]`: transformers' `pooler_output`. It is the
    /// first end token, and the first token where there is none; where the configuration's end token is 2, the highest id. The
    /// last layer computes no other token. Differentiable.
    pub fn pooled(&self, texts: &TokenBatch) -> Tensor {
        let pooled_of = |hidden: &Tensor| {
            let width = hidden.size()[2];
            hidden.gather(1, &texts.ends.unsqueeze(2).expand([-1, -1, width], false), false)
        };
        let Some((last, before)) = self.layers.split_last() else {
            return self.last_norm.forward(&pooled_of(&self.embed(texts)).squeeze_dim(1));
        };
        let mut hidden = self.embed(texts);
        for layer in before {
            hidden = layer.forward(&hidden, &AttentionMask::Causal);
        }
        let places = Tensor::arange(hidden.size()[1], (Kind::Int64, hidden.device()));
        let seen = places.unsqueeze(0).le_tensor(&texts.ends).unsqueeze(1).unsqueeze(1);
        let ends = last.forward_at(&pooled_of(&hidden), &hidden, &AttentionMask::Allowed(seen));
        self.last_norm.forward(&ends.squeeze_dim(1))
    }

    /// The last hidden state behind the last norm, `[n, longest, width]`: transformers' `last_hidden_state`. Differentiable.
    pub fn normed_tokens(&self, texts: &TokenBatch) -> Tensor {
        self.last_norm.forward(&self.hidden_states(texts, self.layers.len()))
    }

    fn embed(&self, texts: &TokenBatch) -> Tensor {
        self.tokens.forward(&texts.ids) + self.positions.narrow(0, 0, texts.ids.size()[1])
    }
}

/// Where transformers 4.57 pools a text.
pub(super) fn pooled_place(ids: &[u32], end: u32) -> usize {
    if end == OLD_END {
        // The first of the highest, as `argmax` has it.
        let highest = ids.iter().max();
        ids.iter().position(|id| Some(id) == highest).unwrap_or(0)
    } else {
        ids.iter().position(|&id| id == end).unwrap_or(0)
    }
}

fn sizes(config: &ClipTextConfig) -> LayerSizes {
    LayerSizes {
        width: config.hidden_size,
        inner: config.intermediate_size,
        heads: config.num_attention_heads,
        epsilon: config.layer_norm_eps,
        activation: config.hidden_act,
        qkv_bias: true,
    }
}

/// Names and shapes of every tensor transformers writes for this tower, relative to `text_model`.
pub(super) fn text_shapes(config: &ClipTextConfig) -> BTreeMap<String, Vec<i64>> {
    let width = config.hidden_size as i64;
    let mut shapes = BTreeMap::from([
        ("embeddings.token_embedding.weight".to_owned(), vec![config.vocab_size as i64, width]),
        (
            "embeddings.position_embedding.weight".to_owned(),
            vec![config.max_position_embeddings as i64, width],
        ),
        ("final_layer_norm.bias".to_owned(), vec![width]),
        ("final_layer_norm.weight".to_owned(), vec![width]),
    ]);
    for layer in 0..config.num_hidden_layers {
        layer_shapes(&LayerNames::CLIP, &sizes(config), |name, shape| {
            shapes.insert(format!("encoder.layers.{layer}.{name}"), shape);
        });
    }
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_pooled_where_python_pools_it() {
        assert_eq!(pooled_place(&[7, 3, 9, 9, 1], 9), 2);
        assert_eq!(pooled_place(&[7, 3, 9, 9, 1], 5), 0);
        assert_eq!(pooled_place(&[7, 3, 9, 9, 1], OLD_END), 2);
        assert_eq!(pooled_place(&[7, 2, 5], OLD_END), 0);
    }
}
