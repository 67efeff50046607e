//! One time step of one example through an RNN, an LSTM or a GRU, forward and backward.

use crate::ops::cpu::math;
use std::fmt::Debug;

/// Which layer a [`RecurrentKernel`](super::cpu::RecurrentKernel) computes.
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
    /// Elements saved per step for the backward pass, beside the gates, are `EXTRA·hidden`; first the states but the
    /// output.
    const EXTRA: usize;
    /// Whether the gradients at the recurrent product differ from those at the input's product.
    const RESETS: bool;

    /// `input` and `product`: W_ih·x_t + b_ih and W_hh·h_{t−1} + b_hh. `state` goes from before the step to after it;
    /// `gates` and `extra` are what to save.
    fn forward(input: &[f32], product: &[f32], state: &mut [f32], gates: &mut [f32], extra: &mut [f32]);

    /// Back through a step. `state`: the gradient by the state after the step, to be replaced by the part of that by
    /// the state before which does not come through the product. `gates`: what was saved, to be replaced by the
    /// gradient by the input of [`Self::forward`]; `product` takes that by the product, where [`Self::RESETS`].
    fn backward(step: Step<'_>, state: &mut [f32], gates: &mut [f32], product: &mut [f32]);
}

/// The numbers of a step that the backward pass needs.
#[derive(Debug)]
pub struct Step<'a> {
    /// The values saved besides the gates. They are not needed again.
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
        let (input, product) = (&input[..state.len()], &product[..state.len()]);
        for j in 0..state.len() {
            state[j] = math::tanh(input[j] + product[j]);
        }
    }

    #[inline(always)]
    fn backward(step: Step<'_>, state: &mut [f32], gates: &mut [f32], _: &mut [f32]) {
        let (state, output) = (&mut state[..gates.len()], &step.output[..gates.len()]);
        for j in 0..gates.len() {
            gates[j] = state[j] * (1.0 - output[j] * output[j]);
            state[j] = 0.0;
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
        let hidden = c.len();
        let (h, o, saved_c) = (&mut h[..hidden], &o[..hidden], &mut saved_c[..hidden]);
        let (i, f, g) = (&i[..hidden], &f[..hidden], &g[..hidden]);
        for j in 0..hidden {
            c[j] = f[j].mul_add(c[j], i[j] * g[j]);
            saved_c[j] = c[j];
        }
        for j in 0..hidden {
            h[j] = o[j] * math::tanh(c[j]);
        }
    }

    #[inline(always)]
    fn backward(step: Step<'_>, state: &mut [f32], gates: &mut [f32], _: &mut [f32]) {
        let (dh, dc) = state.split_at_mut(state.len() / 2);
        let [i, f, g, o] = pieces(gates, dc.len());
        let hidden = dc.len();
        let (dh, tanh_c, c_before) = (&mut dh[..hidden], &mut step.extra[..hidden], &step.rest_before[..hidden]);
        let (i, f, g, o) = (&mut i[..hidden], &mut f[..hidden], &mut g[..hidden], &mut o[..hidden]);
        // One or two arrays are written per loop: the compiler vectorises that.
        tanh_c.iter_mut().for_each(|c| *c = math::tanh(*c));
        for j in 0..hidden {
            dc[j] += dh[j] * o[j] * (1.0 - tanh_c[j] * tanh_c[j]);
        }
        for j in 0..hidden {
            o[j] = dh[j] * tanh_c[j] * o[j] * (1.0 - o[j]);
        }
        dh.fill(0.0);
        for j in 0..hidden {
            (i[j], g[j]) = (dc[j] * g[j] * i[j] * (1.0 - i[j]), dc[j] * i[j] * (1.0 - g[j] * g[j]));
        }
        for j in 0..hidden {
            let df = dc[j] * c_before[j] * f[j] * (1.0 - f[j]);
            dc[j] *= f[j];
            f[j] = df;
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
        let (r, z, n) = (&r[..hidden], &z[..hidden], &mut n[..hidden]);
        let (x, reset) = (&input[2 * hidden..][..hidden], &reset[..hidden]);
        for j in 0..hidden {
            n[j] = math::tanh(r[j].mul_add(reset[j], x[j]));
        }
        for j in 0..hidden {
            state[j] = z[j].mul_add(state[j] - n[j], n[j]);
        }
    }

    #[inline(always)]
    fn backward(step: Step<'_>, state: &mut [f32], gates: &mut [f32], product: &mut [f32]) {
        let hidden = state.len();
        let [r, z, n] = pieces(gates, hidden);
        let (r, z, n) = (&mut r[..hidden], &mut z[..hidden], &mut n[..hidden]);
        let (h_before, reset) = (&step.output_before[..hidden], &step.extra[..hidden]);
        for j in 0..hidden {
            let dz = state[j] * (h_before[j] - n[j]) * z[j] * (1.0 - z[j]);
            let dn = state[j] * (1.0 - z[j]) * (1.0 - n[j] * n[j]);
            state[j] *= z[j];
            (z[j], n[j]) = (dz, dn);
        }
        let [product_r, product_z, product_n] = pieces(product, hidden);
        let product_n = &mut product_n[..hidden];
        for j in 0..hidden {
            let dr = n[j] * reset[j] * r[j] * (1.0 - r[j]);
            product_n[j] = n[j] * r[j];
            r[j] = dr;
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
    let (a, b) = (&a[..to.len()], &b[..to.len()]);
    for j in 0..to.len() {
        to[j] = a[j] + b[j];
    }
}
