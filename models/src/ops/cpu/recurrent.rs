//! RNN, LSTM and GRU layers: one recurrent product per time step, everything else of a step in one go, and back through
//! time in one sweep.
//!
//! What does not depend on the state, `W_ih·x`, comes in ready. The examples are split over the threads, and every thread
//! takes its examples through all time steps: no thread waits for another. The gradient of the recurrent weight is one
//! product at the end.

use super::panels::Panels;
use super::{dims, math, tensor, values, with_simd};
use crate::Cpu;
#[cfg(feature = "cube")]
use crate::ops::cube;
use crate::ops::kernel::{self, Kernel, RunKernels, float};
use crate::ops::{LayerInput, RecurrentWeights, plain};
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::module::embedding;
use burn::tensor::ops::FloatTensorOps;
#[cfg(feature = "cube")]
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_flex::FlexTensor;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

/// Which layer a [`RecurrentKernel`] computes.
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
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// What was saved beside the gates.
    extra: &'a [f32],
    /// The output.
    output: &'a [f32],
    /// The output of the step before.
    output_before: &'a [f32],
    /// The rest of the state before.
    rest_before: &'a [f32],
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
        for (((dc, dh), o), c) in dc.iter_mut().zip(dh).zip(o).zip(step.extra) {
            let tanh = math::tanh(*c);
            *dc += *dh * *o * (1.0 - tanh * tanh);
            *o = *dh * tanh * *o * (1.0 - *o);
            *dh = 0.0;
        }
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
        for (((r, dn), product_n), reset) in r.iter_mut().zip(n).zip(product_n).zip(step.extra) {
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
fn sum(to: &mut [f32], a: &[f32], b: &[f32]) {
    for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
        *to = a + b;
    }
}

/// The kernel of a recurrent layer. In: W_ih·x, weight_hh, bias_ih, bias_hh and the state `[batch, states·hidden]`. Out: the
/// outputs `[batch, seq, hidden]` and the last state.
///
/// It is no generic type, so that its loops are compiled here, with this crate's optimisations, and not where a backend is
/// chosen.
#[derive(Debug, Clone)]
pub struct RecurrentKernel {
    layer: Layer,
    /// W_ih·x is `[batch, seq, gates·hidden]`; or, where this says which row of it each step takes, `[vocab, gates·hidden]`.
    ids: Option<Arc<[usize]>>,
}

impl Kernel<5, 2> for RecurrentKernel {
    type Saved = Saved;

    fn forward(&self, inputs: [FlexTensor; 5], save: bool) -> ([FlexTensor; 2], Option<Saved>) {
        match self.layer {
            Layer::Rnn => forward::<RnnCell>(self.ids.as_deref(), inputs, save),
            Layer::Lstm => forward::<LstmCell>(self.ids.as_deref(), inputs, save),
            Layer::Gru => forward::<GruCell>(self.ids.as_deref(), inputs, save),
        }
    }

    fn backward(&self, saved: Saved, gradients: [Option<FlexTensor>; 2], wanted: [bool; 5]) -> [Option<FlexTensor>; 5] {
        match self.layer {
            Layer::Rnn => backward::<RnnCell>(self.ids.as_deref(), saved, gradients, wanted),
            Layer::Lstm => backward::<LstmCell>(self.ids.as_deref(), saved, gradients, wanted),
            Layer::Gru => backward::<GruCell>(self.ids.as_deref(), saved, gradients, wanted),
        }
    }

    const ON_GPU: bool = true;

    #[cfg(feature = "cube")]
    fn gpu_forward<R: CubeRuntime>(
        &self,
        inputs: [CubeTensor<R>; 5],
        _: bool,
    ) -> Option<([CubeTensor<R>; 2], Vec<CubeTensor<R>>)> {
        self.ids.is_none().then(|| cube::recurrent::forward(self.layer, inputs))
    }

    #[cfg(feature = "cube")]
    fn gpu_backward<R: CubeRuntime>(
        &self,
        saved: Vec<CubeTensor<R>>,
        gradients: [Option<CubeTensor<R>>; 2],
        _: [bool; 5],
    ) -> [Option<CubeTensor<R>>; 5] {
        cube::recurrent::backward(self.layer, saved, gradients)
    }
}

/// What the forward pass leaves for the backward pass.
#[derive(Debug, Clone)]
pub struct Saved {
    /// `[batch, seq, gates·hidden]`.
    gates: Vec<f32>,
    /// `[batch, seq, EXTRA·hidden]`.
    extra: Vec<f32>,
    outputs: FlexTensor,
    weight_hh: FlexTensor,
    state: FlexTensor,
    /// Rows of W_ih·x.
    vocab: usize,
}

