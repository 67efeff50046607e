//! The costly sequence operations, behind one trait so that a backend can bring a faster version of any of them
//! without a model changing. The defaults in [`plain`] are ordinary tensor operations: the readable definition. On the
//! CPU, operations have hand-written forward and backward passes as well, and some have them on GPUs: see [`kernel`].
//! Products in half precision, for mixed-precision training, are those of [`autocast`].

pub mod autocast;
pub mod cpu;
#[cfg(feature = "cube")]
pub mod cube;
pub mod delta;
pub mod kernel;
pub mod plain;
pub mod s4;
pub mod scan;
pub mod wkv;

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::prelude::*;
use burn::tensor::module::embedding;
use cpu::dropout::Mask;
use kernel::RunKernels;
use s4::S4Kernel;
use scan::SelectiveScan;

/// The weights of one recurrent layer in PyTorch's layout; G is 1 for an RNN and 4 for an LSTM (gates i, f, g, o).
#[derive(Debug, Clone)]
pub struct RecurrentWeights<B: Backend> {
    /// `[G·hidden, input]`.
    pub weight_ih: Tensor<B, 2>,
    /// `[G·hidden, hidden]`.
    pub weight_hh: Tensor<B, 2>,
    /// `[G·hidden]`.
    pub bias_ih: Tensor<B, 1>,
    /// `[G·hidden]`.
    pub bias_hh: Tensor<B, 1>,
}

/// What a recurrent layer reads.
#[derive(Debug, Clone)]
pub enum LayerInput<B: Backend> {
    /// `[batch, seq, input]`.
    Rows(Tensor<B, 3>),
    /// An embedding: the rows of `table` `[vocab, input]` that `ids` `[batch, seq]` say. Products need then be computed once
    /// for every token of the vocabulary, not for every place where it stands.
    Embedded {
        /// `[vocab, input]`.
        table: Tensor<B, 2>,
        /// `[batch, seq]`.
        ids: Tensor<B, 2, Int>,
    },
}

impl<B: Backend> LayerInput<B> {
    /// `[batch, seq, input]`.
    pub fn rows(self) -> Tensor<B, 3> {
        match self {
            Self::Rows(x) => x,
            Self::Embedded { table, ids } => embedding(table, ids),
        }
    }
}

impl<B: Backend> From<Tensor<B, 3>> for LayerInput<B> {
    fn from(x: Tensor<B, 3>) -> Self {
        Self::Rows(x)
    }
}

/// Which keys attention may see; the causal mask comes on top.
#[derive(Debug, Clone)]
pub struct KeyMask<B: Backend> {
    /// `[batch, seq]`, 0 at keys that no query may see, 1 at the others.
    pub keys: Tensor<B, 2>,
    /// Every query may see itself, whatever `keys` says of it.
    pub identity: bool,
}

/// What a gate's input goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// 1/(1 + e⁻ᶻ).
    Sigmoid,
    /// z/(1 + e⁻ᶻ).
    Silu,
}

/// cos and sin of every position's angles, `[batch, 1, seq, head_dim]`; the second half of the channels repeats the first
/// (Su et al., arXiv 2104.09864).
#[derive(Debug, Clone)]
pub struct Rotation<B: Backend> {
    /// Cosines.
    pub cos: Tensor<B, 4>,
    /// Sines.
    pub sin: Tensor<B, 4>,
}

/// Operations over whole sequences.
pub trait SequenceOps: RunKernels {
    /// An Elman layer from state `h` `[batch, hidden]` (zero if `None`): `x` `[batch, seq, input]` → all states
    /// `[batch, seq, hidden]`, and the last one.
    fn rnn_layer(
        x: impl Into<LayerInput<Self>>,
        weights: RecurrentWeights<Self>,
        h: Option<Tensor<Self, 2>>,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        let x = x.into();
        cpu::recurrent::rnn_layer(&x, &weights, h.as_ref()).unwrap_or_else(|| plain::rnn_layer(x.rows(), weights, h))
    }

    /// An LSTM layer from state `(h, c)`, each `[batch, hidden]` (zero if `None`): `x` `[batch, seq, input]` → all
    /// hidden states `[batch, seq, hidden]`, and the last `(h, c)`.
    fn lstm_layer(
        x: impl Into<LayerInput<Self>>,
        weights: RecurrentWeights<Self>,
        state: Option<(Tensor<Self, 2>, Tensor<Self, 2>)>,
    ) -> (Tensor<Self, 3>, (Tensor<Self, 2>, Tensor<Self, 2>)) {
        let x = x.into();
        cpu::recurrent::lstm_layer(&x, &weights, state.as_ref())
            .unwrap_or_else(|| plain::lstm_layer(x.rows(), weights, state))
    }

