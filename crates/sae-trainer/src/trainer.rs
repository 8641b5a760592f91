//! [`Trainer`]: one autoencoder in training.

use std::hash::{DefaultHasher, Hash, Hasher};

use rayon::prelude::*;
use sae_core::{Activation, Sae, SaeTensors};
use tch::{Device, Kind, Tensor, no_grad};

use crate::backend::{Backend, Cpu, Rates, Torch};
use crate::config::Selection;
use crate::distributed::{Distribution, Failure, Share, gather_rows, numbers};
use crate::init;
use crate::normalisation::{Affine, Normalisation};
use crate::objective::{Batch, Chain, Losses, Objective, forward_backward};
use crate::progress::Progress;
use crate::rows::Checked;
use crate::{BiasInit, Rows, TrainerConfig, TrainerError, geometric_median};

/// What computes a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Engine {
    /// `sae-core`'s kernels, on the CPU. No matrix `[tokens, latents]` exists, and results do not depend on the number of threads.
    Kernels,
    /// libtorch, on any device. Dense pre-activations are made for as many tokens at a time as
    /// [`TrainerConfig::dense_budget`] allows.
    Libtorch,
}

impl Engine {
    /// The kernels on the CPU, libtorch elsewhere.
    pub fn usual(device: Device) -> Self {
        if device == Device::Cpu { Self::Kernels } else { Self::Libtorch }
    }
}

/// One autoencoder in training, f32 on one device.
#[derive(Debug)]
pub struct Trainer {
    pub(crate) config: TrainerConfig,
    pub(crate) engine: Running,
    pub(crate) normalisation: Normalisation,
    pub(crate) progress: Progress,
    pub(crate) distribution: Distribution,
    /// Whether the parameters come from an autoencoder, whose biases are not to be set anew.
    fine_tuning: bool,
}

/// The engine and what it holds.
#[derive(Debug)]
pub(crate) enum Running {
    Kernels(Box<Cpu>),
    Libtorch(Box<Torch>),
}

/// Calls generic code with whichever engine runs.
macro_rules! with_backend {
    ($engine:expr, $backend:ident => $body:expr) => {
        match $engine {
            $crate::trainer::Running::Kernels($backend) => $body,
            $crate::trainer::Running::Libtorch($backend) => $body,
        }
    };
}
pub(crate) use with_backend;

/// What one call of [`Trainer::step`] did.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// The loss of this batch.
    pub loss: f64,
    /// Its fraction of variance unexplained by the k codes, centred on the batch's own mean.
    pub fvu: f64,
    /// The same with 4k latents, with `multi_topk`.
    pub multi_topk_fvu: Option<f64>,
    /// The mean of the same over the prefixes, with `matryoshka`.
    pub matryoshka_fvu: Option<f64>,
    /// The AuxK loss before its weight, where there are dead latents and `auxk_alpha` is not 0.
    pub auxk: Option<f64>,
    /// Latents on per token.
    pub l0: f64,
    /// Share of latents that have not fired for `dead_feature_threshold` tokens.
    pub dead_share: f64,
    /// The activation above which BatchTopK's latents will count as on, in units of the activations as they were given.
    pub threshold: Option<f64>,
    /// The learning rate of the optimizer step that this batch is part of.
    pub lr: f64,
    /// Norm of all gradients before clipping, when this batch completed an optimizer step.
    pub grad_norm: Option<f64>,
    /// Optimizer steps taken so far.
    pub optimizer_steps: u64,
    /// Tokens seen so far.
    pub tokens: u64,
}

impl Trainer {
    /// Draws an autoencoder: encoder rows uniform in ±1/sqrt(d_in) as `torch.nn.Linear` draws them, from ChaCha8 under the
    /// seed (so the same on every device), decoder rows their copies, at length 1 with `normalize_decoder`, biases 0.
    /// A transcoder's decoder, and a skip connection, start at 0.
    ///
    /// On the CPU [`Engine::Kernels`] computes, elsewhere libtorch.
    ///
    /// # Errors
    /// When a setting is out of range, or the device has no room.
    pub fn new(config: TrainerConfig, device: Device) -> Result<Self, TrainerError> {
        Self::with_engine(config, device, Engine::usual(device))
    }

    /// As [`Trainer::new`], computed by `engine`.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    ///
    /// # Panics
    /// When `engine` does not run on `device`.
    #[track_caller]
    pub fn with_engine(config: TrainerConfig, device: Device, engine: Engine) -> Result<Self, TrainerError> {
        Self::distributed(config, device, engine, Distribution::Alone)
    }

