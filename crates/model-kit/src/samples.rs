//! [`SampleBatches`]: the samples of a data set as a model reads them, made ready in the background.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lmm_prep::{ChatOptions, Inputs, Message, Part, PrepError, Processor};
use mm_data::{BadRecord, BadRecordCounter, BadRecords, Concat, DataError, Role, Sample};
use stage_kit::{Prefetched, prefetch};

use crate::IMAGE_PROMPT;

/// How many batches of prepared samples wait for the model.
const BATCHES_AHEAD: usize = 2;

/// A sample by its number in the data set, as the model is to read it.
type Prepared = (u32, Result<Inputs, DataError>);

/// Samples of a data set in the order given, a batch at a time, prepared by threads of its own.
#[derive(Debug)]
pub struct SampleBatches {
    prepared: Prefetched<Prepared>,
    size: NonZeroUsize,
    counter: BadRecordCounter,
    /// Numbers of the samples left out, so that one that every epoch meets again counts once.
    met: BTreeSet<u32>,
}

/// Samples that a run left out before it was stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LeftOut {
    /// Their numbers in the data set.
    pub numbers: BTreeSet<u32>,
    /// Where they are, and what is wrong with them.
    pub records: Vec<BadRecord>,
}

/// Some samples, in order.
#[derive(Debug)]
pub struct SampleBatch {
    /// How many samples were asked for; those that could not be used are not in `samples`.
    pub read: usize,
    /// Number in the data set, and inputs. Can be empty.
    pub samples: Vec<(u32, Inputs)>,
}

impl SampleBatches {
    /// Batches of `size` samples of `dataset` in `order`; the last may be smaller. `left_out` were met before.
    pub fn new(
        dataset: &Arc<Concat>,
        processor: &Arc<Processor>,
        order: impl Iterator<Item = u32> + Send + 'static,
        size: NonZeroUsize,
        bad: BadRecords,
        left_out: LeftOut,
    ) -> Self {
        let ahead = size.saturating_mul(NonZeroUsize::new(BATCHES_AHEAD).unwrap_or(NonZeroUsize::MIN));
        let (dataset, processor) = (Arc::clone(dataset), Arc::clone(processor));
        let prepare = move |index: usize| {
            let sample = dataset.get(index)?;
            if is_empty(&sample) {
                return Err(dataset.unusable(index, NothingToRead));
            }
            sample_inputs(&processor, &sample).map_err(|cause| dataset.unusable(index, cause))
        };
        let prepared = prefetch(order, ahead, move |number| (number, prepare(number as usize)));
        Self {
            prepared,
            size,
            counter: BadRecordCounter::after(bad, left_out.records),
            met: left_out.numbers,
        }
    }

    /// The next batch; `None` after the last.
    ///
    /// # Errors
    /// When a sample is bad and may not be left out, or the data set cannot be read.
    pub fn next_batch(&mut self) -> Result<Option<SampleBatch>, DataError> {
        let prepared: Vec<Prepared> = self.prepared.by_ref().take(self.size.get()).collect();
        if prepared.is_empty() {
            return Ok(None);
        }
        let mut batch = SampleBatch { read: prepared.len(), samples: Vec::with_capacity(prepared.len()) };
        for (number, inputs) in prepared {
            if inputs.is_err() && self.met.contains(&number) {
                continue;
            }
            match self.counter.admit(inputs)? {
                Some(inputs) => batch.samples.push((number, inputs)),
                None => drop(self.met.insert(number)),
            }
        }
        Ok(Some(batch))
    }

    /// The bad records met so far.
    pub fn bad(&self) -> &BadRecordCounter {
        &self.counter
    }

    /// Numbers of the samples left out, those included that were met before.
    pub fn left_out_numbers(&self) -> &BTreeSet<u32> {
        &self.met
    }

    /// What a run that goes on from here has to know of them.
    pub fn left_out(&self) -> LeftOut {
        LeftOut { numbers: self.met.clone(), records: self.counter.left_out().to_vec() }
    }
}

fn is_empty(sample: &Sample) -> bool {
    let Sample { images, conversations, text, tokens, .. } = sample;
    images.is_empty() && conversations.is_empty() && text.is_none() && tokens.is_none()
}

/// A record of which a model would read nothing.
#[derive(Debug, thiserror::Error)]
#[error("it has no image, conversation, text or tokens")]
struct NothingToRead;

/// A sample as the model is to read it: its conversation in the model's chat template with the images in their places,
/// without a conversation its images alone or its text, and token ids as they are.
///
/// # Errors
/// When an image cannot be read, or the conversation does not fit the images or the template.
pub fn sample_inputs(processor: &Processor, sample: &Sample) -> Result<Inputs, PrepError> {
    if let Some(tokens) = &sample.tokens {
        return processor.prepare_tokens(tokens.clone());
    }
    let images: Vec<_> = sample
        .images
        .iter()
        .map(|image| lmm_prep::decode_image_upright(&image.bytes))
        .collect::<Result<_, _>>()?;
    if sample.conversations.is_empty() && images.is_empty() {
        return processor.prepare(sample.text.as_deref().unwrap_or_default(), &images);
    }
    if sample.conversations.is_empty() {
        let prompt = vec![IMAGE_PROMPT; images.len()].join(" ");
        return processor.prepare(&prompt, &images);
    }
    let placed = sample.conversations.iter().any(|turn| turn.text.contains(IMAGE_PROMPT));
    let mut unplaced = if placed { 0 } else { images.len() };
    let messages: Vec<Message> = sample
        .conversations
        .iter()
        .map(|turn| {
            let mut parts = Vec::new();
            if turn.role == Role::User {
                // LLaVA's data may leave the marker out; its images then stand before the first question.
                parts.extend(std::iter::repeat_n(Part::Image, std::mem::take(&mut unplaced)));
            }
            for (index, text) in turn.text.split(IMAGE_PROMPT).enumerate() {
                if index > 0 {
                    parts.push(Part::Image);
                }
                if !text.trim().is_empty() {
                    parts.push(Part::Text { text: text.trim().to_owned() });
                }
            }
            Message::parts(turn.role.chat_name(), parts)
        })
        .collect();
    processor.prepare_chat(&messages, ChatOptions { add_generation_prompt: false }, &images)
}
