//! RNN, LSTM and GRU layers: one recurrent product per time step, everything else of a step in one go, and back through
//! time in one sweep.
//!
//! What does not depend on the state, `W_ih·x`, comes in ready. The examples are split over the threads, and every thread
//! takes its examples through all time steps: no thread waits for another. The gradient of the recurrent weight is one
//! product at the end.

use super::panels::Panels;
use super::{dims, math, tensor, values, with_simd};
use crate::Cpu;
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use crate::ops::{LayerInput, RecurrentWeights, plain};
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::ops::FloatTensorOps;
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

/// One time step of one example. Rows of gates are `GATES` pieces of `hidden` elements.
pub trait Cell: Clone + Debug + Send + Sync + 'static {
    /// Gates: the rows of the weights are `GATES·hidden`.
    const GATES: usize;
    /// The state is `STATES·hidden` elements, the output first.
    const STATES: usize;
    /// Elements saved per step for the way back are `SAVED·hidden`.
    const SAVED: usize;
    /// Whether gradients at the recurrent product are others than at the input's product.
    const RESETS: bool;

    /// `input` and `product`: W_ih·x_t + b_ih and W_hh·h_{t−1} + b_hh; both may be overwritten. `state` goes from before
    /// the step to after it.
    fn forward(input: &mut [f32], product: &mut [f32], state: &mut [f32], saved: &mut [f32]);

    /// Back through a step. `state`: the gradient by the state after the step, to be replaced by the part of that by the
    /// state before which does not come through the product. `input` and (where [`Self::RESETS`]) `product` take the
    /// gradients by those of [`Self::forward`].
    fn backward(step: Step<'_>, state: &mut [f32], input: &mut [f32], product: &mut [f32]);
}

/// What the way back knows of a step.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// What was saved.
    saved: &'a [f32],
    /// The output.
    output: &'a [f32],
    /// The output of the step before.
    output_before: &'a [f32],
    /// The rest of the state before.
    rest_before: &'a [f32],
}

/// h = tanh(input + product).
#[derive(Debug, Clone)]
pub struct RnnCell;

impl Cell for RnnCell {
    const GATES: usize = 1;
    const STATES: usize = 1;
    const SAVED: usize = 0;
    const RESETS: bool = false;

    #[inline(always)]
    fn forward(input: &mut [f32], product: &mut [f32], state: &mut [f32], _: &mut [f32]) {
        for ((h, x), y) in state.iter_mut().zip(input).zip(product) {
            *h = math::tanh(*x + *y);
        }
    }

    #[inline(always)]
    fn backward(step: Step<'_>, state: &mut [f32], input: &mut [f32], _: &mut [f32]) {
        for ((dx, dh), h) in input.iter_mut().zip(state).zip(step.output) {
            *dx = *dh * (1.0 - h * h);
            *dh = 0.0;
        }
    }
}

/// Gates i, f, g, o and the state c; saved are c, i, f, g, o.
#[derive(Debug, Clone)]
pub struct LstmCell;

impl Cell for LstmCell {
    const GATES: usize = 4;
    const STATES: usize = 2;
    const SAVED: usize = 5;
    const RESETS: bool = false;

    #[inline(always)]
    fn forward(input: &mut [f32], product: &mut [f32], state: &mut [f32], saved: &mut [f32]) {
        let (h, c) = state.split_at_mut(state.len() / 2);
        let hidden = c.len();
        let (saved_c, gates) = saved.split_at_mut(hidden);
        sum(gates, input, product);
        gates[..2 * hidden].iter_mut().for_each(|x| *x = math::sigmoid(*x));
        gates[2 * hidden..3 * hidden].iter_mut().for_each(|x| *x = math::tanh(*x));
        gates[3 * hidden..].iter_mut().for_each(|x| *x = math::sigmoid(*x));
        let [i, f, g, o] = pieces(gates, hidden);
        for ((((c, saved_c), i), f), g) in c.iter_mut().zip(saved_c).zip(i).zip(f).zip(g) {
            *c = f.mul_add(*c, i * g);
            *saved_c = *c;
        }
        for ((h, c), o) in h.iter_mut().zip(c).zip(o) {
            *h = o * math::tanh(*c);
        }
    }

