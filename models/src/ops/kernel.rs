//! How an operation gets a hand-written forward and backward pass.
//!
//! A [`Kernel`] computes on the CPU, from `f32` tensors in row-major order. It is two functions: the outputs from the
//! inputs, with what the backward pass needs; and the gradients of the inputs from those of the outputs. It may have
//! both for GPUs as well. Everything else is here, once for all of them: which tensors a kernel can take, and how it
//! becomes a node of burn's autodiff.
//!
//! To add an operation:
//!
//! 1. Write `ops/<op>/mod.rs` with a trait that has the signature, and the reference, from burn's tensor operations:
//!
//!    ```ignore
//!    pub trait SoftplusOp: RunKernels {
//!        /// log(1 + eˣ), entry by entry: `[rows, columns]` → the same.
//!        fn softplus(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
//!            cpu::softplus(&x).unwrap_or_else(|| reference(x))
//!        }
//!    }
//!
//!    impl<B: RunKernels> SoftplusOp for B {}
//!    ```
//!
//! 2. Name the trait in [`SequenceOps`](super::SequenceOps), and the module above it. An operation without a kernel
//!    needs no more.
//! 3. In `ops/<op>/cpu.rs`, implement [`Kernel`] for a struct of everything but tensors (sizes, constants, labels):
//!    `N` tensors in, `M` out. Where there are more than two or three, `inputs!` gives them names. Beside it, a
//!    function over tensors calls [`RunKernels::run`]:
//!
//!    ```ignore
//!    pub fn softplus<B: RunKernels>(x: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
//!        B::run(Softplus, [float(x)]).map(|[y]| tensor(y))
//!    }
//!    ```
//!
//!    `ops/linear_recurrence/cpu.rs` is a short example, `ops/recurrent/cpu.rs` one with a second output.
//! 4. Compare both in `tests/it/ops/`, at awkward sizes.
//! 5. For GPUs, write the two passes in CubeCL, in `ops/<op>/cube.rs`, let `gpu_forward` and `gpu_backward` call them,
//!    and set `ON_GPU`. `tests/common/gpu.rs` compares them with the reference.
//!
//! [`RunKernels::run`] returns `None` where no kernel can run: on a GPU that it has no passes for, for 16- or 64-bit
//! floats, and after [`use_kernels`]`(false)`; kernels that multiply matrices in 32 bits also decline where
//! [`autocast`](super::autocast) sets half precision. The reference then does the work. (Work before it that only the
//! kernel needs asks [`RunKernels::has_kernel`] first.)

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape, TensorMetadata, TensorPrimitive};
use burn_flex::FlexTensor;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

#[cfg(feature = "cube")]
use burn_cubecl::{
    BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement, kernel::into_contiguous, tensor::CubeTensor,
};

/// An operation with `N` inputs and `M` outputs, and its backward pass.
pub trait Kernel<const N: usize, const M: usize>: Clone + Debug + Send + 'static {
    /// Kept from the forward pass for the backward pass.
    type Saved: Clone + Debug + Send + 'static;

    /// The outputs, and what to save. `inputs` are contiguous and `f32`. Without `save`, no gradient will be needed.
    fn forward(&self, inputs: [FlexTensor; N], save: bool) -> ([FlexTensor; M], Option<Self::Saved>);

    /// The gradients of the inputs that are `wanted` (others may be given, and are dropped), from the gradients of the
    /// outputs: contiguous, `f32`, and `None` where an output had no part in the loss. The first is never `None`.
    fn backward(
        &self,
        saved: Self::Saved,
        gradients: [Option<FlexTensor>; M],
        wanted: [bool; N],
    ) -> [Option<FlexTensor>; N];

    /// Whether there are passes for GPUs.
    const ON_GPU: bool = false;

    /// [`Self::forward`] on a GPU, and the tensors that the backward pass needs (none without `save`). `None` where the
    /// sizes exceed its limits.
    #[cfg(feature = "cube")]
    #[allow(clippy::type_complexity)] // outputs and saved tensors
    fn gpu_forward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; N],
        save: bool,
    ) -> Option<([CubeTensor<R>; M], Vec<CubeTensor<R>>)> {
        let _ = (inputs, save);
        None
    }

    /// [`Self::backward`] on a GPU, from what [`Self::gpu_forward`] saved.
    #[cfg(feature = "cube")]
    fn gpu_backward<R: CubeRuntime>(
        &self,
        saved: Vec<CubeTensor<R>>,
        gradients: [Option<CubeTensor<R>>; M],
        wanted: [bool; N],
    ) -> [Option<CubeTensor<R>>; N] {
        let _ = (saved, gradients, wanted);
        [const { None }; N]
    }
}

