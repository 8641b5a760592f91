//! [`Block`]: attention within windows, and an MLP.

use torch_nn::tch::Tensor;
use torch_nn::{Activation, AttentionMask, LayerNorm, Linear, Scope, attention, merge_heads, split_heads};

use super::SwinConfig;
use super::windows::Windows;
use crate::encoder_layer::activation;

/// Attention and an MLP, each behind a layer norm and added to what went in.
#[derive(Debug)]
pub(super) struct Block {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    /// `[(2 side - 1)², heads]`.
    bias_table: Tensor,
    norm2: LayerNorm,
    widen: Linear,
    activation: Activation,
    narrow: Linear,
    heads: i64,
    side: i64,
}

impl Block {
    pub(super) fn load(scope: &Scope<'_>, config: &SwinConfig, stage: usize) -> Self {
        let (width, inner) = (config.channels(stage + 1), config.mlp_width(stage + 1));
        let norm = |name: &str| LayerNorm::load(&scope.sub(name), width, config.layer_norm_eps);
        let attention = scope.sub("attention.self");
        let projection = |name: &str| Linear::load(&attention.sub(name), width, width, config.qkv_bias);
        // It follows from the window's side.
        attention.skip("relative_position_index");
        let (heads, side) = (config.num_heads[stage] as i64, config.window_size as i64);
        Self {
            norm1: norm("layernorm_before"),
            query: projection("query"),
            key: projection("key"),
            value: projection("value"),
            output: Linear::load(&scope.sub("attention.output.dense"), width, width, true),
            bias_table: attention
                .tensor("relative_position_bias_table", &[(2 * side - 1) * (2 * side - 1), heads]),
            norm2: norm("layernorm_after"),
            widen: Linear::load(&scope.sub("intermediate.dense"), width, inner, true),
            activation: activation(config.hidden_act),
            narrow: Linear::load(&scope.sub("output.dense"), inner, width, true),
            heads,
            side,
        }
    }

    /// Maps `[n, height · width, channels]` to the same shape. `table_rows [side⁴]` are [`relative_places`].
    ///
    /// [`relative_places`]: super::windows::relative_places
    pub(super) fn forward(&self, hidden: &Tensor, windows: &Windows, table_rows: &Tensor) -> Tensor {
        let x = windows.cut(&self.norm1.forward(hidden));
        let head_dim = x.size()[2] / self.heads;
        let heads = |projection: &Linear| split_heads(&projection.forward(&x), head_dim);
        let (query, key, value) = (heads(&self.query), heads(&self.key), heads(&self.value));
        let scores = windows.scores(&self.bias(table_rows), hidden.size()[0]).to_kind(query.kind());
        let mixed = attention(&query, &key, &value, &AttentionMask::Added(scores));
        let hidden = hidden + windows.join(&self.output.forward(&merge_heads(&mixed)));
        let wide = self.activation.forward(&self.widen.forward(&self.norm2.forward(&hidden)));
        hidden + self.narrow.forward(&wide)
    }

    /// What relative places add to the scores of every window, `[1, heads, places, places]`.
    fn bias(&self, table_rows: &Tensor) -> Tensor {
        let places = self.side * self.side;
        let bias = self.bias_table.index_select(0, table_rows).view([places, places, self.heads]);
        bias.permute([2, 0, 1]).contiguous().unsqueeze(0)
    }
}
