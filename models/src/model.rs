//! Any of the architectures as one type, and the input of a forward pass.

// The variants differ in size by a few hundred bytes, and there is one model per process.
#![allow(clippy::large_enum_variant)]

use crate::layers::DropoutSource;
use crate::ops::SequenceOps;
use crate::{Init, InputError, ModelConfig};
use burn::module::{Module, ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{DType, FloatDType, TensorData};
use data::{Batch, PositionIds};
use std::collections::BTreeMap;

/// The input of a forward pass.
#[derive(Debug, Clone)]
pub struct ModelInput<B: Backend> {
    /// Token ids `[batch, seq]`.
    pub input_ids: Tensor<B, 2, Int>,
    /// Positions `[batch, seq]`; recurrent models ignore them.
    pub position_ids: Positions<B>,
    /// The padding mask `[batch, seq]`, 0 at keys that attention must not see; `None` where there are none. Recurrent
    /// models ignore it: to them padding is an ordinary token.
    pub attention_mask: Option<Tensor<B, 2>>,
    /// The random source of dropout; `None` outside training.
    pub dropout: Option<DropoutSource>,
}

impl<B: Backend> ModelInput<B> {
    /// Moves a batch to the device, for evaluation. A mask that could not change any labelled position is left out:
    /// with a causal mask, no token sees padding to its right.
    pub fn new(batch: &Batch, is_causal: bool, device: &B::Device) -> Self {
        let ints = |values: &[i64]| {
            let data = TensorData::new(values.to_vec(), [batch.batch, batch.seq]);
            Tensor::<B, 2, Int>::from_data(data, device)
        };
        let attention_mask = batch.mask_matters(is_causal).then(|| ints(&batch.attention_mask).float());
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

    /// Either kind as 32-bit floats, regardless of the model's type: half precision cannot tell 1000 from 1001.
    pub fn floats(self) -> Tensor<B, 2> {
        match self {
            Self::Integers(ids) => ids.cast(FloatDType::F32),
            Self::Scalars(values) => values.cast(FloatDType::F32),
        }
    }
}

/// Checks and integer buffers of a model; every model implements it, most with the defaults.
pub trait Network<B: Backend> {
    /// [`Architecture::check`](crate::Architecture::check) of the model's config.
    fn check(&self, _batch: &Batch) -> Result<(), InputError> {
        Ok(())
    }

    /// [`Architecture::is_causal`](crate::Architecture::is_causal) of the model's config.
    fn is_causal(&self) -> bool {
        true
    }

    /// The integer buffers by their names in checkpoints.
    fn integers(&self) -> Vec<(String, usize)> {
        vec![]
    }

    /// Sets the integer buffers, all of [`integers`](Self::integers). The error says which one is wrong.
    fn set_integers(&mut self, _integers: &BTreeMap<String, usize>) -> Result<(), String> {
        Ok(())
    }
}

macro_rules! models {
    ($($Variant:ident $module:ident $Config:ident $title:literal;)*) => {
        /// Any of the architectures.
        #[derive(Module, Debug)]
        pub enum Model<B: Backend> {
            $(
                #[doc = concat!("See [`crate::", stringify!($module), "`].")]
                $Variant(crate::architectures::$module::$Variant<B>),
            )*
        }

        impl ModelConfig {
            /// A freshly initialised model over `vocab` tokens; the same weights for the same seed on every device.
            pub fn init<B: Backend>(&self, vocab: usize, seed: u64, device: &B::Device) -> Model<B> {
                let init = &mut Init::new(seed, device);
                match self {
                    $(Self::$Variant(config) => Model::$Variant(config.init(vocab, init)),)*
                }
            }
        }

        impl<B: SequenceOps> Model<B> {
            /// Logits `[batch, seq, vocab]`.
            pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
                match self {
                    $(Self::$Variant(model) => model.forward(input),)*
                }
            }

            fn network(&self) -> &dyn Network<B> {
                match self {
                    $(Self::$Variant(model) => model,)*
                }
            }

            fn network_mut(&mut self) -> &mut dyn Network<B> {
                match self {
                    $(Self::$Variant(model) => model,)*
                }
            }
        }
    };
}

architectures!(models);

impl<B: AutodiffBackend> Model<B> {
    /// The number of trained parameters: frozen tables do not count, and tied parameters count once.
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
    /// A batch as input of this model, without dropout: see [`ModelInput::new`].
    pub fn input(&self, batch: &Batch, device: &B::Device) -> ModelInput<B> {
        ModelInput::new(batch, self.network().is_causal(), device)
    }

    /// [`Architecture::check`](crate::Architecture::check).
    pub fn check(&self, batch: &Batch) -> Result<(), InputError> {
        self.network().check(batch)
    }

    /// The integer buffers by their names in checkpoints.
    pub(crate) fn integers(&self) -> impl Iterator<Item = (String, usize)> + use<B> {
        self.network().integers().into_iter()
    }

    /// Sets the integer buffers, all of [`integers`](Self::integers). The error says which one is wrong.
    pub(crate) fn set_integers(&mut self, integers: &BTreeMap<String, usize>) -> Result<(), String> {
        self.network_mut().set_integers(integers)
    }
}
