//! The generalised delta rule on GPUs: a cube per head of an example, its matrix in registers for all time steps.
//!
//! A unit holds a column of the matrix (one value, all keys) where sums run over the keys, and a row (one key, all values)
//! where they run over the values, so that no sum crosses units. What a step reads of the matrix before it is kept by the
//! forward pass, and its gradient by the first kernel of the backward pass, which needs no matrix; the second recomputes
//! the matrices of a few time steps at once from the one before them.

use super::cpu::Inputs;
use crate::ops::cube::{Grid, empty, is_addressable, launch, or_zeros};
use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// Time steps between two matrices that are kept for the backward pass.
const CHUNK: usize = 8;

/// The largest key and the largest value whose vectors fit into registers.
const LARGEST_SIZE: usize = 128;

/// The outputs and the last matrices, and the tensors that [`backward`] needs, if `save`: the inputs, with checkpoints in
/// place of the matrices before, and what every step reads. `None` for heads larger than 128, and for more checkpoints than
/// 32 bits can count.
#[allow(clippy::type_complexity)] // outputs and saved tensors
pub fn forward<R: CubeRuntime>(
    inputs: Inputs<CubeTensor<R>>,
    save: bool,
) -> Option<([CubeTensor<R>; 2], Vec<CubeTensor<R>>)> {
    let Inputs { q, k, decay, removed, under, v, state } = &inputs;
    let ([batch, seq, heads, key], [.., value]) = (k.shape().dims(), v.shape().dims::<4>());
    let kept = [batch, heads, if save { seq.div_ceil(CHUNK) } else { 1 }, key * value];
    if key.max(value) > LARGEST_SIZE || !is_addressable(kept) {
        return None;
    }
    let (y, last) = (empty(v, [batch, seq, heads, value]), empty(v, [batch, heads, key, value]));
    let reads = empty(v, [batch, seq, heads, value]);
    let checkpoints = empty(v, kept);
    let grid = Grid::of_heads(heads, batch, value);
    launch!(
        forward_kernel,
        grid,
        [q, k, decay, removed, under, v, state, y, last, reads, checkpoints],
        key,
        value,
        save
    );
    // The checkpoints begin with the state.
    let saved: [_; Inputs::COUNT] = Inputs { state: checkpoints, ..inputs }.into();
    Some(([y, last], saved.into_iter().chain([reads]).collect()))
}

#[cube(launch)]
fn forward_kernel(
    q: &Tensor<f32>,
    k: &Tensor<f32>,
    decay: &Tensor<f32>,
    removed: &Tensor<f32>,
    under: &Tensor<f32>,
    v: &Tensor<f32>,
    state: &Tensor<f32>,
    y: &mut Tensor<f32>,
    last: &mut Tensor<f32>,
    reads: &mut Tensor<f32>,
    checkpoints: &mut Tensor<f32>,
    #[comptime] key: usize,
    #[comptime] value: usize,
    #[comptime] save: bool,
) {
    let seq = k.shape(1);
    let heads = k.shape(2);
    let chunks = seq.div_ceil(CHUNK);
    let head = CUBE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    let unit = UNIT_POS_X as usize;
    let matrix = (example * heads + head) * key * value;
    let mut column = Array::<f32>::new(key);
    #[unroll]
    for i in 0..key {
        column[i] = state[matrix + i * value + unit];
    }
    let mut qs = SharedMemory::<f32>::new(key);
    let mut ks = SharedMemory::<f32>::new(key);
    let mut decays = SharedMemory::<f32>::new(key);
    let mut removes = SharedMemory::<f32>::new(key);
    let mut unders = SharedMemory::<f32>::new(key);
    for t in 0..seq {
        let place = (example * seq + t) * heads + head;
        sync_cube();
        #[unroll]
        for n in 0..comptime![key.div_ceil(value)] {
            let at = n * value + unit;
            if at < key {
                qs[at] = q[place * key + at];
                ks[at] = k[place * key + at];
                decays[at] = decay[place * key + at];
                removes[at] = removed[place * key + at];
                unders[at] = under[place * key + at];
            }
        }
        sync_cube();
        if comptime![save] && t % CHUNK == 0 {
            let checkpoint = ((example * heads + head) * chunks + t / CHUNK) * key * value;
            #[unroll]
            for i in 0..key {
                checkpoints[checkpoint + i * value + unit] = column[i];
            }
        }
        let mut read = 0.0f32;
        #[unroll]
        for i in 0..key {
            read += removes[i] * column[i];
        }
        let written = v[place * value + unit];
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..key {
            column[i] = decays[i] * column[i] + ks[i] * written - unders[i] * read;
            sum += qs[i] * column[i];
        }
        y[place * value + unit] = sum;
        if comptime![save] {
            reads[place * value + unit] = read;
        }
    }
    #[unroll]
    for i in 0..key {
        last[matrix + i * value + unit] = column[i];
    }
}

