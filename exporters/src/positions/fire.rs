//! A bias that is an MLP of the relative distance. The counterpart of `models::positions::fire`.

use super::{Bias, Places, Scheme, Score, distance};
use crate::ExportError;
use crate::graph::{GraphBuilder, Value};
use crate::onnx::tensor_proto::DataType;
use models::positions::fire::EPSILON;
use models::transformer::TransformerConfig;

pub(super) struct Fire;

impl Scheme for Fire {
    fn score(g: &mut GraphBuilder<'_>, config: &TransformerConfig, _places: &Places) -> Result<Score, ExportError> {
        let (width, heads) = (config.fire_width, config.num_heads);
        g.scope("fire", |g| {
            let multiplier = g.weight("L_multiplier", &[1])?.values[0];
            let length = g.weight("init_L", &[1])?.values[0];
            let threshold = g.scalar("threshold", (multiplier * length).abs());
            let c = g.weight("c", &[1])?.values[0];
            let c = g.scalar("c", c);
            // The layers in 32 bits whatever the products of the model have: they make no use of its activations.
            let layers = g.scope("mlp", |g| {
                let up = g.scope("0", |g| {
                    let weight = g.weight("weight", &[width, 1])?; // a row when transposed
                    Ok::<_, ExportError>([
                        g.constant("weight.T", &[1, width], &weight.values),
                        g.parameter("bias", &[width])?,
                    ])
                })?;
                let down = g.scope("2", |g| {
                    let weight = g.parameter("weight", &[heads, width])?;
                    let column = g.weight("bias", &[heads])?;
                    Ok::<_, ExportError>([weight, g.constant("bias.column", &[heads, 1], &column.values)])
                })?;
                Ok::<_, ExportError>([up, down])
            })?;
            Ok(Score::Bias(Box::new(Mlp { c, threshold, layers, heads: heads as i64 })))
        })
    }
}

struct Mlp {
    c: Value,
    /// L.
    threshold: Value,
    /// Weight and bias of 1 → width, and of width → heads.
    layers: [[Value; 2]; 2],
    heads: i64,
}

impl Mlp {
    /// ln(|c·x| + 1).
    fn psi(&self, g: &mut GraphBuilder<'_>, x: &Value) -> Value {
        let one = g.scalar("one_float", 1f32);
        let x = g.mul(&self.c, x);
        let x = g.node("Abs", &[&x], &[]);
        let x = g.add(&x, &one);
        g.node("Log", &[&x], &[])
    }
}

impl Bias for Mlp {
    fn between(&self, g: &mut GraphBuilder<'_>, query: &Value, key: &Value) -> Value {
        g.scope("fire", |g| {
            let distance = distance(g, query, key); // [query, key]
            let distance = self.psi(g, &distance);
            let place = g.cast(query, DataType::Float); // [query, 1]
            let place = g.node("Max", &[&place, &self.threshold], &[]);
            let place = self.psi(g, &place);
            let epsilon = g.scalar("epsilon", EPSILON as f32);
            let place = g.add(&place, &epsilon);
            let ratio = g.div(&distance, &place); // [query, key]
            let [[up, up_bias], [down, down_bias]] = &self.layers;
            let pairs = g.list("pairs", &[-1, 1]);
            let x = g.reshape(&ratio, &pairs); // [query·key, 1]
            let x = g.mul(&x, up); // [query·key, width]
            let x = g.add(&x, up_bias);
            let x = g.relu(&x);
            let x = g.transpose(&x, &[1, 0]);
            let x = g.matmul(down, &x); // [heads, query·key]
            let x = g.add(&x, down_bias);
            let heads = g.list("heads", &[self.heads]);
            let shape = g.sizes(&ratio, 0..2);
            let shape = g.concat(&[&heads, &shape], 0);
            g.reshape(&x, &shape) // [heads, query, key]
        })
    }
}
