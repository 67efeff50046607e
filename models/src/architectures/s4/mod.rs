//! S4: embedding → residual blocks of LayerNorm and a structured state space per channel → decoder. No final norm, no
//! positions.
//!
//! Source: A. Gu, K. Goel and C. Ré, "Efficiently Modeling Long Sequences with Structured State Spaces", arXiv
//! 2111.00396 (normal plus low rank, bilinear); sizes and initialisation of arXiv 2405.20131.
#![allow(non_snake_case)] // A, B, C, D and P, as in the paper and in checkpoints

pub mod hippo;
pub mod state_space;

use self::hippo::HippoLegS;
use self::state_space::S4Parameters;
use crate::architecture::{Architecture, check_dropout, check_embeddings};
use crate::layers::{Affine, DropoutSource, LayerNorm, Linear, TokenEmbedding, channel_dropout, dropout, tied_decoder};
use crate::ops::s4_kernel::S4Kernel;
use crate::ops::zero_pad;
use crate::ops::{Gate, SequenceOps};

use crate::{ConfigError, Init, ModelInput, Network, ParameterGroup};
use burn::module::{Module, Param};
use burn::prelude::*;
use burn::tensor::TensorData;
use data::Task;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Sizes of an [`S4`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S4Config {
    /// Width of the residual stream: the number of state spaces in a block.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Dropout before and after the activation, and of whole channels of a block's output.
    pub dropout: f64,
    /// The kernel is trained for sequences of this length, and exact at any other.
    pub kernel_length: usize,
    /// The decoder is the token embedding.
    pub tie_word_embeddings: bool,
    /// The embedding of token 0, which must be `<null>`, is zero and not trained.
    pub freeze_null_embedding: bool,
}

/// Conjugate pairs of modes of each channel's state, whose size is twice this.
pub const MODES: usize = 32;

/// The longest kernel that can be trained: its Fourier transform is computed as a matrix of this size squared.
pub const MAX_KERNEL_LENGTH: usize = 1 << 14;

/// ε of every LayerNorm.
pub const LAYER_NORM_EPSILON: f64 = 1e-5;

impl Default for S4Config {
    fn default() -> Self {
        Self {
            hidden_size: 128,
            num_layers: 1,
            dropout: 0.1,
            kernel_length: 128,
            tie_word_embeddings: false,
            freeze_null_embedding: false,
        }
    }
}

impl Architecture for S4Config {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn num_layers(&self) -> usize {
        self.num_layers
    }

    fn decoder_weights(&self) -> &'static [&'static str] {
        &["decoder.weight", "encoder.weight"]
    }

    fn check_settings(&self) -> Result<(), ConfigError> {
        check_dropout(self.dropout)?;
        if !(1..=MAX_KERNEL_LENGTH).contains(&self.kernel_length) {
            return Err(ConfigError::new("kernel_length", format!("must be 1 to {MAX_KERNEL_LENGTH}")));
        }
        check_embeddings(self.tie_word_embeddings, self.freeze_null_embedding)
    }

    fn has_dropout(&self) -> bool {
        self.dropout > 0.0
    }

    fn freezes_null(&self) -> bool {
        self.freeze_null_embedding
    }

    /// The state matrix and the step size (`inv_dt`, `A_real`, `A_imag`, `B`, `P`) learn at 0.001 at most and without
    /// weight decay, `C` at 0.001 at most (Gu et al., arXiv 2111.00396, appendix; weight decay on `C` as in the recipes
    /// reproduced here).
    fn parameter_group(&self, name: &str) -> ParameterGroup {
        let slow = ParameterGroup { lr_max: 1e-3, ..ParameterGroup::DEFAULT };
        match name.rsplit_once("kernel.").map(|(_, parameter)| parameter) {
            Some("inv_dt" | "A_real" | "A_imag" | "B" | "P") => ParameterGroup { weight_decay: false, ..slow },
            Some("C") => slow,
            _ => ParameterGroup::DEFAULT,
        }
    }

    fn examples() -> Vec<Self> {
        let small = Self { hidden_size: 16, num_layers: 2, ..Self::default() };
        vec![
            small.clone(),
            Self { kernel_length: 16, ..small.clone() },
            Self { tie_word_embeddings: true, ..small.clone() },
            Self { freeze_null_embedding: true, ..small },
        ]
    }

    fn task_defaults(task: &Task) -> Vec<(&'static str, usize)> {
        vec![("kernel_length", task.max_seq_len)]
    }

    fn benchmark(seq: usize) -> Vec<(&'static str, Value)> {
        vec![("dropout", 0.0.into()), ("kernel_length", seq.into())]
    }

    fn tied() -> Option<(&'static str, &'static str)> {
        Some(("decoder.weight", "encoder.weight"))
    }
}

