//! A model computes what the published PyTorch code computes with the same weights: logits, loss, gradients.

use super::{Case, Gradient, Reference};
use burn::module::{Module, ModuleMapper, Param};
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::backend::AutodiffBackend;
use data::PositionIds;
use models::ops::SequenceOps;
use models::{Model, ModelInput, Positions, Weight, Weights, l2_wrap, masked_cross_entropy};

/// How far a model may be from the reference, which was computed in float64.
pub struct Tolerance {
    /// Of the logits, absolute.
    pub logits: f64,
    /// Of loss and gradients, relative.
    pub relative: f64,
}

/// The published code's own rounding error in float32 is up to 6e-6 on these models …
pub const FLOAT32: Tolerance = Tolerance { logits: 2e-5, relative: 1e-4 };

/// … up to 1.4e-5 on Mamba and RWKV, and 2e-5 on Gated DeltaNet, where the norm of a head divides by almost nothing.
fn logits_tolerance(name: &str, tolerance: &Tolerance) -> f64 {
    match name {
        "mamba" => 2.5 * tolerance.logits,
        name if name.starts_with("rwkv") => 2.5 * tolerance.logits,
        "gated_deltanet" => 1.25 * tolerance.logits,
        _ => tolerance.logits,
    }
}

/// Where a unit of a ReLU receives almost nothing, rounding decides on which side of the kink it is, and with it a
/// whole column of the gradient. (In `transformer_rope_shift`, a unit of the first block receives −2.4e-7; the other
/// side changes a gradient's norm by 4e-4.) Weights changed in the last bit are rounded differently, so a gradient that
/// is off for that reason alone is right with some of them. In float64 the first attempt must do.
const ROUNDINGS: u64 = 8;

/// Checks every case of the reference model `name` on this backend, in the device's default float type.
pub fn check<B: AutodiffBackend + SequenceOps>(name: &str, device: &B::Device, tolerance: &Tolerance) {
    let Some(reference) = Reference::open(name) else { return };
    let load = |weights: &Weights| -> Model<B> {
        let mut model = reference.config.init(reference.vocab, 0, device);
        weights.load_into(&mut model).unwrap();
        model.map(&mut DefaultFloats)
    };
    let model = load(&reference.weights);
    assert!(reference.cases.iter().any(|c| c.name == "case"), "{name} has no case with gradients");

    for case in &reference.cases {
        let logits = model.forward(input(case, device));
        let difference = largest_difference(&values(logits.clone()), &case.logits);
        eprintln!("{name} {}: logits differ by at most {difference:.2e}", case.name);
        assert!(
            difference < logits_tolerance(name, tolerance) + case.rounding,
            "{name} {}: logits differ by {difference:e}",
            case.name
        );

        let Some(expected) = case.loss else { continue };
        let loss = masked_cross_entropy(logits, ints(case, &case.labels, device));
        let found = values(loss)[0];
        eprintln!("{name} {}: loss {found:.7}, expected {expected:.7}", case.name);
        assert!(
            (found / expected - 1.0).abs() < tolerance.relative,
            "{name} {}: loss {found}, not {expected}",
            case.name
        );

        if case.name != "case" {
            continue; // the gradients are those of this one
        }

        let attempt = |weights: &Weights| -> Result<(), String> {
            let model = load(weights);
            let loss = masked_cross_entropy(model.forward(input(case, device)), ints(case, &case.labels, device));
            // The gradient of what only shifts all scores of a query is zero but for rounding.
            let slack = 1e-2 * tolerance.relative * reference.total_norm.unwrap_or(0.0);
            let found = gradients(&model, &loss.backward());
            let least = |name: &str| reference.config.parameter_group(name).least;
            check_gradients(&found, weights, &reference.gradients, [tolerance.relative, slack], least)
        };
        let roundings = if tolerance.relative < FLOAT32.relative { 0 } else { ROUNDINGS };
        let outcome = (0..roundings).fold(attempt(&reference.weights), |outcome, seed| {
            outcome.or_else(|reason| {
                eprintln!("{name}: {reason}; once more with weights changed in the last bit");
                attempt(&reference.weights.nudged(seed))
            })
        });
        outcome.unwrap_or_else(|reason| panic!("{name}: {reason}"));
        if !reference.gradients_l2_wrap.is_empty() {
            check_l2_wrap(name, &model, model.forward(input(case, device)), &reference, tolerance.relative);
        }
    }
}