    #[inline(always)]
    fn backward(step: Step<'_>, state: &mut [f32], input: &mut [f32], _: &mut [f32]) {
        let (dh, dc) = state.split_at_mut(state.len() / 2);
        let hidden = dc.len();
        let [c, i, f, g, o] = pieces(step.saved, hidden);
        let (di, rest) = input.split_at_mut(hidden);
        let (df, rest) = rest.split_at_mut(hidden);
        let (dg, d_o) = rest.split_at_mut(hidden);
        for ((((dc, dh), d_o), o), c) in dc.iter_mut().zip(dh).zip(d_o).zip(o).zip(c) {
            let tanh = math::tanh(*c);
            *d_o = *dh * tanh * o * (1.0 - o);
            *dc += *dh * o * (1.0 - tanh * tanh);
            *dh = 0.0;
        }
        for (((di, dc), i), g) in di.iter_mut().zip(&*dc).zip(i).zip(g) {
            *di = dc * g * i * (1.0 - i);
        }
        for (((dg, dc), i), g) in dg.iter_mut().zip(&*dc).zip(i).zip(g) {
            *dg = dc * i * (1.0 - g * g);
        }
        for (((df, dc), f), c) in df.iter_mut().zip(dc).zip(f).zip(step.rest_before) {
            *df = *dc * c * f * (1.0 - f);
            *dc *= f;
        }
    }
}

/// Gates r, z, n; saved are r, z, n and n's recurrent product.
#[derive(Debug, Clone)]
pub struct GruCell;

impl Cell for GruCell {
    const GATES: usize = 3;
    const STATES: usize = 1;
    const SAVED: usize = 4;
    const RESETS: bool = true;

    #[inline(always)]
    fn forward(input: &mut [f32], product: &mut [f32], state: &mut [f32], saved: &mut [f32]) {
        let hidden = state.len();
        let (gates, reset) = saved.split_at_mut(3 * hidden);
        let (rz, n) = gates.split_at_mut(2 * hidden);
        reset.copy_from_slice(&product[2 * hidden..]);
        sum(rz, input, product);
        rz.iter_mut().for_each(|x| *x = math::sigmoid(*x));
        let (r, z) = rz.split_at(hidden);
        for (((n, x), r), reset) in n.iter_mut().zip(&input[2 * hidden..]).zip(r).zip(reset) {
            *n = math::tanh(r.mul_add(*reset, *x));
        }
        for ((h, z), n) in state.iter_mut().zip(z).zip(n) {
            *h = z.mul_add(*h - *n, *n);
        }
    }

    #[inline(always)]
    fn backward(step: Step<'_>, state: &mut [f32], input: &mut [f32], product: &mut [f32]) {
        let hidden = state.len();
        let [r, z, n, reset] = pieces(step.saved, hidden);
        let (dr, rest) = input.split_at_mut(hidden);
        let (dz, dn) = rest.split_at_mut(hidden);
        for ((((dh, dz), z), n), h) in state.iter_mut().zip(dz).zip(z).zip(n).zip(step.output_before) {
            *dz = *dh * (h - n) * z * (1.0 - z);
        }
        for ((((dh, dn), z), n), dn_product) in state.iter_mut().zip(dn).zip(z).zip(n).zip(&mut product[2 * hidden..]) {
            *dn = *dh * (1.0 - z) * (1.0 - n * n);
            *dn_product = *dn;
            *dh *= z;
        }
        for (((dr, dn), r), reset) in dr.iter_mut().zip(&mut product[2 * hidden..]).zip(r).zip(reset) {
            *dr = *dn * reset * r * (1.0 - r);
            *dn *= r;
        }
        product[..2 * hidden].copy_from_slice(&input[..2 * hidden]);
    }
}

/// Consecutive pieces of this length.
#[inline(always)]
fn pieces<const N: usize>(row: &[f32], length: usize) -> [&[f32]; N] {
    std::array::from_fn(|k| &row[k * length..(k + 1) * length])
}

/// to = a + b, as far as `to` goes.
#[inline(always)]
fn sum(to: &mut [f32], a: &[f32], b: &[f32]) {
    for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
        *to = a + b;
    }
}

/// The kernel of a recurrent layer. In: W_ih·x, weight_hh, bias_ih, bias_hh and the state `[batch, states·hidden]`. Out: the
/// outputs `[batch, seq, hidden]` and the last state.
#[derive(Debug, Clone)]
pub struct Recurrent<C> {
    /// W_ih·x is `[batch, seq, gates·hidden]`; or, where this says which row of it each step takes, `[vocab, gates·hidden]`.
    ids: Option<Arc<[usize]>>,
    cell: PhantomData<C>,
}