impl S4Config {
    /// A model over `vocab` tokens: embedding N(0, 1), decoder U(±1/√hidden), the rest as in [`S4Block`].
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> S4<B> {
        let hidden = self.hidden_size;
        let start = HippoLegS::new(MODES);
        S4 {
            encoder: TokenEmbedding::new(init, vocab, hidden, 1.0, self.freeze_null_embedding),
            s4_layers: (0..self.num_layers).map(|_| S4Block::new(self, &start, init)).collect(),
            norms: (0..self.num_layers).map(|_| LayerNorm::new(init, hidden, LAYER_NORM_EPSILON)).collect(),
            decoder: (!self.tie_word_embeddings)
                .then(|| Linear { weight: init.uniform([vocab, hidden], 1.0 / (hidden as f64).sqrt()) }),
            dropout: self.dropout,
        }
    }
}

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct S4<B: Backend> {
    encoder: TokenEmbedding<B>,
    s4_layers: Vec<S4Block<B>>,
    norms: Vec<LayerNorm<B>>,
    /// `None` where the decoder is `encoder`.
    decoder: Option<Linear<B>>,
    dropout: f64,
}

/// The state of each block, `[batch, hidden, 2·MODES]`: real parts, then imaginary parts.
pub type S4State<B> = Vec<Tensor<B, 3>>;

impl<B: SequenceOps> Network<B> for S4<B> {
    fn integers(&self) -> Vec<(String, usize)> {
        self.kernel_lengths().collect()
    }

    fn set_integers(&mut self, integers: &BTreeMap<String, usize>) -> Result<(), String> {
        self.set_kernel_lengths(integers)
    }
}

impl<B: SequenceOps> S4<B> {
    /// Logits `[batch, seq, vocab]`, by convolution.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        let mut x = self.encoder.forward(input.input_ids); // [batch, seq, hidden]
        for (i, (block, norm)) in self.s4_layers.iter().zip(&self.norms).enumerate() {
            let drop = Drop { p: self.dropout, source: input.dropout, block: i as u64 };
            let u = norm.forward(x.clone());
            let y = block.layer.convolve(u);
            x = x + drop.channels(block.mix(y, &drop));
        }
        self.decode(x)
    }

    /// Logits `[batch, seq, vocab]` of a sequence that continues from `state` (the zero state if `None`), and the state
    /// after it. For inference: one time step after another, without gradients of the state spaces' parameters.
    pub fn forward_from(&self, input: ModelInput<B>, state: Option<S4State<B>>) -> (Tensor<B, 3>, S4State<B>) {
        let mut x = self.encoder.forward(input.input_ids); // [batch, seq, hidden]
        let mut before = state.into_iter().flatten();
        let mut after = Vec::with_capacity(self.s4_layers.len());
        for (i, (block, norm)) in self.s4_layers.iter().zip(&self.norms).enumerate() {
            let drop = Drop { p: self.dropout, source: input.dropout, block: i as u64 };
            let u = norm.forward(x.clone());
            let (y, state) = block.layer.recur(u, before.next());
            x = x + drop.channels(block.mix(y, &drop));
            after.push(state);
        }
        (self.decode(x), after)
    }

    fn decode(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match &self.decoder {
            Some(decoder) => decoder.forward(x),
            None => tied_decoder(x, self.encoder.table()),
        }
    }

    /// The checkpoint's integer buffers: for every block the length that its C stands for.
    pub(crate) fn kernel_lengths(&self) -> impl Iterator<Item = (String, usize)> {
        let lengths = self.s4_layers.iter().map(|block| block.layer.kernel.l_kernel);
        lengths.enumerate().map(|(i, length)| (kernel_length_name(i), length))
    }

    /// Sets the lengths that the loaded Cs stand for. A 0 means that C is not truncated yet, as in a checkpoint
    /// from before the first step: it is truncated now, to the length it was made for. The error says which length is
    /// wrong.
    pub(crate) fn set_kernel_lengths(&mut self, lengths: &BTreeMap<String, usize>) -> Result<(), String> {
        for (i, block) in self.s4_layers.iter_mut().enumerate() {
            let name = kernel_length_name(i);
            match lengths.get(&name) {
                Some(0) => block.layer.kernel.truncate(),
                Some(&length) if length > MAX_KERNEL_LENGTH => {
                    return Err(format!("{name} is {length}, more than {MAX_KERNEL_LENGTH}"));
                }
                Some(&length) => block.layer.kernel.l_kernel = length,
                None => {}
            }
        }
        Ok(())
    }
}

