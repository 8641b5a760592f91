//! [`keep_freed_memory`]: a process that runs forward passes on a CPU keeps its memory.

/// Tells glibc's allocator to keep freed memory for the next allocation instead of giving it back to the system.
///
/// libtorch allocates and frees every intermediate tensor of a forward pass. glibc serves the larger ones with a mapping
/// each, whose pages the kernel has to clear anew every time: a tenth of the time of answering questions with
/// `shapes-lmm-s` on one core (docs/benchmarks). The price is that the process stays as large as its largest moment. Call
/// it once, early, in a program; a library should leave the choice to its program. Does nothing on systems without glibc.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::keep();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    #![expect(unsafe_code, reason = "mallopt is C")]

    pub(super) fn keep() {
        // SAFETY: mallopt takes two integers, and glibc documents these parameters as settable at any time.
        let kept = unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX) != 0
                && libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX) != 0
                && libc::mallopt(libc::M_TOP_PAD, 64 << 20) != 0
        };
        if !kept {
            tracing::debug!("the allocator refused to keep freed memory");
        }
    }
}
