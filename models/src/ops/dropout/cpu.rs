//! Dropout: random numbers, comparison and product in one pass; the backward pass draws the same numbers again.

use crate::ops::cpu::memory::uninit;
use crate::ops::cpu::{like, values, with_simd};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use data::stream_rng;
use pulp::{Simd, WithSimd};
use rand::Rng;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Numbers that one unit of work takes.
const BLOCK: usize = 1 << 12;

/// Random factors: number i is 0 with probability `p`, namely where word i of a stream of ChaCha8 is below p·2³², and
/// otherwise 1/(1 − p). So factors do not depend on the device or on how many are drawn.
#[derive(Debug, Clone, Copy)]
pub struct Mask {
    /// The probability of a zero, below 1.
    pub p: f64,
    /// The key of the streams.
    pub seed: u64,
    /// The stream.
    pub stream: u64,
}

impl Mask {
    /// The first `count` factors.
    pub fn factors(self, count: usize) -> Vec<f32> {
        DropoutKernel { mask: self, repeated: None }.apply(&vec![1.0; count])
    }

    /// The random bytes of some factors, four each.
    fn words(&self, first: usize, count: usize) -> Vec<u8> {
        let mut words = vec![0; 4 * count];
        let mut rng = stream_rng(self.seed, "dropout", self.stream);
        rng.set_word_pos(first as u128);
        rng.fill_bytes(&mut words);
        words
    }
}

/// The operation on a tensor of any shape: x → x·mask.
#[derive(Debug, Clone, Copy)]
pub struct DropoutKernel {
    /// The factors.
    pub mask: Mask,
    /// Where the mask is not as large as x: numbers of it that are used one after another (channels), and how many
    /// times before the next are (time steps).
    pub repeated: Option<[usize; 2]>,
}

impl DropoutKernel {
    /// x·mask, in uninitialised memory.
    #[allow(unsafe_code)]
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let [count, times] = self.repeated.unwrap_or([BLOCK, 1]);
        let block = (count * times).max(1);
        let mut y = uninit(x.len());
        let blocks = y.par_chunks_mut(block).zip(x.par_chunks(block));
        blocks.enumerate().for_each(|(i, (y, x))| {
            let words = self.mask.words(i * count, count.min(x.len()));
            with_simd(Block { p: self.mask.p, words: words.as_chunks().0, x, y });
        });
        // SAFETY: the blocks are all of `y`, and `Block` writes each from end to end.
        unsafe { y.assume_init() }.into_vec()
    }
}

impl Kernel<1, 1> for DropoutKernel {
    type Saved = ();

    fn forward(&self, [x]: [FlexTensor; 1], save: bool) -> ([FlexTensor; 1], Option<()>) {
        ([like(&x, self.apply(values(&x)))], save.then_some(()))
    }

    fn backward(&self, (): (), [dy]: [Option<FlexTensor>; 1], _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [dy.map(|dy| like(&dy, self.apply(values(&dy))))]
    }
}

struct Block<'a> {
    p: f64,
    words: &'a [[u8; 4]],
    x: &'a [f32],
    y: &'a mut [MaybeUninit<f32>],
}

impl WithSimd for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { p, words, x, y } = self;
        let (threshold, keep) = ((p * 2f64.powi(32)) as u32, (1.0 / (1.0 - p)) as f32);
        for (x, y) in x.chunks(words.len()).zip(y.chunks_mut(words.len())) {
            for ((x, y), word) in x.iter().zip(y).zip(words) {
                let factor = if u32::from_le_bytes(*word) < threshold { 0.0 } else { keep };
                y.write(x * factor);
            }
        }
    }
}

/// The operation, where kernels can run with a mask of the tensor's shape, or of the shape
/// `[batch, 1, channels]`.
pub fn dropout<B: RunKernels, const D: usize>(x: &Tensor<B, D>, shape: [usize; D], mask: Mask) -> Option<Tensor<B, D>> {
    let dims = x.dims();
    let repeated = match (&dims[..], &shape[..]) {
        (dims, shape) if dims == shape => None,
        (&[batch, seq, channels], &[examples, 1, columns]) if [examples, columns] == [batch, channels] => {
            Some([channels, seq])
        }
        _ => return None,
    };
    B::run(DropoutKernel { mask, repeated }, [float(x)]).map(|[y]| kernel::tensor(y))
}
