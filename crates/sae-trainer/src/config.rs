//! [`TrainerConfig`], its checks, and the learning rate that follows from it.

use std::f64::consts::PI;

use sae_core::{Activation, SaeConfig};

use crate::TrainerError;

/// How the learning rate falls once it has risen, over optimizer steps whatever the accumulation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Schedule {
    /// In a straight line to 0.
    #[default]
    Linear,
    /// Along half a cosine to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts): slowly at first and at last.
    Cosine,
}

/// Which activations become codes in training. Both take ReLU first, and zeros are not codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selection {
    /// The k largest of each row (Gao et al. 2024, arXiv 2406.04093).
    #[default]
    TopK,
    /// The n·k largest of n rows together (Bussmann et al. 2024, arXiv 2412.06410); afterwards all above a threshold, which
    /// training finds.
    BatchTopK,
}

/// How gradients become changes of the parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Optimizer {
    /// Adam (Kingma and Ba 2015) with 0.9, 0.999, 1e-8; 8 bytes a parameter.
    #[default]
    Adam,
    /// Adam with moments in 8 bits, by blocks of 256 numbers (Dettmers et al. 2021, arXiv 2110.02861); 2 bytes a parameter.
    Adam8bit,
    /// The sign of a running mean of gradients (Bernstein et al. 2018, arXiv 1802.04434), 0.95; 4 bytes a parameter.
    Signum,
}

/// Where the decoder's bias starts, from the first batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum BiasInit {
    /// At the [`geometric_median`](crate::geometric_median), as OpenAI and msae do.
    #[default]
    GeometricMedian,
    /// At the mean, as sparsify does.
    Mean,
    /// At 0.
    Zero,
}

/// What is trained, and how.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "independent settings, each a flag of the command line")]
pub struct TrainerConfig {
    /// Length of the activation vectors.
    pub d_in: usize,
    /// Number of latents.
    pub num_latents: usize,
    /// How many latents a token keeps, on average with [`Selection::BatchTopK`].
    pub k: usize,
    /// Which activations become codes.
    pub activation: Selection,
    /// Whether to add 1/8 of the loss at 4k latents.
    pub multi_topk: bool,
    /// Weight of the AuxK loss; 0 is off, 1/32 is customary.
    pub auxk_alpha: f64,
    /// Lengths of the nested prefixes of the dictionary whose reconstructions are averaged, ascending, the last
    /// `num_latents` (Bussmann et al. 2025, arXiv 2503.17547); empty is off.
    pub matryoshka: Vec<usize>,
    /// Whether it predicts targets from inputs, a module's output from its input, instead of the inputs themselves.
    pub transcode: bool,
    /// Whether the inputs also reach the output through a matrix `W_skip` `[d_in, d_in]`.
    pub skip_connection: bool,
    /// How gradients become changes.
    pub optimizer: Optimizer,
    /// Peak learning rate; `None` is [`TrainerConfig::default_lr`].
    pub lr: Option<f64>,
    /// Optimizer steps over which the learning rate rises.
    pub warmup_steps: u64,
    /// How the learning rate falls afterwards.
    pub schedule: Schedule,
    /// Optimizer steps in all, at the end of which the learning rate is all but 0.
    pub total_steps: u64,
    /// Calls of [`Trainer::step`](crate::Trainer::step) that make one optimizer step, their gradients averaged.
    pub grad_acc_steps: u32,
    /// Parts that the rows of one call are worked on in, for memory's sake. The variance is that of the whole call, so with
    /// TopK the gradient does not depend on it; BatchTopK selects within each part.
    pub micro_acc_steps: u32,
    /// Largest norm of all gradients together; infinity clips nothing.
    pub max_grad_norm: f64,
    /// Whether the decoder's rows are kept at length 1. Without effect on transcoders, whose decoder starts at 0.
    pub normalize_decoder: bool,
    /// Tokens after which a latent that never fired counts as dead.
    pub dead_feature_threshold: u64,
    /// Seed of the initial weights.
    pub seed: u64,
    /// Whether the first batch's mean is subtracted from all activations.
    pub centre: bool,
    /// Whether activations are scaled so that those of the first batch, less their mean, have the length `sqrt(d_in)` on average.
    pub scale_norm: bool,
    /// Where the decoder's bias starts.
    pub bias_init: BiasInit,
    /// Bytes that dense pre-activations may take at once on libtorch. On the CPU there are none.
    pub dense_budget: usize,
}

