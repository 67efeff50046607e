//! The options of the Transformer and of the recurrent models, settings of the original code, and its checkpoints.

use burn::backend::Autodiff;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::TensorData;
use data::{Augmentation, Batch, Collation, Example, PAD, PositionIds, PositionSampling, Vocabulary};
use models::layers::DropoutSource;
use models::lstm::LstmConfig;
use models::original::Original;
use models::rnn::RnnConfig;
use models::transformer::PositionalEmbedding::{
    Absolute, Alibi, Cope, Fire, KerpleLog, Logn, LognClip, None as NoPositions, Rope, Scalar, Sinusoidal, Ssmax, T5,
};
use models::transformer::{AbsoluteInit, PositionalEmbedding, TransformerConfig};
use models::{Cpu, InputError, Model, ModelConfig, ModelInput, Positions, Weight, WeightError, Weights};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

type Training = Autodiff<Cpu>;

const VOCAB: usize = 13;
const IDS: [i64; 9] = [1, 12, 3, 12, 5, 12, 12, 7, 1];

fn small(positional_embedding: PositionalEmbedding) -> TransformerConfig {
    TransformerConfig { hidden_size: 16, num_heads: 2, positional_embedding, ..Default::default() }
}

fn rnn() -> RnnConfig {
    RnnConfig { hidden_size: 16, num_layers: 2, dropout: 0.0, ..Default::default() }
}

fn lstm() -> LstmConfig {
    LstmConfig { hidden_size: 16, num_layers: 2, dropout: 0.0, ..Default::default() }
}

fn input<B: Backend>(config: &ModelConfig, ids: &[i64]) -> ModelInput<B> {
    let row = |values: TensorData| values.convert::<f32>();
    let fractions: Vec<f32> = (0..ids.len()).map(|i| i as f32 / 16.0).collect();
    let positions: Vec<i64> = (0..ids.len() as i64).collect();
    let position_ids = match config.augmentation().is_scalar() {
        true => {
            Positions::Scalars(Tensor::from_data(row(TensorData::new(fractions, [1, ids.len()])), &Default::default()))
        }
        false => Positions::Integers(ints(&positions)),
    };
    ModelInput { input_ids: ints(ids), position_ids, attention_mask: None, dropout: None }
}

fn ints<B: Backend>(values: &[i64]) -> Tensor<B, 2, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &Default::default())
}

