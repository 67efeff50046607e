//! The models learn: modular counting up to 50 from the longest sequence, by the optimizer that training uses.

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::TensorData;
use data::{Batch, Collation, Split, Task, stream_rng};
use models::deltanet::DeltaNetConfig;
use models::gated_deltanet::GatedDeltanetConfig;
use models::gru::GruConfig;
use models::hybrid::{HybridConfig, Kind};
use models::lstm::LstmConfig;
use models::mamba::MambaConfig;
use models::mingru::MinGruConfig;
use models::minlstm::MinLstmConfig;
use models::rnn::RnnConfig;
use models::rwkv5::Rwkv5Config;
use models::rwkv6::Rwkv6Config;
use models::rwkv7::Rwkv7Config;
use models::s4::S4Config;
use models::transformer::{PositionalEmbedding, TransformerConfig};
use models::{Cpu, Model, ModelConfig, ModelInput, Positions, masked_cross_entropy, predictions};
use rand::RngExt;

/// Trains until 99 % of the 50 tokens are right, and fails where that takes more than `max_steps`.
fn learns(config: ModelConfig, lr: f64, max_steps: usize) {
    let device = Default::default();
    let task = Task::by_name("counting_samesymbol_mod10bos").unwrap();
    let longest = task.family.example(Split::Train, 0, 49);
    assert_eq!(longest.length, 50);
    let batch = Batch::collate(&[longest.as_ref()], &task.vocabulary, &Collation::sequential()).unwrap();
    let input = ModelInput::<Autodiff<Cpu>>::new(&batch, true, &device);
    let labels = TensorData::new(batch.labels.clone(), [batch.batch, batch.seq]);
    let labels = Tensor::<Autodiff<Cpu>, 2, Int>::from_data(labels, &device);

    let mut model: Model<Autodiff<Cpu>> = config.init(task.vocabulary.len(), 1, &device);
    let mut optimizer = AdamWConfig::new().with_weight_decay(0.01).init::<Autodiff<Cpu>, Model<Autodiff<Cpu>>>();
    assert!(accuracy(&model, &batch) < 0.5, "an untrained {} must not count", config.arch());
    for step in 1..=max_steps {
        let loss = masked_cross_entropy(model.forward(input.clone()), labels.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(lr, model, gradients);
        if step % 20 == 0 && accuracy(&model, &batch) >= 0.99 {
            return eprintln!("{}: learned in {step} of at most {max_steps} steps", config.arch());
        }
    }
    panic!("{}: accuracy {} after {max_steps} steps", config.arch(), accuracy(&model, &batch));
}

fn accuracy(model: &Model<Autodiff<Cpu>>, batch: &Batch) -> f64 {
    let input = ModelInput::new(batch, true, &Default::default());
    let predicted = predictions(model.valid().forward(input)).into_data();
    let right = predicted.iter::<i64>().zip(&batch.labels).filter(|(p, l)| p == *l).count();
    right as f64 / batch.labelled() as f64
}

#[test]
fn an_rnn_learns_to_count() {
    learns(
        ModelConfig::Rnn(RnnConfig { hidden_size: 32, num_layers: 1, dropout: 0.0, ..Default::default() }),
        3e-3,
        1000,
    );
}

#[test]
fn an_lstm_learns_to_count() {
    learns(
        ModelConfig::Lstm(LstmConfig { hidden_size: 32, num_layers: 1, dropout: 0.0, ..Default::default() }),
        3e-3,
        1000,
    );
}

#[test]
fn s4_learns_to_count() {
    let config = S4Config { hidden_size: 32, dropout: 0.0, kernel_length: 64, ..Default::default() };
    learns(ModelConfig::S4(config), 3e-3, 1000);
}

#[test]
fn a_gru_learns_to_count() {
    learns(ModelConfig::Gru(GruConfig { hidden_size: 32, num_layers: 1, dropout: 0.0 }), 3e-3, 1000);
}

#[test]
fn a_transformer_learns_to_count() {
    let positional_embedding = PositionalEmbedding::Rope;
    let config =
        TransformerConfig { hidden_size: 64, num_layers: 2, num_heads: 4, positional_embedding, ..Default::default() };
    learns(ModelConfig::Transformer(config), 1e-3, 1000);
}

/// A label per token, which depends on the token and on the label before it.
type Automaton = fn(token: i64, before: Option<i64>) -> i64;

/// Random strings of `tokens`, and their labels.
fn strings(tokens: &[i64], automaton: Automaton, [batch, seq]: [usize; 2], draw: u64) -> [Ids; 2] {
    let mut rng = stream_rng(1, "strings", draw);
    let (mut ids, mut labels) = (vec![], vec![]);
    for i in 0..batch * seq {
        ids.push(tokens[rng.random_range(0..tokens.len())]);
        let before = (i % seq > 0).then(|| labels[i - 1]);
        labels.push(automaton(ids[i], before));
    }
    [ids, labels].map(|v| Tensor::from_data(TensorData::new(v, [batch, seq]), &Default::default()))
}

type Ids = Tensor<Autodiff<Cpu>, 2, Int>;

fn logits(model: &Model<Autodiff<Cpu>>, ids: Ids) -> Tensor<Autodiff<Cpu>, 3> {
    let position_ids = Positions::Integers(ids.clone());
    model.forward(ModelInput { input_ids: ids, position_ids, attention_mask: None, dropout: None })
}

/// The part of the labels that are predicted.
fn right(logits: Tensor<Autodiff<Cpu>, 3>, labels: Ids) -> f64 {
    let answers = labels.dims().iter().product::<usize>() as f64;
    f64::from(predictions(logits).equal(labels).int().sum().into_scalar()) / answers
}

/// Trains on fresh random strings of 32 of the `tokens`, until as many as `enough` of unseen answers are right, or for
/// `max_steps`. Gives the model, how many are, and the steps.
fn trained(
    config: &ModelConfig,
    tokens: &[i64],
    automaton: Automaton,
    lr: f64,
    enough: f64,
    max_steps: u64,
) -> (Model<Autodiff<Cpu>>, f64, u64) {
    let mut model: Model<Autodiff<Cpu>> = config.init(11, 1, &Default::default());
    let mut optimizer = AdamWConfig::new().init::<Autodiff<Cpu>, Model<Autodiff<Cpu>>>();
    let mut accuracy = 0.0;
    for step in 1..=max_steps {
        let [ids, labels] = strings(tokens, automaton, [16, 32], step);
        let logits = logits(&model, ids);
        if step % 20 == 0 {
            accuracy = right(logits.clone(), labels.clone());
            if accuracy >= enough {
                return (model, accuracy, step);
            }
        }
        let gradients = GradientsParams::from_grads(masked_cross_entropy(logits, labels).backward(), &model);
        model = optimizer.step(lr, model, gradients);
    }
    (model, accuracy, max_steps)
}

/// Learns an automaton from strings of 32 of the `tokens`.
fn simulates(config: ModelConfig, tokens: &[i64], automaton: Automaton, lr: f64, max_steps: u64) {
    let (_, accuracy, steps) = trained(&config, tokens, automaton, lr, 0.99, max_steps);
    assert!(accuracy >= 0.99, "{}: accuracy {accuracy} after {max_steps} steps", config.arch());
    eprintln!("{}: learned in {steps} of at most {max_steps} steps", config.arch());
}

/// The flip-flop language of Liu et al., arXiv 2306.00946, with ten symbols: every step has to output the symbol last
/// written, and most steps write nothing.
fn latches(config: ModelConfig, lr: f64, max_steps: u64) {
    const NOTHING: i64 = 10;
    let mut tokens: Vec<i64> = (0..10).collect();
    tokens.extend([NOTHING; 40]);
    let latch = |token, before: Option<i64>| if token == NOTHING { before.unwrap_or(NOTHING) } else { token };
    simulates(config, &tokens, latch, lr, max_steps);
}

/// Contextual positions can count the tokens that were written (Golovneva et al., arXiv 2405.18719, 5.1).
#[test]
fn a_transformer_with_contextual_positions_learns_to_latch() {
    let config = TransformerConfig {
        hidden_size: 32,
        num_layers: 2,
        num_heads: 2,
        positional_embedding: PositionalEmbedding::Cope,
        cope_positions: 8,
        ..Default::default()
    };
    latches(ModelConfig::Transformer(config), 5e-3, 1000);
}

#[test]
fn a_mingru_learns_to_latch() {
    latches(ModelConfig::Mingru(MinGruConfig { hidden_size: 32, num_layers: 2, dropout: 0.0 }), 5e-3, 600);
}

#[test]
fn a_minlstm_learns_to_latch() {
    latches(ModelConfig::Minlstm(MinLstmConfig { hidden_size: 32, num_layers: 2, dropout: 0.0 }), 5e-3, 600);
}

#[test]
fn a_hybrid_learns_to_latch() {
    let blocks = vec![Kind::Rglru, Kind::Attention];
    let config = HybridConfig { hidden_size: 32, blocks, intermediate_size: 64, ..Default::default() };
    latches(ModelConfig::Hybrid(config), 5e-3, 600);
}

#[test]
fn a_looped_transformer_learns_to_latch() {
    let config = TransformerConfig {
        hidden_size: 32,
        num_layers: 1,
        num_heads: 2,
        iterations: 3,
        input_injection: true,
        positional_embedding: PositionalEmbedding::Alibi,
        ..Default::default()
    };
    latches(ModelConfig::Transformer(config), 5e-3, 1000);
}

#[test]
fn mamba_learns_to_latch() {
    let config = MambaConfig { hidden_size: 32, num_layers: 1, ..Default::default() };
    latches(ModelConfig::Mamba(config), 3e-3, 1000);
}

#[test]
fn an_rwkv5_learns_to_latch() {
    latches(ModelConfig::Rwkv5(Rwkv5Config { hidden_size: 32, num_layers: 2, head_size: 16, dropout: 0.0 }), 5e-3, 600);
}

#[test]
fn an_rwkv6_learns_to_latch() {
    latches(ModelConfig::Rwkv6(Rwkv6Config { hidden_size: 32, num_layers: 2, head_size: 16, dropout: 0.0 }), 5e-3, 600);
}

#[test]
fn an_rwkv7_learns_to_latch() {
    let config = Rwkv7Config { hidden_size: 32, num_layers: 2, head_size: 16, ..Default::default() };
    latches(ModelConfig::Rwkv7(config), 5e-3, 600);
}

fn deltanet(negative_eigenvalues: bool) -> ModelConfig {
    let (hidden_size, num_layers, head_size, dropout) = (32, 2, 16, 0.0);
    ModelConfig::Deltanet(DeltaNetConfig { hidden_size, num_layers, head_size, negative_eigenvalues, dropout })
}

#[test]
fn a_deltanet_learns_to_latch() {
    latches(deltanet(false), 5e-3, 600);
}

/// The parity of the ones so far, which takes an eigenvalue of −1 (Grazzi et al., arXiv 2411.12537).
#[test]
fn a_deltanet_learns_parity() {
    simulates(deltanet(true), &[0, 1], |token, before| (token + before.unwrap_or(0)) % 2, 5e-3, 1000);
}

/// With eigenvalues down to −1, parity is learned and goes on beyond the trained length; with those of 0 … 1, no length is
/// learned (Grazzi et al., arXiv 2411.12537, theorem 1 and section 5.1).
fn needs_negative_eigenvalues(config: impl Fn(bool) -> ModelConfig, lr: f64, steps: u64) {
    let parity: Automaton = |token, before| (token + before.unwrap_or(0)) % 2;
    let beyond = |negative| {
        let (model, accuracy, _) = trained(&config(negative), &[0, 1], parity, lr, f64::INFINITY, steps);
        let [ids, labels] = strings(&[0, 1], parity, [8, 256], 0);
        let beyond = right(logits(&model, ids), labels);
        eprintln!("{}: {accuracy} at 32 after {steps} steps, {beyond} at 256", config(negative).arch());
        beyond
    };
    let [without, with] = [false, true].map(beyond);
    assert!(with > 0.95, "{with} of the answers in strings of 256 with negative eigenvalues");
    assert!(without < 0.75, "{without} of the answers in strings of 256 without");
}

#[test]
fn parity_needs_a_gated_deltanet_with_negative_eigenvalues() {
    let config = |negative_eigenvalues| {
        ModelConfig::GatedDeltanet(GatedDeltanetConfig {
            hidden_size: 32,
            num_layers: 1,
            head_size: 32,
            expand_v: 1.0,
            conv_kernel: 0,
            intermediate_size: 64,
            forget_gate: false,
            output_gate: false,
            negative_eigenvalues,
            ..Default::default()
        })
    };
    needs_negative_eigenvalues(config, 1e-2, 600);
}

#[test]
fn parity_needs_a_mamba_with_negative_eigenvalues() {
    let config = |negative_eigenvalues| {
        ModelConfig::Mamba(MambaConfig { hidden_size: 32, num_layers: 2, negative_eigenvalues, ..Default::default() })
    };
    needs_negative_eigenvalues(config, 5e-3, 400);
}