/// The outputs of a kernel on `B`, and what to save.
pub type Outputs<B, S, const M: usize> = ([FloatTensor<B>; M], Option<<B as RunKernels>::Saved<S>>);

static USE_KERNELS: AtomicBool = AtomicBool::new(true);

/// Whether this process runs kernels where it can (the default), or the references everywhere, to compare their speed
/// or results.
pub fn use_kernels(yes: bool) {
    USE_KERNELS.store(yes, Ordering::Relaxed);
}

/// A backend that may be able to run kernels.
pub trait RunKernels: Backend {
    /// Kept between the passes of a kernel that saves an `S` on the CPU.
    type Saved<S: Clone + Debug + Send + 'static>: Clone + Debug + Send + 'static;

    /// Whether it can run such a kernel, and should.
    fn has_kernel<K: Kernel<N, M>, const N: usize, const M: usize>() -> bool;

    /// The outputs, and what to save if `save`; `None` if not all inputs can be read.
    fn forward<K: Kernel<N, M>, const N: usize, const M: usize>(
        kernel: &K,
        inputs: [FloatTensor<Self>; N],
        save: bool,
    ) -> Option<Outputs<Self, K::Saved, M>>;

    /// The gradients of the inputs that are `wanted`, from those of the outputs, of which the first is never `None`.
    fn backward<K: Kernel<N, M>, const N: usize, const M: usize>(
        kernel: &K,
        saved: Self::Saved<K::Saved>,
        gradients: [Option<FloatTensor<Self>>; M],
        wanted: [bool; N],
    ) -> [Option<FloatTensor<Self>>; N];

    /// The tensor where a kernel on the CPU can read it, contiguous.
    fn int_input(tensor: IntTensor<Self>) -> Option<FlexTensor> {
        let _ = tensor;
        None
    }

    /// A constant that kernels on the CPU can read, contiguous and `f32`: no gradient reaches the tensor through it.
    fn constant(tensor: FloatTensor<Self>) -> Option<FlexTensor> {
        let _ = tensor;
        None
    }

    /// Runs `kernel` if all inputs can be read, and records its backward pass where a gradient will be needed.
    fn run<K: Kernel<N, M>, const N: usize, const M: usize>(
        kernel: K,
        inputs: [FloatTensor<Self>; N],
    ) -> Option<[FloatTensor<Self>; M]> {
        Self::forward(&kernel, inputs, false).map(|(outputs, _)| outputs)
    }
}

impl RunKernels for crate::Cpu {
    type Saved<S: Clone + Debug + Send + 'static> = S;

    fn has_kernel<K: Kernel<N, M>, const N: usize, const M: usize>() -> bool {
        USE_KERNELS.load(Ordering::Relaxed)
    }

    fn forward<K: Kernel<N, M>, const N: usize, const M: usize>(
        kernel: &K,
        inputs: [FlexTensor; N],
        save: bool,
    ) -> Option<Outputs<Self, K::Saved, M>> {
        let readable = Self::has_kernel::<K, N, M>() && inputs.iter().all(|input| input.dtype() == DType::F32);
        let (outputs, saved) = readable.then(|| kernel.forward(inputs.map(|input| input.to_contiguous()), save))?;
        Some((outputs, saved.filter(|_| save)))
    }

