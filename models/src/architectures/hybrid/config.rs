//! Sizes and options of a hybrid. The settings of each mixer are in a table of its own, without those that all blocks share.

use crate::architecture::{Architecture, Heads};
use crate::checkpoint::original::{Fields, OriginalError};
use crate::error::{ConfigError, InputError};
use crate::gated_deltanet::GatedDeltanetConfig;
use crate::gla::GlaConfig;
use crate::hgrn2::Hgrn2Config;
use crate::layers::fla::{Sizes, check_epsilon};
use crate::mamba::MambaConfig;
use crate::mamba2::Mamba2Config;
use crate::positions::{FREQUENCY_BASE, PositionalEmbedding};
use crate::training::ParameterGroup;
use crate::transformer::TransformerConfig;
use data::{Augmentation, Batch, Task};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A kind of mixer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Causal softmax attention.
    Attention,
    /// Mamba-1.
    Mamba,
    /// Mamba-2.
    Mamba2,
    /// Gated DeltaNet or DeltaProduct.
    GatedDeltanet,
    /// Gated linear attention.
    Gla,
    /// HGRN2, without lower bounds.
    Hgrn2,
    /// Griffin's gated linear recurrence.
    Rglru,
}

/// Sizes of a [`Hybrid`](super::Hybrid).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(into = "Written", try_from = "Written")]
pub struct HybridConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks: the mixers of `blocks` in turn, again and again. By default each of them once.
    pub num_layers: usize,
    /// The mixers, in the order of the blocks.
    pub blocks: Vec<Kind>,
    /// Heads of attention; divides `hidden_size`.
    pub num_heads: usize,
    /// How positions enter attention: a scheme without parameters.
    pub positional_embedding: PositionalEmbedding,
    /// How positions are drawn.
    pub augmentation: Augmentation,
    /// Positions are below this.
    pub max_position_embeddings: usize,
    /// How many keys attention sees, the query's own and those just before it; 0 is all of them.
    pub attention_window: usize,
    /// Channels inside an MLP; 0: ⌊8·hidden_size/3⌋, rounded up to a multiple of 256.
    pub intermediate_size: usize,
    /// ε of the norms on the residual stream and of those of linear attention.
    pub norm_epsilon: f64,
    /// Whether the decoder is the embedding.
    pub tie_word_embeddings: bool,
    /// Settings of Mamba.
    pub mamba: MambaConfig,
    /// Settings of Mamba-2.
    pub mamba2: Mamba2Config,
    /// Settings of Gated DeltaNet.
    pub gated_deltanet: GatedDeltanetConfig,
    /// Settings of GLA.
    pub gla: GlaConfig,
    /// Settings of HGRN2.
    pub hgrn2: Hgrn2Config,
}

/// Positional schemes for attention: those without parameters, which do not differ from layer to layer.
const SCHEMES: [PositionalEmbedding; 4] =
    [PositionalEmbedding::None, PositionalEmbedding::Rope, PositionalEmbedding::Alibi, PositionalEmbedding::Logn];

impl Default for HybridConfig {
    fn default() -> Self {
        Self {
            hidden_size: 128,
            num_layers: 2,
            blocks: vec![Kind::Mamba, Kind::Attention],
            num_heads: 4,
            positional_embedding: PositionalEmbedding::None,
            augmentation: Augmentation::None,
            max_position_embeddings: 128,
            attention_window: 0,
            intermediate_size: 0,
            norm_epsilon: 1e-6,
            tie_word_embeddings: false,
            mamba: MambaConfig::default(),
            mamba2: Mamba2Config::default(),
            gated_deltanet: GatedDeltanetConfig::default(),
            gla: GlaConfig::default(),
            hgrn2: Hgrn2Config { lower_bound: false, ..Hgrn2Config::default() },
        }
    }
}

