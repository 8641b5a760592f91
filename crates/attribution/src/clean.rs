//! [`Clean`]: one pass of the model's own, from which every method goes on.

use tch::Tensor;

use crate::downstream::Observed;
use crate::parts::Parts;
use crate::{AttributionError, Downstream, Site};

/// The score of one question and what each site gives, from a pass forward and one backward. All methods begin with it, so
/// that it is made once however many of them are asked.
#[derive(Debug)]
pub struct Clean<'d, D> {
    pub(crate) downstream: &'d D,
    score: f64,
    sites: Vec<Seen>,
}

/// What one site gives.
#[derive(Debug)]
pub(crate) struct Seen {
    /// What the autoencoder reads, `[tokens, d_in]`.
    pub(crate) input: Tensor,
    /// Of the score with respect to the state, `[tokens, width]`.
    pub(crate) gradient: Tensor,
    pub(crate) parts: Parts,
}

impl<'d, D: Downstream> Clean<'d, D> {
    /// Runs the pass.
    ///
    /// # Errors
    /// When it fails, or its score is not finite.
    pub fn new(downstream: &'d D) -> Result<Self, AttributionError> {
        let (score, observed) = downstream.observe()?;
        if !score.is_finite() {
            return Err(AttributionError::Score { score });
        }
        let seen = |(site, observed): (Site<'_>, Observed)| -> Result<Seen, AttributionError> {
            let parts = Parts::new(site, &observed)?;
            Ok(Seen { input: observed.input, gradient: observed.gradient, parts })
        };
        let sites = downstream.sites().into_iter().zip(observed).map(seen).collect::<Result<_, _>>()?;
        Ok(Self { downstream, score, sites })
    }

    /// The score.
    pub fn score(&self) -> f64 {
        self.score
    }

    /// What site number `site` gives.
    ///
    /// # Panics
    /// When there is no such site.
    #[track_caller]
    pub(crate) fn seen(&self, site: usize) -> (Site<'d>, &Seen) {
        let seen = &self.sites[site];
        (self.downstream.sites().swap_remove(site), seen)
    }

    /// All of them, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (Site<'d>, &Seen)> {
        self.downstream.sites().into_iter().zip(&self.sites)
    }
}
