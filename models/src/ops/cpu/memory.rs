//! The memory that tensors are made of.

/// Tells the C library (glibc) to keep the memory of freed tensors instead of giving it back to the system.
///
/// A training step allocates the same megabytes again and again. Fresh from the system, every page of them is cleared and
/// mapped on first use, which takes up to a third of a step. A program that trains calls this once, at its start.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGEST: libc::c_int = 1 << 30;
        // SAFETY: `mallopt` takes any integers, and locks what it changes. Where it refuses one, all stays as it was.
        #[allow(unsafe_code)]
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGEST);
            libc::mallopt(libc::M_TOP_PAD, 64 << 20);
        }
    }
}
