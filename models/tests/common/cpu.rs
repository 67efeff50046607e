//! The CPU's kernels against the references, to the last bit regardless of the number of threads.

use super::kernels::{Argument, Flat, Training, compare, draw, results};
use burn::tensor::DType;

/// Compares a kernel in 32 bits with the reference in 64 bits (which no kernel takes), and one thread with two and
/// three.
pub fn check(
    what: &str,
    floor: f64,
    arguments: &[Argument],
    kernel: impl Fn(&[Flat]) -> Vec<Flat> + Sync,
    reference: impl Fn(&[Flat]) -> Vec<Flat>,
) {
    let arguments = draw(arguments);
    let on_threads = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| results::<Training>(&arguments, DType::F32, &kernel))
    };
    let found = on_threads(1);
    compare(what, arguments.len(), floor, &found, &results(&arguments, DType::F64, reference));
    for threads in [2, 3] {
        assert_eq!(found, on_threads(threads), "{what}: {threads} threads are not one");
    }
}
