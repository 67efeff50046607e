use crate::deltanet::DeltaNetConfig;
use crate::error::{ConfigError, InputError};
use crate::gru::GruConfig;
use crate::lstm::LstmConfig;
use crate::mamba::MambaConfig;
use crate::mingru::MinGruConfig;
use crate::rnn::RnnConfig;
use crate::rwkv5::Rwkv5Config;
use crate::rwkv6::Rwkv6Config;
use crate::s4::S4Config;
use crate::transformer::TransformerConfig;
use data::{Augmentation, Batch, PositionScheme, Vocabulary};
use serde::{Deserialize, Serialize};

/// The `[model]` table of a config: `arch` selects which of the others are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "arch", rename_all = "lowercase")]
pub enum ModelConfig {
    /// See [`crate::rnn`].
    Rnn(RnnConfig),
    /// See [`crate::lstm`].
    Lstm(LstmConfig),
    /// See [`crate::s4`].
    S4(S4Config),
    /// See [`crate::mamba`].
    Mamba(MambaConfig),
    /// See [`crate::rwkv5`].
    Rwkv5(Rwkv5Config),
    /// See [`crate::rwkv6`].
    Rwkv6(Rwkv6Config),
    /// See [`crate::gru`].
    Gru(GruConfig),
    /// See [`crate::mingru`].
    MinGru(MinGruConfig),
    /// See [`crate::deltanet`].
    DeltaNet(DeltaNetConfig),
    /// See [`crate::transformer`].
    Transformer(TransformerConfig),
}

impl ModelConfig {
    /// The values of `arch`.
    pub const ARCHITECTURES: [&'static str; 10] =
        ["rnn", "lstm", "gru", "mingru", "s4", "mamba", "rwkv5", "rwkv6", "deltanet", "transformer"];

    /// The architecture's name.
    pub fn arch(&self) -> &'static str {
        match self {
            Self::Rnn(_) => "rnn",
            Self::Lstm(_) => "lstm",
            Self::S4(_) => "s4",
            Self::Mamba(_) => "mamba",
            Self::Rwkv5(_) => "rwkv5",
            Self::Rwkv6(_) => "rwkv6",
            Self::Gru(_) => "gru",
            Self::MinGru(_) => "mingru",
            Self::DeltaNet(_) => "deltanet",
            Self::Transformer(_) => "transformer",
        }
    }