/// What the forward pass leaves for the backward pass.
#[derive(Debug, Clone)]
pub struct Saved {
    /// `[batch, seq, SAVED·hidden]`; begins with the states beyond the output.
    steps: Vec<f32>,
    outputs: FlexTensor,
    weight_hh: FlexTensor,
    state: FlexTensor,
    /// Rows of W_ih·x.
    vocab: usize,
}

/// The sizes of a layer.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    batch: usize,
    seq: usize,
    hidden: usize,
}

impl Sizes {
    /// Examples that one thread takes.
    fn rows_per_thread(&self) -> usize {
        self.batch.div_ceil(rayon::current_num_threads()).max(1)
    }
}

impl<C: Cell> Kernel<5, 2> for Recurrent<C> {
    type Saved = Saved;

    fn forward(&self, inputs: [FlexTensor; 5], save: bool) -> ([FlexTensor; 2], Option<Saved>) {
        let [input, weight_hh, bias_ih, bias_hh, state] = inputs;
        let [gates, hidden] = dims(&weight_hh);
        let [batch, _] = dims(&state);
        let steps = self.ids.as_ref().map_or(values(&input).len() / gates, |ids| ids.len());
        let sizes = Sizes { batch, seq: steps / batch, hidden };
        let seq = sizes.seq;
        let recurrent = Panels::pack(values(&weight_hh), [hidden, gates], [1, hidden]);

        let mut outputs = vec![0.0; batch * seq * hidden];
        let mut last = values(&state).to_vec();
        let mut steps = vec![0.0; if save { batch * seq * C::SAVED * hidden } else { 0 }];
        let rows = sizes.rows_per_thread();
        let blocks = (outputs.par_chunks_mut(rows * seq * hidden))
            .zip(last.par_chunks_mut(rows * C::STATES * hidden))
            .enumerate();
        let [bias_ih, bias_hh] = [values(&bias_ih), values(&bias_hh)];
        // Only a cell that resets treats them differently.
        let bias = if C::RESETS { bias_ih.to_vec() } else { bias_ih.iter().zip(bias_hh).map(|(a, b)| a + b).collect() };
        let bias_hh = if C::RESETS { bias_hh } else { &[] };
        let run = |(index, (outputs, state)): (usize, (&mut [f32], &mut [f32])), saved| {
            with_simd(Forward::<C> {
                sizes,
                recurrent: &recurrent,
                bias: &bias,
                bias_hh,
                first: index * rows * seq,
                ids: self.ids.as_deref(),
                input: values(&input),
                outputs,
                state,
                saved,
                cell: PhantomData,
            });
        };
        match steps.len() {
            0 => blocks.for_each(|block| run(block, &mut [][..])),
            _ => blocks
                .zip(steps.par_chunks_mut(rows * seq * C::SAVED * hidden))
                .for_each(|(block, saved)| run(block, saved)),
        }

        let outputs = tensor(outputs, [batch, seq, hidden]);
        let last = tensor(last, [batch, C::STATES * hidden]);
        let saved = save.then(|| Saved {
            steps,
            outputs: outputs.clone(),
            weight_hh,
            state,
            vocab: values(&input).len() / gates,
        });
        ([outputs, last], saved)
    }