    /// As [`Trainer::with_engine`], one rank of a `distribution`. With latents shared out this rank draws, holds and saves only its own.
    ///
    /// From here on all ranks make the same calls: [`Trainer::init`], [`Trainer::step`], [`Trainer::check_replicas`] and, with latents shared
    /// out, [`Trainer::save_state`] and [`Trainer::save_sae`].
    ///
    /// # Errors
    /// As [`Trainer::new`]; and when there are more ranks than latents to share out.
    ///
    /// # Panics
    /// As [`Trainer::with_engine`].
    #[track_caller]
    pub fn distributed(
        config: TrainerConfig,
        device: Device,
        engine: Engine,
        distribution: Distribution,
    ) -> Result<Self, TrainerError> {
        config.validate()?;
        let own = distribution.latents(config.num_latents);
        let tensors = init::draw(&config, own);
        Self::from_tensors(config, tensors, device, engine, distribution)
    }

    /// Goes on training `sae`, whose kind `config` must name. Its BatchTopK threshold is taken over too.
    ///
    /// # Errors
    /// When a setting is out of range or differs from what `sae` is, when the device has no room, or when rows of `W_dec` have
    /// another length than 1 and `normalize_decoder` would change them.
    pub fn from_sae(config: TrainerConfig, sae: &Sae, device: Device) -> Result<Self, TrainerError> {
        Self::distributed_from_sae(config, sae, device, Distribution::Alone)
    }

    /// As [`Trainer::from_sae`], one rank of a `distribution`.
    ///
    /// # Errors
    /// As [`Trainer::from_sae`] and [`Trainer::distributed`].
    pub fn distributed_from_sae(
        config: TrainerConfig,
        sae: &Sae,
        device: Device,
        distribution: Distribution,
    ) -> Result<Self, TrainerError> {
        config.validate()?;
        let tensors = init::of_sae(&config, sae, distribution.latents(config.num_latents))?;
        let mut trainer = Self::from_tensors(config, tensors, device, Engine::usual(device), distribution)?;
        trainer.fine_tuning = true;
        if let Activation::BatchTopK { threshold } = sae.config().activation {
            trainer.progress.threshold.start_from(f64::from(threshold));
        }
        Ok(trainer)
    }

    #[track_caller]
    fn from_tensors(
        config: TrainerConfig,
        tensors: sae_core::SaeTensors,
        device: Device,
        engine: Engine,
        distribution: Distribution,
    ) -> Result<Self, TrainerError> {
        let mut own = config.clone();
        own.num_latents = distribution.latents(config.num_latents).len();
        if let Distribution::Latents { team } = &distribution
            && config.num_latents < team.size()
        {
            return Err(TrainerError::Setting {
                field: "num_latents",
                expected: format!("one for each of {} ranks at least", team.size()),
                got: config.num_latents.to_string(),
            });
        }
        let engine = match engine {
            Engine::Kernels => {
                assert_eq!(device, Device::Cpu, "the device of sae-core's kernels");
                Running::Kernels(Box::new(Cpu::new(&own, tensors)))
            }
            Engine::Libtorch => Running::Libtorch(Box::new(Torch::new(&own, &tensors, device, Kind::Float)?)),
        };
        Ok(Self {
            normalisation: Normalisation::identity(config.d_in, config.transcode),
            progress: Progress::default(),
            distribution,
            fine_tuning: false,
            config,
            engine,
        })
    }

