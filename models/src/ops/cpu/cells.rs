//! One time step of one example through an RNN, an LSTM or a GRU, there and back.

use super::math;
use std::fmt::Debug;

/// Which layer a [`RecurrentKernel`](super::recurrent::RecurrentKernel) computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layer {
    /// Elman's.
    Rnn,
    /// Long short-term memory.
    Lstm,
    /// Gated recurrent unit.
    Gru,
}

/// One time step of one example. Rows of gates are `GATES` pieces of `hidden` elements.
pub trait Cell: Clone + Debug + Send + Sync + 'static {
    /// The layer that it makes.
    const LAYER: Layer;
    /// Gates: the rows of the weights are `GATES·hidden`.
    const GATES: usize;
    /// The state is `STATES·hidden` elements, the output first.
    const STATES: usize;
    /// Elements saved per step for the way back, beside the gates, are `EXTRA·hidden`; first the states but the output.
    const EXTRA: usize;
    /// Whether gradients at the recurrent product are others than at the input's product.
    const RESETS: bool;

    /// `input` and `product`: W_ih·x_t + b_ih and W_hh·h_{t−1} + b_hh. `state` goes from before the step to after it;
    /// `gates` and `extra` are what to save.
    fn forward(input: &[f32], product: &[f32], state: &mut [f32], gates: &mut [f32], extra: &mut [f32]);

    /// Back through a step. `state`: the gradient by the state after the step, to be replaced by the part of that by the
    /// state before which does not come through the product. `gates`: what was saved, to be replaced by the gradient by
    /// the input of [`Self::forward`]; `product` takes that by the product, where [`Self::RESETS`].
    fn backward(step: Step<'_>, state: &mut [f32], gates: &mut [f32], product: &mut [f32]);
}

/// What the way back knows of a step.
#[derive(Debug)]
pub struct Step<'a> {
    /// What was saved beside the gates. It is not needed again.
    pub extra: &'a mut [f32],
    /// The output.
    pub output: &'a [f32],
    /// The output of the step before.
    pub output_before: &'a [f32],
    /// The rest of the state before.
    pub rest_before: &'a [f32],
}

/// h = tanh(input + product); nothing needs to be saved.
#[derive(Debug, Clone)]
pub struct RnnCell;

impl Cell for RnnCell {
    const LAYER: Layer = Layer::Rnn;
    const GATES: usize = 1;
    const STATES: usize = 1;
    const EXTRA: usize = 0;
    const RESETS: bool = false;

    #[inline(always)]
    fn forward(input: &[f32], product: &[f32], state: &mut [f32], _: &mut [f32], _: &mut [f32]) {
        for ((h, x), y) in state.iter_mut().zip(input).zip(product) {
            *h = math::tanh(x + y);
        }
    }

    #[inline(always)]
    fn backward(step: Step<'_>, state: &mut [f32], gates: &mut [f32], _: &mut [f32]) {
        for ((dx, dh), h) in gates.iter_mut().zip(state).zip(step.output) {
            *dx = *dh * (1.0 - h * h);
            *dh = 0.0;
        }
    }
}

/// Gates i, f, g, o; the state c is saved.
#[derive(Debug, Clone)]
pub struct LstmCell;

impl Cell for LstmCell {
    const LAYER: Layer = Layer::Lstm;
    const GATES: usize = 4;
    const STATES: usize = 2;
    const EXTRA: usize = 1;
    const RESETS: bool = false;

    #[inline(always)]
    fn forward(input: &[f32], product: &[f32], state: &mut [f32], gates: &mut [f32], saved_c: &mut [f32]) {
        let (h, c) = state.split_at_mut(state.len() / 2);
        sum(gates, input, product);
        let [i, f, g, o] = pieces(gates, c.len());
        for x in [&mut *i, &mut *f, &mut *o] {
            x.iter_mut().for_each(|x| *x = math::sigmoid(*x));
        }
        g.iter_mut().for_each(|x| *x = math::tanh(*x));
        for ((((c, saved_c), i), f), g) in c.iter_mut().zip(saved_c).zip(i).zip(f).zip(g) {
            *c = f.mul_add(*c, *i * *g);
            *saved_c = *c;
        }
        for ((h, c), o) in h.iter_mut().zip(c).zip(o) {
            *h = *o * math::tanh(*c);
        }
    }