fn logits(model: &Model<Cpu>, input: ModelInput<Cpu>) -> Vec<Vec<f32>> {
    let values: Vec<f32> = model.forward(input).into_data().iter().collect();
    values.chunks(VOCAB).map(<[f32]>::to_vec).collect()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

fn weights_of(config: &ModelConfig) -> Weights {
    Weights::of(&config.init::<Cpu>(VOCAB, 0, &Default::default())).unwrap()
}

// Sizes ---------------------------------------------------------------------------------------------------------------

/// The trainable parameters of arXiv 2405.20131 with 103 and 13 tokens.
#[test]
fn trainable_parameters_are_those_of_the_paper() {
    let transformer = |positional_embedding, num_layers| TransformerConfig {
        hidden_size: 1024,
        num_heads: 8,
        num_layers,
        positional_embedding,
        ..Default::default()
    };
    let tied = |layers| TransformerConfig { tie_word_embeddings: true, ..transformer(NoPositions, layers) };
    for (config, counts) in [
        (transformer(Sinusoidal, 1), [12_809_216, 12_624_896]),
        (transformer(Rope, 2), [25_405_440, 25_221_120]),
        (transformer(Absolute, 1), [12_940_288, 12_755_968]),
        (transformer(Absolute, 2), [25_536_512, 25_352_192]),
        (transformer(Scalar, 1), [12_809_113, 12_624_883]),
        (transformer(Scalar, 2), [25_405_337, 25_221_107]),
        (tied(1), [12_703_744, 12_611_584]),
        (tied(2), [25_299_968, 25_207_808]),
    ] {
        let model = ModelConfig::Transformer(config);
        let count = |vocab| model.init::<Training>(vocab, 0, &Default::default()).num_trainable_params();
        assert_eq!([103, 13].map(count), counts, "{model:?}");
    }
}

#[test]
fn frozen_numbers_are_not_counted() {
    let count = |config: ModelConfig| config.init::<Training>(VOCAB, 0, &Default::default()).num_trainable_params();
    let absolute = |absolute_freeze| ModelConfig::Transformer(TransformerConfig { absolute_freeze, ..small(Absolute) });
    assert_eq!(count(absolute(false)) - count(absolute(true)), 128 * 16);
    let null = |freeze_null_embedding| ModelConfig::Rnn(RnnConfig { freeze_null_embedding, ..rnn() });
    assert_eq!(count(null(false)) - count(null(true)), 16);
}

// Their results -------------------------------------------------------------------------------------------------------

#[test]
fn positions_matter_where_there_are_some() {
    for embedding in [NoPositions, Absolute, Sinusoidal, Rope, Scalar] {
        let config = ModelConfig::Transformer(TransformerConfig { num_heads: 4, ..small(embedding) });
        let model = config.init::<Cpu>(VOCAB, 0, &Default::default());
        let at = |positions: [i64; 4]| {
            let input =
                ModelInput { position_ids: Positions::Integers(ints(&positions)), ..input(&config, &[1, 2, 3, 4]) };
            logits(&model, input).concat()
        };
        let change = difference(&at([0, 1, 2, 3]), &at([0, 5, 6, 20]));
        assert_eq!(change > 1e-7, embedding != NoPositions, "{embedding:?}: {change}");
    }
}

#[test]
fn a_hidden_token_sees_itself_only_if_it_must() {
    let ones: Vec<f32> = (0..IDS.len()).map(|i| if i == 4 { 0.0 } else { 1.0 }).collect();
    let mask = Tensor::<Cpu, 2>::from_data(TensorData::new(ones, [1, IDS.len()]), &Default::default());
    for must_attend_to_identity in [false, true] {
        let config = TransformerConfig { must_attend_to_identity, num_layers: 1, ..small(NoPositions) };
        // All but attention's own way out of the hidden token's embedding is the same with and without it.
        let config = ModelConfig::Transformer(config);
        let model = config.init::<Cpu>(VOCAB, 0, &Default::default());
        let run = |mask| logits(&model, ModelInput { attention_mask: mask, ..input(&config, &IDS) });
        let (masked, unmasked) = (run(Some(mask.clone())), run(None));
        assert_eq!(difference(&masked[4], &unmasked[4]) < 1e-7, must_attend_to_identity);
        assert!(difference(&masked[5], &unmasked[5]) > 1e-7, "the others never see it");
    }
}

#[test]
fn each_dropout_of_a_transformer_acts_in_training_only() {
    let source = DropoutSource { seed: 1, step: 2 };
    let at =
        |embd_pdrop, attn_pdrop, resid_pdrop| TransformerConfig { embd_pdrop, attn_pdrop, resid_pdrop, ..small(Rope) };
    let run = |config: TransformerConfig, dropout: Option<DropoutSource>| {
        let config = ModelConfig::Transformer(config);
        let model = config.init::<Cpu>(VOCAB, 0, &Default::default());
        logits(&model, ModelInput { dropout, ..input(&config, &IDS) }).concat()
    };
    let none = run(at(0.0, 0.0, 0.0), None);
    assert_eq!(run(at(0.0, 0.0, 0.0), Some(source)), none);
    let dropped = [at(0.5, 0.0, 0.0), at(0.0, 0.5, 0.0), at(0.0, 0.0, 0.5)].map(|config| {
        assert_eq!(run(config.clone(), None), none, "evaluation");
        assert_eq!(run(config.clone(), Some(source)), run(config.clone(), Some(source)), "the same step twice");
        run(config, Some(source))
    });
    assert!(dropped.iter().all(|logits| difference(logits, &none) > 1e-6));
    assert!(difference(&dropped[0], &dropped[1]) > 1e-6 && difference(&dropped[1], &dropped[2]) > 1e-6);
}

/// 72 tokens, at once and in pieces of 1, 7 and 64.
#[test]
fn a_recurrent_model_fed_in_pieces_equals_the_whole() {
    let ids: Vec<i64> = (0..72).map(|i| i * i % 13).collect();
    let pieces = [&ids[..1], &ids[1..8], &ids[8..]];
    let flat = |tensors: Vec<Tensor<Cpu, 3>>| -> Vec<f32> { Tensor::cat(tensors, 1).into_data().iter().collect() };
    macro_rules! check {
        ($variant:ident, $config:expr) => {
            let config = ModelConfig::$variant($config);
            let Model::$variant(model) = config.init::<Cpu>(VOCAB, 0, &Default::default()) else { panic!() };
            let (mut state, mut parts, mut forgetful) = (None, vec![], vec![]);
            for piece in pieces {
                let (out, next) = model.forward_from(input(&config, piece), state);
                parts.push(out);
                state = Some(next);
                forgetful.push(model.forward(input(&config, piece)));
            }
            let whole = flat(vec![model.forward(input(&config, &ids))]);
            assert!(difference(&whole, &flat(parts)) < 1e-6, "{config:?}");
            assert!(difference(&whole, &flat(forgetful)) > 1e-5, "{config:?}: the state must matter");
        };
    }
    check!(Rnn, rnn());
    check!(Rnn, RnnConfig { tie_word_embeddings: true, ..rnn() });
    check!(Lstm, lstm());
    check!(Lstm, LstmConfig { freeze_null_embedding: true, ..lstm() });
}

// Frozen and tied parameters ------------------------------------------------------------------------------------------

#[test]
fn training_changes_every_parameter_but_the_frozen_ones() {
    let ids: Vec<i64> = (0..VOCAB as i64).collect();
    for config in ModelConfig::examples() {
        let mut model = config.init::<Training>(VOCAB, 0, &Default::default());
        let before = Weights::of(&model).unwrap();
        let mut optimizer = AdamWConfig::new().with_weight_decay(0.1).init();
        for _ in 0..3 {
            let logits = model.forward(input(&config, &ids));
            let loss = models::masked_cross_entropy(logits, ints(&ids));
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(1e-2, model, gradients);
        }
        let frozen_table = matches!(&config, ModelConfig::Transformer(c) if c.absolute_freeze);
        for ((name, before), (_, after)) in before.iter().zip(Weights::of(&model).unwrap().iter()) {
            let frozen = ["sine.pe", "weight_freeze", "fire.init_L"].iter().any(|end| name.ends_with(end))
                || name == "wpe.weight" && frozen_table;
            assert_eq!(before == after, frozen, "{config:?}: {name}");
        }
    }
}

#[test]
fn the_null_embedding_is_zero_to_begin_with() {
    for config in ModelConfig::examples() {
        for (name, weight) in weights_of(&config).iter().filter(|(name, _)| name.ends_with("weight_freeze")) {
            assert!(weight.values.iter().all(|&v| v == 0.0) && weight.shape == [1, weight.values.len()], "{name}");
        }
    }
}

#[test]
fn tables_can_begin_as_sinusoids() {
    let config = TransformerConfig { absolute_init: AbsoluteInit::Sinusoidal, ..small(Absolute) };
    let learned = weights_of(&ModelConfig::Transformer(config));
    let computed = weights_of(&ModelConfig::Transformer(small(Sinusoidal)));
    assert_eq!(learned.get("wpe.weight"), computed.get("sine.pe"));
}

#[test]
fn files_hold_a_tied_parameter_under_both_names_and_refuse_a_contradiction() {
    for (config, names) in [
        (ModelConfig::Transformer(TransformerConfig { tie_word_embeddings: true, ..small(Rope) }), ["wte", "lm_head"]),
        (ModelConfig::Lstm(LstmConfig { tie_word_embeddings: true, ..lstm() }), ["encoder", "decoder"]),
    ] {
        let saved = weights_of(&config);
        let bytes = saved.to_safetensors().unwrap();
        let [first, second] = names.map(|module| format!("{module}.weight"));
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor(&first).unwrap().data(), file.tensor(&second).unwrap().data());
        assert_eq!(read("tied.safetensors", &bytes).unwrap(), saved, "here it is once");

        let other = Weight { values: vec![0.5; VOCAB * 16], shape: vec![VOCAB, 16] };
        let all = saved.iter().map(|(name, weight)| (name.to_owned(), weight.clone()));
        let untied: Weights = all.chain([(second.clone(), other)]).collect();
        let error = untied.load_into(&mut config.init::<Cpu>(VOCAB, 0, &Default::default())).unwrap_err().to_string();
        assert!(error.contains(&format!("{second} is not in the model")), "{error}");
    }
}

