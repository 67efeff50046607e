//! RWKV's own parts, and its initialisation.

use crate::common::{difference, flat, fresh, ids, input, shaken, tensor};
use burn::backend::Autodiff;
use burn::module::Module;
use models::rwkv5::Rwkv5Config;
use models::rwkv6::Rwkv6Config;
use models::rwkv7::{Ranks, Rwkv7Config};
use models::{Architecture, Cpu, ModelConfig, ParameterGroup, Weight, Weights, l2_wrap};

fn rwkv5(hidden_size: usize, num_layers: usize, head_size: usize) -> ModelConfig {
    ModelConfig::Rwkv5(Rwkv5Config { hidden_size, num_layers, head_size, dropout: 0.1 })
}

fn rwkv6(hidden_size: usize, num_layers: usize, head_size: usize) -> ModelConfig {
    ModelConfig::Rwkv6(Rwkv6Config { hidden_size, num_layers, head_size, dropout: 0.1 })
}

fn rwkv7(hidden_size: usize, num_layers: usize, head_size: usize) -> ModelConfig {
    ModelConfig::Rwkv7(Rwkv7Config { hidden_size, num_layers, head_size, ..Default::default() })
}

fn both() -> [ModelConfig; 2] {
    [rwkv5(32, 2, 8), rwkv6(32, 2, 8)]
}

/// The trainable parameters of the models of arXiv 2405.20131, with 103 and 13 tokens.
#[test]
fn parameter_counts_are_those_of_the_paper() {
    let count = |config: ModelConfig, vocab| config.init::<Cpu>(vocab, 0, &Default::default()).num_params();
    for (layers, counts) in [(1, [299_264, 276_224]), (2, [571_648, 548_608]), (4, [1_116_416, 1_093_376])] {
        assert_eq!([103, 13].map(|v| count(rwkv6(128, layers, 64), v)), counts, "rwkv6, {layers} layers");
    }
    for (layers, counts) in [(2, [456_448, 433_408]), (4, [886_016, 862_976])] {
        assert_eq!([103, 13].map(|v| count(rwkv5(128, layers, 64), v)), counts, "rwkv5, {layers} layers");
    }
}

/// RWKV-6 without its input-dependent parts is RWKV-5, so that one checks the other.
#[test]
fn rwkv6_with_static_mixtures_and_decays_is_rwkv5() {
    let (v5, mut v6) = (shaken(&rwkv5(32, 2, 8)), fresh(&rwkv6(32, 2, 8)));
    let given = Weights::of(&v5).unwrap();
    let translate = |(name, weight): (&str, &Weight)| {
        let Weight { shape, mut values } = weight.clone();
        let from = name.replace("time_maa", "time_mix");
        match name.rsplit('.').next().unwrap() {
            "time_maa_w1" | "time_decay_w1" => values.fill(0.0),
            "time_maa_w2" | "time_decay_w2" | "time_maa_x" | "time_maa_w" => {}
            last if last.starts_with("time_maa") => {
                values = given.get(&from).unwrap().values.iter().map(|mix| 1.0 - mix).collect();
            }
            _ => values = given.get(&from).unwrap().values.clone(),
        }
        (name.to_owned(), Weight { shape, values })
    };
    let weights: Weights = Weights::of(&v6).unwrap().iter().map(translate).collect();
    weights.load_into(&mut v6).unwrap();
    let [a, b] = [v5, v6].map(|model| flat(model.forward(input(&ids(50)))));
    assert!(difference(&a, &b) < 1e-5, "{}", difference(&a, &b));
}

#[test]
fn the_extra_term_pulls_at_the_largest_logit_only() {
    let logits = tensor::<Autodiff<Cpu>, 3>(&[1.0, 3.0, 2.0, -5.0, -4.0, -6.0], [1, 2, 3]).require_grad();
    let term = l2_wrap(logits.clone());
    let gradient = flat(logits.grad(&term.clone().backward()).unwrap());
    assert_eq!(flat(term), [0.0]);
    let expected = [0.0, 3.0, 0.0, 0.0, -4.0, 0.0].map(|max| max * 1e-4 / 2.0);
    assert!(difference(&gradient, &expected) < 1e-12, "{gradient:?}");
}

// Initialisation ------------------------------------------------------------------------------------------------------

fn weights(config: &ModelConfig) -> Weights {
    Weights::of(&fresh(config)).unwrap()
}

fn values(weights: &Weights, name: &str) -> Vec<f64> {
    weights.get(name).unwrap().values.iter().map(|v| f64::from(*v)).collect()
}

