//! Functions of single numbers, several inputs and outputs in one pass over memory. (The kernels are not generic:
//! generic code would be compiled where it is used, with another crate's optimisations.)

use super::memory::uninit;
use super::simd::V;
use super::with_simd;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::fmt::Debug;
use std::mem::MaybeUninit;

/// Numbers that one unit of work takes.
const BLOCK: usize = 1 << 14;

/// A function from `IN` numbers to `OUT` numbers.
pub trait Pointwise<const IN: usize, const OUT: usize>: Copy + Debug + Send + Sync + 'static {
    /// Its values, lane by lane.
    fn apply<S: Simd>(self, x: [V<S>; IN]) -> [V<S>; OUT];
}

/// The function of every number of the inputs, which are equally long, in uninitialised memory.
#[allow(unsafe_code)]
pub fn map<P: Pointwise<IN, OUT>, const IN: usize, const OUT: usize>(
    function: P,
    inputs: [&[f32]; IN],
) -> [Vec<f32>; OUT] {
    let length = inputs[0].len();
    let mut outputs: [Box<[MaybeUninit<f32>]>; OUT] = std::array::from_fn(|_| uninit(length));
    let mut units: Vec<[&mut [MaybeUninit<f32>]; OUT]> =
        (0..length.div_ceil(BLOCK)).map(|_| std::array::from_fn(|_| Default::default())).collect();
    for (i, output) in outputs.iter_mut().enumerate() {
        units.iter_mut().zip(output.chunks_mut(BLOCK)).for_each(|(unit, block)| unit[i] = block);
    }
    units.into_par_iter().enumerate().for_each(|(block, outputs)| {
        with_simd(Block { function, inputs: inputs.map(|x| &x[block * BLOCK..]), outputs });
    });
    // SAFETY: the blocks are all of every output, and `Block` writes them from end to end.
    outputs.map(|output| unsafe { output.assume_init() }.into_vec())
}

struct Block<'a, P, const IN: usize, const OUT: usize> {
    function: P,
    inputs: [&'a [f32]; IN],
    outputs: [&'a mut [MaybeUninit<f32>]; OUT],
}

impl<P: Pointwise<IN, OUT>, const IN: usize, const OUT: usize> WithSimd for Block<'_, P, IN, OUT> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { function, inputs, mut outputs } = self;
        for start in (0..outputs[0].len()).step_by(V::<S>::LANES) {
            let mut values = [V::splat(simd, 0.0); IN]; // (the compiler would call a function for `inputs.map`)
            for (value, x) in values.iter_mut().zip(inputs) {
                *value = V::load(simd, &x[start..]);
            }
            let values = function.apply(values);
            for (output, value) in outputs.iter_mut().zip(values) {
                value.init(&mut output[start..]);
            }
        }
    }
}