    fn backward<K: Kernel<N, M>, const N: usize, const M: usize>(
        kernel: &K,
        saved: K::Saved,
        gradients: [Option<FlexTensor>; M],
        wanted: [bool; N],
    ) -> [Option<FlexTensor>; N] {
        kernel.backward(saved, gradients.map(|gradient| gradient.map(|gradient| gradient.to_contiguous())), wanted)
    }

    fn int_input(tensor: FlexTensor) -> Option<FlexTensor> {
        Some(tensor.to_contiguous())
    }

    fn constant(tensor: FlexTensor) -> Option<FlexTensor> {
        (tensor.dtype() == DType::F32).then(|| tensor.to_contiguous())
    }
}

#[cfg(feature = "cube")]
impl<R: CubeRuntime, F: FloatElement, I: IntElement, BT: BoolElement> RunKernels for CubeBackend<R, F, I, BT> {
    type Saved<S: Clone + Debug + Send + 'static> = Vec<CubeTensor<R>>;

    fn has_kernel<K: Kernel<N, M>, const N: usize, const M: usize>() -> bool {
        K::ON_GPU && USE_KERNELS.load(Ordering::Relaxed)
    }

    fn forward<K: Kernel<N, M>, const N: usize, const M: usize>(
        kernel: &K,
        inputs: [CubeTensor<R>; N],
        save: bool,
    ) -> Option<Outputs<Self, K::Saved, M>> {
        let readable = Self::has_kernel::<K, N, M>() && inputs.iter().all(|input| input.dtype() == DType::F32);
        let (outputs, saved) = readable.then(|| kernel.gpu_forward(inputs.map(into_contiguous), save))??;
        Some((outputs, save.then_some(saved)))
    }

    fn backward<K: Kernel<N, M>, const N: usize, const M: usize>(
        kernel: &K,
        saved: Vec<CubeTensor<R>>,
        gradients: [Option<CubeTensor<R>>; M],
        wanted: [bool; N],
    ) -> [Option<CubeTensor<R>>; N] {
        kernel.gpu_backward(saved, gradients.map(|gradient| gradient.map(into_contiguous)), wanted)
    }
}

impl<B: RunKernels, C: CheckpointStrategy> RunKernels for Autodiff<B, C> {
    type Saved<S: Clone + Debug + Send + 'static> = ();

    fn has_kernel<K: Kernel<N, M>, const N: usize, const M: usize>() -> bool {
        B::has_kernel::<K, N, M>()
    }

    /// None: there are no second derivatives.
    fn forward<K: Kernel<N, M>, const N: usize, const M: usize>(
        _: &K,
        _: [FloatTensor<Self>; N],
        _: bool,
    ) -> Option<Outputs<Self, K::Saved, M>> {
        None
    }

    fn backward<K: Kernel<N, M>, const N: usize, const M: usize>(
        _: &K,
        (): (),
        _: [Option<FloatTensor<Self>>; M],
        _: [bool; N],
    ) -> [Option<FloatTensor<Self>>; N] {
        [const { None }; N]
    }

    fn int_input(tensor: IntTensor<Self>) -> Option<FlexTensor> {
        B::int_input(tensor)
    }

    fn constant(tensor: FloatTensor<Self>) -> Option<FlexTensor> {
        B::constant(tensor.primitive)
    }

