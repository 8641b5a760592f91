//! [`evaluate`]: autoencoders against the live model, over a data set.

use lmm_prep::Inputs;
use sae_eval::{Evaluation, Evaluator, Subject};
use stage_kit::Progress;

use crate::{ModelError, OpenModel, SampleBatches};

/// Measures autoencoders on `batches`, `total` samples, counting of each the positions that `counted` chooses. Shows progress, and calls
/// `after_batch` after every batch, where false ends it early; one evaluation per subject, in their order.
///
/// # Errors
/// When a subject does not fit the model, a sample is bad and may not be left out, or an autoencoder fails.
pub fn evaluate(
    model: &OpenModel,
    subjects: Vec<Subject<'_>>,
    mut batches: SampleBatches,
    total: u64,
    counted: impl Fn(&Inputs) -> Vec<u32>,
    mut after_batch: impl FnMut() -> bool,
) -> Result<Vec<Evaluation>, ModelError> {
    let failed = |source| ModelError::Evaluate { source: Box::new(source) };
    let mut evaluator = Evaluator::new(&model.network, subjects).map_err(failed)?;
    let progress = Progress::new("evaluating", "samples", Some(total));
    while let Some(batch) = batches.next_batch()? {
        if !batch.samples.is_empty() {
            let inputs: Vec<&Inputs> = batch.samples.iter().map(|(_, inputs)| inputs).collect();
            let positions: Vec<Vec<usize>> = inputs
                .iter()
                .map(|inputs| counted(inputs).into_iter().map(|position| position as usize).collect())
                .collect();
            let prompts = model.batch(&inputs)?;
            evaluator.push(&model.network, &prompts, &inputs, &positions).map_err(failed)?;
        }
        progress.inc(batch.read as u64);
        if !after_batch() {
            break;
        }
    }
    progress.finish();
    Ok(evaluator.finish())
}
