//! [`batches`]: from samples to codes, a batch at a time.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use act_cache::SampleRecord;
use anyhow::{Context, Result, anyhow};
use lmm_prep::Inputs;
use mm_data::DataError;
use model_kit::{OpenModel, SharedModel};
use sae_torch::{Encoder, TorchSaeError};
use sae_types::{HookPoint, SparseCodes};
use stage_kit::prefetch;

use crate::args::StageArgs;
use crate::plan::{Plan, Reader};
use crate::saes::CachedSae;
use crate::writing::EncodedSample;

/// How many batches of prepared samples wait for the model.
const BATCHES_AHEAD: usize = 2;
/// Models of fewer bytes run several batches at a time: their operations are too short to be divided among threads.
const SMALL_MODEL: u64 = 2 << 30;

/// A sample ready for the model.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) record: SampleRecord,
    pub(crate) inputs: Inputs,
    /// The positions whose codes are stored, ascending.
    pub(crate) positions: Vec<u32>,
}

/// What became of a batch.
#[derive(Debug)]
pub(crate) struct Computed {
    pub(crate) samples: Vec<EncodedSample>,
    /// Why the other samples could not be used.
    pub(crate) bad: Vec<DataError>,
    /// Per hook point the codes of all samples' positions, one sample after the other.
    pub(crate) codes: Result<Vec<(HookPoint, SparseCodes)>>,
}

/// Computes batches in order. On a CPU, where a model is small, threads take whole batches, from the images to the codes; in every
/// other case threads prepare samples, and the model runs in this one.
///
/// # Errors
/// When an autoencoder cannot be brought to the model's device.
pub(crate) fn batches<'a>(
    args: &StageArgs,
    plan: &'a Arc<Plan>,
    model: OpenModel,
    batches: Range<usize>,
    prepare: impl Fn(&Reader, usize) -> Result<Prepared, DataError> + Send + Sync + 'static,
) -> Result<Box<dyn Iterator<Item = Computed> + 'a>> {
    let lanes = lanes(args, &model);
    let range = plan.samples_of(&batches);
    if lanes > NonZeroUsize::MIN {
        let plan = Arc::clone(plan);
        let model = SharedModel::new(model, lanes);
        return Ok(Box::new(prefetch(batches, lanes, move |batch| {
            let prepared = plan.samples_of(&(batch..batch + 1)).map(|index| prepare(&plan.reader, index));
            let model = model.get();
            match Encoders::new(&plan, model) {
                Ok(encoders) => encoders.compute(model, prepared, plan.job.keep_tokens),
                Err(error) => Computed { samples: Vec::new(), bad: Vec::new(), codes: Err(error) },
            }
        })));
    }
    let encoders = Encoders::new(plan, &model)?;
    let ahead = args.batch_size.saturating_mul(NonZeroUsize::new(BATCHES_AHEAD).unwrap_or(NonZeroUsize::MIN));
    let reader = Arc::clone(&plan.reader);
    let mut prepared = prefetch(range, ahead, move |index| prepare(&reader, index));
    Ok(Box::new(batches.map(move |batch| {
        let size = plan.samples_of(&(batch..batch + 1)).len();
        encoders.compute(&model, prepared.by_ref().take(size), plan.job.keep_tokens)
    })))
}

/// How many batches are computed at the same time.
fn lanes(args: &StageArgs, model: &OpenModel) -> NonZeroUsize {
    if model.network.device() != tch::Device::Cpu {
        return NonZeroUsize::MIN;
    }
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    let most = if model.network.bytes() < SMALL_MODEL { threads } else { 1 };
    args.lanes.or(NonZeroUsize::new(most)).unwrap_or(NonZeroUsize::MIN)
}

/// The autoencoders on the model's device.
struct Encoders<'a> {
    /// Where they read, each once.
    points: Vec<HookPoint>,
    encoders: Vec<(&'a HookPoint, &'a CachedSae, Encoder<'a>)>,
}

impl<'a> Encoders<'a> {
    fn new(plan: &'a Plan, model: &OpenModel) -> Result<Self> {
        let mut points: Vec<HookPoint> = plan.saes.values().map(|sae| sae.reads.clone()).collect();
        points.sort_unstable();
        points.dedup();
        let encoder = |(hook, sae): (&'a HookPoint, &'a CachedSae)| {
            let encoder = Encoder::new(&sae.sae, model.network.device());
            Ok((hook, sae, encoder.with_context(|| format!("preparing the autoencoder of {hook}"))?))
        };
        Ok(Self { points, encoders: plan.saes.iter().map(encoder).collect::<Result<_>>()? })
    }

    /// Runs a batch of prepared samples.
    fn compute(
        &self,
        model: &OpenModel,
        prepared: impl Iterator<Item = Result<Prepared, DataError>>,
        keep_tokens: bool,
    ) -> Computed {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for prepared in prepared {
            match prepared {
                Ok(prepared) => good.push(prepared),
                Err(error) => bad.push(error),
            }
        }
        let codes = self.encode(model, &good);
        let encoded = |Prepared { record, inputs, positions }| EncodedSample {
            record,
            positions,
            token_ids: keep_tokens.then_some(inputs.input_ids),
        };
        Computed { samples: good.into_iter().map(encoded).collect(), bad, codes }
    }

    /// One forward pass, and the codes of every autoencoder for all samples' positions, one sample after the other.
    fn encode(&self, model: &OpenModel, samples: &[Prepared]) -> Result<Vec<(HookPoint, SparseCodes)>> {
        let chosen: Vec<&Prepared> =
            samples.iter().filter(|prepared| !prepared.positions.is_empty()).collect();
        if chosen.is_empty() {
            let empty = |(hook, sae, _): &(&HookPoint, &CachedSae, _)| {
                ((*hook).clone(), SparseCodes::new(sae.sae.num_latents()))
            };
            return Ok(self.encoders.iter().map(empty).collect());
        }
        let prompts: Vec<&Inputs> = chosen.iter().map(|prepared| &prepared.inputs).collect();
        let positions: Vec<Vec<u32>> = chosen.iter().map(|prepared| prepared.positions.clone()).collect();
        let states = model.states(&model.batch(&prompts)?, &positions, &self.points)?;
        let encode = |(hook, sae, encoder): &(&HookPoint, &CachedSae, Encoder<'_>)| {
            let codes = encoder.encode(&states[&sae.reads]);
            let codes = codes.map_err(|error| named(error, samples, hook))?;
            Ok(((*hook).clone(), codes))
        };
        self.encoders.iter().map(encode).collect()
    }
}

/// The encoder's error with the sample that caused it.
fn named(error: TorchSaeError, samples: &[Prepared], hook: &HookPoint) -> anyhow::Error {
    let Some(mut row) = error.row() else { return anyhow!(error).context(format!("encoding at {hook}")) };
    for Prepared { record, positions, .. } in samples {
        if let Some(position) = positions.get(row) {
            let place = format!("encoding sample {} at {hook}, position {position}", record.sample);
            return anyhow!(error).context(place);
        }
        row -= positions.len();
    }
    anyhow!(error).context(format!("encoding at {hook}"))
}
