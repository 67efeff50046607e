//! Settings of published PyTorch code, a `config.json`, as ours.
//!
//! For that of arXiv 2405.20131, one function per architecture says here which of its fields becomes which of our keys; for
//! other code, [`Architecture::original`](crate::Architecture::original). A value that our models cannot
//! express is an error that names the field; a field that no model depends on is listed, so that nothing is ignored
//! silently.

use crate::ModelConfig;
use crate::hybrid::HybridConfig;
use crate::lstm::LstmConfig;
use crate::mamba::{MambaConfig, RMS_NORM_EPSILON};
use crate::rnn::RnnConfig;
use crate::rwkv5::Rwkv5Config;
use crate::rwkv6::Rwkv6Config;
use crate::rwkv7::Rwkv7Config;
use crate::s4::S4Config;
use crate::transformer::{AbsoluteInit, PositionalEmbedding, TransformerConfig};
use data::Augmentation;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt::Debug;

/// The settings of a `config.json`.
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
    /// Differences that a reader of the original config might not expect.
    pub notes: Vec<String>,
}

/// A `config.json` that cannot be expressed.
#[derive(Debug, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct OriginalError {
    /// The field of the `config.json`.
    pub field: String,
    /// The problem.
    pub reason: String,
}

impl Original {
    /// Reads a `config.json`: as JSON, or as almost JSON: NaN and Infinity, a byte order mark, UTF-16, comments,
    /// trailing commas.
    pub fn read(bytes: &[u8]) -> Result<Self, OriginalError> {
        let text = decoded(bytes)?;
        let strict = serde_json::from_str(&text);
        // For a file that is not even nearly JSON, the strict parser's error points at the right place.
        let config = strict.or_else(|e| serde_json::from_str(&plain_json(&text)).map_err(|_| e));
        Self::new(&config.map_err(|e| error("config.json", format!("it is not JSON: {e}")))?)
    }

    /// Reads the fields of a `config.json`.
    pub fn new(config: &Value) -> Result<Self, OriginalError> {
        let Value::Object(map) = config else { return Err(error("config.json", "it is not a JSON object")) };
        let map = &of_mamba_ssm(map)?;
        let fields = Fields { map, seen: RefCell::default(), notes: RefCell::default() };
        // `arch` is a field of collected configs; in a run, `model` names the architecture of all but the Transformer.
        // Hugging Face's configs have `model_type`, which is not the architecture in others.
        let (arch, model, kind) = (fields.text("arch")?, fields.text("model")?, fields.text("model_type")?);
        let kind = kind.filter(|kind| ModelConfig::kind(own_name(kind)).is_some());
        let arch = arch.or(model).or(kind).unwrap_or_else(|| "transformer".into());
        let model = match arch.to_lowercase().as_str() {
            "rnn" => rnn(&fields)?,
            "lstm" => lstm(&fields)?,
            "s4" => s4(&fields)?,
            "mamba" => mamba(&fields)?,
            "rwkv" => rwkv(&fields)?,
            "transformer" => transformer(&fields)?,
            // flash-linear-attention's models with some layers of attention
            name if fields.map.get("attn").is_some_and(|attention| !attention.is_null()) => {
                ModelConfig::Hybrid(HybridConfig::with_attention(own_name(name), &fields)?)
            }
            name => match ModelConfig::kind(own_name(name)).and_then(|kind| (kind.original)(&fields)) {
                Some(config) => config?,
                None => return Err(error("arch", format!("`{arch}` is not an architecture that can be imported"))),
            },
        };
        model.validate().map_err(|e| error(e.key, e.reason))?;
        let (task, vocab, seed) = (fields.text("task")?, fields.get("vocab")?, fields.seed()?);
        let vocab = match (vocab, fields.get::<usize>("vocab_size")?) {
            (None, Some(size)) if task.is_none() => Some(numbered(size)?),
            (vocab, _) => vocab,
        };
        let unused = map.keys().filter(|key| !fields.seen.borrow().contains(*key)).cloned().collect();
        Ok(Self { model, task, vocab, seed, unused, notes: fields.notes.into_inner() })
    }
}