    /// Causal attention: `q`, `k`, `v` `[batch, heads, seq, head_dim]` → `[batch, heads, seq, head_dim]`. Scores are
    /// `scale`·q·kᵀ.
    fn causal_attention(
        q: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        mask: Option<KeyMask<Self>>,
        scale: f64,
    ) -> Tensor<Self, 4> {
        plain::causal_attention(q, k, v, mask, scale)
    }

    /// [`Self::causal_attention`] from `qkv` `[batch, seq, 3·hidden]`, in which the heads of the queries stand side by side,
    /// then those of the keys and of the values, to the heads side by side, `[batch, seq, hidden]`; with a `rotation` of
    /// queries and keys.
    fn packed_attention(
        qkv: Tensor<Self, 3>,
        heads: usize,
        rotation: Option<Rotation<Self>>,
        mask: Option<KeyMask<Self>>,
        scale: f64,
    ) -> Tensor<Self, 3> {
        cpu::attention::packed_attention(&qkv, heads, rotation.as_ref(), mask.as_ref(), scale).unwrap_or_else(|| {
            let [q, k, v] = plain::heads(qkv, heads, rotation.as_ref());
            plain::side_by_side(Self::causal_attention(q, k, v, mask, scale))
        })
    }

    /// y = x·Wᵀ: `x` `[batch, seq, in]`, `weight` `[out, in]` → `[batch, seq, out]`.
    fn projection(x: Tensor<Self, 3>, weight: Tensor<Self, 2>) -> Tensor<Self, 3> {
        cpu::affine::projection(&x, &weight).unwrap_or_else(|| plain::matmul_rows(x, weight.transpose()))
    }

    /// y = x·W + b, and max(y, 0) with `relu`: `x` `[batch, seq, in]`, `weight` `[in, out]`, `bias` `[out]` →
    /// `[batch, seq, out]`.
    fn affine(x: Tensor<Self, 3>, weight: Tensor<Self, 2>, bias: Tensor<Self, 1>, relu: bool) -> Tensor<Self, 3> {
        cpu::affine::affine(&x, &weight, &bias, relu).unwrap_or_else(|| plain::affine(x, weight, bias, relu))
    }

    /// −Σ weight·ln p(label): `logits` `[batch, seq, vocab]`, `labels` and `weights` `[batch, seq]` → `[1]`. Where there is no
    /// label (−1), the weight is 0.
    fn cross_entropy(
        logits: Tensor<Self, 3>,
        labels: Tensor<Self, 2, Int>,
        weights: Tensor<Self, 2>,
    ) -> Tensor<Self, 1> {
        let fast = cpu::loss::cross_entropy(&logits, &labels, &weights);
        fast.unwrap_or_else(|| plain::cross_entropy(logits, labels, weights))
    }

    /// The sum of the squares of all numbers, `[1]`.
    fn sum_of_squares<const D: usize>(x: Tensor<Self, D>) -> Tensor<Self, 1> {
        cpu::adam::sum_of_squares(&x).unwrap_or_else(|| plain::sum_of_squares(x))
    }

    /// A step of AdamW on one parameter: see [`AdamKernel`](cpu::adam::AdamKernel) for the definition. `factor` `[1]`; all
    /// others have the parameter's shape. Nothing of it is differentiable.
    fn adam_step<const D: usize>(
        rule: cpu::adam::AdamKernel,
        parameter: Tensor<Self, D>,
        gradient: Tensor<Self, D>,
        moments: [Tensor<Self, D>; 2],
        factor: Tensor<Self, 1>,
    ) -> (Tensor<Self, D>, [Tensor<Self, D>; 2]) {
        let fast = cpu::adam::adam_step(rule, &parameter, &gradient, &moments, &factor);
        fast.unwrap_or_else(|| plain::adam_step(rule, parameter, gradient, moments, factor))
    }

    /// The first `length` taps of S4's kernel, `[hidden, length]`. See [`s4::kernel`] for the definition.
    fn s4_kernel(parameters: S4Kernel<Self>, length: usize) -> Tensor<Self, 2> {
        let modes = parameters.modes(length);
        cpu::cauchy::taps(&modes, length).unwrap_or_else(|| s4::taps(modes, length))
    }

