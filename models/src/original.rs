//! Settings of the published PyTorch code of arXiv 2405.20131, a run's `config.json`, as ours.
//!
//! One function per architecture says which of its fields becomes which of our keys. A value that our models cannot
//! express is an error that names the field; a field that no model depends on is listed, so that nothing is passed over in
//! silence.

use crate::ModelConfig;
use crate::lstm::LstmConfig;
use crate::mamba::{MambaConfig, RMS_NORM_EPSILON};
use crate::rnn::RnnConfig;
use crate::rwkv5::Rwkv5Config;
use crate::rwkv6::Rwkv6Config;
use crate::s4::S4Config;
use crate::transformer::{AbsoluteInit, PositionalEmbedding, TransformerConfig};
use data::Augmentation;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Debug;

/// What a `config.json` says.
#[derive(Debug, Clone, PartialEq)]
pub struct Original {
    /// The `[model]` table.
    pub model: ModelConfig,
    /// The task's name.
    pub task: Option<String>,
    /// The tokens in id order.
    pub vocab: Option<Vec<String>>,
    /// The seed of the run.
    pub seed: Option<u64>,
    /// The fields that nothing here depends on: paths, logging, the training recipe.
    pub unused: Vec<String>,
    /// What a reader of the original config might not expect.
    pub notes: Vec<String>,
}

/// A `config.json` that cannot be expressed.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct OriginalError {
    /// The field of the `config.json`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Original {
    /// Reads the fields of a `config.json`.
    pub fn new(config: &Value) -> Result<Self, OriginalError> {
        let Value::Object(map) = config else { return Err(error("config.json", "it is not a JSON object")) };
        let fields = Fields { map, seen: RefCell::default(), notes: RefCell::default() };
        // `arch` is a field of collected configs; in a run, `model` names the architecture of all but the Transformer.
        let arch = fields.text("arch")?.or(fields.text("model")?).unwrap_or_else(|| "transformer".into());
        fields.text("model")?;
        let model = match arch.to_lowercase().as_str() {
            "rnn" => rnn(&fields)?,
            "lstm" => lstm(&fields)?,
            "s4" => s4(&fields)?,
            "mamba" => mamba(&fields)?,
            "rwkv" => rwkv(&fields)?,
            "transformer" => transformer(&fields)?,
            _ => return Err(error("arch", format!("`{arch}` is not an architecture of this program"))),
        };
        model.validate().map_err(|e| error(e.key, e.reason))?;
        let (task, vocab, seed) = (fields.text("task")?, fields.get("vocab")?, fields.get("seed")?);
        let unused = map.keys().filter(|key| !fields.seen.borrow().contains(*key)).cloned().collect();
        Ok(Self { model, task, vocab, seed, unused, notes: fields.notes.into_inner() })
    }
}

fn rnn(f: &Fields<'_>) -> Result<ModelConfig, OriginalError> {
    Ok(ModelConfig::Rnn(RnnConfig {
        hidden_size: f.required("hidden_size")?,
        num_layers: f.required("num_hidden_layers")?,
        dropout: f.get("dropout")?.unwrap_or(0.0),
        tie_word_embeddings: f.flag("tie_word_embeddings")?,
        freeze_null_embedding: f.flag("freeze_null_emb")?,
    }))
}

fn lstm(f: &Fields<'_>) -> Result<ModelConfig, OriginalError> {
    Ok(ModelConfig::Lstm(LstmConfig {
        hidden_size: f.required("hidden_size")?,
        num_layers: f.required("num_hidden_layers")?,
        dropout: f.get("dropout")?.unwrap_or(0.0),
        tie_word_embeddings: f.flag("tie_word_embeddings")?,
        freeze_null_embedding: f.flag("freeze_null_emb")?,
    }))
}

