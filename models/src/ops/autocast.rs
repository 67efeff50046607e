//! Products of matrices in half precision, everything else in 32 bits: mixed-precision training (Micikevicius et al.,
//! arXiv 1710.03740), with the scope of `torch.autocast`.
//!
//! Inside [`autocast`], the inputs of [`product`] are rounded to the narrower type, and its result is widened again.
//! Such are the products of linear layers, of attention, and of RNN, LSTM and GRU with their state. Parameters, their
//! gradients, the residual stream, norms, softmax, loss, and the states of S4, Mamba, RWKV and DeltaNet stay in 32
//! bits. The backward pass needs no scope: the gradient of a rounded input is computed in its type and widened.

use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use std::cell::Cell;

/// A 16-bit type of floating-point numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HalfPrecision {
    /// IEEE half precision: 11 bits of precision, at most 65504.
    Fp16,
    /// bfloat16: 8 bits of precision, the range of 32-bit floats.
    Bf16,
}

thread_local! {
    /// The type of products on this thread, where it is not that of their inputs.
    static PRODUCTS: Cell<Option<HalfPrecision>> = const { Cell::new(None) };
}

/// Runs `forward` with this thread's products in `precision`, or as they are with `None`.
pub fn autocast<T>(precision: Option<HalfPrecision>, forward: impl FnOnce() -> T) -> T {
    /// Puts back what was before, also where `forward` panics.
    struct Restore(Option<HalfPrecision>);
    impl Drop for Restore {
        fn drop(&mut self) {
            PRODUCTS.set(self.0);
        }
    }
    let _restore = Restore(PRODUCTS.replace(precision));
    forward()
}

/// Whether products are computed in half precision here. Kernels that multiply in 32 bits then leave it to [`product`].
pub fn is_autocast() -> bool {
    PRODUCTS.get().is_some()
}

/// `lhs`·`rhs`, `[…, m, k]` · `[…, k, n]` → `[…, m, n]`, in the type that [`autocast`] says where the inputs have 32
/// bits. The result has the type of `lhs`.
pub fn product<B: Backend, const D: usize>(lhs: Tensor<B, D>, rhs: Tensor<B, D>) -> Tensor<B, D> {
    let narrow = match PRODUCTS.get() {
        Some(HalfPrecision::Fp16) => FloatDType::F16,
        Some(HalfPrecision::Bf16) => FloatDType::BF16,
        None => return lhs.matmul(rhs),
    };
    if lhs.dtype() != DType::F32 {
        return lhs.matmul(rhs);
    }
    lhs.cast(narrow).matmul(rhs.cast(narrow)).cast(FloatDType::F32)
}

/// One product over all rows of all examples, `[batch, seq, in] · [in, out]`.
pub fn matmul_rows<B: Backend>(x: Tensor<B, 3>, weight: Tensor<B, 2>) -> Tensor<B, 3> {
    let [batch, seq, input] = x.dims();
    let output = weight.dims()[1];
    product(x.reshape([batch * seq, input]), weight).reshape([batch, seq, output])
}
