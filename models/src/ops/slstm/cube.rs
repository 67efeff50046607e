//! The sLSTM's recurrence on GPUs: a cube per head of an example for all time steps, a unit per channel. The gradient of the
//! recurrent matrices is summed at the end, a unit per entry.

use super::GATES;
use super::cpu::{Inputs, KEPT, STATES};
use crate::ops::cube::{Grid, empty, is_addressable, launch, sigmoid, softplus, tanh};
use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// The largest head: a unit for each of its channels.
const LARGEST_SIZE: usize = 256;

/// The outputs `[batch, seq, hidden]` and the last states `[batch, 4, hidden]`, and what [`backward`] needs. `None` for
/// heads of more than 256 channels, and for more numbers than 32 bits can count.
#[allow(clippy::type_complexity)] // outputs and saved tensors
pub fn forward<R: CubeRuntime>(
    first: bool,
    inputs: Inputs<CubeTensor<R>>,
) -> Option<([CubeTensor<R>; 2], Vec<CubeTensor<R>>)> {
    let Inputs { gates, recurrent, state } = inputs;
    let ([batch, seq, _], [heads, _, size]) = (gates.shape().dims(), recurrent.shape().dims::<3>());
    let hidden = heads * size;
    let shape = [batch, seq, KEPT, hidden];
    if size > LARGEST_SIZE || !is_addressable(shape) {
        return None;
    }
    let (y, last) = (empty(&gates, [batch, seq, hidden]), empty(&gates, [batch, STATES, hidden]));
    let kept = empty(&gates, shape);
    let grid = Grid::of_heads(heads, batch, size);
    launch!(forward_kernel, grid, [gates, recurrent, state, y, last, kept], size, first);
    Some(([y.clone(), last], vec![recurrent, state, y, kept]))
}

#[cube(launch)]
fn forward_kernel(
    gates: &Tensor<f32>,
    recurrent: &Tensor<f32>,
    state: &Tensor<f32>,
    y: &mut Tensor<f32>,
    last: &mut Tensor<f32>,
    kept: &mut Tensor<f32>,
    #[comptime] size: usize,
    #[comptime] first: bool,
) {
    let seq = y.shape(1);
    let hidden = y.shape(2);
    let head = CUBE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    let unit = UNIT_POS_X as usize;
    let channel = head * size + unit;
    let place = example * STATES * hidden + channel;
    let mut c_state = state[place + hidden];
    let mut n_state = state[place + 2 * hidden];
    let mut m_state = state[place + 3 * hidden];
    let mut before = SharedMemory::<f32>::new(size); // y of the last step
    before[unit] = state[place];
    let mut raw = Array::<f32>::new(GATES);
    for t in 0..seq {
        sync_cube();
        let row = (example * seq + t) * GATES * hidden + channel;
        #[unroll]
        for gate in 0..GATES {
            let mut sum = gates[row + gate * hidden];
            let weights = ((head * GATES + gate) * size + unit) * size;
            for j in 0..size {
                sum += recurrent[weights + j] * before[j];
            }
            raw[gate] = sum;
        }
        sync_cube();
        let forget = raw[1usize];
        let kept_log = m_state - softplus(-forget); // log σ(f̃) = −softplus(−f̃)
        let mut m = f32::max(raw[0usize], kept_log);
        let mut f = f32::exp(kept_log - m);
        if comptime![first] && t == 0 {
            m = raw[0usize];
            f = 0.0f32;
        }
        let i = f32::exp(raw[0usize] - m);
        let z = tanh(raw[2usize]);
        let o = sigmoid(raw[3usize]);
        let c = f * c_state + i * z;
        let n = f * n_state + i;
        let output = o * c / n;
        c_state = c;
        n_state = n;
        m_state = m;
        before[unit] = output;
        y[(example * seq + t) * hidden + channel] = output;
        let keep = (example * seq + t) * KEPT * hidden + channel;
        kept[keep] = i;
        kept[keep + hidden] = f;
        kept[keep + 2 * hidden] = z;
        kept[keep + 3 * hidden] = o;
        kept[keep + 4 * hidden] = c;
        kept[keep + 5 * hidden] = n;
        kept[keep + 6 * hidden] = sigmoid(-forget);
    }
    last[place] = before[unit];
    last[place + hidden] = c_state;
    last[place + 2 * hidden] = n_state;
    last[place + 3 * hidden] = m_state;
}

