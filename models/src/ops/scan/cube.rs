//! Mamba's selective scan: a unit per channel of an example, its state in registers for all time steps.
//!
//! The backward pass recomputes the states from those at every `CHUNK`th time step (Gu & Dao, arXiv 2312.00752, section
//! 3.3.2).

use super::cpu::Inputs;
use crate::ops::cube::{
    Grid, UNITS, empty, is_addressable, launch, or_zeros, part, permute, reshape, sigmoid, softplus, sum_rows,
};
use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// Time steps between two states that are kept for the backward pass.
const CHUNK: usize = 8;

/// The largest state that fits into registers.
const LARGEST_STATE: usize = 32;

/// The outputs and the last state, and the tensors that [`backward`] needs, if `save`. `None` for states beyond 32
/// numbers a channel, and for more checkpoints than 32 bits can count.
#[allow(clippy::type_complexity)] // outputs and saved tensors
pub fn forward<R: CubeRuntime>(
    inputs: Inputs<CubeTensor<R>>,
    save: bool,
    negative_eigenvalues: bool,
) -> Option<([CubeTensor<R>; 2], Vec<CubeTensor<R>>)> {
    let Inputs { u, delta, delta_bias, a, b, c, d, z, h } = &inputs;
    let ([batch, seq, channels], [_, state]) = (u.shape().dims(), a.shape().dims());
    let chunks = if save { seq.div_ceil(CHUNK) } else { 1 };
    let kept = [batch, chunks, state, channels];
    if state > LARGEST_STATE || !is_addressable(kept) {
        return None;
    }
    let (y, last) = (empty(u, [batch, seq, channels]), empty(u, [batch, channels, state]));
    let checkpoints = empty(u, kept);
    let grid = Grid::over(channels, batch);
    launch!(
        forward_kernel,
        grid,
        [u, delta, delta_bias, a, b, c, d, z, h, y, last, checkpoints],
        state,
        save,
        negative_eigenvalues
    );
    // The checkpoints begin with the state.
    let saved: [_; Inputs::COUNT] = Inputs { h: checkpoints, ..inputs }.into();
    Some(([y, last], saved.into()))
}

#[cube(launch)]
fn forward_kernel(
    u: &Tensor<f32>,
    delta: &Tensor<f32>,
    delta_bias: &Tensor<f32>,
    a: &Tensor<f32>,
    b: &Tensor<f32>,
    c: &Tensor<f32>,
    d: &Tensor<f32>,
    z: &Tensor<f32>,
    h: &Tensor<f32>,
    y: &mut Tensor<f32>,
    last: &mut Tensor<f32>,
    checkpoints: &mut Tensor<f32>,
    #[comptime] state: usize,
    #[comptime] save: bool,
    #[comptime] negative: bool,
) {
    let seq = u.shape(1);
    let channels = u.shape(2);
    let chunks = seq.div_ceil(CHUNK);
    let channel = ABSOLUTE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    if channel < channels {
        let bias = delta_bias[channel];
        let skip = d[channel];
        let mut rates = Array::<f32>::new(state);
        let mut states = Array::<f32>::new(state);
        #[unroll]
        for n in 0..state {
            rates[n] = a[channel * state + n];
            states[n] = h[(example * channels + channel) * state + n];
        }
        for t in 0..seq {
            if comptime![save] && t % CHUNK == 0 {
                let checkpoint = (example * chunks + t / CHUNK) * state;
                #[unroll]
                for n in 0..state {
                    checkpoints[(checkpoint + n) * channels + channel] = states[n];
                }
            }
            let token = example * seq + t;
            let at = token * channels + channel;
            let step = softplus(delta[at] + bias);
            let value = u[at];
            let input = step * value;
            let mut sum = skip * value;
            #[unroll]
            for n in 0..state {
                let next = factor(step * rates[n], negative) * states[n] + input * b[token * state + n];
                states[n] = next;
                sum += next * c[token * state + n];
            }
            let gate = z[at];
            y[at] = sum * gate * sigmoid(gate);
        }
        #[unroll]
        for n in 0..state {
            last[(example * channels + channel) * state + n] = states[n];
        }
    }
}