/// The gradients of all inputs, from what [`forward`] saved and the gradients of its outputs.
pub fn backward<R: CubeRuntime>(
    mut saved: Vec<CubeTensor<R>>,
    [dy, last]: [Option<CubeTensor<R>>; 2],
) -> Option<Inputs<CubeTensor<R>>> {
    let reads = saved.pop()?;
    let saved: [_; Inputs::COUNT] = saved.try_into().ok()?;
    let (Inputs { q, k, decay, removed, under, v, state: checkpoints }, dy) = (saved.into(), dy?);
    let ([batch, seq, heads, key], [.., value]) = (k.shape().dims(), v.shape().dims::<4>());
    let last = match last {
        Some(last) => last,
        None => or_zeros(None, &empty(&v, [batch, heads, key, value])),
    };
    let of_values = || empty(&v, [batch, seq, heads, value]);
    let of_keys = || empty(&k, [batch, seq, heads, key]);
    let (dv, dreads, dstate) = (of_values(), of_values(), empty(&v, [batch, heads, key, value]));
    let [dq, dk, ddecay, dremoved, dunder] = std::array::from_fn(|_| of_keys());
    let grid = Grid::of_heads(heads, batch, value);
    launch!(values_kernel, grid, [q, k, decay, removed, under, dy, last, dv, dreads, dstate], key, value);
    let grid = Grid::of_heads(heads, batch, key);
    launch!(
        keys_kernel,
        grid,
        [q, k, decay, removed, under, v, checkpoints, reads, dreads, dy, last, dq, dk, ddecay, dremoved, dunder],
        key,
        value
    );
    Some(Inputs { q: dq, k: dk, decay: ddecay, removed: dremoved, under: dunder, v: dv, state: dstate })
}

/// The gradients of v, of what is read, and of the matrix before: a unit per value.
#[cube(launch)]
fn values_kernel(
    q: &Tensor<f32>,
    k: &Tensor<f32>,
    decay: &Tensor<f32>,
    removed: &Tensor<f32>,
    under: &Tensor<f32>,
    dy: &Tensor<f32>,
    dlast: &Tensor<f32>,
    dv: &mut Tensor<f32>,
    dreads: &mut Tensor<f32>,
    dstate: &mut Tensor<f32>,
    #[comptime] key: usize,
    #[comptime] value: usize,
) {
    let seq = k.shape(1);
    let heads = k.shape(2);
    let head = CUBE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    let unit = UNIT_POS_X as usize;
    let matrix = (example * heads + head) * key * value;
    let mut column = Array::<f32>::new(key);
    #[unroll]
    for i in 0..key {
        column[i] = dlast[matrix + i * value + unit];
    }
    let mut qs = SharedMemory::<f32>::new(key);
    let mut ks = SharedMemory::<f32>::new(key);
    let mut decays = SharedMemory::<f32>::new(key);
    let mut removes = SharedMemory::<f32>::new(key);
    let mut unders = SharedMemory::<f32>::new(key);
    for n in 0..seq {
        let place = (example * seq + (seq - 1 - n)) * heads + head;
        sync_cube();
        #[unroll]
        for n in 0..comptime![key.div_ceil(value)] {
            let at = n * value + unit;
            if at < key {
                qs[at] = q[place * key + at];
                ks[at] = k[place * key + at];
                decays[at] = decay[place * key + at];
                removes[at] = removed[place * key + at];
                unders[at] = under[place * key + at];
            }
        }
        sync_cube();
        let dout = dy[place * value + unit];
        let mut dwritten = 0.0f32;
        let mut dread = 0.0f32;
        #[unroll]
        for i in 0..key {
            column[i] += qs[i] * dout;
            dwritten += column[i] * ks[i];
            dread -= column[i] * unders[i];
        }
        #[unroll]
        for i in 0..key {
            column[i] = decays[i] * column[i] + removes[i] * dread;
        }
        dv[place * value + unit] = dwritten;
        dreads[place * value + unit] = dread;
    }
    #[unroll]
    for i in 0..key {
        dstate[matrix + i * value + unit] = column[i];
    }
}