/// The gradients of the gates and of the recurrent matrices, from what [`forward`] saved and the gradient of the outputs.
pub fn backward<R: CubeRuntime>(
    first: bool,
    saved: Vec<CubeTensor<R>>,
    dy: Option<CubeTensor<R>>,
) -> Option<[CubeTensor<R>; 2]> {
    let [recurrent, state, y, kept]: [_; 4] = saved.try_into().ok()?;
    let dy = dy?;
    let ([batch, seq, hidden], [heads, rows, size]) = (y.shape().dims(), recurrent.shape().dims::<3>());
    let (dgates, drecurrent) = (empty(&y, [batch, seq, GATES * hidden]), empty(&y, [heads, rows, size]));
    let grid = Grid::of_heads(heads, batch, size);
    launch!(gates_kernel, grid, [recurrent, state, kept, dy, dgates], size, first);
    let grid = Grid::over(heads * rows * size, 1);
    launch!(matrix_kernel, grid, [state, y, dgates, drecurrent], first);
    Some([dgates, drecurrent])
}

#[cube(launch)]
fn gates_kernel(
    recurrent: &Tensor<f32>,
    state: &Tensor<f32>,
    kept: &Tensor<f32>,
    dy: &Tensor<f32>,
    dgates: &mut Tensor<f32>,
    #[comptime] size: usize,
    #[comptime] first: bool,
) {
    let seq = dy.shape(1);
    let hidden = dy.shape(2);
    let head = CUBE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    let unit = UNIT_POS_X as usize;
    let channel = head * size + unit;
    let place = example * STATES * hidden + channel;
    let mut dc = 0.0f32;
    let mut dn = 0.0f32;
    let mut dlast = 0.0f32;
    let mut rows = SharedMemory::<f32>::new(comptime![GATES * size]); // of the gates of this step
    for back in 0..seq {
        let t = seq - 1 - back;
        let keep = (example * seq + t) * KEPT * hidden + channel;
        let i = kept[keep];
        let f = kept[keep + hidden];
        let z = kept[keep + 2 * hidden];
        let o = kept[keep + 3 * hidden];
        let c = kept[keep + 4 * hidden];
        let n = kept[keep + 5 * hidden];
        let rest = kept[keep + 6 * hidden];
        let mut c_before = state[place + hidden];
        let mut n_before = state[place + 2 * hidden];
        if t > 0 {
            c_before = kept[keep - KEPT * hidden + 4 * hidden];
            n_before = kept[keep - KEPT * hidden + 5 * hidden];
        } else if comptime![first] {
            c_before = 0.0f32;
            n_before = 0.0f32;
        }
        let dout = dy[(example * seq + t) * hidden + channel] + dlast;
        let ratio = c / n;
        let through = dout * o / n;
        let dct = dc + through;
        let dnt = dn - through * ratio;
        dc = dct * f;
        dn = dnt * f;
        sync_cube();
        rows[unit] = (dct * z + dnt) * i;
        rows[size + unit] = (dct * c_before + dnt * n_before) * f * rest;
        rows[2 * size + unit] = dct * i * (1.0f32 - z * z);
        rows[3 * size + unit] = dout * ratio * o * (1.0f32 - o);
        let row = (example * seq + t) * GATES * hidden + channel;
        #[unroll]
        for gate in 0..GATES {
            dgates[row + gate * hidden] = rows[gate * size + unit];
        }
        sync_cube();
        let mut sum = 0.0f32;
        for j in 0..comptime![GATES * size] {
            sum += rows[j] * recurrent[(head * GATES * size + j) * size + unit];
        }
        dlast = sum;
    }
}

/// Σ over examples and time steps of a gate's gradient times the output before it.
#[cube(launch)]
fn matrix_kernel(
    state: &Tensor<f32>,
    y: &Tensor<f32>,
    dgates: &Tensor<f32>,
    drecurrent: &mut Tensor<f32>,
    #[comptime] first: bool,
) {
    let batch = y.shape(0);
    let seq = y.shape(1);
    let hidden = y.shape(2);
    let size = drecurrent.shape(2);
    let at = ABSOLUTE_POS_X as usize;
    if at < drecurrent.len() {
        let from = at % size;
        let row = at / size;
        let gate = row / size % GATES;
        let head = row / (GATES * size);
        let to = gate * hidden + head * size + row % size;
        let mut sum = 0.0f32;
        for example in 0..batch {
            for t in 0..seq {
                let gradient = dgates[(example * seq + t) * GATES * hidden + to];
                if t > 0 {
                    sum += gradient * y[(example * seq + t - 1) * hidden + head * size + from];
                } else if comptime![!first] {
                    sum += gradient * state[example * STATES * hidden + head * size + from];
                }
            }
        }
        drecurrent[at] = sum;
    }
}
