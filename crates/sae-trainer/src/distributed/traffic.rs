//! [`StepTraffic`]: what ranks tell each other in a step, before one is taken.

use super::{Exchange, codes};
use crate::TrainerConfig;
use crate::config::Selection;
use crate::objective::Chain;

/// A [`Distribution`](crate::Distribution) without its ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DistributionKind {
    /// Every rank holds the whole autoencoder.
    Data(Exchange),
    /// Every rank holds some of the latents.
    Latents,
}

/// Bytes that a rank receives in one optimizer step, on average over the ranks, as [`collectives::Traffic`] counts them: of an
/// all-gather what the others gave, of an all-reduce its length once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepTraffic {
    /// Rows of the batch that other ranks have, and a transcoder's targets: all-gathered.
    pub activations: usize,
    /// Codes that other ranks found: all-gathered.
    pub codes: usize,
    /// Activations that ranks tell to find out whose are the largest: all-gathered. A second, shorter round, for rows whose largest are nearly
    /// all on one rank, depends on the data and comes on top.
    pub selection: usize,
    /// Gradients: all-reduced. Those of all latents, which libtorch sends; `sae-core`'s kernels send those of latents that have any.
    pub gradients: usize,
    /// Reconstructions: all-reduced.
    pub reconstructions: usize,
    /// A byte per latent that says whether it fired, and one whether it has gradients, which libtorch does not need: all-reduced.
    pub marks: usize,
    /// Lengths, norms, losses, histograms, signs of failure.
    pub rest: usize,
}

impl StepTraffic {
    /// All of it, in bytes.
    pub fn received(&self) -> usize {
        self.gathered() + self.reduced()
    }

    /// Bytes that reach a rank where `ranks` of them are a ring, as NCCL and MPI arrange long messages: an all-reduce brings each rank
    /// `2 (ranks - 1) / ranks` of its length (Patarasuk and Yuan 2009, Bandwidth optimal all-reduce algorithms for clusters of workstations).
    pub fn on_a_ring(&self, ranks: usize) -> usize {
        self.gathered() + 2 * self.reduced() * ranks.saturating_sub(1) / ranks.max(1)
    }

    fn gathered(&self) -> usize {
        self.activations + self.codes + self.selection + self.rest
    }

    fn reduced(&self) -> usize {
        self.gradients + self.reconstructions + self.marks
    }
}

impl Exchange {
    /// Whether ranks sum gradients in a step of `rows` rows in all, or else exchange codes.
    pub(crate) fn sums_gradients(self, config: &TrainerConfig, rows: usize, ranks: usize) -> bool {
        let whole_batch = config.activation == Selection::BatchTopK || config.grad_acc_steps > 1;
        !whole_batch
            && match self {
                Self::Codes => false,
                Self::Gradients => true,
                Self::Auto => {
                    let codes = of_codes(config, rows, ranks, 0);
                    of_gradients(config, ranks).on_a_ring(ranks) < codes.on_a_ring(ranks)
                }
            }
    }
}

impl TrainerConfig {
    /// What each of `ranks` ranks receives in an optimizer step whose every call has `rows` rows in all, the same number on every rank;
    /// `dead` latents are dead, which only AuxK asks.
    ///
    /// Exact where every row has as many codes as it may, but for what [`StepTraffic`] says. Weights of rows come on top, 4 bytes each.
    pub fn traffic(&self, kind: DistributionKind, rows: usize, ranks: usize, dead: usize) -> StepTraffic {
        if ranks < 2 {
            return StepTraffic::default();
        }
        match kind {
            DistributionKind::Latents => of_latents(self, rows, ranks, dead),
            DistributionKind::Data(exchange) if exchange.sums_gradients(self, rows, ranks) => {
                of_gradients(self, ranks)
            }
            DistributionKind::Data(_) => of_codes(self, rows, ranks, dead),
        }
    }

    /// Calls of an optimizer step, and parts of each.
    fn calls_and_parts(&self, rows: usize) -> (usize, usize) {
        let part = rows.div_ceil(self.micro_acc_steps as usize).max(1);
        (self.grad_acc_steps as usize, rows.div_ceil(part))
    }

    /// Bytes of activations that one row brings.
    fn row_bytes(&self) -> usize {
        4 * self.d_in * (1 + usize::from(self.transcode))
    }

    /// Codes that AuxK finds in a row.
    fn dead_codes(&self, dead: usize) -> usize {
        if self.auxk_alpha > 0.0 { (self.d_in / 2).max(1).min(dead) } else { 0 }
    }
}

/// Of `bytes` that all ranks have together, what one has not.
fn of_others(bytes: usize, ranks: usize) -> usize {
    bytes * (ranks - 1) / ranks
}

/// The numbers with which every call begins: rows, and whether they have weights.
fn headers(ranks: usize) -> usize {
    16 * (ranks - 1)
}