/// Rows, or columns where there are fewer, are orthogonal and of length `gain`.
fn assert_orthogonal(weights: &Weights, name: &str, gain: f64) {
    let [rows, columns] = weights.get(name).unwrap().shape[..] else { panic!("{name} is no matrix") };
    let at = |i: usize, j: usize| f64::from(weights.get(name).unwrap().values[i * columns + j]);
    let dot = |a: usize, b: usize| -> f64 {
        if rows <= columns {
            (0..columns).map(|j| at(a, j) * at(b, j)).sum()
        } else {
            (0..rows).map(|i| at(i, a) * at(i, b)).sum()
        }
    };
    for a in 0..rows.min(columns) {
        for b in 0..=a {
            let expected = if a == b { gain * gain } else { 0.0 };
            assert!((dot(a, b) - expected).abs() < 1e-6, "{name}: {a}·{b} is {}, not {expected}", dot(a, b));
        }
    }
}

#[test]
fn matrices_begin_orthogonal_or_zero() {
    for config in both() {
        let weights = weights(&config);
        assert_orthogonal(&weights, "head.weight", 0.5);
        for i in 0..2 {
            let block = |name: &str| format!("blocks.{i}.{name}.weight");
            for (name, gain) in
                [("att.receptance", 1.0), ("att.value", 1.0), ("ffn.key", 1.0), ("att.key", 0.1), ("att.gate", 0.1)]
            {
                assert_orthogonal(&weights, &block(name), gain);
            }
            for name in ["att.output", "ffn.value", "ffn.receptance"] {
                assert!(values(&weights, &block(name)).iter().all(|&v| v == 0.0), "{name}");
            }
        }
        let largest = values(&weights, "emb.weight").into_iter().fold(0.0, f64::max);
        assert!(largest > 0.95e-4 && largest <= 1.00001e-4, "{largest}");
    }
    // more tokens than channels
    let many = Weights::of(&rwkv6(32, 1, 8).init::<Cpu>(128, 0, &Default::default())).unwrap();
    assert_orthogonal(&many, "head.weight", 0.5 * 2.0);
}

/// Written out for 32 channels: channel n lies at c = n/32 for mixtures, n/31 for decay and bonus.
#[test]
fn mixtures_decays_and_bonuses_depend_on_channel_and_depth() {
    let expect = |weights: &Weights, name: &str, f: &dyn Fn(f64) -> f64| {
        for (n, found) in values(weights, name).into_iter().enumerate() {
            let expected = f(n as f64);
            assert!((found - expected).abs() < 1e-5, "{name}[{n}] is {found}, not {expected}");
        }
    };
    // of two blocks, the first has ρ = 0 and τ = 1, the last ρ = 1 and τ = 1/2
    for (i, rho, tau) in [(0, 0.0, 1.0), (1, 1.0, 0.5)] {
        let mix = |n: f64| (n / 32.0f64).powf(tau);
        let mix_v = |n: f64| mix(n) + 0.3 * rho;
        let mix_g = |n: f64| (n / 32.0f64).powf(tau / 2.0);
        let decay = |n: f64| -6.0 + 5.0 * (n / 31.0f64).powf(0.7 + 1.3 * rho);
        let bonus = |n: f64| rho * (1.0 - n / 31.0) + [0.0, 0.1, -0.1][n as usize % 3];
        let (v5, v6) = (weights(&rwkv5(32, 2, 8)), weights(&rwkv6(32, 2, 8)));
        let at = |name: &str| format!("blocks.{i}.{name}");
        for (letter, mix) in [("k", &mix as &dyn Fn(f64) -> f64), ("v", &mix_v), ("r", &mix_g), ("g", &mix_g)] {
            expect(&v5, &at(&format!("att.time_mix_{letter}")), mix);
            expect(&v6, &at(&format!("att.time_maa_{letter}")), &|n| 1.0 - mix(n));
        }
        for letter in ["x", "w"] {
            expect(&v6, &at(&format!("att.time_maa_{letter}")), &|n| 1.0 - mix(n));
        }
        for letter in ["k", "r"] {
            expect(&v5, &at(&format!("ffn.time_mix_{letter}")), &mix);
            expect(&v6, &at(&format!("ffn.time_maa_{letter}")), &|n| 1.0 - mix(n));
        }
        for weights in [&v5, &v6] {
            expect(weights, &at("att.time_decay"), &decay);
            expect(weights, &at("att.time_faaaa"), &bonus);
            expect(weights, &at("att.ln_x.weight"), &|_| f64::powf((1.0 + f64::from(i)) / 2.0, 0.7));
        }
        for name in ["att.time_maa_w1", "att.time_decay_w1"] {
            expect(&v6, &at(name), &|_| 0.0);
        }
        for name in ["att.time_maa_w2", "att.time_decay_w2"] {
            let largest = values(&v6, &at(name)).into_iter().fold(0.0, f64::max);
            assert!(largest > 0.0095 && largest <= 0.0100001, "{name}: {largest}");
        }
    }
    let single = weights(&rwkv5(32, 1, 8));
    expect(&single, "blocks.0.att.time_decay", &|n| -6.0 + 5.0 * (n / 31.0f64).powf(0.7));
}

