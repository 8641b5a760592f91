//! [`Trainer`]: parameters, optimizer and counters of one autoencoder in training.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sae_core::Sae;
use sae_torch::{Gradients, Parameters, TorchSae};
use tch::{Device, Kind, Tensor, no_grad};

use crate::adam::{Adam, clip, normalise_rows, remove_parallel};
use crate::loss::{Losses, Objective, forward_backward};
use crate::{TrainerConfig, TrainerError, geometric_median};

/// One TopK autoencoder in training, f32 on one device.
#[derive(Debug)]
pub struct Trainer {
    config: TrainerConfig,
    sae: TorchSae,
    adam: Adam,
    gradients: Gradients,
    /// Batches whose gradients wait for the next optimizer step.
    pending: u32,
    /// `[num_latents]` tokens since each latent fired, i64.
    tokens_since_fired: Tensor,
    tokens: u64,
}

/// What one call of [`Trainer::step`] did.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// The loss of this batch.
    pub loss: f64,
    /// Its fraction of variance unexplained, centred on the batch's own mean.
    pub fvu: f64,
    /// The same with 4k latents, with `multi_topk`.
    pub multi_topk_fvu: Option<f64>,
    /// The AuxK loss before its weight, where there are dead latents and `auxk_alpha` is not 0.
    pub auxk: Option<f64>,
    /// Latents on per token.
    pub l0: f64,
    /// Share of latents that have not fired for `dead_feature_threshold` tokens.
    pub dead_share: f64,
    /// The learning rate of the optimizer step that this batch is part of.
    pub lr: f64,
    /// Norm of all gradients before clipping, when this batch completed an optimizer step.
    pub grad_norm: Option<f64>,
    /// Optimizer steps taken so far.
    pub optimizer_steps: u64,
    /// Tokens seen so far.
    pub tokens: u64,
}

/// All that a run would have to restore, apart from its data position.
#[derive(Debug)]
pub struct TrainerState<'a> {
    /// Named tensors: parameters, Adam's moments, waiting gradients, tokens since each latent fired.
    pub tensors: Vec<(String, &'a Tensor)>,
    /// Optimizer steps taken.
    pub optimizer_steps: u64,
    /// Batches whose gradients wait for the next optimizer step.
    pub pending: u32,
    /// Tokens seen.
    pub tokens: u64,
}

impl Trainer {
    /// Draws an autoencoder: encoder rows uniform in ±1/sqrt(d_in) as `torch.nn.Linear` draws them, from ChaCha8 under the
    /// seed (so the same on every device), decoder rows their copies at length 1, biases 0.
    ///
    /// # Errors
    /// When a setting is out of range.
    ///
    /// # Panics
    /// When the device has no room.
    pub fn new(config: TrainerConfig, device: Device) -> Result<Self, TrainerError> {
        config.validate()?;
        let (latents, d_in) = (config.num_latents as i64, config.d_in as i64);
        let bound = 1.0 / (config.d_in as f32).sqrt();
        let mut random = ChaCha8Rng::seed_from_u64(config.seed);
        let weight: Vec<f32> =
            (0..config.num_latents * config.d_in).map(|_| random.random_range(-bound..bound)).collect();
        let encoder_weight = Tensor::from_slice(&weight).reshape([latents, d_in]).to_device(device);
        let mut decoder_weight = encoder_weight.copy();
        normalise_rows(&mut decoder_weight);
        let zeros = |n: i64, kind| Tensor::zeros([n], (kind, device));
        let parameters = Parameters {
            encoder_weight,
            encoder_bias: zeros(latents, Kind::Float),
            decoder_weight,
            decoder_bias: zeros(d_in, Kind::Float),
        };
        let sae = TorchSae::from_parameters(config.sae_config(), parameters)
            .map_err(|source| TrainerError::Sae { source })?
            .with_dense_budget(config.dense_budget);
        Ok(Self {
            adam: Adam::new(&sae),
            gradients: Gradients::zeros(&sae),
            pending: 0,
            tokens_since_fired: zeros(latents, Kind::Int64),
            tokens: 0,
            config,
            sae,
        })
    }

    /// Sets the decoder bias to the [`geometric_median`] of `activations` `[n, d_in]`. Meant for the first batch, before the
    /// first step; without it training starts from a bias of 0.
    ///
    /// # Errors
    /// When an activation is NaN or infinite.
    ///
    /// # Panics
    /// When `activations` is not `[n, d_in]` with at least one row.
    #[track_caller]
    pub fn init_bias(&mut self, activations: &Tensor) -> Result<(), TrainerError> {
        let x = self.check(activations);
        let bad = x.isfinite().all_dim(1, false).logical_not().nonzero();
        if bad.size()[0] > 0 {
            return Err(TrainerError::ActivationsNotFinite { row: bad.int64_value(&[0, 0]) as usize });
        }
        let median = geometric_median(&x);
        no_grad(|| self.sae.parameters_mut().decoder_bias.copy_(&median));
        Ok(())
    }

