//! The gradients of the inputs.

use super::group::{CHUNK, Decays, Group, MEMBERS, State};
use super::{Mode, Numbers, OutputGradients};
use crate::ops::cpu::small::{Keep, Left, Product, Rows, Terms, add_scaled, dot, scale, scaled};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// The gradients of a group's inputs, from the last chunk to the first.
pub struct Backward<'a, 's> {
    pub group: Group<'a>,
    pub scratch: &'s mut Scratch,
    pub given: OutputGradients<'a>,
    pub out: Outputs<'s>,
}

/// Where the gradients go.
pub struct Outputs<'s> {
    /// By time step: the group's sums.
    pub dq: Vec<&'s mut [f32]>,
    pub dk: Vec<&'s mut [f32]>,
    /// By time step, the heads' side by side.
    pub ddecay: Vec<&'s mut [f32]>,
    pub dwrite: Vec<&'s mut [f32]>,
    pub dv: Vec<&'s mut [f32]>,
    /// Empty without normalisers.
    pub dleast: Vec<&'s mut [f32]>,
    /// Head by head.
    pub dstate: &'s mut [f32],
    /// Empty with normalisers.
    pub dskip: &'s mut [f32],
    /// Empty without normalisers.
    pub dcounts: &'s mut [f32],
}

/// Matrices of a chunk. `x_columns` is x transposed.
pub struct Scratch {
    /// The gradients of the states after the chunk, then of those before it.
    dstates: Vec<State>,
    /// Sums over the chunks.
    dskips: [f32; MEMBERS],
    q: Rows,
    k: Rows,
    q_columns: Rows,
    /// KQᵀ.
    pairs: Rows,
    /// The sum over heads of V·dYᵀ⊙wD.
    dpairs: Rows,
    /// The sums over heads of all other parts of the gradients of Q and K, then the whole.
    dq: Rows,
    dk: Rows,
    head: Head,
}

/// Matrices of a chunk of one head.
struct Head {
    decays: Decays,
    v: Rows,
    /// The gradients of what is read of the matrix.
    dy: Rows,
    /// The gradients of what is read of the normaliser.
    dread: Rows,
    /// g⊙dY.
    read: Rows,
    dy_columns: Rows,
    state_columns: Rows,
    dstate_columns: Rows,
    /// KQᵀ⊙wD with the skip on its diagonal, and V·dYᵀ.
    weights: Rows,
    dweights: Rows,
    /// dY·Sᵀ and V·dSᵀ.
    from_state: Rows,
    to_state: Rows,
    dv: Rows,
}

impl Scratch {
    pub fn new(numbers: &Numbers<'_>) -> Self {
        let [.., key, value] = numbers.shape;
        let keys = || Rows::zeros(CHUNK, key);
        let square = || Rows::zeros(CHUNK, CHUNK);
        Self {
            dstates: (0..numbers.members()).map(|_| State::zeros(numbers)).collect(),
            dskips: [0.0; MEMBERS],
            q: keys(),
            k: keys(),
            q_columns: Rows::zeros(Rows::width(key), CHUNK),
            pairs: square(),
            dpairs: square(),
            dq: keys(),
            dk: keys(),
            head: Head::new([key, value]),
        }
    }
}

impl Head {
    fn new([key, value]: [usize; 2]) -> Self {
        let keys = || Rows::zeros(CHUNK, key);
        let values = || Rows::zeros(CHUNK, value);
        let square = || Rows::zeros(CHUNK, CHUNK);
        let value_columns = |columns| Rows::zeros(Rows::width(value), columns);
        Self {
            decays: Decays::new(),
            v: values(),
            dy: values(),
            dread: Rows::zeros(1, CHUNK),
            read: values(),
            dy_columns: value_columns(CHUNK),
            state_columns: value_columns(key),
            dstate_columns: value_columns(key),
            weights: square(),
            dweights: square(),
            from_state: keys(),
            to_state: keys(),
            dv: values(),
        }
    }
}

impl WithSimd for Backward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { group, scratch, given, mut out } = self;
        let (numbers, [_, seq, _, key, value]) = (group.numbers, group.numbers.shape);
        scratch.dskips.fill(0.0);
        for (member, dstate) in scratch.dstates.iter_mut().enumerate() {
            group.load(member, dstate, given.last, given.counts);
        }
        let (chunks, size) = (seq.div_ceil(CHUNK), numbers.checkpoint());
        for chunk in (0..chunks).rev() {
            let times = chunk * CHUNK..seq.min((chunk + 1) * CHUNK);
            scratch.start(simd, &group, times.clone());
            for member in 0..group.members {
                let states = &given.checkpoints[(group.unit(member) * chunks + chunk) * size..][..size];
                scratch.head.load(simd, &group, member, &given, times.clone(), &mut out.dleast);
                scratch.head(simd, member, states, [times.len(), value]);
                scratch.decays(simd, &group, member, states, times.clone(), [&mut out.ddecay, &mut out.dwrite]);
                scratch.back(simd, member, times.len());
                for (i, t) in times.clone().enumerate() {
                    out.dv[t][member * value..][..value].copy_from_slice(&scratch.head.dv.row(i)[..value]);
                }
            }
            scratch.finish(simd, times.len());
            for (i, t) in times.enumerate() {
                out.dq[t].copy_from_slice(&scratch.dq.row(i)[..key]);
                out.dk[t].copy_from_slice(&scratch.dk.row(i)[..key]);
            }
        }
        for (to, sum) in out.dskip.iter_mut().zip(scratch.dskips) {
            *to = sum;
        }
        for (member, dstate) in scratch.dstates.iter().enumerate() {
            let matrix = &mut out.dstate[member * key * value..][..key * value];
            let counts = match out.dcounts.is_empty() {
                true => &mut [],
                false => &mut out.dcounts[member * key..][..key],
            };
            dstate.store([key, value], matrix, counts);
        }
    }
}