/// The extra term of RWKV's loss alone: gradient·parameter is linear, so the term is a difference of references.
fn check_l2_wrap<B: AutodiffBackend + SequenceOps>(
    name: &str,
    model: &Model<B>,
    logits: Tensor<B, 3>,
    reference: &Reference,
    tolerance: f64,
) {
    let term = l2_wrap(logits);
    assert_eq!(values(term.clone()), [0.0], "{name}");
    let found = gradients(model, &term.backward());
    for (with, without) in reference.gradients_l2_wrap.iter().zip(&reference.gradients) {
        assert_eq!(with.name, without.name);
        let (gradient, value) = (found.get(&with.name).unwrap(), reference.weights.get(&with.name).unwrap());
        let (found, expected) = (dot(gradient, value), with.dot_param - without.dot_param);
        let scale = (dot(gradient, gradient) * dot(value, value)).sqrt();
        assert!((found - expected).abs() < tolerance * scale + 1e-9, "{name} {}: {found}, not {expected}", with.name);
    }
}

/// The difference of a norm may be as much as `tolerance` times it, plus `slack`.
fn check_gradients(
    found: &Weights,
    parameters: &Weights,
    expected: &[Gradient],
    [tolerance, slack]: [f64; 2],
    least: impl Fn(&str) -> f64,
) -> Result<(), String> {
    assert_eq!(found.iter().count(), expected.len(), "parameters with gradients");
    let (mut worst_norm, mut worst_dot) = (0.0f64, 0.0f64);
    for Gradient { name: parameter, norm, dot_param } in expected {
        let (gradient, mut value) = (found.get(parameter).unwrap(), parameters.get(parameter).unwrap().clone());
        // Where there is a least value, it is what the published code makes of smaller ones.
        value.values.iter_mut().for_each(|x| *x = x.max(least(parameter) as f32));
        let value = &value;
        let found = dot(gradient, gradient).sqrt();
        let difference = (found - norm).abs() / (norm + slack / tolerance).max(f64::MIN_POSITIVE);
        if difference.is_nan() || difference >= tolerance {
            return Err(format!("{parameter}: gradient norm {found}, not {norm}"));
        }
        worst_norm = worst_norm.max(difference);

        // The terms of the sum may cancel, so that the effect of rounding is measured by the two norms.
        let found = dot(gradient, value);
        let scale = (norm + slack / tolerance) * dot(value, value).sqrt();
        let difference = (found - dot_param).abs() / scale.max(f64::MIN_POSITIVE);
        if difference.is_nan() || difference >= tolerance {
            return Err(format!("{parameter}: gradient·parameter {found}, not {dot_param}"));
        }
        worst_dot = worst_dot.max(difference);
    }
    eprintln!("gradients differ by at most {worst_norm:.2e} in norm, {worst_dot:.2e} in their product");
    Ok(())
}

/// Parameters in the device's default float type, regardless of the type they were loaded in.
struct DefaultFloats;

impl<B: AutodiffBackend> ModuleMapper<B> for DefaultFloats {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (tensor, trained) = (param.val(), param.is_require_grad());
        let tensor = Tensor::from_data(tensor.to_data(), &tensor.device());
        Param::initialized(param.id, tensor.set_require_grad(trained))
    }
}

/// The gradient of every trained parameter under the parameter's name.
fn gradients<B: AutodiffBackend + SequenceOps>(model: &Model<B>, gradients: &B::Gradients) -> Weights {
    struct IntoGradients<'a, B: AutodiffBackend>(&'a B::Gradients);
    impl<B: AutodiffBackend> ModuleMapper<B> for IntoGradients<'_, B> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let gradient = match param.is_require_grad() {
                true => param.val().grad(self.0).expect("the loss depends on every parameter"),
                false => param.val().inner().zeros_like() + f32::NAN, // told apart below
            };
            Param::initialized(param.id, Tensor::from_inner(gradient))
        }
    }
    let all = Weights::of(&model.clone().map(&mut IntoGradients(gradients))).unwrap();
    let trained = all.iter().filter(|(_, w)| !w.values.iter().all(|v| v.is_nan()));
    trained.map(|(name, w)| (name.to_owned(), w.clone())).collect()
}

fn input<B: Backend>(case: &Case, device: &B::Device) -> ModelInput<B> {
    let position_ids = match &case.position_ids {
        PositionIds::Integers(ids) => Positions::Integers(ints(case, ids, device)),
        PositionIds::Scalars(v) => Positions::Scalars(Tensor::from_data(rectangle(case, v), device)),
    };
    ModelInput {
        input_ids: ints(case, &case.input_ids, device),
        position_ids,
        attention_mask: Some(ints(case, &case.attention_mask, device).float()),
        dropout: None,
    }
}

fn ints<B: Backend>(case: &Case, values: &[i64], device: &B::Device) -> Tensor<B, 2, Int> {
    Tensor::from_data(rectangle(case, values), device)
}

fn rectangle<T: burn::tensor::Element>(case: &Case, values: &[T]) -> TensorData {
    TensorData::new(values.to_vec(), [case.batch, case.seq])
}

fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    // `f32::max` would ignore NaN.
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

fn dot(a: &Weight, b: &Weight) -> f64 {
    assert_eq!(a.values.len(), b.values.len());
    a.values.iter().zip(&b.values).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
