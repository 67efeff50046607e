//! Sizes and options of a Transformer, and their valid combinations.

use crate::architecture::{Architecture, Heads, check_embeddings};
use crate::error::{ConfigError, InputError};
use crate::positions::{FREQUENCY_BASE, Input, PositionalEmbedding};
use crate::training::ParameterGroup;
use data::{Augmentation, Batch, PositionIds, Task};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The initial values of a learned position table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AbsoluteInit {
    /// N(0, 0.02²).
    Normal,
    /// The table of [sinusoidal](crate::positions::sinusoidal) positions.
    Sinusoidal,
}

/// The initial weights of linear layers and embeddings; biases are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightInit {
    /// N(0, 0.02²), and N(0, (0.02/√(2·layers))²) where the residual stream is added to: GPT-2's.
    Gpt2,
    /// N(0, 1/inputs), N(0, 0.02²) for embeddings, drawn again beyond two standard deviations (LeCun et al., "Efficient
    /// BackProp", 1998): the defaults of Haiku.
    Lecun,
}

/// Sizes and options of a [`Transformer`](super::Transformer).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransformerConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// How often the blocks are applied, one after the other and then again from the first, with the same weights: a
    /// looped Transformer. 0: once, and not looped. An exported looped model takes this number as an input, so that it
    /// can be another one in tests.
    pub iterations: usize,
    /// Adds the embeddings to the input of every iteration but the first, whose input they are.
    pub input_injection: bool,
    /// Attention heads; divides `hidden_size`.
    pub num_heads: usize,
    /// Width of an MLP, in multiples of `hidden_size`.
    pub mlp_ratio: usize,
    /// Whether tokens attend to themselves and those before them only. If not, they attend to all, so that a model can
    /// be trained only where the answers are not among the tokens.
    pub causal: bool,
    /// Whether norms stand before attention and MLP, with one more before the decoder (pre-norm). If not, they stand
    /// behind the sum with the residual stream (post-norm).
    pub norm_first: bool,
    /// Multiplies the embeddings of tokens by √hidden_size.
    pub scale_embeddings: bool,
    /// The initial weights: `gpt2` or `lecun`.
    pub weight_init: WeightInit,
    /// How positions enter.
    pub positional_embedding: PositionalEmbedding,
    /// How positions are drawn, in training and in evaluation: `none`, `shift` or `randomized`. With scalar positions
    /// `none` is the same as `zooming`, and `shift` as `scaler+shift`.
    pub augmentation: Augmentation,
    /// Integer positions are below this: the rows of a position table, the range that `shift` and `randomized` draw
    /// from.
    pub max_position_embeddings: usize,
    /// Leaves the table of absolute positions as it was initialised.
    pub absolute_freeze: bool,
    /// The initial values of the table of absolute positions.
    pub absolute_init: AbsoluteInit,
    /// Buckets of distances, of [`t5`](crate::positions::t5).
    pub t5_buckets: usize,
    /// Distances from this on share the last bucket, of [`t5`](crate::positions::t5).
    pub t5_max_distance: usize,
    /// Width of the MLP of [`fire`](crate::positions::fire).
    pub fire_width: usize,
    /// The initial factor on distances, of [`fire`](crate::positions::fire).
    pub fire_init_c: f64,
    /// The initial threshold, up to which places are absolute, of [`fire`](crate::positions::fire).
    pub fire_init_length: f64,
    /// Positions that are told apart, of [`cope`](crate::positions::cope).
    pub cope_positions: usize,
    /// The initial factor on ln(n), of [`ssmax`](crate::positions::ssmax).
    pub ssmax_init: f64,
    /// The length up to which scores stay as they are, of [`logn_clip`](crate::positions::logn_clip).
    pub logn_clip_train_length: usize,
    /// How many keys each head sees, the query's own and those just before it; 0 is all of them. A number per head, or
    /// none for heads that see everything.
    pub attention_windows: Vec<usize>,
    /// Divides attention scores by √head_dim.
    pub scale_attn_weights: bool,
    /// Divides the attention scores of layer i (from 0) by i + 1.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Every query attends to its own key, even where the padding mask hides it.
    pub must_attend_to_identity: bool,
    /// The decoder is the token embedding.
    pub tie_word_embeddings: bool,
    /// The embedding of token 0, which must be `<null>`, is zero and not trained.
    pub freeze_null_embedding: bool,
    /// LayerNorm's ε.
    pub layer_norm_epsilon: f64,
    /// Dropout of the embedding.
    pub embd_pdrop: f64,
    /// Dropout of the attention probabilities.
    pub attn_pdrop: f64,
    /// Dropout of what each block adds to the residual stream.
    pub resid_pdrop: f64,
}

