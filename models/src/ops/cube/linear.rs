//! h_t = a_t·h_{t−1} + b_t: a unit per channel of an example.

use super::{UNITS, argument, cubes, empty};
use burn::tensor::TensorMetadata;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::prelude::*;

/// a and b `[batch, seq, channels]` and the state `[batch, channels]` → all states; and what [`backward`] needs.
pub fn forward<R: CubeRuntime>([a, b, h]: [CubeTensor<R>; 3]) -> ([CubeTensor<R>; 1], Vec<CubeTensor<R>>) {
    let [batch, seq, channels] = a.shape().dims();
    let states = empty(&a, [batch, seq, channels]);
    forward_kernel::launch(
        &a.client,
        CubeCount::Static(cubes(channels, UNITS), batch as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        argument(&a),
        argument(&b),
        argument(&h),
        argument(&states),
    );
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
    [dstates]: [Option<CubeTensor<R>>; 1],
) -> [Option<CubeTensor<R>>; 3] {
    let ([a, h, states], Some(dstates)) = (&saved[..], dstates) else {
        return Default::default();
    };
    let [batch, seq, channels] = a.shape().dims();
    let (da, db) = (empty(a, [batch, seq, channels]), empty(a, [batch, seq, channels]));
    let dh = empty(a, [batch, channels]);
    backward_kernel::launch(
        &a.client,
        CubeCount::Static(cubes(channels, UNITS), batch as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        argument(a),
        argument(h),
        argument(states),
        argument(&dstates),
        argument(&da),
        argument(&db),
        argument(&dh),
    );
    [da, db, dh].map(Some)
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