    /// Causal convolution of every channel with a kernel of its own: `u` `[batch, seq, hidden]`, `k` `[hidden, seq]` →
    /// `[batch, seq, hidden]`. See [`s4::causal_convolution`] for the definition.
    fn causal_convolution(u: Tensor<Self, 3>, k: Tensor<Self, 2>) -> Tensor<Self, 3> {
        cpu::convolution::causal_convolution(&u, &k).unwrap_or_else(|| s4::causal_convolution(u, k))
    }

    /// Mamba's selective scan from state `h` `[batch, channels, state]` (zero if `None`): outputs
    /// `[batch, seq, channels]`, and the last state. See [`scan::selective_scan`] for the definition.
    fn selective_scan(inputs: SelectiveScan<Self>, h: Option<Tensor<Self, 3>>) -> (Tensor<Self, 3>, Tensor<Self, 3>) {
        cpu::scan::selective_scan(&inputs, h.as_ref()).unwrap_or_else(|| scan::selective_scan(inputs, h))
    }

    /// A GRU layer from state `h` `[batch, hidden]` (zero if `None`), gates r, z, n: `x` `[batch, seq, input]` → all
    /// states `[batch, seq, hidden]`, and the last one.
    fn gru_layer(
        x: impl Into<LayerInput<Self>>,
        weights: RecurrentWeights<Self>,
        h: Option<Tensor<Self, 2>>,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        let x = x.into();
        cpu::recurrent::gru_layer(&x, &weights, h.as_ref()).unwrap_or_else(|| plain::gru_layer(x.rows(), weights, h))
    }

    /// h_t = a_t·h_{t−1} + b_t in every channel, from state `h` `[batch, channels]` (zero if `None`): `a` and `b`
    /// `[batch, seq, channels]` → all states `[batch, seq, channels]`, and the last one.
    fn linear_recurrence(
        a: Tensor<Self, 3>,
        b: Tensor<Self, 3>,
        h: Option<Tensor<Self, 2>>,
    ) -> (Tensor<Self, 3>, Tensor<Self, 2>) {
        cpu::linear::linear_recurrence(&a, &b, h.as_ref()).unwrap_or_else(|| plain::linear_recurrence(a, b, h))
    }

    /// The gated delta rule from `state` `[batch, heads, size, size]` (zero if `None`) → outputs
    /// `[batch, heads, seq, size]`, and the last state. See [`delta::recurrent`] for the definition.
    fn delta_rule(
        inputs: delta::DeltaRule<Self>,
        state: Option<Tensor<Self, 4>>,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        cpu::delta::delta_rule(&inputs, state.as_ref()).unwrap_or_else(|| delta::chunked(inputs, state))
    }

    /// RWKV's matrix state with decays, from `state` `[batch, heads, size, size]` (zero if `None`): `r`, `k`, `v` and
    /// `decay` (in 0..=1) `[batch, heads, seq, size]`, `bonus` `[heads, size]` → outputs `[batch, heads, seq, size]`, and
    /// the last state. A decay that is the same at all times may be `[1, heads, 1, size]`. See [`wkv::recurrent`] for the
    /// definition.
    fn wkv(
        r: Tensor<Self, 4>,
        k: Tensor<Self, 4>,
        v: Tensor<Self, 4>,
        decay: Tensor<Self, 4>,
        bonus: Tensor<Self, 2>,
        state: Option<Tensor<Self, 4>>,
    ) -> (Tensor<Self, 4>, Tensor<Self, 4>) {
        let fast = cpu::wkv::wkv([&r, &k, &v, &decay], &bonus, state.as_ref());
        fast.unwrap_or_else(|| wkv::chunked(r, k, v, decay, bonus, state))
    }

    /// Normalisation of `x` `[batch, seq, channels]` in groups of `width` channels, times `weight` plus `bias` `[channels]`;
    /// a weight and bias of one group, `[width]`, serve them all. Without a bias, the mean is taken as zero (RMSNorm).
    fn norm(
        x: Tensor<Self, 3>,
        weight: Tensor<Self, 1>,
        bias: Option<Tensor<Self, 1>>,
        width: usize,
        epsilon: f64,
    ) -> Tensor<Self, 3> {
        let fast = cpu::norm::norm(&x, &weight, bias.as_ref(), width, epsilon);
        fast.unwrap_or_else(|| plain::norm(x, weight, bias, width, epsilon))
    }

    /// `x`·gate(`z`), entry by entry.
    fn gated(x: Tensor<Self, 3>, z: Tensor<Self, 3>, gate: Gate) -> Tensor<Self, 3> {
        cpu::pointwise::gated(&x, &z, gate).unwrap_or_else(|| plain::gated(x, z, gate))
    }

