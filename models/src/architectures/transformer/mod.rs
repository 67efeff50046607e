//! Transformer: GPT-2's causal pre-norm blocks with a ReLU MLP, layer i's attention scores divided by √d·(i + 1).
//!
//! With `causal = false`, `norm_first = false` and `scale_embeddings = true` it is the encoder of Vaswani et al., as Delétang et
//! al., arXiv 2207.02098, train it on the tasks of the Chomsky hierarchy (their linear layers in attention have no bias).
//!
//! Sources: Vaswani et al., arXiv 1706.03762; Radford et al., "Language Models are Unsupervised Multitask Learners",
//! 2019; sizes and initialisation of arXiv 2405.20131. How positions enter is in
//! [`crate::positions`](mod@crate::positions).
//!
//! With `iterations`, the blocks are applied several times with the same weights: Dehghani et al., "Universal
//! Transformers", arXiv 1807.03819, without its adaptive halting. With `input_injection`, the embeddings are added again before each
//! time: Yang et al., "Looped Transformers are Better at Learning Learning Algorithms", arXiv 2311.12424; Fan et al.,
//! "Looped Transformers for Length Generalization", arXiv 2409.15647.

mod config;

pub use crate::positions::{FREQUENCY_BASE, PositionalEmbedding};
pub use config::{AbsoluteInit, LAYER_NORM_EPSILON, OUTSIDE_WINDOW, TransformerConfig, WeightInit};

use crate::architecture::Architecture;
use crate::error::InputError;
use crate::layers::{Conv1d, DropoutSource, LayerNorm, Linear, TokenEmbedding, dropout, tied_decoder};
use crate::ops::autocast::product;
use crate::ops::{AttentionOptions, KeyMask, SequenceOps, attention};
use crate::positions::{Places, PositionModule, Score};
use crate::{Init, ModelInput, Network};
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::TensorData;
use data::Batch;

impl TransformerConfig {
    /// A model over `vocab` tokens, initialised as [`WeightInit`] says.
    pub fn init<B: Backend>(&self, vocab: usize, init: &mut Init<'_, B>) -> Transformer<B> {
        let (hidden, std) = (self.hidden_size, 0.02);
        let residual = std / (2.0 * self.num_layers as f64).sqrt();
        let mut wte = TokenEmbedding::new(init, vocab, self.embedding_size(), std, self.freeze_null_embedding);
        if let (WeightInit::Lecun, TokenEmbedding::Trained(table)) = (self.weight_init, &mut wte) {
            table.weight = init.truncated_normal([vocab, self.embedding_size()], std);
        }
        let conv1d = |init: &mut Init<'_, B>, input: usize, output: usize, std: f64| match self.weight_init {
            WeightInit::Gpt2 => Conv1d::new(init, input, output, std),
            WeightInit::Lecun => Conv1d {
                weight: init.truncated_normal([input, output], (input as f64).powf(-0.5)),
                bias: init.constant([output], 0.0),
            },
        };
        let positions = self.positional_embedding.init(self, init);
        let norm = |init: &mut Init<'_, B>| LayerNorm::new(init, hidden, self.layer_norm_epsilon);
        let h = (0..self.num_layers).map(|layer| Block {
            ln_1: norm(init),
            attn: Attention {
                c_attn: conv1d(init, hidden, 3 * hidden, std),
                c_proj: conv1d(init, hidden, hidden, residual),
                layer,
            },
            ln_2: norm(init),
            mlp: Mlp {
                c_fc: conv1d(init, hidden, self.mlp_ratio * hidden, std),
                c_proj: conv1d(init, self.mlp_ratio * hidden, hidden, residual),
            },
        });
        let h = h.collect();
        let ln_f = self.norm_first.then(|| norm(init));
        let lm_head = (!self.tie_word_embeddings).then(|| match self.weight_init {
            WeightInit::Gpt2 => Linear::new(init, hidden, vocab, std),
            WeightInit::Lecun => Linear { weight: init.truncated_normal([vocab, hidden], (hidden as f64).powf(-0.5)) },
        });
        Transformer { wte, positions, h, ln_f, lm_head, config: self.clone() }
    }
}

/// See the [module documentation](self). Field names are those of the checkpoints.
#[derive(Module, Debug)]
pub struct Transformer<B: Backend> {
    wte: TokenEmbedding<B>,
    /// Checkpoints have its parameters without this name before them.
    positions: PositionModule<B>,
    h: Vec<Block<B>>,
    /// `None` where every block ends with a norm.
    ln_f: Option<LayerNorm<B>>,
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

impl<B: Backend> Network<B> for Transformer<B> {
    fn check(&self, batch: &Batch) -> Result<(), InputError> {
        self.config.check(batch)
    }

    fn is_causal(&self) -> bool {
        self.config.causal
    }
}

/// State shared by all blocks of one forward pass.
struct Pass<'a, B: Backend> {
    config: &'a TransformerConfig,
    positions: &'a PositionModule<B>,
    places: Places<B>,
    /// The effect of positions on all layers' scores, unless it differs from layer to layer.
    score: Option<Score<B>>,
    /// Hides the keys outside of each head's window.
    windows: Option<Tensor<B, 4>>,
    mask: Option<KeyMask<B>>,
    dropout: Option<DropoutSource>,
}

