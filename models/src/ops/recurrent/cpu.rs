//! RNN, LSTM and GRU layers: one recurrent product per time step, the rest of a step fused, and one time loop for the
//! backward pass.
//!
//! `W_ih·x`, which does not depend on the state, comes in ready. The examples are split over the threads, and every
//! thread takes its examples through all time steps: no thread waits for another. Only where the recurrent weight is
//! larger than a core's cache, the threads share it out at every time step, and each multiplies all examples by its
//! part. Saved tensors have the time first, so that a step finds all of its own in one place. The gradient of the
//! recurrent weight is one product at the end.

use super::cells::{Cell, GruCell, Layer, LstmCell, RnnCell, Step, sum};
use super::time_loop::{self, TimeLoop};
use crate::ops::autocast::is_autocast;
use crate::ops::cpu::gemm::{Matrix, Threads, product};
use crate::ops::cpu::memory::{uninit, unwritten, write};
use crate::ops::cpu::panels::{self, Panels};
use crate::ops::cpu::{dims, tensor, values};
#[cfg(feature = "cube")]
use crate::ops::cube::gpu_gradients;
use crate::ops::kernel::{self, Kernel, RunKernels, float, inputs};
use crate::ops::projection;
use crate::ops::{LayerInput, RecurrentWeights};
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::module::embedding;
#[cfg(feature = "cube")]
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::sync::Arc;

inputs! {
    /// The tensors that a layer reads, row-major.
    pub struct Inputs {
        /// W_ih·x, `[batch, seq, gates·hidden]`; or `[vocab, gates·hidden]`, where ids say which row of it each step
        /// takes.
        projected,
        /// `[gates·hidden, hidden]`.
        weight_hh,
        /// `[gates·hidden]`.
        bias_ih,
        /// `[gates·hidden]`.
        bias_hh,
        /// `[batch, states·hidden]`.
        state,
    }
}

/// Tensors that [`RecurrentKernel`] reads.
const COUNT: usize = Inputs::COUNT;

/// The kernel of a recurrent layer: [`Inputs`] → the outputs `[batch, seq, hidden]` and the last state.
///
/// It is not generic, so that its loops are compiled here, with this crate's optimisations, and not where a backend is
/// chosen.
#[derive(Debug, Clone)]
pub struct RecurrentKernel {
    layer: Layer,
    /// The rows of W_ih·x, where it is that of a vocabulary, `[batch, seq]`.
    ids: Option<Arc<[usize]>>,
}

impl Kernel<COUNT, 2> for RecurrentKernel {
    type Saved = Saved;

    fn forward(&self, inputs: [FlexTensor; COUNT], save: bool) -> ([FlexTensor; 2], Option<Saved>) {
        match self.layer {
            Layer::Rnn => forward::<RnnCell>(self.ids.as_deref(), inputs, save),
            Layer::Lstm => forward::<LstmCell>(self.ids.as_deref(), inputs, save),
            Layer::Gru => forward::<GruCell>(self.ids.as_deref(), inputs, save),
        }
    }

    fn backward(
        &self,
        saved: Saved,
        gradients: [Option<FlexTensor>; 2],
        wanted: [bool; COUNT],
    ) -> [Option<FlexTensor>; COUNT] {
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
        inputs: [CubeTensor<R>; COUNT],
        _: bool,
    ) -> Option<([CubeTensor<R>; 2], Vec<CubeTensor<R>>)> {
        self.ids.is_none().then(|| super::cube::forward(self.layer, inputs.into()))
    }

    #[cfg(feature = "cube")]
    fn gpu_backward<R: CubeRuntime>(
        &self,
        saved: Vec<CubeTensor<R>>,
        gradients: [Option<CubeTensor<R>>; 2],
        _: [bool; COUNT],
    ) -> [Option<CubeTensor<R>>; COUNT] {
        gpu_gradients(super::cube::backward(self.layer, saved, gradients))
    }
}

/// Kept from the forward pass for the backward pass.
#[derive(Debug, Clone)]
pub struct Saved {
    /// `[seq, batch, gates·hidden]`.
    gates: Vec<f32>,
    /// `[seq, batch, EXTRA·hidden]`.
    extra: Vec<f32>,
    /// The output before the first step and after every step, `[1 + seq, batch, hidden]`.
    outputs: Vec<f32>,
    weight_hh: FlexTensor,
    state: FlexTensor,
    /// Rows of W_ih·x.
    vocab: usize,
}