impl HybridConfig {
    /// The mixers of all blocks, in order.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.blocks.iter().copied().cycle().take(self.num_layers)
    }

    fn has(&self, kind: Kind) -> bool {
        self.kinds().any(|other| other == kind)
    }

    /// The sizes of what is around the mixers.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            hidden: self.hidden_size,
            layers: self.num_layers,
            intermediate: Sizes::intermediate(self.intermediate_size, self.hidden_size),
            norm_epsilon: self.norm_epsilon,
            tied: self.tie_word_embeddings,
        }
    }

    /// A Transformer of the same attention.
    pub fn attention(&self) -> TransformerConfig {
        let windowed = self.attention_window > 0;
        TransformerConfig {
            hidden_size: self.hidden_size,
            num_layers: self.num_layers,
            num_heads: self.num_heads,
            positional_embedding: self.positional_embedding,
            augmentation: self.augmentation,
            max_position_embeddings: self.max_position_embeddings,
            attention_windows: if windowed { vec![self.attention_window; self.num_heads] } else { vec![] },
            scale_attn_by_inverse_layer_idx: false,
            ..TransformerConfig::default()
        }
    }

    /// Mamba of this width and number of layers; so are the other four.
    pub fn mamba(&self) -> MambaConfig {
        MambaConfig { hidden_size: self.hidden_size, num_layers: self.num_layers, ..self.mamba.clone() }
    }

    /// See [`mamba`](Self::mamba).
    pub fn mamba2(&self) -> Mamba2Config {
        Mamba2Config { hidden_size: self.hidden_size, num_layers: self.num_layers, ..self.mamba2.clone() }
    }

    /// See [`mamba`](Self::mamba).
    pub fn gated_deltanet(&self) -> GatedDeltanetConfig {
        let Self { hidden_size, num_layers, norm_epsilon, .. } = *self;
        GatedDeltanetConfig { hidden_size, num_layers, norm_epsilon, ..self.gated_deltanet.clone() }
    }

    /// See [`mamba`](Self::mamba).
    pub fn gla(&self) -> GlaConfig {
        let Self { hidden_size, num_layers, norm_epsilon, .. } = *self;
        GlaConfig { hidden_size, num_layers, norm_epsilon, ..self.gla.clone() }
    }

    /// See [`mamba`](Self::mamba).
    pub fn hgrn2(&self) -> Hgrn2Config {
        let Self { hidden_size, num_layers, norm_epsilon, .. } = *self;
        Hgrn2Config { hidden_size, num_layers, norm_epsilon, lower_bound: false, ..self.hgrn2.clone() }
    }

    /// The settings of a mixer, as an architecture by itself; none of RG-LRU.
    fn mixer(&self, kind: Kind) -> Option<(&'static str, Box<dyn Architecture>)> {
        Some(match kind {
            Kind::Attention => return None,
            Kind::Mamba => ("mamba", Box::new(self.mamba())),
            Kind::Mamba2 => ("mamba2", Box::new(self.mamba2())),
            Kind::GatedDeltanet => ("gated_deltanet", Box::new(self.gated_deltanet())),
            Kind::Gla => ("gla", Box::new(self.gla())),
            Kind::Hgrn2 => ("hgrn2", Box::new(self.hgrn2())),
            Kind::Rglru => return None,
        })
    }
}

impl Architecture for HybridConfig {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn num_layers(&self) -> usize {
        self.num_layers
    }

