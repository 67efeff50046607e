//! What heads that share queries and keys do together, and the decays of a chunk.

use super::Numbers;
use crate::ops::cpu::small::{Rows, scaled};
use pulp::Simd;
use std::ops::Range;

/// Time steps of a chunk.
pub const CHUNK: usize = 64;

/// Heads of a group, at most: groups are computed by different threads.
pub const MEMBERS: usize = 8;

impl Numbers<'_> {
    /// Heads of a group: as many as share queries and keys, or a divisor of it.
    pub fn members(&self) -> usize {
        let sharing = self.shape[2] / self.sharing.max(1);
        (1..=MEMBERS).rev().find(|members| sharing.is_multiple_of(*members)).unwrap_or(1)
    }

    /// Numbers of a head's state: a row for every key channel, and the normaliser as one more.
    pub fn checkpoint(&self) -> usize {
        let [.., key, value] = self.shape;
        key * Rows::width(value) + if self.counts().is_some() { Rows::width(key) } else { 0 }
    }
}

/// The heads of an example that are computed together.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    pub numbers: &'a Numbers<'a>,
    pub example: usize,
    /// The first of the heads.
    pub first: usize,
    /// How many they are.
    pub members: usize,
}

impl<'a> Group<'a> {
    /// The numbers of a member in a tensor with `present` heads of `width` numbers.
    pub fn steps(&self, values: &'a [f32], present: usize, width: usize, member: usize) -> Steps<'a> {
        let [_, seq, heads, ..] = self.numbers.shape;
        let head = (self.first + member) * present / heads;
        let stride = present * width;
        Steps { values, first: self.example * seq * stride + head * width, stride, width }
    }

    /// The number of a member among the heads of all examples.
    pub fn unit(&self, member: usize) -> usize {
        self.example * self.numbers.shape[2] + self.first + member
    }

    pub fn queries(&self) -> Steps<'a> {
        self.steps(self.numbers.inputs.q, self.numbers.sharing, self.numbers.shape[3], 0)
    }

    pub fn keys(&self) -> Steps<'a> {
        self.steps(self.numbers.inputs.k, self.numbers.sharing, self.numbers.shape[3], 0)
    }

    /// A member's part of `[batch, seq, heads, width]`.
    pub fn of(&self, values: &'a [f32], width: usize, member: usize) -> Steps<'a> {
        self.steps(values, self.numbers.shape[2], width, member)
    }

    /// A member's states before all steps, or their gradients after them; zero where there are none.
    pub fn load(&self, member: usize, state: &mut State, matrices: Option<&[f32]>, counts: Option<&[f32]>) {
        let ([.., key, value], unit) = (self.numbers.shape, self.unit(member));
        state.matrix.values.fill(0.0);
        state.counts.fill(0.0);
        if let Some(matrices) = matrices {
            let rows = matrices[unit * key * value..][..key * value].chunks_exact(value);
            rows.enumerate().for_each(|(row, numbers)| state.matrix.set(row, numbers));
        }
        if let Some(counts) = counts {
            state.counts[..key].copy_from_slice(&counts[unit * key..][..key]);
        }
    }
}

/// The numbers of a head of an example, by time step.
#[derive(Debug, Clone, Copy)]
pub struct Steps<'a> {
    pub values: &'a [f32],
    /// Where those of the first step are.
    pub first: usize,
    pub stride: usize,
    pub width: usize,
}

impl<'a> Steps<'a> {
    #[inline(always)]
    pub fn at(&self, t: usize) -> &'a [f32] {
        &self.values[self.first + t * self.stride..][..self.width]
    }

    /// Those of a chunk.
    #[inline(always)]
    pub fn gather(&self, times: Range<usize>, rows: &mut Rows) {
        for (i, t) in times.enumerate() {
            rows.set(i, self.at(t));
        }
    }
}

/// A head's state, or its gradient.
#[derive(Debug)]
pub struct State {
    /// `[key, value]`.
    pub matrix: Rows,
    /// The normaliser, `[key]` in whole vectors; only where keys are counted.
    pub counts: Vec<f32>,
}

impl State {
    pub fn zeros(numbers: &Numbers<'_>) -> Self {
        let [.., key, value] = numbers.shape;
        Self {
            matrix: Rows::zeros(key, value),
            counts: vec![0.0; if numbers.counts().is_some() { Rows::width(key) } else { 0 }],
        }
    }

    /// To the tensors of last states.
    pub fn store(&self, [key, value]: [usize; 2], matrix: &mut [f32], counts: &mut [f32]) {
        for (row, to) in matrix.chunks_exact_mut(value).enumerate() {
            to.copy_from_slice(&self.matrix.row(row)[..value]);
        }
        if !counts.is_empty() {
            counts.copy_from_slice(&self.counts[..key]);
        }
    }
}

/// The decays of a chunk, and their products.
#[derive(Debug)]
pub struct Decays {
    pub each: [f32; CHUNK],
    /// w: what each step writes.
    pub write: [f32; CHUNK],
    /// g: from the start of the chunk up to each step.
    pub since_start: [f32; CHUNK],
    /// After each step, up to the end of the chunk.
    pub until_end: [f32; CHUNK],
    /// That times w.
    pub written: [f32; CHUNK],
    /// D: after step s (row) up to step r (column).
    pub between: Rows,
}

impl Decays {
    pub fn new() -> Self {
        let [each, write, since_start, until_end, written] = [[0.0; CHUNK]; 5];
        Self { each, write, since_start, until_end, written, between: Rows::zeros(CHUNK, CHUNK) }
    }

    #[inline(always)]
    pub fn set<S: Simd>(&mut self, simd: S, group: &Group<'_>, member: usize, times: Range<usize>) {
        let [decays, write] = [group.numbers.inputs.decay, group.numbers.inputs.write].map(|x| group.of(x, 1, member));
        let mut gain = 1.0;
        let steps = times.len();
        for (i, t) in times.enumerate() {
            self.each[i] = decays.at(t)[0];
            self.write[i] = write.at(t)[0];
            gain *= self.each[i];
            self.since_start[i] = gain;
        }
        let width = self.between.width;
        for s in (0..steps).rev() {
            let (row, next) = self.between.values[s * width..].split_at_mut(width);
            match s + 1 == steps {
                true => row.fill(0.0),
                false => scaled(simd, row, &next[..width], self.each[s + 1]),
            }
            row[s] = 1.0;
            self.until_end[s] = row[steps - 1];
            self.written[s] = self.until_end[s] * self.write[s];
        }
    }

    /// The product of all decays of a chunk of so many steps.
    pub fn all(&self, steps: usize) -> f32 {
        self.since_start[steps - 1]
    }
}
