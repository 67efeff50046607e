//! The WKV operation of RWKV-5 and RWKV-6: a cube per head of an example, its matrix in registers for all time steps.
//!
//! A unit holds a column of the matrix (one value, all keys) where sums run over the keys, and a row (one key, all
//! values) where they run over the values, so that no sum crosses units. The backward pass recomputes the matrices of a
//! few time steps at once from the one before them, and divides by no decay.

use super::cpu::Inputs;
use crate::ops::cube::{Grid, empty, is_addressable, launch, or_zeros, reshape, sum_rows};
use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// Time steps between two matrices that are kept for the backward pass.
const CHUNK: usize = 8;

/// The largest head whose rows fit into registers.
const LARGEST_SIZE: usize = 64;

/// The outputs and the last matrices, and the tensors that [`backward`] needs, if `save`. `None` for heads larger than
/// 64, and for more checkpoints than 32 bits can count.
#[allow(clippy::type_complexity)] // outputs and saved tensors
pub fn forward<R: CubeRuntime>(
    inputs: Inputs<CubeTensor<R>>,
    save: bool,
) -> Option<([CubeTensor<R>; 2], Vec<CubeTensor<R>>)> {
    let Inputs { r, k, v, decay, bonus, state } = &inputs;
    let [batch, seq, heads, size] = r.shape().dims();
    let chunks = if save { seq.div_ceil(CHUNK) } else { 1 };
    let kept = [batch, heads, chunks, size * size];
    if size > LARGEST_SIZE || !is_addressable(kept) {
        return None;
    }
    let (y, last) = (empty(r, [batch, seq, heads, size]), empty(r, [batch, heads, size, size]));
    let checkpoints = empty(r, kept);
    let grid = Grid::of_heads(heads, batch, size);
    launch!(
        forward_kernel,
        grid,
        [r, k, v, decay, bonus, state, y, last, checkpoints],
        size,
        is_steady(r, decay),
        save
    );
    // The checkpoints begin with the state.
    let saved: [_; Inputs::COUNT] = Inputs { state: checkpoints, ..inputs }.into();
    Some(([y, last], saved.into()))
}

/// Whether the decay is the same at all times.
fn is_steady<R: CubeRuntime>(r: &CubeTensor<R>, decay: &CubeTensor<R>) -> bool {
    r.shape() != decay.shape()
}

#[cube(launch)]
fn forward_kernel(
    r: &Tensor<f32>,
    k: &Tensor<f32>,
    v: &Tensor<f32>,
    decay: &Tensor<f32>,
    bonus: &Tensor<f32>,
    state: &Tensor<f32>,
    y: &mut Tensor<f32>,
    last: &mut Tensor<f32>,
    checkpoints: &mut Tensor<f32>,
    #[comptime] size: usize,
    #[comptime] steady: bool,
    #[comptime] save: bool,
) {
    let seq = r.shape(1);
    let heads = r.shape(2);
    let chunks = seq.div_ceil(CHUNK);
    let head = CUBE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    let value = UNIT_POS_X as usize;
    let matrix = (example * heads + head) * size * size;
    let mut column = Array::<f32>::new(size);
    #[unroll]
    for i in 0..size {
        column[i] = state[matrix + i * size + value];
    }
    let mut reads = SharedMemory::<f32>::new(size);
    let mut keys = SharedMemory::<f32>::new(size);
    let mut decays = SharedMemory::<f32>::new(size);
    let mut owns = SharedMemory::<f32>::new(size); // each step's contribution to its own output
    let own = bonus[head * size + value];
    for t in 0..seq {
        let row = ((example * seq + t) * heads + head) * size;
        sync_cube();
        reads[value] = r[row + value];
        keys[value] = k[row + value];
        owns[value] = own * k[row + value];
        decays[value] = decay[if comptime![steady] { head * size + value } else { row + value }];
        sync_cube();
        if comptime![save] && t % CHUNK == 0 {
            let checkpoint = ((example * heads + head) * chunks + t / CHUNK) * size * size;
            #[unroll]
            for i in 0..size {
                checkpoints[checkpoint + i * size + value] = column[i];
            }
        }
        let written = v[row + value];
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..size {
            sum += reads[i] * (column[i] + owns[i] * written);
            column[i] = decays[i] * column[i] + keys[i] * written;
        }
        y[row + value] = sum;
    }
    #[unroll]
    for i in 0..size {
        last[matrix + i * size + value] = column[i];
    }
}

