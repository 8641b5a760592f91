//! [`Bags`]: libtorch's embedding bags as products with a sparse `[n, num_latents]` matrix of codes.
//!
//! A row of codes is a bag of decoder rows, weighted by its activations. The forward pass and both gradients then are
//! single kernels that never hold `[n, k, d_in]`, let alone `[n, num_latents]`.

use tch::{Device, Kind, Tensor};

use crate::TopK;

/// `embedding_bag`'s mode "sum".
const SUM: i64 = 0;
const NO_PADDING: i64 = -1;

/// Codes of `n` rows, any number in each, as libtorch's kernels want them: flat, with the start of each bag and the bag of each entry.
#[derive(Debug)]
pub struct Bags {
    indices: Tensor,
    offsets: Tensor,
    bag_of: Tensor,
    values: Tensor,
}

impl Bags {
    /// As many codes in each row.
    pub fn new(codes: &TopK) -> Self {
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

    /// Code `i` has activation `values[i]` at latent `indices[i]` in row `rows[i]` of `n`; `rows`, i64, ascend.
    ///
    /// # Panics
    /// When the lengths differ.
    #[track_caller]
    pub fn from_entries(n: usize, rows: Tensor, indices: Tensor, values: Tensor) -> Self {
        assert_eq!(rows.size(), indices.size(), "rows against indices");
        assert_eq!(values.size(), indices.size(), "values against indices");
        let bags = Tensor::arange(n as i64, (Kind::Int64, rows.device()));
        // The number of entries in rows before each.
        let offsets = bags.searchsorted(&rows.contiguous(), false, false, "left", None::<Tensor>);
        Self { indices, offsets, bag_of: rows, values }
    }

    /// The bags of all `parts`, which have `n` rows each, one part after the other.
    pub(crate) fn join(n: usize, parts: &[Self]) -> Self {
        let cat = |of: fn(&Self) -> &Tensor| Tensor::cat(&parts.iter().map(of).collect::<Vec<_>>(), 0);
        let shifted = parts.iter().enumerate().map(|(part, bags)| &bags.bag_of + (part * n) as i64);
        let bag_of = Tensor::cat(&shifted.collect::<Vec<_>>(), 0);
        Self::from_entries(parts.len() * n, bag_of, cat(|bags| &bags.indices), cat(|bags| &bags.values))
    }

    /// Row `bag` of the joined bags of parts with `n` rows each is row `bag % n` of a part.
    pub(crate) fn modulo(&self, n: usize) -> Self {
        Self {
            indices: self.indices.shallow_clone(),
            offsets: self.offsets.shallow_clone(),
            bag_of: self.bag_of.remainder(n as i64),
            values: self.values.shallow_clone(),
        }
    }

    /// How many codes there are.
    pub fn len(&self) -> usize {
        self.indices.numel()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Latents of all codes, i64.
    pub fn indices(&self) -> &Tensor {
        &self.indices
    }

    /// Activations of all codes.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// `[n, d]`: `out[i] = Σ_j value[i, j] · rows[index[i, j]]`. Differentiable in both factors.
    pub fn sum_rows(&self, rows: &Tensor) -> Tensor {
        if self.is_empty() {
            return Tensor::zeros([self.offsets.size()[0], rows.size()[1]], (rows.kind(), rows.device()));
        }
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
