//! Losses and gradient norms that are no longer finite: found when something is to be written, reported with what there
//! is to go on with.

use crate::run::{RunProgress, Status};
use crate::train::setup::Setup;
use crate::train::source::Source;
use anyhow::{Result, bail};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

/// Losses and gradient norms that have not been looked at. They stay on the device until something is to be written, so
/// that steps need not wait for each other.
pub struct Recent<B: Backend> {
    losses: Vec<Tensor<B, 1>>,
    grad_norms: Vec<Tensor<B, 1>>,
}

impl<B: Backend> Default for Recent<B> {
    fn default() -> Self {
        Self { losses: vec![], grad_norms: vec![] }
    }
}

/// A step after which training makes no sense.
pub struct NotFinite {
    pub step: u64,
    pub loss: f64,
    pub grad_norm: f64,
}

impl<B: Backend> Recent<B> {
    pub fn push(&mut self, loss: Tensor<B, 1>, grad_norm: Tensor<B, 1>) {
        self.losses.push(loss);
        self.grad_norms.push(grad_norm);
    }

    /// Loss and gradient norm of the last step, which is number `step`; or the first step for which they are not finite.
    pub fn check(&mut self, step: u64) -> std::result::Result<(f64, f64), NotFinite> {
        let first = step + 1 - self.losses.len() as u64;
        let read = |tensors: &mut Vec<Tensor<B, 1>>| -> Vec<f64> {
            Tensor::cat(std::mem::take(tensors), 0).into_data().iter::<f64>().collect()
        };
        let values = read(&mut self.losses).into_iter().zip(read(&mut self.grad_norms));
        let mut last = (f64::NAN, f64::NAN);
        for (step, (loss, grad_norm)) in (first..).zip(values) {
            if !(loss.is_finite() && grad_norm.is_finite()) {
                return Err(NotFinite { step, loss, grad_norm });
            }
            last = (loss, grad_norm);
        }
        Ok(last)
    }
}

/// Says where training broke down and what there is to go on with.
pub fn diverged<T>(setup: &Setup<'_>, per_epoch: u64, bad: &NotFinite) -> Result<T> {
    let NotFinite { step, loss, grad_norm } = bad;
    let epoch = (step - 1) / per_epoch + 1;
    let examples = Source::new(setup).describe(step - 1);
    let total_steps = setup.config.train.total_steps(setup.splits.train.per_epoch());
    setup.run.set_progress(&RunProgress { status: Status::Diverged, step: *step, total_steps })?;
    let good = match setup.run.last_checkpoint(|_| ()) {
        Ok(checkpoint) => format!("the last good checkpoint is {}", checkpoint.path().display()),
        Err(_) => "there is no checkpoint before it".to_owned(),
    };
    bail!(
        "training diverged at step {step} (epoch {epoch}) of run {}: loss {loss}, gradient norm {grad_norm}\n  \
         its batch was {examples}\n  {good}\n  \
         hint: lower optimizer.lr or raise optimizer.warmup_steps",
        setup.run.handle()
    )
}
