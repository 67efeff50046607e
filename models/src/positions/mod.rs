//! How positions enter a Transformer: one file per scheme, and the list of them in [`positions!`](crate::positions!).
//!
//! | file | scheme |
//! |---|---|
//! | [`none`] | no positional embedding (NoPE) |
//! | [`absolute`] | a learned row per position is added to the token's embedding |
//! | [`sinusoidal`] | a computed row per position is added |
//! | [`rope`] | queries and keys are rotated by their position |
//! | [`scalar`] | the position itself, a fraction, is the last channel |
//! | [`alibi`] | a bias on the scores falls with the distance |
//! | [`t5`] | a bias on the scores is looked up by the distance |
//! | [`kerple_log`] | a bias on the scores falls with the logarithm of the distance |
//! | [`fire`] | a bias on the scores is a learned function of the distance relative to the query's place |
//! | [`cope`] | a bias on the scores depends on how many of the keys between are counted |
//! | [`ssmax`], [`logn`], [`logn_clip`] | scores grow with the logarithm of the number of keys |

pub mod absolute;
pub mod alibi;
pub mod cope;
pub mod fire;
pub mod kerple_log;
pub mod logn;
pub mod logn_clip;
pub mod none;
pub mod rope;
pub mod scalar;
pub mod sinusoidal;
pub mod ssmax;
pub mod t5;

use crate::error::ConfigError;
use crate::ops::{KeyMask, Rotation, SequenceOps};
use crate::training::ParameterGroup;
use crate::transformer::TransformerConfig;
use crate::{Cpu, Init, Positions};
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::DType;
use data::Augmentation;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::rc::Rc;

/// The base of the rotary and sinusoidal frequencies.
pub const FREQUENCY_BASE: f64 = 10_000.0;

/// The kind of positions that a scheme needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Nothing: an exported model has no input for positions.
    None,
    /// An index per token.
    Integers,
    /// A fraction in [0, 1] per token.
    Scalars,
}

impl Input {
    /// The name in errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "no",
            Self::Integers => "integer",
            Self::Scalars => "scalar",
        }
    }
}

/// The effect of positions on the attention scores of a layer.
#[derive(Debug, Clone)]
pub enum Score<B: Backend> {
    /// Nothing.
    Nothing,
    /// Queries and keys are rotated before their product.
    Rotation(Rotation<B>),
    /// `[1 or batch, heads, query, key]` is added to the scaled products of queries and keys. Gradients go through it.
    Bias(Tensor<B, 4>),
    /// The scaled products are multiplied by `[1 or batch, 1 or heads, query, 1]`. Gradients go through it.
    Factor(Tensor<B, 4>),
    /// A bias as above that depends on the layer's queries and keys.
    Content(Rc<dyn ContentBias<B>>),
}

/// A bias of the attention scores that depends on queries and keys.
pub trait ContentBias<B: Backend>: Debug {
    /// The bias `[batch, heads, query, key]` that is added to scale·q·kᵀ, from `q` and `k` `[batch, heads, seq,
    /// head_dim]`. Only keys that attention may see count. Gradients go through everything but the mask.
    fn bias(&self, q: Tensor<B, 4>, k: Tensor<B, 4>, scale: f64, mask: Option<&KeyMask<B>>) -> Tensor<B, 4>;
}

/// The places of the tokens of a batch.
#[derive(Debug, Clone)]
pub struct Places<B: Backend> {
    /// The positions that the model was given, `[batch, seq]`.
    pub positions: Positions<B>,
    /// The type that the model computes in.
    pub dtype: DType,
}

impl<B: Backend> Places<B> {
    /// Tokens of a sequence.
    pub fn seq(&self) -> usize {
        match &self.positions {
            Positions::Integers(ids) => ids.dims()[1],
            Positions::Scalars(values) => values.dims()[1],
        }
    }

