use crate::deltanet::DeltaNet;
use crate::gru::Gru;
use crate::layers::DropoutSource;
use crate::lstm::Lstm;
use crate::mamba::Mamba;
use crate::mingru::MinGru;
use crate::ops::SequenceOps;
use crate::rnn::Rnn;
use crate::rwkv5::Rwkv5;
use crate::rwkv6::Rwkv6;
use crate::s4::S4;
use crate::transformer::Transformer;
use crate::{Init, InputError, ModelConfig};
use burn::module::{Module, ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, FloatDType, TensorData};
use data::{Batch, PositionIds};
use std::collections::BTreeMap;

/// What a forward pass takes.
#[derive(Debug, Clone)]
pub struct ModelInput<B: Backend> {
    /// Token ids `[batch, seq]`.
    pub input_ids: Tensor<B, 2, Int>,
    /// Positions `[batch, seq]`; recurrent models ignore them.
    pub position_ids: Positions<B>,
    /// `[batch, seq]`, 0 at tokens that attention must not see as keys; `None` where there are none. Recurrent models
    /// ignore it: to them padding is an ordinary token.
    pub attention_mask: Option<Tensor<B, 2>>,
    /// Where dropout draws from; `None` outside training.
    pub dropout: Option<DropoutSource>,
}

impl<B: Backend> ModelInput<B> {
    /// Moves a batch to the device, for evaluation. A mask that could not change any labelled position is left out:
    /// padding on the right is never seen by what comes before it.
    pub fn new(batch: &Batch, device: &B::Device) -> Self {
        let ints = |values: &[i64]| {
            let data = TensorData::new(values.to_vec(), [batch.batch, batch.seq]);
            Tensor::<B, 2, Int>::from_data(data, device)
        };
        let attention_mask = batch.mask_matters().then(|| ints(&batch.attention_mask).float());
        Self {
            input_ids: ints(&batch.input_ids),
            position_ids: match &batch.position_ids {
                PositionIds::Integers(ids) => Positions::Integers(ints(ids)),
                PositionIds::Scalars(values) => {
                    let data = TensorData::new(values.clone(), [batch.batch, batch.seq]);
                    Positions::Scalars(Tensor::from_data(data, (device, DType::F32)))
                }
            },
            attention_mask,
            dropout: None,
        }
    }

    /// The same input with dropout on.
    pub fn training(self, source: DropoutSource) -> Self {
        Self { dropout: Some(source), ..self }
    }
}

/// Positions `[batch, seq]`, as [`data::PositionIds`].
#[derive(Debug, Clone)]
pub enum Positions<B: Backend> {
    /// Indices, for tables and rotary embeddings.
    Integers(Tensor<B, 2, Int>),
    /// Fractions in [0, 1], for scalar embeddings.
    Scalars(Tensor<B, 2>),
}

impl<B: Backend> Positions<B> {
    /// Rows of a table; a fraction counts as the integer below it ([`Model::check`] refuses them).
    pub fn indices(self) -> Tensor<B, 2, Int> {
        match self {
            Self::Integers(ids) => ids,
            Self::Scalars(values) => values.int(),
        }
    }

    /// Either kind as 32-bit floats, whatever type the model computes in: half precision cannot tell 1000 from 1001.
    pub fn floats(self) -> Tensor<B, 2> {
        match self {
            Self::Integers(ids) => ids.cast(FloatDType::F32),
            Self::Scalars(values) => values.cast(FloatDType::F32),
        }
    }
}

/// Any of the architectures.
// The variants differ in size by a few hundred bytes, and there is one model per process.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum Model<B: Backend> {
    /// See [`crate::rnn`].
    Rnn(Rnn<B>),
    /// See [`crate::lstm`].
    Lstm(Lstm<B>),
    /// See [`crate::s4`].
    S4(S4<B>),
    /// See [`crate::mamba`].
    Mamba(Mamba<B>),
    /// See [`crate::rwkv5`].
    Rwkv5(Rwkv5<B>),
    /// See [`crate::rwkv6`].
    Rwkv6(Rwkv6<B>),
    /// See [`crate::gru`].
    Gru(Gru<B>),
    /// See [`crate::mingru`].
    MinGru(MinGru<B>),
    /// See [`crate::deltanet`].
    DeltaNet(DeltaNet<B>),
    /// See [`crate::transformer`].
    Transformer(Transformer<B>),
}

impl ModelConfig {
    /// A freshly initialised model over `vocab` tokens; the same weights for the same seed on every device.
    pub fn init<B: Backend>(&self, vocab: usize, seed: u64, device: &B::Device) -> Model<B> {
        let init = &mut Init::new(seed, device);
        match self {
            Self::Rnn(c) => Model::Rnn(c.init(vocab, init)),
            Self::Lstm(c) => Model::Lstm(c.init(vocab, init)),
            Self::S4(c) => Model::S4(c.init(vocab, init)),
            Self::Mamba(c) => Model::Mamba(c.init(vocab, init)),
            Self::Rwkv5(c) => Model::Rwkv5(c.init(vocab, init)),
            Self::Rwkv6(c) => Model::Rwkv6(c.init(vocab, init)),
            Self::Gru(c) => Model::Gru(c.init(vocab, init)),
            Self::MinGru(c) => Model::MinGru(c.init(vocab, init)),
            Self::DeltaNet(c) => Model::DeltaNet(c.init(vocab, init)),
            Self::Transformer(c) => Model::Transformer(c.init(vocab, init)),
        }
    }
}

impl<B: AutodiffBackend> Model<B> {
    /// How many numbers are trained: all but frozen tables, each number once where parameters are tied.
    pub fn num_trainable_params(&self) -> usize {
        struct Count(usize);
        impl<B: Backend> ModuleVisitor<B> for Count {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
                self.0 += if param.is_require_grad() { param.shape().num_elements() } else { 0 };
            }
        }
        let mut count = Count(0);
        self.visit(&mut count);
        count.0
    }
}

impl<B: SequenceOps> Model<B> {
    /// [`ModelConfig::check`].
    pub fn check(&self, batch: &Batch) -> Result<(), InputError> {
        match self {
            Self::Transformer(m) => m.config().check(batch),
            _ => Ok(()),
        }
    }

    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        match self {
            Self::Rnn(m) => m.forward(input),
            Self::Lstm(m) => m.forward(input),
            Self::S4(m) => m.forward(input),
            Self::Mamba(m) => m.forward(input),
            Self::Rwkv5(m) => m.forward(input),
            Self::Rwkv6(m) => m.forward(input),
            Self::Gru(m) => m.forward(input),
            Self::MinGru(m) => m.forward(input),
            Self::DeltaNet(m) => m.forward(input),
            Self::Transformer(m) => m.forward(input),
        }
    }

    /// The integer buffers by their names in checkpoints.
    pub(crate) fn integers(&self) -> impl Iterator<Item = (String, usize)> {
        let s4 = if let Self::S4(m) = self { Some(m) } else { None };
        s4.into_iter().flat_map(S4::kernel_lengths)
    }

    /// Takes over integer buffers, each of [`integers`](Self::integers). The error says which one is wrong.
    pub(crate) fn set_integers(&mut self, integers: &BTreeMap<String, usize>) -> Result<(), String> {
        if let Self::S4(m) = self { m.set_kernel_lengths(integers) } else { Ok(()) }
    }
}
