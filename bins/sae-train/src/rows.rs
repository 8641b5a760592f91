//! From a batch of samples to the vectors an autoencoder trains on.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow};
use collectives::{Collective, NumbersMut, Reduction};
use lmm_prep::{Inputs, TokenKind};
use model_kit::OpenModel;
use sae_trainer::{Rows, StepReport, Trainer, TrainerError, high_norm_rows};
use sae_types::HookPoint;
use tch::{Device, Kind, Tensor};

use crate::args::DataArgs;
use crate::plan::Planned;

/// The hidden states of the tokens that count, of one batch or this process's share of it.
pub(crate) struct Counted {
    /// `[tokens of all samples, width]` by hook point; nothing where no token counts.
    states: BTreeMap<HookPoint, Tensor>,
    /// `[tokens]` what each counts, where that differs.
    weights: Option<Tensor>,
    /// Number of each sample in the data set, and how many tokens of it count.
    samples: Vec<(u32, usize)>,
    device: Device,
}

/// The positions of a sample that count, and what each counts.
pub(crate) fn positions(args: &DataArgs, model: &OpenModel, inputs: &Inputs) -> (Vec<u32>, Vec<f32>) {
    let weight = |position: u32| match inputs.layout.kind(position as usize) {
        TokenKind::Text => args.text_weight,
        _ => args.image_weight,
    };
    let positions = args.tokens.positions(&model.processor, inputs).into_iter();
    positions.map(|position| (position, weight(position))).filter(|&(_, weight)| weight > 0.0).unzip()
}

/// Runs the model over a batch.
pub(crate) fn counted(
    args: &DataArgs,
    model: &OpenModel,
    samples: &[(u32, Inputs)],
    points: &[HookPoint],
) -> Result<Counted> {
    let (chosen, weights): (Vec<Vec<u32>>, Vec<Vec<f32>>) =
        samples.iter().map(|(_, inputs)| positions(args, model, inputs)).unzip();
    let device = model.network.device();
    let mut parts: Vec<BTreeMap<HookPoint, Tensor>> = Vec::new();
    let size = args.forward_batch_size.map_or(samples.len().max(1), std::num::NonZeroUsize::get);
    for (samples, chosen) in samples.chunks(size).zip(chosen.chunks(size)) {
        if chosen.iter().any(|chosen| !chosen.is_empty()) {
            let prompts: Vec<&Inputs> = samples.iter().map(|(_, inputs)| inputs).collect();
            parts.push(model.states(&model.batch(&prompts)?, chosen, points)?);
        }
    }
    let states = if parts.len() > 1 {
        let join =
            |point: &HookPoint| Tensor::cat(&parts.iter().map(|part| &part[point]).collect::<Vec<_>>(), 0);
        points.iter().map(|point| (point.clone(), join(point))).collect()
    } else {
        parts.pop().unwrap_or_default()
    };
    let weights: Vec<f32> = weights.concat();
    let differ = weights.iter().any(|&weight| weight != 1.0);
    Ok(Counted {
        states,
        weights: differ.then(|| Tensor::from_slice(&weights).to_device(device)),
        samples: samples.iter().zip(&chosen).map(|((number, _), chosen)| (*number, chosen.len())).collect(),
        device,
    })
}

/// Which rows of `x` are more than `multiple` times as long as the median of those of all `ranks`.
fn long_rows(x: &Tensor, multiple: f64, ranks: Option<&dyn Collective>) -> Result<Tensor> {
    let Some(ranks) = ranks else { return Ok(high_norm_rows(x, multiple)) };
    let norms = x.to_kind(Kind::Float).norm_scalaropt_dim(2, [1_i64].as_slice(), false);
    let mut all = Vec::new();
    ranks.all_gather(&bytes_of(&norms)?, &mut all)?;
    let mut all = floats(&all);
    if all.is_empty() {
        return Ok(norms.gt(0.0));
    }
    // The lower of two in the middle, as libtorch's.
    let middle = (all.len() - 1) / 2;
    let median = *all.select_nth_unstable_by(middle, f32::total_cmp).1;
    Ok(norms.gt(f64::from(median) * multiple))
}

impl Counted {
    /// How many tokens count.
    fn tokens(&self) -> usize {
        self.samples.iter().map(|(_, tokens)| tokens).sum()
    }