/// The gradients of all inputs, from what [`forward`] saved and the gradients of its outputs.
pub fn backward<R: CubeRuntime>(
    saved: Vec<CubeTensor<R>>,
    [dy, last]: [Option<CubeTensor<R>>; 2],
    negative_eigenvalues: bool,
) -> Option<Inputs<CubeTensor<R>>> {
    let saved: [_; Inputs::COUNT] = saved.try_into().ok()?;
    let (Inputs { u, delta, delta_bias, a, b, c, d, z, h: checkpoints }, dy) = (saved.into(), dy?);
    let ([batch, seq, channels], [_, state]) = (u.shape().dims::<3>(), a.shape().dims::<2>());
    let last = match last {
        Some(last) => last,
        None => or_zeros(None, &empty(&u, [batch, channels, state])),
    };
    let wide = || empty(&u, [batch, seq, channels]);
    let (du, ddelta, dz, dh) = (wide(), wide(), wide(), empty(&u, [batch, channels, state]));
    // Sums of each channel over time: of the bias, of D, and of A's row.
    let per_channel = empty(&u, [batch, 2 + state, channels]);
    // Sums over parts of the channels, at each time step: of B, and of C.
    let grid = Grid::over(channels, batch);
    let rows = 2 * state;
    let parts = UNITS / rows;
    let sums = grid.width() * parts;
    let per_token = empty(&u, [batch * seq, sums, rows]);
    launch!(
        backward_kernel,
        grid,
        [u, delta, delta_bias, a, b, c, d, z, checkpoints, dy, last, du, ddelta, dz, dh, per_channel, per_token],
        state,
        parts,
        negative_eigenvalues
    );
    let per_channel = sum_rows(&per_channel, [1, batch, (2 + state) * channels]);
    let per_channel = reshape(per_channel, [2 + state, channels].into());
    let row = |k: usize| reshape(part(&per_channel, 0, k..k + 1), [channels].into());
    let da = permute(part(&per_channel, 0, 2..2 + state), &[1, 0]);
    let per_token = reshape(sum_rows(&per_token, [batch * seq, sums, rows]), [batch, seq, rows].into());
    let (db, dc) = (part(&per_token, 2, 0..state), part(&per_token, 2, state..rows));
    let (delta_bias, d) = (row(0), row(1));
    Some(Inputs { u: du, delta: ddelta, delta_bias, a: da, b: db, c: dc, d, z: dz, h: dh })
}

#[cube(launch)]
fn backward_kernel(
    u: &Tensor<f32>,
    delta: &Tensor<f32>,
    delta_bias: &Tensor<f32>,
    a: &Tensor<f32>,
    b: &Tensor<f32>,
    c: &Tensor<f32>,
    d: &Tensor<f32>,
    z: &Tensor<f32>,
    checkpoints: &Tensor<f32>,
    dy: &Tensor<f32>,
    dlast: &Tensor<f32>,
    du: &mut Tensor<f32>,
    ddelta: &mut Tensor<f32>,
    dz: &mut Tensor<f32>,
    dh: &mut Tensor<f32>,
    per_channel: &mut Tensor<f32>,
    per_token: &mut Tensor<f32>,
    #[comptime] state: usize,
    #[comptime] parts: usize,
    #[comptime] negative: bool,
) {
    let seq = u.shape(1);
    let channels = u.shape(2);
    let chunks = seq.div_ceil(CHUNK);
    let channel = ABSOLUTE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    let unit = UNIT_POS_X as usize;
    let alive = channel < channels; // the others only help to sum
    // The contributions of every unit to B and C; the rows are one longer, so that units read from different banks.
    let mut shared = SharedMemory::<f32>::new(comptime![2 * state * (UNITS + 1)]);

    let mut rates = Array::<f32>::new(state);
    let mut dstates = Array::<f32>::new(state);
    let mut drates = Array::<f32>::new(state);
    let mut states = Array::<f32>::new(state);
    let mut before = Array::<f32>::new(comptime![CHUNK * state]); // the states before each time step of a chunk
    let mut bias = 0.0f32;
    let mut skip = 0.0f32;
    let mut dbias = 0.0f32;
    let mut dskip = 0.0f32;
    #[unroll]
    for n in 0..state {
        rates[n] = 0.0f32;
        dstates[n] = 0.0f32;
        drates[n] = 0.0f32;
        shared[n * (UNITS + 1) + unit] = 0.0f32;
        shared[(state + n) * (UNITS + 1) + unit] = 0.0f32;
    }
    if alive {
        bias = delta_bias[channel];
        skip = d[channel];
        #[unroll]
        for n in 0..state {
            rates[n] = a[channel * state + n];
            dstates[n] = dlast[(example * channels + channel) * state + n];
        }
    }
    for k in 0..chunks {
        let chunk = chunks - 1 - k;
        let start = chunk * CHUNK;
        let length = usize::min(CHUNK, seq - start);
        if alive {
            #[unroll]
            for n in 0..state {
                states[n] = checkpoints[((example * chunks + chunk) * state + n) * channels + channel];
            }
            recompute(
                u,
                delta,
                b,
                &rates,
                &mut states,
                &mut before,
                bias,
                example * seq + start,
                length,
                channel,
                state,
                negative,
            );
        }
        for j in 0..length {
            let i = length - 1 - j;
            let token = example * seq + start + i;
            if alive {
                let at = token * channels + channel;
                let raw = delta[at] + bias;
                let step = softplus(raw);
                let value = u[at];
                let gate = z[at];
                let open = sigmoid(gate);
                let dsum = dy[at] * gate * open;
                let mut sum = skip * value;
                let mut dstep = 0.0f32;
                let mut dinput = 0.0f32;
                #[unroll]
                for n in 0..state {
                    let old = before[i * state + n];
                    let kept = factor(step * rates[n], negative);
                    let write = b[token * state + n];
                    let read = c[token * state + n];
                    let new = kept * old + step * value * write;
                    sum += new * read;
                    let dstate = dstates[n] + dsum * read;
                    shared[n * (UNITS + 1) + unit] = dstate * step * value;
                    shared[(state + n) * (UNITS + 1) + unit] = dsum * new;
                    let slope = if comptime![negative] { kept + 1.0f32 } else { kept }; // of the factor
                    let dexponent = dstate * old * slope;
                    dstep += dexponent * rates[n];
                    drates[n] = drates[n] + dexponent * step;
                    dinput += dstate * write;
                    dstates[n] = dstate * kept;
                }
                du[at] = dsum * skip + dinput * step;
                dskip += dsum * value;
                let draw = (dstep + dinput * value) * sigmoid(raw);
                ddelta[at] = draw;
                dbias += draw;
                dz[at] = dy[at] * sum * open * (1.0f32 + gate * (1.0f32 - open));
            }
            sync_cube();
            sum_units(&shared, per_token, token, state, parts);
            sync_cube();
        }
    }
    if alive {
        per_channel[example * (2 + state) * channels + channel] = dbias;
        per_channel[(example * (2 + state) + 1) * channels + channel] = dskip;
        #[unroll]
        for n in 0..state {
            per_channel[(example * (2 + state) + 2 + n) * channels + channel] = drates[n];
            dh[(example * channels + channel) * state + n] = dstates[n];
        }
    }
}

