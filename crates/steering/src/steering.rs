//! [`Steering`]: plans as hooks of a forward pass.

use std::collections::BTreeSet;

use lmm_hooks::{HookContext, Hooks};
use sae_torch::TorchSae;
use sae_types::HookPoint;
use tch::Tensor;

use crate::slots::Slots;
use crate::tokens::Tokens;
use crate::{ErrorTerm, Plan, Stage, Steerer, SteeringError};

/// Plans for the rows of a batch, ready to run. Made by [`Steerer::steering`].
#[derive(Debug)]
pub struct Steering<'a> {
    plans: Vec<Plan>,
    points: Vec<Point<'a>>,
    stage: Stage,
    error: ErrorTerm,
}

/// What happens at a hook point.
#[derive(Debug)]
struct Point<'a> {
    hook: HookPoint,
    sae: &'a TorchSae,
    slots: Slots,
    /// Whether the plan of each row names the hook point, `[batch, 1]` (bool): at others a row is left as it is.
    named: Tensor,
}

impl<'a> Steering<'a> {
    pub(crate) fn new(steerer: &'a Steerer, plans: &[Plan]) -> Result<Self, SteeringError> {
        let manner = |plan: &Plan| (plan.stage, plan.error);
        let (stage, error) = plans.first().map(manner).unwrap_or_default();
        if plans.iter().any(|plan| manner(plan) != (stage, error)) {
            return Err(SteeringError::Mixed);
        }
        let hooks: BTreeSet<&HookPoint> = plans.iter().flat_map(|plan| plan.changes.keys()).collect();
        let point = |hook: &HookPoint| {
            let sae = steerer.saes.get(hook).ok_or(SteeringError::NoAutoencoder)?;
            let rows: Vec<_> = plans.iter().map(|plan| plan.changes.get(hook)).collect();
            let named: Vec<bool> = rows.iter().map(Option::is_some).collect();
            let named = Tensor::from_slice(&named).unsqueeze(1).to_device(sae.device());
            Ok(Point { hook: hook.clone(), sae, slots: Slots::new(&rows, sae), named })
        };
        let points = hooks.into_iter().map(point).collect::<Result<_, SteeringError>>()?;
        Ok(Self { plans: plans.to_vec(), points, stage, error })
    }

    /// The hook points where anything may change, in order.
    pub(crate) fn points(&self) -> impl Iterator<Item = &HookPoint> {
        self.points.iter().map(|point| &point.hook)
    }

    /// Hooks for a forward pass over, or a generation from, a batch with as many rows as there are plans. Of a forward pass
    /// outside generation all tokens are prompt.
    ///
    /// # Panics
    /// The hooks panic in a batch of another number of rows.
    pub fn hooks(&self) -> Hooks<'_> {
        self.hooks_behind(None)
    }

    /// Hooks for a forward pass over prompts of these lengths with an answer behind each, which counts as generated.
    ///
    /// # Panics
    /// When there are not as many lengths as plans. The hooks panic in a batch of another number of rows.
    #[track_caller]
    pub fn hooks_with_answers(&self, prompts: &[usize]) -> Hooks<'_> {
        assert_eq!(prompts.len(), self.plans.len(), "lengths of prompts against plans");
        self.hooks_behind(Some(prompts))
    }

    fn hooks_behind(&self, prompts: Option<&[usize]>) -> Hooks<'_> {
        let mut hooks = Hooks::new();
        for point in &self.points {
            let prompts = prompts.map(<[usize]>::to_vec);
            hooks = hooks.replace(point.hook.clone(), move |context, hidden| {
                let prompts = prompts.as_deref().unwrap_or(context.batch.lengths());
                self.steer(point, context, &hidden, prompts)
            });
        }
        hooks
    }

    /// What takes the place of `hidden [batch, tokens, width]`.
    fn steer(
        &self,
        point: &Point<'_>,
        context: &HookContext<'_>,
        hidden: &Tensor,
        prompts: &[usize],
    ) -> Tensor {
        let size = hidden.size();
        assert_eq!(size[0] as usize, self.plans.len(), "rows of the batch against plans");
        let tokens = Tokens { context, prompts };
        let chosen = tokens.chosen(&self.plans);
        let Point { sae, slots, named, .. } = point;
        let steered = match (self.error, self.stage) {
            (ErrorTerm::Keep, Stage::AfterTopK) => slots.change(sae, hidden, &chosen),
            (ErrorTerm::Keep, Stage::BeforeTopK) => refilled(sae, slots, hidden, &chosen),
            (ErrorTerm::Drop, _) => {
                let replaced = context.real.logical_and(named);
                self.reconstructed(sae, slots, hidden, &chosen, &replaced)
            }
        };
        slots.redirect(sae, steered, &chosen)
    }

    /// The reconstruction of the tokens to be `replaced`, from changed codes where `chosen`.
    fn reconstructed(
        &self,
        sae: &TorchSae,
        slots: &Slots,
        hidden: &Tensor,
        chosen: &Tensor,
        replaced: &Tensor,
    ) -> Tensor {
        let x = hidden.reshape([-1, sae.d_in() as i64]);
        let columns = slots.columns(chosen);
        let codes = match self.stage {
            Stage::BeforeTopK => sae.encode_edited(&x, |dense, start| columns.edit(dense, start)),
            Stage::AfterTopK => sae.encode(&x),
        };
        let mut decoded = sae.decode(&codes);
        if self.stage == Stage::AfterTopK {
            decoded += columns.difference(sae, &codes);
        }
        if let Some(skip) = sae.skip(&x) {
            decoded += skip;
        }
        let decoded = decoded.to_kind(hidden.kind()).reshape(hidden.size());
        decoded.where_self(&replaced.unsqueeze(-1), hidden)
    }
}

/// Changes before TopK with the error kept: the difference between the reconstructions with and without them.
fn refilled(sae: &TorchSae, slots: &Slots, hidden: &Tensor, chosen: &Tensor) -> Tensor {
    let places = chosen.reshape([-1]).nonzero().squeeze_dim(1);
    if places.size()[0] == 0 || !slots.has_codes() {
        return hidden.shallow_clone();
    }
    let x = hidden.reshape([-1, sae.d_in() as i64]);
    let some = x.index_select(0, &places);
    let columns = slots.columns(chosen).at(&places);
    let before = sae.decode_without_bias(&sae.encode(&some));
    let after = sae.encode_edited(&some, |dense, start| columns.edit(dense, start));
    let difference = (sae.decode_without_bias(&after) - before).to_kind(hidden.kind());
    x.index_add(0, &places, &difference).reshape(hidden.size())
}