    /// Where the model is.
    pub fn device(&self) -> B::Device {
        match &self.positions {
            Positions::Integers(ids) => ids.device(),
            Positions::Scalars(values) => values.device(),
        }
    }

    /// The type for places, distances and functions of them: half precision cannot tell 1000 from 1001.
    pub fn wide(&self) -> DType {
        if self.dtype == DType::F64 { DType::F64 } else { DType::F32 }
    }

    /// 0, 1, 2 …: the index of every token, and all distances, `[seq]` in [`wide`](Self::wide) numbers.
    pub fn indices(&self) -> Tensor<B, 1> {
        Tensor::<B, 1, Int>::arange(0..self.seq() as i64, &self.device()).float().cast(self.wide())
    }
}

/// A positional scheme, implemented by the module that holds its parameters, if it has any. Constants and functions
/// without `self` do not depend on the backend.
///
/// Checkpoints have the parameters under the names of the module's fields. Those of layer i are in element i of a field
/// `layers`: `layers.0.cope.pos_emb` is called `h.0.attn.cope.pos_emb` there.
pub trait Scheme<B: Backend>: Sized {
    /// The kind of positions needed.
    const INPUT: Input;

    /// The settings of `augmentation` that go with it; `none` alone where there are no positions to draw.
    const AUGMENTATIONS: &'static [Augmentation] = &[Augmentation::None];

    /// Channels of the residual stream that hold positions instead of token embeddings.
    const CHANNELS: usize = 0;

    /// Whether [`score`](Self::score) differs from layer to layer.
    const PER_LAYER: bool = false;

    /// Whether it is defined where tokens attend to later ones.
    const BOTH_DIRECTIONS: bool = true;

    /// How positions are drawn with this setting of `augmentation`, as [`data`] calls it.
    fn augmentation(setting: Augmentation) -> Augmentation {
        setting
    }

    /// The rows of the position table, where there is one: positions must lie below.
    fn limit(_config: &TransformerConfig) -> Option<usize> {
        None
    }

    /// Refuses settings that the scheme cannot be built with, naming the key.
    fn check(_config: &TransformerConfig) -> Result<(), ConfigError> {
        Ok(())
    }

    /// The parameter group of one of its parameters, by its name in checkpoints.
    fn parameter_group(_name: &str) -> ParameterGroup {
        ParameterGroup::DEFAULT
    }

    /// `small`, which has this scheme, with each option of the scheme.
    fn examples(small: &TransformerConfig) -> Vec<TransformerConfig> {
        vec![small.clone()]
    }

    /// The initial parameters.
    fn new(config: &TransformerConfig, init: &mut Init<'_, B>) -> Self;

    /// Adds positions to the embeddings of tokens: `x` `[batch, seq, hidden − CHANNELS]` → `[batch, seq, hidden]`.
    fn embed(&self, x: Tensor<B, 3>, _positions: Positions<B>) -> Tensor<B, 3> {
        x
    }

    /// The effect on the attention scores of layer number `layer`, from 0.
    fn score(&self, _layer: usize, _places: &Places<B>) -> Score<B>
    where
        B: SequenceOps,
    {
        Score::Nothing
    }
}

/// The facts about a scheme that need no model.
struct Kind {
    input: Input,
    augmentations: &'static [Augmentation],
    channels: usize,
    per_layer: bool,
    both_directions: bool,
    parameter_group: fn(&str) -> ParameterGroup,
    augmentation: fn(Augmentation) -> Augmentation,
    limit: fn(&TransformerConfig) -> Option<usize>,
    check: fn(&TransformerConfig) -> Result<(), ConfigError>,
    examples: fn(&TransformerConfig) -> Vec<TransformerConfig>,
}

const fn kind<S: Scheme<Cpu>>() -> Kind {
    Kind {
        input: S::INPUT,
        augmentations: S::AUGMENTATIONS,
        channels: S::CHANNELS,
        per_layer: S::PER_LAYER,
        both_directions: S::BOTH_DIRECTIONS,
        parameter_group: S::parameter_group,
        augmentation: S::augmentation,
        limit: S::limit,
        check: S::check,
        examples: S::examples,
    }
}

macro_rules! schemes {
    ($($Variant:ident $module:ident $Type:ident $title:literal;)*) => {
        /// How positions enter.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum PositionalEmbedding {
            $(
                #[doc = concat!("See [`crate::positions::", stringify!($module), "`].")]
                $Variant,
            )*
        }

        impl PositionalEmbedding {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$Variant),*];

