//! [`Team`]: the processes of a run, what each of them has, and what they tell each other beside the trainers' own exchange.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use collectives::{Collective, Kind, Launch, NumbersMut, Reduction, Rendezvous};
use sae_trainer::{Distribution, TrainerConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use stage_kit::World;
use tch::Device;

use crate::args::{CollectiveName, Distribute, TeamArgs};
use crate::order::Share;
use crate::plan::Planned;

/// The processes of a run, one of which this is.
#[derive(Clone, Debug)]
pub(crate) struct Team {
    ranks: Arc<dyn Collective>,
    distribute: Distribute,
    exchange: sae_trainer::Exchange,
}

impl Team {
    /// Finds the other processes.
    pub(crate) fn open(args: &TeamArgs, world: World, device: Option<Device>) -> Result<Self> {
        let kind = if world.size == 1 { Kind::Single } else { kind(args.collective, device) };
        let launch = Launch {
            rank: world.rank,
            size: world.size,
            timeout: Duration::from_secs(args.collective_timeout),
            device: if let Some(Device::Cuda(index)) = device { index } else { 0 },
            // Others than NCCL must not stumble over a MASTER_ADDR that is there for another program.
            rendezvous: match kind {
                Kind::Nccl => Rendezvous::from_variables(|name| std::env::var(name).ok())?,
                _ => None,
            },
        };
        let ranks = Arc::from(collectives::open(kind, &launch)?);
        Ok(Self { ranks, distribute: args.distribute, exchange: args.exchange.into() })
    }

    /// Whether this process writes what is written once.
    pub(crate) fn leads(&self) -> bool {
        self.ranks.rank() == 0
    }

    pub(crate) fn size(&self) -> usize {
        self.ranks.size()
    }

    /// The other processes, where there are any.
    pub(crate) fn ranks(&self) -> Option<&dyn Collective> {
        (self.size() > 1).then_some(&*self.ranks)
    }

    /// Those that have parts of one batch, where autoencoders are not on one process each.
    pub(crate) fn sharing_a_batch(&self) -> Option<&dyn Collective> {
        self.ranks().filter(|_| self.distribute != Distribute::Modules)
    }

    /// Which share of each batch is this process's.
    pub(crate) fn share(&self, batch: usize) -> Share {
        Share { rank: self.ranks.rank(), size: self.size(), batch }
    }

    /// How each autoencoder is trained.
    pub(crate) fn distribution(&self) -> Distribution {
        let team = Arc::clone(&self.ranks);
        match self.distribute {
            _ if self.size() == 1 => Distribution::Alone,
            Distribute::Modules => Distribution::Alone,
            Distribute::Data => Distribution::Data { team, exchange: self.exchange },
            Distribute::Latents => Distribution::Latents { team },
        }
    }

    /// How many of the processes run on this machine.
    pub(crate) fn on_this_machine(&self) -> Result<usize> {
        let own = stage_kit::host_name();
        Ok(self.collect(own.clone())?.into_iter().filter(|name| *name == own).count())
    }

    /// The process that has each autoencoder to itself, the large ones given out first; none where all have a part in each.
    pub(crate) fn owners(&self, planned: &[Planned]) -> Vec<Option<usize>> {
        if self.size() == 1 || self.distribute != Distribute::Modules {
            return vec![None; planned.len()];
        }
        owners(
            &planned
                .iter()
                .map(|planned| planned.config.num_latents * planned.config.d_in)
                .collect::<Vec<_>>(),
            self.size(),
        )
    }

    /// The settings of what this process holds: the autoencoders it owns, or each with the latents it has.
    pub(crate) fn own_parts(&self, planned: &[Planned]) -> Vec<TrainerConfig> {
        let owned = planned.iter().zip(self.owners(planned)).filter(|(_, owner)| self.works_on(*owner));
        owned
            .map(|(planned, _)| {
                let mut config = planned.config.clone();
                if self.distribute == Distribute::Latents {
                    config.num_latents = config.num_latents.div_ceil(self.size());
                }
                config
            })
            .collect()
    }

    /// Whether this process is `owner`, or has a part in what nobody owns.
    pub(crate) fn works_on(&self, owner: Option<usize>) -> bool {
        owner.is_none_or(|owner| owner == self.ranks.rank())
    }

    /// Whether this process writes the files of an autoencoder: its owner does, the leader where all have the same, all where each has
    /// its own latents.
    pub(crate) fn saves(&self, owner: Option<usize>) -> bool {
        match owner {
            Some(owner) => owner == self.ranks.rank(),
            None => self.leads() || self.distribute == Distribute::Latents,
        }
    }

    /// What all have, in the order of ranks.
    pub(crate) fn collect<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<Vec<T>> {
        if self.size() == 1 {
            return Ok(vec![own]);
        }
        let bytes = serde_json::to_vec(&own).context("writing what other processes are told, as JSON")?;
        let mut all = Vec::new();
        let lengths = self.ranks.all_gather(&bytes, &mut all)?;
        let mut rest = all.as_slice();
        let read = |length| {
            let (one, others) = rest.split_at(length);
            rest = others;
            serde_json::from_slice(one)
                .context("another process tells something else: are all of one version?")
        };
        lengths.into_iter().map(read).collect()
    }

    /// What the leader has; the others' values go.
    #[expect(clippy::wrong_self_convention, reason = "it is not a conversion")]
    pub(crate) fn from_leader<T: Serialize + DeserializeOwned>(&self, own: &T) -> Result<T> {
        let mut bytes = serde_json::to_vec(own).context("writing what other processes are told, as JSON")?;
        self.ranks.broadcast(0, &mut bytes)?;
        serde_json::from_slice(&bytes)
            .context("another process tells something else: are all of one version?")
    }

    /// The sum of each of `numbers` over all processes.
    pub(crate) fn sum(&self, numbers: &mut [i64]) -> Result<()> {
        Ok(self.ranks.all_reduce(NumbersMut::I64(numbers), Reduction::Sum)?)
    }

    /// Waits until all are here.
    pub(crate) fn barrier(&self) -> Result<()> {
        Ok(self.ranks.barrier()?)
    }

    /// `result`, if that of every process is good.
    pub(crate) fn together<T>(&self, result: Result<T>) -> Result<T> {
        if self.size() == 1 {
            return result;
        }
        let mut failed = vec![0; self.size()];
        failed[self.ranks.rank()] = i64::from(result.is_err());
        let told = self.sum(&mut failed);
        let result = result?;
        told?;
        if let Some(rank) = failed.iter().position(|&failed| failed > 0) {
            anyhow::bail!("rank {rank} failed: see its message");
        }
        Ok(result)
    }

    /// Ends the other processes, where this one cannot go on.
    pub(crate) fn abort(&self) {
        if self.size() > 1 {
            self.ranks.abort(1);
        }
    }
}

/// Which of `size` processes gets each of these costs: the largest first, each to the one with the least so far.
fn owners(costs: &[usize], size: usize) -> Vec<Option<usize>> {
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(costs[index]));
    let mut loads = vec![0; size];
    let mut owners = vec![None; costs.len()];
    for index in order {
        let least = (0..size).min_by_key(|&rank| loads[rank]).unwrap_or(0);
        loads[least] += costs[index];
        owners[index] = Some(least);
    }
    owners
}

/// The engine that the flags and the device ask for.
fn kind(name: CollectiveName, device: Option<Device>) -> Kind {
    match (name, device) {
        (CollectiveName::Nccl, _) | (CollectiveName::Auto, Some(Device::Cuda(_))) => Kind::Nccl,
        (CollectiveName::Mpi | CollectiveName::Auto, _) => Kind::Mpi,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_autoencoders_are_given_out_first_and_loads_are_even() {
        assert_eq!(owners(&[1, 1, 1, 1], 2), [Some(0), Some(1), Some(0), Some(1)]);
        assert_eq!(owners(&[1, 4, 1, 2], 2), [Some(1), Some(0), Some(1), Some(1)]);
        assert_eq!(owners(&[5], 3), [Some(0)]);
    }
}