fn s4(f: &Fields<'_>) -> Result<ModelConfig, OriginalError> {
    Ok(ModelConfig::S4(S4Config {
        hidden_size: f.required("hidden_size")?,
        num_layers: f.required("num_hidden_layers")?,
        dropout: f.get("dropout")?.unwrap_or(0.0),
        kernel_length: f.required("max_seq_len")?,
        tie_word_embeddings: f.flag("tie_word_embeddings")?,
        freeze_null_embedding: f.flag("freeze_null_emb")?,
    }))
}

fn mamba(f: &Fields<'_>) -> Result<ModelConfig, OriginalError> {
    f.only("rms_norm", &true)?;
    f.only("tie_word_embeddings", &true)?;
    f.only("norm_epsilon", &RMS_NORM_EPSILON)?;
    let default = MambaConfig::default();
    Ok(ModelConfig::Mamba(MambaConfig {
        hidden_size: f.required("hidden_size")?,
        num_layers: f.required("num_hidden_layers")?,
        state_size: f.get("d_state")?.unwrap_or(default.state_size),
        conv_kernel: f.get("d_conv")?.unwrap_or(default.conv_kernel),
        expand: f.get("expand")?.unwrap_or(default.expand),
    }))
}

fn rwkv(f: &Fields<'_>) -> Result<ModelConfig, OriginalError> {
    let hidden_size = f.required("hidden_size")?;
    let num_layers = f.required("num_hidden_layers")?;
    let head_size = f.get("head_size_a")?.unwrap_or(64);
    let dropout = f.get("dropout")?.unwrap_or(0.0);
    f.only("head_size_divisor", &8)?;
    f.only("dim_att", &hidden_size)?;
    f.only("dim_ffn", &(hidden_size * 7 / 2 / 32 * 32))?;
    match f.text("my_testing")?.as_deref() {
        Some("x052") => Ok(ModelConfig::Rwkv5(Rwkv5Config { hidden_size, num_layers, head_size, dropout })),
        None | Some("x060") => Ok(ModelConfig::Rwkv6(Rwkv6Config { hidden_size, num_layers, head_size, dropout })),
        Some(other) => Err(error("my_testing", format!("`{other}` is not supported; x052 and x060 are"))),
    }
}

fn transformer(f: &Fields<'_>) -> Result<ModelConfig, OriginalError> {
    f.only("activation_function", &String::from("relu"))?;
    let positional_embedding = positional_embedding(f)?;
    if f.flag("absolute_posemb_initfromsine")? {
        f.note(
            "absolute_posemb_initfromsine had no effect in the original (its table was overwritten) and has none here",
        );
    }
    Ok(ModelConfig::Transformer(TransformerConfig {
        hidden_size: f.required("hidden_size")?,
        num_layers: f.required("num_hidden_layers")?,
        num_heads: f.required("num_attention_heads")?,
        mlp_ratio: f.get("mlp_dim_multipler")?.unwrap_or(4), // sic
        positional_embedding,
        augmentation: augmentation(f, positional_embedding)?,
        max_position_embeddings: f.required("max_position_embeddings")?,
        absolute_freeze: f.flag("absolute_posemb_freeze")? && positional_embedding == PositionalEmbedding::Absolute,
        absolute_init: AbsoluteInit::Normal,
        scale_attn_weights: f.get("scale_attn_weights")?.unwrap_or(true),
        scale_attn_by_inverse_layer_idx: f.get("scale_attn_by_inverse_layer_idx")?.unwrap_or(true),
        must_attend_to_identity: f.flag("must_attend_to_identity")?,
        tie_word_embeddings: f.flag("tie_word_embeddings")?,
        freeze_null_embedding: f.flag("freeze_null_emb")?,
        layer_norm_epsilon: f.get("layer_norm_epsilon")?.unwrap_or(1e-5),
        embd_pdrop: f.get("embd_pdrop")?.unwrap_or(0.0),
        attn_pdrop: f.get("attn_pdrop")?.unwrap_or(0.0),
        resid_pdrop: f.get("resid_pdrop")?.unwrap_or(0.0),
    }))
}