impl TrainerConfig {
    /// msae's settings: TopK and Adam, 1000 steps of warm-up (or a tenth of a run shorter than 10,000), no AuxK, no Multi-TopK,
    /// gradients clipped at 1, latents dead after 10 million tokens, seed 42.
    pub fn new(d_in: usize, num_latents: usize, k: usize, total_steps: u64) -> Self {
        Self {
            d_in,
            num_latents,
            k,
            activation: Selection::TopK,
            multi_topk: false,
            auxk_alpha: 0.0,
            matryoshka: Vec::new(),
            transcode: false,
            skip_connection: false,
            optimizer: Optimizer::Adam,
            lr: None,
            warmup_steps: 1000.min(total_steps / 10),
            schedule: Schedule::Linear,
            total_steps,
            grad_acc_steps: 1,
            micro_acc_steps: 1,
            max_grad_norm: 1.0,
            normalize_decoder: true,
            dead_feature_threshold: 10_000_000,
            seed: 42,
            centre: false,
            scale_norm: false,
            bias_init: BiasInit::GeometricMedian,
            dense_budget: 256 << 20,
        }
    }

    /// `2e-4 / sqrt(num_latents / 2^14)`, the scaling law of OpenAI's 2406.04093 as sparsify has it; with
    /// [`Optimizer::Signum`] `5e-3` over the same root, as sparsify.
    pub fn default_lr(&self) -> f64 {
        let at_2_14 = match self.optimizer {
            Optimizer::Adam | Optimizer::Adam8bit => 2e-4,
            Optimizer::Signum => 5e-3,
        };
        at_2_14 / (self.num_latents as f64 / f64::from(1 << 14)).sqrt()
    }

    /// The learning rate of optimizer step `step`, from 0: rises linearly to its peak at the last step of the warm-up, then falls
    /// as [`TrainerConfig::schedule`] says, so that the step after the last would have 0.
    pub fn lr_at(&self, step: u64) -> f64 {
        let peak = self.lr.unwrap_or_else(|| self.default_lr());
        if step < self.warmup_steps {
            peak * (step + 1) as f64 / self.warmup_steps as f64
        } else {
            let falling = (self.total_steps - self.warmup_steps) as f64;
            let left = self.total_steps.saturating_sub(step) as f64 / falling;
            match self.schedule {
                Schedule::Linear => peak * left,
                Schedule::Cosine => peak * 0.5 * (1.0 - (PI * left).cos()),
            }
        }
    }

    /// Whether the decoder's rows are kept at length 1.
    pub(crate) fn unit_rows(&self) -> bool {
        self.normalize_decoder && !self.transcode
    }

    /// What is trained, as its `cfg.json` says; `threshold` is BatchTopK's.
    pub(crate) fn sae_config(&self, threshold: f32) -> SaeConfig {
        let mut config = SaeConfig::new(self.d_in, self.num_latents, self.k);
        config.activation = match self.activation {
            Selection::TopK => Activation::TopK,
            Selection::BatchTopK => Activation::BatchTopK { threshold },
        };
        config.multi_topk = self.multi_topk;
        config.normalize_decoder = self.normalize_decoder;
        config.matryoshka.clone_from(&self.matryoshka);
        config.transcode = self.transcode;
        config.skip_connection = self.skip_connection;
        config
    }

