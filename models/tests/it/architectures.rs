//! Properties of every architecture, with each of its options and positional schemes: all of `ModelConfig::examples`,
//! so that new ones are tested automatically.

use crate::common::{VOCAB, difference, flat, fresh, ids, shaken};
use burn::backend::Autodiff;
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::TensorData;
use data::{Batch, Collation, Example, PAD, PositionSampling, Vocabulary};
use models::layers::DropoutSource;
use models::transformer::PositionalEmbedding;
use models::{Cpu, Model, ModelConfig, ModelInput, Positions, Weights, masked_cross_entropy};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Training = Autodiff<Cpu>;

/// Tokens at positions 0, 1, 2 …, as fractions of 16 where the model takes fractions.
fn input<B: Backend>(config: &ModelConfig, ids: &[i64]) -> ModelInput<B> {
    let position_ids = match config.augmentation().is_scalar() {
        true => {
            let fractions: Vec<f32> = (0..ids.len()).map(|i| i as f32 / 16.0).collect();
            Positions::Scalars(Tensor::from_data(TensorData::new(fractions, [1, ids.len()]), &Default::default()))
        }
        false => Positions::Integers(ints(&(0..ids.len() as i64).collect::<Vec<_>>())),
    };
    ModelInput { input_ids: ints(ids), position_ids, attention_mask: None, dropout: None }
}

fn ints<B: Backend>(values: &[i64]) -> Tensor<B, 2, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &Default::default())
}

#[test]
fn there_are_examples_of_every_architecture_and_every_option() {
    let examples = ModelConfig::examples();
    let mut archs: Vec<&str> = examples.iter().map(|config| config.arch()).collect();
    archs.dedup();
    assert_eq!(archs, ModelConfig::ARCHITECTURES, "in this order, each together");
    let schemes: BTreeSet<&str> =
        examples.iter().filter(|c| c.arch() == "transformer").map(|c| c.positional_embedding()).collect();
    assert_eq!(schemes, PositionalEmbedding::ALL.iter().map(|scheme| scheme.name()).collect());
    for kind in ModelConfig::KINDS {
        let mut values: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (i, config) in (kind.examples)().into_iter().enumerate() {
            config.validate().unwrap_or_else(|e| panic!("{config:?}: {e}"));
            let Value::Object(fields) = serde_json::to_value(&config).unwrap() else { panic!() };
            assert_eq!(fields["arch"], kind.name);
            let json = serde_json::to_string(&fields).unwrap();
            assert_eq!(serde_json::from_str::<ModelConfig>(&json).unwrap(), config, "example {i}");
            for (key, value) in fields {
                values.entry(key).or_default().insert(value.to_string());
            }
        }
        for (key, values) in values.iter().filter(|(key, _)| !["arch", "augmentation"].contains(&key.as_str())) {
            let chosen = values.iter().any(|v| v.starts_with('"') || v == "true" || v == "false");
            assert!(!chosen || values.len() > 1, "{}.{key} is {values:?} in every example", kind.name);
        }
    }
}

#[test]
fn a_token_changes_no_logits_before_it_unless_attention_goes_both_ways_and_those_after_it() {
    for config in ModelConfig::examples() {
        let model = shaken(&config);
        let ids = ids(9);
        let before = flat(model.forward(input(&config, &ids)));
        for t in 0..ids.len() {
            let mut other = ids.clone();
            other[t] = (other[t] + 1) % VOCAB as i64;
            let after = flat(model.forward(input(&config, &other)));
            for (u, (before, after)) in before.chunks(VOCAB).zip(after.chunks(VOCAB)).enumerate() {
                let change = difference(before, after);
                let is_hidden = u < t && config.is_causal();
                assert!(
                    if is_hidden { change < 1e-6 } else { change > 1e-5 },
                    "{config:?}: {t} changed {u} by {change}"
                );
            }
        }
    }
}

#[test]
fn padding_on_the_right_changes_no_earlier_logits() {
    let vocabulary = Vocabulary::numbers_then(10, &[PAD, "a"]);
    let example = |n: usize| Example {
        input_ids: ids(n).iter().map(|&id| (id % 11) as u16).collect(),
        labels: vec![1; n],
        length: n as u32,
    };
    let (short, long) = (example(5), example(9));
    for config in ModelConfig::examples() {
        // zooming depends on the length of the batch's longest sequence
        let positions = PositionSampling { max_position_embeddings: 16, ..config.positions(1, 0) };
        let batch = |examples: &[&Example]| {
            let rows = examples.iter().enumerate().map(|(i, example)| (i as u64, example.as_ref()));
            Batch::collate_rows(rows, &vocabulary, &Collation { positions, pad_to: None }).unwrap()
        };
        let (alone, padded) = (batch(&[&short]), batch(&[&short, &long]));
        let mut alone = ModelInput::new(&alone, config.is_causal(), &Default::default());
        let unmasked = ModelInput::<Cpu>::new(&padded, config.is_causal(), &Default::default());
        assert_eq!(
            unmasked.attention_mask.is_none(),
            config.is_causal(),
            "padding on the right needs no mask, if causal"
        );
        alone.position_ids = match unmasked.position_ids.clone() {
            Positions::Integers(ids) => Positions::Integers(ids.slice([0..1, 0..5])),
            Positions::Scalars(values) => Positions::Scalars(values.slice([0..1, 0..5])),
        };
        let mask: Vec<f32> = padded.attention_mask.iter().map(|&m| m as f32).collect();
        let mask = Tensor::from_data(TensorData::new(mask, [2, 9]), &Default::default());
        let masked = ModelInput { attention_mask: Some(mask), ..unmasked.clone() };
        // Fresh weights give small logits; of shaken ones the logits are larger, and so is their rounding.
        for (model, bound) in [(fresh(&config), 1e-6), (shaken(&config), 1e-5)] {
            let alone = flat(model.forward(alone.clone()));
            for input in [&unmasked, &masked] {
                let padded = flat(model.forward(input.clone())); // both examples' tokens, the short example's first
                let change = difference(&alone, &padded[..alone.len()]);
                assert!(change < bound, "{config:?}: padding changed the logits by {change}");
            }
        }
    }
}

