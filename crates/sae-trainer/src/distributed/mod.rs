//! How the work of a batch is shared out over ranks, and the places in a step where ranks have to speak to each other.

mod codes;
mod file;
mod rows;
mod traffic;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use collectives::{Collective, CollectiveError, NumbersMut, Reduction, share};
use sae_core::SparseCodes;
use sae_core::kernels::ROWS_AT_ONCE;

pub(crate) use self::file::{Placed, SharedFile, together};
pub(crate) use self::rows::{gather_rows, sum_tensor};
pub use self::traffic::{DistributionKind, StepTraffic};
use crate::TrainerConfig;
use crate::backend::{Backend, split};
use crate::config::Selection;
use crate::objective::{Chain, Losses};

/// How one autoencoder is trained by several processes, each of which calls [`Trainer::init`](crate::Trainer::init) and
/// [`Trainer::step`](crate::Trainer::step) with rows of its own. The batch is all ranks' rows, in the order of ranks.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Distribution {
    /// One process does all of it.
    #[default]
    Alone,
    /// Every rank holds the whole autoencoder.
    Data {
        /// The ranks.
        team: Arc<dyn Collective>,
        /// What they tell each other.
        exchange: Exchange,
    },
    /// Every rank holds some of the latents, with their moments and gradients: an autoencoder may be wider than one memory.
    Latents {
        /// The ranks.
        team: Arc<dyn Collective>,
    },
}

/// What data-parallel ranks tell each other in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exchange {
    /// What is fewer bytes.
    #[default]
    Auto,
    /// Rows and codes, the sparse factors of the gradients. Encoding, nearly all of the arithmetic, is shared out; what follows
    /// every rank does for the whole batch, in one order: with [`Engine::Kernels`](crate::Engine) the same bits for any number of ranks.
    Codes,
    /// Sums of gradients, of the latents that have any. All of the arithmetic is shared out; sums of floats depend on their
    /// order, so results for other numbers of ranks differ by rounding. Codes are exchanged all the same with BatchTopK, whose selection
    /// is over the whole batch, and where gradients are accumulated over several calls.
    Gradients,
}

impl Distribution {
    /// The ranks, where there are several.
    pub fn team(&self) -> Option<&dyn Collective> {
        match self {
            Self::Alone => None,
            Self::Data { team, .. } | Self::Latents { team } => Some(&**team),
        }
    }

    /// The latents this rank holds of `num_latents`.
    pub(crate) fn latents(&self, num_latents: usize) -> Range<usize> {
        match self {
            Self::Latents { team } => share(num_latents, team.rank(), team.size()),
            _ => 0..num_latents,
        }
    }

    /// How a batch of `rows` rows in all is worked on.
    pub(crate) fn share(&self, config: &TrainerConfig, rows: usize) -> Share<'_> {
        match self {
            Self::Alone => Share::Alone,
            Self::Latents { team } => {
                Share::Latents { team: &**team, latents: self.latents(config.num_latents) }
            }
            Self::Data { team, exchange } => {
                let gradients = exchange.sums_gradients(config, rows, team.size());
                if gradients { Share::Gradients(&**team) } else { Share::Codes(&**team) }
            }
        }
    }
}

/// Numbers from bytes at any address, as another rank had them.
pub(crate) fn numbers<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

/// What keeps a step from being taken.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A pre-activation that is not finite, on this rank or (NaN) on another.
    PreActivation(f64),
    Collective(CollectiveError),
}

impl From<CollectiveError> for Failure {
    fn from(error: CollectiveError) -> Self {
        Self::Collective(error)
    }
}

/// How one batch is worked on.
#[derive(Clone)]
pub(crate) enum Share<'a> {
    /// All of it here.
    Alone,
    /// Each rank encodes some of the rows, and has the codes of all.
    Codes(&'a dyn Collective),
    /// Each rank works on its own rows only.
    Gradients(&'a dyn Collective),
    /// Each rank works on all rows, with its own latents only.
    Latents { team: &'a dyn Collective, latents: Range<usize> },
}

impl fmt::Debug for Share<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Alone => "Alone",
            Self::Codes(_) => "Codes",
            Self::Gradients(_) => "Gradients",
            Self::Latents { .. } => "Latents",
        })
    }
}