fn positional_embedding(f: &Fields<'_>) -> Result<PositionalEmbedding, OriginalError> {
    let mut found = PositionalEmbedding::None;
    for (field, embedding) in [
        ("absolute_posemb", PositionalEmbedding::Absolute),
        ("sinusoidal_posemb", PositionalEmbedding::Sinusoidal),
        ("rotary_posemb", PositionalEmbedding::Rope),
        ("scaler_posemb", PositionalEmbedding::Scalar),
    ] {
        if f.flag(field)? {
            if found != PositionalEmbedding::None {
                let reason = format!("a second positional embedding beside {}; a model here has one", found.name());
                return Err(error(field, reason));
            }
            found = embedding;
        }
    }
    Ok(found)
}

/// Any flag of any positional embedding decides, whether or not the embedding is on: shift before randomized, and scalar
/// positions last.
fn augmentation(f: &Fields<'_>, positions: PositionalEmbedding) -> Result<Augmentation, OriginalError> {
    let shift = f.any(&["absolute_posemb_shift", "rotary_posemb_shift", "sinusoidal_posemb_shift"])?;
    let randomized = f.any(&["absolute_posemb_rdmz", "rotary_posemb_rdmz"])?;
    let scaler_shift = f.flag("scaler_posemb_shift")?;
    let chosen = match positions {
        PositionalEmbedding::None => Augmentation::None,
        PositionalEmbedding::Scalar if scaler_shift => Augmentation::Shift,
        PositionalEmbedding::Scalar => Augmentation::None,
        _ if shift => Augmentation::Shift,
        _ if randomized => Augmentation::Randomized,
        _ => Augmentation::None,
    };
    if positions == PositionalEmbedding::Scalar && (shift || randomized) {
        let reason = "the shift or rdmz flag of another embedding would give scalar positions integers";
        return Err(error("scaler_posemb", reason));
    }
    f.get::<Value>("augmentation")?; // a name for the same in collected configs
    Ok(chosen)
}

/// The fields of a `config.json`, and which of them have been asked for.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    seen: RefCell<BTreeSet<String>>,
    notes: RefCell<Vec<String>>,
}

impl Fields<'_> {
    /// The field's value; `None` where it is missing or null.
    fn get<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>, OriginalError> {
        self.seen.borrow_mut().insert(field.to_owned());
        let value = self.map.get(field).filter(|value| !value.is_null());
        value.map(|v| T::deserialize(v).map_err(|e| error(field, e.to_string()))).transpose()
    }

    fn required<T: DeserializeOwned>(&self, field: &str) -> Result<T, OriginalError> {
        self.get(field)?.ok_or_else(|| error(field, "the field is missing"))
    }

    fn text(&self, field: &str) -> Result<Option<String>, OriginalError> {
        self.get(field)
    }

    /// A switch that is off where it is missing.
    fn flag(&self, field: &str) -> Result<bool, OriginalError> {
        Ok(self.get(field)?.unwrap_or(false))
    }

    fn any(&self, fields: &[&str]) -> Result<bool, OriginalError> {
        fields.iter().try_fold(false, |any, field| Ok(self.flag(field)? || any))
    }

    /// Refuses any other value of the field.
    fn only<T: DeserializeOwned + PartialEq + Debug>(&self, field: &str, supported: &T) -> Result<(), OriginalError> {
        match self.get::<T>(field)? {
            Some(other) if other != *supported => {
                Err(error(field, format!("{other:?} is not supported; only {supported:?} is")))
            }
            _ => Ok(()),
        }
    }

    fn note(&self, note: &str) {
        self.notes.borrow_mut().push(note.to_owned());
    }
}

fn error(field: impl Into<String>, reason: impl Into<String>) -> OriginalError {
    OriginalError { field: field.into(), reason: reason.into() }
}
