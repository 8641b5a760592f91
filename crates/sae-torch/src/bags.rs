//! libtorch's embedding bags as products with a sparse `[n, num_latents]` matrix of codes.
//!
//! A row of codes is a bag of decoder rows, weighted by its activations. The forward pass and both gradients then are
//! single kernels that never hold `[n, k, d_in]`, let alone `[n, num_latents]`.

use tch::{Device, Kind, Tensor};

use crate::TopK;

/// `embedding_bag`'s mode "sum".
const SUM: i64 = 0;
const NO_PADDING: i64 = -1;

/// The codes as libtorch's kernels want them: flat, with the start of each bag and the bag of each entry.
pub(crate) struct Bags {
    indices: Tensor,
    offsets: Tensor,
    bag_of: Tensor,
    values: Tensor,
}

impl Bags {
    pub(crate) fn new(codes: &TopK) -> Self {
        let size = codes.indices.size();
        let (n, k) = (size[0], size[1]);
        let options = (Kind::Int64, codes.indices.device());
        let rows = Tensor::arange(n, options);
        Self {
            indices: codes.indices.reshape([-1]).contiguous(),
            offsets: &rows * k,
            bag_of: rows.repeat_interleave_self_int(k, None, n * k),
            values: codes.values.reshape([-1]).contiguous(),
        }
    }

    pub(crate) fn indices(&self) -> &Tensor {
        &self.indices
    }

    pub(crate) fn values(&self) -> &Tensor {
        &self.values
    }

    /// `[n, d]`: `out[i] = Σ_j value[i, j] · rows[index[i, j]]`. Differentiable in both factors.
    pub(crate) fn sum_rows(&self, rows: &Tensor) -> Tensor {
        let weights = Some(&self.values);
        Tensor::embedding_bag(rows, &self.indices, &self.offsets, false, SUM, false, weights, false).0
    }

    /// `[n * k]`: `out[i, j] = <upstream[i], rows[index[i, j]]>`.
    pub(crate) fn dot_rows(&self, upstream: &Tensor, rows: &Tensor) -> Tensor {
        let (indices, offsets) = (&self.indices, &self.offsets);
        Tensor::internal_embedding_bag_per_sample_weights_backward(
            upstream,
            rows,
            indices,
            offsets,
            &self.bag_of,
            SUM,
            NO_PADDING,
        )
    }

    /// `[n_rows, d]`: `out[l] = Σ_{index[i, j] = l} weights[i, j] · vectors[i]`, with `weights` `[n * k]`.
    pub(crate) fn gather_into_rows(&self, vectors: &Tensor, weights: &Tensor, n_rows: i64) -> Tensor {
        // Sizes of bags and positions of maxima, which only the modes "mean" and "max" look at.
        let unused = Tensor::empty([0], (Kind::Int64, Device::Cpu)).to_device(self.indices.device());
        Tensor::internal_embedding_bag_dense_backward(
            vectors,
            &self.indices,
            &self.bag_of,
            &unused,
            &unused,
            n_rows,
            false,
            SUM,
            Some(weights),
            NO_PADDING,
        )
    }
}