/// What one selection over all rows and ranks tells: histograms, and how many values are equal to the smallest kept.
fn histograms(ranks: usize) -> usize {
    codes::HISTOGRAM_BYTES + 8 * (ranks - 1)
}

fn of_codes(config: &TrainerConfig, rows: usize, ranks: usize, dead: usize) -> StepTraffic {
    let (calls, parts) = config.calls_and_parts(rows);
    let aux = config.dead_codes(dead);
    // A length for the rows and one for each, a latent and an activation for each code.
    let sets = |codes: usize| of_others(rows * (4 + 8 * codes), ranks) + parts * 8 * (ranks - 1);
    let mut codes = sets(Chain::new(config).count);
    let mut rest = 1;
    if config.activation == Selection::BatchTopK {
        rest += histograms(ranks);
    }
    if aux > 0 {
        codes += sets(aux);
        rest += 1;
    }
    StepTraffic {
        activations: calls * of_others(rows * config.row_bytes(), ranks),
        codes: calls * codes,
        rest: calls * (headers(ranks) + parts * rest),
        ..StepTraffic::default()
    }
}

fn of_gradients(config: &TrainerConfig, ranks: usize) -> StepTraffic {
    let (latents, d_in) = (config.num_latents, config.d_in);
    let skip = if config.skip_connection { d_in * d_in } else { 0 };
    StepTraffic {
        gradients: 4 * (latents * (2 * d_in + 1) + d_in + skip),
        marks: 2 * latents,
        // The mean, the variance, whether all succeeded, nine losses and counts.
        rest: headers(ranks) + 8 * (d_in + 1) + 8 + 1 + 8 * 9,
        ..StepTraffic::default()
    }
}

fn of_latents(config: &TrainerConfig, rows: usize, ranks: usize, dead: usize) -> StepTraffic {
    let (calls, parts) = config.calls_and_parts(rows);
    let chain = Chain::new(config);
    let aux = config.dead_codes(dead);
    let told = |count: usize| rows * 4 * codes::told(count, ranks) * (ranks - 1);
    // The dead before and after, codes and the smallest of them; whether all succeeded.
    let mut rest = headers(ranks) + 16 + 8 + parts * (4 + 1);
    let mut selection = 0;
    match config.activation {
        Selection::TopK => selection += told(chain.count),
        // Of all that are kept, and of the k.
        Selection::BatchTopK => rest += parts * 2 * histograms(ranks),
    }
    let mut decoded = chain.prefixes.len() + usize::from(chain.multi_topk);
    if aux > 0 {
        selection += told(aux);
        decoded += 1;
        rest += parts;
    }
    StepTraffic {
        activations: calls * of_others(rows * config.row_bytes(), ranks),
        selection: calls * selection,
        // The decoder's bias, through the encoders of all ranks.
        gradients: if config.transcode { 0 } else { 4 * config.d_in },
        reconstructions: calls * decoded * rows * 4 * config.d_in,
        // And the norm of the gradients.
        rest: calls * rest + 8,
        ..StepTraffic::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_exchange_is_chosen() {
        let mut config = TrainerConfig::new(4096, 131_072, 256, 100);
        let data = DistributionKind::Data;
        // 16,384 tokens: 264 MB of rows and codes against 7.5 GB of gradients.
        let codes = config.traffic(data(Exchange::Auto), 16_384, 8, 0);
        assert_eq!(codes, config.traffic(data(Exchange::Codes), 16_384, 8, 0));
        assert_eq!(codes.activations, 7 * 2048 * 4 * 4096);
        assert_eq!(codes.codes, 7 * (2048 * (4 + 8 * 256) + 8));
        let gradients = config.traffic(data(Exchange::Gradients), 16_384, 8, 0);
        assert_eq!(gradients.gradients, 4 * 1_073_876_992);
        assert!(codes.on_a_ring(8) * 28 < gradients.on_a_ring(8));
        // Half a million tokens are more than the gradients.
        let many = config.traffic(data(Exchange::Auto), 500_000, 8, 0);
        assert_eq!(many, config.traffic(data(Exchange::Gradients), 500_000, 8, 0));
        // Gradients are not summed where a step needs the codes of all its rows.
        config.grad_acc_steps = 4;
        let accumulated = config.traffic(data(Exchange::Gradients), 16_384, 8, 0);
        assert_eq!((accumulated.gradients, accumulated.codes), (0, 4 * codes.codes));
    }

    #[test]
    fn one_rank_receives_nothing() {
        let config = TrainerConfig::new(64, 512, 8, 100);
        for kind in [DistributionKind::Data(Exchange::Gradients), DistributionKind::Latents] {
            assert_eq!(config.traffic(kind, 1000, 1, 0).received(), 0);
        }
    }
}