impl Head {
    /// Inputs and gradients of a chunk.
    #[inline(always)]
    fn load<S: Simd>(
        &mut self,
        simd: S,
        group: &Group<'_>,
        member: usize,
        given: &OutputGradients<'_>,
        times: Range<usize>,
        dleast: &mut [&mut [f32]],
    ) {
        let (numbers, value) = (group.numbers, group.numbers.shape[4]);
        let steps = times.len();
        group.of(numbers.inputs.v, value, member).gather(times.clone(), &mut self.v);
        self.decays.set(simd, group, member, times.clone());
        group.of(given.y, value, member).gather(times.clone(), &mut self.dy);
        if let Mode::Normalised { least, epsilon, .. } = numbers.mode {
            let [outputs, read] = given.outputs;
            let (outputs, read) = (group.of(outputs, value, member), group.of(read, 1, member));
            let (least, dread) = (group.of(least, 1, member), self.dread.row_mut(0));
            dread.fill(0.0);
            for (i, t) in times.enumerate() {
                let (read, least) = (read.at(t)[0], least.at(t)[0]);
                let factor = 1.0 / (read.abs().max(least) + epsilon);
                self.read.set(i, outputs.at(t));
                // Of the divisor: an output is what is read of the matrix, divided by it.
                let gradient = -factor * dot(simd, self.dy.row(i), self.read.row(i));
                let is_least = read.abs() < least;
                dread[i] = if is_least { 0.0 } else { gradient * sign(read) };
                dleast[t][member] = if is_least { gradient } else { 0.0 };
                scale(simd, self.dy.row_mut(i), factor);
            }
        }
        for i in 0..steps {
            scaled(simd, self.read.row_mut(i), self.dy.row(i), self.decays.since_start[i]);
        }
        self.dy_columns.transpose(&self.dy.values, self.dy.width, steps);
    }
}

