//! Adam and AdamW over a whole model: global-norm clipping, schedule, parameter groups, and a state that any tool reads.
//!
//! burn's own optimisers have one learning rate and weight decay for all parameters and save their state under numbers.
//! This one is the textbook rule written once, with PyTorch's order of operations; its state is a safetensors file with
//! `<parameter>.exp_avg` and `<parameter>.exp_avg_sq`, PyTorch's names for the two moments.

use crate::config::{OptimizerConfig, Schedule};
use anyhow::{Context, Result, bail};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};
use models::ops::SequenceOps;
use models::ops::adam::{AdamKernel, AdamOp};
use models::ops::sum_of_squares::SumOfSquaresOp;
use models::{Model, ModelConfig, ParameterGroup, Weight, Weights};
use std::collections::{BTreeSet, HashMap};
use std::f64::consts::PI;

/// The optimiser and its state.
pub struct Adam<B: AutodiffBackend> {
    config: OptimizerConfig,
    weight_decay: f64,
    /// Steps of the whole run; where a schedule that falls ends.
    total_steps: u64,
    parameters: HashMap<ParamId, Parameter>,
    moments: HashMap<ParamId, Moments<B::InnerBackend>>,
}

/// The facts about one parameter that do not change.
struct Parameter {
    name: String,
    group: ParameterGroup,
}

/// Running means of one parameter's gradient, `[numbers]`.
struct Moments<B: Backend> {
    first: Tensor<B, 1>,
    second: Tensor<B, 1>,
}

impl<B: AutodiffBackend + SequenceOps> Adam<B>
where
    B::InnerBackend: SequenceOps,
{
    /// An optimiser of a model with these `settings` that has not made a step yet, for a run of `total_steps`.
    pub fn new(config: &OptimizerConfig, settings: &ModelConfig, model: &Model<B>, total_steps: u64) -> Self {
        let parameter = |(id, name): (ParamId, String)| {
            let group = settings.parameter_group(&name);
            (id, Parameter { name, group })
        };
        Self {
            config: config.clone(),
            weight_decay: config.weight_decay.unwrap_or_default(),
            total_steps,
            parameters: Weights::names(model).into_iter().map(parameter).collect(),
            moments: HashMap::new(),
        }
    }

    /// Optimisation step number `step`, from 0, with the gradients of the loss times `scale` (a power of two, 1 for
    /// those of the loss itself), and their norm `[1]` (see [`global_norm`]). Parameters without a gradient stay as
    /// they are. Returns the model and the norm of the gradient of the loss itself before clipping, `[1]`, still on the
    /// device.
    pub fn step(
        &mut self,
        step: u64,
        model: Model<B>,
        gradients: GradientsParams,
        norm: Tensor<B::InnerBackend, 1>,
        scale: f32,
    ) -> (Model<B>, Tensor<B::InnerBackend, 1>) {
        let norm = norm / scale;
        // As torch.nn.utils.clip_grad_norm_ (Pascanu et al., arXiv 1211.5063); without a branch, so that the device need
        // not be waited for.
        let clip = ((norm.clone() + 1e-6).recip() * self.config.grad_clip).clamp_max(1.0) / scale;
        let time = (step + 1) as f64;
        let mut update = Update {
            lr_factor: lr_factor(&self.config, step, self.total_steps),
            correction1: 1.0 - self.config.beta1.powf(time),
            correction2: 1.0 - self.config.beta2.powf(time),
            clip,
            gradients,
            adam: self,
        };
        (model.map(&mut update), norm)
    }

    /// The learning rate of step number `step` for parameters of the default group.
    pub fn lr(&self, step: u64) -> f64 {
        self.config.lr * lr_factor(&self.config, step, self.total_steps)
    }

    /// The moments by name, on the CPU.
    pub fn state(&self) -> Result<Weights> {
        let mut named = Vec::new();
        for (id, moments) in &self.moments {
            let Some(Parameter { name, .. }) = self.parameters.get(id) else { continue };
            for (suffix, tensor) in [("exp_avg", &moments.first), ("exp_avg_sq", &moments.second)] {
                let values = tensor.to_data().into_vec().map_err(|e| anyhow::anyhow!("{name}.{suffix}: {e:?}"))?;
                named.push((format!("{name}.{suffix}"), Weight { shape: vec![values.len()], values }));
            }
        }
        Ok(named.into_iter().collect())
    }

    /// Takes over a saved state. Every moment must be one of this model's parameters, with its size.
    pub fn load_state(&mut self, state: &Weights, model: &Model<B>, device: &B::Device) -> Result<()> {
        let weights = Weights::of(model)?;
        let mut left: BTreeSet<&str> = state.iter().map(|(name, _)| name).collect();
        for (id, Parameter { name, .. }) in &self.parameters {
            let keys = ["exp_avg", "exp_avg_sq"].map(|suffix| format!("{name}.{suffix}"));
            let [Some(first), Some(second)] = [state.get(&keys[0]), state.get(&keys[1])] else { continue };
            let size = weights.get(name).with_context(|| format!("the model has no {name}"))?.values.len();
            for (key, moment) in keys.iter().zip([first, second]) {
                left.remove(key.as_str());
                if moment.values.len() != size {
                    bail!("{key} has {} numbers, but the parameter has {size}", moment.values.len());
                }
            }
            let tensor = |w: &Weight| Tensor::from_data(TensorData::new(w.values.clone(), [size]), device);
            self.moments.insert(*id, Moments { first: tensor(first), second: tensor(second) });
        }
        if let Some(unknown) = left.first() {
            bail!("{unknown} belongs to no parameter of the model");
        }
        Ok(())
    }
}