    /// Sets what depends on the data, from the first batch, before the first step: the normalisation, and unless an
    /// autoencoder is trained further, the decoder's bias as [`TrainerConfig::bias_init`] says and, of a transcoder,
    /// the encoder's, so that pre-activations are centred: `b_enc = -W_enc · mean(x)`, as sparsify does. Weights do not count here.
    ///
    /// Without it there is no normalisation, and biases start at 0.
    ///
    /// # Errors
    /// When an activation is NaN or infinite, or the device fails.
    ///
    /// # Panics
    /// When the shapes of `rows` disagree, there is no row (of several ranks: on none of them), or a step has been taken.
    #[track_caller]
    pub fn init(&mut self, rows: &Rows<'_>) -> Result<(), TrainerError> {
        assert_eq!(self.progress.tokens, 0, "tokens seen before what the first batch is to set");
        let config = &self.config;
        let (rows, _) = self.gathered(self.checked(rows), true)?;
        let fit = |tensor| {
            if config.centre || config.scale_norm {
                Affine::fit(tensor, config.centre, config.scale_norm)
            } else {
                Affine::identity(config.d_in)
            }
        };
        let normalisation =
            Normalisation { input: fit(&rows.x), target: fit(rows.targets()), transcode: config.transcode };
        let mut tensors = with_backend!(&self.engine, backend => backend.tensors())?;
        if self.fine_tuning {
            self.normalisation.fold(&mut tensors);
            normalisation.unfold(&mut tensors);
            self.progress
                .threshold
                .rescale(self.normalisation.activation_scale() / normalisation.activation_scale());
        } else {
            let y = normalisation.target.apply(rows.targets());
            let mean = |tensor: &Tensor| {
                tensor.to_kind(Kind::Double).mean_dim([0_i64].as_slice(), false, Kind::Double)
            };
            let bias = no_grad(|| match config.bias_init {
                BiasInit::GeometricMedian => geometric_median(&y),
                BiasInit::Mean => mean(&y),
                BiasInit::Zero => y.get(0).zeros_like(),
            });
            let to_host = |tensor: &Tensor, out: &mut Vec<f32>| {
                let tensor = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
                tensor.copy_data(out, tensor.numel());
            };
            to_host(&bias, &mut tensors.decoder_bias);
            if config.transcode {
                let mut centre = vec![0.0; config.d_in];
                to_host(&mean(&normalisation.input.apply(&rows.x)), &mut centre);
                init::centre_encoder(&mut tensors, &centre);
            }
        }
        with_backend!(&mut self.engine, backend => backend.set_tensors(&tensors));
        self.normalisation = normalisation;
        Ok(())
    }

    /// Takes in a batch, and after every `grad_acc_steps` batches takes an optimizer step: the part of the decoder's gradient
    /// along its rows is removed, all gradients are clipped together, once, the optimizer moves the parameters, and the
    /// decoder's rows go back to length 1.
    ///
    /// # Errors
    /// When an activation is NaN or infinite, a weight not positive, or all activations are equal; nothing has changed then. When
    /// the loss or the gradient is not finite; the optimizer step is then not taken, and its gradients are dropped.
    ///
    /// # Panics
    /// When the shapes of `rows` disagree, there is no row (of several ranks: on none of them), or a transcoder has no targets.
    #[track_caller]
    pub fn step(&mut self, rows: &Rows<'_>) -> Result<StepReport, TrainerError> {
        let (checked, total) = self.gathered(self.checked(rows), false)?;
        let Self { config, engine, normalisation, progress, distribution, .. } = self;
        let share = distribution.share(config, total);
        let x = normalisation.input.apply(&checked.x);
        let y = checked.y.as_ref().map(|y| normalisation.target.apply(y));
        let unit = normalisation.activation_scale();
        with_backend!(engine, backend => {
            let batch = Batch {
                x: backend.rows(&x),
                y: y.map(|y| backend.rows(&y)),
                weights: checked.weights.as_ref().map(|weights| backend.rows(weights)),
            };
            no_grad(|| take_in(&mut **backend, &share, config, progress, &batch, [checked.len(), total], unit))
        })
    }

    #[track_caller]
    fn checked(&self, rows: &Rows<'_>) -> Result<Checked, TrainerError> {
        let device = with_backend!(&self.engine, backend => backend.device());
        Checked::new(rows, &self.config, device, i64::from(self.distribution.team().is_none()))
    }

    /// The rows that this rank works on, of its `own` and the other ranks', and how many the batch has. `whole` asks for the batch.
    #[track_caller]
    fn gathered(
        &self,
        own: Result<Checked, TrainerError>,
        whole: bool,
    ) -> Result<(Checked, usize), TrainerError> {
        let Some(team) = self.distribution.team() else {
            return own.map(|own| {
                let total = own.len();
                (own, total)
            });
        };
        let failed = |source| TrainerError::Collective { source };
        // Rows and whether they have weights, of each rank; of one that cannot go on, what no rank has.
        let header = match &own {
            Ok(own) => [own.len() as u64, u64::from(own.weights.is_some())],
            Err(_) => [u64::MAX, 0],
        };
        let mut headers = Vec::new();
        let told = team.all_gather(bytemuck::cast_slice(&header), &mut headers);
        let own = own?;
        told.map_err(failed)?;
        let headers: Vec<[u64; 2]> = numbers(&headers);
        if let Some(rank) = headers.iter().position(|header| header[0] == u64::MAX) {
            return Err(TrainerError::OtherRank { rank });
        }
        let lengths: Vec<usize> = headers.iter().map(|header| header[0] as usize).collect();
        let total = lengths.iter().sum();
        assert!(total > 0, "a batch without a row on any rank");
        if !whole && matches!(self.distribution.share(&self.config, total), Share::Gradients(_)) {
            return Ok((own, total));
        }
        let weighted = headers.iter().any(|header| header[1] > 0);
        let gather = |tensor: &Tensor| gather_rows(team, tensor, &lengths).map_err(failed);
        let weights = weighted.then(|| match &own.weights {
            Some(weights) => weights.shallow_clone(),
            None => Tensor::ones([own.len() as i64, 1], (Kind::Float, own.x.device())),
        });
        let all = Checked {
            x: gather(&own.x)?,
            y: own.y.as_ref().map(gather).transpose()?,
            weights: weights.as_ref().map(gather).transpose()?,
        };
        Ok((all, total))
    }

