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

pub mod absolute;
pub mod alibi;
pub mod none;
pub mod rope;
pub mod scalar;
pub mod sinusoidal;

use crate::error::ConfigError;
use crate::ops::Rotation;
use crate::transformer::TransformerConfig;
use crate::{Cpu, Init, Positions};
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::DType;
use data::Augmentation;
use serde::{Deserialize, Serialize};

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

/// The effect of positions on the attention scores, the same in every layer.
#[derive(Debug, Clone)]
pub enum Score<B: Backend> {
    /// Nothing.
    Nothing,
    /// Queries and keys are rotated before their product.
    Rotation(Rotation<B>),
    /// `[1 or batch, heads, query, key]` is added to the scaled products of queries and keys. Gradients go through it.
    Bias(Tensor<B, 4>),
}

/// A positional scheme, implemented by the module that holds its parameters, if it has any. Constants and functions
/// without `self` do not depend on the backend.
pub trait Scheme<B: Backend>: Sized {
    /// The kind of positions needed.
    const INPUT: Input;

    /// The settings of `augmentation` that go with it; `none` alone where there are no positions to draw.
    const AUGMENTATIONS: &'static [Augmentation] = &[Augmentation::None];

    /// Channels of the residual stream that hold positions instead of token embeddings.
    const CHANNELS: usize = 0;

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

    /// The effect on the attention scores of a model that computes in `dtype`.
    fn score(&self, _positions: Positions<B>, _dtype: DType) -> Score<B> {
        Score::Nothing
    }
}

/// The facts about a scheme that need no model.
struct Kind {
    input: Input,
    augmentations: &'static [Augmentation],
    channels: usize,
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
        #[serde(rename_all = "lowercase")]
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
            pub fn score(&self, positions: Positions<B>, dtype: DType) -> Score<B> {
                match self {
                    $(Self::$Variant(scheme) => scheme.score(positions, dtype),)*
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
