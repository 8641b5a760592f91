//! [`Totals`]: what a client has done so far.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Prices, Usage};

/// What a client and its clones have done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that were given up.
    pub failed: u64,
    /// Attempts beyond the first of each.
    pub retries: u64,
    /// How often the server was gone and waited for.
    pub outages: u64,
    /// Tokens of the answered requests.
    pub usage: Usage,
    /// What they cost, if prices are known.
    pub cost: Option<f64>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) answered: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) outages: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) completion_tokens: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Counters {
    pub(crate) fn totals(&self, prices: Option<Prices>) -> Totals {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let usage =
            Usage { prompt_tokens: of(&self.prompt_tokens), completion_tokens: of(&self.completion_tokens) };
        let cost = |prices: Prices| {
            (usage.prompt_tokens as f64 * prices.prompt + usage.completion_tokens as f64 * prices.completion)
                / 1e6
        };
        Totals {
            answered: of(&self.answered),
            failed: of(&self.failed),
            retries: of(&self.retries),
            outages: of(&self.outages),
            usage,
            cost: prices.map(cost),
        }
    }
}