/// Examples that one thread takes.
fn rows_per_thread(batch: usize) -> usize {
    batch.div_ceil(rayon::current_num_threads()).max(1)
}

/// Consecutive parts of this length (the last may be shorter), and then nothing for ever: of what is not needed, too.
fn parts(values: &mut [f32], length: usize) -> impl Iterator<Item = &mut [f32]> {
    values.chunks_mut(length.max(1)).chain(std::iter::repeat_with(Default::default))
}

fn forward<C: Cell>(ids: Option<&[usize]>, inputs: [FlexTensor; 5], save: bool) -> ([FlexTensor; 2], Option<Saved>) {
    let [input, weight_hh, bias_ih, bias_hh, state] = inputs;
    let [gates, hidden] = dims(&weight_hh);
    let [batch, states] = dims(&state);
    let vocab = values(&input).len() / gates;
    let seq = ids.map_or(vocab, <[usize]>::len) / batch;
    let recurrent = Panels::pack(values(&weight_hh), [hidden, gates], [1, hidden]);
    let [bias_ih, bias_hh] = [values(&bias_ih), values(&bias_hh)];
    // Only a cell that resets treats them differently.
    let bias = if C::RESETS { bias_ih.to_vec() } else { bias_ih.iter().zip(bias_hh).map(|(a, b)| a + b).collect() };
    let bias_hh = if C::RESETS { bias_hh } else { &[] };

    let mut outputs = vec![0.0; batch * seq * hidden];
    let mut last = values(&state).to_vec();
    let steps = if save { batch * seq } else { 0 };
    let (mut saved_gates, mut extra) = (vec![0.0; steps * gates], vec![0.0; steps * C::EXTRA * hidden]);
    let rows = rows_per_thread(batch);
    let blocks = (parts(&mut outputs, rows * seq * hidden).zip(parts(&mut last, rows * states)))
        .zip(parts(&mut saved_gates, rows * seq * gates).zip(parts(&mut extra, rows * seq * C::EXTRA * hidden)))
        .take(batch.div_ceil(rows))
        .enumerate();
    let blocks: Vec<_> = blocks
        .map(|(index, ((outputs, state), (gates, extra)))| Forward::<C> {
            seq,
            hidden,
            recurrent: &recurrent,
            bias: &bias,
            bias_hh,
            first: index * rows * seq,
            ids,
            input: values(&input),
            outputs,
            state,
            gates,
            extra,
            cell: PhantomData,
        })
        .collect();
    blocks.into_par_iter().for_each(with_simd);

    let outputs = tensor(outputs, [batch, seq, hidden]);
    let last = tensor(last, [batch, C::STATES * hidden]);
    let outputs_saved = outputs.clone();
    let saved = save.then_some(Saved { gates: saved_gates, extra, outputs: outputs_saved, weight_hh, state, vocab });
    ([outputs, last], saved)
}

