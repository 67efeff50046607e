//! The trait that an architecture's config implements, and the enum of all of them.

use crate::checkpoint::original::{Fields, OriginalError};
use crate::error::{ConfigError, InputError};
use crate::training::ParameterGroup;
use data::{Augmentation, Batch, PositionSampling, Task, Vocabulary};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt::Debug;
use std::ops::Deref;
use std::sync::LazyLock;

/// The interface of an architecture to the rest of the program, implemented by its config. Defaults suit most
/// architectures.
pub trait Architecture: Debug {
    /// Width of the residual stream or of the recurrent state.
    fn hidden_size(&self) -> usize;

    /// Layers or blocks.
    fn num_layers(&self) -> usize;

    /// The checkpoint names of the matrices that make the logits, `[vocab, hidden]`; the first that a checkpoint has
    /// counts.
    fn decoder_weights(&self) -> &'static [&'static str];

    /// Refuses settings that contradict each other, naming the key. Width and number of layers are at least 1 already.
    fn check_settings(&self) -> Result<(), ConfigError>;

    /// Whether training has dropout: equal rows then get different results.
    fn has_dropout(&self) -> bool {
        false
    }

    /// Whether no output depends on later tokens.
    fn is_causal(&self) -> bool {
        true
    }

    /// Whether the embedding of token 0, `<null>`, is zero and not trained.
    fn freezes_null(&self) -> bool {
        false
    }

    /// Whether the training recipe has the term of [`weighted_l2_wrap`](crate::weighted_l2_wrap), which is over all
    /// positions, padding included.
    fn pulls_logits(&self) -> bool {
        false
    }

    /// The parameter group of the parameter called `name` in checkpoints.
    fn parameter_group(&self, _name: &str) -> ParameterGroup {
        ParameterGroup::DEFAULT
    }

    /// The name of the positional embedding; `none` for recurrent models, which need no positions.
    fn positional_embedding(&self) -> &'static str {
        "none"
    }

    /// How the positions of a batch are drawn.
    fn augmentation(&self) -> Augmentation {
        Augmentation::None
    }

    /// The table size that positions are drawn from; `None` for models without positions.
    fn max_position_embeddings(&self) -> Option<usize> {
        None
    }

    /// The longest sequence, counted from position 0, that the model's position table covers; `None` without a table.
    fn max_length(&self) -> Option<usize> {
        None
    }

    /// The numbers that the model keeps of every token of a sequence: keys and values, where there is attention. What it
    /// keeps regardless of the length is in the states of its ONNX file.
    fn state_per_token(&self) -> usize {
        0
    }

    /// How often a looped model applies its blocks; `None` for models that are not looped. Its ONNX file takes the number as
    /// an input.
    fn iterations(&self) -> Option<usize> {
        None
    }

    /// Refuses a batch whose positions the model cannot take: past the rows of its table, or of the wrong kind.
    fn check(&self, _batch: &Batch) -> Result<(), InputError> {
        Ok(())
    }

    /// Small models, two layers wide 16 or so, that between them use every option that changes what is computed. The
    /// first has the options of the default. Tests of all architectures run them.
    fn examples() -> Vec<Self>
    where
        Self: Sized;

    /// The keys of `[model]` that default to the task's settings.
    fn task_defaults(_task: &Task) -> Vec<(&'static str, usize)>
    where
        Self: Sized,
    {
        vec![]
    }

    /// The keys of `[model]` with which a training step on sequences of `seq` tokens is timed: no dropout, tables and
    /// kernels as long as the sequences.
    fn benchmark(_seq: usize) -> Vec<(&'static str, Value)>
    where
        Self: Sized,
    {
        vec![]
    }

    /// The key that sets the number of heads; `None` without heads.
    fn heads() -> Option<Heads>
    where
        Self: Sized,
    {
        None
    }

    /// Whether `positional_embedding` is one of the keys.
    fn has_positions() -> bool
    where
        Self: Sized,
    {
        false
    }

    /// The settings that the `config.json` of published code states; `None` where there is no such code whose checkpoints
    /// have the names of this one's.
    fn original(_fields: &Fields<'_>) -> Option<Result<Self, OriginalError>>
    where
        Self: Sized,
    {
        None
    }

    /// A matrix that PyTorch's files hold under a second name where the model ties it: (second name, name).
    fn tied() -> Option<(&'static str, &'static str)>
    where
        Self: Sized,
    {
        None
    }

    /// Parameters in files of published code that take no part in what the model computes, and that it does not have here.
    fn unused() -> &'static [&'static str]
    where
        Self: Sized,
    {
        &[]
    }
}

/// The key that sets the number of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heads {
    /// The key is the number of heads.
    Number(&'static str),
    /// The key is the channels of each head.
    Size(&'static str),
}

/// The facts about an architecture that need no settings.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// The value of `arch`.
    pub name: &'static str,
    /// The title in figures and tables.
    pub title: &'static str,
    /// [`Architecture::examples`].
    pub examples: fn() -> Vec<ModelConfig>,
    /// [`Architecture::task_defaults`].
    pub task_defaults: fn(&Task) -> Vec<(&'static str, usize)>,
    /// [`Architecture::benchmark`].
    pub benchmark: fn(usize) -> Vec<(&'static str, Value)>,
    /// [`Architecture::heads`].
    pub heads: fn() -> Option<Heads>,
    /// [`Architecture::has_positions`].
    pub has_positions: fn() -> bool,
    /// [`Architecture::original`].
    pub(crate) original: fn(&Fields<'_>) -> Option<Result<ModelConfig, OriginalError>>,
    /// [`Architecture::tied`].
    pub tied: fn() -> Option<(&'static str, &'static str)>,
    /// [`Architecture::unused`].
    pub unused: fn() -> &'static [&'static str],
}

impl Kind {
    const fn of<C: Architecture>(
        name: &'static str,
        title: &'static str,
        examples: fn() -> Vec<ModelConfig>,
        original: fn(&Fields<'_>) -> Option<Result<ModelConfig, OriginalError>>,
    ) -> Self {
        Self {
            name,
            title,
            examples,
            original,
            task_defaults: C::task_defaults,
            benchmark: C::benchmark,
            heads: C::heads,
            has_positions: C::has_positions,
            tied: C::tied,
            unused: C::unused,
        }
    }
}

macro_rules! configs {
    ($($Variant:ident $module:ident $Config:ident $title:literal;)*) => {
        // There is one config per run; a hybrid's has those of its mixers.
        #[allow(clippy::large_enum_variant)]
        /// The `[model]` table of a config: `arch` selects which of the others are read.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "arch", rename_all = "snake_case")]
        pub enum ModelConfig {
            $(
                #[doc = concat!("See [`crate::", stringify!($module), "`].")]
                $Variant(crate::architectures::$module::$Config),
            )*
        }

        impl ModelConfig {
            /// Every architecture.
            pub const KINDS: &'static [Kind] = &[$(Kind::of::<crate::architectures::$module::$Config>(
                stringify!($module),
                $title,
                || Architecture::examples().into_iter().map(Self::$Variant).collect(),
                |fields| Some(Architecture::original(fields)?.map(Self::$Variant)),
            )),*];

            /// The values of `arch`.
            pub const ARCHITECTURES: [&'static str; Self::KINDS.len()] = [$(stringify!($module)),*];

            /// The architecture's name.
            pub fn arch(&self) -> &'static str {
                match self {
                    $(Self::$Variant(_) => stringify!($module),)*
                }
            }
        }

        impl Deref for ModelConfig {
            type Target = dyn Architecture;

            fn deref(&self) -> &Self::Target {
                match self {
                    $(Self::$Variant(config) => config,)*
                }
            }
        }
    };
}

architectures!(configs);

/// The most channels and layers: a square matrix of more channels takes over 17 GB, and sizes may overflow.
const LARGEST_SIZE: usize = 1 << 16;

/// Tensors that files hold a second time where a model ties them, as PyTorch saves shared ones: (second name, name).
pub(crate) static SHARED: LazyLock<Vec<(&str, &str)>> = LazyLock::new(|| {
    let mut pairs: Vec<_> = ModelConfig::KINDS.iter().filter_map(|kind| (kind.tied)()).collect();
    pairs.sort_unstable();
    pairs.dedup();
    pairs
});

impl ModelConfig {
    /// The architecture called `name`.
    pub fn kind(name: &str) -> Option<&'static Kind> {
        Self::KINDS.iter().find(|kind| kind.name == name)
    }

    /// The [examples](Architecture::examples) of every architecture, in the order of
    /// [`ARCHITECTURES`](Self::ARCHITECTURES).
    pub fn examples() -> Vec<Self> {
        Self::KINDS.iter().flat_map(|kind| (kind.examples)()).collect()
    }

    /// How the positions of the batches of a run are made; `draw` is the step.
    pub fn positions(&self, seed: u64, draw: u64) -> PositionSampling {
        let max_position_embeddings = self.max_position_embeddings().unwrap_or(0);
        PositionSampling { augmentation: self.augmentation(), max_position_embeddings, seed, draw }
    }

    /// Refuses a vocabulary that contradicts the settings: a frozen null embedding is that of token 0, `<null>`.
    pub fn check_vocabulary(&self, vocabulary: &Vocabulary) -> Result<(), ConfigError> {
        match vocabulary.token(0) {
            Some("<null>") => Ok(()),
            Some(other) if self.freezes_null() => Err(ConfigError::new(
                "freeze_null_embedding",
                format!("token 0 of the task is `{other}`, not `<null>`; choose a task with `<null>` or leave it out"),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses sizes that cannot be built and settings that contradict each other, naming the key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [("hidden_size", self.hidden_size()), ("num_layers", self.num_layers())] {
            if value == 0 {
                return Err(ConfigError::new(key, "must be at least 1"));
            }
        }
        if let Ok(Value::Object(settings)) = serde_json::to_value(self) {
            check_sizes(&settings, "")?;
        }
        self.check_settings()
    }
}

/// Refuses sizes that no machine has the memory for, here and in the tables of mixers.
fn check_sizes(settings: &Map<String, Value>, prefix: &str) -> Result<(), ConfigError> {
    const SIZES: [&str; 12] = [
        "size",
        "layers",
        "heads",
        "rank",
        "expand",
        "kernel",
        "groups",
        "width",
        "ratio",
        "round_to",
        "_conv",
        "cope_positions",
    ];
    // a million is a lot, and a table of 16 million rows can be had
    const MOST_POSITIONS: usize = 1 << 24;
    for (key, value) in settings {
        let name = format!("{prefix}{key}");
        if let Value::Object(table) = value {
            check_sizes(table, &format!("{name}."))?;
        }
        let is_size = SIZES.iter().any(|size| key.contains(size));
        // an MLP is a few times as wide as its model
        let most = match &key[..] {
            "max_position_embeddings" => MOST_POSITIONS,
            key if key.contains("intermediate") => 4 * LARGEST_SIZE,
            _ => LARGEST_SIZE,
        };
        let is_size = is_size || key == "max_position_embeddings";
        if is_size && value.as_f64().is_some_and(|value| value > most as f64) {
            return Err(ConfigError::new(name, format!("must be at most {most}\n  hint: choose a smaller one")));
        }
    }
    Ok(())
}

/// Refuses anything but a probability below 1.
pub(crate) fn check_dropout(p: f64) -> Result<(), ConfigError> {
    if (0.0..1.0).contains(&p) {
        return Ok(());
    }
    Err(ConfigError::new("dropout", format!("{p} is not a probability below 1")))
}

/// Refuses a decoder that is an embedding with a frozen row.
pub(crate) fn check_embeddings(tied: bool, null_frozen: bool) -> Result<(), ConfigError> {
    if tied && null_frozen {
        let reason = "the decoder cannot be an embedding of which a part is frozen (freeze_null_embedding); choose one";
        return Err(ConfigError::new("tie_word_embeddings", reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_have_bounds_and_a_million_positions_can_be_had() {
        let parsed = |text: &str| serde_json::from_str::<ModelConfig>(text).unwrap().validate();
        parsed(r#"{"arch": "transformer", "positional_embedding": "rope", "max_position_embeddings": 1000000}"#)
            .unwrap();
        for (text, key) in [
            (r#"{"arch": "rwkv7", "decay_rank": 1000000000}"#, "decay_rank"),
            (r#"{"arch": "gla", "intermediate_size": 1000000000}"#, "intermediate_size"),
            (r#"{"arch": "xlstm", "mlstm_conv": 1000000000}"#, "mlstm_conv"),
            (r#"{"arch": "transformer", "mlp_ratio": 1000000000}"#, "mlp_ratio"),
        ] {
            let refused = parsed(text).unwrap_err().to_string();
            assert!(refused.starts_with(&format!("model.{key}: must be at most ")), "{refused}");
        }
    }
}