impl Default for TransformerConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1024,
            num_layers: 2,
            iterations: 0,
            input_injection: false,
            num_heads: 8,
            mlp_ratio: 4,
            causal: true,
            norm_first: true,
            scale_embeddings: false,
            weight_init: WeightInit::Gpt2,
            positional_embedding: PositionalEmbedding::None,
            augmentation: Augmentation::None,
            max_position_embeddings: 128,
            absolute_freeze: false,
            absolute_init: AbsoluteInit::Normal,
            t5_buckets: 32,
            t5_max_distance: 128,
            fire_width: 32,
            fire_init_c: 0.1,
            fire_init_length: 512.0,
            cope_positions: 64,
            ssmax_init: 0.43,
            logn_clip_train_length: 512,
            attention_windows: vec![],
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: true,
            must_attend_to_identity: false,
            tie_word_embeddings: false,
            freeze_null_embedding: false,
            layer_norm_epsilon: LAYER_NORM_EPSILON,
            embd_pdrop: 0.0,
            attn_pdrop: 0.0,
            resid_pdrop: 0.0,
        }
    }
}

/// Added to the scores of keys outside of a head's window. It is higher than the mask of padding, so that a query whose
/// window has padding alone attends evenly to the keys before it, and never to later ones.
pub const OUTSIDE_WINDOW: f32 = -1e30;

/// The most iterations of a looped model.
const MOST_ITERATIONS: usize = 4096;

/// The usual ε of a LayerNorm.
pub const LAYER_NORM_EPSILON: f64 = 1e-5;

impl TransformerConfig {
    /// Channels of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// The channels that a token's embedding fills.
    pub fn embedding_size(&self) -> usize {
        self.hidden_size.saturating_sub(self.positional_embedding.channels())
    }

    /// The factor on the embeddings of tokens, where there is one.
    pub fn embedding_scale(&self) -> Option<f64> {
        self.scale_embeddings.then(|| (self.hidden_size as f64).sqrt())
    }

    /// The rotary frequencies base^(−2j/d) for j < d/2, in the order of operations, and so with the rounding, of the
    /// usual PyTorch code.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let d = self.head_dim();
        (0..d / 2).map(|j| 1.0 / (FREQUENCY_BASE as f32).powf(2.0 * j as f32 / d as f32)).collect()
    }

    /// The factor on the attention scores of `layer` (from 0).
    pub fn attention_scale(&self, layer: usize) -> f64 {
        let width = if self.scale_attn_weights { (self.head_dim() as f64).sqrt() } else { 1.0 };
        let depth = if self.scale_attn_by_inverse_layer_idx { (layer + 1) as f64 } else { 1.0 };
        1.0 / (width * depth)
    }
}

impl Architecture for TransformerConfig {
    fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    fn num_layers(&self) -> usize {
        self.num_layers
    }