/// Examples that one thread takes.
fn rows_per_thread(batch: usize) -> usize {
    batch.div_ceil(rayon::current_num_threads()).max(1)
}

/// `[steps, batch, width]` → for every block of so many examples, theirs at each step; no steps if it is empty.
fn blocks<T>(values: &mut [T], batch: usize, rows: usize, width: usize) -> Vec<Vec<&mut [T]>> {
    let mut blocks: Vec<Vec<&mut [T]>> = (0..batch.div_ceil(rows)).map(|_| Vec::new()).collect();
    for step in values.chunks_mut((batch * width).max(1)) {
        for (block, rows) in blocks.iter_mut().zip(step.chunks_mut(rows * width)) {
            block.push(rows);
        }
    }
    blocks
}

#[allow(unsafe_code)]
fn forward<C: Cell>(
    ids: Option<&[usize]>,
    inputs: [FlexTensor; COUNT],
    save: bool,
) -> ([FlexTensor; 2], Option<Saved>) {
    let Inputs { projected: input, weight_hh, bias_ih, bias_hh, state } = inputs.into();
    let [gates, hidden] = dims(&weight_hh);
    let [batch, states] = dims(&state);
    assert!(gates == C::GATES * hidden && states == C::STATES * hidden, "weights or state of another kind of layer");
    let vocab = values(&input).len() / gates;
    let seq = ids.map_or(vocab, <[usize]>::len) / batch;
    let recurrent = Panels::pack(values(&weight_hh), [hidden, gates], [1, hidden]);
    let [bias_ih, bias_hh] = [values(&bias_ih), values(&bias_hh)];
    // Only a cell that resets treats them differently.
    let bias = if C::RESETS { bias_ih.to_vec() } else { bias_ih.iter().zip(bias_hh).map(|(a, b)| a + b).collect() };
    let bias_hh = if C::RESETS { bias_hh } else { &[] };

    let mut outputs = uninit(batch * seq * hidden);
    let mut last = values(&state).to_vec();
    let steps = if save { batch * seq } else { 0 };
    let mut saved_gates = uninit(steps * gates);
    let mut extra = uninit(steps * C::EXTRA * hidden);
    let mut saved_outputs = uninit(if save { (1 + seq) * batch * hidden } else { 0 });
    for (h, state) in saved_outputs.chunks_exact_mut(hidden).zip(last.chunks_exact(states)) {
        write(h, &state[..hidden]);
    }
    let scratch = [gates, gates, gates + C::EXTRA * hidden].map(|length| vec![0.0; length]);
    let rows = rows_per_thread(batch);
    let mut gates_of = blocks(&mut saved_gates, batch, rows, gates).into_iter();
    let mut extra_of = blocks(&mut extra, batch, rows, C::EXTRA * hidden).into_iter();
    let after_first = saved_outputs.get_mut(batch * hidden..).unwrap_or_default();
    let mut saved_outputs_of = blocks(after_first, batch, rows, hidden).into_iter();
    let examples = outputs.chunks_mut((rows * seq * hidden).max(1)).zip(last.chunks_mut(rows * states));
    let loops: Vec<_> = examples
        .enumerate()
        .map(|(index, (outputs, state))| Forward::<C> {
            seq,
            hidden,
            bias: &bias,
            bias_hh,
            first: index * rows,
            ids,
            input: values(&input),
            outputs,
            h: state.chunks_exact(states).flat_map(|state| &state[..hidden]).copied().collect(),
            state,
            gates: gates_of.next().unwrap_or_default(),
            extra: extra_of.next().unwrap_or_default(),
            saved_outputs: saved_outputs_of.next().unwrap_or_default(),
            scratch: scratch.clone(),
            cell: PhantomData,
        })
        .collect();
    time_loop::run(loops, rows, &recurrent, 0..seq);

    // SAFETY: the blocks are all examples, and each has written all of theirs at every step; `saved_outputs` also has
    // the state before the first.
    let [outputs, saved_gates, extra, saved_outputs] =
        [outputs, saved_gates, extra, saved_outputs].map(|x| unsafe { x.assume_init() }.into_vec());
    let saved = Saved { gates: saved_gates, extra, outputs: saved_outputs, weight_hh, state, vocab };
    ([tensor(outputs, [batch, seq, hidden]), tensor(last, [batch, states])], save.then_some(saved))
}

