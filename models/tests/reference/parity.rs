//! A model computes what the published PyTorch code computes with the same weights: logits, loss, gradients.

use super::{Case, Gradient, Reference};
use burn::module::{Module, ModuleMapper, Param};
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use models::ops::SequenceOps;
use models::{Model, ModelInput, Weight, Weights, l2_wrap, masked_cross_entropy};

/// The published code's own rounding error in float32 is up to 6e-6 on these models, and up to 1.4e-5 on RWKV.
fn logits_tolerance(name: &str) -> f64 {
    if name.starts_with("rwkv") || name == "mamba" { 5e-5 } else { 2e-5 }
}

/// Of loss and gradients, relative.
const RELATIVE: f64 = 1e-4;

/// In `transformer_rope_shift` one unit of the first block's ReLU (example 2, token 27, unit 142) receives −2.4e-7 in
/// float64, which rounding in float32 can take to the other side. With that unit on, the float64 gradient of
/// `wte.weight` has the norm 0.567987 instead of 0.567751, a relative difference of 4e-4.
fn gradient_tolerance(name: &str) -> f64 {
    if name == "transformer_rope_shift" { 2e-3 } else { RELATIVE }
}

/// Checks every case of the reference model `name` on this backend.
pub fn check<B: AutodiffBackend + SequenceOps>(name: &str, device: &B::Device) {
    let Some(reference) = Reference::open(name) else { return };
    let mut model: Model<B> = reference.config.init(reference.vocab, 0, device);
    reference.weights.load_into(&mut model).unwrap();
    assert!(reference.cases.iter().any(|c| c.name == "case"), "{name} has no case with gradients");

    for case in &reference.cases {
        let logits = model.forward(input(case, device));
        let difference = largest_difference(&values(logits.clone()), &case.logits);
        eprintln!("{name} {}: logits differ by at most {difference:.2e}", case.name);
        assert!(difference < logits_tolerance(name), "{name} {}: logits differ by {difference:e}", case.name);

        let Some(expected) = case.loss else { continue };
        let loss = masked_cross_entropy(logits, ints(case, &case.labels, device));
        let found = values(loss.clone())[0];
        eprintln!("{name} {}: loss {found:.7}, expected {expected:.7}", case.name);
        assert!((found / expected - 1.0).abs() < RELATIVE, "{name} {}: loss {found}, not {expected}", case.name);

        check_gradients(name, &gradients(&model, &loss.backward()), &reference.weights, &reference.gradients);
        if !reference.gradients_l2_wrap.is_empty() {
            // a second pass, for the gradients above have used up the graph of the first
            check_l2_wrap(name, &model, model.forward(input(case, device)), &reference);
        }
    }
}

/// The extra term of RWKV's loss alone: gradient·parameter is linear, so what it adds is a difference of references.
fn check_l2_wrap<B: AutodiffBackend + SequenceOps>(
    name: &str,
    model: &Model<B>,
    logits: Tensor<B, 3>,
    reference: &Reference,
) {
    let term = l2_wrap(logits);
    assert_eq!(values(term.clone()), [0.0], "{name}");
    let found = gradients(model, &term.backward());
    for (with, without) in reference.gradients_l2_wrap.iter().zip(&reference.gradients) {
        assert_eq!(with.name, without.name);
        let (gradient, value) = (found.get(&with.name).unwrap(), reference.weights.get(&with.name).unwrap());
        let (found, expected) = (dot(gradient, value), with.dot_param - without.dot_param);
        let scale = (dot(gradient, gradient) * dot(value, value)).sqrt();
        assert!((found - expected).abs() < RELATIVE * scale + 1e-9, "{name} {}: {found}, not {expected}", with.name);
    }
}

fn check_gradients(name: &str, found: &Weights, parameters: &Weights, expected: &[Gradient]) {
    assert_eq!(found.iter().count(), expected.len(), "{name}: parameters with gradients");
    let tolerance = gradient_tolerance(name);
    let (mut worst_norm, mut worst_dot) = (0.0f64, 0.0f64);
    for Gradient { name: parameter, norm, dot_param } in expected {
        let (gradient, value) = (found.get(parameter).unwrap(), parameters.get(parameter).unwrap());
        let found = dot(gradient, gradient).sqrt();
        let difference = (found / norm - 1.0).abs();
        assert!(difference < tolerance, "{name} {parameter}: gradient norm {found}, not {norm}");
        worst_norm = worst_norm.max(difference);

        // The terms of the sum may cancel, so that what rounding can do is measured by the two norms.
        let found = dot(gradient, value);
        let difference = (found - dot_param).abs() / (norm * dot(value, value).sqrt()).max(f64::MIN_POSITIVE);
        assert!(difference < tolerance, "{name} {parameter}: gradient·parameter {found}, not {dot_param}");
        worst_dot = worst_dot.max(difference);
    }
    eprintln!("{name}: gradients differ by at most {worst_norm:.2e} in norm, {worst_dot:.2e} in their product");
}

/// The gradient of every parameter under the parameter's name.
fn gradients<B: AutodiffBackend + SequenceOps>(model: &Model<B>, gradients: &B::Gradients) -> Weights {
    struct IntoGradients<'a, B: AutodiffBackend>(&'a B::Gradients);
    impl<B: AutodiffBackend> ModuleMapper<B> for IntoGradients<'_, B> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let gradient = param.val().grad(self.0).expect("the loss depends on every parameter");
            Param::initialized(param.id, Tensor::from_inner(gradient))
        }
    }
    Weights::of(&model.clone().map(&mut IntoGradients(gradients))).unwrap()
}

fn input<B: Backend>(case: &Case, device: &B::Device) -> ModelInput<B> {
    ModelInput {
        input_ids: ints(case, &case.input_ids, device),
        position_ids: ints(case, &case.position_ids, device),
        attention_mask: Some(ints(case, &case.attention_mask, device).float()),
        dropout: None,
    }
}

fn ints<B: Backend>(case: &Case, values: &[i64], device: &B::Device) -> Tensor<B, 2, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), [case.batch, case.seq]), device)
}

fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    // A plain `max` would pass over NaN.
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

fn dot(a: &Weight, b: &Weight) -> f64 {
    assert_eq!(a.shape, b.shape);
    a.values.iter().zip(&b.values).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