fn kernel_length_name(block: usize) -> String {
    format!("s4_layers.{block}.layer.kernel.l_kernel")
}

/// The dropouts of one block.
struct Drop {
    p: f64,
    source: Option<DropoutSource>,
    block: u64,
}

impl Drop {
    fn entries<B: SequenceOps>(&self, x: Tensor<B, 3>, place: u64) -> Tensor<B, 3> {
        dropout(x, self.p, self.source, 3 * self.block + place)
    }

    fn channels<B: SequenceOps>(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        channel_dropout(x, self.p, self.source, 3 * self.block + 2)
    }
}

/// State spaces, one per channel, then GELU and a gated linear unit that mixes the channels.
#[derive(Module, Debug)]
pub struct S4Block<B: Backend> {
    layer: StateSpaces<B>,
    /// `[2·hidden, hidden]`; the only one of its sequence in checkpoints.
    output_linear: [Affine<B>; 1],
}

impl<B: Backend> S4Block<B> {
    /// Λ, P and B of HiPPO-LegS with Im B clipped to ±2, C complex normal of variance 1, D N(0, 1), steps log-uniform
    /// on 0.001 … 0.1, the linear map U(±1/√hidden).
    fn new(config: &S4Config, start: &HippoLegS, init: &mut Init<'_, B>) -> Self {
        let hidden = config.hidden_size;
        let layer = StateSpaces { D: init.normal([1, hidden], 1.0), kernel: Kernel::new(config, start, init) };
        Self { layer, output_linear: [Affine::new(init, hidden, 2 * hidden)] }
    }
}

impl<B: SequenceOps> S4Block<B> {
    fn mix(&self, y: Tensor<B, 3>, drop: &Drop) -> Tensor<B, 3> {
        let y = drop.entries(B::exact_gelu(drop.entries(y, 0)), 1);
        let Affine { weight, bias } = &self.output_linear[0];
        let hidden = weight.dims()[1];
        let [x, gate] = [0, hidden].map(|start| {
            let weight = weight.val().narrow(0, start, hidden).transpose();
            B::affine(y.clone(), weight, bias.val().narrow(0, start, hidden), false)
        }); // [batch, seq, hidden]
        B::gated(x, gate, Gate::Sigmoid)
    }
}

#[derive(Module, Debug)]
struct StateSpaces<B: Backend> {
    /// The skip connection, `[1, hidden]`.
    D: Param<Tensor<B, 2>>,
    kernel: Kernel<B>,
}

impl<B: SequenceOps> StateSpaces<B> {
    /// `[batch, seq, hidden]` → the same shape.
    fn convolve(&self, u: Tensor<B, 3>) -> Tensor<B, 3> {
        let [_, seq, _] = u.dims();
        let kernel = B::s4_kernel(self.kernel.parameters(), seq); // [hidden, seq]
        let skip = zero_pad(self.D.val().transpose(), 1, [0, seq - 1]);
        B::causal_convolution(u, kernel + skip)
    }

    /// The same, one time step after another: x_t = Ā·x_{t−1} + B̄·u_t, y_t = C·x_t + D·u_t.
    fn recur(&self, u: Tensor<B, 3>, state: Option<Tensor<B, 3>>) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let [batch, seq, hidden] = u.dims();
        let n = 2 * MODES;
        let device = u.device();
        let [a, b, c] = self.kernel.matrices();
        let matrix =
            |values: Vec<f32>, shape: [usize; 3]| Tensor::<B, 3>::from_data(TensorData::new(values, shape), &device);
        let a = matrix(a, [hidden, n, n]).transpose(); // states are rows
        let (b, c) = (matrix(b, [hidden, 1, n]), matrix(c, [hidden, n, 1]));
        let mut x = match state {
            Some(state) => state.swap_dims(0, 1), // [hidden, batch, n]
            None => Tensor::zeros([hidden, batch, n], &device),
        };
        let steps = u.clone().permute([2, 0, 1]); // [hidden, batch, seq]
        let mut outputs = Vec::with_capacity(seq);
        for t in 0..seq {
            x = x.matmul(a.clone()) + steps.clone().narrow(2, t, 1).matmul(b.clone());
            outputs.push(x.clone().matmul(c.clone())); // [hidden, batch, 1]
        }
        let y = Tensor::cat(outputs, 2).permute([1, 2, 0]);
        (y + u * self.D.val().unsqueeze(), x.swap_dims(0, 1))
    }
}

