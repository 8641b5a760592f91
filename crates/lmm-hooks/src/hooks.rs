//! [`Hooks`]: what a caller wants done at which points of a forward pass.

use std::ops::ControlFlow;

use sae_types::HookPoint;
use torch_nn::tch::Tensor;

use crate::points::{Points, Site};
use crate::{Batch, HookError};

/// Which part of a generation a hook sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The prompt, or any forward pass outside generation.
    Prefill,
    /// One new token per sample. Step 0 reads the first token generated.
    Decode {
        /// How many tokens were generated and read before this one.
        step: usize,
    },
}

/// What a hook is told beside the tensor.
#[derive(Debug)]
#[non_exhaustive]
pub struct HookContext<'a> {
    /// Where it was called.
    pub point: &'a HookPoint,
    /// Prompt or new token.
    pub phase: Phase,
    /// Which tokens of this pass are real, `[batch, tokens]` (bool): false for padding, and in a decode step for
    /// samples that have ended. Does not apply to the tensors of the tower and the projector, whose rows are tiles.
    pub real: &'a Tensor,
    /// The position of each token in its own sample, `[batch, tokens]` (i64).
    pub positions: &'a Tensor,
    /// The prompts.
    pub batch: &'a Batch,
}

type Reader<'a> = Box<dyn FnMut(&HookContext<'_>, &Tensor) + 'a>;
type Replacer<'a> = Box<dyn FnMut(&HookContext<'_>, Tensor) -> Tensor + 'a>;

enum Action<'a> {
    Read(Reader<'a>),
    Replace(Replacer<'a>),
}

/// Functions to call during a forward pass, each at its hook point, in the order they were added.
///
/// A hook at `model.layers.3` gets that layer's output `[batch, tokens, width]`; one at a module within the layer gets
/// that module's output before it is added to the residual stream. Tensors carry gradients if the pass does.
#[derive(Default)]
pub struct Hooks<'a> {
    entries: Vec<(HookPoint, Action<'a>)>,
    stop_after_last: bool,
}

impl<'a> Hooks<'a> {
    /// No hooks: an ordinary forward pass.
    pub fn new() -> Self {
        Self::default()
    }

    /// Shows the tensor at `point` to a function.
    #[must_use]
    pub fn read(mut self, point: HookPoint, hook: impl FnMut(&HookContext<'_>, &Tensor) + 'a) -> Self {
        self.entries.push((point, Action::Read(Box::new(hook))));
        self
    }

    /// Puts what a function makes of the tensor at `point` in its place. It must have the same shape.
    #[must_use]
    pub fn replace(
        mut self,
        point: HookPoint,
        hook: impl FnMut(&HookContext<'_>, Tensor) -> Tensor + 'a,
    ) -> Self {
        self.entries.push((point, Action::Replace(Box::new(hook))));
        self
    }

    /// These, then all of `others`.
    #[must_use]
    pub fn then(mut self, others: Hooks<'a>) -> Self {
        self.entries.extend(others.entries);
        self.stop_after_last |= others.stop_after_last;
        self
    }

    /// Ends the forward pass once the last hook point of these has been reached: nothing after it is computed, and
    /// there are no logits. Without hooks this does nothing.
    #[must_use]
    pub fn stop_after_last(mut self) -> Self {
        self.stop_after_last = true;
        self
    }
}

impl std::fmt::Debug for Hooks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hooks")
            .field("points", &self.entries.iter().map(|(point, _)| point.as_str()).collect::<Vec<_>>())
            .field("stop_after_last", &self.stop_after_last)
            .finish()
    }
}

/// Why a forward pass ended before its end.
pub(crate) enum Halt {
    /// The last hook point wanted was reached.
    Reached,
    Failed(HookError),
}

pub(crate) type Flow<T> = ControlFlow<Halt, T>;

/// The hooks of one forward pass, resolved against a model.
#[derive(Debug)]
pub(crate) struct Pass<'p, 'h> {
    hooks: &'p mut Hooks<'h>,
    /// One per entry of `hooks`.
    sites: Vec<Site>,
    /// Where the pass is to end, if before its end.
    last: Option<Site>,
    pub(crate) batch: &'p Batch,
    pub(crate) phase: Phase,
    pub(crate) real: Tensor,
    pub(crate) positions: Tensor,
}

impl<'p, 'h> Pass<'p, 'h> {
    /// A pass over the prompts.
    pub(crate) fn new(
        points: &Points,
        hooks: &'p mut Hooks<'h>,
        batch: &'p Batch,
    ) -> Result<Self, HookError> {
        let site = |point: &HookPoint| {
            points.site(point).ok_or_else(|| HookError::UnknownPoint {
                point: point.clone(),
                near: points.nearest(point.as_str()),
            })
        };
        let sites = hooks.entries.iter().map(|(point, _)| site(point)).collect::<Result<Vec<_>, _>>()?;
        let (real, positions) = (batch.real().shallow_clone(), batch.positions().shallow_clone());
        let last = if hooks.stop_after_last { sites.iter().max().copied() } else { None };
        Ok(Self { hooks, sites, last, batch, phase: Phase::Prefill, real, positions })
    }

    /// The last site to be reached, if the pass is to end there.
    pub(crate) fn last(&self) -> Option<Site> {
        self.last
    }

    /// The same pass, going to its end whatever the hooks say.
    pub(crate) fn unstoppable(self) -> Self {
        Self { last: None, ..self }
    }

    /// The same pass, taken up at `first`; refused where a hook would never be called.
    pub(crate) fn beginning_at(self, first: Site) -> Result<Self, HookError> {
        let passed = self.hooks.entries.iter().zip(&self.sites).find(|(_, site)| **site < first);
        match passed {
            Some(((point, _), _)) => Err(HookError::Passed { point: point.clone() }),
            None => Ok(self),
        }
    }

    /// Calls the hooks of `site` on its tensor and gives what goes on from there.
    pub(crate) fn visit(&mut self, site: Site, mut tensor: Tensor) -> Flow<Tensor> {
        if self.sites.is_empty() {
            return Flow::Continue(tensor);
        }
        for ((point, action), _) in
            self.hooks.entries.iter_mut().zip(&self.sites).filter(|(_, own)| **own == site)
        {
            let context = HookContext {
                point,
                phase: self.phase,
                real: &self.real,
                positions: &self.positions,
                batch: self.batch,
            };
            match action {
                Action::Read(hook) => hook(&context, &tensor),
                Action::Replace(hook) => {
                    let expected = tensor.size();
                    tensor = hook(&context, tensor);
                    if tensor.size() != expected {
                        let (point, got) = (point.clone(), tensor.size());
                        return Flow::Break(Halt::Failed(HookError::ReplacedShape { point, expected, got }));
                    }
                }
            }
        }
        if self.last == Some(site) { Flow::Break(Halt::Reached) } else { Flow::Continue(tensor) }
    }
}
