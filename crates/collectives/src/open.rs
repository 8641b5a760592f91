//! [`open`]: the backend that a program's options name.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::{Collective, CollectiveError, Single};

/// The backends that a program can be told to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One rank.
    Single,
    /// Ranks that an MPI launcher started.
    Mpi,
    /// One GPU per rank.
    Nccl,
}

impl Kind {
    /// All of them, in the order of their names in help texts.
    pub const ALL: [Self; 3] = [Self::Single, Self::Mpi, Self::Nccl];

    /// Its name in options and as a cargo feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Mpi => "mpi",
            Self::Nccl => "nccl",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| format!("no collective backend {name:?}: there are {names}"))
    }
}

/// Where ranks without MPI meet first: rank 0 listens there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// The name or address of rank 0's machine.
    pub address: String,
    /// The port on it.
    pub port: u16,
}

impl Rendezvous {
    /// From torchrun's variables, which `variable` looks up: `MASTER_ADDR`, and the port after `MASTER_PORT`, since torchrun's agent listens
    /// on that one itself. `LMM_SAE_PORT` overrides the port. `None` where `MASTER_ADDR` is not set.
    ///
    /// # Errors
    ///
    /// [`CollectiveError::Unavailable`] for a port that is none, or missing.
    pub fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, CollectiveError> {
        let Some(address) = variable("MASTER_ADDR").filter(|address| !address.is_empty()) else {
            return Ok(None);
        };
        let port = |name: &str| match variable(name) {
            None => Ok(None),
            Some(text) => match text.trim().parse::<u16>() {
                Ok(port) if port > 0 => Ok(Some(port)),
                _ => Err(CollectiveError::Unavailable {
                    engine: "NCCL",
                    reason: format!("{name}={text:?} is no port: set it to a number from 1 to 65534"),
                }),
            },
        };
        let next = port("MASTER_PORT")?.and_then(|port| port.checked_add(1));
        let port = port("LMM_SAE_PORT")?.or(next).ok_or_else(|| CollectiveError::Unavailable {
            engine: "NCCL",
            reason: "MASTER_ADDR is set, but no usable MASTER_PORT: set LMM_SAE_PORT to a free port of rank 0's machine"
                .into(),
        })?;
        Ok(Some(Self { address, port }))
    }
}

impl fmt::Display for Rendezvous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.port)
    }
}

/// What a backend is started with.
#[derive(Debug, Clone)]
pub struct Launch {
    /// This rank, as the launcher says.
    pub rank: usize,
    /// The number of ranks, as the launcher says.
    pub size: usize,
    /// How long a rank waits for the others in one call.
    pub timeout: Duration,
    /// The index of the CUDA device, for NCCL.
    pub device: usize,
    /// Where ranks meet, for NCCL. Without it they meet over MPI.
    pub rendezvous: Option<Rendezvous>,
}

/// Starts the backend `kind`.
///
/// # Errors
///
/// [`CollectiveError::Unavailable`] if it was not compiled in, or if it sees other ranks than the launcher; else the backend's.
pub fn open(kind: Kind, launch: &Launch) -> Result<Box<dyn Collective>, CollectiveError> {
    match kind {
        Kind::Single => {
            same_ranks("single", 0, 1, launch, "choose mpi or nccl")?;
            Ok(Box::new(Single::new()))
        }
        Kind::Mpi => open_mpi(launch),
        Kind::Nccl => open_nccl(launch),
    }
}

#[cfg(feature = "mpi")]
fn open_mpi(launch: &Launch) -> Result<Box<dyn Collective>, CollectiveError> {
    let ranks = crate::Mpi::start(launch.timeout)?;
    let advice = "start the ranks with mpirun, or with srun --mpi=pmix";
    match same_ranks("MPI", ranks.rank(), ranks.size(), launch, advice) {
        Ok(()) => Ok(Box::new(ranks)),
        Err(error) => Err(without_end(ranks, error)),
    }
}

/// `error`, after which MPI is left as it is: its end would wait for the other ranks, and they wait for this one. A process that exits
/// so is ended with all others by the launcher.
#[cfg(any(feature = "mpi", feature = "nccl"))]
fn without_end<T>(mpi: T, error: CollectiveError) -> CollectiveError {
    std::mem::forget(mpi);
    error
}

#[cfg(not(feature = "mpi"))]
fn open_mpi(_launch: &Launch) -> Result<Box<dyn Collective>, CollectiveError> {
    Err(not_built("MPI", Kind::Mpi))
}