    /// x·Φ(x), entry by entry, with the normal distribution function Φ (Hendrycks and Gimpel, arXiv 1606.08415, exact).
    fn exact_gelu(x: Tensor<Self, 3>) -> Tensor<Self, 3> {
        cpu::pointwise::gelu(&x).unwrap_or_else(|| burn::tensor::activation::gelu(x))
    }

    /// `x` times random factors, the first of `mask`, in this shape: that of `x`, or 1 on axes along which they are the same.
    fn dropout<const D: usize>(x: Tensor<Self, D>, shape: [usize; D], mask: Mask) -> Tensor<Self, D> {
        cpu::dropout::dropout(&x, shape, mask).unwrap_or_else(|| plain::dropout(x, shape, mask))
    }

    /// max(x, 0)², entry by entry (So et al., arXiv 2109.08668).
    fn squared_relu(x: Tensor<Self, 3>) -> Tensor<Self, 3> {
        cpu::pointwise::squared_relu(&x).unwrap_or_else(|| plain::squared_relu(x))
    }

    /// Every token of `x` `[batch, seq, channels]` moved towards the one before it: x_t + (x_{t−1} − x_t)⊙(weight +
    /// weights_t), after the token `last` `[batch, 1, channels]` (zero if `None`). `weight` is `[channels]`, and what is
    /// added to it at each token `[batch, seq, channels]` (nothing if `None`).
    fn token_mix(
        x: Tensor<Self, 3>,
        last: Option<Tensor<Self, 3>>,
        weight: Tensor<Self, 1>,
        weights: Option<Tensor<Self, 3>>,
    ) -> Tensor<Self, 3> {
        let [batch, _, channels] = x.dims();
        let last = last.unwrap_or_else(|| zeros(&x, [batch, 1, channels]));
        let fast = cpu::mix::token_mix(&x, &last, &weight, weights.as_ref());
        fast.unwrap_or_else(|| plain::token_mix(x, last, weight, weights))
    }

    /// [`Self::token_mix`] of the same tokens with each of `M` weights, `[M, channels]`.
    fn token_mixes<const M: usize>(
        x: Tensor<Self, 3>,
        last: Option<Tensor<Self, 3>>,
        weights: Tensor<Self, 2>,
    ) -> [Tensor<Self, 3>; M] {
        let [batch, _, channels] = x.dims();
        let last = last.unwrap_or_else(|| zeros(&x, [batch, 1, channels]));
        let fast = cpu::mix::token_mixes(&x, &last, &weights);
        fast.unwrap_or_else(|| {
            let weight = |m| weights.clone().narrow(0, m, 1).reshape([channels]);
            std::array::from_fn(|m| plain::token_mix(x.clone(), last.clone(), weight(m), None))
        })
    }

    /// SiLU of a causal convolution of each channel with a few taps of its own: `x` `[batch, seq, channels]`, `weight`
    /// `[channels, 1, taps]` (the last tap is the present), `bias` `[channels]`, after the inputs `before` `[batch,
    /// taps − 1, channels]` (zero if `None`) → `[batch, seq, channels]`.
    fn short_convolution(
        x: Tensor<Self, 3>,
        weight: Tensor<Self, 3>,
        bias: Tensor<Self, 1>,
        before: Option<Tensor<Self, 3>>,
    ) -> Tensor<Self, 3> {
        let padded = before.is_none();
        let x = match before {
            Some(before) => Tensor::cat(vec![before, x], 1),
            None => x,
        };
        let fast = cpu::short_convolution::short_convolution(&x, &weight, &bias, padded);
        fast.unwrap_or_else(|| plain::short_convolution(x, weight, bias, padded))
    }
}

/// Zeros on the device and of the type of `x`.
fn zeros<B: Backend, const D: usize, const E: usize>(x: &Tensor<B, D>, shape: [usize; E]) -> Tensor<B, E> {
    Tensor::zeros(shape, (&x.device(), x.dtype()))
}

impl SequenceOps for crate::Cpu {}

#[cfg(feature = "cube")]
impl<R, F, I, BT> SequenceOps for burn_cubecl::CubeBackend<R, F, I, BT>
where
    R: burn_cubecl::CubeRuntime,
    F: burn_cubecl::FloatElement,
    I: burn_cubecl::IntElement,
    BT: burn_cubecl::BoolElement,
{
}

impl<B: SequenceOps, C: CheckpointStrategy> SequenceOps for Autodiff<B, C> {}