/// The gradients of all inputs, from what [`forward`] saved and the gradients of its outputs.
pub fn backward<R: CubeRuntime>(
    saved: Vec<CubeTensor<R>>,
    [dy, last]: [Option<CubeTensor<R>>; 2],
) -> Option<Inputs<CubeTensor<R>>> {
    let saved: [_; Inputs::COUNT] = saved.try_into().ok()?;
    let (Inputs { r, k, v, decay, bonus, state: checkpoints }, dy) = (saved.into(), dy?);
    let [batch, seq, heads, size] = r.shape().dims();
    let last = match last {
        Some(last) => last,
        None => or_zeros(None, &empty(&r, [batch, heads, size, size])),
    };
    let steady = is_steady(&r, &decay);
    let wide = || empty(&r, [batch, seq, heads, size]);
    let (dr, dk, dv, dstate) = (wide(), wide(), wide(), empty(&r, [batch, heads, size, size]));
    let ddecay = if steady { empty(&r, [batch, 1, heads, size]) } else { wide() };
    let dbonus = empty(&r, [batch, heads, size]);
    let grid = Grid::of_heads(heads, batch, size);
    launch!(keys_kernel, grid, [r, k, v, decay, bonus, checkpoints, dy, last, dr, dk, ddecay, dbonus], size, steady);
    launch!(values_kernel, grid, [r, k, decay, bonus, dy, last, dv, dstate], size, steady);
    let ddecay = match steady {
        true => reshape(sum_rows(&ddecay, [1, batch, heads * size]), [1, 1, heads, size].into()),
        false => ddecay,
    };
    let dbonus = reshape(sum_rows(&dbonus, [1, batch, heads * size]), [heads, size].into());
    Some(Inputs { r: dr, k: dk, v: dv, decay: ddecay, bonus: dbonus, state: dstate })
}