/// Written out for two blocks of 32 channels in heads of 8, as the initialisation of BlinkDL/RWKV-LM has it.
#[test]
fn rwkv7_begins_as_published() {
    let weights = weights(&rwkv7(32, 2, 8));
    let expect = |name: &str, f: &dyn Fn(f64) -> f64| {
        for (n, found) in values(&weights, name).into_iter().enumerate() {
            let expected = f(n as f64);
            assert!((found - expected).abs() < 1e-5, "{name}[{n}] is {found}, not {expected}");
        }
    };
    let zigzag = |n: f64| {
        let place = (n % 8.0 - 3.5) / 3.5;
        place * place.abs()
    };
    let linear = |n: f64| n / 31.0 - 0.5;
    for (i, rho, tau) in [(0, 0.0f64, 1.0f64), (1, 1.0, 0.5)] {
        let at = |name: &str| format!("blocks.{i}.{name}");
        for (letter, exponent) in [("r", 0.2), ("w", 0.9), ("k", 0.7), ("v", 0.7), ("a", 0.9), ("g", 0.2)] {
            expect(&at(&format!("att.x_{letter}")), &|n| 1.0 - (n / 32.0).powf(exponent * tau));
        }
        expect(&at("att.w0"), &|n| -6.0 + 6.0 * (n / 31.0).powf(1.0 + rho.powf(0.3)) + 0.5 + 2.5 * zigzag(n));
        expect(&at("att.a0"), &|n| -0.19 + 0.3 * zigzag(n) + 0.4 * linear(n));
        expect(&at("att.k_k"), &|n| 0.71 - 0.1 * linear(n));
        expect(&at("att.k_a"), &|_| 1.02);
        expect(&at("att.r_k"), &|_| -0.04);
        expect(&at("att.ln_x.weight"), &|_| ((1.0 + f64::from(i)) / 2.0).powf(0.7));
        expect(&at("ffn.x_k"), &|n| 1.0 - (n / 32.0).powf(tau.powi(4)));
        for zero in ["att.w1", "att.a1", "att.g1", "att.output.weight", "ffn.value.weight"] {
            expect(&at(zero), &|_| 0.0);
        }
        for (name, gain) in [("att.receptance", 1.0), ("att.value", 1.0), ("ffn.key", 1.0), ("att.key", 0.1)] {
            assert_orthogonal(&weights, &at(&format!("{name}.weight")), gain);
        }
        assert_orthogonal(&weights, &at("att.w2"), 0.1);
    }
    expect("blocks.1.att.v0", &|n| 0.73 - 0.4 * linear(n));
    assert_eq!(weights.get("blocks.0.att.v0"), None, "the first block's values are not mixed");
}

/// By hand: 2.5, 2.5, 1.7 and 5 times the root of the width, to the nearest multiple of 32.
#[test]
fn ranks_of_rwkv7_are_those_that_its_code_suggests() {
    let ranks = |hidden_size| Rwkv7Config { hidden_size, ..Default::default() }.ranks();
    assert_eq!(ranks(768), Ranks { decay: 64, a: 64, v: 32, gate: 128 });
    assert_eq!(ranks(2048), Ranks { decay: 128, a: 128, v: 64, gate: 224 });
    assert_eq!(ranks(32), Ranks { decay: 32, a: 32, v: 32, gate: 32 });
}

#[test]
fn only_matrices_of_rwkv7_decay() {
    let group = |name: &str| Rwkv7Config::default().parameter_group(name);
    for name in ["emb.weight", "head.weight", "blocks.1.att.key.weight", "blocks.0.ffn.value.weight"] {
        assert_eq!(group(name), ParameterGroup::DEFAULT, "{name}");
    }
    for name in
        ["blocks.1.att.ln_x.weight", "ln_out.weight", "blocks.0.ln1.bias", "blocks.0.att.a1", "blocks.0.att.r_k"]
    {
        assert_eq!(group(name), ParameterGroup::UNDECAYED, "{name}");
    }
    let w0 = ParameterGroup { lr_scale: 2.0, ..ParameterGroup::UNDECAYED };
    assert_eq!(group("blocks.0.att.w0"), w0);
}

#[test]
fn sizes_that_cannot_be_built_are_refused_by_key() {
    for (config, key) in [
        (rwkv7(64, 1, 48), "head_size"),
        (rwkv6(64, 1, 48), "head_size"),
        (rwkv5(64, 1, 0), "head_size"),
        (rwkv6(8, 1, 8), "hidden_size"),
        (rwkv6(0, 1, 8), "hidden_size"),
        (rwkv5(64, 0, 8), "num_layers"),
    ] {
        assert_eq!(config.validate().expect_err(&format!("{config:?}")).key, key, "{config:?}");
    }
    for config in both().into_iter().chain([rwkv6(10, 1, 10), rwkv5(32, 1, 32)]) {
        config.validate().unwrap();
        fresh(&config).forward(input(&ids(3)));
    }
}
