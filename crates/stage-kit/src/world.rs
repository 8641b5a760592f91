//! Which worker of how many: flags first, then the variables launchers set.

use crate::UsageError;

/// This worker's place: `rank` below `size`, 0 of 1 when nothing said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// This worker.
    pub rank: usize,
    /// How many workers there are.
    pub size: usize,
}

/// `--rank` and `--world-size`.
///
/// Without them the first launcher wins whose variables name both: torchrun (`RANK`, `WORLD_SIZE`),
/// Open MPI (`OMPI_COMM_WORLD_RANK`, `OMPI_COMM_WORLD_SIZE`), SLURM (`SLURM_PROCID`, `SLURM_NTASKS`),
/// other MPIs (`PMI_RANK`, `PMI_SIZE`), a Kubernetes indexed job (`JOB_COMPLETION_INDEX` with
/// `--world-size` or `WORLD_SIZE`, since Kubernetes does not tell a pod how many there are).
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct WorldArgs {
    /// This worker's number, from 0. Default: what torchrun, SLURM, MPI or Kubernetes says, else 0.
    #[arg(long, global = true)]
    pub rank: Option<usize>,
    /// How many workers share the work. Default: what torchrun, SLURM or MPI says, else 1.
    #[arg(long, global = true)]
    pub world_size: Option<usize>,
}

