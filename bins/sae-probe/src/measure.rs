//! How much each feature is on: before TopK, or as a code.

use anyhow::Result;
use sae_torch::TorchSae;
use sae_types::{FeatureId, SparseCodes};
use tch::{Device, Kind, Tensor};

/// What features are ranked by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum By {
    /// The mean over the tokens of what it is before TopK, as multimodal-sae probes
    #[default]
    PreActivation,
    /// The mean over the tokens of its code, 0 where it is not among the k largest
    Mean,
    /// Its largest code
    Max,
}

/// What an autoencoder makes of the tokens that count.
pub(crate) struct Measured<'a> {
    sae: &'a TorchSae,
    by: By,
    /// `x - b_dec`, `[tokens, d_in]`.
    centred: Tensor,
    codes: SparseCodes,
}

/// Bytes that pre-activations may take at once.
const BUDGET: i64 = 256 << 20;

impl<'a> Measured<'a> {
    /// Encodes `x` `[tokens, d_in]`.
    pub(crate) fn new(sae: &'a TorchSae, by: By, x: &Tensor) -> Result<Self> {
        let codes = sae.encode(x).to_codes(sae.num_latents())?;
        Ok(Self { sae, by, centred: sae.centre(x), codes })
    }

    /// Features by rank, highest first, the lower of equals first; those that are off everywhere are left out. Sums of
    /// pre-activations are f32 within a chunk of tokens and f64 over chunks.
    pub(crate) fn ranked(&self) -> Result<Vec<(FeatureId, f64)>> {
        let values = match self.by {
            By::PreActivation => self.means()?,
            By::Mean | By::Max => {
                let mut values = vec![0.0; self.sae.num_latents()];
                for (&latent, &value) in self.codes.latents().iter().zip(self.codes.values()) {
                    let sum: &mut f64 = &mut values[latent as usize];
                    let value = f64::from(value);
                    *sum =
                        if self.by == By::Max { sum.max(value) } else { *sum + value / self.tokens() as f64 };
                }
                values
            }
        };
        let mut ranked: Vec<(FeatureId, f64)> =
            (0..).map(FeatureId).zip(values).filter(|&(_, value)| value > 0.0).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        Ok(ranked)
    }

    fn tokens(&self) -> usize {
        self.codes.n_rows()
    }

    fn means(&self) -> Result<Vec<f64>> {
        let (latents, tokens) = (self.sae.num_latents() as i64, self.tokens() as i64);
        let columns = self.sae.encoder_weight().tr();
        let mut sum = Tensor::zeros([latents], (Kind::Double, self.sae.device()));
        let chunk = (BUDGET / (4 * latents)).max(1);
        for start in (0..tokens).step_by(chunk as usize) {
            let rows = self.centred.narrow(0, start, chunk.min(tokens - start));
            let dense = self.sae.encoder_bias().addmm(&rows, &columns).relu_();
            let _ = sum.g_add_(&dense.sum_dim_intlist(0, false, Kind::Float).to_kind(Kind::Double));
        }
        Ok(Vec::try_from((sum / tokens.max(1) as f64).to_device(Device::Cpu))?)
    }

    /// A feature on every token that counts, `[tokens]`: before TopK or as a code, as it is ranked.
    pub(crate) fn row(&self, feature: FeatureId) -> Result<Vec<f32>> {
        if self.by != By::PreActivation {
            return Ok((0..self.tokens()).map(|token| self.codes.row(token).value(feature)).collect());
        }
        let latent = i64::from(feature.0);
        let own =
            self.centred.mv(&self.sae.encoder_weight().get(latent)) + self.sae.encoder_bias().get(latent);
        Ok(Vec::try_from(own.relu().to_kind(Kind::Float).to_device(Device::Cpu))?)
    }
}

#[cfg(test)]
mod tests {
    use sae_core::SaeConfig;
    use sae_torch::Parameters;

    use super::*;

    /// Three latents that read one number each, of which one is kept.
    fn sae() -> TorchSae {
        let eye = Tensor::eye(3, (Kind::Float, Device::Cpu));
        let zeros = || Tensor::zeros([3], (Kind::Float, Device::Cpu));
        let parameters = Parameters {
            encoder_weight: eye.copy(),
            encoder_bias: zeros(),
            decoder_weight: eye,
            decoder_bias: zeros(),
            skip_weight: None,
        };
        TorchSae::from_parameters(SaeConfig::new(3, 3, 1), parameters).unwrap()
    }

    fn ids(ranked: &[(FeatureId, f64)]) -> Vec<(u32, f64)> {
        ranked.iter().map(|&(feature, value)| (feature.0, value)).collect()
    }

    #[test]
    fn features_that_lose_every_token_show_before_topk_only() {
        let sae = sae();
        let x = Tensor::from_slice(&[4.0_f32, 3.0, -1.0, 2.0, 3.0, -5.0]).reshape([2, 3]);
        let measured = |by| Measured::new(&sae, by, &x).unwrap();
        assert_eq!(ids(&measured(By::PreActivation).ranked().unwrap()), [(0, 3.0), (1, 3.0)]);
        assert_eq!(ids(&measured(By::Mean).ranked().unwrap()), [(0, 2.0), (1, 1.5)]);
        assert_eq!(ids(&measured(By::Max).ranked().unwrap()), [(0, 4.0), (1, 3.0)]);
        assert_eq!(measured(By::PreActivation).row(FeatureId(1)).unwrap(), [3.0, 3.0]);
        assert_eq!(measured(By::Mean).row(FeatureId(1)).unwrap(), [0.0, 3.0]);
        assert_eq!(measured(By::PreActivation).row(FeatureId(2)).unwrap(), [0.0, 0.0]);
    }
}