/// The factor on every learning rate at step n = 0, 1, …: n / warmup_steps while n < warmup_steps, so that the first step
/// of a warm-up has learning rate 0; then 1, or (1 + cos(π·t)) / 2 or 1 − t, with t the part of the steps after warm-up
/// that is over.
fn lr_factor(config: &OptimizerConfig, step: u64, total_steps: u64) -> f64 {
    let warmup = config.warmup_steps;
    match config.schedule {
        _ if step < warmup => step as f64 / warmup as f64,
        Schedule::Constant => 1.0,
        Schedule::Cosine => {
            let over = (step - warmup) as f64 / total_steps.saturating_sub(warmup).max(1) as f64;
            0.5 * (1.0 + (PI * over.min(1.0)).cos())
        }
        Schedule::Linear => {
            let left = total_steps.saturating_sub(step) as f64;
            left / total_steps.saturating_sub(warmup).max(1) as f64
        }
    }
}

/// The L2 norm of all gradients together, `[1]`, still on the device.
pub fn global_norm<B: AutodiffBackend + SequenceOps>(
    model: &Model<B>,
    gradients: &GradientsParams,
) -> Tensor<B::InnerBackend, 1>
where
    B::InnerBackend: SequenceOps,
{
    struct Squares<'a, B: AutodiffBackend> {
        gradients: &'a GradientsParams,
        sums: Vec<Tensor<B::InnerBackend, 1>>,
    }
    impl<B: AutodiffBackend> ModuleVisitor<B> for Squares<'_, B>
    where
        B::InnerBackend: SequenceOps,
    {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if let Some(gradient) = self.gradients.get::<B::InnerBackend, D>(param.id) {
                self.sums.push(B::InnerBackend::sum_of_squares(gradient));
            }
        }
    }
    let mut squares = Squares::<B> { gradients, sums: vec![] };
    model.visit(&mut squares);
    Tensor::cat(squares.sums, 0).sum().sqrt()
}

/// One step on its way through the model.
struct Update<'a, B: AutodiffBackend> {
    adam: &'a mut Adam<B>,
    gradients: GradientsParams,
    /// The factor on the gradients, `[1]`.
    clip: Tensor<B::InnerBackend, 1>,
    lr_factor: f64,
    correction1: f64,
    correction2: f64,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Update<'_, B>
