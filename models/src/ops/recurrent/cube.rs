//! RNN, LSTM and GRU layers: two launches per time step, the recurrent product and everything else; and as many in the
//! backward pass. The gradient of the recurrent weight is one product at the end.

use super::cells::Layer;
use super::cpu::Inputs;
use crate::ops::cube::{Grid, empty, launch, or_zeros, part, reshape, sigmoid, sum_rows, tanh};
use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensorOps;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::{CubeBackend, CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// For the products.
type Ops<R> = CubeBackend<R, f32, i32, u32>;

/// The outputs `[batch, seq, hidden]` and the last state, and the tensors that [`backward`] needs.
pub fn forward<R: CubeRuntime>(
    layer: Layer,
    inputs: Inputs<CubeTensor<R>>,
) -> ([CubeTensor<R>; 2], Vec<CubeTensor<R>>) {
    let Inputs { projected: input, weight_hh, bias_ih, bias_hh, state } = inputs;
    let ([batch, seq, gates], [_, hidden]) = (input.shape().dims(), weight_hh.shape().dims());
    let [_, states] = state.shape().dims();
    let (outputs, last) = (empty(&input, [batch, seq, hidden]), empty(&input, [batch, states]));
    let saved_gates = empty(&input, [batch, seq, gates]);
    // An LSTM's c, and what a GRU resets.
    let extra = empty(&input, [batch, seq, if layer == Layer::Rnn { 1 } else { hidden }]);
    let recurrent = Ops::<R>::float_transpose(weight_hh.clone());
    let grid = Grid::over(hidden, batch);
    let mut h = into_contiguous(part(&state, 1, 0..hidden));
    for t in 0..seq {
        let product = Ops::<R>::float_matmul(h, recurrent.clone());
        h = empty(&input, [batch, hidden]);
        launch!(
            forward_kernel,
            grid,
            [input, into_contiguous(product), bias_ih, bias_hh, state, outputs, h, last, saved_gates, extra],
            t as u32,
            layer
        );
    }
    ([outputs.clone(), last], vec![weight_hh, state, outputs, saved_gates, extra])
}

/// A time step, a unit per element of an example's output; see [`Cell`](crate::ops::recurrent::cells::Cell) for the
/// gates.
#[cube(launch)]
fn forward_kernel(
    input: &Tensor<f32>,
    product: &Tensor<f32>,
    bias_ih: &Tensor<f32>,
    bias_hh: &Tensor<f32>,
    state: &Tensor<f32>,
    outputs: &mut Tensor<f32>,
    h: &mut Tensor<f32>,
    last: &mut Tensor<f32>,
    saved_gates: &mut Tensor<f32>,
    extra: &mut Tensor<f32>,
    t: u32,
    #[comptime] layer: Layer,
) {
    let t = t as usize;
    let seq = outputs.shape(1);
    let hidden = outputs.shape(2);
    let j = ABSOLUTE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    if j < hidden {
        let step = example * seq + t;
        let at = step * hidden + j;
        let place = example * hidden + j;
        if comptime![layer == Layer::Rnn] {
            let output = tanh(input[at] + bias_ih[j] + (product[place] + bias_hh[j]));
            outputs[at] = output;
            h[place] = output;
            if t + 1 == seq {
                last[place] = output;
            }
        } else if comptime![layer == Layer::Lstm] {
            let gates = step * 4 * hidden + j;
            let products = example * 4 * hidden + j;
            let i = sigmoid(gate_input(input, product, bias_ih, bias_hh, gates, products, j));
            let k = hidden;
            let f = sigmoid(gate_input(input, product, bias_ih, bias_hh, gates + k, products + k, k + j));
            let k = 2 * hidden;
            let g = tanh(gate_input(input, product, bias_ih, bias_hh, gates + k, products + k, k + j));
            let k = 3 * hidden;
            let o = sigmoid(gate_input(input, product, bias_ih, bias_hh, gates + k, products + k, k + j));
            let mut before = state[(2 * example + 1) * hidden + j];
            if t > 0 {
                before = extra[at - hidden];
            }
            let c = f * before + i * g;
            let output = o * tanh(c);
            outputs[at] = output;
            h[place] = output;
            saved_gates[gates] = i;
            saved_gates[gates + hidden] = f;
            saved_gates[gates + 2 * hidden] = g;
            saved_gates[gates + 3 * hidden] = o;
            extra[at] = c;
            if t + 1 == seq {
                last[2 * example * hidden + j] = output;
                last[(2 * example + 1) * hidden + j] = c;
            }
        } else {
            let gates = step * 3 * hidden + j;
            let products = example * 3 * hidden + j;
            let r = sigmoid(gate_input(input, product, bias_ih, bias_hh, gates, products, j));
            let k = hidden;
            let z = sigmoid(gate_input(input, product, bias_ih, bias_hh, gates + k, products + k, k + j));
            let k = 2 * hidden;
            let reset = product[products + k] + bias_hh[k + j];
            let n = tanh(input[gates + k] + bias_ih[k + j] + r * reset);
            let mut before = state[place];
            if t > 0 {
                before = outputs[at - hidden];
            }
            let output = n + z * (before - n);
            outputs[at] = output;
            h[place] = output;
            saved_gates[gates] = r;
            saved_gates[gates + hidden] = z;
            saved_gates[gates + 2 * hidden] = n;
            extra[at] = reset;
            if t + 1 == seq {
                last[place] = output;
            }
        }
    }
}

/// The input of a gate: its place in the input, in the product and in the biases.
#[cube]
fn gate_input(
    input: &Tensor<f32>,
    product: &Tensor<f32>,
    bias_ih: &Tensor<f32>,
    bias_hh: &Tensor<f32>,
    at_input: usize,
    at_product: usize,
    at_bias: usize,
) -> f32 {
    input[at_input] + bias_ih[at_bias] + (product[at_product] + bias_hh[at_bias])
}

/// The gradients of all inputs, from what [`forward`] saved and the gradients of its outputs.
pub fn backward<R: CubeRuntime>(
    layer: Layer,
    saved: Vec<CubeTensor<R>>,
    [doutputs, dlast]: [Option<CubeTensor<R>>; 2],
) -> Option<Inputs<CubeTensor<R>>> {
    let [weight_hh, state, outputs, gates, extra] = &saved[..] else { return None };
    let ([batch, seq, hidden], [_, _, width]) = (outputs.shape().dims::<3>(), gates.shape().dims::<3>());
    let (doutputs, dlast) = (or_zeros(doutputs, outputs), or_zeros(dlast, state));
    let wide = || empty(outputs, [batch, seq, width]);
    let dinput = wide();
    let dproduct = if layer == Layer::Gru { wide() } else { dinput.clone() };
    let dproduct_extra = if layer == Layer::Gru { dproduct.clone() } else { empty(outputs, [1]) };
    let before = empty(outputs, [batch, seq, hidden]);
    // Gradients for the step before: through the product, and past it (to an LSTM's c, or to a GRU's h).
    let mut through = empty(outputs, [batch, hidden]);
    let past = empty(outputs, [batch, hidden]);
    let grid = Grid::over(hidden, batch);
    for t in (0..seq).rev() {
        let at_product = empty(outputs, [batch, width]);
        launch!(
            backward_kernel,
            grid,
            [state, outputs, gates, extra, doutputs, dlast, through, past, dinput, dproduct_extra, at_product, before],
            t as u32,
            layer
        );
        through = into_contiguous(Ops::<R>::float_matmul(at_product, weight_hh.clone()));
    }
    let dstate = empty(state, state.shape().dims::<2>());
    launch!(finish_kernel, grid, [through, past, dstate], layer);

    let rows = |x: &CubeTensor<R>, columns: usize| reshape(x.clone(), [batch * seq, columns].into());
    let dweight = Ops::<R>::float_matmul(Ops::<R>::float_transpose(rows(&dproduct, width)), rows(&before, hidden));
    let sums = |x: &CubeTensor<R>| {
        let examples = sum_rows(x, [batch, seq, width]);
        reshape(sum_rows(&examples, [1, batch, width]), [width].into())
    };
    let dbias_ih = sums(&dinput);
    let dbias_hh = if layer == Layer::Gru { sums(&dproduct) } else { dbias_ih.clone() };
    Some(Inputs { projected: dinput, weight_hh: dweight, bias_ih: dbias_ih, bias_hh: dbias_hh, state: dstate })
}

/// Back through a time step: `past` goes from the gradient past the step to that past the one before. A GRU's gradients
/// at the product differ from those at the input. `before` takes the output of the step before.
#[cube(launch)]
fn backward_kernel(
    state: &Tensor<f32>,
    outputs: &Tensor<f32>,
    saved_gates: &Tensor<f32>,
    extra: &Tensor<f32>,
    doutputs: &Tensor<f32>,
    dlast: &Tensor<f32>,
    through: &Tensor<f32>,
    past: &mut Tensor<f32>,
    dinput: &mut Tensor<f32>,
    dproduct: &mut Tensor<f32>,
    at_product: &mut Tensor<f32>,
    before: &mut Tensor<f32>,
    t: u32,
    #[comptime] layer: Layer,
) {
    let t = t as usize;
    let seq = outputs.shape(1);
    let hidden = outputs.shape(2);
    let states = state.shape(1);
    let j = ABSOLUTE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    if j < hidden {
        let step = example * seq + t;
        let at = step * hidden + j;
        let place = example * hidden + j;
        let mut output_before = state[example * states + j];
        if t > 0 {
            output_before = outputs[at - hidden];
        }
        before[at] = output_before;
        let mut dh = doutputs[at];
        if t + 1 == seq {
            dh += dlast[example * states + j];
        } else {
            dh += through[place];
        }
        if comptime![layer == Layer::Rnn] {
            let dx = dh * (1.0f32 - outputs[at] * outputs[at]);
            dinput[at] = dx;
            at_product[place] = dx;
        } else if comptime![layer == Layer::Lstm] {
            let gates = step * 4 * hidden + j;
            let products = example * 4 * hidden + j;
            let i = saved_gates[gates];
            let f = saved_gates[gates + hidden];
            let g = saved_gates[gates + 2 * hidden];
            let o = saved_gates[gates + 3 * hidden];
            let mut c_before = state[example * states + hidden + j];
            if t > 0 {
                c_before = extra[at - hidden];
            }
            let mut dc = dlast[example * states + hidden + j];
            if t + 1 < seq {
                dc = past[place];
            }
            let squashed = tanh(extra[at]);
            dc += dh * o * (1.0f32 - squashed * squashed);
            let di = dc * g * i * (1.0f32 - i);
            let df = dc * c_before * f * (1.0f32 - f);
            let dg = dc * i * (1.0f32 - g * g);
            let dout = dh * squashed * o * (1.0f32 - o);
            past[place] = dc * f;
            dinput[gates] = di;
            dinput[gates + hidden] = df;
            dinput[gates + 2 * hidden] = dg;
            dinput[gates + 3 * hidden] = dout;
            at_product[products] = di;
            at_product[products + hidden] = df;
            at_product[products + 2 * hidden] = dg;
            at_product[products + 3 * hidden] = dout;
        } else {
            if t + 1 < seq {
                dh += past[place];
            }
            let gates = step * 3 * hidden + j;
            let products = example * 3 * hidden + j;
            let r = saved_gates[gates];
            let z = saved_gates[gates + hidden];
            let n = saved_gates[gates + 2 * hidden];
            let dz = dh * (output_before - n) * z * (1.0f32 - z);
            let dn = dh * (1.0f32 - z) * (1.0f32 - n * n);
            let dr = dn * extra[at] * r * (1.0f32 - r);
            past[place] = dh * z;
            dinput[gates] = dr;
            dinput[gates + hidden] = dz;
            dinput[gates + 2 * hidden] = dn;
            dproduct[gates] = dr;
            dproduct[gates + hidden] = dz;
            dproduct[gates + 2 * hidden] = dn * r;
            at_product[products] = dr;
            at_product[products + hidden] = dz;
            at_product[products + 2 * hidden] = dn * r;
        }
    }
}

/// The gradient of the state before the first step.
#[cube(launch)]
fn finish_kernel(through: &Tensor<f32>, past: &Tensor<f32>, dstate: &mut Tensor<f32>, #[comptime] layer: Layer) {
    let hidden = through.shape(1);
    let j = ABSOLUTE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    if j < hidden {
        let place = example * hidden + j;
        if comptime![layer == Layer::Rnn] {
            dstate[place] = through[place];
        } else if comptime![layer == Layer::Lstm] {
            dstate[2 * example * hidden + j] = through[place];
            dstate[(2 * example + 1) * hidden + j] = past[place];
        } else {
            dstate[place] = through[place] + past[place];
        }
    }
}