/// The gradients of the tensors with a number per key: a unit per key.
#[cube(launch)]
fn keys_kernel(
    q: &Tensor<f32>,
    k: &Tensor<f32>,
    decay: &Tensor<f32>,
    removed: &Tensor<f32>,
    under: &Tensor<f32>,
    v: &Tensor<f32>,
    checkpoints: &Tensor<f32>,
    reads: &Tensor<f32>,
    dreads: &Tensor<f32>,
    dy: &Tensor<f32>,
    dlast: &Tensor<f32>,
    dq: &mut Tensor<f32>,
    dk: &mut Tensor<f32>,
    ddecay: &mut Tensor<f32>,
    dremoved: &mut Tensor<f32>,
    dunder: &mut Tensor<f32>,
    #[comptime] key: usize,
    #[comptime] value: usize,
) {
    let seq = k.shape(1);
    let heads = k.shape(2);
    let chunks = seq.div_ceil(CHUNK);
    let head = CUBE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    let unit = UNIT_POS_X as usize;
    let matrices = example * heads + head;
    let mut dstates = Array::<f32>::new(value);
    let mut states = Array::<f32>::new(value);
    let mut before = Array::<f32>::new(comptime![CHUNK * value]); // the rows before each time step of a chunk
    let mut vs = SharedMemory::<f32>::new(comptime![CHUNK * value]);
    let mut dys = SharedMemory::<f32>::new(comptime![CHUNK * value]);
    let mut known = SharedMemory::<f32>::new(comptime![CHUNK * value]);
    let mut dknown = SharedMemory::<f32>::new(comptime![CHUNK * value]);
    #[unroll]
    for j in 0..value {
        dstates[j] = dlast[(matrices * key + unit) * value + j];
    }
    for n in 0..chunks {
        let chunk = chunks - 1 - n;
        let start = chunk * CHUNK;
        let length = usize::min(CHUNK, seq - start);
        sync_cube();
        for i in 0..length {
            let place = ((example * seq + start + i) * heads + head) * value;
            #[unroll]
            for n in 0..comptime![value.div_ceil(key)] {
                let at = n * key + unit;
                if at < value {
                    vs[i * value + at] = v[place + at];
                    dys[i * value + at] = dy[place + at];
                    known[i * value + at] = reads[place + at];
                    dknown[i * value + at] = dreads[place + at];
                }
            }
        }
        sync_cube();
        #[unroll]
        for j in 0..value {
            states[j] = checkpoints[((matrices * chunks + chunk) * key + unit) * value + j];
        }
        for i in 0..length {
            let place = ((example * seq + start + i) * heads + head) * key + unit;
            let kept = decay[place];
            let written = k[place];
            let removal = under[place];
            #[unroll]
            for j in 0..value {
                before[i * value + j] = states[j];
                states[j] = kept * states[j] + written * vs[i * value + j] - removal * known[i * value + j];
            }
        }
        for m in 0..length {
            let i = length - 1 - m;
            let place = ((example * seq + start + i) * heads + head) * key + unit;
            let kept = decay[place];
            let written = k[place];
            let removal = under[place];
            let read = q[place];
            let remover = removed[place];
            let mut dqs = 0.0f32;
            let mut dwritten = 0.0f32;
            let mut dkept = 0.0f32;
            let mut dremover = 0.0f32;
            let mut dremoval = 0.0f32;
            #[unroll]
            for j in 0..value {
                let old = before[i * value + j];
                let value_here = vs[i * value + j];
                let dout = dys[i * value + j];
                let known_here = known[i * value + j];
                let dknown_here = dknown[i * value + j];
                let new = kept * old + written * value_here - removal * known_here;
                let dstate = dstates[j] + read * dout;
                dqs += new * dout;
                dwritten += dstate * value_here;
                dkept += dstate * old;
                dremover += dknown_here * old;
                dremoval -= dstate * known_here;
                dstates[j] = kept * dstate + remover * dknown_here;
            }
            dq[place] = dqs;
            dk[place] = dwritten;
            ddecay[place] = dkept;
            dremoved[place] = dremover;
            dunder[place] = dremoval;
        }
    }
}
