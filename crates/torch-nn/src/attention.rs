//! [`attention`]: scaled dot products, grouped heads, masks.

use tch::Tensor;

/// Which keys a query may see.
#[derive(Debug)]
pub enum AttentionMask {
    /// All of them.
    Full,
    /// Those at or before its own place, for as many queries as keys. Cheaper than the same mask written out.
    Causal,
    /// Those marked true in `[batch or 1, 1, queries, keys]` (bool).
    ///
    /// A query that may see nothing has no defined output; mark at least one key for each.
    Allowed(Tensor),
    /// All of them, with `[batch or 1, heads or 1, queries, keys]`, in the dtype of the query, added to the scaled scores.
    Added(Tensor),
}

/// Scaled dot-product attention; scores are scaled by `head_dim^-0.5`.
///
/// `query [batch, heads, queries, head_dim]`, `key` and `value [batch, key_heads, keys, head_dim]`, all of one dtype,
/// where `key_heads` divides `heads` and each serves a run of neighbouring query heads. Returns the shape of `query`.
///
/// # Panics
/// When shapes or dtypes do not fit.
#[track_caller]
pub fn attention(query: &Tensor, key: &Tensor, value: &Tensor, mask: &AttentionMask) -> Tensor {
    let (heads, key_heads) = (query.size()[1], key.size()[1]);
    assert!(
        key_heads > 0 && heads % key_heads == 0,
        "{key_heads} key heads cannot serve {heads} query heads"
    );
    let none = None::<Tensor>;
    match mask {
        AttentionMask::Full | AttentionMask::Causal => {
            let causal = matches!(mask, AttentionMask::Causal) && query.size()[2] > 1;
            let grouped = key_heads != heads;
            Tensor::scaled_dot_product_attention(query, key, value, none, 0.0, causal, None, grouped)
        }
        AttentionMask::Allowed(mask) | AttentionMask::Added(mask) => {
            // With a mask the grouped kernels are not to be had everywhere, so keys and values are repeated.
            let (key, value) = (repeat_heads(key, heads), repeat_heads(value, heads));
            Tensor::scaled_dot_product_attention(query, &key, &value, Some(mask), 0.0, false, None, false)
        }
    }
}

/// `[batch, tokens, heads · head_dim]` to `[batch, heads, tokens, head_dim]`.
pub fn split_heads(x: &Tensor, head_dim: i64) -> Tensor {
    let size = x.size();
    x.view([size[0], size[1], -1, head_dim]).transpose(1, 2)
}

/// `[batch, heads, tokens, head_dim]` to `[batch, tokens, heads · head_dim]`.
pub fn merge_heads(x: &Tensor) -> Tensor {
    let size = x.size();
    x.transpose(1, 2).reshape([size[0], size[2], size[1] * size[3]])
}

fn repeat_heads(x: &Tensor, heads: i64) -> Tensor {
    let size = x.size();
    if size[1] == heads {
        return x.shallow_clone();
    }
    x.unsqueeze(2)
        .expand([size[0], size[1], heads / size[1], size[2], size[3]], false)
        .reshape([size[0], heads, size[2], size[3]])
}
