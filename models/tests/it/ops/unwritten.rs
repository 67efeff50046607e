//! The comparison of kernels with references, which would be of little use if a kernel could forget to write a number
//! and the memory happened to hold the right one.

use crate::common::cpu::check;
use crate::common::kernels::{Training, UNIT};
use burn_flex::FlexTensor;
use models::ops::cpu::memory::{fill_with_nan, uninit};
use models::ops::cpu::{like, values};
use models::ops::kernel::{Kernel, RunKernels, float, tensor};

/// x → 2·x, but for the last numbers.
#[derive(Debug, Clone, Copy)]
struct Twice {
    forgotten: usize,
    /// Of the gradient.
    forgotten_backward: usize,
}

/// 2·x, but for so many numbers, which are left as they were.
#[allow(unsafe_code)]
fn twice(x: &FlexTensor, forgotten: usize) -> FlexTensor {
    fill_with_nan(true);
    let x_values = values(x);
    let mut y = uninit(x_values.len());
    for (y, x) in y.iter_mut().zip(&x_values[..x_values.len() - forgotten]) {
        y.write(2.0 * x);
    }
    // SAFETY: `fill_with_nan` has filled all of the memory.
    like(x, unsafe { y.assume_init() }.into_vec())
}

impl Kernel<1, 1> for Twice {
    type Saved = ();

    fn forward(&self, [x]: [FlexTensor; 1], save: bool) -> ([FlexTensor; 1], Option<()>) {
        ([twice(&x, self.forgotten)], save.then_some(()))
    }

    fn backward(&self, (): (), [dy]: [Option<FlexTensor>; 1], _: [bool; 1]) -> [Option<FlexTensor>; 1] {
        [dy.map(|dy| twice(&dy, self.forgotten_backward))]
    }
}

fn compare(kernel: Twice) {
    let run = |a: &[_]| Training::run(kernel, [float(&a[0])]).unwrap().map(tensor).to_vec();
    check("twice", 1e-2, &[(100, UNIT)], run, |a| vec![a[0].clone() * 2.0]);
}

#[test]
fn a_kernel_that_leaves_a_number_unwritten_is_found() {
    compare(Twice { forgotten: 0, forgotten_backward: 0 });
    for (forgotten, forgotten_backward, part) in [(1, 0, "output 0"), (0, 1, "gradient 0")] {
        let kernel = Twice { forgotten, forgotten_backward };
        let error = std::panic::catch_unwind(|| compare(kernel)).unwrap_err();
        let message = error.downcast_ref::<String>().unwrap();
        assert!(message.contains("NaN") && message.contains(part), "{message}");
    }
}