fn backward<C: Cell>(
    ids: Option<&[usize]>,
    saved: Saved,
    [d_outputs, d_last]: [Option<FlexTensor>; 2],
    wanted: [bool; COUNT],
) -> [Option<FlexTensor>; COUNT] {
    let wanted = Inputs::from(wanted);
    let Saved { gates: mut d_input, mut extra, outputs, weight_hh, state, vocab } = saved;
    let [gates, hidden] = dims(&weight_hh);
    let [batch, states] = dims(&state);
    let seq = d_input.len() / (batch * gates);
    let recurrent = Panels::pack(values(&weight_hh), [gates, hidden], [hidden, 1]);

    let d_outputs = d_outputs.unwrap_or_else(|| tensor(vec![0.0; batch * seq * hidden], [batch, seq, hidden]));
    let mut d_state = match &d_last {
        Some(d_last) => values(d_last).to_vec(),
        None => vec![0.0; batch * states],
    };
    let mut d_product = vec![0.0; if C::RESETS { batch * seq * gates } else { 0 }];
    let rows = rows_per_thread(batch);
    let mut gates_of = blocks(&mut d_input, batch, rows, gates).into_iter();
    let mut d_product_of = blocks(&mut d_product, batch, rows, gates).into_iter();
    let mut extra_of = blocks(&mut extra, batch, rows, C::EXTRA * hidden).into_iter();
    let loops: Vec<_> = (d_state.chunks_mut(rows * states).enumerate())
        .map(|(index, d_state)| Backward::<C> {
            seq,
            hidden,
            batch,
            first: index * rows,
            extra: extra_of.next().unwrap_or_default(),
            outputs: &outputs,
            state: values(&state),
            d_outputs: values(&d_outputs),
            d_state,
            gates: gates_of.next().unwrap_or_default(),
            d_product: d_product_of.next().unwrap_or_default(),
            cell: PhantomData,
        })
        .collect();
    time_loop::run(loops, rows, &recurrent, (0..seq).rev());

    let d_product = if C::RESETS { &d_product } else { &d_input };
    let d_weight = wanted.weight_hh.then(|| {
        // Σ d·hᵀ over all steps of all examples
        let mut d_weight = vec![0.0; gates * hidden];
        let (d, h) = (Matrix::rows(d_product, gates), Matrix::rows(&outputs, hidden));
        product(&mut d_weight, [gates, seq * batch, hidden], d.transposed(), h, false, Threads::All);
        tensor(d_weight, [gates, hidden])
    });
    let d_bias_hh = (C::RESETS && wanted.bias_hh).then(|| column_sums(d_product, gates));
    let d_input = match ids {
        Some(ids) => tensor(row_sums(&d_input, ids, [batch, seq, vocab]), [vocab, gates]),
        None => tensor(batch_first(&d_input, [batch, seq, gates]), [batch, seq, gates]),
    };
    let d_bias_ih = wanted.bias_ih.then(|| column_sums(values(&d_input), gates));
    let d_bias_hh = match C::RESETS {
        true => d_bias_hh,
        false => d_bias_ih.clone().or_else(|| wanted.bias_hh.then(|| column_sums(values(&d_input), gates))),
    };
    let gradients = Inputs {
        projected: Some(d_input),
        weight_hh: d_weight,
        bias_ih: d_bias_ih,
        bias_hh: d_bias_hh,
        state: Some(tensor(d_state, [batch, states])),
    };
    gradients.into()
}

/// `[seq, batch, width]` → `[batch, seq, width]`.
fn batch_first(x: &[f32], [batch, seq, width]: [usize; 3]) -> Vec<f32> {
    let mut out = unwritten(x.len());
    out.par_chunks_mut(seq * width).enumerate().for_each(|(example, out)| {
        for (out, step) in out.chunks_exact_mut(width).zip(x.chunks_exact(batch * width)) {
            out.copy_from_slice(&step[example * width..][..width]);
        }
    });
    out
}

/// The sums of the rows with the same id: `[seq, batch, columns]` with ids `[batch, seq]` → `[vocab, columns]`.
fn row_sums(x: &[f32], ids: &[usize], [batch, seq, vocab]: [usize; 3]) -> Vec<f32> {
    let columns = x.len() / (batch * seq);
    let mut places = vec![Vec::new(); vocab];
    for place in 0..batch * seq {
        places[ids[place % batch * seq + place / batch]].push(place);
    }
    let mut sums = vec![0.0; vocab * columns];
    sums.par_chunks_mut(columns).zip(places).for_each(|(sums, places)| {
        for place in places {
            add(sums, &x[place * columns..][..columns]);
        }
    });
    sums
}

/// Rows that are summed at once.
const BLOCK: usize = 128;