    /// Width of the residual stream or of the recurrent state.
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Rnn(c) => c.hidden_size,
            Self::Lstm(c) => c.hidden_size,
            Self::S4(c) => c.hidden_size,
            Self::Mamba(c) => c.hidden_size,
            Self::Rwkv5(c) => c.hidden_size,
            Self::Rwkv6(c) => c.hidden_size,
            Self::Gru(c) => c.hidden_size,
            Self::MinGru(c) => c.hidden_size,
            Self::DeltaNet(c) => c.hidden_size,
            Self::Transformer(c) => c.hidden_size,
        }
    }

    /// Layers or blocks.
    pub fn num_layers(&self) -> usize {
        match self {
            Self::Rnn(c) => c.num_layers,
            Self::Lstm(c) => c.num_layers,
            Self::S4(c) => c.num_layers,
            Self::Mamba(c) => c.num_layers,
            Self::Rwkv5(c) => c.num_layers,
            Self::Rwkv6(c) => c.num_layers,
            Self::Gru(c) => c.num_layers,
            Self::MinGru(c) => c.num_layers,
            Self::DeltaNet(c) => c.num_layers,
            Self::Transformer(c) => c.num_layers,
        }
    }

    /// The name of the positional embedding; `none` for recurrent models, which need no positions.
    pub fn positional_embedding(&self) -> &'static str {
        match self {
            Self::Transformer(c) => c.positional_embedding.name(),
            _ => "none",
        }
    }

    /// How the positions of a batch are to be made.
    pub fn augmentation(&self) -> Augmentation {
        match self {
            Self::Transformer(c) => c.position_augmentation(),
            _ => Augmentation::None,
        }
    }

    /// Whether a training step drops anything: rows that are equal are not treated equally then.
    pub fn has_dropout(&self) -> bool {
        match self {
            // Between layers.
            Self::Rnn(RnnConfig { dropout, num_layers, .. })
            | Self::Lstm(LstmConfig { dropout, num_layers, .. })
            | Self::Gru(GruConfig { dropout, num_layers, .. }) => *dropout > 0.0 && *num_layers > 1,
            Self::S4(S4Config { dropout, .. })
            | Self::Rwkv5(Rwkv5Config { dropout, .. })
            | Self::Rwkv6(Rwkv6Config { dropout, .. })
            | Self::MinGru(MinGruConfig { dropout, .. })
            | Self::DeltaNet(DeltaNetConfig { dropout, .. }) => *dropout > 0.0,
            Self::Mamba(_) => false,
            Self::Transformer(c) => [c.embd_pdrop, c.attn_pdrop, c.resid_pdrop].iter().any(|p| *p > 0.0),
        }
    }

    /// How the positions of the batches of a run are made; `draw` is the step.
    pub fn positions(&self, seed: u64, draw: u64) -> PositionScheme {
        let max_position_embeddings = self.max_position_embeddings().unwrap_or(0);
        PositionScheme { augmentation: self.augmentation(), max_position_embeddings, seed, draw }
    }

    /// The table size that positions are drawn from; `None` for models without positions.
    pub fn max_position_embeddings(&self) -> Option<usize> {
        match self {
            Self::Transformer(c) => Some(c.max_position_embeddings),
            _ => None,
        }
    }

    /// The longest sequence, counted from position 0, that the model's position table covers; `None` without a table.
    pub fn max_length(&self) -> Option<usize> {
        match self {
            Self::Transformer(c) => c.position_limit(),
            _ => None,
        }
    }

    /// Refuses a batch whose positions the model cannot take: past the rows of its table, or of the wrong kind.
    pub fn check(&self, batch: &Batch) -> Result<(), InputError> {
        match self {
            Self::Transformer(c) => c.check(batch),
            _ => Ok(()),
        }
    }

    /// Refuses a vocabulary that contradicts the settings: a frozen null embedding is that of token 0, `<null>`.
    pub fn check_vocabulary(&self, vocabulary: &Vocabulary) -> Result<(), ConfigError> {
        let freezes_null = match self {
            Self::Rnn(c) => c.freeze_null_embedding,
            Self::Lstm(c) => c.freeze_null_embedding,
            Self::S4(c) => c.freeze_null_embedding,
            Self::Transformer(c) => c.freeze_null_embedding,
            _ => false,
        };
        match vocabulary.token(0) {
            Some("<null>") => Ok(()),
            Some(other) if freezes_null => Err(ConfigError::new(
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
        match self {
            Self::Rnn(c) => {
                check_dropout(c.dropout).and_then(|()| check_embeddings(c.tie_word_embeddings, c.freeze_null_embedding))
            }
            Self::Lstm(c) => {
                check_dropout(c.dropout).and_then(|()| check_embeddings(c.tie_word_embeddings, c.freeze_null_embedding))
            }
            Self::S4(c) => check_dropout(c.dropout).and_then(|()| c.validate()),
            Self::Mamba(c) => c.validate(),
            Self::Rwkv5(c) => check_dropout(c.dropout).and_then(|()| c.validate()),
            Self::Rwkv6(c) => check_dropout(c.dropout).and_then(|()| c.validate()),
            Self::Gru(c) => check_dropout(c.dropout),
            Self::MinGru(c) => check_dropout(c.dropout),
            Self::DeltaNet(c) => check_dropout(c.dropout).and_then(|()| c.validate()),
            Self::Transformer(c) => c.validate(),
        }
    }
}

fn check_dropout(p: f64) -> Result<(), ConfigError> {
    if (0.0..1.0).contains(&p) {
        return Ok(());
    }
    Err(ConfigError::new("dropout", format!("{p} is not a probability below 1")))
}

pub(crate) fn check_embeddings(tied: bool, null_frozen: bool) -> Result<(), ConfigError> {
    if tied && null_frozen {
        let reason = "the decoder cannot be an embedding of which a part is frozen (freeze_null_embedding); choose one";
        return Err(ConfigError::new("tie_word_embeddings", reason));
    }
    Ok(())
}