    fn backward(
        &self,
        saved: Saved,
        [d_outputs, d_last]: [Option<FlexTensor>; 2],
        wanted: [bool; 5],
    ) -> [Option<FlexTensor>; 5] {
        let Saved { steps, outputs, weight_hh, state, vocab } = saved;
        let [batch, seq, hidden] = dims(&outputs);
        let sizes = Sizes { batch, seq, hidden };
        let (gates, states) = (C::GATES * hidden, C::STATES * hidden);
        let recurrent = Panels::pack(values(&weight_hh), [gates, hidden], [hidden, 1]);

        let d_outputs = d_outputs.unwrap_or_else(|| tensor(vec![0.0; batch * seq * hidden], [batch, seq, hidden]));
        let mut d_state = match &d_last {
            Some(d_last) => values(d_last).to_vec(),
            None => vec![0.0; batch * states],
        };
        let mut d_input = vec![0.0; batch * seq * gates];
        let mut d_product = vec![0.0; if C::RESETS { batch * seq * gates } else { 0 }];
        let rows = sizes.rows_per_thread();
        let block = |length: usize, block: usize| {
            let size = rows * length;
            block * size..((block + 1) * size).min(batch * length)
        };
        let run = |(index, ((d_state, d_input), d_product)): (usize, ((&mut [f32], &mut [f32]), &mut [f32]))| {
            with_simd(BackwardSweep::<C> {
                sizes,
                recurrent: &recurrent,
                saved: &steps[block(seq * C::SAVED * hidden, index)],
                outputs: &values(&outputs)[block(seq * hidden, index)],
                state: &values(&state)[block(states, index)],
                d_outputs: &values(&d_outputs)[block(seq * hidden, index)],
                d_state,
                d_input,
                d_product,
                cell: PhantomData,
            });
        };
        let blocks = d_state.par_chunks_mut(rows * states).zip(d_input.par_chunks_mut(rows * seq * gates));
        match C::RESETS {
            true => blocks.zip(d_product.par_chunks_mut(rows * seq * gates)).enumerate().for_each(run),
            false => blocks.enumerate().for_each(|(index, block)| run((index, (block, &mut [])))),
        }

        let d_input = tensor(d_input, [batch, seq, gates]);
        let d_product = if C::RESETS { tensor(d_product, [batch, seq, gates]) } else { d_input.clone() };
        let d_weight = wanted[1].then(|| weight_gradient(&d_product, before(&outputs, &state)));
        let d_input = match &self.ids {
            Some(ids) => row_sums(&d_input, ids, vocab),
            None => d_input,
        };
        let d_bias_ih = wanted[2].then(|| column_sums(&d_input));
        let d_bias_hh = match (C::RESETS, &d_bias_ih) {
            (false, Some(sums)) => Some(sums.clone()),
            _ => wanted[3].then(|| column_sums(&d_product)),
        };
        [Some(d_input), d_weight, d_bias_ih, d_bias_hh, Some(tensor(d_state, [batch, states]))]
    }
}

/// The output before every step, `[batch, seq, hidden]`: the outputs one step later, after the state's.
fn before(outputs: &FlexTensor, state: &FlexTensor) -> FlexTensor {
    let [batch, seq, hidden] = dims(outputs);
    let [_, states] = dims(state);
    let mut before = vec![0.0; batch * seq * hidden];
    (before.par_chunks_mut(seq * hidden))
        .zip(values(outputs).par_chunks(seq * hidden))
        .zip(values(state).par_chunks(states))
        .for_each(|((before, outputs), state)| {
            let (first, rest) = before.split_at_mut(hidden);
            first.copy_from_slice(&state[..hidden]);
            rest.copy_from_slice(&outputs[..(seq - 1) * hidden]);
        });
    tensor(before, [batch, seq, hidden])
}

/// Σ d·hᵀ over all steps of all examples: `[batch, seq, gates·hidden]` and `[batch, seq, hidden]` →
/// `[gates·hidden, hidden]`.
fn weight_gradient(d_product: &FlexTensor, before: FlexTensor) -> FlexTensor {
    let [batch, seq, gates] = dims(d_product);
    let [_, _, hidden] = dims(&before);
    let d_product = Cpu::float_reshape(d_product.clone(), [batch * seq, gates].into());
    let before = Cpu::float_reshape(before, [batch * seq, hidden].into());
    Cpu::float_matmul(Cpu::float_transpose(d_product), before)
}

/// The sums of the rows with the same id: `[batch, seq, columns]` → `[vocab, columns]`.
fn row_sums(x: &FlexTensor, ids: &[usize], vocab: usize) -> FlexTensor {
    let [_, _, columns] = dims(x);
    let mut places = vec![Vec::new(); vocab];
    for (place, &id) in ids.iter().enumerate() {
        places[id].push(place);
    }
    let mut sums = vec![0.0; vocab * columns];
    sums.par_chunks_mut(columns).zip(places).for_each(|(sums, places)| {
        for place in places {
            add(sums, &values(x)[place * columns..][..columns]);
        }
    });
    tensor(sums, [vocab, columns])
}

/// Rows that are summed at once.
const BLOCK: usize = 128;