/// The sums over all rows: `[.., columns]` → `[columns]`.
fn column_sums(x: &[f32], columns: usize) -> FlexTensor {
    let sum = |rows: &[f32]| {
        let mut sums = vec![0.0; columns];
        for row in rows.chunks_exact(columns) {
            add(&mut sums, row);
        }
        sums
    };
    let partial: Vec<Vec<f32>> = x.par_chunks(BLOCK * columns).map(sum).collect();
    tensor(sum(&partial.concat()), [columns])
}

#[inline(always)]
fn add(to: &mut [f32], from: &[f32]) {
    for (a, b) in to.iter_mut().zip(from) {
        *a += b;
    }
}

/// The forward pass of some examples.
struct Forward<'a, C> {
    seq: usize,
    hidden: usize,
    /// Of the input.
    bias: &'a [f32],
    /// Of the product, or nothing.
    bias_hh: &'a [f32],
    /// Which example of the batch is the first.
    first: usize,
    ids: Option<&'a [usize]>,
    /// As the kernel has it: of the whole batch, or of the vocabulary.
    input: &'a [f32],
    /// `[rows, seq, hidden]`.
    outputs: &'a mut [MaybeUninit<f32>],
    /// The output of the step before, `[rows, hidden]`.
    h: Vec<f32>,
    /// `[rows, states·hidden]`.
    state: &'a mut [f32],
    /// At every step `[rows, gates·hidden]`; or no steps.
    gates: Vec<&'a mut [MaybeUninit<f32>]>,
    /// At every step `[rows, EXTRA·hidden]`; or no steps.
    extra: Vec<&'a mut [MaybeUninit<f32>]>,
    /// At every step `[rows, hidden]`; or no steps.
    saved_outputs: Vec<&'a mut [MaybeUninit<f32>]>,
    /// Of one row: the input, the product, and the gates with what is saved beside them.
    scratch: [Vec<f32>; 3],
    cell: PhantomData<C>,
}

impl<C: Cell> TimeLoop for Forward<'_, C> {
    #[inline(always)]
    fn before_product(&mut self, _: usize) {}

    #[inline(always)]
    fn left(&self, _: usize) -> &[f32] {
        &self.h
    }

    #[inline(always)]
    fn after_product(&mut self, t: usize, product: &[f32], rows: usize, first: usize) {
        let (seq, hidden) = (self.seq, self.hidden);
        let (gates, states, extra) = (C::GATES * hidden, C::STATES * hidden, C::EXTRA * hidden);
        let [input, product_row, to_save] = &mut self.scratch;
        for (r, (state, h)) in self.state.chunks_exact_mut(states).zip(self.h.chunks_exact_mut(hidden)).enumerate() {
            let step = (self.first + r) * seq + t;
            let row = self.ids.map_or(step, |ids| ids[step]);
            sum(input, &self.input[row * gates..], self.bias);
            // Of a length that the compiler knows, pieces are copied without a call.
            let (pieces, rest) = product_row.as_chunks_mut::<{ panels::WIDTH }>();
            let mut product_pieces = panels::row(product, rows, first + r);
            for (to, from) in pieces.iter_mut().zip(&mut product_pieces) {
                *to = *from;
            }
            if let Some(from) = product_pieces.next() {
                rest.copy_from_slice(&from[..rest.len()]);
            }
            add(product_row, self.bias_hh);
            let (row_gates, row_extra) = to_save.split_at_mut(gates);
            C::forward(input, product_row, state, row_gates, row_extra);
            let output = &state[..hidden];
            h.copy_from_slice(output);
            write(&mut self.outputs[(r * seq + t) * hidden..][..hidden], output);
            if let Some(saved) = self.gates.get_mut(t) {
                write(&mut saved[r * gates..][..gates], row_gates);
            }
            if let Some(saved) = self.extra.get_mut(t) {
                write(&mut saved[r * extra..][..extra], row_extra);
            }
            if let Some(saved) = self.saved_outputs.get_mut(t) {
                write(&mut saved[r * hidden..][..hidden], output);
            }
        }
    }
}

/// The backward pass of some examples.
struct Backward<'a, C> {
    seq: usize,
    hidden: usize,
    batch: usize,
    /// Which example of the batch is the first.
    first: usize,
    /// At every step `[rows, EXTRA·hidden]`.
    extra: Vec<&'a mut [f32]>,
    /// Of the whole batch, as they were saved.
    outputs: &'a [f32],
    /// Before the first step, of the whole batch.
    state: &'a [f32],
    /// Of the whole batch, `[batch, seq, hidden]`.
    d_outputs: &'a [f32],
    d_state: &'a mut [f32],
    /// The saved gates, and then their gradients: at every step `[rows, gates·hidden]`.
    gates: Vec<&'a mut [f32]>,
    /// Likewise; no steps where it is the same as the gradient of the gates.
    d_product: Vec<&'a mut [f32]>,
    cell: PhantomData<C>,
}