// Settings ------------------------------------------------------------------------------------------------------------

#[test]
fn contradictory_settings_are_refused_by_key() {
    let drawn = |embedding, augmentation| TransformerConfig { augmentation, ..small(embedding) };
    for (config, key) in [
        (drawn(NoPositions, Augmentation::Shift), "augmentation"),
        (drawn(Sinusoidal, Augmentation::Randomized), "augmentation"),
        (drawn(Scalar, Augmentation::Randomized), "augmentation"),
        (drawn(Rope, Augmentation::Zooming), "augmentation"),
        (drawn(Absolute, Augmentation::ScalerShift), "augmentation"),
        (TransformerConfig { absolute_freeze: true, ..small(Rope) }, "absolute_freeze"),
        (TransformerConfig { absolute_init: AbsoluteInit::Sinusoidal, ..small(Sinusoidal) }, "absolute_init"),
        (TransformerConfig { tie_word_embeddings: true, ..small(Scalar) }, "tie_word_embeddings"),
        (
            TransformerConfig { tie_word_embeddings: true, freeze_null_embedding: true, ..small(Rope) },
            "tie_word_embeddings",
        ),
        (TransformerConfig { max_position_embeddings: 0, ..small(Absolute) }, "max_position_embeddings"),
        (TransformerConfig { mlp_ratio: 0, ..small(Rope) }, "mlp_ratio"),
        (TransformerConfig { t5_buckets: 1, ..small(T5) }, "t5_buckets"),
        (TransformerConfig { t5_max_distance: 16, ..small(T5) }, "t5_max_distance"),
        (TransformerConfig { t5_max_distance: 1 << 20, ..small(T5) }, "t5_max_distance"),
        (TransformerConfig { t5_buckets: 16, ..small(Alibi) }, "t5_buckets"),
        (TransformerConfig { fire_width: 0, ..small(Fire) }, "fire_width"),
        (TransformerConfig { fire_init_c: 0.0, ..small(Fire) }, "fire_init_c"),
        (TransformerConfig { fire_init_length: f64::NAN, ..small(Fire) }, "fire_init_length"),
        (TransformerConfig { cope_positions: 0, ..small(Cope) }, "cope_positions"),
        (TransformerConfig { ssmax_init: f64::INFINITY, ..small(Ssmax) }, "ssmax_init"),
        (TransformerConfig { logn_clip_train_length: 1, ..small(LognClip) }, "logn_clip_train_length"),
        (TransformerConfig { logn_clip_train_length: 64, ..small(Logn) }, "logn_clip_train_length"),
        (TransformerConfig { attention_windows: vec![3], ..small(Rope) }, "attention_windows"),
        (TransformerConfig { attn_pdrop: 1.0, ..small(Rope) }, "attn_pdrop"),
        (TransformerConfig { layer_norm_epsilon: -1.0, ..small(Rope) }, "layer_norm_epsilon"),
        (TransformerConfig { hidden_size: 9, num_heads: 3, ..small(Sinusoidal) }, "hidden_size"),
        (TransformerConfig { hidden_size: 1, num_heads: 1, ..small(Scalar) }, "hidden_size"),
    ] {
        let error = ModelConfig::Transformer(config).validate().unwrap_err();
        assert_eq!(error.key, key, "{error}");
    }
    for config in ModelConfig::examples() {
        config.validate().unwrap();
    }
}