    /// The vectors of all processes, in the order of ranks, at the hook points of the autoencoders this one owns.
    pub(crate) fn to_owners(
        &self,
        planned: &[&Planned],
        owners: &[Option<usize>],
        ranks: &dyn Collective,
    ) -> Result<Self> {
        let mut wanted: BTreeMap<&HookPoint, (usize, BTreeSet<usize>)> = BTreeMap::new();
        for (planned, owner) in planned.iter().zip(owners) {
            for point in planned.points() {
                wanted.entry(point).or_insert_with(|| (planned.config.d_in, BTreeSet::new())).1.extend(owner);
            }
        }
        let mut states = BTreeMap::new();
        let mut all = Vec::new();
        for (point, (width, owners)) in wanted {
            let bytes = match self.states.get(point) {
                Some(states) => bytes_of(states)?,
                None => Vec::new(),
            };
            for owner in owners {
                ranks.gather(owner, &bytes, &mut all)?;
                if owner == ranks.rank() {
                    let size = [(all.len() / width / 4) as i64, width as i64];
                    let whole = Tensor::from_data_size(&all, &size, Kind::Float).to_device(self.device);
                    states.insert(point.clone(), whole);
                }
            }
        }
        let ones = || Tensor::ones([self.tokens() as i64], (Kind::Float, self.device));
        let weights = bytes_of(self.weights.as_ref().unwrap_or(&ones()))?;
        ranks.all_gather(&weights, &mut all)?;
        let weights = floats(&all);
        let samples = self
            .samples
            .iter()
            .flat_map(|&(number, tokens)| [number.to_le_bytes(), (tokens as u32).to_le_bytes()].concat());
        ranks.all_gather(&samples.collect::<Vec<u8>>(), &mut all)?;
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
        let samples =
            all.chunks_exact(8).map(|pair| (number(&pair[..4]), number(&pair[4..]) as usize)).collect();
        let differ = weights.iter().any(|&weight| weight != 1.0);
        let weights = differ.then(|| Tensor::from_slice(&weights).to_device(self.device));
        Ok(Self { states, weights, samples, device: self.device })
    }

    /// One call of the trainer on the vectors at its hook point, the first also to set it up; none where the filters leave no
    /// vector. Of several `ranks` that train it together all call this.
    pub(crate) fn train(
        &self,
        args: &DataArgs,
        planned: &Planned,
        trainer: &mut Trainer,
        first: bool,
        ranks: Option<&dyn Collective>,
    ) -> Result<Option<StepReport>> {
        let states = |hook: &HookPoint| match self.states.get(hook) {
            Some(states) => states.shallow_clone(),
            None => Tensor::zeros([0, planned.config.d_in as i64], (Kind::Float, self.device)),
        };
        let targets = states(&planned.hook);
        let inputs = planned.input.as_ref().map_or_else(|| targets.shallow_clone(), states);
        let kept = match args.max_norm_multiple {
            Some(multiple) if ranks.is_some() || inputs.size()[0] > 0 => {
                let mut long = long_rows(&inputs, multiple, ranks)?;
                if planned.input.is_some() {
                    long = long.logical_or(&long_rows(&targets, multiple, ranks)?);
                }
                Some(long.logical_not().nonzero().squeeze_dim(1))
            }
            _ => None,
        };
        let choose = |tensor: &Tensor| match &kept {
            None => tensor.shallow_clone(),
            Some(kept) => tensor.index_select(0, kept),
        };
        let (inputs, targets) = (choose(&inputs), planned.input.is_some().then(|| choose(&targets)));
        let mut rows = [inputs.size()[0]];
        if let Some(ranks) = ranks {
            ranks.all_reduce(NumbersMut::I64(&mut rows), Reduction::Sum)?;
        }
        if rows[0] == 0 {
            return Ok(None);
        }
        let weights = self.weights.as_ref().map(choose);
        let rows = Rows { inputs: &inputs, targets: targets.as_ref(), weights: weights.as_ref() };
        let started = if first { trainer.init(&rows) } else { Ok(()) };
        let report = started.and_then(|()| trainer.step(&rows));
        report.map(Some).map_err(|error| self.named(error, planned, kept.as_ref()))
    }

    /// The trainer's error with the sample that caused it.
    fn named(&self, error: TrainerError, planned: &Planned, kept: Option<&Tensor>) -> anyhow::Error {
        let TrainerError::ActivationsNotFinite { row, .. } = &error else {
            return anyhow!(error).context(format!("training at {}", planned.hook));
        };
        let mut row =
            kept.map_or(*row, |kept| kept.to_kind(Kind::Int64).int64_value(&[*row as i64]) as usize);
        for &(number, tokens) in &self.samples {
            if row < tokens {
                return anyhow!(error).context(format!(
                    "sample {number} of the data set has NaN or infinity at {}, in the {}. of its tokens that count",
                    planned.hook,
                    row + 1
                ));
            }
            row -= tokens;
        }
        anyhow!(error)
    }
}

/// What [`bytes_of`] made bytes of.
fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The numbers of a tensor as f32, row-major, little-endian.
fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Float).reshape([-1]);
    let numbers = Vec::<f32>::try_from(&flat).context("reading hidden states")?;
    Ok(numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
}