/// The factor of a state: eˣ, or 2·eˣ − 1 where eigenvalues may be negative.
#[cube]
fn factor(exponent: f32, #[comptime] negative: bool) -> f32 {
    let decay = f32::exp(exponent);
    if comptime![negative] { 2.0f32 * decay - 1.0f32 } else { decay }
}

/// The states of one channel before each time step of a chunk, from those before the first; `states` are then those
/// after the last.
#[cube]
fn recompute(
    u: &Tensor<f32>,
    delta: &Tensor<f32>,
    b: &Tensor<f32>,
    rates: &Array<f32>,
    states: &mut Array<f32>,
    before: &mut Array<f32>,
    bias: f32,
    first_token: usize,
    length: usize,
    channel: usize,
    #[comptime] state: usize,
    #[comptime] negative: bool,
) {
    let channels = u.shape(2);
    for i in 0..length {
        let token = first_token + i;
        let at = token * channels + channel;
        let step = softplus(delta[at] + bias);
        let input = step * u[at];
        #[unroll]
        for n in 0..state {
            before[i * state + n] = states[n];
            states[n] = factor(step * rates[n], negative) * states[n] + input * b[token * state + n];
        }
    }
}

/// The sums of what the units of a cube contribute to B and C at a time step, in so many parts.
#[cube]
fn sum_units(
    shared: &SharedMemory<f32>,
    per_token: &mut Tensor<f32>,
    token: usize,
    #[comptime] state: usize,
    #[comptime] parts: usize,
) {
    let unit = UNIT_POS_X as usize;
    let rows = comptime![2 * state];
    let width = comptime![UNITS.div_ceil(parts)];
    if unit < comptime![rows * parts] {
        let row = unit % rows;
        let first = (unit / rows) * width;
        let end = usize::min(first + width, UNITS);
        let mut sum = 0.0f32;
        for k in first..end {
            sum += shared[row * (UNITS + 1) + k];
        }
        let place = token * (CUBE_COUNT_X as usize * parts) + CUBE_POS_X as usize * parts + unit / rows;
        per_token[place * rows + row] = sum;
    }
}