            /// The name in configs and in the metadata of exported files.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$Variant => stringify!($module),)*
                }
            }

            /// The title in figures and tables.
            pub fn title(self) -> &'static str {
                match self {
                    $(Self::$Variant => $title,)*
                }
            }

            fn kind(self) -> Kind {
                match self {
                    $(Self::$Variant => kind::<$module::$Type<Cpu>>(),)*
                }
            }

            /// The module of a new model.
            pub(crate) fn init<B: Backend>(
                self,
                config: &TransformerConfig,
                init: &mut Init<'_, B>,
            ) -> PositionModule<B> {
                match self {
                    $(Self::$Variant => PositionModule::$Variant($module::$Type::new(config, init)),)*
                }
            }
        }

        /// Any of the schemes.
        #[derive(Module, Debug)]
        pub enum PositionModule<B: Backend> {
            $(
                #[doc = concat!("See [`crate::positions::", stringify!($module), "`].")]
                $Variant($module::$Type<B>),
            )*
        }

        impl<B: Backend> PositionModule<B> {
            /// [`Scheme::embed`].
            pub fn embed(&self, x: Tensor<B, 3>, positions: Positions<B>) -> Tensor<B, 3> {
                match self {
                    $(Self::$Variant(scheme) => scheme.embed(x, positions),)*
                }
            }

            /// [`Scheme::score`].
            pub fn score(&self, layer: usize, places: &Places<B>) -> Score<B>
            where
                B: SequenceOps,
            {
                match self {
                    $(Self::$Variant(scheme) => scheme.score(layer, places),)*
                }
            }
        }
    };
}

positions!(schemes);

impl PositionalEmbedding {
    /// [`Scheme::INPUT`].
    pub fn input(self) -> Input {
        self.kind().input
    }

    /// [`Scheme::AUGMENTATIONS`].
    pub fn augmentations(self) -> &'static [Augmentation] {
        self.kind().augmentations
    }

    /// [`Scheme::CHANNELS`].
    pub fn channels(self) -> usize {
        self.kind().channels
    }

    /// [`Scheme::PER_LAYER`].
    pub fn per_layer(self) -> bool {
        self.kind().per_layer
    }

    /// [`Scheme::BOTH_DIRECTIONS`].
    pub fn in_both_directions(self) -> bool {
        self.kind().both_directions
    }

    /// [`Scheme::parameter_group`].
    pub fn parameter_group(self, name: &str) -> ParameterGroup {
        (self.kind().parameter_group)(name)
    }

    /// [`Scheme::augmentation`].
    pub fn augmentation(self, setting: Augmentation) -> Augmentation {
        (self.kind().augmentation)(setting)
    }

    /// [`Scheme::limit`].
    pub fn limit(self, config: &TransformerConfig) -> Option<usize> {
        (self.kind().limit)(config)
    }

    /// [`Scheme::check`].
    pub(crate) fn check(self, config: &TransformerConfig) -> Result<(), ConfigError> {
        (self.kind().check)(config)
    }

    /// `small` with every scheme, and with each option of it.
    pub(crate) fn examples(small: &TransformerConfig) -> Vec<TransformerConfig> {
        let with = |scheme: &Self| TransformerConfig { positional_embedding: *scheme, ..small.clone() };
        Self::ALL.iter().flat_map(|scheme| (scheme.kind().examples)(&with(scheme))).collect()
    }
}