/// The most tokens that ids can tell apart.
const MOST_TOKENS: usize = 1 << 16;

/// Tokens of a config that says only how many there are.
fn numbered(size: usize) -> Result<Vec<String>, OriginalError> {
    match size {
        1..=MOST_TOKENS => Ok((0..size).map(|id| id.to_string()).collect()),
        _ => Err(error("vocab_size", format!("{size} is not between 1 and {MOST_TOKENS}"))),
    }
}

/// The fields of mamba_ssm's `MambaConfig` under the names that the others have: its layer and the layer's options are in
/// `ssm_cfg`, and the tables have more rows than there are tokens. Other configs are returned as they are.
fn of_mamba_ssm(map: &Map<String, Value>) -> Result<Map<String, Value>, OriginalError> {
    if !(map.contains_key("d_model") && map.contains_key("n_layer")) {
        return Ok(map.clone());
    }
    const OPTIONS: [&str; 6] = ["d_state", "d_conv", "expand", "headdim", "ngroups", "chunk_size"];
    let mut out: Map<String, Value> =
        map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
    for (theirs, ours) in
        [("d_model", "hidden_size"), ("n_layer", "num_hidden_layers"), ("tie_embeddings", "tie_word_embeddings")]
    {
        if let Some(value) = out.remove(theirs) {
            if out.contains_key(ours) {
                return Err(error(ours, format!("it is given beside {theirs}, which means the same")));
            }
            out.insert(ours.into(), value);
        }
    }
    let mut layer = "Mamba1".to_owned();
    if let Some(options) = out.remove("ssm_cfg") {
        let Value::Object(options) = options else { return Err(error("ssm_cfg", "it is not a JSON object")) };
        for (name, value) in options {
            match (name.as_str(), value) {
                ("layer", Value::String(name)) => layer = name,
                (name, value) if OPTIONS.contains(&name) => drop(out.insert(name.into(), value)),
                (name, value) => return Err(error("ssm_cfg", format!("{name} = {value} is not supported"))),
            }
        }
    }
    let arch = match layer.as_str() {
        "Mamba1" => "mamba",
        "Mamba2" => "mamba2",
        other => return Err(error("ssm_cfg", format!("the layer `{other}` is neither Mamba1 nor Mamba2"))),
    };
    if out.get("arch").is_some_and(|said| said != arch) {
        return Err(error("arch", format!("ssm_cfg says {layer}, which is {arch}")));
    }
    out.insert("arch".into(), arch.into());
    if out.remove("attn_layer_idx").is_some_and(|layers| layers != Value::Array(vec![])) {
        return Err(error("attn_layer_idx", "layers of attention are not supported"));
    }
    out.remove("attn_cfg");
    if out.remove("d_intermediate").is_some_and(|size| size.as_f64() != Some(0.0)) {
        return Err(error("d_intermediate", "an MLP in each block is not supported"));
    }
    let mut number = |field: &str| match out.remove(field) {
        None => Ok(None),
        Some(value) => {
            let whole = value.as_f64().filter(|n| n.fract() == 0.0 && (1.0..=1e9).contains(n));
            let whole = whole.ok_or_else(|| error(field, format!("{value} is no whole number from 1 on")))?;
            Ok(Some(whole as u64))
        }
    };
    let (size, multiple) = (number("vocab_size")?, number("pad_vocab_size_multiple")?.unwrap_or(8));
    if let Some(size) = size {
        out.insert("vocab_size".into(), size.next_multiple_of(multiple).into());
    }
    Ok(out)
}

/// What an architecture of published code is called here.
fn own_name(name: &str) -> &str {
    match name {
        "gated_deltaproduct" => "gated_deltanet", // with one correction, they are the same
        name => name,
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
        negative_eigenvalues: false,
    }))
}

