//! [`Midway`]: a forward pass taken up between two layers, and the gradients of what follows.

use std::cell::RefCell;
use std::collections::BTreeMap;

use sae_types::HookPoint;
use torch_nn::tch::{self, Tensor};

use crate::hooks::{Flow, Pass};
use crate::model::finished;
use crate::points::Site;
use crate::{Batch, HookError, Hooks, LlavaNext};

/// What goes from one layer of the language model into the next: enough to run the rest of a pass any number of times.
#[derive(Debug)]
pub struct Midway {
    /// The layer that reads it; the number of layers where the final norm does.
    layer: usize,
    hidden: Tensor,
}

/// How a score depends on the states at some hook points.
#[derive(Debug)]
pub struct Gradients {
    /// What the score function gave, without a graph.
    pub score: Tensor,
    /// The states at the points asked for, `[batch, tokens, width]`, without a graph.
    pub states: BTreeMap<HookPoint, Tensor>,
    /// The gradients of the sum of the score with respect to them, in their shapes and dtypes.
    pub gradients: BTreeMap<HookPoint, Tensor>,
}

impl Midway {
    /// `[batch, tokens, width]`, before any hooks there.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// The same tensor under another handle.
    pub fn shallow_clone(&self) -> Self {
        Self { layer: self.layer, hidden: self.hidden.shallow_clone() }
    }

    /// The same for `copies` copies of its prompts, one set after the other. Of a single prompt nothing is copied; of several the
    /// states are.
    pub fn repeated(&self, copies: usize) -> Self {
        let size = self.hidden.size();
        let (rows, copies) = (size[0], copies as i64);
        let expanded = self.hidden.unsqueeze(0).expand([copies, rows, size[1], size[2]], false);
        Self { layer: self.layer, hidden: expanded.flatten(0, 1) }
    }
}

/// Hooks that keep what passes the points, as leaves of the graph where none has begun.
struct Watch<'w>(&'w RefCell<BTreeMap<HookPoint, Tensor>>);

impl<'w> Watch<'w> {
    fn add<'h>(&self, mut hooks: Hooks<'h>, points: &[HookPoint]) -> Hooks<'h>
    where
        'w: 'h,
    {
        let seen = self.0;
        for point in points {
            hooks = hooks.replace(point.clone(), move |context, tensor| {
                let tensor =
                    if tensor.requires_grad() { tensor } else { tensor.detach().set_requires_grad(true) };
                seen.borrow_mut().insert(context.point.clone(), tensor.shallow_clone());
                tensor
            });
        }
        hooks
    }
}

impl LlavaNext {
    /// Runs the prompts, without gradients, up to where each of `points` can still be reached: right before the hooks of a
    /// whole layer, or before the layer that holds the point. One pass for all.
    ///
    /// # Errors
    /// As [`LlavaNext::forward`]; [`HookError::VisionPoint`] for a point before the language model.
    pub fn run_up_to(&self, batch: &Batch, points: &[HookPoint]) -> Result<Vec<Midway>, HookError> {
        let depth = self.decoder.depth();
        let mut wanted = Vec::with_capacity(points.len());
        for point in points {
            let layer = self.site(point)?.layer_to_reach(depth);
            let layer = layer.ok_or_else(|| HookError::VisionPoint { point: point.clone() })?;
            let before = Site::before_layer(layer).point();
            wanted.push((layer, before.ok_or_else(|| HookError::VisionPoint { point: point.clone() })?));
        }
        let befores: Vec<HookPoint> = wanted.iter().map(|(_, before)| before.clone()).collect();
        let states = self.hidden_states(batch, &befores)?;
        let midway = |(layer, before)| Midway { layer, hidden: states[&before].shallow_clone() };
        Ok(wanted.into_iter().map(midway).collect())
    }

    /// The rest of a pass: what [`LlavaNext::last_hidden`] gives, with hooks from the place of `midway` on. Of `batch` only
    /// lengths and padding count, so that it may come without images. Differentiable.
    ///
    /// # Errors
    /// When a hook point is unknown, or a hook changes a shape; [`HookError::Passed`] for a hook before `midway`.
    ///
    /// # Panics
    /// When `batch` has another shape than `midway`.
    #[track_caller]
    pub fn run_on(
        &self,
        batch: &Batch,
        midway: &Midway,
        hooks: &mut Hooks<'_>,
    ) -> Result<Option<Tensor>, HookError> {
        midway.check(batch);
        let mut pass =
            Pass::new(&self.points, hooks, batch)?.beginning_at(Site::before_layer(midway.layer))?;
        let hidden = midway.hidden.shallow_clone();
        finished(self.decoder.forward_from(midway.layer, hidden, None, &mut pass))
    }

    /// Takes a pass up from `midway` and gives the gradients of `score` with respect to the states at `points`, which `hooks` may
    /// have replaced. `score` maps the hidden states `[batch, tokens, width]` that [`LlavaNext::lm_head`] reads to a tensor
    /// of any shape, whose sum is what is differentiated. The graph begins at the first of the points.
    ///
    /// With matrices in 8 bits, layer after layer is run once more and backwards on its own, from the last to the first: a
    /// dequantised matrix lives no longer than that takes. Hooks are then called twice.
    ///
    /// # Errors
    /// As [`LlavaNext::run_on`]; [`HookError::Passed`] for a point or a hook before `midway`.
    ///
    /// # Panics
    /// As [`LlavaNext::run_on`].
    #[track_caller]
    pub fn gradients(
        &self,
        batch: &Batch,
        midway: &Midway,
        hooks: Hooks<'_>,
        points: &[HookPoint],
        score: impl FnOnce(&Tensor) -> Tensor,
    ) -> Result<Gradients, HookError> {
        midway.check(batch);
        let seen = RefCell::new(BTreeMap::new());
        let mut hooks = Watch(&seen).add(hooks, points);
        let pass = Pass::new(&self.points, &mut hooks, batch)?.unstoppable();
        let mut pass = pass.beginning_at(Site::before_layer(midway.layer))?;
        let by_layer = self.quantisation().is_some();
        let run = || {
            if by_layer {
                self.gradients_by_layer(midway, &mut pass, &seen, score)
            } else {
                self.gradients_at_once(midway, &mut pass, &seen, score)
            }
        };
        tch::with_grad(|| finished_with(run()))
    }

