//! From a batch of samples to the vectors an autoencoder trains on.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow};
use lmm_prep::{Inputs, TokenKind};
use model_kit::OpenModel;
use sae_trainer::{Rows, StepReport, Trainer, TrainerError, high_norm_rows};
use sae_types::HookPoint;
use tch::{Kind, Tensor};

use crate::args::DataArgs;
use crate::plan::Planned;

/// The hidden states of the tokens that count, of one batch.
pub(crate) struct Counted {
    /// `[tokens of all samples, width]` by hook point.
    states: BTreeMap<HookPoint, Tensor>,
    /// `[tokens]` what each counts, where that differs.
    weights: Option<Tensor>,
    /// Number of each sample in the data set, and how many tokens of it count.
    samples: Vec<(u32, usize)>,
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

/// Runs the model over a batch; none where no token counts.
pub(crate) fn counted(
    args: &DataArgs,
    model: &OpenModel,
    samples: &[(u32, Inputs)],
    points: &[HookPoint],
) -> Result<Option<Counted>> {
    let (chosen, weights): (Vec<Vec<u32>>, Vec<Vec<f32>>) =
        samples.iter().map(|(_, inputs)| positions(args, model, inputs)).unzip();
    if chosen.iter().all(Vec::is_empty) {
        return Ok(None);
    }
    let prompts: Vec<&Inputs> = samples.iter().map(|(_, inputs)| inputs).collect();
    let states = model.states(&model.batch(&prompts)?, &chosen, points)?;
    let weights: Vec<f32> = weights.concat();
    let differ = weights.iter().any(|&weight| weight != 1.0);
    Ok(Some(Counted {
        states,
        weights: differ.then(|| Tensor::from_slice(&weights).to_device(model.network.device())),
        samples: samples.iter().zip(&chosen).map(|((number, _), chosen)| (*number, chosen.len())).collect(),
    }))
}

impl Counted {
    /// One call of the trainer on the vectors at its hook point, the first also to set it up; none where the filters leave no
    /// vector.
    pub(crate) fn train(
        &self,
        args: &DataArgs,
        planned: &Planned,
        trainer: &mut Trainer,
        first: bool,
    ) -> Result<Option<StepReport>> {
        let states = |hook: &HookPoint| self.states.get(hook).with_context(|| format!("no states of {hook}"));
        let targets = states(&planned.hook)?;
        let inputs = planned.input.as_ref().map(states).transpose()?.unwrap_or(targets);
        let kept = args.max_norm_multiple.map(|multiple| {
            let mut long = high_norm_rows(inputs, multiple);
            if planned.input.is_some() {
                long = long.logical_or(&high_norm_rows(targets, multiple));
            }
            long.logical_not().nonzero().squeeze_dim(1)
        });
        let choose = |tensor: &Tensor| match &kept {
            None => tensor.shallow_clone(),
            Some(kept) => tensor.index_select(0, kept),
        };
        let (inputs, targets) = (choose(inputs), planned.input.is_some().then(|| choose(targets)));
        if inputs.size()[0] == 0 {
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
