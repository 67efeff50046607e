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
    let mut memory = Box::new_uninit_slice(length);
    memory.par_chunks_mut(size.max(1)).enumerate().for_each(|(i, piece)| make(i, filled(piece)));
    // SAFETY: the pieces are all of the memory, and `filled` has written each.
    unsafe { memory.assume_init() }.into_vec()
}

/// [`all_in_pieces`], with a piece for each of `units` in every array.
pub fn by_unit<const N: usize>(
    units: usize,
    sizes: [usize; N],
    make: impl Fn(usize, [&mut [f32]; N]) + Sync,
) -> [Vec<f32>; N] {
    all_in_pieces(sizes.map(|size| units * size), sizes, make)
}

/// `N` arrays of so many numbers, in pieces of `sizes`, by all threads: `make` gets the number of a piece, and that piece of
/// every array (empty where there are no more), which the same thread has just filled, so that they are in its cache.
#[allow(unsafe_code)]
pub fn all_in_pieces<const N: usize>(
    lengths: [usize; N],
    sizes: [usize; N],
    make: impl Fn(usize, [&mut [f32]; N]) + Sync,
) -> [Vec<f32>; N] {
    let sizes = sizes.map(|size| size.max(1));
    let units = lengths.into_iter().zip(sizes).map(|(length, size)| length.div_ceil(size)).max().unwrap_or(0);
    let mut memory: [Box<[MaybeUninit<f32>]>; N] = lengths.map(Box::new_uninit_slice);
    let mut pieces: Vec<[&mut [MaybeUninit<f32>]; N]> =
        (0..units).map(|_| std::array::from_fn(|_| Default::default())).collect();
    for (array, (memory, size)) in memory.iter_mut().zip(sizes).enumerate() {
        pieces.iter_mut().zip(memory.chunks_mut(size)).for_each(|(pieces, piece)| pieces[array] = piece);
    }
    pieces.into_par_iter().enumerate().for_each(|(unit, pieces)| make(unit, pieces.map(filled)));
    // SAFETY: there are at least as many units as an array has pieces, the pieces are all of it, and `filled` has written
    // each.
    memory.map(|memory| unsafe { memory.assume_init() }.into_vec())
}

/// Memory with something in every place, by the calling thread.
#[allow(unsafe_code)]
fn filled(memory: &mut [MaybeUninit<f32>]) -> &mut [f32] {
    memory.fill(MaybeUninit::new(if is_filled_with_nan() { f32::NAN } else { 0.0 }));
    // SAFETY: `fill` has written every place, and a `MaybeUninit<f32>` that is written is laid out as the `f32` in it.
    unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), memory.len()) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_all_of_the_memory_and_have_their_numbers() {
        assert_eq!(in_pieces(5, 2, |i, piece| piece.fill(i as f32)), [0.0, 0.0, 1.0, 1.0, 2.0]);
        assert!(in_pieces(0, 0, |_, _| {}).is_empty());
        let [a, none, b] = by_unit(3, [2, 0, 1], |unit, [a, none, b]| {
            a.fill(unit as f32);
            assert!(none.is_empty());
            b.fill(-(unit as f32));
        });
        assert_eq!((a, none, b), (vec![0.0, 0.0, 1.0, 1.0, 2.0, 2.0], vec![], vec![0.0, -1.0, -2.0]));
        assert_eq!(by_unit(0, [4], |_, _| {}), [Vec::<f32>::new()]);
        let [a, b] = all_in_pieces([5, 2], [2, 2], |unit, pieces| {
            pieces.into_iter().for_each(|piece| piece.iter_mut().for_each(|x| *x = unit as f32));
        });
        assert_eq!((a, b), (vec![0.0, 0.0, 1.0, 1.0, 2.0], vec![0.0, 0.0]));
    }
}
