//! [`Evaluator`]: streams batches through the model and the autoencoders.

use std::cell::RefCell;
use std::collections::BTreeMap;

use lmm_hooks::{Batch, Hooks, LlavaNext};
use lmm_prep::Inputs;
use ndarray::s;
use sae_core::metrics::{Firing, Reconstruction};
use sae_torch::Encoder;
use sae_types::HookPoint;
use tch::{Kind, Tensor};

use crate::EvalError;
use crate::evaluation::{Evaluation, ModelMeans};
use crate::head::{Head, Sums};
use crate::places::{Places, rows};
use crate::subject::{Subject, array};

/// Measures autoencoders at their places in one model, over any number of batches.
///
/// What is measured does not depend on how samples are batched and padded, but for the rounding of the model itself.
#[derive(Debug)]
pub struct Evaluator<'a> {
    subjects: Vec<Measured<'a>>,
    predictions: usize,
    original: Sums,
}

/// A subject and what was measured of it.
#[derive(Debug)]
struct Measured<'a> {
    subject: Subject<'a>,
    encoder: Encoder<'a>,
    firing: Firing,
    image: Kinds,
    text: Kinds,
    spliced: Sums,
    zero: Sums,
}

/// What is measured of image and text tokens apart.
#[derive(Debug, Default)]
pub(crate) struct Kinds {
    pub(crate) reconstruction: Reconstruction,
    pub(crate) codes: usize,
}

impl<'a> Evaluator<'a> {
    /// Prepares the subjects; on a GPU, their weights go to the model's device in f32.
    ///
    /// # Errors
    /// When the model lacks a hook point or has it in its vision part, an autoencoder has another width, or the device has no
    /// room.
    pub fn new(model: &LlavaNext, subjects: Vec<Subject<'a>>) -> Result<Self, EvalError> {
        let measured = |subject: Subject<'a>| {
            subject.check(model)?;
            let encoder = Encoder::new(subject.sae, model.device()).map_err(subject.failed())?;
            let firing = Firing::new(subject.sae.num_latents());
            let (image, text) = (Kinds::default(), Kinds::default());
            let (spliced, zero) = (Sums::default(), Sums::default());
            Ok(Measured { subject, encoder, firing, image, text, spliced, zero })
        };
        let subjects = subjects.into_iter().map(measured).collect::<Result<_, _>>()?;
        Ok(Self { subjects, predictions: 0, original: Sums::default() })
    }

    /// Adds a batch that was made of `inputs`. `counted` names, for each sample, the positions (from 0, without padding, rising)
    /// of the tokens that are measured and replaced; all others keep the model's own activations. Predictions are measured
    /// wherever a text token follows, counted or not.
    ///
    /// # Errors
    /// When the batch does not fit the model, an activation is not finite, or the device fails. What the evaluator has seen is
    /// then unspecified.
    ///
    /// # Panics
    /// When `inputs` are not those of the batch, or positions do not rise or lie beyond a sample.
    #[track_caller]
    pub fn push(
        &mut self,
        model: &LlavaNext,
        batch: &Batch,
        inputs: &[&Inputs],
        counted: &[Vec<usize>],
    ) -> Result<(), EvalError> {
        let places = Places::new(batch, inputs, counted, model.device());
        let _no_gradients = tch::no_grad_guard();
        let pass = Pass { model, batch, places: &places };
        let (states, last) = pass.original(&self.points())?;
        let head = Head { model, targets: &places.targets };
        if let Some(last) = &last {
            self.predictions += places.predictions();
            self.original.add(head.sums(last, None));
        }
        let mut zeroed = BTreeMap::new();
        for measured in &mut self.subjects {
            let (input, output) = (&states[&measured.subject.input], &states[&measured.subject.output]);
            let prediction = measured.reconstruct(input, output, places.images)?;
            let Some(last) = &last else { continue };
            let point = &measured.subject.output;
            measured.spliced.add(head.sums(&pass.replaced(point, &prediction)?, Some(last)));
            if !zeroed.contains_key(point) {
                let zero = head.sums(&pass.replaced(point, &prediction.zeros_like())?, None);
                zeroed.insert(point.clone(), zero);
            }
            measured.zero.add(zeroed[point]);
        }
        Ok(())
    }

    /// Every hook point that is read, once.
    fn points(&self) -> Vec<HookPoint> {
        let mut points: Vec<_> = self
            .subjects
            .iter()
            .flat_map(|measured| [&measured.subject.input, &measured.subject.output])
            .cloned()
            .collect();
        points.sort_unstable();
        points.dedup();
        points
    }

    /// What was measured, one entry per subject in their order. Compares the decoder rows of each, which takes a while for a
    /// wide dictionary.
    pub fn finish(self) -> Vec<Evaluation> {
        let (predictions, original) = (self.predictions, self.original);
        let evaluation = |measured: Measured<'_>| {
            let Measured { subject, firing, image, text, spliced, zero, .. } = measured;
            let means = ModelMeans { predictions, original, spliced, zero };
            Evaluation::new(&subject, &firing, [&image, &text], means)
        };
        self.subjects.into_iter().map(evaluation).collect()
    }
}