#[test]
fn only_the_null_token_can_be_frozen() {
    let config = ModelConfig::Rnn(RnnConfig { freeze_null_embedding: true, ..rnn() });
    let vocabulary = |first: &str| Vocabulary::new(vec![first.to_owned(), PAD.to_owned()]);
    config.check_vocabulary(&vocabulary("<null>")).unwrap();
    let error = config.check_vocabulary(&vocabulary("0")).unwrap_err().to_string();
    assert!(error.starts_with("model.freeze_null_embedding: token 0 of the task is `0`"), "{error}");
    ModelConfig::Rnn(rnn()).check_vocabulary(&vocabulary("0")).unwrap();
}

#[test]
fn positions_that_a_model_cannot_take_are_refused_before_it_runs() {
    let v = Vocabulary::numbers_then(10, &[PAD, "a"]);
    let example = Example { input_ids: vec![12; 20], labels: vec![1; 20], length: 20 };
    let batch = |augmentation| {
        let positions = PositionSampling { augmentation, max_position_embeddings: 64, seed: 0, draw: 0 };
        Batch::collate(&[example.as_ref()], &v, &Collation { positions, pad_to: None }).unwrap()
    };
    let sized = |embedding, max_position_embeddings| {
        ModelConfig::Transformer(TransformerConfig { max_position_embeddings, ..small(embedding) })
    };
    for embedding in [Absolute, Sinusoidal] {
        assert_eq!(sized(embedding, 19).max_length(), Some(19));
        let error = sized(embedding, 19).check(&batch(Augmentation::None)).unwrap_err();
        assert_eq!(error, InputError::PastTable { position: 19, limit: 19 });
        sized(embedding, 20).check(&batch(Augmentation::None)).unwrap();
    }
    for (config, augmentation, fits) in [
        (sized(Rope, 4), Augmentation::None, true),
        (sized(NoPositions, 4), Augmentation::Zooming, true),
        (sized(Rope, 64), Augmentation::Zooming, false),
        (sized(Scalar, 64), Augmentation::Zooming, true),
        (sized(Scalar, 64), Augmentation::Shift, false),
    ] {
        assert_eq!(config.check(&batch(augmentation)).is_ok(), fits, "{config:?} with {augmentation:?}");
        let model = config.init::<Cpu>(v.len(), 0, &Default::default());
        assert_eq!(model.check(&batch(augmentation)).is_ok(), fits);
    }
    let model = sized(Scalar, 64).init::<Cpu>(v.len(), 0, &Default::default());
    let zoomed = batch(Augmentation::Zooming);
    assert!(matches!(zoomed.position_ids, PositionIds::Scalars(_)));
    assert_eq!(model.forward(ModelInput::new(&zoomed, true, &Default::default())).dims(), [1, 20, 13]);
}

