//! [`Question`], and [`Asked`]: a question to a model, as a [`Downstream`].

use lmm_hooks::{Batch, HookPoint, Hooks, LlavaNext, Midway, PaddingSide};
use lmm_prep::{Inputs, TokenLayout};
use sae_torch::TorchSae;
use tch::{Kind, Tensor};

use crate::downstream::Observed;
use crate::{AttributionError, Downstream, Site};

/// A prompt, and the answer whose preference over a baseline is to be traced.
///
/// The score is read at the last position of the prompt: the mean (or sum) of the answers' logits less that of the baselines'.
/// Without baselines it is the answers' alone.
#[derive(Clone, Debug)]
pub struct Question {
    /// The prompt with its images.
    pub inputs: Inputs,
    /// The tokens of the answer; several are alternatives, all read at the same position.
    pub answers: Vec<u32>,
    /// The tokens they are held against.
    pub baselines: Vec<u32>,
    /// How several logits become one.
    pub combine: Combine,
}

/// How the logits of several tokens become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Combine {
    /// Their mean.
    #[default]
    Mean,
    /// Their sum.
    Sum,
}

/// An autoencoder or transcoder at its place in a model.
#[derive(Debug)]
pub struct Place {
    point: HookPoint,
    /// Where it reads: the same, or the module's input.
    reads: HookPoint,
    sae: TorchSae,
}

/// A question put to a model, with the autoencoders that are to explain the answer.
#[derive(Debug)]
pub struct Asked<'a> {
    model: &'a LlavaNext,
    question: &'a Question,
    places: &'a [Place],
    /// The prompt's tokens, without images: those have done their part in `from`.
    tokens: Inputs,
    /// Before the first place, and before each.
    first: Midway,
    from: Vec<Midway>,
}

impl Place {
    /// Puts an autoencoder, or a transcoder of the module at `point`, at its place.
    ///
    /// # Errors
    /// When the model does not have the hook point, or has it on the vision side or of another width, or the input of a
    /// transcoder's module cannot be read.
    pub fn new(model: &LlavaNext, point: HookPoint, sae: TorchSae) -> Result<Self, AttributionError> {
        if model.is_vision(&point).map_err(AttributionError::model)? {
            return Err(AttributionError::VisionPoint { point });
        }
        let reads = if sae.config().transcode {
            model.input_point(&point).map_err(AttributionError::model)?
        } else {
            point.clone()
        };
        let got = model.width(&point).map_err(AttributionError::model)? as usize;
        if got != sae.d_in() {
            return Err(AttributionError::Width { point, expected: sae.d_in(), got });
        }
        Ok(Self { point, reads, sae })
    }

    /// The hook point.
    pub fn point(&self) -> &HookPoint {
        &self.point
    }

    /// The autoencoder.
    pub fn sae(&self) -> &TorchSae {
        &self.sae
    }
}

impl Question {
    /// The score of each row of `hidden` `[rows, tokens, width]`, the states that the head reads, in f32.
    fn score(&self, model: &LlavaNext, hidden: &Tensor) -> Tensor {
        let last = hidden.select(1, hidden.size()[1] - 1);
        let logits = model.logits_of(&last, &[self.answers.as_slice(), &self.baselines].concat());
        let combined = |first: usize, tokens: &[u32]| {
            let chosen = logits.narrow(1, first as i64, tokens.len() as i64);
            match self.combine {
                Combine::Mean => chosen.mean_dim(1, false, Kind::Float),
                Combine::Sum => chosen.sum_dim_intlist(1, false, Kind::Float),
            }
        };
        let answers = combined(0, &self.answers);
        if self.baselines.is_empty() {
            return answers;
        }
        answers - combined(self.answers.len(), &self.baselines)
    }
}

impl<'a> Asked<'a> {
    /// Runs the prompt up to the first place that is to be looked at, once.
    ///
    /// # Errors
    /// When the question has no answer or names a token that the model does not have, two places are the same, or the model cannot run
    /// the prompt.
    ///
    /// # Panics
    /// When there is no place.
    #[track_caller]
    pub fn new(
        model: &'a LlavaNext,
        question: &'a Question,
        places: &'a [Place],
    ) -> Result<Self, AttributionError> {
        assert!(!places.is_empty(), "no autoencoder to ask");
        if question.answers.is_empty() {
            return Err(AttributionError::NoAnswer);
        }
        let vocab_size = model.config().text_config.vocab_size;
        let mut asked = question.answers.iter().chain(&question.baselines);
        if let Some(&token) = asked.find(|&&token| token as usize >= vocab_size) {
            return Err(AttributionError::Token { token, vocab_size });
        }
        for (number, place) in places.iter().enumerate() {
            if places[..number].iter().any(|other| other.point == place.point) {
                return Err(AttributionError::Twice { point: place.point.clone() });
            }
        }
        let inputs = &question.inputs;
        let batch = batch(model, inputs, 1)?;
        let points: Vec<HookPoint> =
            places.iter().flat_map(|place| [&place.reads, &place.point]).cloned().collect();
        let from = model.run_up_to(&batch, &points).map_err(AttributionError::model)?;
        let order = model.hook_points();
        let earliest =
            (0..points.len()).min_by_key(|&at| order.iter().position(|known| *known == points[at]));
        let first = from[earliest.expect("a place")].shallow_clone();
        // Replacing begins at the state itself, after what a transcoder reads.
        let from = from.into_iter().skip(1).step_by(2).collect();
        let layout = TokenLayout { images: Vec::new(), n_tokens: inputs.layout.n_tokens };
        let tokens =
            Inputs { input_ids: inputs.input_ids.clone(), images: Vec::new(), layout, turns: Vec::new() };
        Ok(Self { model, question, places, tokens, first, from })
    }