impl Measured<'_> {
    /// Runs the autoencoder on `input` `[n, d_in]`, whose first `images` rows are image tokens, measures what it gives
    /// against `output`, and returns it.
    fn reconstruct(&mut self, input: &Tensor, output: &Tensor, images: usize) -> Result<Tensor, EvalError> {
        let (codes, result) = self.encoder.reconstruct(input).map_err(self.subject.failed())?;
        let (output, predicted) = (array(output)?, array(&result)?);
        let codes_of_images = codes.offsets()[images];
        self.firing.push(&codes);
        self.image.codes += codes_of_images;
        self.text.codes += codes.n_codes() - codes_of_images;
        let (first, second) = (s![..images, ..], s![images.., ..]);
        self.image.reconstruction.push(output.slice(first), predicted.slice(first));
        self.text.reconstruction.push(output.slice(second), predicted.slice(second));
        Ok(result)
    }
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.cross_entropy += other.cross_entropy;
        self.divergence += other.divergence;
    }
}

/// Passes of the model over one batch.
struct Pass<'p> {
    model: &'p LlavaNext,
    batch: &'p Batch,
    places: &'p Places,
}

impl Pass<'_> {
    /// The counted tokens' states at `points`, `[n, width]` in f32, and the final hidden states `[n, width]` of those that
    /// predict; `None` where none does.
    fn original(
        &self,
        points: &[HookPoint],
    ) -> Result<(BTreeMap<HookPoint, Tensor>, Option<Tensor>), EvalError> {
        let states = RefCell::new(BTreeMap::new());
        let mut hooks = Hooks::new();
        for point in points {
            hooks = hooks.read(point.clone(), |context, tensor| {
                let state = rows(tensor).index_select(0, &self.places.counted).to_kind(Kind::Float);
                states.borrow_mut().insert(context.point.clone(), state);
            });
        }
        if self.places.predictions() == 0 {
            hooks = hooks.stop_after_last();
        }
        let last = self.last(&mut hooks)?;
        drop(hooks);
        Ok((states.into_inner(), last))
    }

    /// The final hidden states of the tokens that predict, with `replacement` `[n, width]` in place of the counted tokens' at
    /// `point`.
    fn replaced(&self, point: &HookPoint, replacement: &Tensor) -> Result<Tensor, EvalError> {
        let mut hooks = Hooks::new().replace(point.clone(), |_, tensor| {
            let replacement = replacement.to_kind(tensor.kind());
            rows(&tensor).index_copy(0, &self.places.counted, &replacement).reshape(tensor.size())
        });
        let last = self.last(&mut hooks)?;
        Ok(last.expect("a pass that is not stopped has a last hidden state"))
    }

    fn last(&self, hooks: &mut Hooks<'_>) -> Result<Option<Tensor>, EvalError> {
        let last = self.model.last_hidden(self.batch, hooks).map_err(EvalError::model)?;
        let predicting = |last: Tensor| rows(&last).index_select(0, &self.places.predicting);
        Ok(if self.places.predictions() == 0 { None } else { last.map(predicting) })
    }
}
