//! Causal Transformer: GPT-2's pre-norm blocks with a ReLU MLP, layer i's attention scores divided by √d·(i + 1).
//!
//! Sources: Vaswani et al., arXiv 1706.03762; Radford et al., "Language Models are Unsupervised Multitask Learners",
//! 2019; rotary positions from Su et al., arXiv 2104.09864; sizes, scalar positions and initialisation of
//! arXiv 2405.20131.

use crate::config::check_embeddings;
use crate::error::{ConfigError, InputError};
use crate::layers::{
    Conv1d, DropoutSource, Embedding, LayerNorm, Linear, SinusoidalTable, TokenEmbedding, dropout, tied_decoder,
};
use crate::ops::autocast::product;
use crate::ops::{KeyMask, Rotation, SequenceOps, plain};
use crate::{Init, ModelInput, Positions};
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use data::{Augmentation, Batch, PositionIds};
use serde::{Deserialize, Serialize};

/// How positions enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PositionalEmbedding {
    /// Not at all; only the causal mask tells positions apart (NoPE, Kazemnejad et al., arXiv 2305.19466).
    None,
    /// A learned row per position is added to the token's embedding.
    Absolute,
    /// The sine and cosine table of Vaswani et al. is added to √hidden times the token's embedding.
    Sinusoidal,
    /// Queries and keys are rotated by their position.
    Rope,
    /// The position itself, a fraction in [0, 1], is the last channel.
    Scalar,
}

impl PositionalEmbedding {
    /// The name in configs and in the metadata of exported files.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Absolute => "absolute",
            Self::Sinusoidal => "sinusoidal",
            Self::Rope => "rope",
            Self::Scalar => "scalar",
        }
    }
}

/// What a learned position table is to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AbsoluteInit {
    /// N(0, 0.02²).
    Normal,
    /// The table of [`PositionalEmbedding::Sinusoidal`].
    Sinusoidal,
}

/// Sizes and options of a [`Transformer`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransformerConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_heads: usize,
    /// Width of an MLP, in multiples of `hidden_size`.
    pub mlp_ratio: usize,
    /// How positions enter.
    pub positional_embedding: PositionalEmbedding,
    /// How positions are drawn, in training and in evaluation: `none`, `shift` or `randomized`. With scalar positions
    /// `none` is the same as `zooming`, and `shift` as `scaler+shift`.
    pub augmentation: Augmentation,
    /// Integer positions lie below this: the rows of a position table, the range that `shift` and `randomized` draw from.
    pub max_position_embeddings: usize,
    /// Leaves the table of absolute positions as it was initialised.
    pub absolute_freeze: bool,
    /// What the table of absolute positions is to begin with.
    pub absolute_init: AbsoluteInit,
    /// Divides attention scores by √head_dim.
    pub scale_attn_weights: bool,
    /// Divides the attention scores of layer i (from 0) by i + 1.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Every query sees itself, even at a token that is hidden from the others.
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
            num_heads: 8,
            mlp_ratio: 4,
            positional_embedding: PositionalEmbedding::None,
            augmentation: Augmentation::None,
            max_position_embeddings: 128,
            absolute_freeze: false,
            absolute_init: AbsoluteInit::Normal,
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

/// The usual ε of a LayerNorm.
pub const LAYER_NORM_EPSILON: f64 = 1e-5;

/// The base of the rotary and sinusoidal frequencies.
pub const FREQUENCY_BASE: f64 = 10_000.0;

impl TransformerConfig {
    /// Channels of one head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// The channels that a token's embedding fills.
    pub fn embedding_size(&self) -> usize {
        self.hidden_size - usize::from(self.positional_embedding == PositionalEmbedding::Scalar)
    }

    /// The rows of the position table, where there is one: positions must lie below.
    pub fn position_limit(&self) -> Option<usize> {
        use PositionalEmbedding::{Absolute, Sinusoidal};
        matches!(self.positional_embedding, Absolute | Sinusoidal).then_some(self.max_position_embeddings)
    }

