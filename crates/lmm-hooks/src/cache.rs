//! [`KvCache`]: keys and values of the tokens read so far, one buffer per layer.

use torch_nn::tch::Tensor;

/// Buffers of a fixed capacity, filled in place: only for passes without gradients.
#[derive(Debug)]
pub(crate) struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    len: i64,
    capacity: i64,
}

impl KvCache {
    pub(crate) fn new(capacity: i64) -> Self {
        Self { layers: Vec::new(), len: 0, capacity }
    }

    /// Tokens read in earlier passes.
    pub(crate) fn len(&self) -> i64 {
        self.len
    }

    /// Counts the tokens of a pass that went through all layers.
    pub(crate) fn advance(&mut self, tokens: i64) {
        self.len += tokens;
    }

    /// Adds `[batch, heads, tokens, head_dim]` of this pass to a layer and gives all of the layer's keys and values.
    /// Layers come in order.
    pub(crate) fn extend(&mut self, layer: usize, key: &Tensor, value: &Tensor) -> (Tensor, Tensor) {
        if layer == self.layers.len() {
            let buffer = |like: &Tensor| {
                let mut size = like.size();
                size[2] = self.capacity;
                Tensor::empty(size, (like.kind(), like.device()))
            };
            self.layers.push((buffer(key), buffer(value)));
        }
        let tokens = key.size()[2];
        let put = |buffer: &Tensor, new: &Tensor| {
            buffer.narrow(2, self.len, tokens).copy_(new);
            buffer.narrow(2, 0, self.len + tokens)
        };
        let (keys, values) = &self.layers[layer];
        (put(keys, key), put(values, value))
    }
}