    fn run<K: Kernel<N, M>, const N: usize, const M: usize>(
        kernel: K,
        inputs: [FloatTensor<Self>; N],
    ) -> Option<[FloatTensor<Self>; M]> {
        let nodes = inputs.each_ref().map(|tensor| tensor.node.clone());
        let tracked = inputs.iter().any(|tensor| tensor.is_tracked());
        let (outputs, saved) = B::forward(&kernel, inputs.map(|tensor| tensor.primitive), tracked)?;
        let Some(saved) = saved else { return Some(outputs.map(Self::from_inner)) };

        // The first output's node computes all gradients. A further output's node is its child, so it comes earlier in
        // the backward pass, and leaves its gradient where the first will look.
        let later: Slots<B, M> = Arc::new(Mutex::new([const { None }; M]));
        let mut outputs = outputs.into_iter();
        let first = outputs.next()?;
        let shape = first.shape();
        let first = match KernelBackward::<K, M>(PhantomData).prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(step) => step.finish((kernel, saved, later.clone()), first),
            OpsKind::UnTracked(step) => step.finish(first),
        };
        let parent = first.node.clone();
        let rest = (1..).zip(outputs).map(|(i, output)| {
            match LaterOutput::<M>.prepare::<C>([parent.clone()]).compute_bound().stateful() {
                OpsKind::Tracked(step) => step.finish((later.clone(), i, shape.clone()), output),
                OpsKind::UnTracked(step) => step.finish(output),
            }
        });
        let all: Vec<_> = std::iter::once(first).chain(rest).collect();
        all.try_into().ok()
    }
}

/// Where the gradients of further outputs wait for the node of the first.
type Slots<B, const M: usize> = Arc<Mutex<[Option<FloatTensor<B>>; M]>>;

/// The backward pass of a kernel: the step that made its first output.
#[derive(Debug)]
struct KernelBackward<K, const M: usize>(PhantomData<K>);

impl<B: RunKernels, K: Kernel<N, M>, const N: usize, const M: usize> Backward<B, N> for KernelBackward<K, M> {
    type State = (K, B::Saved<K::Saved>, Slots<B, M>);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (kernel, saved, later) = ops.state;
        let mut gradients = later.lock().unwrap_or_else(PoisonError::into_inner).each_mut().map(Option::take);
        gradients[0] = Some(grads.consume::<B>(&ops.node));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        for (parent, gradient) in ops.parents.into_iter().zip(B::backward(&kernel, saved, gradients, wanted)) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// The step that made a further output: a child of the first output's node.
#[derive(Debug)]
struct LaterOutput<const M: usize>;

impl<B: Backend, const M: usize> Backward<B, 1> for LaterOutput<M> {
    /// Where the gradients go, the index of this one, and the shape of the first output.
    type State = (Slots<B, M>, usize, Shape);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (slots, i, shape) = ops.state;
        let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
        let gradient = grads.consume::<B>(&ops.node);
        if let [Some(first)] = ops.parents
            && slots.iter().all(Option::is_none)
        {
            // burn visits the first output's node only where it has a gradient.
            let zeros = B::float_zeros(shape, &B::float_device(&gradient), gradient.dtype().into());
            grads.register::<B>(first.id, zeros);
        }
        slots[i] = Some(gradient);
    }
}

/// Gives names to the tensors that a kernel reads: a struct with a field for each, generic over what it holds of them
/// (the primitives of a backend, their numbers, or those of their gradients). Arrays of the primitives, as [`Kernel`]
/// has them, are made from the fields in their order and back, so that nothing else depends on it.
macro_rules! inputs {
    ($(#[$attribute:meta])* pub struct $name:ident { $($(#[$field_attribute:meta])* $field:ident),* $(,)? }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name<T> {
            $($(#[$field_attribute])* pub $field: T,)*
        }

        impl $name<()> {
            /// Fields.
            pub const COUNT: usize = [$(stringify!($field)),*].len();
        }

        impl<T> From<[T; $name::<()>::COUNT]> for $name<T> {
            fn from([$($field),*]: [T; $name::<()>::COUNT]) -> Self {
                Self { $($field),* }
            }
        }

        impl<T> From<$name<T>> for [T; $name::<()>::COUNT] {
            fn from($name { $($field),* }: $name<T>) -> Self {
                [$($field),*]
            }
        }
    };
}
pub(crate) use inputs;

/// The primitive of a tensor, for [`RunKernels::run`].
pub fn float<B: Backend, const D: usize>(tensor: &Tensor<B, D>) -> FloatTensor<B> {
    tensor.clone().into_primitive().tensor()
}

/// The tensor of a primitive that [`RunKernels::run`] gave.
pub fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}