fn backward<C: Cell>(
    ids: Option<&[usize]>,
    saved: Saved,
    [d_outputs, d_last]: [Option<FlexTensor>; 2],
    wanted: [bool; 5],
) -> [Option<FlexTensor>; 5] {
    let Saved { gates: mut d_input, extra, outputs, weight_hh, state, vocab } = saved;
    let [batch, seq, hidden] = dims(&outputs);
    let (gates, states) = (C::GATES * hidden, C::STATES * hidden);
    let recurrent = Panels::pack(values(&weight_hh), [gates, hidden], [hidden, 1]);

    let d_outputs = d_outputs.unwrap_or_else(|| tensor(vec![0.0; batch * seq * hidden], [batch, seq, hidden]));
    let mut d_state = match &d_last {
        Some(d_last) => values(d_last).to_vec(),
        None => vec![0.0; batch * states],
    };
    let mut d_product = vec![0.0; if C::RESETS { batch * seq * gates } else { 0 }];
    let rows = rows_per_thread(batch);
    let block = |length: usize, index: usize| index * rows * length..((index + 1) * rows).min(batch) * length;
    let blocks = parts(&mut d_state, rows * states)
        .zip(parts(&mut d_input, rows * seq * gates).zip(parts(&mut d_product, rows * seq * gates)))
        .take(batch.div_ceil(rows))
        .enumerate();
    let blocks: Vec<_> = blocks
        .map(|(index, (d_state, (gates, d_product)))| BackwardSweep::<C> {
            seq,
            hidden,
            recurrent: &recurrent,
            extra: &extra[block(seq * C::EXTRA * hidden, index)],
            outputs: &values(&outputs)[block(seq * hidden, index)],
            state: &values(&state)[block(states, index)],
            d_outputs: &values(&d_outputs)[block(seq * hidden, index)],
            d_state,
            gates,
            d_product,
            cell: PhantomData,
        })
        .collect();
    blocks.into_par_iter().for_each(with_simd);

    let d_input = tensor(d_input, [batch, seq, gates]);
    let d_product = if C::RESETS { tensor(d_product, [batch, seq, gates]) } else { d_input.clone() };
    let d_weight = wanted[1].then(|| weight_gradient(&d_product, before(&outputs, &state)));
    let d_input = match ids {
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
    seq: usize,
    hidden: usize,
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
    /// `[rows, seq, gates·hidden]`, or nothing.
    gates: &'a mut [f32],
    /// `[rows, seq, EXTRA·hidden]`, or nothing.
    extra: &'a mut [f32],
    cell: PhantomData<C>,
}

impl<C: Cell> WithSimd for Forward<'_, C> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (seq, hidden) = (self.seq, self.hidden);
        let (gates, states, extra) = (C::GATES * hidden, C::STATES * hidden, C::EXTRA * hidden);
        let rows = self.state.len() / states;
        let padded = self.recurrent.padded_columns();
        let mut h = vec![0.0; rows * hidden];
        let mut products = vec![0.0; rows * padded];
        let mut input = vec![0.0; gates];
        let mut unsaved = vec![0.0; gates + extra];
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
                let (gates, extra) = match self.gates.is_empty() {
                    true => unsaved.split_at_mut(gates),
                    false => (&mut self.gates[step * gates..][..gates], &mut self.extra[step * extra..][..extra]),
                };
                C::forward(&input, product, state, gates, extra);
                h[r * hidden..][..hidden].copy_from_slice(&state[..hidden]);
                self.outputs[step * hidden..][..hidden].copy_from_slice(&state[..hidden]);
            }
        }
    }
}

/// All time steps of some examples, from the last to the first.
struct BackwardSweep<'a, C> {
    seq: usize,
    hidden: usize,
    recurrent: &'a Panels,
    extra: &'a [f32],
    outputs: &'a [f32],
    state: &'a [f32],
    d_outputs: &'a [f32],
    d_state: &'a mut [f32],
    /// What was saved, and then its gradient.
    gates: &'a mut [f32],
    /// Nothing where it is the same as the gradient of the gates.
    d_product: &'a mut [f32],
    cell: PhantomData<C>,
}

impl<C: Cell> WithSimd for BackwardSweep<'_, C> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (seq, hidden) = (self.seq, self.hidden);
        let (gates, states, extra) = (C::GATES * hidden, C::STATES * hidden, C::EXTRA * hidden);
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
                    _ => (&self.outputs[(step - 1) * hidden..][..hidden], &self.extra[(step - 1) * extra..][..rest]),
                };
                let known = Step {
                    extra: &self.extra[step * extra..][..extra],
                    output: &self.outputs[step * hidden..][..hidden],
                    output_before,
                    rest_before,
                };
                let d_state = &mut self.d_state[r * states..][..states];
                add(&mut d_state[..hidden], &self.d_outputs[step * hidden..][..hidden]);
                let at_product = &mut at_product[r * gates..][..gates];
                let gates_row = &mut self.gates[step * gates..][..gates];
                match C::RESETS {
                    true => {
                        C::backward(known, d_state, gates_row, at_product);
                        self.d_product[step * gates..][..gates].copy_from_slice(at_product);
                    }
                    false => {
                        C::backward(known, d_state, gates_row, &mut []);
                        at_product.copy_from_slice(gates_row);
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
    if !B::has_kernel::<RecurrentKernel, 5, 2>() || weight_ih.dtype() != DType::F32 {
        return None;
    }
    let ([batch, _], projected, ids) = match x {
        LayerInput::Embedded { table, ids } if table.dims()[0] < ids.dims().iter().product() => {
            let projected = table.clone().matmul(weight_ih); // [vocab, gates·hidden]
            match B::int_input(ids.clone().into_primitive()) {
                Some(rows) => {
                    let rows = rows.into_data();
                    (ids.dims(), float(&projected), Some(rows.iter::<i64>().map(|id| id as usize).collect()))
                }
                None => (ids.dims(), float(&embedding(projected, ids.clone())), None),
            }
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
    let [outputs, last] = B::run(RecurrentKernel { layer: C::LAYER, ids }, inputs)?;
    Some((kernel::tensor(outputs), kernel::tensor(last)))
}