    /// How positions are drawn, as `data` calls it.
    pub fn position_augmentation(&self) -> Augmentation {
        match (self.positional_embedding, self.augmentation) {
            (PositionalEmbedding::Scalar, Augmentation::None) => Augmentation::Zooming,
            (PositionalEmbedding::Scalar, Augmentation::Shift) => Augmentation::ScalerShift,
            (_, augmentation) => augmentation,
        }
    }

    /// The rotary frequencies base^(−2j/d) for j < d/2, in the order of operations, and so with the rounding, of the usual
    /// PyTorch code.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let d = self.head_dim();
        (0..d / 2).map(|j| 1.0 / (FREQUENCY_BASE as f32).powf(2.0 * j as f32 / d as f32)).collect()
    }

    /// What the scores of `layer` (from 0) are multiplied by.
    pub fn attention_scale(&self, layer: usize) -> f64 {
        let width = if self.scale_attn_weights { (self.head_dim() as f64).sqrt() } else { 1.0 };
        let depth = if self.scale_attn_by_inverse_layer_idx { (layer + 1) as f64 } else { 1.0 };
        1.0 / (width * depth)
    }

    /// Refuses a batch whose positions the model cannot take.
    pub(crate) fn check(&self, batch: &Batch) -> Result<(), InputError> {
        let scalar = self.positional_embedding == PositionalEmbedding::Scalar;
        match &batch.position_ids {
            _ if self.positional_embedding == PositionalEmbedding::None => Ok(()),
            PositionIds::Integers(ids) if !scalar => match (ids.iter().max(), self.position_limit()) {
                (Some(&position), Some(limit)) if position >= limit as i64 => {
                    Err(InputError::PastTable { position, limit })
                }
                _ => Ok(()),
            },
            PositionIds::Scalars(_) if scalar => Ok(()),
            _ => {
                let [wanted, found] = if scalar { ["scalar", "integer"] } else { ["integer", "scalar"] };
                let (embedding, augmentation) = (self.positional_embedding.name(), self.position_augmentation().name());
                Err(InputError::PositionKind { embedding, wanted, found, augmentation })
            }
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
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
        self.validate_positions()?;
        check_embeddings(self.tie_word_embeddings, self.freeze_null_embedding)
    }

    fn validate_positions(&self) -> Result<(), ConfigError> {
        use PositionalEmbedding::{Absolute, None, Rope, Scalar, Sinusoidal};
        let (hidden, positions) = (self.hidden_size, self.positional_embedding);
        let refuse = |key, reason: String| Err(ConfigError::new(key, reason));
        let possible = match self.augmentation {
            Augmentation::None => true,
            Augmentation::Shift => positions != None,
            Augmentation::Randomized => matches!(positions, Absolute | Rope),
            Augmentation::ScalerShift | Augmentation::Zooming => positions == Scalar,
        };
        if !possible {
            let hint = match positions {
                None => "there are no positions to draw; leave it out",
                Absolute | Rope => "choose none, shift or randomized",
                Sinusoidal | Scalar => "choose none or shift",
            };
            let (augmentation, positions) = (self.augmentation.name(), positions.name());
            return refuse(
                "augmentation",
                format!("`{augmentation}` does not go with positional_embedding `{positions}`: {hint}"),
            );
        }
        match positions {
            Rope if !self.head_dim().is_multiple_of(2) => {
                let pairs = "rope rotates pairs of channels, but a head has";
                return refuse("num_heads", format!("{pairs} {} (hidden_size / num_heads)", self.head_dim()));
            }
            Sinusoidal if !hidden.is_multiple_of(2) => {
                return refuse("hidden_size", format!("sine and cosine come in pairs, but {hidden} is odd"));
            }
            Scalar if hidden < 2 => {
                return refuse(
                    "hidden_size",
                    "with scalar positions, one channel is the position; 2 is the least".into(),
                );
            }
            Scalar if self.tie_word_embeddings => {
                return refuse(
                    "tie_word_embeddings",
                    "with scalar positions, an embedding has a channel less than the decoder; untie them".into(),
                );
            }
            _ => {}
        }
        if positions != Absolute {
            for (key, set) in [
                ("absolute_freeze", self.absolute_freeze),
                ("absolute_init", self.absolute_init != AbsoluteInit::Normal),
            ] {
                if set {
                    let positions = positions.name();
                    return refuse(key, format!("there is no table of absolute positions with `{positions}`"));
                }
            }
        }
        Ok(())
    }

    /// A model over `vocab` tokens: weights N(0, 0.02²), the residual projections N(0, (0.02/√(2·layers))²), biases 0.
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Transformer<B> {
        let (hidden, std) = (self.hidden_size, 0.02);
        let residual = std / (2.0 * self.num_layers as f64).sqrt();
        let wte = TokenEmbedding::new(init, vocab, self.embedding_size(), std, self.freeze_null_embedding);
        let positions = self.max_position_embeddings;
        let wpe = (self.positional_embedding == PositionalEmbedding::Absolute).then(|| {
            let table = match self.absolute_init {
                AbsoluteInit::Normal => Embedding::new(init, positions, hidden, std),
                AbsoluteInit::Sinusoidal => {
                    let table = sinusoids(positions, hidden);
                    Embedding { weight: init.values(table, [positions, hidden]) }
                }
            };
            if self.absolute_freeze { table.no_grad() } else { table }
        });
        let sine = (self.positional_embedding == PositionalEmbedding::Sinusoidal).then(|| {
            let pe = init.values(sinusoids(positions, hidden), [positions, hidden]);
            SinusoidalTable { pe: pe.set_require_grad(false) }
        });
        let norm = |init: &mut Init<'_, B>| LayerNorm::new(init, hidden, self.layer_norm_epsilon);
        let h = (0..self.num_layers).map(|layer| Block {
            ln_1: norm(init),
            attn: Attention {
                c_attn: Conv1d::new(init, hidden, 3 * hidden, std),
                c_proj: Conv1d::new(init, hidden, hidden, residual),
                layer,
            },
            ln_2: norm(init),
            mlp: Mlp {
                c_fc: Conv1d::new(init, hidden, self.mlp_ratio * hidden, std),
                c_proj: Conv1d::new(init, self.mlp_ratio * hidden, hidden, residual),
            },
        });
        let h = h.collect();
        let ln_f = norm(init);
        let lm_head = (!self.tie_word_embeddings).then(|| Linear::new(init, hidden, vocab, std));
        Transformer { wte, wpe, sine, h, ln_f, lm_head, config: self.clone() }
    }
}