    fn gradients_at_once(
        &self,
        midway: &Midway,
        pass: &mut Pass<'_, '_>,
        seen: &RefCell<BTreeMap<HookPoint, Tensor>>,
        score: impl FnOnce(&Tensor) -> Tensor,
    ) -> Flow<Gradients> {
        let hidden = midway.hidden.detach();
        let score = score(&self.decoder.forward_from(midway.layer, hidden, None, pass)?);
        let states = seen.take();
        let gradients = backward(&score.sum(None), &states);
        Flow::Continue(Gradients { score: score.detach(), states: detached(&states), gradients })
    }

    fn gradients_by_layer(
        &self,
        midway: &Midway,
        pass: &mut Pass<'_, '_>,
        seen: &RefCell<BTreeMap<HookPoint, Tensor>>,
        score: impl FnOnce(&Tensor) -> Tensor,
    ) -> Flow<Gradients> {
        let (first, depth) = (midway.layer, self.decoder.depth());
        let mut steps = self.decoder.steps(0, pass);
        let mut inputs = Vec::with_capacity(depth - first);
        let mut hidden = midway.hidden.detach();
        {
            let _guard = tch::no_grad_guard();
            hidden = pass.visit(Site::before_layer(first), hidden)?.detach();
            for layer in first..depth {
                inputs.push(hidden.shallow_clone());
                hidden = steps.layer(layer, hidden, None, pass)?.detach();
            }
        }
        let mut states = detached(&seen.take());
        let mut gradients: BTreeMap<HookPoint, Tensor> = BTreeMap::new();

        let leaf = hidden.detach().set_requires_grad(true);
        let score = score(&self.decoder.finish(&leaf, pass)?);
        let mut upstream = {
            let here = seen.take();
            states.extend(detached(&here));
            let (own, found) = backward_with(&score.sum(None), &leaf, &here);
            gradients.extend(found);
            own
        };
        for (layer, input) in (first..depth).zip(inputs).rev() {
            let leaf = input.detach().set_requires_grad(true);
            let out = steps.layer(layer, leaf.shallow_clone(), None, pass)?;
            let (own, found) = backward_with(&(out * upstream).sum(None), &leaf, &seen.take());
            gradients.extend(found);
            upstream = own;
        }
        // What comes in was looked at before the first layer, outside of any of these graphs.
        if let Some(point) = Site::before_layer(first).point()
            && states.contains_key(&point)
        {
            gradients.insert(point, upstream);
        }
        Flow::Continue(Gradients { score: score.detach(), states, gradients })
    }
}

impl Midway {
    #[track_caller]
    fn check(&self, batch: &Batch) {
        let size = self.hidden.size();
        assert_eq!(
            [batch.len() as i64, batch.width() as i64],
            size[..2],
            "the batch against what is taken up"
        );
    }
}

fn finished_with(flow: Flow<Gradients>) -> Result<Gradients, HookError> {
    match flow {
        Flow::Continue(gradients) => Ok(gradients),
        Flow::Break(crate::hooks::Halt::Failed(error)) => Err(error),
        Flow::Break(crate::hooks::Halt::Reached) => unreachable!("the pass is not to be stopped"),
    }
}

fn detached(states: &BTreeMap<HookPoint, Tensor>) -> BTreeMap<HookPoint, Tensor> {
    states.iter().map(|(point, state)| (point.clone(), state.detach())).collect()
}

/// The gradients of `sum` with respect to `states`, zeros where it does not depend on one.
fn backward(sum: &Tensor, states: &BTreeMap<HookPoint, Tensor>) -> BTreeMap<HookPoint, Tensor> {
    let inputs: Vec<&Tensor> = states.values().collect();
    states.keys().cloned().zip(defined(sum, &inputs)).collect()
}

/// The same, and first of all with respect to `leaf`.
fn backward_with(
    sum: &Tensor,
    leaf: &Tensor,
    states: &BTreeMap<HookPoint, Tensor>,
) -> (Tensor, BTreeMap<HookPoint, Tensor>) {
    let inputs: Vec<&Tensor> = std::iter::once(leaf).chain(states.values()).collect();
    let mut found = defined(sum, &inputs).into_iter();
    let own = found.next().unwrap_or_else(|| leaf.zeros_like());
    (own, states.keys().cloned().zip(found).collect())
}

fn defined(sum: &Tensor, inputs: &[&Tensor]) -> Vec<Tensor> {
    if inputs.is_empty() || !sum.requires_grad() {
        return inputs.iter().map(|input| input.zeros_like()).collect();
    }
    let found = Tensor::run_backward(&[sum], inputs, false, false);
    let or_zeros =
        |(input, found): (&&Tensor, Tensor)| if found.defined() { found } else { input.zeros_like() };
    inputs.iter().zip(found).map(or_zeros).collect()
}