    /// Checks that every setting is in range.
    ///
    /// # Errors
    /// The first that is not.
    pub fn validate(&self) -> Result<(), TrainerError> {
        let check = |field, sound: bool, expected: &str, got: String| {
            if sound {
                Ok(())
            } else {
                Err(TrainerError::Setting { field, expected: expected.to_owned(), got })
            }
        };
        let prefixes = &self.matryoshka;
        let nested = prefixes.first() != Some(&0) && prefixes.is_sorted_by(|a, b| a < b);
        check(
            "matryoshka",
            prefixes.is_empty() || nested && prefixes.last() == Some(&self.num_latents),
            &format!("ascending lengths from 1, the last {} (num_latents)", self.num_latents),
            format!("{prefixes:?}"),
        )?;
        self.sae_config(0.0).validate().map_err(|source| TrainerError::Config { source })?;
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let lr = self.lr.unwrap_or_else(|| self.default_lr());
        check("lr", positive(lr), "a positive number", lr.to_string())?;
        check("total_steps", self.total_steps > 0, "at least 1", self.total_steps.to_string())?;
        let warmup = self.warmup_steps;
        check("warmup_steps", warmup < self.total_steps, "fewer than total_steps", warmup.to_string())?;
        check("grad_acc_steps", self.grad_acc_steps > 0, "at least 1", self.grad_acc_steps.to_string())?;
        check("micro_acc_steps", self.micro_acc_steps > 0, "at least 1", self.micro_acc_steps.to_string())?;
        let alpha = self.auxk_alpha;
        check("auxk_alpha", alpha == 0.0 || positive(alpha), "0 or a positive number", alpha.to_string())?;
        let norm = self.max_grad_norm;
        check("max_grad_norm", norm > 0.0, "a positive number or infinity", norm.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rate_rises_and_falls_over_optimizer_steps() {
        let mut config = TrainerConfig::new(4096, 131_072, 256, 24_352);
        assert!((config.default_lr() - 7.071e-5).abs() < 1e-8);
        assert_eq!(config.warmup_steps, 1000);
        config.optimizer = Optimizer::Signum;
        assert!((config.default_lr() - 1.768e-3).abs() < 1e-6);
        config = TrainerConfig { lr: Some(1.0), warmup_steps: 4, total_steps: 12, ..config };
        let rates: Vec<f64> = (0..14).map(|step| config.lr_at(step)).collect();
        let expected = [0.25, 0.5, 0.75, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0, 0.0];
        assert_eq!(rates, expected);
        config.warmup_steps = 0;
        assert_eq!((config.lr_at(0), config.lr_at(6)), (1.0, 0.5));
    }

    #[test]
    fn a_cosine_starts_and_ends_where_the_line_does_and_falls_later() {
        let line = TrainerConfig { lr: Some(1.0), warmup_steps: 4, ..TrainerConfig::new(8, 16, 4, 12) };
        let cosine = TrainerConfig { schedule: Schedule::Cosine, ..line.clone() };
        for step in [0, 3, 4, 8, 12, 14] {
            assert!((cosine.lr_at(step) - line.lr_at(step)).abs() < 1e-15, "step {step}");
        }
        // A quarter and three quarters of the way down: (1 ± cos 45°) / 2.
        assert!((cosine.lr_at(6) - (0.5 + 0.125_f64.sqrt())).abs() < 1e-15);
        assert!((cosine.lr_at(10) - (0.5 - 0.125_f64.sqrt())).abs() < 1e-15);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let good = TrainerConfig::new(8, 16, 4, 100);
        good.validate().unwrap();
        let unclipped =
            TrainerConfig { max_grad_norm: f64::INFINITY, matryoshka: vec![4, 16], ..good.clone() };
        unclipped.validate().unwrap();
        for (field, bad) in [
            ("warmup_steps", TrainerConfig { warmup_steps: 100, ..good.clone() }),
            ("total_steps", TrainerConfig { total_steps: 0, ..good.clone() }),
            ("grad_acc_steps", TrainerConfig { grad_acc_steps: 0, ..good.clone() }),
            ("lr", TrainerConfig { lr: Some(f64::NAN), ..good.clone() }),
            ("auxk_alpha", TrainerConfig { auxk_alpha: -1.0, ..good.clone() }),
            ("max_grad_norm", TrainerConfig { max_grad_norm: 0.0, ..good.clone() }),
            ("max_grad_norm", TrainerConfig { max_grad_norm: f64::NAN, ..good.clone() }),
            ("micro_acc_steps", TrainerConfig { micro_acc_steps: 0, ..good.clone() }),
            ("matryoshka", TrainerConfig { matryoshka: vec![4, 8], ..good.clone() }),
            ("matryoshka", TrainerConfig { matryoshka: vec![8, 4, 16], ..good.clone() }),
            ("matryoshka", TrainerConfig { matryoshka: vec![0, 16], ..good.clone() }),
        ] {
            let message = bad.validate().unwrap_err().to_string();
            assert!(message.starts_with(field), "{message}");
        }
        let wide = TrainerConfig { k: 17, ..good };
        assert!(matches!(wide.validate(), Err(TrainerError::Config { .. })));
    }
}
