//! All-reduce, all-gather, gather, broadcast and barrier behind one trait, [`Collective`].
//!
//! | backend | cargo feature | what it needs | what carries the bytes |
//! |---|---|---|---|
//! | [`Single`] | none | nothing | nothing: one rank, every call is the identity |
//! | `Mpi` | `mpi` | an MPI 3 library with `mpicc`, and libclang, when it is built; `mpirun` or `srun` to start it | shared memory, TCP, InfiniBand |
//! | `Nccl` | `nccl` | NVIDIA's driver and `libnccl.so`, both loaded when it starts | NVLink, PCIe, InfiniBand, TCP |
//! | `Threads` | `threads` | nothing | memory of one process, for tests |
//!
//! ```
//! use collectives::{Collective, NumbersMut, Reduction, Single};
//!
//! let ranks = Single::new();
//! let mut gradient = [0.5_f32, -1.0];
//! ranks.all_reduce(NumbersMut::F32(&mut gradient), Reduction::Sum)?;
//! assert_eq!(gradient, [0.5, -1.0]);
//!
//! let mut all = Vec::new();
//! assert_eq!(ranks.all_gather(b"codes", &mut all)?, [5]);
//! # Ok::<(), collectives::CollectiveError>(())
//! ```
//!
//! # What holds for every backend
//!
//! All ranks call the same functions in the same order. Where one does not, the others get [`CollectiveError::Mismatch`]; where
//! one is dead, cut off or stuck, they get [`CollectiveError::TimedOut`] or [`CollectiveError::Lost`] within the time-out and a few
//! seconds; no call hangs. MPI's own start and end wait as long as the launcher lets them. Both errors name the ranks. The time-out is to be longer than one rank may work while the others wait for it, as
//! for a checkpoint that rank 0 writes. After an error the collective is of no more use: each later call gives the same
//! error at once. The crate starts no process and decides no schedule.
//!
//! [`open`] starts the backend that a program's options name, or says which cargo feature it lacks.

#[cfg_attr(
    not(any(feature = "mpi", feature = "nccl")),
    allow(dead_code, reason = "only calls that cross a wire are written as words")
)]
mod call;
mod collective;
mod device;
mod error;
#[cfg(feature = "nccl")]
mod meeting;
mod meter;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod open;
#[cfg(feature = "threads")]
mod reduce;
#[cfg(feature = "nccl")]
mod rendezvous;
mod share;
mod single;
#[cfg(any(feature = "mpi", feature = "nccl"))]
mod swap_order;
#[cfg(feature = "threads")]
mod threads;

pub use collective::{Collective, NumbersMut, Reduction};
pub use device::DeviceCollective;
pub use error::CollectiveError;
pub use meter::Traffic;
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
#[cfg(feature = "nccl")]
pub use nccl::{Nccl, UniqueId};
pub use open::{Kind, Launch, Rendezvous, open};
pub use share::share;
pub use single::Single;
#[cfg(feature = "threads")]
pub use threads::Threads;
