//! The float32 master parameters: how they start, how they are optimised, how they are saved.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use half::f16;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tch::nn::OptimizerConfig;
use tch::{Device, Kind, Tensor, nn};

/// Groups of what AdamW optimises: matrices decay, everything else does not.
const DECAYED: usize = 0;
const UNDECAYED: usize = 1;

/// Adam's second-moment horizon; short, since a run is a few thousand steps.
const BETA2: f64 = 0.98;
const WEIGHT_DECAY: f64 = 0.05;
const CLIP_NORM: f64 = 1.0;

/// Master parameters with their optimisers: Muon for the matrices between the layers' hidden states, AdamW for all else.
pub(crate) struct Parameters {
    hidden: nn::VarStore,
    muon: Muon,
    rest: nn::VarStore,
    adam: nn::Optimizer,
    names: Vec<String>,
}

impl Parameters {
    /// Random parameters of the given names and shapes, from `seed`.
    pub(crate) fn new(shapes: &BTreeMap<String, Vec<i64>>, seed: i64) -> Result<Self> {
        tch::manual_seed(seed);
        let (hidden, rest) = (nn::VarStore::new(Device::Cpu), nn::VarStore::new(Device::Cpu));
        for (name, shape) in shapes {
            let outer = ["embed", "lm_head"].iter().any(|part| name.contains(part));
            let store = if shape.len() == 2 && !outer { &hidden } else { &rest };
            let (path, last) = name.rsplit_once('.').unwrap_or(("", name));
            let mut at = store.root();
            for segment in path.split('.').filter(|segment| !segment.is_empty()) {
                at = at / segment;
            }
            let decays = shape.len() >= 2 && !name.contains("embed");
            let at = at.set_group(if decays { DECAYED } else { UNDECAYED });
            let _ = at.var(last, shape, start(name, shape));
        }
        let mut adam = nn::AdamW { beta2: BETA2, wd: WEIGHT_DECAY, ..nn::AdamW::default() }
            .build(&rest, 1e-3)
            .context("building the optimizer")?;
        adam.set_weight_decay_group(UNDECAYED, 0.0);
        let muon = Muon::new(hidden.trainable_variables());
        Ok(Self { hidden, muon, rest, adam, names: shapes.keys().cloned().collect() })
    }

    fn variables(&self) -> HashMap<String, Tensor> {
        let mut variables = self.hidden.variables();
        variables.extend(self.rest.variables());
        variables
    }

    /// Takes the values of a model folder's `model.safetensors`, which must be of the same names and shapes.
    pub(crate) fn load(&mut self, folder: &Path) -> Result<()> {
        let path = folder.join("model.safetensors");
        let saved: BTreeMap<String, Tensor> = Tensor::read_safetensors(&path)
            .with_context(|| format!("reading {}", path.display()))?
            .into_iter()
            .collect();
        let mut variables = self.variables();
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
        self.variables().values().map(Tensor::numel).sum()
    }

    /// The parameters in `kind`, with gradients flowing back to the masters.
    pub(crate) fn cast(&self, kind: Kind) -> BTreeMap<String, Tensor> {
        let variables = self.variables();
        self.names.iter().map(|name| (name.clone(), variables[name].to_kind(kind))).collect()
    }

    /// One step of both optimisers against the gradient of `loss`.
    pub(crate) fn step(&mut self, loss: &Tensor, learning_rate: f64) {
        self.adam.set_lr(learning_rate);
        self.adam.zero_grad();
        self.muon.zero_grad();
        loss.backward();
        self.adam.clip_grad_norm(CLIP_NORM);
        self.adam.step();
        self.muon.step(learning_rate);
    }

    /// Writes `model.safetensors` into a model folder, whole or not at all.
    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        self.save_as(folder, Stored::F32)
    }

    /// The same in a dtype of the file's own.
    pub(crate) fn save_as(&self, folder: &Path, stored: Stored) -> Result<()> {
        let variables = self.variables();
        let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = self
            .names
            .iter()
            .map(|name| {
                let tensor = variables[name].detach().contiguous();
                let shape = tensor.size().iter().map(|&n| n as usize).collect();
                let values: Vec<f32> = Vec::try_from(tensor.view(-1)).context("reading a parameter")?;
                Ok((name.clone(), shape, stored.bytes(&values)))
            })
            .collect::<Result<_>>()?;
        let views: Vec<_> = bytes
            .iter()
            .map(|(name, shape, data)| Ok((name, TensorView::new(stored.dtype(), shape.clone(), data)?)))
            .collect::<Result<_>>()?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let part = folder.join("model.safetensors.part");
        safetensors::serialize_to_file(views, Some(metadata), &part)
            .with_context(|| format!("writing {}", part.display()))?;
        std::fs::rename(&part, folder.join("model.safetensors")).context("renaming model.safetensors")
    }
}

/// How a file keeps its numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stored {
    F32,
    F16,
}

impl Stored {
    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
        }
    }

    fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect(),
        }
    }
}

/// Muon (Jordan et al. 2024): momentum, made orthogonal, as the step of each matrix. The steps are scaled to the size of Adam's,
/// so that both take the same learning rate (Liu et al. 2025, arXiv 2502.16982).
struct Muon {
    matrices: Vec<(Tensor, Tensor)>,
}

impl Muon {
    const MOMENTUM: f64 = 0.95;
    /// Root mean square of a step of Adam's, in learning rates.
    const STEP: f64 = 0.2;

    fn new(matrices: Vec<Tensor>) -> Self {
        let with_momentum = |matrix: Tensor| {
            let momentum = matrix.zeros_like();
            (matrix, momentum)
        };
        Self { matrices: matrices.into_iter().map(with_momentum).collect() }
    }

    fn zero_grad(&mut self) {
        self.matrices.iter_mut().for_each(|(matrix, _)| matrix.zero_grad());
    }

    /// Matrices that the loss does not reach stay as they are.
    fn step(&mut self, learning_rate: f64) {
        tch::no_grad(|| {
            for (matrix, momentum) in &mut self.matrices {
                let gradient = matrix.grad();
                if !gradient.defined() {
                    continue;
                }
                let _ = momentum.lerp_(&gradient, 1.0 - Self::MOMENTUM);
                let ahead = gradient.lerp(momentum, Self::MOMENTUM);
                let longer = matrix.size().into_iter().max().unwrap_or(1) as f64;
                let step = orthogonal(&ahead) * (Self::STEP * longer.sqrt());
                let _ = matrix.g_mul_scalar_(1.0 - learning_rate * WEIGHT_DECAY);
                let _ = matrix.g_sub_(&(step * learning_rate));
            }
        });
    }
}

/// Nearly the orthogonal matrix nearest to `matrix`: its singular values come to lie about 1. Five rounds of Newton and Schulz
/// with Jordan's coefficients.
fn orthogonal(matrix: &Tensor) -> Tensor {
    const ROUNDS: usize = 5;
    const COEFFICIENTS: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
    let tall = matrix.size()[0] > matrix.size()[1];
    let mut x = if tall { matrix.tr() } else { matrix.shallow_clone() };
    x = &x / (x.norm() + 1e-7);
    let (a, b, c) = COEFFICIENTS;
    for _ in 0..ROUNDS {
        let square = x.matmul(&x.tr());
        let factor = &square * b + square.matmul(&square) * c;
        x = &x * a + factor.matmul(&x);
    }
    if tall { x.tr() } else { x }
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
    } else if name == "logit_scale" {
        // About the logarithm of 30. CLIP begins at 14, and with steps by the hundred thousand has the time to leave it.
        nn::Init::Const(3.4)
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