    /// The question.
    pub fn question(&self) -> &Question {
        self.question
    }

    /// The score in the model's own pass.
    ///
    /// # Errors
    /// When the pass fails.
    pub fn score(&self) -> Result<f64, AttributionError> {
        let _guard = tch::no_grad_guard();
        let batch = batch(self.model, &self.tokens, 1)?;
        Ok(self.scores_of(&batch, &self.first, Hooks::new())?.double_value(&[0]))
    }

    /// A hook that puts `states` in the place of what a site gives.
    fn replacing<'h>(&self, site: usize, states: &'h Tensor) -> Hooks<'h> {
        let point = self.places[site].point.clone();
        Hooks::new().replace(point, |_, tensor| states.to_kind(tensor.kind()).reshape(tensor.size()))
    }

    /// The scores of a pass taken up midway.
    fn scores_of(
        &self,
        batch: &Batch,
        from: &Midway,
        mut hooks: Hooks<'_>,
    ) -> Result<Tensor, AttributionError> {
        let last = self.model.run_on(batch, from, &mut hooks).map_err(AttributionError::model)?;
        let last = last.expect("a pass that is not stopped has a last hidden state");
        Ok(self.question.score(self.model, &last))
    }

    fn copies(&self, site: usize, states: &Tensor) -> Result<(Batch, Midway), AttributionError> {
        let rows = states.size()[0] as usize;
        Ok((batch(self.model, &self.tokens, rows)?, self.from[site].repeated(rows)))
    }
}

impl Downstream for Asked<'_> {
    fn sites(&self) -> Vec<Site<'_>> {
        self.places.iter().map(|place| Site { point: &place.point, sae: &place.sae }).collect()
    }

    fn observe(&self) -> Result<(f64, Vec<Observed>), AttributionError> {
        let batch = batch(self.model, &self.tokens, 1)?;
        let mut points: Vec<HookPoint> =
            self.places.iter().flat_map(|place| [&place.reads, &place.point]).cloned().collect();
        points.sort_unstable();
        points.dedup();
        let score = |hidden: &Tensor| self.question.score(self.model, hidden);
        let found = self.model.gradients(&batch, &self.first, Hooks::new(), &points, score);
        let found = found.map_err(AttributionError::model)?;
        let wide = |tensor: &Tensor| tensor.squeeze_dim(0).to_kind(Kind::Float);
        let observed = |place: &Place| Observed {
            input: wide(&found.states[&place.reads]),
            state: wide(&found.states[&place.point]),
            gradient: wide(&found.gradients[&place.point]),
        };
        Ok((found.score.double_value(&[0]), self.places.iter().map(observed).collect()))
    }

    fn scores(&self, site: usize, states: &Tensor) -> Result<Tensor, AttributionError> {
        let (batch, from) = self.copies(site, states)?;
        self.scores_of(&batch, &from, self.replacing(site, states))
    }

    fn gradients(&self, site: usize, states: &Tensor) -> Result<Tensor, AttributionError> {
        let (batch, from) = self.copies(site, states)?;
        let point = &self.places[site].point;
        let hooks = self.replacing(site, states);
        let score = |hidden: &Tensor| self.question.score(self.model, hidden);
        let found = self.model.gradients(&batch, &from, hooks, std::slice::from_ref(point), score);
        Ok(found.map_err(AttributionError::model)?.gradients[point].to_kind(Kind::Float))
    }
}

/// `rows` copies of a prompt.
fn batch(model: &LlavaNext, inputs: &Inputs, rows: usize) -> Result<Batch, AttributionError> {
    // No prompt is shorter than another, so that nothing is padded.
    let pad = inputs.input_ids.first().copied().unwrap_or_default();
    Batch::new(&vec![inputs; rows], pad, model.device(), model.kind(), PaddingSide::Right)
        .map_err(AttributionError::model)
}