    fn decoder_weights(&self) -> &'static [&'static str] {
        &["lm_head.weight", "model.embeddings.weight"]
    }

    fn check_settings(&self) -> Result<(), ConfigError> {
        check_epsilon(self.norm_epsilon)?;
        if self.blocks.is_empty() {
            let reason = "names no mixer\n  hint: for example blocks = [\"mamba\", \"attention\"]";
            return Err(ConfigError::new("blocks", reason));
        }
        if self.blocks.len() > self.num_layers {
            let reason = format!(
                "{} is less than the {} mixers of `blocks`\n  hint: leave it out, or choose {1} or more",
                self.num_layers,
                self.blocks.len()
            );
            return Err(ConfigError::new("num_layers", reason));
        }
        if !SCHEMES.contains(&self.positional_embedding) {
            let names = SCHEMES.map(|scheme| scheme.name()).join(", ");
            let reason = format!("{} is not for hybrids: choose one of {names}", self.positional_embedding.name());
            return Err(ConfigError::new("positional_embedding", reason));
        }
        if self.has(Kind::Attention) {
            self.attention().check_settings()?;
        } else if self.positional_embedding != PositionalEmbedding::None || self.attention_window > 0 {
            let key = if self.attention_window > 0 { "attention_window" } else { "positional_embedding" };
            return Err(ConfigError::new(key, "is about attention, which no block is\n  hint: leave it out"));
        }
        for (name, mixer) in self.blocks.iter().filter_map(|kind| self.mixer(*kind)) {
            mixer
                .check_settings()
                .map_err(|ConfigError { key, reason }| ConfigError::new(format!("{name}.{key}"), reason))?;
        }
        Ok(())
    }

    fn state_per_token(&self) -> usize {
        2 * self.hidden_size * self.kinds().filter(|kind| *kind == Kind::Attention).count()
    }

    fn parameter_group(&self, name: &str) -> ParameterGroup {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once(".attn."));
        let mixer = layer.and_then(|(layer, rest)| {
            let kind = self.kinds().nth(layer.parse().ok()?)?;
            if kind == Kind::Rglru && rest == "lambda" {
                return Some(ParameterGroup::UNDECAYED);
            }
            Some(self.mixer(kind)?.1.parameter_group(&format!("mixer.{rest}")))
        });
        mixer.unwrap_or(ParameterGroup::DEFAULT)
    }

    fn positional_embedding(&self) -> &'static str {
        self.positional_embedding.name()
    }

    fn augmentation(&self) -> Augmentation {
        self.positional_embedding.augmentation(self.augmentation)
    }

    fn max_position_embeddings(&self) -> Option<usize> {
        Some(self.max_position_embeddings)
    }

    fn check(&self, batch: &Batch) -> Result<(), InputError> {
        self.attention().check(batch)
    }

    fn examples() -> Vec<Self> {
        let small = Self { hidden_size: 16, num_layers: 2, num_heads: 2, intermediate_size: 24, ..Self::default() };
        let two = |first, second| Self { blocks: vec![first, second], ..small.clone() };
        vec![
            small.clone(),
            Self {
                positional_embedding: PositionalEmbedding::Rope,
                attention_window: 3,
                ..two(Kind::Rglru, Kind::Attention)
            },
            Self {
                positional_embedding: PositionalEmbedding::Alibi,
                attention_window: 5,
                gated_deltanet: GatedDeltanetConfig { head_size: 4, ..GatedDeltanetConfig::default() },
                ..two(Kind::Attention, Kind::GatedDeltanet)
            },
            Self {
                tie_word_embeddings: true,
                mamba2: Mamba2Config { state_size: 5, head_size: 8, ..Mamba2Config::default() },
                gla: GlaConfig { num_heads: 2, ..GlaConfig::default() },
                ..two(Kind::Mamba2, Kind::Gla)
            },
            Self {
                norm_epsilon: 1e-5,
                hgrn2: Hgrn2Config { expand_ratio: 8, ..small.hgrn2.clone() },
                ..two(Kind::Hgrn2, Kind::Rglru)
            },
            Self { positional_embedding: PositionalEmbedding::Logn, ..two(Kind::Attention, Kind::Mamba) },
        ]
    }

    fn task_defaults(task: &Task) -> Vec<(&'static str, usize)> {
        vec![("max_position_embeddings", task.max_position_embeddings)]
    }

    fn benchmark(seq: usize) -> Vec<(&'static str, Value)> {
        vec![("max_position_embeddings", seq.into()), ("num_layers", Self::default().num_layers.into())]
    }

    fn heads() -> Option<Heads> {
        Some(Heads::Number("num_heads"))
    }

    fn has_positions() -> bool {
        true
    }

    fn original(f: &Fields<'_>) -> Option<Result<Self, OriginalError>> {
        Some(f.own(&KEYS))
    }

    fn tied() -> Option<(&'static str, &'static str)> {
        Some(("lm_head.weight", "model.embeddings.weight"))
    }
}

