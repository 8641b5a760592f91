//! [`Collective`]: what every backend can do.

use std::fmt;

use crate::{CollectiveError, DeviceCollective, Traffic};

/// Calls that all ranks of a job make together.
///
/// All ranks make the same calls in the same order; between threads of one rank the caller keeps that order. A call returns when this
/// rank has its result.
///
/// # Errors
///
/// Of every call: [`CollectiveError::TimedOut`] and [`CollectiveError::Lost`] where a rank does not take part,
/// [`CollectiveError::Mismatch`] where it takes part in another call, [`CollectiveError::Engine`] where the engine fails. After
/// one of them, each later call returns the same error at once.
pub trait Collective: fmt::Debug + Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// The number of ranks.
    fn size(&self) -> usize;

    /// Combines `numbers` element by element over all ranks. Every rank gets the same bits.
    ///
    /// All ranks give the same type, length and reduction. The order of a sum is the engine's; it is the same for the same length and number of
    /// ranks. Sums of integers wrap. [`Reduction::Max`] and [`Reduction::Min`] of floats take the order of [`f32::total_cmp`].
    ///
    /// # Errors
    ///
    /// See the trait's.
    ///
    /// # Panics
    ///
    /// For [`Reduction::Sum`] of [`NumbersMut::U8`], which would overflow.
    fn all_reduce(&self, numbers: NumbersMut<'_>, reduction: Reduction) -> Result<(), CollectiveError>;

    /// Every rank's `own` bytes, one after the other in the order of ranks, into `all`, whose old contents go. Returns each rank's length in
    /// bytes; lengths may differ and be 0.
    ///
    /// # Errors
    ///
    /// See the trait's.
    fn all_gather(&self, own: &[u8], all: &mut Vec<u8>) -> Result<Vec<usize>, CollectiveError>;

    /// As [`Collective::all_gather`], but only `root` receives. The others get an empty `all` and no lengths.
    ///
    /// # Errors
    ///
    /// See the trait's.
    ///
    /// # Panics
    ///
    /// If there is no rank `root`.
    fn gather(&self, root: usize, own: &[u8], all: &mut Vec<u8>) -> Result<Vec<usize>, CollectiveError>;

    /// The `bytes` of `root`, on all ranks. What the others had goes, whatever its length.
    ///
    /// # Errors
    ///
    /// See the trait's.
    ///
    /// # Panics
    ///
    /// If there is no rank `root`.
    fn broadcast(&self, root: usize, bytes: &mut Vec<u8>) -> Result<(), CollectiveError>;

    /// Returns when all ranks are here.
    ///
    /// # Errors
    ///
    /// See the trait's.
    fn barrier(&self) -> Result<(), CollectiveError>;

    /// What went through since the start.
    fn traffic(&self) -> Traffic;

    /// The same on memory of a device, where the engine has it.
    fn on_device(&self) -> Option<&dyn DeviceCollective> {
        None
    }

    /// Ends the whole job with `exit_code` where the engine can tell the others at once (MPI). Elsewhere it returns, and the others
    /// get [`CollectiveError::Lost`] or time out.
    fn abort(&self, exit_code: i32);
}

/// Numbers that are combined in place, `[length]`.
#[derive(Debug)]
pub enum NumbersMut<'a> {
    /// 32-bit floats.
    F32(&'a mut [f32]),
    /// 64-bit floats.
    F64(&'a mut [f64]),
    /// 64-bit integers.
    I64(&'a mut [i64]),
    /// Bytes, which can be compared but not summed.
    U8(&'a mut [u8]),
}

impl NumbersMut<'_> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(numbers) => numbers.len(),
            Self::F64(numbers) => numbers.len(),
            Self::I64(numbers) => numbers.len(),
            Self::U8(numbers) => numbers.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Replaces the elements by `bytes`, which need no alignment.
    ///
    /// # Panics
    ///
    /// If there are more or fewer bytes.
    #[cfg(any(feature = "threads", feature = "nccl"))]
    pub(crate) fn replace(&mut self, bytes: &[u8]) {
        match self {
            Self::F32(numbers) => bytemuck::cast_slice_mut(numbers).copy_from_slice(bytes),
            Self::F64(numbers) => bytemuck::cast_slice_mut(numbers).copy_from_slice(bytes),
            Self::I64(numbers) => bytemuck::cast_slice_mut(numbers).copy_from_slice(bytes),
            Self::U8(numbers) => numbers.copy_from_slice(bytes),
        }
    }

    /// The elements' bytes, in the machine's order.
    #[cfg(any(feature = "threads", feature = "nccl"))]
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(numbers) => bytemuck::cast_slice(numbers),
            Self::F64(numbers) => bytemuck::cast_slice(numbers),
            Self::I64(numbers) => bytemuck::cast_slice(numbers),
            Self::U8(numbers) => numbers,
        }
    }
}

impl<'a> From<&'a mut [f32]> for NumbersMut<'a> {
    fn from(numbers: &'a mut [f32]) -> Self {
        Self::F32(numbers)
    }
}

impl<'a> From<&'a mut [f64]> for NumbersMut<'a> {
    fn from(numbers: &'a mut [f64]) -> Self {
        Self::F64(numbers)
    }
}

impl<'a> From<&'a mut [i64]> for NumbersMut<'a> {
    fn from(numbers: &'a mut [i64]) -> Self {
        Self::I64(numbers)
    }
}

impl<'a> From<&'a mut [u8]> for NumbersMut<'a> {
    fn from(numbers: &'a mut [u8]) -> Self {
        Self::U8(numbers)
    }
}

/// How [`Collective::all_reduce`] combines elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// The largest.
    Max,
    /// The smallest.
    Min,
}
