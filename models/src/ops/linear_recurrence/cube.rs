//! h_t = a_t·h_{t−1} + b_t: a unit per channel of an example.

use super::cpu::Inputs;
use crate::ops::cube::{Grid, empty, launch};
use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// All states, and the tensors that [`backward`] needs.
pub fn forward<R: CubeRuntime>(inputs: Inputs<CubeTensor<R>>) -> ([CubeTensor<R>; 1], Vec<CubeTensor<R>>) {
    let Inputs { a, b, h } = inputs;
    let [batch, seq, channels] = a.shape().dims();
    let states = empty(&a, [batch, seq, channels]);
    let grid = Grid::over(channels, batch);
    launch!(forward_kernel, grid, [a, b, h, states]);
    ([states.clone()], vec![a, h, states])
}

#[cube(launch)]
fn forward_kernel(a: &Tensor<f32>, b: &Tensor<f32>, h: &Tensor<f32>, states: &mut Tensor<f32>) {
    let seq = a.shape(1);
    let channels = a.shape(2);
    let channel = ABSOLUTE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    if channel < channels {
        let mut state = h[example * channels + channel];
        for t in 0..seq {
            let at = (example * seq + t) * channels + channel;
            state = a[at] * state + b[at];
            states[at] = state;
        }
    }
}

/// The gradients of all inputs, from what [`forward`] saved and the gradient of the states.
pub fn backward<R: CubeRuntime>(
    saved: Vec<CubeTensor<R>>,
    dstates: Option<CubeTensor<R>>,
) -> Option<Inputs<CubeTensor<R>>> {
    let ([a, h, states], Some(dstates)) = (&saved[..], dstates) else { return None };
    let [batch, seq, channels] = a.shape().dims();
    let (da, db) = (empty(a, [batch, seq, channels]), empty(a, [batch, seq, channels]));
    let dh = empty(a, [batch, channels]);
    let grid = Grid::over(channels, batch);
    launch!(backward_kernel, grid, [a, h, states, dstates, da, db, dh]);
    Some(Inputs { a: da, b: db, h: dh })
}

#[cube(launch)]
fn backward_kernel(
    a: &Tensor<f32>,
    h: &Tensor<f32>,
    states: &Tensor<f32>,
    dstates: &Tensor<f32>,
    da: &mut Tensor<f32>,
    db: &mut Tensor<f32>,
    dh: &mut Tensor<f32>,
) {
    let seq = a.shape(1);
    let channels = a.shape(2);
    let channel = ABSOLUTE_POS_X as usize;
    let example = CUBE_POS_Y as usize;
    if channel < channels {
        let mut carried = 0.0f32;
        for n in 0..seq {
            let t = seq - 1 - n;
            let at = (example * seq + t) * channels + channel;
            let dstate = dstates[at] + carried;
            let mut before = h[example * channels + channel];
            if t > 0 {
                before = states[at - channels];
            }
            da[at] = dstate * before;
            db[at] = dstate;
            carried = dstate * a[at];
        }
        dh[example * channels + channel] = carried;
    }
}