/// The keys of a [`HybridConfig`] as it is written.
const KEYS: [&str; 16] = [
    "hidden_size",
    "num_layers",
    "blocks",
    "num_heads",
    "positional_embedding",
    "augmentation",
    "max_position_embeddings",
    "attention_window",
    "intermediate_size",
    "norm_epsilon",
    "tie_word_embeddings",
    "mamba",
    "mamba2",
    "gated_deltanet",
    "gla",
    "hgrn2",
];

impl HybridConfig {
    /// The settings of flash-linear-attention's models of the architecture `name`, some of whose layers are attention: those
    /// that the field `attn` lists.
    pub(crate) fn with_attention(name: &str, f: &Fields<'_>) -> Result<Self, OriginalError> {
        let refuse = |reason: String| OriginalError { field: "attn".into(), reason };
        let attention: AttentionField = f.required("attn")?;
        let AttentionField { layers, num_heads, num_kv_heads, qkv_bias, qk_norm, rope_theta, window_size } = attention;
        if num_kv_heads.is_some_and(|heads| heads != num_heads) {
            return Err(refuse(format!("num_kv_heads must be num_heads, {num_heads}: keys are not shared here")));
        }
        if qkv_bias || qk_norm {
            return Err(refuse("neither qkv_bias nor qk_norm is supported".into()));
        }
        if rope_theta.is_some_and(|base| base != FREQUENCY_BASE) {
            return Err(refuse(format!("rope_theta must be {FREQUENCY_BASE}")));
        }
        if layers.is_empty() {
            return Err(refuse(format!("it lists no layers\n  hint: leave it out, for a model of {name} alone")));
        }
        let base = Self { positional_embedding: PositionalEmbedding::Rope, ..Self::default() };
        let (kind, sizes, base) = match name {
            "gated_deltanet" => {
                let config = GatedDeltanetConfig::of(f)?;
                (Kind::GatedDeltanet, config.sizes(), Self { gated_deltanet: config, ..base })
            }
            "gla" => {
                let config = GlaConfig::of(f)?;
                (Kind::Gla, config.sizes(), Self { gla: config, ..base })
            }
            _ => return Err(refuse(format!("hybrids of `{name}` and attention are not supported"))),
        };
        if layers.iter().any(|layer| *layer >= sizes.layers) {
            return Err(refuse(format!("layers {layers:?}, but there are {}", sizes.layers)));
        }
        let kind_of = |layer| if layers.contains(&layer) { Kind::Attention } else { kind };
        Ok(Self {
            hidden_size: sizes.hidden,
            num_layers: sizes.layers,
            blocks: (0..sizes.layers).map(kind_of).collect(),
            num_heads,
            attention_window: window_size.unwrap_or(0),
            intermediate_size: sizes.intermediate,
            norm_epsilon: sizes.norm_epsilon,
            tie_word_embeddings: sizes.tied,
            ..base
        })
    }
}

/// The settings as they are written: tables of mixers only where a block has them.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    hidden_size: usize,
    num_layers: Option<usize>,
    blocks: Vec<Kind>,
    num_heads: usize,
    positional_embedding: PositionalEmbedding,
    augmentation: Augmentation,
    max_position_embeddings: usize,
    attention_window: usize,
    intermediate_size: usize,
    norm_epsilon: f64,
    tie_word_embeddings: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    mamba: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mamba2: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gated_deltanet: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gla: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hgrn2: Option<Map<String, Value>>,
}

impl Default for Written {
    fn default() -> Self {
        let mut written: Self = HybridConfig::default().into();
        written.num_layers = None;
        for table in
            [&mut written.mamba, &mut written.mamba2, &mut written.gated_deltanet, &mut written.gla, &mut written.hgrn2]
        {
            *table = None;
        }
        written
    }
}

/// The settings that all blocks share, or that HGRN2 has no use for here: tables of mixers do not have them.
const SHARED: [&str; 6] =
    ["hidden_size", "num_layers", "intermediate_size", "norm_epsilon", "tie_word_embeddings", "lower_bound"];

/// The field `attn` of flash-linear-attention's configs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AttentionField {
    layers: Vec<usize>,
    num_heads: usize,
    num_kv_heads: Option<usize>,
    #[serde(default)]
    qkv_bias: bool,
    #[serde(default)]
    qk_norm: bool,
    rope_theta: Option<f64>,
    window_size: Option<usize>,
}

