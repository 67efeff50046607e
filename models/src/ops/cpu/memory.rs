//! Memory for tensors.

use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

static FILL_WITH_NAN: AtomicBool = AtomicBool::new(false);

/// Whether memory for the results of kernels is filled with NaN before they write to it, so that tests find every
/// number that a kernel does not write.
pub fn fill_with_nan(yes: bool) {
    FILL_WITH_NAN.store(yes, Ordering::Relaxed);
}

/// See [`fill_with_nan`].
pub(crate) fn is_filled_with_nan() -> bool {
    FILL_WITH_NAN.load(Ordering::Relaxed)
}

/// Uninitialised memory for so many numbers, each of which has to be written.
pub fn uninit(length: usize) -> Box<[MaybeUninit<f32>]> {
    let mut memory = Box::new_uninit_slice(length);
    if is_filled_with_nan() {
        memory.fill(MaybeUninit::new(f32::NAN));
    }
    memory
}

/// So many numbers, each of which has to be overwritten. Large memory is filled by all threads: what was used before is not
/// zero, and one thread would clear it while the others wait.
#[allow(unsafe_code)]
pub fn unwritten(length: usize) -> Vec<f32> {
    const PIECE: usize = 1 << 15;
    let fill = if is_filled_with_nan() { f32::NAN } else { 0.0 };
    if length < 2 * PIECE {
        return vec![fill; length];
    }
    let mut memory = Box::new_uninit_slice(length);
    memory.par_chunks_mut(PIECE).for_each(|piece| piece.fill(MaybeUninit::new(fill)));
    // SAFETY: the pieces are all of the memory, and each of their numbers was written.
    unsafe { memory.assume_init() }.into_vec()
}

/// So many numbers in pieces of `size`, by all threads: `make` gets the number of each piece and its memory, which the same
/// thread has just filled, so that it is in its cache.
#[allow(unsafe_code)]
pub fn in_pieces(length: usize, size: usize, make: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let zeros = [if is_filled_with_nan() { f32::NAN } else { 0.0 }; 1 << 10];
    let mut memory = Box::new_uninit_slice(length);
    memory.par_chunks_mut(size.max(1)).enumerate().for_each(|(i, piece)| {
        for part in piece.chunks_mut(zeros.len()) {
            write(part, &zeros[..part.len()]);
        }
        // SAFETY: the parts are all of the piece, and `write` has written them. A `MaybeUninit<f32>` that is written is laid
        // out as the `f32` in it.
        let piece = unsafe { std::slice::from_raw_parts_mut(piece.as_mut_ptr().cast(), piece.len()) };
        make(i, piece);
    });
    // SAFETY: the pieces are all of the memory, and each of their numbers was written.
    unsafe { memory.assume_init() }.into_vec()
}

/// Copies `from` to uninitialised memory of the same length, and returns it as initialised.
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
/// A training step allocates the same megabytes again and again. Fresh from the system, every page of them is cleared
/// and mapped on first use, which takes up to a third of a step. A program that trains calls this once, at its start.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const LARGEST: libc::c_int = 1 << 30;
        // SAFETY: `mallopt` takes any integers, and locks what it changes. If it refuses one, nothing changes.
        #[allow(unsafe_code)]
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST);
            libc::mallopt(libc::M_TRIM_THRESHOLD, LARGEST);
            libc::mallopt(libc::M_TOP_PAD, 64 << 20);
        }
    }
}