    #[inline(always)]
    fn backward(step: Step<'_>, state: &mut [f32], gates: &mut [f32], _: &mut [f32]) {
        let (dh, dc) = state.split_at_mut(state.len() / 2);
        let [i, f, g, o] = pieces(gates, dc.len());
        // One array is written per loop: the compiler vectorises that.
        let tanh_c = step.extra;
        tanh_c.iter_mut().for_each(|c| *c = math::tanh(*c));
        for (((dc, dh), o), tanh) in dc.iter_mut().zip(&*dh).zip(&*o).zip(&*tanh_c) {
            *dc += dh * o * (1.0 - tanh * tanh);
        }
        for ((o, dh), tanh) in o.iter_mut().zip(&*dh).zip(&*tanh_c) {
            *o = dh * tanh * *o * (1.0 - *o);
        }
        dh.fill(0.0);
        for ((dc, i), g) in dc.iter().zip(i).zip(g) {
            let (di, dg) = (dc * *g * *i * (1.0 - *i), dc * *i * (1.0 - *g * *g));
            (*i, *g) = (di, dg);
        }
        for ((dc, f), c) in dc.iter_mut().zip(f).zip(step.rest_before) {
            let df = *dc * c * *f * (1.0 - *f);
            *dc *= *f;
            *f = df;
        }
    }
}

/// Gates r, z, n; n's recurrent product is saved.
#[derive(Debug, Clone)]
pub struct GruCell;

impl Cell for GruCell {
    const LAYER: Layer = Layer::Gru;
    const GATES: usize = 3;
    const STATES: usize = 1;
    const EXTRA: usize = 1;
    const RESETS: bool = true;

    #[inline(always)]
    fn forward(input: &[f32], product: &[f32], state: &mut [f32], gates: &mut [f32], reset: &mut [f32]) {
        let hidden = state.len();
        let (rz, n) = gates.split_at_mut(2 * hidden);
        sum(rz, input, product);
        rz.iter_mut().for_each(|x| *x = math::sigmoid(*x));
        let (r, z) = rz.split_at(hidden);
        reset.copy_from_slice(&product[2 * hidden..]);
        for (((n, x), r), reset) in n.iter_mut().zip(&input[2 * hidden..]).zip(r).zip(reset) {
            *n = math::tanh(r.mul_add(*reset, *x));
        }
        for ((h, z), n) in state.iter_mut().zip(z).zip(n) {
            *h = z.mul_add(*h - *n, *n);
        }
    }

    #[inline(always)]
    fn backward(step: Step<'_>, state: &mut [f32], gates: &mut [f32], product: &mut [f32]) {
        let hidden = state.len();
        let [r, z, n] = pieces(gates, hidden);
        for (((dh, z), n), h) in state.iter_mut().zip(&mut *z).zip(&mut *n).zip(step.output_before) {
            let (dz, dn) = (*dh * (h - *n) * *z * (1.0 - *z), *dh * (1.0 - *z) * (1.0 - *n * *n));
            *dh *= *z;
            (*z, *n) = (dz, dn);
        }
        let [product_r, product_z, product_n] = pieces(product, hidden);
        for (((r, dn), product_n), reset) in r.iter_mut().zip(n).zip(product_n).zip(&*step.extra) {
            let dr = *dn * reset * *r * (1.0 - *r);
            *product_n = *dn * *r;
            *r = dr;
        }
        product_r.copy_from_slice(r);
        product_z.copy_from_slice(z);
    }
}

/// Consecutive pieces of this length.
#[inline(always)]
fn pieces<const N: usize>(row: &mut [f32], length: usize) -> [&mut [f32]; N] {
    let mut pieces = row.chunks_exact_mut(length);
    std::array::from_fn(|_| pieces.next().unwrap_or_default())
}

/// to = a + b, as far as `to` goes.
#[inline(always)]
pub fn sum(to: &mut [f32], a: &[f32], b: &[f32]) {
    for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
        *to = a + b;
    }
}