// The original's settings ---------------------------------------------------------------------------------------------

fn original(changes: Value) -> Result<Original, String> {
    let mut config = json!({
        "arch": "transformer", "task": "counting_samesymbol", "hidden_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 96, "rotary_posemb": true, "absolute_posemb": false,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    Original::new(&config).map_err(|e| e.to_string())
}

#[test]
fn position_flags_of_the_original_become_one_embedding_and_one_augmentation() {
    for (flags, embedding, augmentation) in [
        (json!({}), Rope, Augmentation::None),
        (json!({"rotary_posemb_shift": true}), Rope, Augmentation::Shift),
        (json!({"rotary_posemb_rdmz": true}), Rope, Augmentation::Randomized),
        (json!({"rotary_posemb_shift": true, "rotary_posemb_rdmz": true}), Rope, Augmentation::Shift),
        (json!({"rotary_posemb": false}), NoPositions, Augmentation::None),
        (json!({"rotary_posemb": false, "scaler_posemb": true}), Scalar, Augmentation::Zooming),
        (
            json!({"rotary_posemb": false, "scaler_posemb": true, "scaler_posemb_shift": true}),
            Scalar,
            Augmentation::ScalerShift,
        ),
    ] {
        let found = original(flags.clone()).unwrap().model;
        let ModelConfig::Transformer(config) = &found else { panic!("{found:?}") };
        assert_eq!((config.positional_embedding, found.augmentation()), (embedding, augmentation), "{flags}");
        assert_eq!((config.num_layers, config.max_position_embeddings), (3, 96));
    }
}

/// Configs that name a scheme need neither a task nor a size of a table, and may leave options out.
#[test]
fn a_config_may_name_its_positional_embedding() {
    let read = |position: &str, options: Value| {
        let mut config =
            json!({"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "position": position});
        config.as_object_mut().unwrap().extend(options.as_object().unwrap().clone());
        Original::new(&config)
    };
    let of = |positional_embedding| TransformerConfig {
        hidden_size: 8,
        num_layers: 1,
        num_heads: 2,
        positional_embedding,
        ..Default::default()
    };
    for (position, options, expected) in [
        ("nope", json!({}), of(NoPositions)),
        ("rope", json!({}), of(Rope)),
        ("alibi", json!({}), of(Alibi)),
        ("t5", json!({}), of(T5)),
        (
            "t5",
            json!({"num_buckets": 16, "max_distance": 64}),
            TransformerConfig { t5_buckets: 16, t5_max_distance: 64, ..of(T5) },
        ),
        ("kerple_log", json!({}), of(KerpleLog)),
        (
            "fire",
            json!({"fire_mlp_width": 8, "fire_init_c": 0.2, "fire_init_L": 64.0}),
            TransformerConfig { fire_width: 8, fire_init_c: 0.2, fire_init_length: 64.0, ..of(Fire) },
        ),
        ("cope", json!({"cope_npos": 8}), TransformerConfig { cope_positions: 8, ..of(Cope) }),
        ("ssmax", json!({"ssmax_init": 1}), TransformerConfig { ssmax_init: 1.0, ..of(Ssmax) }),
        ("logn", json!({}), of(Logn)),
        ("logn_clip", json!({"logn_train_len": 40}), TransformerConfig { logn_clip_train_length: 40, ..of(LognClip) }),
    ] {
        let found = read(position, options).unwrap();
        assert_eq!((found.model, found.unused), (ModelConfig::Transformer(expected), vec![]), "{position}");
    }
    let other = read("alibi", json!({"cope_npos": 8})).unwrap();
    assert_eq!(other.unused, ["cope_npos"], "an option of another scheme");
    for (position, options, message) in [
        ("sandwich", json!({}), "position: `sandwich` is not a positional embedding of this program: none, absolute,"),
        ("absolute", json!({}), "max_position_embeddings: the field is missing"),
        ("t5", json!({"rotary_posemb": true}), "rotary_posemb: a second positional embedding beside t5"),
        ("cope", json!({"cope_npos": 0}), "cope_positions: must be at least 1"),
    ] {
        let error = read(position, options).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn what_the_original_asks_for_and_cannot_be_had_is_named() {
    for (change, message) in [
        (json!({"activation_function": "gelu"}), "activation_function: \"gelu\" is not supported"),
        (json!({"absolute_posemb": true}), "rotary_posemb: a second positional embedding beside absolute"),
        (json!({"hidden_size": null}), "hidden_size: the field is missing"),
        (json!({"hidden_size": "wide"}), "hidden_size: invalid type"),
        (json!({"num_attention_heads": 7}), "num_heads: hidden_size 64 cannot be split into 7 heads"),
        (json!({"arch": "perceptron"}), "arch: `perceptron` is not an architecture"),
        (json!({"arch": "rwkv", "my_testing": "x080"}), "my_testing: `x080` is not supported"),
        (json!({"arch": "mamba", "rms_norm": false}), "rms_norm: false is not supported"),
    ] {
        let error = original(change).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
    let found = original(json!({"ckpt_dir": "x", "learning_rate": 0.1, "absolute_posemb_initfromsine": true})).unwrap();
    assert_eq!(found.unused, ["ckpt_dir", "learning_rate"]);
    assert!(found.notes[0].contains("no effect"));
}

// Checkpoints of PyTorch ----------------------------------------------------------------------------------------------

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn read(name: &str, bytes: &[u8]) -> Result<Weights, WeightError> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let weights = Weights::read(&path);
    std::fs::remove_file(&path).unwrap();
    weights
}

#[test]
fn a_state_dict_of_every_type_is_read() {
    let weights = Weights::read(&fixture("types.pt")).unwrap();
    let counting = |values: &[usize]| values.iter().map(|&v| v as f32).collect::<Vec<_>>();
    let all: Vec<usize> = (0..12).collect();
    for (name, shape, values) in [
        ("float64", &[3, 4][..], counting(&all)),
        ("float32", &[4, 3], counting(&[0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11])),
        ("float16", &[2, 3], counting(&all[2..8])),
        ("bfloat16", &[12], counting(&all)),
        ("shared", &[8], counting(&all[4..])),
    ] {
        let found = weights.get(name).unwrap();
        assert_eq!((found.shape.as_slice(), &found.values), (shape, &values), "{name}");
    }
    assert_eq!(weights.integer("step"), Some(5));
    assert_eq!(weights.iter().count(), 5, "a mask is no parameter");
}

#[test]
fn what_is_no_state_dict_is_refused() {
    let error = Weights::read(&fixture("not_a_state_dict.pt")).unwrap_err().to_string();
    assert!(error.contains("`model` is not a tensor"), "{error}");
}

#[test]
fn damaged_state_dicts_are_refused_with_the_name_of_the_file() {
    let whole = std::fs::read(fixture("types.pt")).unwrap();
    for length in (0..whole.len()).step_by(13) {
        let error = read("cut.pt", &whole[..length]).expect_err(&format!("cut after {length} bytes"));
        assert!(matches!(error, WeightError::Damaged { .. }) && error.to_string().contains("cut.pt"), "{error}");
    }
    for bit in (0..8 * whole.len()).step_by(3) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let _ = read("flipped.pt", &flipped); // read or refused, as long as nothing panics
    }
}