/// pe[p, 2j] = sin(p·f_j), pe[p, 2j+1] = cos(p·f_j) with f_j = base^(−2j/hidden), `[positions, hidden]`
/// (arXiv 1706.03762, 3.5).
fn sinusoids(positions: usize, hidden: usize) -> Vec<f32> {
    let angle = |p: usize, c: usize| p as f64 * FREQUENCY_BASE.powf(-((c / 2 * 2) as f64) / hidden as f64);
    let value = |p, c| if c % 2 == 0 { angle(p, c).sin() } else { angle(p, c).cos() };
    (0..positions).flat_map(|p| (0..hidden).map(move |c| value(p, c) as f32)).collect()
}

/// See the [module documentation](self). Field names are those of the checkpoints.
#[derive(Module, Debug)]
pub struct Transformer<B: Backend> {
    wte: TokenEmbedding<B>,
    wpe: Option<Embedding<B>>,
    sine: Option<SinusoidalTable<B>>,
    h: Vec<Block<B>>,
    ln_f: LayerNorm<B>,
    /// `None` where the decoder is `wte`.
    lm_head: Option<Linear<B>>,
    config: TransformerConfig,
}

#[derive(Module, Debug)]
struct Block<B: Backend> {
    ln_1: LayerNorm<B>,
    attn: Attention<B>,
    ln_2: LayerNorm<B>,
    mlp: Mlp<B>,
}

#[derive(Module, Debug)]
struct Attention<B: Backend> {
    c_attn: Conv1d<B>,
    c_proj: Conv1d<B>,
    layer: usize,
}

#[derive(Module, Debug)]
struct Mlp<B: Backend> {
    c_fc: Conv1d<B>,
    c_proj: Conv1d<B>,
}

/// What the blocks of one forward pass share.
struct Pass<'a, B: Backend> {
    config: &'a TransformerConfig,
    rotation: Option<Rotation<B>>,
    mask: Option<KeyMask<B>>,
    dropout: Option<DropoutSource>,
}