impl<C: Cell> TimeLoop for Backward<'_, C> {
    #[inline(always)]
    fn before_product(&mut self, t: usize) {
        let (seq, hidden) = (self.seq, self.hidden);
        let (gates, states, extra) = (C::GATES * hidden, C::STATES * hidden, C::EXTRA * hidden);
        let rest = states - hidden;
        let now = t.min(self.extra.len());
        let (extra_before, extra_now) = self.extra.split_at_mut(now);
        for (r, d_state) in self.d_state.chunks_exact_mut(states).enumerate() {
            let example = self.first + r;
            let output = |t: usize| &self.outputs[(t * self.batch + example) * hidden..][..hidden];
            let known = Step {
                extra: extra_now.first_mut().map_or(&mut [], |extra_now| &mut extra_now[r * extra..][..extra]),
                output: output(t + 1),
                output_before: output(t),
                rest_before: match extra_before.last() {
                    Some(before) => &before[r * extra..][..rest],
                    None => &self.state[example * states..][hidden..states],
                },
            };
            add(&mut d_state[..hidden], &self.d_outputs[(example * seq + t) * hidden..][..hidden]);
            let d_product = self.d_product.get_mut(t).map_or(&mut [][..], |d| &mut d[r * gates..][..gates]);
            C::backward(known, d_state, &mut self.gates[t][r * gates..][..gates], d_product);
        }
    }

    #[inline(always)]
    fn left(&self, t: usize) -> &[f32] {
        self.d_product.get(t).unwrap_or(&self.gates[t])
    }

    #[inline(always)]
    fn after_product(&mut self, _: usize, product: &[f32], rows: usize, first: usize) {
        for (r, d_state) in self.d_state.chunks_exact_mut(C::STATES * self.hidden).enumerate() {
            let (pieces, rest) = d_state[..self.hidden].as_chunks_mut::<{ panels::WIDTH }>();
            let mut product_pieces = panels::row(product, rows, first + r);
            for (d_h, through) in pieces.iter_mut().zip(&mut product_pieces) {
                add(d_h, through);
            }
            if let Some(through) = product_pieces.next() {
                add(rest, through);
            }
        }
    }
}

/// The operation, where kernels can run.
pub fn rnn_layer<B: RunKernels>(
    x: &LayerInput<B>,
    weights: &RecurrentWeights<B>,
    h: Option<&Tensor<B, 2>>,
) -> Option<(Tensor<B, 3>, Tensor<B, 2>)> {
    layer::<B, RnnCell>(x, weights, h.cloned())
}

/// The operation, where kernels can run.
#[allow(clippy::type_complexity)] // the state of an LSTM is the pair (h, c)
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

/// The operation, where kernels can run.
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
    let weight_ih = &weights.weight_ih;
    if !B::has_kernel::<RecurrentKernel, COUNT, 2>() || is_autocast() || weight_ih.dtype() != DType::F32 {
        return None;
    }
    let project = |x: Tensor<B, 3>| {
        projection::cpu::projection(&x, weight_ih).unwrap_or_else(|| projection::reference(x, weight_ih.clone()))
    };
    let ([batch, _], projected, ids) = match x {
        LayerInput::Embedded { table, ids } if table.dims()[0] < ids.dims().iter().product() => {
            let projected: Tensor<B, 2> = project(table.clone().unsqueeze()).squeeze_dim(0); // [vocab, gates·hidden]
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
            ([batch, seq], float(&project(x)), None)
        }
    };
    let states = C::STATES * weights.weight_hh.dims()[1];
    let options = (&weights.weight_hh.device(), DType::F32);
    let state = state.unwrap_or_else(|| Tensor::zeros([batch, states], options));
    let inputs = Inputs {
        projected,
        weight_hh: float(&weights.weight_hh),
        bias_ih: float(&weights.bias_ih),
        bias_hh: float(&weights.bias_hh),
        state: float(&state),
    };
    let [outputs, last] = B::run(RecurrentKernel { layer: C::LAYER, ids }, inputs.into())?;
    Some((kernel::tensor(outputs), kernel::tensor(last)))
}