impl<B: SequenceOps> Transformer<B> {
    /// Logits `[batch, seq, vocab]`.
    pub fn forward(&self, input: ModelInput<B>) -> Tensor<B, 3> {
        let config = &self.config;
        let identity = config.must_attend_to_identity;
        let x = self.wte.forward(input.input_ids); // [batch, seq, width]
        let x = match config.embedding_scale() {
            Some(scale) => x * scale,
            None => x,
        };
        let x = self.positions.embed(x, input.position_ids.clone()); // [batch, seq, hidden]
        let places = Places { positions: input.position_ids, dtype: x.dtype() };
        let is_shared = !config.positional_embedding.per_layer();
        let pass = Pass {
            config,
            positions: &self.positions,
            score: is_shared.then(|| self.positions.score(0, &places)),
            windows: windows(config, &places),
            places,
            mask: input.attention_mask.map(|keys| KeyMask { keys, identity }),
            dropout: input.dropout,
        };
        let embedded = dropout(x, config.embd_pdrop, input.dropout, 0);
        let mut x = embedded.clone();
        for iteration in 0..config.iterations.max(1) {
            if iteration > 0 && config.input_injection {
                x = x + embedded.clone();
            }
            x = self.h.iter().fold(x, |x, block| block.forward(x, &pass, iteration));
        }
        let x = match &self.ln_f {
            Some(ln_f) => ln_f.forward(x),
            None => x,
        };
        match &self.lm_head {
            Some(lm_head) => lm_head.forward(x),
            None => tied_decoder(x, self.wte.table()),
        }
    }

    /// Sizes and options.
    pub fn config(&self) -> &TransformerConfig {
        &self.config
    }
}

impl<B: SequenceOps> Block<B> {
    fn forward(&self, x: Tensor<B, 3>, pass: &Pass<'_, B>, iteration: usize) -> Tensor<B, 3> {
        let place = 3 * (iteration * pass.config.num_layers + self.attn.layer) as u64; // of the dropouts
        let residual = |y, place| dropout(y, pass.config.resid_pdrop, pass.dropout, place);
        let attend = |x| residual(self.attn.forward(x, pass, place + 1), place + 2);
        let mlp = |x| residual(self.mlp.forward(x), place + 3);
        if pass.config.norm_first {
            let x = x.clone() + attend(self.ln_1.forward(x));
            x.clone() + mlp(self.ln_2.forward(x))
        } else {
            let x = self.ln_1.forward(x.clone() + attend(x));
            self.ln_2.forward(x.clone() + mlp(x))
        }
    }
}

impl<B: SequenceOps> Attention<B> {
    fn forward(&self, x: Tensor<B, 3>, pass: &Pass<'_, B>, place: u64) -> Tensor<B, 3> {
        let qkv = self.c_attn.forward(x); // [batch, seq, 3·hidden]
        let (qkv, options) = self.scored(qkv, pass);
        let p = pass.config.attn_pdrop;
        let y = if p > 0.0 && pass.dropout.is_some() {
            let [q, k, v] = attention::heads(qkv, options.heads, options.rotation.as_ref());
            let probabilities = attention::probabilities(q, k, &options);
            attention::side_by_side(product(dropout(probabilities, p, pass.dropout, place), v))
        } else {
            B::packed_attention(qkv, options)
        };
        self.c_proj.forward(y)
    }

    /// The settings of attention with the effect of positions, and `qkv`, whose queries may have to be scaled for it.
    fn scored(&self, qkv: Tensor<B, 3>, pass: &Pass<'_, B>) -> (Tensor<B, 3>, AttentionOptions<B>) {
        let (heads, scale) = (pass.config.num_heads, pass.config.attention_scale(self.layer));
        let (mut qkv, mut rotation, mut bias) = (qkv, None, None);
        match pass.score.clone().unwrap_or_else(|| pass.positions.score(self.layer, &pass.places)) {
            Score::Nothing => {}
            Score::Rotation(by) => rotation = Some(by),
            Score::Bias(by) => bias = Some(by),
            Score::Factor(by) => qkv = attention::scaled_queries(qkv, by, heads),
            Score::Content(content) => {
                let [q, k, _] = attention::heads(qkv.clone(), heads, None);
                bias = Some(content.bias(q, k, scale, pass.mask.as_ref()));
            }
        }
        if let Some(windows) = pass.windows.clone() {
            bias = Some(match bias {
                Some(bias) => bias + windows,
                None => windows,
            });
        }
        let (mask, causal) = (pass.mask.clone(), pass.config.causal);
        (qkv, AttentionOptions { heads, scale, rotation, bias, mask, causal })
    }
}

/// A bias of the scores, `[1, heads, query, key]`: [`OUTSIDE_WINDOW`] where the key lies outside of the head's window,
/// else 0. `None` where no head has one.
pub(crate) fn windows<B: SequenceOps>(config: &TransformerConfig, places: &Places<B>) -> Option<Tensor<B, 4>> {
    let (windows, seq) = (&config.attention_windows, places.seq());
    if windows.iter().all(|window| *window == 0 || *window >= seq) {
        return None;
    }
    let hides = |window: usize, distance: usize| if window > 0 && distance >= window { OUTSIDE_WINDOW } else { 0.0 };
    let of_head = |window: &usize| (0..seq).map(|distance| hides(*window, distance)).collect::<Vec<f32>>();
    let values = windows.iter().flat_map(of_head).collect();
    let values = TensorData::new(values, [windows.len(), seq]);
    Some(B::by_distance(Tensor::from_data(values, (&places.device(), places.dtype))))
}

impl<B: SequenceOps> Mlp<B> {
    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.c_proj.forward(self.c_fc.forward_relu(x))
    }
}
