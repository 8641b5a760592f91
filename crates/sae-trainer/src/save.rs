//! Saving and restoring a [`Trainer`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use sae_core::{SaeTensors, WeightDtype};

use crate::backend::Backend;
use crate::distributed::{self, Placed, SharedFile, numbers};
use crate::normalisation::{Affine, Normalisation};
use crate::progress::{Progress, Threshold};
use crate::state::{Array, ArrayMut, Read, StateFile, header, of_gradients};
use crate::trainer::with_backend;
use crate::{Trainer, TrainerConfig, TrainerError};

/// How the names of arrays end that have a row for every latent.
const OF_LATENTS: [&str; 4] = ["tokens_since_fired", ".encoder.weight", ".encoder.bias", ".W_dec"];
/// How the names of gradients end that are the same on all ranks.
const WHOLE: [&str; 2] = [".b_dec", ".W_skip"];

/// The weights of an autoencoder, beside `cfg.json`.
const WEIGHTS: &str = "sae.safetensors";
const CONFIG: &str = "cfg.json";

impl Trainer {
    /// Writes everything that changes in training into one safetensors file, on the disk when this returns: parameters, moments,
    /// gradients that wait, counters, normalisation, and the settings to compare with. What stood there is replaced by renaming.
    ///
    /// The file does not tell by how many ranks it was written. With latents shared out all ranks call this and write their rows,
    /// into one place on a file system that all of them see; else one rank does.
    ///
    /// # Errors
    /// When the file cannot be written, the device fails, or a rank is lost.
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
        let team = self.distribution.team().filter(|_| self.shares_latents());
        let gradients = if *pending > 0 {
            with_backend!(&self.engine, backend => backend.gradients()).map(Some)
        } else {
            Ok(None)
        };
        let mut gradients = distributed::together(team, gradients)?;
        let arrays = with_backend!(&self.engine, backend => backend.arrays());
        let mut tensors: Vec<Placed<'_>> =
            arrays.into_iter().map(|(name, shape, array)| self.placed(name, shape, array)).collect();
        for (name, affine) in [("input", &self.normalisation.input), ("target", &self.normalisation.target)] {
            let mean = Array::F32(&affine.mean);
            tensors.push(self.placed(format!("normalisation.{name}.mean"), vec![self.config.d_in], mean));
        }
        if let Some(gradients) = &mut gradients {
            let own = self.own_latents();
            gradients.latents.iter_mut().for_each(|latent| *latent += own.start as i64);
            let (first, total) = self.place_among_ranks(gradients.latents.len())?;
            for (name, mut shape, array) in of_gradients(gradients) {
                let name = name.to_owned();
                tensors.push(if WHOLE.iter().any(|whole| name.ends_with(whole)) {
                    self.placed(name, shape, array)
                } else {
                    // Of the latents that have any, which are fewer than there are.
                    shape[0] = total;
                    Placed { name, shape, array, first_row: Some(first) }
                });
            }
        }
        SharedFile { team, texts: Some(header(text)), tensors }.save(path)
    }

    /// Writes the autoencoder as it stands, the normalisation folded in, as `cfg.json` and `sae.safetensors` in f32 into `folder`: what
    /// [`Trainer::to_sae`] gives, saved, without any rank having all of it. With latents shared out all ranks call this, else one rank does.
    ///
    /// # Errors
    /// When a file cannot be written, the device fails, the parameters are no autoencoder, or a rank is lost.
    pub fn save_sae(&self, folder: &Path) -> Result<(), TrainerError> {
        if !self.shares_latents() {
            let saved = self.to_sae()?.save(folder, WeightDtype::F32);
            return saved.map_err(|source| TrainerError::Parameters { source });
        }
        let config = self.config.sae_config(self.threshold().unwrap_or(0.0) as f32);
        let path = folder.join(CONFIG);
        let failed = |source| TrainerError::StateFile { action: "write", path: path.clone(), source };
        let team = self.distribution.team();
        let folded = std::fs::create_dir_all(folder).map_err(failed).and_then(|()| self.folded());
        let SaeTensors { encoder_weight, encoder_bias, decoder_weight, decoder_bias, skip_weight } =
            &distributed::together(team, folded)?;
        let (latents, d_in) = (self.own_latents().len(), self.config.d_in);
        let mut tensors = vec![
            ("encoder.weight", vec![latents, d_in], encoder_weight),
            ("encoder.bias", vec![latents], encoder_bias),
            ("W_dec", vec![latents, d_in], decoder_weight),
            ("b_dec", vec![d_in], decoder_bias),
        ];
        tensors.extend(skip_weight.as_ref().map(|skip| ("W_skip", vec![d_in, d_in], skip)));
        let tensors = tensors
            .into_iter()
            .map(|(name, shape, numbers)| {
                self.placed(format!("parameter.{name}"), shape, Array::F32(numbers))
            })
            .map(|placed| Placed { name: placed.name["parameter.".len()..].to_owned(), ..placed })
            .collect();
        SharedFile { team, texts: None, tensors }.save(&folder.join(WEIGHTS))?;
        // Last: without it there is no autoencoder.
        let leads = team.is_none_or(|team| team.rank() == 0);
        let written = if leads { replace(&path, &config.to_json()) } else { Ok(()) };
        distributed::together(team, written.map_err(failed))
    }

    /// The latents this rank holds.
    pub(crate) fn own_latents(&self) -> Range<usize> {
        self.distribution.latents(self.config.num_latents)
    }

    /// Where an array of this rank stands in the whole.
    fn place(&self, name: &str, shape: &mut [usize]) -> Option<usize> {
        if !self.shares_latents() {
            return Some(0);
        }
        if OF_LATENTS.iter().any(|ending| name.ends_with(ending)) {
            shape[0] = self.config.num_latents;
            return Some(self.own_latents().start);
        }
        // The same on all ranks.
        let first = self.distribution.team().is_none_or(|team| team.rank() == 0);
        first.then_some(0)
    }

    fn placed<'a>(&self, name: String, mut shape: Vec<usize>, array: Array<'a>) -> Placed<'a> {
        let first_row = self.place(&name, &mut shape);
        Placed { name, shape, array, first_row }
    }

    /// How many of the `count`s of ranks come before this rank's, and their sum.
    fn place_among_ranks(&self, count: usize) -> Result<(usize, usize), TrainerError> {
        let Some(team) = self.distribution.team().filter(|_| self.shares_latents()) else {
            return Ok((0, count));
        };
        let mut counts = Vec::new();
        team.all_gather(&(count as u64).to_le_bytes(), &mut counts)
            .map_err(|source| TrainerError::Collective { source })?;
        let counts: Vec<u64> = numbers(&counts);
        let sum = |counts: &[u64]| counts.iter().sum::<u64>() as usize;
        Ok((sum(&counts[..team.rank()]), sum(&counts)))
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
            Some(file.gradients(
                [self.config.num_latents, d_in],
                self.own_latents(),
                self.config.skip_connection,
            )?)
        } else {
            None
        };
        let own = self.own_latents();
        let of_latents = if self.shares_latents() { &OF_LATENTS[..] } else { &[] };
        let num_latents = self.config.num_latents;
        let read = |name: String, mut shape: Vec<usize>, array| {
            let shared = of_latents.iter().any(|ending| name.ends_with(ending));
            if shared {
                shape[0] = num_latents;
            }
            Read { name, shape, first_row: if shared { own.start } else { 0 }, array }
        };
        with_backend!(&mut self.engine, backend => {
            let arrays = backend.arrays_mut().into_iter();
            let mut arrays: Vec<_> = arrays.map(|(name, shape, array)| read(name, shape, array)).collect();
            let means = [("input", &mut normalisation.input), ("target", &mut normalisation.target)];
            for (name, affine) in means {
                let mean = ArrayMut::F32(&mut affine.mean);
                arrays.push(read(format!("normalisation.{name}.mean"), vec![d_in], mean));
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

/// Writes a small file beside its place, waits until it is on the disk, and renames it.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let beside = tempfile::Builder::new().prefix(".saving-").tempdir_in(folder)?;
    let new = beside.path().join("new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
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