    /// The autoencoder as it stands, the normalisation folded in: it takes and gives activations as they were given here.
    ///
    /// # Errors
    /// When the device fails, or the parameters are no autoencoder.
    ///
    /// # Panics
    /// With latents shared out, where no rank has all of them: see [`Trainer::save_sae`].
    #[track_caller]
    pub fn to_sae(&self) -> Result<Sae, TrainerError> {
        assert!(!self.shares_latents(), "an autoencoder whose latents are shared out");
        let tensors = self.folded()?;
        let config = self.config.sae_config(self.threshold().unwrap_or(0.0) as f32);
        Sae::from_parts(config, tensors).map_err(|source| TrainerError::Parameters { source })
    }

    /// This rank's parameters, the normalisation folded in.
    pub(crate) fn folded(&self) -> Result<SaeTensors, TrainerError> {
        let mut tensors = with_backend!(&self.engine, backend => backend.tensors())?;
        self.normalisation.fold(&mut tensors);
        Ok(tensors)
    }

    /// Checks that all ranks hold the same parameters, where they should: with latents shared out, of what every rank has. All of
    /// them call this.
    ///
    /// With codes exchanged every rank makes the step by itself, and kernels for other registers round otherwise: ranks on unlike
    /// processors drift apart. libtorch does not promise the same bits twice; there a difference is a warning. Costs a copy of all
    /// parameters. Moments and counters are not compared.
    ///
    /// # Errors
    /// [`TrainerError::Replicas`]; when the device fails, or a rank is lost.
    pub fn check_replicas(&self) -> Result<(), TrainerError> {
        let Some(team) = self.distribution.team() else { return Ok(()) };
        let tensors = with_backend!(&self.engine, backend => backend.tensors())?;
        let SaeTensors { encoder_weight, encoder_bias, decoder_weight, decoder_bias, skip_weight } = &tensors;
        let of_latents = [encoder_weight, encoder_bias, decoder_weight];
        let of_latents = of_latents.into_iter().filter(|_| !self.shares_latents());
        let all = of_latents.chain([decoder_bias]).chain(skip_weight);
        let mut hashes = Vec::new();
        team.all_gather(&hash(all).to_le_bytes(), &mut hashes)
            .map_err(|source| TrainerError::Collective { source })?;
        let hashes: Vec<u64> = numbers(&hashes);
        let ranks: Vec<usize> = (0..hashes.len()).filter(|&rank| hashes[rank] != hashes[0]).collect();
        match self.engine() {
            _ if ranks.is_empty() => Ok(()),
            Engine::Kernels => Err(TrainerError::Replicas { ranks }),
            Engine::Libtorch => {
                tracing::warn!(
                    ?ranks,
                    "the parameters of these ranks are not to the bit those of rank 0, which are saved"
                );
                Ok(())
            }
        }
    }

    /// Whether ranks hold different latents.
    pub fn shares_latents(&self) -> bool {
        matches!(self.distribution, Distribution::Latents { .. })
    }

    /// BatchTopK's threshold in units of the activations as they are given.
    pub(crate) fn threshold(&self) -> Option<f64> {
        let batch_topk = self.config.activation == Selection::BatchTopK;
        let threshold = self.progress.threshold.value().filter(|_| batch_topk);
        threshold.map(|threshold| threshold * self.normalisation.activation_scale())
    }

    /// The settings.
    pub fn config(&self) -> &TrainerConfig {
        &self.config
    }

    /// Optimizer steps taken so far.
    pub fn optimizer_steps(&self) -> u64 {
        self.progress.optimizer_steps
    }

    /// Tokens seen so far.
    pub fn tokens(&self) -> u64 {
        self.progress.tokens
    }