/// See [`S4Kernel`].
#[derive(Module, Debug)]
struct Kernel<B: Backend> {
    C: Param<Tensor<B, 4>>,
    inv_dt: Param<Tensor<B, 2>>,
    B: Param<Tensor<B, 4>>,
    P: Param<Tensor<B, 4>>,
    A_real: Param<Tensor<B, 2>>,
    A_imag: Param<Tensor<B, 2>>,
    l_kernel: usize,
}

impl<B: Backend> Kernel<B> {
    fn new(config: &S4Config, start: &HippoLegS, init: &mut Init<'_, B>) -> Self {
        let hidden = config.hidden_size;
        let every_channel = |channel: Vec<f32>| channel.repeat(hidden);
        let inv_dt = init.draw_uniform(hidden, 0.001f64.ln(), 0.1f64.ln());
        let c = init.draw_normal(hidden * MODES * 2, 0.5f64.sqrt());
        let a_real = every_channel(vec![0.5f32.ln(); MODES]);
        let a_imag = every_channel(start.frequencies.iter().map(|f| -f as f32).collect());
        let b = every_channel(start.b.iter().flat_map(|[re, im]| [*re as f32, im.clamp(-2.0, 2.0) as f32]).collect());
        let p = every_channel(start.p.iter().flatten().map(|v| *v as f32).collect());
        let pairs = [1, hidden, MODES, 2];
        let mut kernel = Self {
            C: init.values(c, pairs),
            inv_dt: init.values(inv_dt, [hidden, 1]),
            B: init.values(b, pairs),
            P: init.values(p, pairs),
            A_real: init.values(a_real, [hidden, MODES]),
            A_imag: init.values(a_imag, [hidden, MODES]),
            l_kernel: config.kernel_length,
        };
        kernel.truncate();
        kernel
    }

    fn parameters(&self) -> S4Kernel<B> {
        S4Kernel {
            inv_dt: self.inv_dt.val(),
            a_real: self.A_real.val(),
            a_imag: self.A_imag.val(),
            b: self.B.val(),
            c: self.C.val(),
            p: self.P.val(),
            l_kernel: self.l_kernel,
        }
    }

    /// The result of `read` on the parameters' values.
    fn read<T>(&self, read: impl FnOnce(S4Parameters<'_>) -> T) -> T {
        fn values<B: Backend, const D: usize>(param: &Param<Tensor<B, D>>) -> Vec<f32> {
            param.val().into_data().iter().collect()
        }
        let (a_real, a_imag) = (values(&self.A_real), values(&self.A_imag));
        let (inv_dt, b, c, p) = (values(&self.inv_dt), values(&self.B), values(&self.C), values(&self.P));
        read(S4Parameters { inv_dt: &inv_dt, a_real: &a_real, a_imag: &a_imag, b: &b, c: &c, p: &p })
    }

    /// Ā `[hidden, n, n]`, B̄ and C `[hidden, n]` for a state of n = 2·MODES real numbers.
    fn matrices(&self) -> [Vec<f32>; 3] {
        let mut out = [vec![], vec![], vec![]];
        self.read(|parameters| {
            for mut channel in parameters.channels() {
                channel.untruncate(self.l_kernel);
                for (out, values) in out.iter_mut().zip([channel.a, channel.b, channel.c]) {
                    out.extend(values.into_iter().map(|v| v as f32));
                }
            }
        });
        out
    }

    /// C ← (I − Āˡ)ᵀ·C for l = `l_kernel`.
    fn truncate(&mut self) {
        let truncated = self.read(|parameters| {
            let channels = parameters.channels().map(|mut channel| {
                channel.truncate(self.l_kernel);
                channel
            });
            channels.flat_map(|channel| channel.c_pairs().collect::<Vec<_>>()).collect::<Vec<f32>>()
        });
        let data = TensorData::new(truncated, self.C.shape());
        let truncated = Tensor::from_data(data, &self.C.device()).require_grad();
        self.C = Param::initialized(self.C.id, truncated);
    }
}