where
    B::InnerBackend: SequenceOps,
{
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let id = param.id;
        let gradient = self.gradients.remove::<B::InnerBackend, D>(id);
        let (Some(gradient), Some(parameter)) = (gradient, self.adam.parameters.get(&id)) else { return param };
        let config = &self.adam.config;
        let lr = parameter.group.lr(config.lr) * self.lr_factor;
        let weight_decay = if parameter.group.weight_decay { self.adam.weight_decay } else { 0.0 };

        let rule = AdamKernel {
            betas: [config.beta1, config.beta2],
            epsilon: config.epsilon as f32,
            rate: (lr / self.correction1) as f32,
            root: self.correction2.sqrt() as f32,
            keep: (1.0 - lr * weight_decay) as f32,
        };
        let shape = gradient.shape();
        let moments = match self.adam.moments.remove(&id) {
            Some(m) => [m.first, m.second].map(|moment| moment.reshape(shape.clone())),
            None => [gradient.zeros_like(), gradient.zeros_like()],
        };
        let (id, tensor, mapper) = param.consume();
        let tensor = match parameter.group.least {
            f64::NEG_INFINITY => tensor.inner(),
            least => tensor.inner().clamp_min(least),
        };
        let (tensor, moments) = B::InnerBackend::adam_step(rule, tensor, gradient, moments, self.clip.clone());
        let [first, second] = moments.map(|moment| moment.reshape([shape.num_elements()]));
        self.adam.moments.insert(id, Moments { first, second });
        Param::from_mapped_value(id, Tensor::from_inner(tensor).require_grad(), mapper)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use burn::backend::Autodiff;
    use models::transformer::{PositionalEmbedding, TransformerConfig};
    use models::{ModelInput, Positions};

    /// KERPLE's numbers are at least 0.01 when a step begins, as in the published code.
    #[test]
    fn a_step_begins_at_the_least_value() {
        let positional_embedding = PositionalEmbedding::KerpleLog;
        let settings = ModelConfig::Transformer(TransformerConfig {
            hidden_size: 8,
            num_layers: 1,
            num_heads: 2,
            positional_embedding,
            ..Default::default()
        });
        let device = Default::default();
        let mut model: Model<Autodiff<models::Cpu>> = settings.init(5, 1, &device);
        let lowered = |(name, weight): (&str, &Weight)| {
            let mut weight = weight.clone();
            if name == "rpe.bias_p" {
                weight.values.fill(-0.3);
            }
            (name.to_owned(), weight)
        };
        Weights::of(&model).unwrap().iter().map(lowered).collect::<Weights>().load_into(&mut model).unwrap();
        let ids = Tensor::from_data(TensorData::from([[1i64, 2, 3, 4]]), &device);
        let position_ids = Positions::Integers(ids.clone());
        let input = ModelInput { input_ids: ids, position_ids, attention_mask: None, dropout: None };
        let loss = model.forward(input).square().mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let (config, norm) = (OptimizerConfig::default(), global_norm(&model, &gradients));
        let mut adam = Adam::new(&config, &settings, &model, 1);
        let (model, _) = adam.step(0, model, gradients, norm, 1.0);
        let after = Weights::of(&model).unwrap();
        let moved = |x: &f32| (f64::from(*x) - 0.01).abs();
        assert!(after.get("rpe.bias_p").unwrap().values.iter().all(|x| moved(x) > 1e-4 && moved(x) < 1.1 * config.lr));
    }

    #[test]
    fn warm_up_starts_at_zero_and_ends_at_the_full_rate() {
        let config = OptimizerConfig { warmup_steps: 4, ..Default::default() };
        let factors: Vec<f64> = (0..6).map(|n| lr_factor(&config, n, 100)).collect();
        assert_eq!(factors, [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]);
    }

    #[test]
    fn the_cosine_begins_after_warm_up_and_ends_with_the_run() {
        let config = OptimizerConfig { warmup_steps: 10, schedule: Schedule::Cosine, ..Default::default() };
        let factor = |n| lr_factor(&config, n, 110);
        assert_eq!((factor(5), factor(10)), (0.5, 1.0));
        assert!((factor(60) - 0.5).abs() < 1e-12 && factor(110) < 1e-12 && factor(200) < 1e-12);
        assert!((10..110).all(|n| factor(n) > factor(n + 1)));
    }

    /// The values of transformers' `get_linear_schedule_with_warmup(optimizer, 4, 12)`: n / 4, then (12 − n) / 8.
    #[test]
    fn the_line_begins_after_warm_up_and_ends_with_the_run() {
        let config = OptimizerConfig { warmup_steps: 4, schedule: Schedule::Linear, ..Default::default() };
        let factors: Vec<f64> = (0..14).map(|n| lr_factor(&config, n, 12)).collect();
        assert_eq!(factors, [0.0, 0.25, 0.5, 0.75, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0, 0.0]);
        let without = OptimizerConfig { warmup_steps: 0, ..config };
        assert_eq!([0, 7500, 29_999].map(|n| lr_factor(&without, n, 30_000)), [1.0, 0.75, 1.0 / 30_000.0]);
    }
}