    /// What computes the steps.
    pub fn engine(&self) -> Engine {
        match self.engine {
            Running::Kernels(_) => Engine::Kernels,
            Running::Libtorch(_) => Engine::Libtorch,
        }
    }
}

/// Of the bits of all numbers, in order.
fn hash<'t>(tensors: impl Iterator<Item = &'t Vec<f32>>) -> u64 {
    const TASK: usize = 1 << 18;
    let mut whole = DefaultHasher::new();
    for tensor in tensors {
        let parts: Vec<u64> = tensor
            .par_chunks(TASK)
            .map(|part| {
                let mut hasher = DefaultHasher::new();
                hasher.write(bytemuck::cast_slice(part));
                hasher.finish()
            })
            .collect();
        parts.hash(&mut whole);
    }
    whole.finish()
}

/// See [`Trainer::step`]; of `total` rows this rank works on `n`, and `unit` is what activations in training are to be multiplied by.
fn take_in<B: Backend>(
    backend: &mut B,
    share: &Share<'_>,
    config: &TrainerConfig,
    progress: &mut Progress,
    batch: &Batch<B::Rows>,
    [n, total]: [usize; 2],
    unit: f64,
) -> Result<StepReport, TrainerError> {
    let lost = |source| TrainerError::Collective { source };
    let variance = share.variance(backend, batch.targets(), batch.weights.as_ref()).map_err(lost)?;
    if !(variance.is_finite() && variance > 0.0) {
        return Err(TrainerError::Variance { rows: total, variance });
    }
    let lr = config.lr_at(progress.optimizer_steps);
    let objective = Objective {
        chain: Chain::new(config),
        matryoshka: !config.matryoshka.is_empty(),
        auxk_alpha: config.auxk_alpha,
        d_in: config.d_in,
        dead: share.dead(backend).map_err(lost)?,
        variance,
        scale: 1.0 / f64::from(config.grad_acc_steps),
    };
    let diverged = |backend: &mut B, progress: &mut Progress, what, value| {
        backend.clear_gradients();
        backend.forget_fired();
        progress.drop_pending();
        TrainerError::Diverged { what, step: progress.optimizer_steps, value }
    };
    let mut losses = Losses::default();
    let part = n.div_ceil(config.micro_acc_steps as usize).max(1);
    let mut result = Ok(());
    for start in (0..n).step_by(part) {
        let rows = start..(start + part).min(n);
        let of_part = if rows.len() == n {
            forward_backward(backend, share, &objective, batch)
        } else {
            forward_backward(backend, share, &objective, &batch.part::<B>(&rows))
        };
        match of_part {
            Ok(of_part) => losses.add(&of_part),
            Err(failure) => {
                result = Err(failure);
                break;
            }
        }
    }
    match share.agreed(result) {
        Ok(()) => {}
        Err(Failure::PreActivation(value)) => {
            return Err(diverged(backend, progress, "pre-activation of a latent", value));
        }
        Err(Failure::Collective(source)) => return Err(lost(source)),
    }
    share.total(&mut losses).map_err(lost)?;
    if !losses.loss.is_finite() {
        return Err(diverged(backend, progress, "loss", losses.loss));
    }
    let mut grad_norm = None;
    if progress.pending + 1 == config.grad_acc_steps {
        let norm = share.finish_gradients(backend).map_err(lost)?;
        if !norm.is_finite() {
            return Err(diverged(backend, progress, "gradient norm", norm));
        }
        let factor = if norm > config.max_grad_norm { config.max_grad_norm / norm } else { 1.0 };
        backend.update(Rates { lr, step: progress.optimizer_steps + 1, factor });
        backend.clear_gradients();
        grad_norm = Some(norm);
    }
    share.share_fired(backend).map_err(lost)?;
    backend.count_fired(total);
    progress.count(total as u64, &losses.smallest, grad_norm.is_some());
    let dead = share.dead(backend).map_err(lost)?;
    let threshold = progress.threshold.value().filter(|_| config.activation == Selection::BatchTopK);
    Ok(StepReport {
        loss: losses.loss,
        fvu: losses.fvu,
        multi_topk_fvu: losses.multi_topk_fvu,
        matryoshka_fvu: losses.matryoshka_fvu,
        auxk: losses.auxk,
        l0: losses.codes as f64 / total as f64,
        dead_share: dead as f64 / config.num_latents as f64,
        threshold: threshold.map(|threshold| threshold * unit),
        lr,
        grad_norm,
        optimizer_steps: progress.optimizer_steps,
        tokens: progress.tokens,
    })
}
