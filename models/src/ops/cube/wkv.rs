//! The WKV operation of RWKV-5 and RWKV-6: a cube per head of an example, its matrix in registers for all time steps.
//!
//! A unit holds a column of the matrix (one value, all keys) where sums run over the keys, and a row (one key, all values)
//! where they run over the values, so that no sum crosses units. The way back recomputes the matrices of a few time steps
//! at once from the one before them, and divides by no decay.

use super::{argument, empty, is_addressable, or_zeros, reshape, sum_rows};
use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// Time steps between two matrices that are kept for the way back.
const CHUNK: usize = 8;

/// The largest head whose rows fit into registers.
const LARGEST_SIZE: usize = 64;

/// r, k, v, the decay `[batch, seq, heads, size]` (the decay also `[1, 1, heads, size]`), the bonus `[heads, size]` and the
/// matrices `[batch, heads, key, value]` → outputs and last matrices; and what [`backward`] needs, if `save`. `None` for
/// heads larger than 64, and for more checkpoints than 32 bits can count.
#[allow(clippy::type_complexity)] // outputs and what is saved
pub fn forward<R: CubeRuntime>(
    inputs: [CubeTensor<R>; 6],
    save: bool,
) -> Option<([CubeTensor<R>; 2], Vec<CubeTensor<R>>)> {
    let [r, k, v, decay, bonus, state] = &inputs;
    let [batch, seq, heads, size] = r.shape().dims();
    let chunks = if save { seq.div_ceil(CHUNK) } else { 1 };
    let kept = [batch, heads, chunks, size * size];
    if size > LARGEST_SIZE || !is_addressable(kept) {
        return None;
    }
    let (y, last) = (empty(r, [batch, seq, heads, size]), empty(r, [batch, heads, size, size]));
    let checkpoints = empty(r, kept);
    forward_kernel::launch(
        &r.client,
        CubeCount::Static(heads as u32, batch as u32, 1),
        CubeDim::new_1d(size as u32),
        argument(r),
        argument(k),
        argument(v),
        argument(decay),
        argument(bonus),
        argument(state),
        argument(&y),
        argument(&last),
        argument(&checkpoints),
        size,
        is_steady(r, decay),
        save,
    );
    let saved = inputs.into_iter().take(5).chain([checkpoints]).collect();
    Some(([y, last], saved))
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
    let mut owns = SharedMemory::<f32>::new(size); // of what a step reads of itself
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
) -> [Option<CubeTensor<R>>; 6] {
    let ([r, k, v, decay, bonus, checkpoints], Some(dy)) = (&saved[..], dy) else {
        return Default::default();
    };
    let [batch, seq, heads, size] = r.shape().dims();
    let last = match last {
        Some(last) => last,
        None => or_zeros(None, &empty(r, [batch, heads, size, size])),
    };
    let steady = is_steady(r, decay);
    let wide = || empty(r, [batch, seq, heads, size]);
    let (dr, dk, dv, dstate) = (wide(), wide(), wide(), empty(r, [batch, heads, size, size]));
    let ddecay = if steady { empty(r, [batch, 1, heads, size]) } else { wide() };
    let dbonus = empty(r, [batch, heads, size]);
    let count = CubeCount::Static(heads as u32, batch as u32, 1);
    let dim = CubeDim::new_1d(size as u32);
    keys_kernel::launch(
        &r.client,
        count.clone(),
        dim,
        argument(r),
        argument(k),
        argument(v),
        argument(decay),
        argument(bonus),
        argument(checkpoints),
        argument(&dy),
        argument(&last),
        argument(&dr),
        argument(&dk),
        argument(&ddecay),
        argument(&dbonus),
        size,
        steady,
    );
    values_kernel::launch(
        &r.client,
        count,
        dim,
        argument(r),
        argument(k),
        argument(decay),
        argument(bonus),
        argument(&dy),
        argument(&last),
        argument(&dv),
        argument(&dstate),
        size,
        steady,
    );
    let ddecay = match steady {
        true => reshape(sum_rows(&ddecay, [1, batch, heads * size]), [1, 1, heads, size].into()),
        false => ddecay,
    };
    let dbonus = reshape(sum_rows(&dbonus, [1, batch, heads * size]), [heads, size].into());
    [dr, dk, dv, ddecay, dbonus, dstate].map(Some)
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