impl Share<'_> {
    /// `Σ w ||y - ȳ||²` of the whole batch.
    pub(crate) fn variance<B: Backend>(
        &self,
        backend: &B,
        y: &B::Rows,
        weights: Option<&B::Rows>,
    ) -> Result<f64, CollectiveError> {
        let (mut sums, total) = backend.column_sums(y, weights);
        sums.push(total);
        if let Self::Gradients(team) = self {
            team.all_reduce(NumbersMut::F64(&mut sums), Reduction::Sum)?;
        }
        let total = sums.pop().unwrap_or_default();
        for sum in &mut sums {
            *sum /= total;
        }
        let mut squares = [backend.squares_around(y, &sums, weights)];
        if let Self::Gradients(team) = self {
            team.all_reduce(NumbersMut::F64(&mut squares), Reduction::Sum)?;
        }
        Ok(squares[0])
    }

    /// Encodes into the disjoint sets of `chain`.
    pub(crate) fn encode<B: Backend>(
        &self,
        backend: &mut B,
        x: &B::Rows,
        chain: &Chain,
    ) -> Result<Vec<B::Codes>, Failure> {
        let n = B::len(x);
        match self {
            Self::Alone | Self::Gradients(_) => backend.encode(x, chain).map_err(Failure::PreActivation),
            Self::Codes(team) => {
                let limit = n * chain.count;
                let codes = encode_share(*team, backend, x, |backend, x| match chain.selection {
                    Selection::TopK => backend.find(x, Selection::TopK, chain.count),
                    // As many as could be among the largest of all ranks.
                    Selection::BatchTopK => {
                        backend.find(x, Selection::BatchTopK, limit.div_ceil(B::len(x).max(1)))
                    }
                })?;
                let codes = match chain.selection {
                    Selection::TopK => codes,
                    Selection::BatchTopK => codes::largest_in_all(*team, &codes, limit)?.0,
                };
                let codes = codes::gather(*team, &codes)?;
                Ok(split::split(&codes, chain).into_iter().map(|set| backend.adopt(set)).collect())
            }
            Self::Latents { team, latents } => {
                let found = backend.find(x, chain.selection, chain.count);
                let codes = agree(*team, found)?;
                let (all, among_k) = match chain.selection {
                    Selection::TopK => {
                        let kept = codes::kept_per_row(*team, &codes, &[chain.count, chain.k])?;
                        (codes::largest(&codes, &kept[0]).0, kept[1].clone())
                    }
                    Selection::BatchTopK => {
                        let all = codes::largest_in_all(*team, &codes, n * chain.count)?.0;
                        let kept = codes::largest_in_all(*team, &all, n * chain.k)?.0;
                        let per_row = kept.rows().map(|row| row.len()).collect();
                        (all, per_row)
                    }
                };
                let (among_k, others) = codes::largest(&all, &among_k);
                let mut sets = codes::groups(&among_k, &chain.prefixes, latents.start);
                sets.extend(chain.multi_topk.then_some(others));
                Ok(sets.into_iter().map(|set| backend.adopt(set)).collect())
            }
        }
    }

    /// Encodes into the `count` largest activations among the dead latents.
    pub(crate) fn encode_dead<B: Backend>(
        &self,
        backend: &mut B,
        x: &B::Rows,
        count: usize,
    ) -> Result<B::Codes, Failure> {
        let codes = match self {
            Self::Alone | Self::Gradients(_) => {
                return backend.encode_dead(x, count).map_err(Failure::PreActivation);
            }
            Self::Codes(team) => {
                let own = encode_share(*team, backend, x, |backend, x| backend.find_dead(x, count))?;
                codes::gather(*team, &own)?
            }
            Self::Latents { team, .. } => {
                let own = backend.dead().min(count);
                let codes = agree(*team, backend.find_dead(x, own))?;
                let kept = codes::kept_per_row(*team, &codes, &[count])?;
                codes::largest(&codes, &kept[0]).0
            }
        };
        Ok(backend.adopt(codes))
    }

    /// Adds `Σ z W_dec` to `to`.
    pub(crate) fn add_decoded<B: Backend>(
        &self,
        backend: &mut B,
        codes: &B::Codes,
        to: &mut B::Rows,
    ) -> Result<(), CollectiveError> {
        let Self::Latents { team, .. } = self else {
            backend.add_decoded(codes, to);
            return Ok(());
        };
        let mut own = backend.zeros(B::len(to));
        backend.add_decoded(codes, &mut own);
        backend.all_reduce(*team, &mut own)?;
        backend.add(to, &own);
        Ok(())
    }

    /// How many latents are dead, of all.
    pub(crate) fn dead<B: Backend>(&self, backend: &B) -> Result<usize, CollectiveError> {
        let mut dead = [backend.dead() as i64];
        if let Self::Latents { team, .. } = self {
            team.all_reduce(NumbersMut::I64(&mut dead), Reduction::Sum)?;
        }
        Ok(dead[0] as usize)
    }

    /// This rank's result, if those of all ranks are good. Where rows and codes are exchanged, they agreed on the way.
    pub(crate) fn agreed(&self, result: Result<(), Failure>) -> Result<(), Failure> {
        match (self, result) {
            (Self::Gradients(team), Ok(())) => agree(*team, Ok(())),
            (Self::Gradients(team), Err(Failure::PreActivation(value))) => agree(*team, Err(value)),
            (_, result) => result,
        }
    }

    /// Turns what this rank found into what the batch has.
    pub(crate) fn total(&self, losses: &mut Losses) -> Result<(), CollectiveError> {
        let (team, everything) = match self {
            Self::Alone | Self::Codes(_) => return Ok(()),
            Self::Gradients(team) => (*team, true),
            Self::Latents { team, .. } => (*team, false),
        };
        let mut sums = vec![losses.codes as f64];
        if everything {
            sums.extend([losses.loss, losses.fvu]);
            // What a rank without rows does not have, with a mark that another has it.
            let optional = [losses.multi_topk_fvu, losses.matryoshka_fvu, losses.auxk];
            sums.extend(
                optional.iter().flat_map(|term| [term.unwrap_or(0.0), f64::from(u8::from(term.is_some()))]),
            );
        }
        team.all_reduce(NumbersMut::F64(&mut sums), Reduction::Sum)?;
        losses.codes = sums[0] as usize;
        if let [_, loss, fvu, ref optional @ ..] = sums[..] {
            (losses.loss, losses.fvu) = (loss, fvu);
            let terms = [&mut losses.multi_topk_fvu, &mut losses.matryoshka_fvu, &mut losses.auxk];
            for (term, sum) in terms.into_iter().zip(optional.chunks_exact(2)) {
                *term = (sum[1] > 0.0).then_some(sum[0]);
            }
        }
        if !everything {
            let mut smallest: Vec<f32> =
                losses.smallest.iter().map(|smallest| smallest.unwrap_or(f32::INFINITY)).collect();
            team.all_reduce(NumbersMut::F32(&mut smallest), Reduction::Min)?;
            losses.smallest =
                smallest.into_iter().map(|smallest| smallest.is_finite().then_some(smallest)).collect();
        }
        Ok(())
    }

    /// Completes the gradients of the batch, takes from those of unit decoder rows the part along the row, and returns the
    /// norm of all.
    pub(crate) fn finish_gradients<B: Backend>(&self, backend: &mut B) -> Result<f64, CollectiveError> {
        if let Self::Gradients(team) = self {
            backend.all_reduce_gradients(*team)?;
        }
        // The part that does not pass through the encoder is the same on all ranks: one of them adds it.
        let adds = match self {
            Self::Latents { team, .. } => team.rank() == 0 || !backend.subtracts_bias(),
            _ => true,
        };
        backend.complete_bias_gradient(adds);
        if let Self::Latents { team, .. } = self
            && backend.subtracts_bias()
        {
            backend.all_reduce_bias_gradient(*team)?;
        }
        let [of_latents, of_all] = backend.gradient_squares();
        let mut of_latents = [of_latents];
        if let Self::Latents { team, .. } = self {
            team.all_reduce(NumbersMut::F64(&mut of_latents), Reduction::Sum)?;
        }
        Ok((of_latents[0] + of_all).sqrt())
    }

    /// Notes, of the latents that fired, those of all ranks.
    pub(crate) fn share_fired<B: Backend>(&self, backend: &mut B) -> Result<(), CollectiveError> {
        if let Self::Gradients(team) = self {
            let mut fired = backend.fired();
            team.all_reduce(NumbersMut::U8(&mut fired), Reduction::Max)?;
            backend.set_fired(&fired);
        }
        Ok(())
    }
}

/// What `encode` makes of this rank's share of the rows of `x`.
fn encode_share<B: Backend>(
    team: &dyn Collective,
    backend: &mut B,
    x: &B::Rows,
    encode: impl FnOnce(&mut B, &B::Rows) -> Result<SparseCodes, f64>,
) -> Result<SparseCodes, Failure> {
    let n = B::len(x);
    let blocks = share(n.div_ceil(ROWS_AT_ONCE), team.rank(), team.size());
    let rows = (blocks.start * ROWS_AT_ONCE).min(n)..(blocks.end * ROWS_AT_ONCE).min(n);
    let found = if rows.is_empty() {
        Ok(SparseCodes::new(backend.latents()))
    } else {
        encode(backend, &B::part(x, rows))
    };
    agree(team, found)
}

/// What this rank found, if none failed.
fn agree<T>(team: &dyn Collective, found: Result<T, f64>) -> Result<T, Failure> {
    let mut failed = [u8::from(found.is_err())];
    let told = team.all_reduce(NumbersMut::U8(&mut failed), Reduction::Max);
    let found = found.map_err(Failure::PreActivation)?;
    told?;
    if failed[0] == 0 { Ok(found) } else { Err(Failure::PreActivation(f64::NAN)) }
}
