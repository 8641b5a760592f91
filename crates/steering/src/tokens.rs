//! Which tokens of a pass a plan is about.

use lmm_hooks::{HookContext, Phase};
use tch::Tensor;

use crate::{Plan, When, Where};

/// The tokens of a pass.
pub(crate) struct Tokens<'a> {
    pub(crate) context: &'a HookContext<'a>,
    /// The lengths of the prompts. What stands behind them is an answer, generated or given.
    pub(crate) prompts: &'a [usize],
}

impl Tokens<'_> {
    /// The tokens that the plans of the rows are about, `[batch, tokens]` (bool).
    pub(crate) fn chosen(&self, plans: &[Plan]) -> Tensor {
        let same = plans.windows(2).all(|two| (two[0].place, two[0].time) == (two[1].place, two[1].time));
        match plans {
            [] => self.context.real.zeros_like(),
            [plan, ..] if same => self.of_plan(plan),
            _ => {
                let of_row = |(row, plan)| self.of_plan(plan).get(row as i64);
                Tensor::stack(&plans.iter().enumerate().map(of_row).collect::<Vec<_>>(), 0)
            }
        }
    }

    fn of_plan(&self, plan: &Plan) -> Tensor {
        let real = self.context.real;
        let place = match plan.place {
            Where::Image => self.image(),
            Where::Text if self.is_prefill() => real.logical_and(&self.image().logical_not()),
            Where::All | Where::Text => real.shallow_clone(),
            Where::Last => self.context.positions.eq_tensor(&(self.lengths() - 1)).logical_and(real),
            Where::Generated => self.answer(),
        };
        match plan.time {
            When::Both => place,
            When::Decoding => place.logical_and(&self.answer()),
            When::Prefill => place.logical_and(&self.answer().logical_not()),
        }
    }

    fn is_prefill(&self) -> bool {
        self.context.phase == Phase::Prefill
    }

    fn image(&self) -> Tensor {
        if self.is_prefill() { self.context.batch.image_tokens() } else { self.context.real.zeros_like() }
    }

    fn answer(&self) -> Tensor {
        self.context.positions.ge_tensor(&self.lengths()).logical_and(self.context.real)
    }

    /// `[batch, 1]` (i64).
    fn lengths(&self) -> Tensor {
        let lengths: Vec<i64> = self.prompts.iter().map(|&length| length as i64).collect();
        Tensor::from_slice(&lengths).unsqueeze(1).to_device(self.context.real.device())
    }
}
