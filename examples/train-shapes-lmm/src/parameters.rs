//! The float32 master parameters: how they start, how they are optimised, how they are saved.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use tch::nn::OptimizerConfig;
use tch::{Device, Kind, Tensor, nn};

/// Optimiser groups: matrices decay, everything else does not.
const DECAYED: usize = 0;
const UNDECAYED: usize = 1;

/// Adam's second-moment horizon; short, since a run is a few thousand steps.
const BETA2: f64 = 0.98;
const WEIGHT_DECAY: f64 = 0.05;
const CLIP_NORM: f64 = 1.0;

/// Master parameters with their optimiser.
pub(crate) struct Parameters {
    store: nn::VarStore,
    optimizer: nn::Optimizer,
    names: Vec<String>,
}

impl Parameters {
    /// Random parameters of the given names and shapes, from `seed`.
    pub(crate) fn new(shapes: &BTreeMap<String, Vec<i64>>, seed: i64) -> Result<Self> {
        tch::manual_seed(seed);
        let store = nn::VarStore::new(Device::Cpu);
        for (name, shape) in shapes {
            let (path, last) = name.rsplit_once('.').unwrap_or(("", name));
            let mut at = store.root();
            for segment in path.split('.').filter(|segment| !segment.is_empty()) {
                at = at / segment;
            }
            let is_matrix = shape.len() >= 2 && !name.contains("embed");
            let at = at.set_group(if is_matrix { DECAYED } else { UNDECAYED });
            let _ = at.var(last, shape, start(name, shape));
        }
        let mut optimizer = nn::AdamW { beta2: BETA2, wd: WEIGHT_DECAY, ..nn::AdamW::default() }
            .build(&store, 1e-3)
            .context("building the optimizer")?;
        optimizer.set_weight_decay_group(UNDECAYED, 0.0);
        Ok(Self { store, optimizer, names: shapes.keys().cloned().collect() })
    }

    /// Takes the values of a model folder's `model.safetensors`, which must be of the same names and shapes.
    pub(crate) fn load(&mut self, folder: &Path) -> Result<()> {
        let path = folder.join("model.safetensors");
        let saved: BTreeMap<String, Tensor> = Tensor::read_safetensors(&path)
            .with_context(|| format!("reading {}", path.display()))?
            .into_iter()
            .collect();
        let mut variables = self.store.variables();
        for name in &self.names {
            let saved = saved.get(name).with_context(|| format!("{} lacks {name}", path.display()))?;
            let variable = variables.get_mut(name).with_context(|| format!("no parameter {name}"))?;
            anyhow::ensure!(
                saved.size() == variable.size(),
                "{name} has another shape in {}",
                path.display()
            );
            tch::no_grad(|| variable.copy_(saved));
        }
        Ok(())
    }

    /// How many numbers there are.
    pub(crate) fn count(&self) -> usize {
        self.store.trainable_variables().iter().map(Tensor::numel).sum()
    }

    /// The parameters in `kind`, with gradients flowing back to the masters.
    pub(crate) fn cast(&self, kind: Kind) -> BTreeMap<String, Tensor> {
        let variables = self.store.variables();
        self.names.iter().map(|name| (name.clone(), variables[name].to_kind(kind))).collect()
    }

    /// One optimizer step along the gradient of `loss`, clipped.
    pub(crate) fn step(&mut self, loss: &Tensor, learning_rate: f64) {
        self.optimizer.set_lr(learning_rate);
        self.optimizer.zero_grad();
        loss.backward();
        self.optimizer.clip_grad_norm(CLIP_NORM);
        self.optimizer.step();
    }

    /// Writes `model.safetensors` into a model folder, whole or not at all.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        let variables = self.store.variables();
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = self
            .names
            .iter()
            .map(|name| {
                let tensor = variables[name].detach().contiguous();
                let shape = tensor.size().iter().map(|&n| n as usize).collect();
                let values: Vec<f32> = Vec::try_from(tensor.view(-1)).context("reading a parameter")?;
                Ok((name.clone(), shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
            })
            .collect::<Result<_>>()?;
        let views: Vec<_> = bytes
            .iter()
            .map(|(name, shape, data)| {
                Ok((
                    name,
                    safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), data)?,
                ))
            })
            .collect::<Result<_>>()?;
        let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let part = folder.join("model.safetensors.part");
        safetensors::serialize_to_file(views, Some(metadata), &part)
            .with_context(|| format!("writing {}", part.display()))?;
        std::fs::rename(&part, folder.join("model.safetensors")).context("renaming model.safetensors")
    }
}

/// Where a parameter starts: norms at one, biases at zero, matrices at one over the square root of their
/// fan-in, halved where they write into a residual stream.
fn start(name: &str, shape: &[i64]) -> nn::Init {
    let normal = |stdev| nn::Init::Randn { mean: 0.0, stdev };
    let fan_in = || shape[1..].iter().product::<i64>() as f64;
    if name.ends_with("bias") {
        nn::Init::Const(0.0)
    } else if name.contains("norm") {
        nn::Init::Const(1.0)
    } else if name.ends_with("image_newline") {
        normal(0.5)
    } else if name.contains("class_embedding") || name.contains("position_embedding") {
        normal(0.02)
    } else if name.contains("embed_tokens") {
        normal(1.0)
    } else if name.contains("lm_head") {
        normal(0.05)
    } else if ["o_proj", "out_proj", "down_proj", "fc2"].iter().any(|end| name.contains(end)) {
        normal(0.5 / fan_in().sqrt())
    } else {
        normal(1.0 / fan_in().sqrt())
    }
}
