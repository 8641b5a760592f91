//! A score that is any function of the state at one site.

use attribution::{AttributionError, Downstream, Observed, Site};
use sae_torch::TorchSae;
use sae_types::HookPoint;
use tch::{Kind, Tensor};

/// Maps states `[rows, tokens, width]` to scores `[rows]`.
type Score = Box<dyn Fn(&Tensor) -> Tensor>;

pub(crate) struct Function {
    point: HookPoint,
    sae: TorchSae,
    state: Tensor,
    score: Score,
}

impl Function {
    /// The state is `[tokens, width]`.
    pub(crate) fn new(sae: TorchSae, state: Tensor, score: impl Fn(&Tensor) -> Tensor + 'static) -> Self {
        tch::set_num_threads(1);
        Self { point: HookPoint::layer(0), sae, state, score: Box::new(score) }
    }

    pub(crate) fn sae(&self) -> &TorchSae {
        &self.sae
    }

    pub(crate) fn state(&self) -> Tensor {
        self.state.shallow_clone()
    }

    pub(crate) fn score(&self, states: &Tensor) -> Tensor {
        (self.score)(states)
    }
}

impl Downstream for Function {
    fn sites(&self) -> Vec<Site<'_>> {
        vec![Site { point: &self.point, sae: &self.sae }]
    }

    fn observe(&self) -> Result<(f64, Vec<Observed>), AttributionError> {
        let states = self.state.unsqueeze(0);
        let score = self.scores(0, &states)?.double_value(&[0]);
        let gradient = self.gradients(0, &states)?.squeeze_dim(0);
        Ok((score, vec![Observed { input: self.state(), state: self.state(), gradient }]))
    }

    fn scores(&self, _site: usize, states: &Tensor) -> Result<Tensor, AttributionError> {
        Ok(self.score(states))
    }

    fn gradients(&self, _site: usize, states: &Tensor) -> Result<Tensor, AttributionError> {
        let leaf = states.detach().set_requires_grad(true);
        let sum = self.score(&leaf).sum(Kind::Float);
        Ok(Tensor::run_backward(&[sum], &[leaf], false, false).remove(0))
    }
}
