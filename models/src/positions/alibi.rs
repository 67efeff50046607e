//! ALiBi: head h adds −m_h·(i − j) to the score of query i and key j (Press et al., arXiv 2108.12409). Nothing is
//! trained and there is no table, so that sequences may have any length (length extrapolation).
//!
//! Where tokens attend in both directions, earlier keys get −m_h·(i − j − ½) and later ones −m_h·(j − i): the ½ tells left from right
//! (Delétang et al., arXiv 2207.02098, `models/positional_encodings.py` of their code).

use super::{Input, Places, Scheme, Score};
use crate::Init;
use crate::ops::SequenceOps;
use crate::transformer::TransformerConfig;
use burn::module::Module;
use burn::prelude::*;
use burn::tensor::TensorData;
use std::marker::PhantomData;

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Alibi<B: Backend> {
    slopes: Vec<f32>,
    causal: bool,
    backend: PhantomData<B>,
}

/// m_h of every head: 2^(−8(h + 1)/n) for n heads, a power of two. For other n, those of the power of two below, then
/// every other one of twice that power, as in the code published with the paper.
pub fn slopes(heads: usize) -> Vec<f32> {
    let of_power = |n: usize| (1..=n).map(move |h| (-8.0 * h as f64 / n as f64).exp2() as f32);
    let power = 1 << heads.max(1).ilog2();
    of_power(power).chain(of_power(2 * power).step_by(2)).take(heads).collect()
}

impl<B: Backend> Scheme<B> for Alibi<B> {
    const INPUT: Input = Input::None;

    fn new(config: &TransformerConfig, _init: &mut Init<'_, B>) -> Self {
        Self { slopes: slopes(config.num_heads), causal: config.causal, backend: PhantomData }
    }

    fn score(&self, _layer: usize, places: &Places<B>) -> Score<B>
    where
        B: SequenceOps,
    {
        let (seq, heads) = (places.seq(), self.slopes.len());
        let slopes = TensorData::new(self.slopes.clone(), [1, heads, 1, 1]);
        let slopes = Tensor::<B, 4>::from_data(slopes, (&places.device(), places.wide()));
        let indices = places.indices();
        let (query, key) = (indices.clone().reshape([1, 1, seq, 1]), indices.reshape([1, 1, 1, seq]));
        let ahead = key - query; // [1, 1, query, key], negative where the key comes first
        let near = match self.causal {
            true => ahead,
            false => (ahead.clone() + 0.5).min_pair(ahead.neg()),
        };
        Score::Bias((near * slopes).cast(places.dtype)) // [1, heads, query, key]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_paper() {
        let powers = |exponents: &[f32]| exponents.iter().map(|e| (-e).exp2()).collect::<Vec<_>>();
        assert_eq!(slopes(8), powers(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]));
        assert_eq!(slopes(2), powers(&[4.0, 8.0]));
        assert_eq!(slopes(1), powers(&[8.0]));
        assert_eq!(slopes(6), powers(&[2.0, 4.0, 6.0, 8.0, 1.0, 3.0]), "four of 4 heads, then 0 and 2 of 8");
    }
}