/// Rank, size where known, and the variable the rank comes from.
type Launched = (usize, Option<usize>, &'static str);

impl WorldArgs {
    /// The worker's place, `variable` looking up environment variables.
    ///
    /// # Errors
    /// A rank not below the size, a size of 0, a variable that is no number, or one half of a pair alone.
    pub fn resolve(&self, variable: impl Fn(&str) -> Option<String>) -> Result<World, UsageError> {
        let number = |name: &str| -> Result<Option<usize>, UsageError> {
            let Some(text) = variable(name).filter(|text| !text.trim().is_empty()) else { return Ok(None) };
            let parsed = text.trim().parse();
            parsed.map(Some).map_err(|_| {
                UsageError::new(format!("{name}={text:?} is not a whole number: unset or mend it"))
            })
        };
        let (rank, size, source) = match (self.rank, self.world_size) {
            (Some(rank), Some(size)) => (rank, size, "--rank and --world-size"),
            (Some(_), None) => return Err(UsageError::new("--rank needs --world-size beside it")),
            (None, Some(size)) => match Self::launched(&variable, &number)? {
                Some((rank, _, source)) => (rank, size, source),
                None if size == 1 => (0, 1, "--world-size"),
                None => return Err(UsageError::new("--world-size needs --rank beside it")),
            },
            (None, None) => match Self::launched(&variable, &number)? {
                Some((rank, Some(size), source)) => (rank, size, source),
                Some((_, None, source)) => {
                    let message =
                        format!("{source} is set, but not how many workers there are: pass --world-size");
                    return Err(UsageError::new(message));
                }
                None => (0, 1, "default"),
            },
        };
        if rank >= size {
            let message =
                format!("rank {rank} of {size} workers (from {source}): ranks run from 0 to size - 1");
            return Err(UsageError::new(message));
        }
        if size > 1 {
            tracing::info!("worker {rank} of {size}, from {source}");
        }
        Ok(World { rank, size })
    }

    /// What a launcher says.
    fn launched(
        variable: &impl Fn(&str) -> Option<String>,
        number: &impl Fn(&str) -> Result<Option<usize>, UsageError>,
    ) -> Result<Option<Launched>, UsageError> {
        let world_size = number("WORLD_SIZE")?;
        if let Some(rank) = number("RANK")? {
            return Ok(Some((rank, world_size, "RANK")));
        }
        let pair = |rank_name: &'static str, size_name: &str| match (number(rank_name)?, number(size_name)?) {
            (Some(rank), size) => Ok(Some((rank, size, rank_name))),
            (None, Some(_)) => {
                Err(UsageError::new(format!("{size_name} is set without {rank_name}: pass --rank")))
            }
            (None, None) => Ok(None),
        };
        // Before SLURM's: mpirun starts its helpers by srun, whose variables the ranks see on all machines but the first.
        if let Some(launched) = pair("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")? {
            return Ok(Some(launched));
        }
        // A batch script sees both variables of its allocation without being one of its tasks; only what
        // srun started has a step.
        let batch_script = variable("SLURM_JOB_ID").is_some() && variable("SLURM_STEP_ID").is_none();
        if !batch_script && let (Some(rank), Some(size)) = (number("SLURM_PROCID")?, number("SLURM_NTASKS")?)
        {
            return Ok(Some((rank, Some(size), "SLURM_PROCID")));
        }
        if let Some(launched) = pair("PMI_RANK", "PMI_SIZE")? {
            return Ok(Some(launched));
        }
        if let Some(rank) = number("JOB_COMPLETION_INDEX")? {
            return Ok(Some((rank, world_size, "JOB_COMPLETION_INDEX")));
        }
        match world_size {
            Some(size) if size > 1 => Err(UsageError::new("WORLD_SIZE is set without RANK: pass --rank")),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(
        rank: Option<usize>,
        world_size: Option<usize>,
        variables: &[(&str, &str)],
    ) -> Result<(usize, usize), String> {
        let lookup =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let world = WorldArgs { rank, world_size }.resolve(lookup);
        world.map(|world| (world.rank, world.size)).map_err(|error| error.to_string())
    }

    #[test]
    fn launchers() {
        assert_eq!(resolve(None, None, &[]), Ok((0, 1)));
        assert_eq!(resolve(Some(2), Some(4), &[("RANK", "0"), ("WORLD_SIZE", "8")]), Ok((2, 4)));
        for (rank, size) in [
            ("RANK", "WORLD_SIZE"),
            ("SLURM_PROCID", "SLURM_NTASKS"),
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
            ("PMI_RANK", "PMI_SIZE"),
            ("JOB_COMPLETION_INDEX", "WORLD_SIZE"),
        ] {
            assert_eq!(resolve(None, None, &[(rank, "3"), (size, "5")]), Ok((3, 5)), "{rank}");
        }
        assert_eq!(resolve(None, Some(12), &[("JOB_COMPLETION_INDEX", "11")]), Ok((11, 12)));
        let both = [("RANK", "1"), ("WORLD_SIZE", "2"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")];
        assert_eq!(resolve(None, None, &both), Ok((1, 2)));
        let srun =
            [("SLURM_STEP_ID", "0"), ("SLURM_JOB_ID", "7"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")];
        let mpirun = [&srun[..], &[("OMPI_COMM_WORLD_RANK", "3"), ("OMPI_COMM_WORLD_SIZE", "4")]].concat();
        assert_eq!(resolve(None, None, &mpirun), Ok((3, 4)));
    }

    #[test]
    fn slurm_batch_script_is_alone() {
        let batch = [("SLURM_JOB_ID", "7"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")];
        assert_eq!(resolve(None, None, &batch), Ok((0, 1)));
        let step = [&batch[..], &[("SLURM_STEP_ID", "0")]].concat();
        assert_eq!(resolve(None, None, &step), Ok((0, 4)));
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for (rank, size, variables, says) in [
            (Some(1), None, &[][..], "--world-size"),
            (None, Some(2), &[], "--rank"),
            (Some(2), Some(2), &[], "rank 2 of 2"),
            (Some(0), Some(0), &[], "rank 0 of 0"),
            (None, None, &[("RANK", "1")], "--world-size"),
            (None, None, &[("WORLD_SIZE", "2")], "--rank"),
            (None, None, &[("PMI_SIZE", "2")], "--rank"),
            (None, None, &[("JOB_COMPLETION_INDEX", "0")], "--world-size"),
            (None, None, &[("RANK", "first"), ("WORLD_SIZE", "2")], "RANK=\"first\""),
            (None, None, &[("RANK", "4"), ("WORLD_SIZE", "2")], "rank 4 of 2"),
        ] {
            let error = resolve(rank, size, variables).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
