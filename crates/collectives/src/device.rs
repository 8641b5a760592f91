//! [`DeviceCollective`]: collectives in place on a device's memory.
#![expect(unsafe_code, reason = "callers vouch for pointers to a device's memory, which nothing can check")]

use std::fmt;

use crate::{CollectiveError, Reduction};

/// Collectives in place on a CUDA device's memory.
///
/// Work is queued on the legacy default stream, which is libtorch's; a call returns once the engine has taken the work, and what is
/// queued on that stream afterwards sees the result. A rank that is missing shows in the next call on the host, or in
/// [`DeviceCollective::synchronize`].
pub trait DeviceCollective: fmt::Debug {
    /// The index of the CUDA device.
    fn device(&self) -> usize;

    /// [`Collective::all_reduce`](crate::Collective::all_reduce) of `count` f32 in place. What NaN gives under Max and Min is the engine's affair.
    ///
    /// # Errors
    ///
    /// As of [`Collective`](crate::Collective).
    ///
    /// # Safety
    ///
    /// `numbers` points to `count` f32 in the device's memory that live, and that nothing outside the default stream touches, until that
    /// stream has come past this call.
    unsafe fn all_reduce_f32(
        &self,
        numbers: *mut f32,
        count: usize,
        reduction: Reduction,
    ) -> Result<(), CollectiveError>;

    /// `bytes_each` bytes of every rank, in the order of ranks, into `all`.
    ///
    /// # Errors
    ///
    /// As of [`Collective`](crate::Collective).
    ///
    /// # Safety
    ///
    /// `own` points to `bytes_each` bytes and `all` to `bytes_each` times the number of ranks, both under the terms of
    /// [`DeviceCollective::all_reduce_f32`]. They do not overlap, unless `own` is this rank's place in `all`.
    unsafe fn all_gather_bytes(
        &self,
        own: *const u8,
        all: *mut u8,
        bytes_each: usize,
    ) -> Result<(), CollectiveError>;

    /// `count` bytes of `root`, on all ranks.
    ///
    /// # Errors
    ///
    /// As of [`Collective`](crate::Collective).
    ///
    /// # Safety
    ///
    /// `bytes` points to `count` bytes, under the terms of [`DeviceCollective::all_reduce_f32`].
    unsafe fn broadcast_bytes(
        &self,
        root: usize,
        bytes: *mut u8,
        count: usize,
    ) -> Result<(), CollectiveError>;

    /// Waits, up to the time-out, until everything queued so far is done.
    ///
    /// # Errors
    ///
    /// As of [`Collective`](crate::Collective).
    fn synchronize(&self) -> Result<(), CollectiveError>;
}
