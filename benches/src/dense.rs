//! The usual way to encode, as the benches' rival: a dense product by `gemm`, then a selection in each row.
#![expect(unsafe_code, reason = "gemm takes pointers and strides")]

use ndarray::ArrayView2;
use rayon::prelude::*;
use sae_core::WeightDtype;
use sae_core::kernels::Encoder;
use sae_types::{FeatureId, SparseCodes};

/// Buffers that are kept from call to call, as the kernels keep theirs.
#[derive(Debug, Default)]
pub struct Dense {
    centred: Vec<f32>,
    /// `[tokens, latents]`.
    product: Vec<f32>,
    /// Per row: the pre-activations above 0 and their latents.
    rows: Vec<Vec<(f32, u32)>>,
}

impl Dense {
    /// Codes of the rows of `x`, the `k` largest of each, with f32 weights, on the current rayon pool.
    ///
    /// # Panics
    /// When the weights are not f32 at their alignment, or shapes disagree.
    pub fn encode(
        &mut self,
        encoder: &Encoder<'_>,
        k: usize,
        x: &ArrayView2<'_, f32>,
        out: &mut SparseCodes,
    ) {
        let ([latents, d_in], tokens) = (encoder.weight.shape(), x.nrows());
        assert_eq!(encoder.weight.dtype(), WeightDtype::F32, "dtype of the weights");
        assert_eq!(
            (x.ncols(), encoder.decoder_bias.len()),
            (d_in, d_in),
            "columns of x and b_dec against d_in"
        );
        assert_eq!(encoder.bias.len(), latents, "b_enc against latents");
        let weight: &[f32] = bytemuck::cast_slice(encoder.weight.bytes());

        self.centred.clear();
        for row in x.rows() {
            self.centred.extend(row.iter().zip(encoder.decoder_bias).map(|(x, bias)| x - bias));
        }
        self.product.resize(tokens * latents, 0.0);
        let (columns, width) = (d_in.cast_signed(), latents.cast_signed());
        // SAFETY: `product` is `tokens * latents`, `centred` is `tokens * d_in` and `weight` is `latents * d_in` numbers, all
        // row-major, and the strides say so (`weight` is read transposed). `product` is borrowed mutably, the others are
        // other memory.
        unsafe {
            gemm::gemm(
                tokens,
                latents,
                d_in,
                self.product.as_mut_ptr(),
                1,
                width,
                false,
                self.centred.as_ptr(),
                1,
                columns,
                weight.as_ptr(),
                columns,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(0),
            );
        }

        self.rows.resize_with(tokens, Vec::new);
        self.rows.par_iter_mut().zip(self.product.par_chunks(latents)).for_each(|(kept, product)| {
            kept.clear();
            let pre = product.iter().zip(encoder.bias).map(|(product, bias)| product + bias).zip(0..);
            kept.extend(pre.filter(|&(pre, _)| pre > 0.0));
            if kept.len() > k {
                kept.select_nth_unstable_by(k - 1, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                kept.truncate(k);
            }
            kept.sort_unstable_by_key(|&(_, latent)| latent);
        });
        out.reset(latents);
        for row in &self.rows {
            let row = row.iter().map(|&(value, latent)| (FeatureId(latent), value));
            out.push_row(row).expect("ascending latents and finite activations above 0");
        }
    }
}

#[cfg(test)]
mod tests {
    use sae_core::Compute;
    use sae_core::kernels::{self, Scratch, Selection};

    use super::*;
    use crate::{SHAPES, inputs};

    #[test]
    fn agrees_with_the_kernels() {
        let shape = &SHAPES[0];
        let weight = inputs::encoder_weight(shape, WeightDtype::F32);
        let (bias, decoder_bias) = (inputs::encoder_bias(shape), inputs::decoder_bias(shape));
        let selection = Selection::TopK(shape.k);
        let encoder = Encoder { weight: weight.view(), bias: &bias, decoder_bias: &decoder_bias, selection };
        let x = inputs::vectors(33, shape.d_in, inputs::seeds::VECTORS, false);
        let (mut dense, mut fused) = (SparseCodes::new(shape.latents), SparseCodes::new(shape.latents));
        Dense::default().encode(&encoder, shape.k, &x.view(), &mut dense);
        kernels::encode(Compute::default(), &encoder, x.view(), &mut Scratch::new(), &mut fused).unwrap();
        assert_eq!(dense.offsets(), fused.offsets());
        assert_eq!(dense.latents(), fused.latents());
        for (dense, fused) in dense.values().iter().zip(fused.values()) {
            assert!((dense - fused).abs() < 1e-5, "{dense} {fused}");
        }
    }
}