/// −1, 0 or 1: the derivative of |x|.
fn sign(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

impl Scratch {
    /// What the heads share.
    #[inline(always)]
    fn start<S: Simd>(&mut self, simd: S, group: &Group<'_>, times: Range<usize>) {
        let ([.., key, _], steps) = (group.numbers.shape, times.len());
        group.queries().gather(times.clone(), &mut self.q);
        group.keys().gather(times, &mut self.k);
        self.q_columns.transpose(&self.q.values, self.q.width, steps);
        simd.vectorize(Product {
            out: &mut self.pairs,
            keep: Keep::Nothing,
            left: Left::Rows(&self.k),
            right: &self.q_columns,
            size: [steps, key],
            terms: Terms::All,
        });
        for sum in [&mut self.dpairs, &mut self.dq, &mut self.dk] {
            sum.values.fill(0.0);
        }
    }

    /// What a head's gradients are made of: V·dYᵀ, dY·Sᵀ and V·dSᵀ, with the normaliser as a value that is always 1.
    /// `states`: the state before the chunk.
    #[inline(always)]
    fn head<S: Simd>(&mut self, simd: S, member: usize, states: &[f32], [steps, value]: [usize; 2]) {
        let (State { matrix: dstate, counts: dcounts }, head) = (&self.dstates[member], &mut self.head);
        let (key, width) = (dstate.values.len() / dstate.width, dstate.width);
        let (state, counts) = states.split_at(dstate.values.len());
        head.state_columns.transpose(state, width, key);
        head.dstate_columns.transpose(&dstate.values, width, key);
        if !counts.is_empty() {
            for i in 0..steps {
                let gradient = head.dread.row(0)[i];
                scaled(simd, head.from_state.row_mut(i), counts, gradient);
                head.to_state.row_mut(i).copy_from_slice(dcounts);
                head.dweights.row_mut(i).copy_from_slice(head.dread.row(0));
            }
        }
        let products = [
            (&mut head.dweights, &head.v, &head.dy_columns),
            (&mut head.from_state, &head.dy, &head.state_columns),
            (&mut head.to_state, &head.v, &head.dstate_columns),
        ];
        for (out, left, right) in products {
            let keep = if counts.is_empty() { Keep::Nothing } else { Keep::All(1.0) };
            simd.vectorize(Product {
                out,
                keep,
                left: Left::Rows(left),
                right,
                size: [steps, value],
                terms: Terms::All,
            });
        }
    }

    /// The gradients of a head's decays and of what its steps write. On the way, adds to the sums over heads.
    #[inline(always)]
    fn decays<S: Simd>(
        &mut self,
        simd: S,
        group: &Group<'_>,
        member: usize,
        states: &[f32],
        times: Range<usize>,
        [ddecay, dwrite]: [&mut [&mut [f32]]; 2],
    ) {
        let Self { dstates, dskips, q, k, pairs, dpairs, dq, dk, head, .. } = self;
        let Head { decays, weights, dweights, from_state, to_state, .. } = head;
        let dstate = &dstates[member];
        let skip = match group.numbers.mode {
            Mode::Skip(skip) => Some(skip[group.first + member]),
            Mode::Normalised { .. } => None,
        };
        // For all r: Σ_{s<t} D_s,t−1·w_s·(k_s·q_r)(v_s·dy_r), where the state before the chunk is a step s, and that after it
        // an r.
        let mut before = [0.0; CHUNK];
        for (r, before) in before[..times.len()].iter_mut().enumerate() {
            *before = dot(simd, q.row(r), from_state.row(r));
            add_scaled(simd, dq.row_mut(r), from_state.row(r), decays.since_start[r]);
        }
        let (state, counts) = states.split_at(dstate.matrix.values.len());
        let mut end = dot(simd, state, &dstate.matrix.values) + dot(simd, counts, &dstate.counts);
        for (t, time) in times.enumerate() {
            let (between, until_end, write) = (decays.between.row(t), decays.until_end[t], decays.write[t]);
            ddecay[time][member] = until_end.mul_add(end, dot(simd, between, &before));
            let to_end = dot(simd, k.row(t), to_state.row(t));
            end = decays.each[t].mul_add(end, write * to_end);
            add_scaled(simd, dk.row_mut(t), to_state.row(t), decays.written[t]);
            let [decay, written, mut sum] = [decays.each[t], write, 0.0].map(|x| simd.splat_f32s(x));
            let vectors = S::as_mut_simd_f32s(&mut before).0.iter_mut().zip(S::as_simd_f32s(pairs.row(t)).0);
            let vectors = vectors.zip(S::as_simd_f32s(dweights.row(t)).0).zip(S::as_simd_f32s(between).0);
            let sums = S::as_mut_simd_f32s(weights.row_mut(t)).0.iter_mut();
            let sums = sums.zip(S::as_mut_simd_f32s(dpairs.row_mut(t)).0);
            for ((((before, pair), dweight), between), (weight, dpair)) in vectors.zip(sums) {
                let (both, factor) = (simd.mul_f32s(*pair, *dweight), simd.mul_f32s(written, *between));
                sum = simd.mul_add_e_f32s(both, *between, sum);
                *before = simd.mul_add_e_f32s(*before, decay, simd.mul_f32s(both, written));
                *weight = simd.mul_f32s(*pair, factor);
                *dpair = simd.mul_add_e_f32s(*dweight, factor, *dpair);
            }
            dwrite[time][member] = until_end.mul_add(to_end, simd.reduce_sum_f32s(sum));
            if let Some(skip) = skip {
                weights.row_mut(t)[t] += skip;
                dskips[member] += dweights.row(t)[t];
            }
        }
    }

    /// The gradients of a head's values and of its state before the chunk.
    #[inline(always)]
    fn back<S: Simd>(&mut self, simd: S, member: usize, steps: usize) {
        let Self { dstates, q, k, head, .. } = self;
        let Head { decays, dy, dread, read, weights, dv, .. } = head;
        let State { matrix: dstate, counts: dcounts } = &mut dstates[member];
        let key = dstate.values.len() / dstate.width;
        let gain = decays.all(steps);
        simd.vectorize(Product {
            out: dv,
            keep: Keep::Nothing,
            left: Left::Rows(k),
            right: dstate,
            size: [steps, key],
            terms: Terms::All,
        });
        simd.vectorize(Product {
            out: dv,
            keep: Keep::Rows(&decays.written),
            left: Left::Rows(weights),
            right: dy,
            size: [steps, steps],
            terms: Terms::FromRow,
        });
        simd.vectorize(Product {
            out: dstate,
            keep: Keep::All(gain),
            left: Left::Columns(q),
            right: read,
            size: [key, steps],
            terms: Terms::All,
        });
        if !dcounts.is_empty() {
            dcounts.iter_mut().for_each(|count| *count *= gain);
            for i in 0..steps {
                add_scaled(simd, dcounts, q.row(i), decays.since_start[i] * dread.row(0)[i]);
            }
        }
    }

    /// The gradients of queries and keys.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S, steps: usize) {
        let Self { q, k, dpairs, dq, dk, .. } = self;
        let size = [steps, steps];
        simd.vectorize(Product {
            out: dq,
            keep: Keep::All(1.0),
            left: Left::Columns(dpairs),
            right: k,
            size,
            terms: Terms::UpToRow,
        });
        simd.vectorize(Product {
            out: dk,
            keep: Keep::All(1.0),
            left: Left::Rows(dpairs),
            right: q,
            size,
            terms: Terms::FromRow,
        });
    }
}
