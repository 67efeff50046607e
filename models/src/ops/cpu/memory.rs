//! The memory that tensors are made of.

use std::mem::MaybeUninit;

/// Copies `from` to as much memory that nobody has to clear before, and gives it as what it then is.
///
/// # Panics
/// The lengths differ.
#[inline(always)]
#[allow(unsafe_code)]
pub fn write<'a>(to: &'a mut [MaybeUninit<f32>], from: &[f32]) -> &'a mut [f32] {
    assert_eq!(to.len(), from.len(), "memory for another number of elements");
    // SAFETY: both are as long, and `to` is borrowed exclusively, so they do not overlap. After the copy all of `to` is
    // written, and a `MaybeUninit<f32>` that is written is laid out as the `f32` in it.
    unsafe {
        let to: *mut f32 = to.as_mut_ptr().cast();
        to.copy_from_nonoverlapping(from.as_ptr(), from.len());
        std::slice::from_raw_parts_mut(to, from.len())
    }
}

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
