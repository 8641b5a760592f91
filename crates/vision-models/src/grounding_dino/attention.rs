//! [`MultiheadAttention`]: ordinary attention, as decoder and text use it.

use torch_nn::tch::Tensor;
use torch_nn::{AttentionMask, Linear, Scope, attention, merge_heads, split_heads};

/// Attention with projections of its own for queries, keys, values and the result.
#[derive(Debug)]
pub(super) struct MultiheadAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    head_dim: i64,
}

impl MultiheadAttention {
    pub(super) fn load(scope: &Scope<'_>, width: i64, heads: i64) -> Self {
        let square = |name: &str| Linear::load(&scope.sub(name), width, width, true);
        Self {
            query: square("query"),
            key: square("key"),
            value: square("value"),
            output: square("out_proj"),
            head_dim: width / heads,
        }
    }

    /// What `queries [n, queries, width]` find in `values [n, keys, width]` by `keys`, of the same shape.
    pub(super) fn forward(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        mask: &AttentionMask,
    ) -> Tensor {
        let heads = |projection: &Linear, x: &Tensor| split_heads(&projection.forward(x), self.head_dim);
        let (query, key) = (heads(&self.query, queries), heads(&self.key, keys));
        let mixed = attention(&query, &key, &heads(&self.value, values), mask);
        self.output.forward(&merge_heads(&mixed))
    }
}