    fn decoder_weights(&self) -> &'static [&'static str] {
        &["lm_head.weight", "wte.weight"]
    }

    fn check_settings(&self) -> Result<(), ConfigError> {
        let (hidden, heads) = (self.hidden_size, self.num_heads);
        let refuse = |key, reason: String| Err(ConfigError::new(key, reason));
        if heads == 0 || !hidden.is_multiple_of(heads) {
            return refuse(
                "num_heads",
                format!("hidden_size {hidden} cannot be split into {heads} heads; choose a divisor of {hidden}"),
            );
        }
        for (key, value) in [("mlp_ratio", self.mlp_ratio), ("max_position_embeddings", self.max_position_embeddings)] {
            if value == 0 {
                return refuse(key, "must be at least 1".into());
            }
        }
        for (key, p) in
            [("embd_pdrop", self.embd_pdrop), ("attn_pdrop", self.attn_pdrop), ("resid_pdrop", self.resid_pdrop)]
        {
            if !(0.0..1.0).contains(&p) {
                return refuse(key, format!("{p} is not a probability below 1"));
            }
        }
        if !(self.layer_norm_epsilon.is_finite() && self.layer_norm_epsilon > 0.0) {
            return refuse("layer_norm_epsilon", format!("{} is not a positive number", self.layer_norm_epsilon));
        }
        self.check_iterations()?;
        self.check_augmentation()?;
        self.positional_embedding.check(self)?;
        self.check_scheme_keys()?;
        self.check_windows()?;
        self.check_direction()?;
        check_embeddings(self.tie_word_embeddings, self.freeze_null_embedding)
    }

    fn is_causal(&self) -> bool {
        self.causal
    }

    fn state_per_token(&self) -> usize {
        2 * self.num_layers * self.iterations.max(1) * self.hidden_size
    }

    fn iterations(&self) -> Option<usize> {
        (self.iterations > 0).then_some(self.iterations)
    }

    fn has_dropout(&self) -> bool {
        [self.embd_pdrop, self.attn_pdrop, self.resid_pdrop].iter().any(|p| *p > 0.0)
    }

    fn freezes_null(&self) -> bool {
        self.freeze_null_embedding
    }

    fn parameter_group(&self, name: &str) -> ParameterGroup {
        // `h.0.attn.fire.c` and `rpe.bias_p`, but not `h.0.attn.c_attn.weight` or `wte.weight`
        let parts: Vec<&str> = name.split('.').collect();
        let is_of_positions = match parts[..] {
            ["h", _, "attn", module, ..] => !["c_attn", "c_proj"].contains(&module),
            [module, ..] => !["h", "wte", "ln_f", "lm_head"].contains(&module),
            [] => false,
        };
        if is_of_positions { self.positional_embedding.parameter_group(name) } else { ParameterGroup::DEFAULT }
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

    fn max_length(&self) -> Option<usize> {
        self.positional_embedding.limit(self)
    }

    fn check(&self, batch: &Batch) -> Result<(), InputError> {
        let wanted = self.positional_embedding.input();
        let found = match &batch.position_ids {
            PositionIds::Integers(ids) => {
                if let (Input::Integers, Some(&position), Some(limit)) = (wanted, ids.iter().max(), self.max_length())
                    && position >= limit as i64
                {
                    return Err(InputError::PastTable { position, limit });
                }
                Input::Integers
            }
            PositionIds::Scalars(_) => Input::Scalars,
        };
        if wanted == Input::None || wanted == found {
            return Ok(());
        }
        let (embedding, augmentation) = (self.positional_embedding.name(), Architecture::augmentation(self).name());
        Err(InputError::PositionKind { embedding, wanted: wanted.name(), found: found.name(), augmentation })
    }

    fn examples() -> Vec<Self> {
        let small = Self { hidden_size: 16, num_layers: 2, num_heads: 2, ..Self::default() };
        let rotary = Self { positional_embedding: PositionalEmbedding::Rope, ..small.clone() };
        let mut examples = PositionalEmbedding::examples(&small);
        examples.extend([
            Self { must_attend_to_identity: true, ..rotary.clone() },
            Self { tie_word_embeddings: true, ..rotary.clone() },
            Self { freeze_null_embedding: true, mlp_ratio: 2, ..small.clone() },
            Self { scale_attn_weights: false, scale_attn_by_inverse_layer_idx: false, ..rotary.clone() },
            Self { attention_windows: vec![3, 0], ..rotary.clone() },
            Self { iterations: 3, ..small.clone() },
            Self { norm_first: false, scale_embeddings: true, weight_init: WeightInit::Lecun, ..rotary.clone() },
            Self { causal: false, ..rotary.clone() },
            Self {
                causal: false,
                norm_first: false,
                positional_embedding: PositionalEmbedding::Alibi,
                ..small.clone()
            },
            Self {
                iterations: 2,
                input_injection: true,
                positional_embedding: PositionalEmbedding::Fire,
                resid_pdrop: 0.1,
                ..small.clone()
            },
            Self {
                attention_windows: vec![1, 0],
                positional_embedding: PositionalEmbedding::Cope,
                attn_pdrop: 0.1,
                ..rotary.clone()
            },
            Self { embd_pdrop: 0.1, attn_pdrop: 0.1, resid_pdrop: 0.1, layer_norm_epsilon: 1e-4, ..rotary },
        ]);
        examples
    }

    fn task_defaults(task: &Task) -> Vec<(&'static str, usize)> {
        vec![("max_position_embeddings", task.max_position_embeddings)]
    }

    fn benchmark(seq: usize) -> Vec<(&'static str, Value)> {
        vec![("max_position_embeddings", seq.into())]
    }

    fn heads() -> Option<Heads> {
        Some(Heads::Number("num_heads"))
    }

    fn has_positions() -> bool {
        true
    }

    fn tied() -> Option<(&'static str, &'static str)> {
        Some(("lm_head.weight", "wte.weight"))
    }
}