impl<B: SequenceOps> Transformer<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        let config = &self.config;
        let rotary = config.positional_embedding == PositionalEmbedding::Rope;
        let identity = config.must_attend_to_identity;
        let x = self.embed(input.input_ids, input.position_ids.clone()); // [batch, seq, hidden]
        let pass = Pass {
            config,
            rotation: rotary.then(|| rotation(input.position_ids, &config.inverse_frequencies(), x.dtype())),
            mask: input.attention_mask.map(|keys| KeyMask { keys, identity }),
            dropout: input.dropout,
        };
        let x = dropout(x, config.embd_pdrop, input.dropout, 0);
        let x = self.h.iter().fold(x, |x, block| block.forward(x, &pass));
        let x = self.ln_f.forward(x);
        match &self.lm_head {
            Some(lm_head) => lm_head.forward(x),
            None => tied_decoder(x, self.wte.table()),
        }
    }

    /// Sizes and options.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }

    /// Tokens and, unless queries and keys carry them, positions.
    fn embed(&self, ids: Tensor<B, 2, Int>, positions: Positions<B>) -> Tensor<B, 3> {
        let x = self.wte.forward(ids);
        match (&self.wpe, &self.sine) {
            (Some(wpe), _) => x + wpe.forward(positions.indices()),
            (_, Some(sine)) => x * (self.config.hidden_size as f64).sqrt() + sine.forward(positions.indices()),
            _ if self.config.positional_embedding == PositionalEmbedding::Scalar => {
                let positions = positions.floats().unsqueeze_dim(2).cast(x.dtype()); // [batch, seq, 1]
                Tensor::cat(vec![x, positions], 2)
            }
            _ => x,
        }
    }
}

impl<B: SequenceOps> Block<B> {
    fn forward(&self, x: Tensor<B, 3>, pass: &Pass<'_, B>) -> Tensor<B, 3> {
        let place = 3 * self.attn.layer as u64; // of the dropouts
        let residual = |y, place| dropout(y, pass.config.resid_pdrop, pass.dropout, place);
        let x = x.clone() + residual(self.attn.forward(self.ln_1.forward(x), pass, place + 1), place + 2);
        x.clone() + residual(self.mlp.forward(self.ln_2.forward(x)), place + 3)
    }
}

impl<B: SequenceOps> Attention<B> {
    fn forward(&self, x: Tensor<B, 3>, pass: &Pass<'_, B>, place: u64) -> Tensor<B, 3> {
        let heads = pass.config.num_heads;
        let qkv = self.c_attn.forward(x); // [batch, seq, 3·hidden]
        let (mask, scale, p) = (pass.mask.clone(), pass.config.attention_scale(self.layer), pass.config.attn_pdrop);
        let y = if p > 0.0 && pass.dropout.is_some() {
            let [q, k, v] = plain::heads(qkv, heads, pass.rotation.as_ref());
            let probabilities = plain::attention_probabilities(q, k, mask, scale);
            plain::side_by_side(product(dropout(probabilities, p, pass.dropout, place), v))
        } else {
            B::packed_attention(qkv, heads, pass.rotation.clone(), mask, scale)
        };
        self.c_proj.forward(y)
    }
}

impl<B: SequenceOps> Mlp<B> {
    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.c_proj.forward(self.c_fc.forward_relu(x))
    }
}

/// The rotation of queries and keys of this type; the angles themselves are never of half precision.
fn rotation<B: Backend>(positions: Positions<B>, frequencies: &[f32], dtype: DType) -> Rotation<B> {
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let positions = positions.floats().cast(wide);
    let [batch, seq] = positions.dims();
    let frequencies = TensorData::new(frequencies.to_vec(), [1, 1, 1, frequencies.len()]);
    let frequencies = Tensor::<B, 4>::from_data(frequencies, (&positions.device(), wide));
    let angles = positions.reshape([batch, 1, seq, 1]) * frequencies; // [batch, 1, seq, head_dim / 2]
    let angles = Tensor::cat(vec![angles.clone(), angles], 3);
    Rotation { cos: angles.clone().cos().cast(dtype), sin: angles.sin().cast(dtype) }
}