/// The gradients of r, k, the decay and the bonus: a unit per key.
#[cube(launch)]
fn keys_kernel(
    r: &Tensor<f32>,
    k: &Tensor<f32>,
    v: &Tensor<f32>,
    decay: &Tensor<f32>,
    bonus: &Tensor<f32>,
    checkpoints: &Tensor<f32>,
    dy: &Tensor<f32>,
    dlast: &Tensor<f32>,
    dr: &mut Tensor<f32>,
    dk: &mut Tensor<f32>,
    ddecay: &mut Tensor<f32>,
    dbonus: &mut Tensor<f32>,
    #[comptime] size: usize,
    #[comptime] steady: bool,
) {
    let seq = r.shape(1);
    let heads = r.shape(2);
    let chunks = seq.div_ceil(CHUNK);
    let head = CUBE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    let key = UNIT_POS_X as usize;
    let unit = example * heads + head;
    let mut dstates = Array::<f32>::new(size);
    let mut states = Array::<f32>::new(size);
    let mut before = Array::<f32>::new(comptime![CHUNK * size]); // the rows before each time step of a chunk
    let mut values = SharedMemory::<f32>::new(comptime![CHUNK * size]);
    let mut dys = SharedMemory::<f32>::new(comptime![CHUNK * size]);
    #[unroll]
    for j in 0..size {
        dstates[j] = dlast[(unit * size + key) * size + j];
    }
    let own = bonus[head * size + key];
    let mut down = 0.0f32;
    let mut dsteady = 0.0f32;
    for n in 0..chunks {
        let chunk = chunks - 1 - n;
        let start = chunk * CHUNK;
        let length = usize::min(CHUNK, seq - start);
        sync_cube();
        for i in 0..length {
            let row = ((example * seq + start + i) * heads + head) * size;
            values[i * size + key] = v[row + key];
            dys[i * size + key] = dy[row + key];
        }
        sync_cube();
        #[unroll]
        for j in 0..size {
            states[j] = checkpoints[((unit * chunks + chunk) * size + key) * size + j];
        }
        for i in 0..length {
            let row = ((example * seq + start + i) * heads + head) * size + key;
            let kept = decay[if comptime![steady] { head * size + key } else { row }];
            let written = k[row];
            #[unroll]
            for j in 0..size {
                before[i * size + j] = states[j];
                states[j] = kept * states[j] + written * values[i * size + j];
            }
        }
        for m in 0..length {
            let i = length - 1 - m;
            let row = ((example * seq + start + i) * heads + head) * size + key;
            let kept = decay[if comptime![steady] { head * size + key } else { row }];
            let (read, written) = (r[row], k[row]);
            let mut dread = 0.0f32;
            let mut dwritten = 0.0f32;
            let mut dkept = 0.0f32;
            let mut down_here = 0.0f32;
            #[unroll]
            for j in 0..size {
                let state = before[i * size + j];
                let dstate = dstates[j];
                let value = values[i * size + j];
                let dout = dys[i * size + j];
                dread += state * dout;
                dwritten += dstate * value;
                dkept += dstate * state;
                down_here += value * dout;
                dstates[j] = kept * dstate + read * dout;
            }
            dr[row] = dread + own * written * down_here;
            dk[row] = dwritten + own * read * down_here;
            down += read * written * down_here;
            if comptime![steady] {
                dsteady += dkept;
            } else {
                ddecay[row] = dkept;
            }
        }
    }
    dbonus[unit * size + key] = down;
    if comptime![steady] {
        ddecay[unit * size + key] = dsteady;
    }
}

/// The gradients of v and of the matrix before: a unit per value.
#[cube(launch)]
fn values_kernel(
    r: &Tensor<f32>,
    k: &Tensor<f32>,
    decay: &Tensor<f32>,
    bonus: &Tensor<f32>,
    dy: &Tensor<f32>,
    dlast: &Tensor<f32>,
    dv: &mut Tensor<f32>,
    dstate: &mut Tensor<f32>,
    #[comptime] size: usize,
    #[comptime] steady: bool,
) {
    let seq = r.shape(1);
    let heads = r.shape(2);
    let head = CUBE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    let value = UNIT_POS_X as usize;
    let matrix = (example * heads + head) * size * size;
    let mut column = Array::<f32>::new(size);
    #[unroll]
    for i in 0..size {
        column[i] = dlast[matrix + i * size + value];
    }
    let mut reads = SharedMemory::<f32>::new(size);
    let mut keys = SharedMemory::<f32>::new(size);
    let mut decays = SharedMemory::<f32>::new(size);
    let mut owns = SharedMemory::<f32>::new(size);
    let own = bonus[head * size + value];
    for n in 0..seq {
        let t = seq - 1 - n;
        let row = ((example * seq + t) * heads + head) * size;
        sync_cube();
        reads[value] = r[row + value];
        keys[value] = k[row + value];
        owns[value] = own * r[row + value] * k[row + value];
        decays[value] = decay[if comptime![steady] { head * size + value } else { row + value }];
        sync_cube();
        let dout = dy[row + value];
        let mut sum = 0.0f32;
        #[unroll]
        for i in 0..size {
            sum += column[i] * keys[i] + owns[i] * dout;
            column[i] = decays[i] * column[i] + reads[i] * dout;
        }
        dv[row + value] = sum;
    }
    #[unroll]
    for i in 0..size {
        dstate[matrix + i * size + value] = column[i];
    }
}
