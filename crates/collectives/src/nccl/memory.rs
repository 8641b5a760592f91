//! [`DeviceMemory`]: memory of a CUDA device that calls on host memory go through.
#![expect(unsafe_code, reason = "CUDA is a C library")]

use cudarc::driver::DriverError;
use cudarc::driver::{result, sys};

/// Grows, and is freed with the context it belongs to. The context has to be bound to the calling thread in every call.
#[derive(Debug, Default)]
pub(super) struct DeviceMemory {
    pointer: sys::CUdeviceptr,
    bytes: usize,
}

impl DeviceMemory {
    /// The address, of `bytes` bytes at least. Growing loses the contents, and waits for the device to be done with the old memory.
    pub(super) fn room(&mut self, bytes: usize) -> Result<sys::CUdeviceptr, DriverError> {
        if self.bytes < bytes {
            self.free();
            // SAFETY: the context is bound, and the size is not 0.
            self.pointer = unsafe { result::malloc_sync(bytes) }?;
            self.bytes = bytes;
        }
        Ok(self.pointer)
    }

    /// # Panics
    ///
    /// If there are fewer bytes.
    pub(super) fn read(&self, start: usize, into: &mut [u8]) -> Result<(), DriverError> {
        assert!(start + into.len() <= self.bytes, "{} bytes from {start} of {}", into.len(), self.bytes);
        // SAFETY: the range lies in memory that this value owns.
        unsafe { result::memcpy_dtoh_sync(into, self.pointer + start as u64) }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), DriverError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let pointer = self.room(bytes.len())?;
        // SAFETY: there is room for the bytes in memory that this value owns.
        unsafe { result::memcpy_htod_sync(pointer, bytes) }
    }

    pub(super) fn free(&mut self) {
        if self.bytes > 0 {
            // SAFETY: the memory is this value's, and not freed before. An error leaves it to the end of the process.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
        *self = Self::default();
    }
}
