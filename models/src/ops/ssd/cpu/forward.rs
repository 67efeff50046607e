//! The outputs.

use super::group::{CHUNK, Decays, Group, State};
use super::{Mode, Numbers};
use crate::ops::cpu::small::{Keep, Left, Product, Rows, Terms, add_scaled, multiplied, scale, scaled};
use pulp::{Simd, WithSimd};

/// The outputs of a group, head by head.
pub struct Forward<'a, 's> {
    pub group: Group<'a>,
    pub scratch: &'s mut Scratch,
    /// By time step.
    pub y: Vec<&'s mut [f32]>,
    /// By time step; empty without normalisers.
    pub read: Vec<&'s mut [f32]>,
    pub last: &'s mut [f32],
    pub counts: &'s mut [f32],
    /// Head by head, chunk by chunk; empty if none are kept.
    pub checkpoints: &'s mut [f32],
}

/// Matrices of a chunk.
pub struct Scratch {
    states: Vec<State>,
    decays: Decays,
    q: Rows,
    k: Rows,
    q_columns: Rows,
    /// KQᵀ, and that times D.
    pairs: Rows,
    weights: Rows,
    v: Rows,
    /// D_s,end⊙V.
    written: Rows,
    out: Rows,
    /// What the queries read of the normaliser.
    read: Rows,
}

impl Scratch {
    pub fn new(numbers: &Numbers<'_>) -> Self {
        let [.., key, value] = numbers.shape;
        let [q, k] = [(); 2].map(|()| Rows::zeros(CHUNK, key));
        let [v, written, out] = [(); 3].map(|()| Rows::zeros(CHUNK, value));
        let [pairs, weights] = [(); 2].map(|()| Rows::zeros(CHUNK, CHUNK));
        Self {
            states: (0..numbers.members()).map(|_| State::zeros(numbers)).collect(),
            decays: Decays::new(),
            q,
            k,
            q_columns: Rows::zeros(Rows::width(key), CHUNK),
            pairs,
            weights,
            v,
            written,
            out,
            read: Rows::zeros(1, CHUNK),
        }
    }
}

impl WithSimd for Forward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { group, scratch, mut y, mut read, last, counts, checkpoints } = self;
        let Scratch { states, decays, q, k, q_columns, pairs, weights, v, written, out, read: reads } = scratch;
        let (numbers, [_, seq, _, key, value]) = (group.numbers, group.numbers.shape);
        let (queries, keys) = (group.queries(), group.keys());
        for (member, state) in states.iter_mut().enumerate() {
            group.load(member, state, Some(numbers.inputs.state), numbers.counts());
        }
        let (chunks, size) = (seq.div_ceil(CHUNK), numbers.checkpoint());
        for chunk in 0..chunks {
            let times = chunk * CHUNK..seq.min((chunk + 1) * CHUNK);
            let steps = times.len();
            queries.gather(times.clone(), q);
            keys.gather(times.clone(), k);
            q_columns.transpose(&q.values, q.width, steps);
            simd.vectorize(Product {
                out: pairs,
                keep: Keep::Nothing,
                left: Left::Rows(k),
                right: q_columns,
                size: [steps, key],
                terms: Terms::All,
            });
            for (member, State { matrix, counts }) in states.iter_mut().enumerate() {
                if !checkpoints.is_empty() {
                    let kept = &mut checkpoints[(member * chunks + chunk) * size..][..size];
                    let (matrices, normaliser) = kept.split_at_mut(matrix.values.len());
                    matrices.copy_from_slice(&matrix.values);
                    normaliser.copy_from_slice(counts);
                }
                group.of(numbers.inputs.v, value, member).gather(times.clone(), v);
                decays.set(simd, &group, member, times.clone());
                for s in 0..steps {
                    multiplied(simd, weights.row_mut(s), pairs.row(s), decays.between.row(s), decays.write[s]);
                    scaled(simd, written.row_mut(s), v.row(s), decays.written[s]);
                    if let Mode::Skip(skip) = numbers.mode {
                        weights.row_mut(s)[s] += skip[group.first + member];
                    }
                }
                simd.vectorize(Product {
                    out,
                    keep: Keep::Nothing,
                    left: Left::Rows(q),
                    right: matrix,
                    size: [steps, key],
                    terms: Terms::All,
                });
                simd.vectorize(Product {
                    out,
                    keep: Keep::Rows(&decays.since_start),
                    left: Left::Columns(weights),
                    right: v,
                    size: [steps, steps],
                    terms: Terms::UpToRow,
                });
                if let Mode::Normalised { least, epsilon, .. } = numbers.mode {
                    let reads = reads.row_mut(0);
                    reads.fill(0.0);
                    for (row, &count) in counts[..key].iter().enumerate() {
                        add_scaled(simd, reads, q_columns.row(row), count);
                    }
                    for (read, gain) in reads.iter_mut().zip(&decays.since_start) {
                        *read *= gain;
                    }
                    counts.iter_mut().for_each(|count| *count *= decays.all(steps));
                    for s in 0..steps {
                        add_scaled(simd, reads, weights.row(s), 1.0);
                        add_scaled(simd, counts, k.row(s), decays.written[s]);
                    }
                    let least = group.of(least, 1, member);
                    for (i, t) in times.clone().enumerate() {
                        read[t][member] = reads[i];
                        scale(simd, out.row_mut(i), 1.0 / (reads[i].abs().max(least.at(t)[0]) + epsilon));
                    }
                }
                for (i, t) in times.clone().enumerate() {
                    y[t][member * value..][..value].copy_from_slice(&out.row(i)[..value]);
                }
                simd.vectorize(Product {
                    out: matrix,
                    keep: Keep::All(decays.all(steps)),
                    left: Left::Columns(k),
                    right: written,
                    size: [key, steps],
                    terms: Terms::All,
                });
            }
        }
        for (member, state) in states.iter().enumerate() {
            let matrix = &mut last[member * key * value..][..key * value];
            let counts = if counts.is_empty() { &mut [] } else { &mut counts[member * key..][..key] };
            state.store([key, value], matrix, counts);
        }
    }
}