/// The sums over all rows: `[.., columns]` → `[columns]`.
fn column_sums(x: &FlexTensor) -> FlexTensor {
    let columns = x.layout().shape()[x.layout().num_dims() - 1];
    let sum = |rows: &[f32]| {
        let mut sums = vec![0.0; columns];
        for row in rows.chunks_exact(columns) {
            add(&mut sums, row);
        }
        sums
    };
    let partial: Vec<Vec<f32>> = values(x).par_chunks(BLOCK * columns).map(sum).collect();
    tensor(sum(&partial.concat()), [columns])
}

#[inline(always)]
fn add(to: &mut [f32], from: &[f32]) {
    for (a, b) in to.iter_mut().zip(from) {
        *a += b;
    }
}

/// All time steps of some examples.
struct Forward<'a, C> {
    sizes: Sizes,
    recurrent: &'a Panels,
    /// Of the input.
    bias: &'a [f32],
    /// Of the product, or nothing.
    bias_hh: &'a [f32],
    /// The place of the first step in the batch.
    first: usize,
    ids: Option<&'a [usize]>,
    /// As the kernel has it: of the whole batch, or of the vocabulary.
    input: &'a [f32],
    /// `[rows, seq, hidden]`.
    outputs: &'a mut [f32],
    /// `[rows, states·hidden]`.
    state: &'a mut [f32],
    /// `[rows, seq, SAVED·hidden]`, or nothing.
    saved: &'a mut [f32],
    cell: PhantomData<C>,
}

impl<C: Cell> WithSimd for Forward<'_, C> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Sizes { seq, hidden, .. } = self.sizes;
        let (gates, states, saved) = (C::GATES * hidden, C::STATES * hidden, C::SAVED * hidden);
        let rows = self.state.len() / states;
        let padded = self.recurrent.padded_columns();
        let mut h = vec![0.0; rows * hidden];
        let mut products = vec![0.0; rows * padded];
        let mut input = vec![0.0; gates];
        let mut unsaved = vec![0.0; saved];
        for (h, state) in h.chunks_exact_mut(hidden).zip(self.state.chunks_exact(states)) {
            h.copy_from_slice(&state[..hidden]);
        }
        for t in 0..seq {
            self.recurrent.product(simd, &h, &mut products);
            for r in 0..rows {
                let step = r * seq + t;
                let row = self.ids.map_or(self.first + step, |ids| ids[self.first + step]);
                sum(&mut input, &self.input[row * gates..], self.bias);
                let product = &mut products[r * padded..][..gates];
                add(product, self.bias_hh);
                let state = &mut self.state[r * states..][..states];
                let saved = match self.saved.is_empty() {
                    true => &mut unsaved,
                    false => &mut self.saved[step * saved..][..saved],
                };
                C::forward(&mut input, product, state, saved);
                h[r * hidden..][..hidden].copy_from_slice(&state[..hidden]);
                self.outputs[step * hidden..][..hidden].copy_from_slice(&state[..hidden]);
            }
        }
    }
}

/// All time steps of some examples, from the last to the first.
struct BackwardSweep<'a, C> {
    sizes: Sizes,
    recurrent: &'a Panels,
    saved: &'a [f32],
    outputs: &'a [f32],
    state: &'a [f32],
    d_outputs: &'a [f32],
    d_state: &'a mut [f32],
    d_input: &'a mut [f32],
    /// Nothing where it is the same as `d_input`.
    d_product: &'a mut [f32],
    cell: PhantomData<C>,
}

