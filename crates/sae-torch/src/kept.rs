//! [`TorchSae::kept`]: single latents of each row, without its codes.

use sae_core::Activation;
use tch::{Kind, Tensor};

use crate::TorchSae;

/// Latents that are looked through first; then twice as many at a time.
const FIRST: i64 = 4096;

impl TorchSae {
    /// The activation that row `i` of `x` `[n, d_in]` keeps of latent `latents[i, s]`, `[n, m]`; 0 where it is not kept. What
    /// [`TorchSae::encode`] finds, but for rounding, at less cost: a latent is off as soon as more than k larger ones are found,
    /// and nothing is looked through for one without a positive pre-activation, nor with BatchTopK.
    ///
    /// # Panics
    /// When `x` is not `[n, d_in]`, or `latents` not `[n, m]` and below the width.
    #[track_caller]
    pub fn kept(&self, x: &Tensor, latents: &Tensor) -> Tensor {
        let centred = self.centre(x);
        let (n, m) = (latents.size()[0], latents.size()[1]);
        assert_eq!(x.size()[0], n, "rows of latents");
        let own = self.activations_of(&centred, latents);
        if let Activation::BatchTopK { threshold } = self.config().activation {
            let off = own.to_kind(Kind::Float).le(f64::from(threshold));
            return own.masked_fill(&off, 0.0);
        }
        let k = self.k() as i64;
        let mut larger = Tensor::zeros([n, m], (Kind::Int64, x.device()));
        let (mut start, mut block, latents_in_all) = (0, FIRST, self.num_latents() as i64);
        // What is NaN stays in doubt, and NaN.
        while start < latents_in_all && has_any(&own.le(0.0).logical_or(&larger.gt(k)).logical_not()) {
            let len = block.min(latents_in_all - start).min(self.rows_at_once(n));
            let weight = self.encoder_weight().narrow(0, start, len).tr();
            let dense = self.encoder_bias().narrow(0, start, len).addmm(&centred, &weight);
            let of_column = |column| {
                let own = own.narrow(1, column, 1);
                dense.gt_tensor(&own).sum_dim_intlist(1, true, Kind::Int64)
            };
            larger += Tensor::cat(&(0..m).map(of_column).collect::<Vec<_>>(), 1);
            (start, block) = (start + len, 2 * block);
        }
        // A latent may seem larger than itself, since products are rounded in two ways.
        let doubtful = larger.eq(k).logical_and(&own.gt(0.0));
        let off = larger.ge(k);
        if !has_any(&doubtful) {
            return own.masked_fill(&off, 0.0);
        }
        let codes = self.encode(x);
        let is_kept = codes.indices.unsqueeze(2).eq_tensor(&latents.unsqueeze(1)).any_dim(1, false);
        let off = off.logical_and(&doubtful.logical_and(&is_kept).logical_not());
        own.masked_fill(&off, 0.0)
    }

    /// The activations before TopK of each row's own latents, `[n, m]`. Their encoder rows, `[rows, m, d_in]`, are gathered for as many
    /// rows at a time as the dense budget allows.
    fn activations_of(&self, centred: &Tensor, latents: &Tensor) -> Tensor {
        let (n, m) = (latents.size()[0], latents.size()[1]);
        let row_bytes = m as usize * self.d_in() * self.kind().elt_size_in_bytes();
        let chunk = i64::try_from(self.dense_budget() / row_bytes.max(1)).unwrap_or(i64::MAX).max(1);
        let of_chunk = |start: i64| {
            let len = chunk.min(n - start);
            let flat = latents.narrow(0, start, len).reshape([-1]);
            let rows = self.encoder_weight().index_select(0, &flat).view([len, m, -1]).transpose(1, 2);
            let bias = self.encoder_bias().index_select(0, &flat).view([len, 1, m]);
            let centred = centred.narrow(0, start, len).unsqueeze(1);
            bias.baddbmm(&centred, &rows, 1.0, 1.0).squeeze_dim(1).relu_()
        };
        if n <= chunk {
            return of_chunk(0);
        }
        let starts = (0..n).step_by(usize::try_from(chunk).unwrap_or(usize::MAX));
        Tensor::cat(&starts.map(of_chunk).collect::<Vec<_>>(), 0)
    }

    /// How many latents of `n` rows the dense budget has room for.
    fn rows_at_once(&self, n: i64) -> i64 {
        let bytes = n.max(1) as usize * self.kind().elt_size_in_bytes();
        i64::try_from(self.dense_budget() / bytes).unwrap_or(i64::MAX).max(1)
    }
}

fn has_any(mask: &Tensor) -> bool {
    mask.any().int64_value(&[]) != 0
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use sae_core::{Sae, SaeConfig, SaeTensors};
    use tch::Device;

    use super::*;

    /// Every latent of every row, those at the edge of the k largest included, in one block and in several.
    #[test]
    fn what_is_kept_is_what_encoding_keeps() {
        tch::set_num_threads(1);
        let d_in = 6;
        for (latents, k, activation) in [
            (40, 5, Activation::TopK),
            (9000, 700, Activation::TopK),
            (40, 5, Activation::BatchTopK { threshold: 0.7 }),
        ] {
            let mut random = ChaCha8Rng::seed_from_u64(3);
            let mut draw = |n: usize| (0..n).map(|_| random.random_range(-1.0..1.0)).collect::<Vec<f32>>();
            let tensors = SaeTensors {
                encoder_weight: draw(latents * d_in),
                encoder_bias: draw(latents),
                decoder_weight: draw(latents * d_in),
                decoder_bias: draw(d_in),
                skip_weight: None,
            };
            let mut config = SaeConfig::new(d_in, latents, k);
            config.activation = activation;
            let host = Sae::from_parts(config, tensors).unwrap();
            let sae = TorchSae::from_sae(&host, Device::Cpu, Kind::Float).unwrap().with_dense_budget(20_000);
            let n = 4;
            // In one gather of encoder rows, and in one for each token.
            let cramped = TorchSae::from_sae(&host, Device::Cpu, Kind::Float).unwrap().with_dense_budget(1);
            let x = Tensor::from_slice(&draw(n * d_in)).view([n as i64, -1]);
            let codes = sae.encode(&x);
            let dense = Tensor::zeros([n as i64, latents as i64], (Kind::Float, Device::Cpu));
            let wanted = dense.scatter(1, &codes.indices, &codes.values);
            for start in (0..latents as i64).step_by(20) {
                let some = Tensor::arange_start(start, start + 20, (Kind::Int64, Device::Cpu));
                let some = some.unsqueeze(0).expand([n as i64, 20], false);
                let kept = sae.kept(&x, &some);
                let off = (kept - wanted.narrow(1, start, 20)).abs().max().double_value(&[]);
                assert!(off < 1e-5, "{activation:?}, {latents} latents from {start}: {off}");
                if latents < 100 {
                    let off = (cramped.kept(&x, &some) - wanted.narrow(1, start, 20)).abs().max();
                    assert!(off.double_value(&[]) < 1e-5, "{activation:?} from {start}, token by token");
                }
            }
        }
    }
}
