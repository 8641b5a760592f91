//! [`Head`]: cross-entropy and KL divergence of next tokens, from final hidden states.

use lmm_hooks::LlavaNext;
use tch::{Kind, Tensor};

/// Numbers of a matrix of logits `[rows, vocabulary]` that is made at once; 256 MiB in f32.
const LOGITS: usize = 1 << 26;

/// The output head over the positions of a batch that predict.
pub(crate) struct Head<'a> {
    pub(crate) model: &'a LlavaNext,
    /// The tokens that came, `[n]`.
    pub(crate) targets: &'a Tensor,
}

/// Sums over predictions, in f64.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums {
    /// `Σ -ln q(t)`.
    pub(crate) cross_entropy: f64,
    /// `Σ KL(p‖q)`.
    pub(crate) divergence: f64,
}

impl Head<'_> {
    /// Of final hidden states `[n, width]`, and of the original model's beside them.
    pub(crate) fn sums(&self, hidden: &Tensor, original: Option<&Tensor>) -> Sums {
        let chunk = (LOGITS / self.model.config().text_config.vocab_size).max(1) as i64;
        let n = hidden.size()[0];
        let mut sums = Sums::default();
        for start in (0..n).step_by(chunk as usize) {
            let len = chunk.min(n - start);
            let log_probabilities = |hidden: &Tensor| {
                self.model.lm_head(&hidden.narrow(0, start, len)).log_softmax(-1, Kind::Float)
            };
            let logs = log_probabilities(hidden);
            let targets = self.targets.narrow(0, start, len).unsqueeze(1);
            sums.cross_entropy -= logs.gather(1, &targets, false).sum(Kind::Double).double_value(&[]);
            if let Some(original) = original {
                let original = log_probabilities(original);
                let divergence = (&original - logs) * original.exp();
                sums.divergence += divergence.sum(Kind::Double).double_value(&[]);
            }
        }
        sums
    }
}
