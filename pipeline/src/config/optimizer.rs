//! `[optimizer]`: the rule of a step and the learning rate over a run.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// The rule of an optimiser's step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Kingma & Ba, arXiv 1412.6980; no weight decay.
    Adam,
    /// Adam with decoupled weight decay (Loshchilov & Hutter, arXiv 1711.05101).
    AdamW,
}

/// The learning rate after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls to 0 at the last step along half a cosine (Loshchilov & Hutter, arXiv 1608.03983, without restarts).
    Cosine,
    /// It falls to 0 at the last step along a line, as `get_linear_schedule_with_warmup` of Hugging Face's transformers.
    Linear,
}

/// `[optimizer]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// `adamw` or `adam`.
    pub name: OptimizerKind,
    /// Learning rate after warm-up. Some parameters have a factor or a limit, see [`models::ParameterGroup`].
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay; 0.01 for `adamw` and 0 for `adam` if not set.
    pub weight_decay: Option<f64>,
    /// Steps over which the learning rate rises linearly from 0.
    pub warmup_steps: u64,
    /// `constant`, `cosine` or `linear`.
    pub schedule: Schedule,
    /// Gradients are scaled down to this global L2 norm.
    pub grad_clip: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            name: OptimizerKind::AdamW,
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: None,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            grad_clip: 1.0,
        }
    }
}

impl OptimizerConfig {
    /// The weight decay that applies where `weight_decay` is not set.
    pub(super) fn default_weight_decay(&self) -> f64 {
        match self.name {
            OptimizerKind::Adam => 0.0,
            OptimizerKind::AdamW => 0.01,
        }
    }

    pub(super) fn validate(&self, total_steps: Option<u64>) -> Result<()> {
        for (key, value) in [("lr", self.lr), ("grad_clip", self.grad_clip), ("epsilon", self.epsilon)] {
            if !(value.is_finite() && value > 0.0) {
                bail!("optimizer.{key} must be a positive number, not {value}");
            }
        }
        for (key, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&value) {
                bail!("optimizer.{key} must be at least 0 and less than 1, not {value}");
            }
        }
        let decay = self.weight_decay.unwrap_or_default();
        if !(decay.is_finite() && decay >= 0.0) {
            bail!("optimizer.weight_decay must be 0 or a positive number, not {decay}");
        }
        if self.name == OptimizerKind::Adam && decay != 0.0 {
            bail!(
                "optimizer.weight_decay is {decay}, but adam has none\n  hint: set optimizer.name=adamw, or weight_decay to 0"
            );
        }
        let falls = match self.schedule {
            Schedule::Constant => None,
            Schedule::Cosine => Some("cosine"),
            Schedule::Linear => Some("line"),
        };
        if let (Some(name), Some(total)) = (falls, total_steps)
            && self.warmup_steps >= total
        {
            bail!(
                "optimizer.warmup_steps is {}, but the run ends after train.max_steps = {total}, before the {name} begins\n  \
                 hint: warm up for fewer steps, or use optimizer.schedule=constant",
                self.warmup_steps
            );
        }
        Ok(())
    }
}
