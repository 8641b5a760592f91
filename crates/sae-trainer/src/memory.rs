//! [`MemoryEstimate`]: what training will hold, before it is tried.

use crate::objective::Chain;
use crate::optimizer::BLOCK_OF_8_BITS;
use crate::{Optimizer, TrainerConfig};

/// Bytes that a trainer holds on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryEstimate {
    /// Weights and biases, f32.
    pub parameters: usize,
    /// Moments.
    pub optimizer_state: usize,
    /// Sums of gradients, f32, dense in latents; never in tokens.
    pub gradients: usize,
    /// What libtorch holds on top while it adds to the gradients: one more matrix of each kind. Not there on the CPU.
    pub gradient_temporaries: usize,
    /// Dense pre-activations on libtorch. Not there on the CPU.
    pub pre_activations: usize,
    /// Activations, reconstructions, their gradients and codes, per row of a part of a call.
    pub per_token_bytes: usize,
}

impl MemoryEstimate {
    /// All of it on the CPU, with so many rows in a part of a call.
    pub fn kernels(&self, rows: usize) -> usize {
        self.parameters + self.optimizer_state + self.gradients + self.per_token_bytes * rows
    }

    /// All of it on libtorch, with so many rows in a part of a call.
    pub fn libtorch(&self, rows: usize) -> usize {
        self.kernels(rows) + self.gradient_temporaries + self.pre_activations
    }
}

impl TrainerConfig {
    /// What training with these settings holds. A prediction of the large things; buffers and rounding come on top.
    pub fn memory(&self) -> MemoryEstimate {
        let (latents, d_in) = (self.num_latents, self.d_in);
        let matrices = 2 * latents * d_in + if self.skip_connection { d_in * d_in } else { 0 };
        let vectors = latents + d_in;
        let rows = 2 * latents + if self.skip_connection { d_in } else { 0 };
        let optimizer_state = match self.optimizer {
            Optimizer::Adam => 8 * (matrices + vectors),
            Optimizer::Adam8bit => 2 * matrices + 8 * rows * d_in.div_ceil(BLOCK_OF_8_BITS) + 8 * vectors,
            Optimizer::Signum => 4 * (matrices + vectors),
        };
        let chain = Chain::new(self);
        // Inputs and their centred copy, targets, reconstruction, what is added to it, error; gradients of all sets.
        let rows_of_d_in =
            6 + usize::from(self.transcode) + chain.prefixes.len() + usize::from(self.multi_topk);
        let codes = chain.count + if self.auxk_alpha > 0.0 { d_in / 2 } else { 0 };
        MemoryEstimate {
            parameters: 4 * (matrices + vectors),
            optimizer_state,
            gradients: 4 * (matrices + vectors) + latents,
            gradient_temporaries: 4 * latents * d_in,
            pre_activations: self.dense_budget,
            // A code's latent and activation, twice; its gradient, row and place.
            per_token_bytes: 4 * rows_of_d_in * d_in + 36 * codes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bits_take_two_bytes_a_parameter() {
        let mut config = TrainerConfig::new(4096, 131_072, 256, 100);
        let adam = config.memory();
        assert_eq!(adam.parameters, 4 * 1_073_876_992);
        assert_eq!(adam.optimizer_state, 2 * adam.parameters);
        config.optimizer = Optimizer::Adam8bit;
        let bytes = config.memory().optimizer_state as f64 / 1_073_876_992.0;
        assert!(bytes < 2.04, "{bytes}");
    }
}
