//! [`Trainer`]: one autoencoder in training.

use sae_core::{Activation, Sae};
use tch::{Device, Kind, Tensor, no_grad};

use crate::backend::{Backend, Cpu, Rates, Torch};
use crate::config::Selection;
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

/// One autoencoder in training, f32 on one device.
#[derive(Debug)]
pub struct Trainer {
    pub(crate) config: TrainerConfig,
    pub(crate) engine: Running,
    pub(crate) normalisation: Normalisation,
    pub(crate) progress: Progress,
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
        Self::with_engine(config, device, usual_engine(device))
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
        config.validate()?;
        let tensors = init::draw(&config);
        Self::from_tensors(config, tensors, device, engine)
    }

    /// Goes on training `sae`, whose kind `config` must name. Its BatchTopK threshold is taken over too.
    ///
    /// # Errors
    /// When a setting is out of range or differs from what `sae` is, when the device has no room, or when rows of `W_dec` have
    /// another length than 1 and `normalize_decoder` would change them.
    pub fn from_sae(config: TrainerConfig, sae: &Sae, device: Device) -> Result<Self, TrainerError> {
        config.validate()?;
        let tensors = init::of_sae(&config, sae)?;
        let mut trainer = Self::from_tensors(config, tensors, device, usual_engine(device))?;
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
    ) -> Result<Self, TrainerError> {
        let engine = match engine {
            Engine::Kernels => {
                assert_eq!(device, Device::Cpu, "the device of sae-core's kernels");
                Running::Kernels(Box::new(Cpu::new(&config, tensors)))
            }
            Engine::Libtorch => {
                Running::Libtorch(Box::new(Torch::new(&config, &tensors, device, Kind::Float)?))
            }
        };
        Ok(Self {
            normalisation: Normalisation::identity(config.d_in, config.transcode),
            progress: Progress::default(),
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
    /// When the shapes of `rows` disagree, or a step has been taken.
    #[track_caller]
    pub fn init(&mut self, rows: &Rows<'_>) -> Result<(), TrainerError> {
        assert_eq!(self.progress.tokens, 0, "tokens seen before what the first batch is to set");
        let config = &self.config;
        let rows = with_backend!(&self.engine, backend => Checked::new(rows, config, backend.device()))?;
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
    /// When the shapes of `rows` disagree, or a transcoder has no targets.
    #[track_caller]
    pub fn step(&mut self, rows: &Rows<'_>) -> Result<StepReport, TrainerError> {
        let Self { config, engine, normalisation, progress, .. } = self;
        let checked = with_backend!(&*engine, backend => Checked::new(rows, config, backend.device()))?;
        let x = normalisation.input.apply(&checked.x);
        let y = checked.y.as_ref().map(|y| normalisation.target.apply(y));
        let unit = normalisation.activation_scale();
        with_backend!(engine, backend => {
            let batch = Batch {
                x: backend.rows(&x),
                y: y.map(|y| backend.rows(&y)),
                weights: checked.weights.as_ref().map(|weights| backend.rows(weights)),
            };
            no_grad(|| take_in(&mut **backend, config, progress, &batch, checked.len(), unit))
        })
    }

    /// The autoencoder as it stands, the normalisation folded in: it takes and gives activations as they were given here.
    ///
    /// # Errors
    /// When the device fails, or the parameters are no autoencoder.
    pub fn to_sae(&self) -> Result<Sae, TrainerError> {
        let mut tensors = with_backend!(&self.engine, backend => backend.tensors())?;
        self.normalisation.fold(&mut tensors);
        let config = self.config.sae_config(self.threshold().unwrap_or(0.0) as f32);
        Sae::from_parts(config, tensors).map_err(|source| TrainerError::Parameters { source })
    }

    /// BatchTopK's threshold in units of the activations as they are given.
    fn threshold(&self) -> Option<f64> {
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

fn usual_engine(device: Device) -> Engine {
    if device == Device::Cpu { Engine::Kernels } else { Engine::Libtorch }
}

/// See [`Trainer::step`]; `unit` is what activations in training are to be multiplied by.
fn take_in<B: Backend>(
    backend: &mut B,
    config: &TrainerConfig,
    progress: &mut Progress,
    batch: &Batch<B::Rows>,
    n: usize,
    unit: f64,
) -> Result<StepReport, TrainerError> {
    let variance = backend.variance(batch.targets(), batch.weights.as_ref());
    if !(variance.is_finite() && variance > 0.0) {
        return Err(TrainerError::Variance { rows: n, variance });
    }
    let lr = config.lr_at(progress.optimizer_steps);
    let objective = Objective {
        chain: Chain::new(config),
        matryoshka: !config.matryoshka.is_empty(),
        auxk_alpha: config.auxk_alpha,
        d_in: config.d_in,
        dead: backend.dead(),
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
    let part = n.div_ceil(config.micro_acc_steps as usize);
    for start in (0..n).step_by(part) {
        let rows = start..(start + part).min(n);
        let result = if rows.len() == n {
            forward_backward(backend, &objective, batch)
        } else {
            forward_backward(backend, &objective, &batch.part::<B>(&rows))
        };
        match result {
            Ok(of_part) => losses.add(&of_part),
            Err(value) => return Err(diverged(backend, progress, "pre-activation of a latent", value)),
        }
    }
    if !losses.loss.is_finite() {
        return Err(diverged(backend, progress, "loss", losses.loss));
    }
    let mut grad_norm = None;
    if progress.pending + 1 == config.grad_acc_steps {
        let norm = backend.finish_gradients();
        if !norm.is_finite() {
            return Err(diverged(backend, progress, "gradient norm", norm));
        }
        let factor = if norm > config.max_grad_norm { config.max_grad_norm / norm } else { 1.0 };
        backend.update(Rates { lr, step: progress.optimizer_steps + 1, factor });
        backend.clear_gradients();
        grad_norm = Some(norm);
    }
    backend.count_fired(n);
    progress.count(n as u64, &losses.smallest, grad_norm.is_some());
    let threshold = progress.threshold.value().filter(|_| config.activation == Selection::BatchTopK);
    Ok(StepReport {
        loss: losses.loss,
        fvu: losses.fvu,
        multi_topk_fvu: losses.multi_topk_fvu,
        matryoshka_fvu: losses.matryoshka_fvu,
        auxk: losses.auxk,
        l0: losses.codes as f64 / n as f64,
        dead_share: backend.dead() as f64 / config.num_latents as f64,
        threshold: threshold.map(|threshold| threshold * unit),
        lr,
        grad_norm,
        optimizer_steps: progress.optimizer_steps,
        tokens: progress.tokens,
    })
}
