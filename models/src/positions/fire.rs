//! FIRE: the bias of query i and key j is a small MLP of ψ(i − j)/ψ(max(i, L)) with ψ(x) = ln(|c·x| + 1), so that it sees
//! distances relative to the query's place, and absolute ones only up to the threshold L (Li et al., arXiv 2310.04418).
//! Every layer has its own MLP, c and L.

#![allow(non_snake_case)] // parameters are called as in checkpoints

use super::{Input, Places, Scheme, Score};
use crate::Init;
use crate::error::ConfigError;
use crate::layers::Affine;
use crate::ops::SequenceOps;
use crate::training::ParameterGroup;
use crate::transformer::TransformerConfig;
use burn::module::{Module, Param};
use burn::prelude::*;

/// Added to the denominator.
pub const EPSILON: f64 = 1e-6;

/// See the [module documentation](self).
#[derive(Module, Debug)]
pub struct Fire<B: Backend> {
    layers: Vec<Layer<B>>,
}

#[derive(Module, Debug)]
struct Layer<B: Backend> {
    fire: Bias<B>,
}

/// The parameters of a layer. PyTorch's files have its scalars without axes.
#[derive(Module, Debug)]
struct Bias<B: Backend> {
    /// 1 → width → heads.
    mlp: (Affine<B>, Relu, Affine<B>),
    /// `[1]`.
    c: Param<Tensor<B, 1>>,
    /// `[1]`; L = |L_multiplier·init_L|.
    L_multiplier: Param<Tensor<B, 1>>,
    /// `[1]`, not trained.
    init_L: Param<Tensor<B, 1>>,
}

/// The place of an activation among the layers of the MLP, which checkpoints count.
#[derive(Module, Debug, Clone)]
struct Relu;

impl<B: Backend> Scheme<B> for Fire<B> {
    const INPUT: Input = Input::None;

    const BOTH_DIRECTIONS: bool = false;

    const PER_LAYER: bool = true;

    fn check(config: &TransformerConfig) -> Result<(), ConfigError> {
        if config.fire_width == 0 {
            return Err(ConfigError::new("fire_width", "must be at least 1"));
        }
        for (key, value) in [("fire_init_c", config.fire_init_c), ("fire_init_length", config.fire_init_length)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(ConfigError::new(key, format!("{value} is not a positive number")));
            }
        }
        Ok(())
    }

    fn parameter_group(name: &str) -> ParameterGroup {
        let is_scalar = name.ends_with("fire.c") || name.ends_with("fire.L_multiplier");
        if is_scalar { ParameterGroup::UNDECAYED } else { ParameterGroup::DEFAULT }
    }

    fn examples(small: &TransformerConfig) -> Vec<TransformerConfig> {
        vec![
            small.clone(),
            TransformerConfig { fire_width: 5, fire_init_c: 1.0, fire_init_length: 4.0, ..small.clone() },
        ]
    }

    fn new(config: &TransformerConfig, init: &mut Init<'_, B>) -> Self {
        let (width, heads) = (config.fire_width, config.num_heads);
        let layer = |_| Layer {
            fire: Bias {
                mlp: (Affine::new(init, 1, width), Relu, Affine::new(init, width, heads)),
                c: init.constant([1], config.fire_init_c as f32),
                L_multiplier: init.constant([1], 1.0),
                init_L: init.constant([1], config.fire_init_length as f32).set_require_grad(false),
            },
        };
        Self { layers: (0..config.num_layers).map(layer).collect() }
    }

    fn score(&self, layer: usize, places: &Places<B>) -> Score<B>
    where
        B: SequenceOps,
    {
        let Bias { mlp: (up, _, down), .. } = &self.layers[layer].fire;
        let seq = places.seq();
        let ratio = self.layers[layer].fire.ratio(places).cast(places.dtype); // [query, key]
        let x = ratio.reshape([1, seq * seq, 1]);
        let x = B::affine(x, up.weight.val().transpose(), up.bias.val(), true); // [1, query·key, width]
        let bias = down.forward(x); // [1, query·key, heads]
        let heads = bias.dims()[2];
        Score::Bias(bias.swap_dims(1, 2).reshape([1, heads, seq, seq]))
    }
}

impl<B: Backend> Bias<B> {
    /// ψ(i − j)/(ψ(max(i, L)) + ε), `[query, key]`.
    fn ratio(&self, places: &Places<B>) -> Tensor<B, 2> {
        let (wide, seq) = (places.wide(), places.seq());
        let scalar = |x: &Param<Tensor<B, 1>>| x.val().cast(wide).reshape([1, 1]);
        let c = scalar(&self.c);
        let psi = |x: Tensor<B, 2>| ((c.clone() * x).abs() + 1.0).log();
        let threshold = (scalar(&self.L_multiplier) * scalar(&self.init_L)).abs().expand([seq, 1]);
        let indices = places.indices();
        let (query, key) = (indices.clone().reshape([seq, 1]), indices.reshape([1, seq]));
        psi(query.clone() - key) / (psi(query.max_pair(threshold)) + EPSILON)
    }
}
