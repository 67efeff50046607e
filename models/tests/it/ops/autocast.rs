//! Mixed precision: products in half precision, the rest in 32 bits.

use burn::backend::Autodiff;
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::prelude::*;
use burn::tensor::{DType, Distribution, ElementConversion};
use data::{Batch, Collation, Example, Task};
use models::ops::autocast::{HalfPrecision, autocast, is_autocast, product};
use models::{Cpu, Model, ModelConfig, masked_cross_entropy};
use std::collections::BTreeMap;

type B = Autodiff<Cpu>;

#[test]
fn a_product_is_that_of_rounded_inputs_and_its_gradients_have_32_bits() {
    let device = Default::default();
    let random = |shape| Tensor::<B, 2>::random(shape, Distribution::Normal(0.0, 1.0), &device).require_grad();
    let (a, b) = (random([7, 13]), random([13, 5]));
    for (precision, dtype, error) in
        [(HalfPrecision::Bf16, DType::BF16, 2f32.powi(-8)), (HalfPrecision::Fp16, DType::F16, 2f32.powi(-11))]
    {
        let y = autocast(Some(precision), || product(a.clone(), b.clone()));
        assert_eq!(y.dtype(), DType::F32);
        let rounded = |x: &Tensor<B, 2>| x.clone().cast(dtype).cast(DType::F32);
        let expected = rounded(&a).matmul(rounded(&b));
        // The result is rounded as well: half a unit in the last place, and the order of the sum.
        let off = (y.clone() - expected.clone()).abs() / (expected.abs() + 0.1);
        assert!(off.max().into_scalar() <= 1.1 * error, "{precision:?}");

        let gradients = y.square().sum().backward();
        let exact = a.clone().matmul(b.clone()).square().sum().backward();
        for x in [&a, &b] {
            let (found, exact) = (x.grad(&gradients).unwrap(), x.grad(&exact).unwrap());
            assert_eq!(found.dtype(), DType::F32);
            let off = (found - exact.clone()).abs().max().into_scalar() / exact.abs().max().into_scalar();
            assert!(off > 0.0 && off < 4.0 * error, "{precision:?}: {off}");
        }
    }
}

#[test]
fn the_scope_ends_where_it_ends() {
    assert!(!is_autocast());
    autocast(Some(HalfPrecision::Bf16), || {
        autocast(None, || assert!(!is_autocast()));
        assert!(is_autocast());
        std::thread::spawn(|| assert!(!is_autocast())).join().unwrap();
    });
    let panicked = std::panic::catch_unwind(|| autocast(Some(HalfPrecision::Fp16), || panic!("on purpose")));
    assert!(panicked.is_err() && !is_autocast());
}

fn batch(task: &Task, config: &ModelConfig) -> Batch {
    let example = |n: usize| {
        let labels = (1..=n).map(|i| (i % 10) as i16);
        let input_ids = [vec![0], vec![12; n]].concat();
        Example { input_ids, labels: std::iter::once(-1).chain(labels).collect(), length: n as u32 }
    };
    let examples: Vec<Example> = [12, 7, 9].map(example).into();
    let examples: Vec<_> = examples.iter().map(Example::as_ref).collect();
    Batch::collate(&examples, &task.vocabulary, &Collation { positions: config.positions(1, 0), pad_to: None }).unwrap()
}

/// Loss, and every gradient by its parameter's number.
fn gradients(
    model: &Model<B>,
    batch: &Batch,
    precision: Option<HalfPrecision>,
) -> (f64, BTreeMap<usize, Tensor<Cpu, 1>>) {
    struct Collect<'a>(&'a GradientsParams, usize, BTreeMap<usize, Tensor<Cpu, 1>>);
    impl ModuleVisitor<B> for Collect<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if let Some(gradient) = self.0.get::<Cpu, D>(param.id) {
                assert_eq!(gradient.dtype(), DType::F32);
                self.2.insert(self.1, gradient.reshape([-1]));
            }
            self.1 += 1;
        }
    }
    let device = Default::default();
    let logits = autocast(precision, || model.forward(model.input(batch, &device)));
    assert_eq!(logits.dtype(), DType::F32);
    let labels = burn::tensor::TensorData::new(batch.labels.clone(), [batch.batch, batch.seq]);
    let loss = masked_cross_entropy(logits, Tensor::<B, 2, Int>::from_data(labels, &device));
    let value = loss.clone().into_scalar().elem::<f64>();
    let gradients = GradientsParams::from_grads(loss.backward(), model);
    let mut collect = Collect(&gradients, 0, BTreeMap::new());
    model.visit(&mut collect);
    (value, collect.2)
}

#[test]
fn every_architecture_has_nearly_the_loss_and_gradients_of_32_bits() {
    let task = Task::by_name("counting_samesymbol_mod10bos").unwrap();
    for config in ModelConfig::examples() {
        let batch = batch(&task, &config);
        let model: Model<B> = config.init(task.vocabulary.len(), 1, &Default::default());
        let (loss, exact) = gradients(&model, &batch, None);
        for precision in [HalfPrecision::Bf16, HalfPrecision::Fp16] {
            let (narrow, found) = gradients(&model, &batch, Some(precision));
            assert!((narrow / loss - 1.0).abs() < 0.01, "{config:?}, {precision:?}: loss {narrow}, not {loss}");
            assert_eq!(found.keys().collect::<Vec<_>>(), exact.keys().collect::<Vec<_>>(), "{config:?}");
            let norm = |xs: Vec<Tensor<Cpu, 1>>| Tensor::cat(xs, 0).square().sum().sqrt().into_scalar();
            let off = norm(exact.iter().map(|(i, g)| g.clone() - found[i].clone()).collect());
            let off = off / norm(exact.values().cloned().collect());
            assert!(off > 1e-5, "{config:?}, {precision:?}: no product was computed in it");
            assert!(off < 0.05, "{config:?}, {precision:?}: the gradient is off by {off} of its length");
        }
    }
}