fn rwkv(f: &Fields<'_>) -> Result<ModelConfig, OriginalError> {
    let version = f.text("my_testing")?;
    if version.as_deref() == Some("x070") {
        return Rwkv7Config::of(f).map(ModelConfig::Rwkv7);
    }
    let hidden_size = f.required("hidden_size")?;
    let num_layers = f.required("num_hidden_layers")?;
    let head_size = f.get("head_size_a")?.unwrap_or(64);
    let dropout = f.get("dropout")?.unwrap_or(0.0);
    f.only("head_size_divisor", &8)?;
    f.only("dim_att", &hidden_size)?;
    f.only("dim_ffn", &(hidden_size * 7 / 2 / 32 * 32))?;
    match version.as_deref() {
        Some("x052") => Ok(ModelConfig::Rwkv5(Rwkv5Config { hidden_size, num_layers, head_size, dropout })),
        None | Some("x060") => Ok(ModelConfig::Rwkv6(Rwkv6Config { hidden_size, num_layers, head_size, dropout })),
        Some(other) => Err(error("my_testing", format!("`{other}` is not supported; x052, x060 and x070 are"))),
    }
}

fn transformer(f: &Fields<'_>) -> Result<ModelConfig, OriginalError> {
    f.only("activation_function", &String::from("relu"))?;
    let positional_embedding = positional_embedding(f)?;
    let default = TransformerConfig::default();
    // Only a table has this size; configs without one may leave it out.
    let has_table = matches!(positional_embedding, PositionalEmbedding::Absolute | PositionalEmbedding::Sinusoidal);
    let max_position_embeddings = match f.get("max_position_embeddings")? {
        Some(positions) => positions,
        None if has_table => f.required("max_position_embeddings")?,
        None => default.max_position_embeddings,
    };
    if f.flag("absolute_posemb_initfromsine")? {
        f.note(
            "absolute_posemb_initfromsine had no effect in the original (its table was overwritten) and has none here",
        );
    }
    // Options of other schemes have no meaning.
    let is = |scheme: &str| positional_embedding.name() == scheme;
    let of = |scheme, field| if is(scheme) { f.get::<usize>(field) } else { Ok(None) };
    let number = |scheme, field| if is(scheme) { f.get::<f64>(field) } else { Ok(None) };
    Ok(ModelConfig::Transformer(TransformerConfig {
        hidden_size: f.required("hidden_size")?,
        num_layers: f.required("num_hidden_layers")?,
        iterations: f.get("iterations")?.unwrap_or(default.iterations),
        input_injection: f.flag("input_injection")?,
        causal: f.map.get("causal").is_none_or(Value::is_null) || f.flag("causal")?,
        norm_first: f.map.get("norm_first").is_none_or(Value::is_null) || f.flag("norm_first")?,
        scale_embeddings: f.flag("scale_embeddings")?,
        weight_init: default.weight_init,
        num_heads: f.required("num_attention_heads")?,
        mlp_ratio: f.get("mlp_dim_multipler")?.unwrap_or(4), // sic
        positional_embedding,
        augmentation: augmentation(f, positional_embedding)?,
        max_position_embeddings,
        absolute_freeze: f.flag("absolute_posemb_freeze")? && positional_embedding == PositionalEmbedding::Absolute,
        absolute_init: AbsoluteInit::Normal,
        t5_buckets: of("t5", "num_buckets")?.unwrap_or(default.t5_buckets),
        t5_max_distance: of("t5", "max_distance")?.unwrap_or(default.t5_max_distance),
        fire_width: of("fire", "fire_mlp_width")?.unwrap_or(default.fire_width),
        fire_init_c: number("fire", "fire_init_c")?.unwrap_or(default.fire_init_c),
        fire_init_length: number("fire", "fire_init_L")?.unwrap_or(default.fire_init_length),
        cope_positions: of("cope", "cope_npos")?.unwrap_or(default.cope_positions),
        ssmax_init: number("ssmax", "ssmax_init")?.unwrap_or(default.ssmax_init),
        logn_clip_train_length: of("logn_clip", "logn_train_len")?.unwrap_or(default.logn_clip_train_length),
        attention_windows: f.get("attention_windows")?.unwrap_or_default(),
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

/// The scheme that `position` names, or the one whose flag is set.
fn positional_embedding(f: &Fields<'_>) -> Result<PositionalEmbedding, OriginalError> {
    let mut found = match f.text("position")?.as_deref() {
        None | Some("nope") => PositionalEmbedding::None,
        Some(name) => *PositionalEmbedding::ALL.iter().find(|scheme| scheme.name() == name).ok_or_else(|| {
            let names: Vec<&str> = PositionalEmbedding::ALL.iter().map(|scheme| scheme.name()).collect();
            error("position", format!("`{name}` is not a positional embedding of this program: {}", names.join(", ")))
        })?,
    };
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

/// Any flag of any positional embedding decides, whether or not the embedding is on: shift before randomized, and
/// scalar positions last.
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

/// The fields of a `config.json`, and which of them have been read.
#[derive(Debug)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    seen: RefCell<BTreeSet<String>>,
    notes: RefCell<Vec<String>>,
}

impl Fields<'_> {
    /// The field's value; `None` where it is missing or null.
    pub(crate) fn get<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>, OriginalError> {
        self.seen.borrow_mut().insert(field.to_owned());
        let value = self.map.get(field).filter(|value| !value.is_null());
        let read = |value| {
            // 32.0 is 32 where a whole number is expected.
            let whole = |e| integer_of(value).and_then(|whole| T::deserialize(whole).ok()).ok_or(e);
            T::deserialize(value).or_else(whole).map_err(|e| error(field, e.to_string()))
        };
        value.map(read).transpose()
    }

    /// The seed. The file may hold a larger one than a run's config can.
    fn seed(&self) -> Result<Option<u64>, OriginalError> {
        let too_large = |seed: &Value| seed.as_f64().is_some_and(|seed| seed >= i64::MAX as f64);
        match self.get::<Value>("seed")? {
            Some(seed) if too_large(&seed) && seed.as_i64().is_none() => {
                Err(error("seed", format!("{seed}: seeds go up to {}", i64::MAX)))
            }
            _ => self.get("seed"),
        }
    }

    pub(crate) fn required<T: DeserializeOwned>(&self, field: &str) -> Result<T, OriginalError> {
        self.get(field)?.ok_or_else(|| error(field, "the field is missing"))
    }

    fn text(&self, field: &str) -> Result<Option<String>, OriginalError> {
        self.get(field)
    }

    /// A flag; false where it is missing.
    pub(crate) fn flag(&self, field: &str) -> Result<bool, OriginalError> {
        let switch = match self.map.get(field).and_then(Value::as_f64) {
            Some(0.0) => Some(false),
            Some(1.0) => Some(true),
            _ => return Ok(self.get(field)?.unwrap_or(false)),
        };
        self.seen.borrow_mut().insert(field.to_owned());
        Ok(switch.unwrap_or(false))
    }

    fn any(&self, fields: &[&str]) -> Result<bool, OriginalError> {
        fields.iter().try_fold(false, |any, field| Ok(self.flag(field)? || any))
    }

    /// Refuses any value of the field.
    pub(crate) fn absent(&self, field: &str) -> Result<(), OriginalError> {
        match self.get::<Value>(field)? {
            Some(value) => Err(error(field, format!("{value} is not supported; only null is"))),
            None => Ok(()),
        }
    }

    /// A config of this program, whose keys are fields of the same names; those that are missing have their defaults.
    pub(crate) fn own<C: DeserializeOwned>(&self, keys: &[&str]) -> Result<C, OriginalError> {
        let mut config = Map::new();
        for key in keys {
            config.extend(self.get::<Value>(key)?.map(|value| ((*key).to_owned(), value)));
        }
        serde_json::from_value(Value::Object(config)).map_err(|e| error("config.json", e.to_string()))
    }

    /// Refuses any other value of the field.
    pub(crate) fn only<T: DeserializeOwned + PartialEq + Debug>(
        &self,
        field: &str,
        supported: &T,
    ) -> Result<(), OriginalError> {
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

/// A whole number that is written with a fraction of zero.
fn integer_of(value: &Value) -> Option<Value> {
    const EXACT: f64 = 9e15; // every whole number below is a float
    let number = value.as_f64().filter(|_| value.is_f64())?;
    (number.fract() == 0.0 && number.abs() < EXACT).then(|| Value::from(number as i64))
}

/// The text of a file in UTF-8 or, with its mark, UTF-16.
fn decoded(bytes: &[u8]) -> Result<String, OriginalError> {
    let wide = |order: fn([u8; 2]) -> u16| {
        let units = bytes.as_chunks::<2>().0.iter().skip(1).map(|pair| order(*pair));
        char::decode_utf16(units).collect::<Result<String, _>>().map_err(|e| e.to_string())
    };
    let text = match bytes {
        [0xff, 0xfe, ..] => wide(u16::from_le_bytes),
        [0xfe, 0xff, ..] => wide(u16::from_be_bytes),
        _ => std::str::from_utf8(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes))
            .map(str::to_owned)
            .map_err(|e| e.to_string()),
    };
    text.map_err(|e| error("config.json", format!("it is not text: {e}")))
}

/// JSON from almost JSON. NaN and the infinities become strings, so that a field that no model depends on may
/// have them, and one of a model is refused by name.
fn plain_json(text: &str) -> String {
    const WORDS: [&str; 4] = ["NaN", "-NaN", "Infinity", "-Infinity"];
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = WORDS.iter().find(|word| rest.starts_with(**word));
        let (taken, written): (usize, &str) = if first == '"' {
            let n = string_length(rest);
            (n, &rest[..n])
        } else if let Some(word) = word {
            plain.push('"');
            plain.push_str(word);
            (word.len(), "\"")
        } else if rest.starts_with("//") || first == '#' {
            (rest.find('\n').unwrap_or(rest.len()), "")
        } else if let Some(comment) = rest.strip_prefix("/*") {
            (comment.find("*/").map_or(rest.len(), |end| end + 4), " ")
        } else {
            if matches!(first, '}' | ']') {
                let kept = plain.trim_end();
                if kept.ends_with(',') {
                    plain.truncate(kept.len() - 1);
                }
            }
            (first.len_utf8(), &rest[..first.len_utf8()])
        };
        plain.push_str(written);
        rest = &rest[taken..];
    }
    plain
}

/// The bytes of the string literal with which a text begins, both quotes included.
fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (i, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            b'"' if !escaped => return i + 1,
            b'\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_nearly_json_becomes_json() {
        for (text, plain) in [
            (r#"{"a": NaN, "b": [-Infinity, 1]}"#, r#"{"a": "NaN", "b": ["-Infinity", 1]}"#),
            (r#"{"NaN // # /*": "a\"\\", "b": Infinity}"#, r#"{"NaN // # /*": "a\"\\", "b": "Infinity"}"#),
            ("{\"a\": 1, // one\n # two\n /* three */ \"b\": 2,\n}", "{\"a\": 1, \n \n   \"b\": 2}"),
            ("[1, 2, ]", "[1, 2]"),
            ("\"ends", "\"ends"),
            ("/* ends", " "),
            ("ü", "ü"),
        ] {
            assert_eq!(plain_json(text), plain);
        }
    }

    /// The fields that mamba_ssm's and flash-linear-attention's classes save, values as in published checkpoints.
    #[test]
    fn configs_as_the_classes_of_published_code_save_them() {
        let mamba_ssm = |layer: &str| {
            format!(
                r#"{{"d_model": 768, "d_intermediate": 0, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {{{layer}}},
                "attn_layer_idx": [], "attn_cfg": {{}}, "rms_norm": true, "residual_in_fp32": true,
                "fused_add_norm": true, "pad_vocab_size_multiple": 16, "tie_embeddings": true}}"#
            )
        };
        let fla = |kind: &str, own: &str| {
            format!(
                r#"{{"architectures": ["{kind}"], "model_type": "{kind}", "hidden_size": 1024, "num_hidden_layers": 24,
                "intermediate_size": null, "hidden_ratio": 4, "hidden_act": "swish", "norm_eps": 1e-6, "use_cache": true,
                "initializer_range": 0.02, "tie_word_embeddings": false, "vocab_size": 32000, "fuse_norm": true,
                "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16", {own}}}"#
            )
        };
        for (config, arch, tokens) in [
            (mamba_ssm(r#""layer": "Mamba2""#), "mamba2", 50288),
            (mamba_ssm(""), "mamba", 50288),
            (
                fla(
                    "gla",
                    r#""attn_mode": "chunk", "num_heads": 4, "num_kv_heads": null, "expand_k": 0.5, "expand_v": 1,
                    "clamp_min": null, "feature_map": null, "use_gk": true, "use_gv": false, "use_output_gate": true,
                    "use_short_conv": false, "conv_size": 4, "elementwise_affine": true"#,
                ),
                "gla",
                32000,
            ),
            (
                fla("hgrn2", r#""attn_mode": "chunk", "expand_ratio": 128, "use_short_conv": false, "conv_size": 4"#),
                "hgrn2",
                32000,
            ),
            (
                fla(
                    "gated_deltanet",
                    r#""attn_mode": "chunk", "num_heads": 6, "head_dim": 256, "expand_v": 2,
                    "use_gate": true, "use_short_conv": true, "conv_size": 4"#,
                ),
                "gated_deltanet",
                32000,
            ),
        ] {
            let read = Original::read(config.as_bytes()).unwrap();
            assert_eq!((read.model.arch(), read.model.num_layers()), (arch, 24));
            assert_eq!(read.vocab.map(|vocab| (vocab.len(), vocab[7].clone())), Some((tokens, "7".into())), "{arch}");
        }
        for (changed, field) in [
            (r#""layer": "Mamba3""#, "ssm_cfg"),
            (r#""dt_rank": 7"#, "ssm_cfg"),
            (r#"}, "hidden_size": 768, "x": {"#, "hidden_size"),
            (r#""d_state": 16}, "attn_layer_idx": [3], "x": {"#, "attn_layer_idx"),
        ] {
            let config = mamba_ssm(changed);
            let config = if changed.contains("attn") { config.replace("\"attn_layer_idx\": [],", "") } else { config };
            assert_eq!(Original::read(config.as_bytes()).unwrap_err().field, field);
        }
    }

    #[test]
    fn text_is_read_with_either_mark() {
        let wide = |order: fn(u16) -> [u8; 2], mark: [u8; 2]| {
            let units = "{\"ü\": 1}".encode_utf16().flat_map(order);
            mark.into_iter().chain(units).collect::<Vec<u8>>()
        };
        for bytes in [
            "{\"ü\": 1}".as_bytes().to_vec(),
            "\u{feff}{\"ü\": 1}".as_bytes().to_vec(),
            wide(u16::to_le_bytes, [0xff, 0xfe]),
            wide(u16::to_be_bytes, [0xfe, 0xff]),
        ] {
            assert_eq!(decoded(&bytes).unwrap(), "{\"ü\": 1}");
        }
        assert!(decoded(b"\xff").unwrap_err().reason.contains("not text"));
    }
}