impl TransformerConfig {
    fn check_iterations(&self) -> Result<(), ConfigError> {
        if self.iterations > MOST_ITERATIONS {
            return Err(ConfigError::new("iterations", format!("must be at most {MOST_ITERATIONS}")));
        }
        if self.input_injection && self.iterations == 0 {
            let reason = "is about looped models, and this one is not\n  hint: set iterations, or leave it out";
            return Err(ConfigError::new("input_injection", reason));
        }
        Ok(())
    }

    fn check_augmentation(&self) -> Result<(), ConfigError> {
        let positions = self.positional_embedding;
        let choices = positions.augmentations();
        let possible = |choice: &Augmentation| [*choice, positions.augmentation(*choice)].contains(&self.augmentation);
        if choices.iter().any(possible) {
            return Ok(());
        }
        let names: Vec<&str> = choices.iter().map(|choice| choice.name()).collect();
        let hint = match names.split_last() {
            Some((last, names)) if !names.is_empty() => format!("choose {} or {last}", names.join(", ")),
            _ => "there are no positions to draw; leave it out".into(),
        };
        let (augmentation, positions) = (self.augmentation.name(), positions.name());
        let reason = format!("`{augmentation}` does not go with positional_embedding `{positions}`: {hint}");
        Err(ConfigError::new("augmentation", reason))
    }

    /// The keys of a scheme begin with its name; those of others must be as they are by default.
    fn check_scheme_keys(&self) -> Result<(), ConfigError> {
        let default = Self::default();
        let keys: [(&'static str, bool); 10] = [
            ("absolute_freeze", self.absolute_freeze == default.absolute_freeze),
            ("absolute_init", self.absolute_init == default.absolute_init),
            ("t5_buckets", self.t5_buckets == default.t5_buckets),
            ("t5_max_distance", self.t5_max_distance == default.t5_max_distance),
            ("fire_width", self.fire_width == default.fire_width),
            ("fire_init_c", self.fire_init_c == default.fire_init_c),
            ("fire_init_length", self.fire_init_length == default.fire_init_length),
            ("cope_positions", self.cope_positions == default.cope_positions),
            ("ssmax_init", self.ssmax_init == default.ssmax_init),
            ("logn_clip_train_length", self.logn_clip_train_length == default.logn_clip_train_length),
        ];
        let positions = self.positional_embedding.name();
        let is_of = |key: &str, scheme: &str| key.strip_prefix(scheme).is_some_and(|rest| rest.starts_with('_'));
        // Of `logn` and `logn_clip`, `logn_clip_train_length` is the latter's.
        let schemes = |key: &'static str| PositionalEmbedding::ALL.iter().filter(move |s| is_of(key, s.name()));
        let is_own = |key| schemes(key).max_by_key(|s| s.name().len()) == Some(&self.positional_embedding);
        match keys.into_iter().find(|(key, is_default)| !(*is_default || is_own(key))) {
            Some((key, _)) => {
                let reason = format!("is of another positional_embedding than `{positions}`, where it changes nothing");
                Err(ConfigError::new(key, reason))
            }
            None => Ok(()),
        }
    }

    fn check_direction(&self) -> Result<(), ConfigError> {
        let positions = self.positional_embedding;
        let refuse = |what: &str| {
            let reason =
                format!("false does not go with {what}, which is defined for tokens that attend to earlier ones only");
            Err(ConfigError::new("causal", reason))
        };
        if self.causal {
            return Ok(());
        }
        if !positions.in_both_directions() {
            return refuse(&format!("positional_embedding `{}`", positions.name()));
        }
        if self.attention_windows.iter().any(|window| *window > 0) {
            return refuse("attention_windows");
        }
        Ok(())
    }

    fn check_windows(&self) -> Result<(), ConfigError> {
        let (windows, heads) = (self.attention_windows.len(), self.num_heads);
        if windows == 0 || windows == heads {
            return Ok(());
        }
        let reason =
            format!("{windows} numbers, but there are {heads} heads; give one for each (0: no window), or none");
        Err(ConfigError::new("attention_windows", reason))
    }
}
