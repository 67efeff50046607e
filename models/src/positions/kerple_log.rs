//! KERPLE's logarithmic kernel: head h adds −p_h·ln(1 + a_h·(i − j)) to the score of query i and key j (Chi et al.,
//! arXiv 2205.09921). All layers share p and a, which are trained and stay at 0.01 or more.

use super::{Input, Places, Scheme, Score};
use crate::Init;
use crate::ops::SequenceOps;
use crate::training::ParameterGroup;
use crate::transformer::TransformerConfig;
use burn::module::{Module, Param};
use burn::prelude::*;

/// The least that p and a can be. The published code sets smaller ones to it before it uses them; the gradient does not
/// notice.
pub const LEAST: f64 = 0.01;

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct KerpleLog<B: Backend> {
    rpe: Kernel<B>,
}

#[derive(Module, Debug)]
struct Kernel<B: Backend> {
    /// `[heads, 1, 1]`.
    bias_p: Param<Tensor<B, 3>>,
    /// `[heads, 1, 1]`.
    bias_a: Param<Tensor<B, 3>>,
}

impl<B: Backend> Scheme<B> for KerpleLog<B> {
    const INPUT: Input = Input::None;

    const BOTH_DIRECTIONS: bool = false;

    fn parameter_group(_name: &str) -> ParameterGroup {
        ParameterGroup { least: LEAST, ..ParameterGroup::UNDECAYED }
    }

    /// p uniform on 0 … 2, a on 0 … 1.
    fn new(config: &TransformerConfig, init: &mut Init<'_, B>) -> Self {
        let heads = config.num_heads;
        let [bias_p, bias_a] = [2.0, 1.0].map(|most| {
            let values = init.draw_uniform(heads, 0.0, most);
            init.values(values, [heads, 1, 1])
        });
        Self { rpe: Kernel { bias_p, bias_a } }
    }

    fn score(&self, _layer: usize, places: &Places<B>) -> Score<B>
    where
        B: SequenceOps,
    {
        let heads = self.rpe.bias_p.dims()[0];
        let [p, a] =
            [&self.rpe.bias_p, &self.rpe.bias_a].map(|x| at_least(x.val().reshape([heads, 1]).cast(places.wide())));
        let distances = places.indices().unsqueeze::<2>(); // [1, seq]
        let bias = p.neg() * (a * distances + 1.0).log(); // [heads, seq]
        Score::Bias(B::by_distance(bias.cast(places.dtype)))
    }
}

/// max(x, [`LEAST`]) with the gradient of x.
fn at_least<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    x.clone().detach().clamp_min(LEAST) + (x.clone() - x.detach())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::Autodiff;
    use burn::tensor::TensorData;

    #[test]
    fn small_parameters_count_as_the_least_and_keep_their_gradient() {
        type B = Autodiff<crate::Cpu>;
        let x = Tensor::<B, 2>::from_data(TensorData::from([[-0.3f32], [0.5]]), &Default::default()).require_grad();
        let y = at_least(x.clone());
        assert_eq!(y.to_data(), TensorData::from([[0.01f32], [0.5]]));
        let gradients = (y * Tensor::<B, 2>::from_data([[2.0f32], [3.0]], &Default::default())).sum().backward();
        assert_eq!(x.grad(&gradients).map(|g| g.to_data()), Some(TensorData::from([[2.0f32], [3.0]])));
    }
}