    /// Takes in a batch `[n, d_in]` of any float dtype, and after every `grad_acc_steps` batches takes an optimizer step: the part
    /// of the decoder's gradient along its rows is removed, all gradients are clipped together, once, Adam moves the
    /// parameters, and the decoder's rows go back to length 1.
    ///
    /// # Errors
    /// When an activation is NaN or infinite, or all are equal; nothing has changed then. When the loss or the gradient is not
    /// finite; the optimizer step is then not taken, and its gradients are dropped.
    ///
    /// # Panics
    /// When `activations` is not `[n, d_in]` with at least one row.
    #[track_caller]
    pub fn step(&mut self, activations: &Tensor) -> Result<StepReport, TrainerError> {
        let x = self.check(activations);
        let lr = self.config.lr_at(self.adam.steps);
        let objective = Objective { multi_topk: self.config.multi_topk, auxk_alpha: self.config.auxk_alpha };
        let scale = 1.0 / f64::from(self.config.grad_acc_steps);
        let losses = no_grad(|| {
            let dead = self.dead_mask().nonzero().squeeze_dim(1);
            forward_backward(&self.sae, &x, &dead, objective, &mut self.gradients, scale)
        })?;
        if !losses.loss.is_finite() {
            return Err(self.diverged("loss", losses.loss));
        }
        let rows = x.size()[0];
        let l0 = no_grad(|| self.count_fired(&losses, rows));
        self.pending += 1;
        let mut grad_norm = None;
        if self.pending == self.config.grad_acc_steps {
            remove_parallel(&self.sae, &mut self.gradients);
            let norm = clip(&mut self.gradients, self.config.max_grad_norm);
            if !norm.is_finite() {
                return Err(self.diverged("gradient norm", norm));
            }
            self.adam.step(&mut self.sae, &self.gradients, lr);
            normalise_rows(&mut self.sae.parameters_mut().decoder_weight);
            self.drop_gradients();
            grad_norm = Some(norm);
        }
        Ok(StepReport {
            loss: losses.loss,
            fvu: losses.fvu,
            multi_topk_fvu: losses.multi_topk_fvu,
            auxk: losses.auxk,
            l0,
            dead_share: self.dead_mask().to_kind(Kind::Double).mean(Kind::Double).double_value(&[]),
            lr,
            grad_norm,
            optimizer_steps: self.adam.steps,
            tokens: self.tokens,
        })
    }

    #[track_caller]
    fn check(&self, activations: &Tensor) -> Tensor {
        let size = activations.size();
        assert!(
            matches!(size[..], [n, d_in] if n > 0 && d_in == self.config.d_in as i64),
            "activations are {size:?}, expected [n, {}] with at least one row",
            self.config.d_in
        );
        activations.detach().to_device(self.sae.device()).to_kind(Kind::Float)
    }

    fn dead_mask(&self) -> Tensor {
        let threshold = i64::try_from(self.config.dead_feature_threshold).unwrap_or(i64::MAX);
        self.tokens_since_fired.gt(threshold)
    }

    /// Counts tokens and firings; returns the latents on per token.
    fn count_fired(&mut self, losses: &Losses, rows: i64) -> f64 {
        let fired = losses.codes.indices.masked_select(&losses.codes.values.gt(0.0));
        self.tokens_since_fired += rows;
        let _ = self.tokens_since_fired.index_fill_(0, &fired, 0);
        self.tokens += rows as u64;
        fired.numel() as f64 / rows as f64
    }

    fn diverged(&mut self, what: &'static str, value: f64) -> TrainerError {
        self.drop_gradients();
        TrainerError::Diverged { what, step: self.adam.steps, value }
    }

    fn drop_gradients(&mut self) {
        self.gradients.reset();
        self.pending = 0;
    }

    /// The settings.
    pub fn config(&self) -> &TrainerConfig {
        &self.config
    }

    /// The autoencoder as it stands, for evaluation.
    pub fn sae(&self) -> &TorchSae {
        &self.sae
    }

    /// Everything that changes in training.
    pub fn state(&self) -> TrainerState<'_> {
        const NAMES: [&str; 4] = ["encoder.weight", "encoder.bias", "W_dec", "b_dec"];
        let sae = &self.sae;
        let parameters = [sae.encoder_weight(), sae.encoder_bias(), sae.decoder_weight(), sae.decoder_bias()];
        let groups = [
            ("parameter", parameters),
            ("adam.first", self.adam.first.tensors()),
            ("adam.second", self.adam.second.tensors()),
            ("gradient", self.gradients.tensors()),
        ];
        let named = groups.into_iter().flat_map(|(group, tensors)| {
            NAMES.into_iter().zip(tensors).map(move |(name, tensor)| (format!("{group}.{name}"), tensor))
        });
        let fired = ("tokens_since_fired".to_owned(), &self.tokens_since_fired);
        TrainerState {
            tensors: named.chain([fired]).collect(),
            optimizer_steps: self.adam.steps,
            pending: self.pending,
            tokens: self.tokens,
        }
    }

    /// A copy of the autoencoder off the device, to be saved.
    ///
    /// # Errors
    /// When the device fails.
    pub fn to_sae(&self) -> Result<Sae, TrainerError> {
        self.sae.to_sae().map_err(|source| TrainerError::Sae { source })
    }

    /// Ends training.
    ///
    /// # Errors
    /// When the device fails.
    pub fn into_sae(self) -> Result<Sae, TrainerError> {
        self.to_sae()
    }
}