impl<C: Cell> WithSimd for BackwardSweep<'_, C> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Sizes { seq, hidden, .. } = self.sizes;
        let (gates, states, saved) = (C::GATES * hidden, C::STATES * hidden, C::SAVED * hidden);
        let rest = states - hidden;
        let rows = self.d_state.len() / states;
        let padded = self.recurrent.padded_columns();
        let mut at_product = vec![0.0; rows * gates];
        let mut through_product = vec![0.0; rows * padded];
        for t in (0..seq).rev() {
            for r in 0..rows {
                let step = r * seq + t;
                let state = &self.state[r * states..][..states];
                let (output_before, rest_before) = match t {
                    0 => state.split_at(hidden),
                    _ => (&self.outputs[(step - 1) * hidden..][..hidden], &self.saved[(step - 1) * saved..][..rest]),
                };
                let known = Step {
                    saved: &self.saved[step * saved..][..saved],
                    output: &self.outputs[step * hidden..][..hidden],
                    output_before,
                    rest_before,
                };
                let d_state = &mut self.d_state[r * states..][..states];
                add(&mut d_state[..hidden], &self.d_outputs[step * hidden..][..hidden]);
                let d_input = &mut self.d_input[step * gates..][..gates];
                let at_product = &mut at_product[r * gates..][..gates];
                match C::RESETS {
                    true => {
                        C::backward(known, d_state, d_input, at_product);
                        self.d_product[step * gates..][..gates].copy_from_slice(at_product);
                    }
                    false => {
                        C::backward(known, d_state, d_input, &mut []);
                        at_product.copy_from_slice(d_input);
                    }
                }
            }
            self.recurrent.product(simd, &at_product, &mut through_product);
            for (d_state, through) in self.d_state.chunks_exact_mut(states).zip(through_product.chunks_exact(padded)) {
                add(&mut d_state[..hidden], &through[..hidden]);
            }
        }
    }
}

/// The kernel's version of [`plain::rnn_layer`].
pub fn rnn_layer<B: RunKernels>(
    x: &LayerInput<B>,
    weights: &RecurrentWeights<B>,
    h: Option<&Tensor<B, 2>>,
) -> Option<(Tensor<B, 3>, Tensor<B, 2>)> {
    layer::<B, RnnCell>(x, weights, h.cloned())
}

/// The kernel's version of [`plain::lstm_layer`].
#[allow(clippy::type_complexity)] // the pair (h, c) is what the field calls the state
pub fn lstm_layer<B: RunKernels>(
    x: &LayerInput<B>,
    weights: &RecurrentWeights<B>,
    state: Option<&(Tensor<B, 2>, Tensor<B, 2>)>,
) -> Option<(Tensor<B, 3>, (Tensor<B, 2>, Tensor<B, 2>))> {
    let hidden = weights.weight_hh.dims()[1];
    let state = state.map(|(h, c)| Tensor::cat(vec![h.clone(), c.clone()], 1)); // [batch, 2·hidden]
    let (outputs, last) = layer::<B, LstmCell>(x, weights, state)?;
    Some((outputs, (last.clone().narrow(1, 0, hidden), last.narrow(1, hidden, hidden))))
}

/// The kernel's version of [`plain::gru_layer`].
pub fn gru_layer<B: RunKernels>(
    x: &LayerInput<B>,
    weights: &RecurrentWeights<B>,
    h: Option<&Tensor<B, 2>>,
) -> Option<(Tensor<B, 3>, Tensor<B, 2>)> {
    layer::<B, GruCell>(x, weights, h.cloned())
}

/// The outputs and the last state of a layer of `C`, from `state` `[batch, states·hidden]`.
fn layer<B: RunKernels, C: Cell>(
    x: &LayerInput<B>,
    weights: &RecurrentWeights<B>,
    state: Option<Tensor<B, 2>>,
) -> Option<(Tensor<B, 3>, Tensor<B, 2>)> {
    let weight_ih = weights.weight_ih.clone().transpose();
    if !B::has_kernels() || weight_ih.dtype() != DType::F32 {
        return None;
    }
    let ([batch, _], projected, ids) = match x {
        LayerInput::Embedded { table, ids } if table.dims()[0] < ids.dims().iter().product() => {
            let projected = table.clone().matmul(weight_ih); // [vocab, gates·hidden]
            let rows = B::int_input(ids.clone().into_primitive())?.into_data();
            (ids.dims(), float(&projected), Some(rows.iter::<i64>().map(|id| id as usize).collect()))
        }
        _ => {
            let x = x.clone().rows();
            let [batch, seq, _] = x.dims();
            ([batch, seq], float(&plain::matmul_rows(x, weight_ih)), None)
        }
    };
    let states = C::STATES * weights.weight_hh.dims()[1];
    let options = (&weights.weight_hh.device(), DType::F32);
    let state = state.unwrap_or_else(|| Tensor::zeros([batch, states], options));
    let inputs =
        [projected, float(&weights.weight_hh), float(&weights.bias_ih), float(&weights.bias_hh), float(&state)];
    let [outputs, last] = B::run(Recurrent::<C> { ids, cell: PhantomData }, inputs)?;
    Some((kernel::tensor(outputs), kernel::tensor(last)))
}