#[test]
fn a_seed_means_the_same_weights_on_every_backend() {
    for config in ModelConfig::examples() {
        let weights = |seed| Weights::of(&config.init::<Cpu>(VOCAB, seed, &Default::default())).unwrap();
        assert_eq!(weights(3), weights(3), "{config:?}");
        assert_ne!(weights(3), weights(4), "{config:?}");
        let training = config.init::<Training>(VOCAB, 3, &Default::default());
        assert_eq!(weights(3), Weights::of(&training).unwrap(), "{config:?} on another backend");
        assert_eq!(weights(3).num_parameters(), burn::module::Module::num_params(&training), "{config:?}");
    }
}

#[test]
fn weights_survive_a_safetensors_file() {
    for (i, config) in ModelConfig::examples().into_iter().enumerate() {
        let model = fresh(&config);
        let saved = Weights::of(&model).unwrap();
        let name = format!("example-{i}-{}.safetensors", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, saved.to_safetensors().unwrap()).unwrap();
        let read = Weights::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(read, saved, "{config:?}");

        let mut other: Model<Cpu> = config.init(VOCAB, 2, &Default::default());
        assert_ne!(Weights::of(&other).unwrap(), saved, "{config:?}");
        let ids_before = burn::module::list_param_ids(&other);
        read.load_into(&mut other).unwrap();
        assert_eq!(Weights::of(&other).unwrap(), saved, "{config:?}");
        assert_eq!(
            burn::module::list_param_ids(&other),
            ids_before,
            "{config:?}: an optimizer's state is found by them"
        );
        let logits = |model: &Model<Cpu>| flat(model.forward(input(&config, &ids(9))));
        assert_eq!(logits(&other), logits(&model), "{config:?}");
    }
}

#[test]
fn the_decoder_is_among_the_weights() {
    for config in ModelConfig::examples() {
        let weights = Weights::of(&fresh(&config)).unwrap();
        let decoder = config.decoder_weights().iter().find_map(|name| weights.get(name));
        assert_eq!(decoder.map(|w| w.shape[0]), Some(VOCAB), "{config:?}");
    }
}

#[test]
fn dropout_acts_in_training_only_and_where_the_config_says_so() {
    for config in ModelConfig::examples() {
        let model = shaken(&config);
        let run = |dropout| flat(model.forward(ModelInput { dropout, ..input(&config, &ids(9)) }));
        let source = DropoutSource { seed: 1, step: 2 };
        assert_eq!(run(Some(source)), run(Some(source)), "{config:?}: the same step twice");
        let other_steps = (3..13).map(|step| run(Some(DropoutSource { step, ..source })));
        assert_eq!(other_steps.into_iter().any(|y| y != run(Some(source))), config.has_dropout(), "{config:?}");
        assert!(config.has_dropout() || run(Some(source)) == run(None), "{config:?}");
    }
}

/// Every parameter is trained but frozen ones, which stay as they were; the loss of one batch falls by half.
#[test]
fn every_model_learns_a_batch() {
    let ids = ids(12);
    let labels: Vec<i64> = (0..12).map(|i| (i * 5 + 2) % VOCAB as i64).collect();
    for config in ModelConfig::examples() {
        let mut model = config.init::<Training>(VOCAB, 1, &Default::default());
        let before = Weights::of(&model).unwrap();
        let mut optimizer = AdamWConfig::new().with_weight_decay(0.1).init();
        let mut losses: Vec<f32> = vec![];
        while losses.len() < 3 || losses.len() < 400 && losses[losses.len() - 1] > 0.5 * losses[0] {
            let loss = masked_cross_entropy(model.forward(input(&config, &ids)), ints(&labels));
            losses.push(loss.clone().into_scalar());
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            model = optimizer.step(1e-2, model, gradients);
        }
        assert!(losses[losses.len() - 1] <= 0.5 * losses[0], "{config:?}: {losses:?}");
        let frozen = before.num_parameters() - model.num_trainable_params();
        let after = Weights::of(&model).unwrap();
        let same = before.iter().filter(|(name, weight)| after.get(name) == Some(weight));
        let same: Vec<(&str, usize)> = same.map(|(name, weight)| (name, weight.values.len())).collect();
        assert_eq!(same.iter().map(|(_, n)| n).sum::<usize>(), frozen, "{config:?}: {same:?}");
    }
}