/// The table of a mixer that some block has.
fn table<C: Serialize>(config: &HybridConfig, kind: Kind, settings: &C) -> Option<Map<String, Value>> {
    let Ok(Value::Object(mut table)) = serde_json::to_value(settings) else { return None };
    SHARED.iter().for_each(|key| drop(table.remove(*key)));
    config.blocks.contains(&kind).then_some(table)
}

/// The settings that a mixer's table states, and the default ones.
fn settings<C: Serialize + DeserializeOwned + Default>(
    blocks: &[Kind],
    (name, kind): (&str, Kind),
    table: Option<Map<String, Value>>,
) -> Result<C, String> {
    let Some(table) = table else { return Ok(C::default()) };
    if !blocks.contains(&kind) {
        return Err(format!("{name}: there are settings of it, but no block is one\n  hint: leave the table out"));
    }
    let known = serde_json::to_value(C::default()).unwrap_or_default();
    let known: Vec<&str> = known.as_object().into_iter().flatten().map(|(key, _)| &key[..]).collect();
    let own = |key: &&str| !SHARED.contains(key);
    for key in table.keys() {
        if SHARED.contains(&&key[..]) && known.contains(&&key[..]) {
            return Err(format!(
                "{name}.{key} is no setting of this mixer alone\n  hint: all blocks share it; leave it out"
            ));
        }
        if !known.contains(&&key[..]) {
            let hint = match data::suggest::nearest(key, known.iter().copied().filter(own)) {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("one of {}", known.iter().copied().filter(own).collect::<Vec<_>>().join(", ")),
            };
            return Err(format!("{name}.{key}: there is no such setting\n  hint: {hint}"));
        }
    }
    serde_json::from_value(Value::Object(table)).map_err(|error| format!("{name}: {error}"))
}

impl From<HybridConfig> for Written {
    fn from(config: HybridConfig) -> Self {
        Self {
            hidden_size: config.hidden_size,
            num_layers: Some(config.num_layers),
            num_heads: config.num_heads,
            positional_embedding: config.positional_embedding,
            augmentation: config.augmentation,
            max_position_embeddings: config.max_position_embeddings,
            attention_window: config.attention_window,
            intermediate_size: config.intermediate_size,
            norm_epsilon: config.norm_epsilon,
            tie_word_embeddings: config.tie_word_embeddings,
            mamba: table(&config, Kind::Mamba, &config.mamba),
            mamba2: table(&config, Kind::Mamba2, &config.mamba2),
            gated_deltanet: table(&config, Kind::GatedDeltanet, &config.gated_deltanet),
            gla: table(&config, Kind::Gla, &config.gla),
            hgrn2: table(&config, Kind::Hgrn2, &config.hgrn2),
            blocks: config.blocks,
        }
    }
}

impl TryFrom<Written> for HybridConfig {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let blocks = written.blocks;
        Ok(Self {
            hidden_size: written.hidden_size,
            num_layers: written.num_layers.unwrap_or(blocks.len().max(1)),
            num_heads: written.num_heads,
            positional_embedding: written.positional_embedding,
            augmentation: written.augmentation,
            max_position_embeddings: written.max_position_embeddings,
            attention_window: written.attention_window,
            intermediate_size: written.intermediate_size,
            norm_epsilon: written.norm_epsilon,
            tie_word_embeddings: written.tie_word_embeddings,
            mamba: settings(&blocks, ("mamba", Kind::Mamba), written.mamba)?,
            mamba2: settings(&blocks, ("mamba2", Kind::Mamba2), written.mamba2)?,
            gated_deltanet: settings(&blocks, ("gated_deltanet", Kind::GatedDeltanet), written.gated_deltanet)?,
            gla: settings(&blocks, ("gla", Kind::Gla), written.gla)?,
            hgrn2: Hgrn2Config { lower_bound: false, ..settings(&blocks, ("hgrn2", Kind::Hgrn2), written.hgrn2)? },
            blocks,
        })
    }
}