#[cfg(feature = "nccl")]
fn open_nccl(launch: &Launch) -> Result<Box<dyn Collective>, CollectiveError> {
    use crate::{Nccl, UniqueId};
    let Launch { rank, size, timeout, device, .. } = *launch;
    if let Some(place) = &launch.rendezvous {
        let id = UniqueId::rendezvous(place, rank, size, timeout)?;
        return Ok(Box::new(Nccl::start(device, rank, size, id, timeout)?));
    }
    if size == 1 {
        let id = UniqueId::over(&Single::new())?;
        return Ok(Box::new(Nccl::start(device, rank, size, id, timeout)?));
    }
    if cfg!(not(feature = "mpi")) {
        let reason = "the ranks have nowhere to meet: set MASTER_ADDR and LMM_SAE_PORT, as torchrun does, or build with --features mpi,nccl";
        return Err(CollectiveError::Unavailable { engine: "NCCL", reason: reason.into() });
    }
    let mpi = open_mpi(launch)?;
    match UniqueId::over(&*mpi).and_then(|id| Nccl::start(device, rank, size, id, timeout)) {
        Ok(nccl) => Ok(Box::new(nccl.beside(mpi))),
        Err(error) => Err(without_end(mpi, error)),
    }
}

#[cfg(not(feature = "nccl"))]
fn open_nccl(_launch: &Launch) -> Result<Box<dyn Collective>, CollectiveError> {
    Err(not_built("NCCL", Kind::Nccl))
}

#[cfg(any(not(feature = "mpi"), not(feature = "nccl")))]
fn not_built(engine: &'static str, kind: Kind) -> CollectiveError {
    let reason = format!(
        "this program was built without it; build it with it: cargo build -p sae-train --features {kind}"
    );
    CollectiveError::Unavailable { engine, reason }
}

fn same_ranks(
    engine: &'static str,
    rank: usize,
    size: usize,
    launch: &Launch,
    advice: &str,
) -> Result<(), CollectiveError> {
    if (rank, size) == (launch.rank, launch.size) {
        return Ok(());
    }
    let reason = format!(
        "to it this process is rank {rank} of {size}, to the launcher rank {} of {}: {advice}",
        launch.rank, launch.size
    );
    Err(CollectiveError::Unavailable { engine, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(rank: usize, size: usize) -> Launch {
        Launch { rank, size, timeout: Duration::from_secs(1), device: 0, rendezvous: None }
    }

    #[test]
    fn kinds_have_names() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        let error = "gloo".parse::<Kind>().unwrap_err();
        assert_eq!(error, "no collective backend \"gloo\": there are single, mpi, nccl");
    }

    #[test]
    fn single_refuses_other_ranks() {
        assert_eq!(open(Kind::Single, &launch(0, 1)).unwrap().size(), 1);
        let error = open(Kind::Single, &launch(1, 4)).unwrap_err().to_string();
        assert!(error.contains("to the launcher rank 1 of 4: choose mpi or nccl"), "{error}");
    }

    #[cfg(not(feature = "mpi"))]
    #[test]
    fn what_was_not_compiled_in_names_its_feature() {
        let error = open(Kind::Mpi, &launch(0, 2)).unwrap_err().to_string();
        assert!(error.ends_with("cargo build -p sae-train --features mpi"), "{error}");
    }

    #[test]
    fn the_meeting_place_is_the_port_after_torchruns() {
        let place = |variables: &[(&str, &str)]| {
            let lookup = |name: &str| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            };
            Rendezvous::from_variables(lookup)
                .map(|place| place.map(|place| place.to_string()))
                .map_err(|error| error.to_string())
        };
        assert_eq!(place(&[("MASTER_PORT", "29500")]), Ok(None));
        let torchrun = [("MASTER_ADDR", "node0"), ("MASTER_PORT", "29500")];
        assert_eq!(place(&torchrun), Ok(Some("node0:29501".into())));
        let own = [&torchrun[..], &[("LMM_SAE_PORT", "4000")]].concat();
        assert_eq!(place(&own), Ok(Some("node0:4000".into())));
        assert!(place(&torchrun[..1]).unwrap_err().contains("LMM_SAE_PORT"));
        let last = [torchrun[0], ("MASTER_PORT", "65535")];
        assert!(place(&last).unwrap_err().contains("LMM_SAE_PORT"));
        let wrong = [torchrun[0], ("MASTER_PORT", "http")];
        assert!(place(&wrong).unwrap_err().contains("MASTER_PORT=\"http\" is no port"));
        let none = [&torchrun[..], &[("LMM_SAE_PORT", "0")]].concat();
        assert!(place(&none).unwrap_err().contains("LMM_SAE_PORT=\"0\" is no port"));
    }
}
