//! The costly sequence operations: a folder each, in which `mod.rs` has the signature, the formula and the *reference*,
//! ordinary tensor operations that define the result on every backend. Where an operation has hand-written forward and
//! backward passes, `cpu.rs` has those of the CPU and `cube.rs` those of GPUs; [`kernel`] says how they become nodes of
//! burn's autodiff, and how to add one. Products in half precision, for mixed-precision training, are those of
//! [`autocast`].
//!
//! Each signature is the method of a trait over burn's `Backend`, and [`SequenceOps`] is all of them, so that a model
//! over `B: SequenceOps` calls `B::norm(…)`. The kernels share the parts in [`cpu`] and `cube`.

pub mod activation;
pub mod adam;
pub mod affine;
pub mod attention;
pub mod autocast;
pub mod by_distance;
pub mod causal_convolution;
pub mod contextual_positions;
pub mod cpu;
pub mod cross_entropy;
#[cfg(feature = "cube")]
pub mod cube;
pub mod delta;
pub mod dropout;
pub mod gated;
pub mod gated_linear_attention;
pub mod gelu;
pub mod generalized_delta;
pub mod head_scale;
pub mod headwise;
pub mod kernel;
pub mod linear_recurrence;
pub mod norm;
pub mod projection;
pub mod recurrent;
pub mod s4_kernel;
pub mod scan;
pub mod short_convolution;
pub mod slstm;
pub mod split;
pub mod squared_relu;
pub mod ssd;
pub mod sum_of_squares;
pub mod token_mix;
pub mod wkv;

pub use activation::Activation;
pub use attention::{AttentionOptions, KeyMask, Rotation};
pub use gated::Gate;
pub use recurrent::{LayerInput, RecurrentWeights};

use burn::prelude::*;
use kernel::RunKernels;

/// Operations over whole sequences: a line for each folder.
pub trait SequenceOps:
    RunKernels
    + activation::ActivationOp
    + adam::AdamOp
    + affine::AffineOp
    + attention::AttentionOp
    + by_distance::ByDistanceOp
    + causal_convolution::CausalConvolutionOp
    + contextual_positions::ContextualPositionsOp
    + cross_entropy::CrossEntropyOp
    + delta::DeltaRuleOp
    + dropout::DropoutOp
    + gated::GatedOp
    + gated_linear_attention::GatedLinearAttentionOp
    + gelu::GeluOp
    + generalized_delta::GeneralizedDeltaOp
    + head_scale::HeadScaleOp
    + headwise::HeadwiseOp
    + linear_recurrence::LinearRecurrenceOp
    + norm::NormOp
    + projection::ProjectionOp
    + recurrent::RecurrentOps
    + s4_kernel::S4KernelOp
    + scan::SelectiveScanOp
    + short_convolution::ShortConvolutionOp
    + slstm::SlstmOp
    + split::SplitOp
    + squared_relu::SquaredReluOp
    + ssd::SsdOp
    + sum_of_squares::SumOfSquaresOp
    + token_mix::TokenMixOps
    + wkv::WkvOp
{
}

impl<B: RunKernels> SequenceOps for B {}

/// Zeros on the device and of the type of `x`.
fn zeros<B: Backend, const D: usize, const E: usize>(x: &Tensor<B, D>, shape: [usize; E]) -> Tensor<B, E> {
    Tensor::zeros(shape, (&x.device(), x.dtype()))
}

/// The time steps of `[batch, seq, channels]`, each `[batch, channels]`.
///
/// By halving: the gradient of a slice is a zero tensor of the parent's size with the slice written in, so slicing
/// `seq` times from the whole would cost seq² in the backward pass; halves cost seq·log(seq).
fn unbind_time<B: Backend>(x: Tensor<B, 3>) -> Vec<Tensor<B, 2>> {
    let [batch, seq, channels] = x.dims();
    if seq == 1 {
        return vec![x.reshape([batch, channels])];
    }
    let half = seq / 2;
    let mut steps = unbind_time(x.clone().slice([0..batch, 0..half]));
    steps.extend(unbind_time(x.slice([0..batch, half..seq])));
    steps
}

/// Zeros before and after `x` along an axis.
pub(crate) fn zero_pad<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    axis: usize,
    [before, after]: [usize; 2],
) -> Tensor<B, D> {
    let zeros = |length: usize| {
        let mut shape = x.shape();
        shape[axis] = length;
        (length > 0).then(|| Tensor::zeros(shape, (&x.device(), x.dtype())))
    };
    let parts = [zeros(before), Some(x.clone()), zeros(after)];
    Tensor::cat(parts.into_iter().flatten().collect(), axis)
}
