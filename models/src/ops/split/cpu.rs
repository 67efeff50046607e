//! Channels cut into parts, and their gradients put together again, on all cores.

use crate::ops::cpu::memory::uninit;
use crate::ops::cpu::simd::init;
use crate::ops::cpu::{dims, tensor, values};
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use burn::prelude::Tensor;
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Rows of a unit of work.
const ROWS: usize = 64;

/// The operation on tensors: `[batch, seq, channels]` → the parts.
#[derive(Debug, Clone)]
pub struct Split {
    /// The channels of each part.
    pub widths: Vec<usize>,
}

impl Split {
    /// Where part number `part` begins.
    fn start(&self, part: usize) -> usize {
        self.widths[..part].iter().sum()
    }
}

impl<const PARTS: usize> Kernel<1, PARTS> for Split {
    type Saved = [usize; 3];

    #[allow(unsafe_code)]
    fn forward(&self, [x]: [FlexTensor; 1], save: bool) -> ([FlexTensor; PARTS], Option<Self::Saved>) {
        let shape @ [batch, seq, channels] = dims(&x);
        let parts = std::array::from_fn(|part| {
            let (start, width) = (self.start(part), self.widths[part]);
            let mut out = uninit(batch * seq * width);
            let units = out.par_chunks_mut((ROWS * width).max(1)).zip(values(&x).par_chunks((ROWS * channels).max(1)));
            units.for_each(|(out, x)| {
                for (out, x) in out.chunks_exact_mut(width.max(1)).zip(x.chunks_exact(channels.max(1))) {
                    init(out, &x[start..start + width]);
                }
            });
            // SAFETY: a row of the output for each of the input, and every row is written.
            tensor(unsafe { out.assume_init() }.into_vec(), [batch, seq, width])
        });
        (parts, save.then_some(shape))
    }

    #[allow(unsafe_code)]
    fn backward(
        &self,
        [batch, seq, channels]: Self::Saved,
        gradients: [Option<FlexTensor>; PARTS],
        _: [bool; 1],
    ) -> [Option<FlexTensor>; 1] {
        let mut out: Box<[MaybeUninit<f32>]> = uninit(batch * seq * channels);
        out.par_chunks_mut((ROWS * channels).max(1)).enumerate().for_each(|(unit, rows)| {
            for (row, out) in rows.chunks_exact_mut(channels.max(1)).enumerate() {
                let row = unit * ROWS + row;
                for (part, gradient) in gradients.iter().enumerate() {
                    let (start, width) = (self.start(part), self.widths[part]);
                    let out = &mut out[start..start + width];
                    match gradient {
                        Some(gradient) => init(out, &values(gradient)[row * width..][..width]),
                        None => out.fill(MaybeUninit::new(0.0)),
                    }
                }
            }
        });
        // SAFETY: the parts are all channels of a row, and all rows are written.
        [Some(tensor(unsafe { out.assume_init() }.into_vec(), [batch, seq, channels]))]
    }
}

/// The operation, where kernels can run.
///
/// # Panics
/// The sum of `widths` are not the channels.
pub fn split<B: RunKernels, const PARTS: usize>(
    x: &Tensor<B, 3>,
    widths: [usize; PARTS],
) -> Option<[Tensor<B, 3>; PARTS]> {
    assert_eq!(widths.iter().sum::<usize>(), x.dims()[2], "the parts of all channels");
    B::run(Split { widths: widths.to_vec() }, [float(x)]).map(|parts| parts.map(kernel::tensor))
}
