//! Dynamic loss scaling (Micikevicius et al., arXiv 1710.03740, section 3.2), with the constants of `torch.amp.GradScaler`.
//!
//! In fp16, numbers below 6·10⁻⁸ are 0. The loss is multiplied by a power of two, so that its small gradients are not;
//! before the optimiser sees them, gradients are divided by it, which is exact. Where the scale is too large and a
//! gradient overflows, it is halved and the gradient of the same batch computed again: no batch is passed over, and
//! what a step computes is a function of the checkpoint before it.

use serde::{Deserialize, Serialize};

/// Steps without an overflow after which the scale doubles.
const GROWTH_INTERVAL: u32 = 2000;
/// 2⁶⁴: far from what a 32-bit float can hold, so that the scaled loss is finite where the loss is.
const LARGEST: f32 = (1u128 << 64) as f32;

/// The factor on the loss, and what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// A power of two, at least 1.
    pub scale: f32,
    /// Steps since it last changed.
    pub good_steps: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { scale: 65536.0, good_steps: 0 }
    }
}

impl LossScale {
    /// A step's gradients are finite.
    pub fn succeeded(&mut self) {
        self.good_steps += 1;
        if self.good_steps == GROWTH_INTERVAL {
            *self = Self { scale: (2.0 * self.scale).min(LARGEST), good_steps: 0 };
        }
    }

    /// A step's gradients are not finite. Whether it is worth another attempt, with the scale that it has now; an overflow
    /// without any scaling is the model's own.
    pub fn overflowed(&mut self) -> bool {
        let again = self.scale > 1.0;
        *self = Self { scale: (self.scale / 2.0).max(1.0), good_steps: 0 };
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_doubles_after_many_good_steps_and_halves_at_once() {
        let mut scale = LossScale::default();
        (0..GROWTH_INTERVAL - 1).for_each(|_| scale.succeeded());
        assert_eq!(scale, LossScale { scale: 65536.0, good_steps: GROWTH_INTERVAL - 1 });
        scale.succeeded();
        assert_eq!(scale, LossScale { scale: 131072.0, good_steps: 0 });
        scale.succeeded();
        assert!(scale.overflowed());
        assert_eq!(scale, LossScale::default());
    }

    #[test]
    fn attempts_end() {
        let mut scale = LossScale::default();
        assert_eq!((0..100).take_while(|_| scale.overflowed()).count(), 16);
        assert_eq!(scale.scale, 1.0);
        scale.scale = LARGEST;
        (0..GROWTH_INTERVAL).for_each(|_| scale.succeeded());
        assert_eq!(scale.scale, LARGEST);
    }
}
