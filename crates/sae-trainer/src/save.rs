//! Saving and restoring a [`Trainer`].

use std::collections::BTreeMap;
use std::path::Path;

use crate::backend::Backend;
use crate::normalisation::{Affine, Normalisation};
use crate::progress::{Progress, Threshold};
use crate::state::{Array, ArrayMut, State, StateFile};
use crate::trainer::with_backend;
use crate::{Trainer, TrainerConfig, TrainerError};

impl Trainer {
    /// Writes everything that changes in training into one safetensors file, on the disk when this returns: parameters, moments,
    /// gradients that wait, counters, normalisation, and the settings to compare with. What stood there is replaced by renaming.
    ///
    /// # Errors
    /// When the file cannot be written, or the device fails.
    pub fn save_state(&self, path: &Path) -> Result<(), TrainerError> {
        let mut text = settings(&self.config);
        let Progress { pending, optimizer_steps, tokens, threshold } = &self.progress;
        let Threshold { mean, updates, waiting_sum, waiting } = threshold;
        for (name, value) in [
            ("pending", pending.to_string()),
            ("optimizer_steps", optimizer_steps.to_string()),
            ("tokens", tokens.to_string()),
            ("threshold.mean", mean.to_string()),
            ("threshold.updates", updates.to_string()),
            ("threshold.waiting_sum", waiting_sum.to_string()),
            ("threshold.waiting", waiting.to_string()),
            ("normalisation.input.scale", self.normalisation.input.scale.to_string()),
            ("normalisation.target.scale", self.normalisation.target.scale.to_string()),
        ] {
            text.insert(name.to_owned(), value);
        }
        let gradients = if *pending > 0 {
            Some(with_backend!(&self.engine, backend => backend.gradients())?)
        } else {
            None
        };
        let mut arrays = with_backend!(&self.engine, backend => backend.arrays());
        for (name, affine) in [("input", &self.normalisation.input), ("target", &self.normalisation.target)] {
            let mean = Array::F32(&affine.mean);
            arrays.push((format!("normalisation.{name}.mean"), vec![self.config.d_in], mean));
        }
        State { text, arrays, gradients: gradients.as_ref() }.save(path)
    }

    /// Becomes what [`Trainer::save_state`] wrote, so that training goes on with the same bits (on the same device and engine).
    ///
    /// # Errors
    /// When the file cannot be read, is truncated or not a trainer's state, or belongs to other settings, which are listed;
    /// nothing has changed then.
    pub fn load_state(&mut self, path: &Path) -> Result<(), TrainerError> {
        let file = StateFile::open(path)?;
        file.check_settings(&settings(&self.config))?;
        let d_in = self.config.d_in;
        let progress = Progress {
            pending: file.number("pending")?,
            optimizer_steps: file.number("optimizer_steps")?,
            tokens: file.number("tokens")?,
            threshold: Threshold {
                mean: file.number("threshold.mean")?,
                updates: file.number("threshold.updates")?,
                waiting_sum: file.number("threshold.waiting_sum")?,
                waiting: file.number("threshold.waiting")?,
            },
        };
        let affine = |name: &str| -> Result<Affine, TrainerError> {
            let scale = file.number(&format!("normalisation.{name}.scale"))?;
            Ok(Affine { mean: vec![0.0; d_in], scale })
        };
        let mut normalisation = Normalisation {
            input: affine("input")?,
            target: affine("target")?,
            transcode: self.config.transcode,
        };
        let gradients = if progress.pending > 0 {
            Some(file.gradients([self.config.num_latents, d_in], self.config.skip_connection)?)
        } else {
            None
        };
        with_backend!(&mut self.engine, backend => {
            let mut arrays = backend.arrays_mut();
            let means = [("input", &mut normalisation.input), ("target", &mut normalisation.target)];
            for (name, affine) in means {
                let mean = ArrayMut::F32(&mut affine.mean);
                arrays.push((format!("normalisation.{name}.mean"), vec![d_in], mean));
            }
            file.check_arrays(&arrays)?;
            file.read_arrays(arrays)?;
            backend.forget_fired();
            match &gradients {
                Some(gradients) => backend.set_gradients(gradients),
                None => backend.clear_gradients(),
            }
        });
        (self.progress, self.normalisation) = (progress, normalisation);
        Ok(())
    }
}

/// Every setting that changes what training does, by name.
fn settings(config: &TrainerConfig) -> BTreeMap<String, String> {
    let TrainerConfig {
        d_in,
        num_latents,
        k,
        activation,
        multi_topk,
        auxk_alpha,
        matryoshka,
        transcode,
        skip_connection,
        optimizer,
        lr,
        warmup_steps,
        schedule,
        total_steps,
        grad_acc_steps,
        micro_acc_steps,
        max_grad_norm,
        normalize_decoder,
        dead_feature_threshold,
        seed,
        centre,
        scale_norm,
        bias_init,
        // In how many chunks pre-activations are made changes nothing but memory.
        dense_budget: _,
    } = config;
    [
        ("d_in", d_in.to_string()),
        ("num_latents", num_latents.to_string()),
        ("k", k.to_string()),
        ("activation", format!("{activation:?}")),
        ("multi_topk", multi_topk.to_string()),
        ("auxk_alpha", auxk_alpha.to_string()),
        ("matryoshka", format!("{matryoshka:?}")),
        ("transcode", transcode.to_string()),
        ("skip_connection", skip_connection.to_string()),
        ("optimizer", format!("{optimizer:?}")),
        ("lr", lr.unwrap_or_else(|| config.default_lr()).to_string()),
        ("warmup_steps", warmup_steps.to_string()),
        ("schedule", format!("{schedule:?}")),
        ("total_steps", total_steps.to_string()),
        ("grad_acc_steps", grad_acc_steps.to_string()),
        ("micro_acc_steps", micro_acc_steps.to_string()),
        ("max_grad_norm", max_grad_norm.to_string()),
        ("normalize_decoder", normalize_decoder.to_string()),
        ("dead_feature_threshold", dead_feature_threshold.to_string()),
        ("seed", seed.to_string()),
        ("centre", centre.to_string()),
        ("scale_norm", scale_norm.to_string()),
        ("bias_init", format!("{bias_init:?}")),
    ]
    .into_iter()
    .map(|(name, value)| (format!("config.{name}"), value))
    .collect()
}
