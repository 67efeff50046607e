//! S4's layer as a discrete state space, x_t = Ā·x_{t−1} + B̄·u_t, y_t = C·x_t, one per channel, in float64 (Gu et al.,
//! arXiv 2111.00396). Training needs only the kernel ([`crate::ops::s4_kernel`]); this is for initialisation, the
//! recurrent form and exports.

/// One layer's parameters as they are in a checkpoint, row-major.
#[derive(Debug, Clone, Copy)]
pub struct S4Parameters<'a> {
    /// `[hidden]`.
    pub inv_dt: &'a [f32],
    /// `[hidden, modes]`.
    pub a_real: &'a [f32],
    /// `[hidden, modes]`.
    pub a_imag: &'a [f32],
    /// `[hidden, modes, 2]`.
    pub b: &'a [f32],
    /// `[hidden, modes, 2]`.
    pub c: &'a [f32],
    /// `[hidden, modes, 2]`.
    pub p: &'a [f32],
}

impl<'a> S4Parameters<'a> {
    /// The state space of every channel, with `c` read out as it is stored.
    ///
    /// # Panics
    ///
    /// If the slices are not as long as their shapes say.
    pub fn channels(self) -> impl Iterator<Item = StateSpace> + use<'a> {
        let modes = self.a_real.len() / self.inv_dt.len().max(1);
        (0..self.inv_dt.len()).map(move |channel| {
            let real = channel * modes..(channel + 1) * modes;
            let pairs = 2 * real.start..2 * real.end;
            Self {
                inv_dt: &self.inv_dt[channel..=channel],
                a_real: &self.a_real[real.clone()],
                a_imag: &self.a_imag[real],
                b: &self.b[pairs.clone()],
                c: &self.c[pairs.clone()],
                p: &self.p[pairs],
            }
            .channel()
        })
    }

    /// The only channel's.
    fn channel(self) -> StateSpace {
        let half = self.a_real.len();
        let n = 2 * half;
        let dt = f64::from(self.inv_dt[0]).exp();
        // Vectors have the real parts first, then the imaginary parts.
        let at =
            |values: &[f32], i: usize| f64::from(if i < half { values[2 * i] } else { values[2 * (i - half) + 1] });
        // A = diag(Λ) − P·P*, where P* sums over a mode and its conjugate: P*·x = 2·(Re P·Re x + Im P·Im x).
        let mut a = vec![0.0; n * n];
        for mode in 0..half {
            let (re, im) = (-f64::from(self.a_real[mode]).exp(), -f64::from(self.a_imag[mode]));
            a[mode * n + mode] = re;
            a[mode * n + half + mode] = -im;
            a[(half + mode) * n + mode] = im;
            a[(half + mode) * n + half + mode] = re;
        }
        for i in 0..n {
            for j in 0..n {
                a[i * n + j] -= 2.0 * at(self.p, i) * at(self.p, j);
            }
        }
        // The bilinear rule: (I − Δ/2·A)·[Ā, B̄] = [I + Δ/2·A, Δ·B].
        let identity = |i: usize, j: usize| f64::from(u8::from(i == j));
        let left: Vec<f64> = (0..n * n).map(|k| identity(k / n, k % n) - dt / 2.0 * a[k]).collect();
        let mut right = vec![0.0; n * (n + 1)];
        for i in 0..n {
            for j in 0..n {
                right[i * (n + 1) + j] = identity(i, j) + dt / 2.0 * a[i * n + j];
            }
            right[i * (n + 1) + n] = dt * at(self.b, i);
        }
        let solved = solve(left, right, n);
        let (mut a, mut b) = (Vec::with_capacity(n * n), Vec::with_capacity(n));
        for row in solved.chunks(n + 1) {
            a.extend(&row[..n]);
            b.push(row[n]);
        }
        // Cᵀ·x = 2·(Re C·Re x − Im C·Im x)
        let c = (0..n).map(|i| if i < half { 2.0 } else { -2.0 } * at(self.c, i)).collect();
        StateSpace { n, a, b, c }
    }
}

/// x_t = Ā·x_{t−1} + B̄·u_t, y_t = C·x_t for one channel. The state holds the real parts of the modes, then the
/// imaginary.
#[derive(Debug, Clone)]
pub struct StateSpace {
    /// The size of the state.
    pub n: usize,
    /// Ā, row-major `[n, n]`.
    pub a: Vec<f64>,
    /// B̄, `[n]`.
    pub b: Vec<f64>,
    /// C, `[n]`.
    pub c: Vec<f64>,
}

impl StateSpace {
    /// Āˡ.
    pub fn power(&self, l: usize) -> Vec<f64> {
        let identity = (0..self.n * self.n).map(|k| f64::from(u8::from(k / self.n == k % self.n))).collect();
        let (mut result, mut square, mut left): (Vec<f64>, _, _) = (identity, self.a.clone(), l);
        while left > 0 {
            if left % 2 == 1 {
                result = product(&result, &square, self.n);
            }
            left /= 2;
            if left > 0 {
                square = product(&square, &square, self.n);
            }
        }
        result
    }

    /// C ← C·(I − Āˡ): from C to what checkpoints store, of which the first `l` taps of the kernel are computed.
    pub fn truncate(&mut self, l: usize) {
        let moved = product(&self.c, &self.power(l), self.n);
        self.c.iter_mut().zip(moved).for_each(|(c, m)| *c -= m);
    }

    /// The inverse of [`truncate`](Self::truncate); a C stored with `l` = 0 was never truncated.
    pub fn untruncate(&mut self, l: usize) {
        if l == 0 {
            return;
        }
        let (n, power) = (self.n, self.power(l));
        let transposed = (0..n * n).map(|k| f64::from(u8::from(k / n == k % n)) - power[k % n * n + k / n]).collect();
        self.c = solve(transposed, self.c.clone(), n);
    }

    /// C as checkpoints store it: `[re, im]` of every mode.
    pub fn c_pairs(&self) -> impl Iterator<Item = f32> {
        let (re, im) = self.c.split_at(self.n / 2);
        re.iter().zip(im).flat_map(|(re, im)| [(re / 2.0) as f32, (-im / 2.0) as f32])
    }
}

/// `[m, n]` · `[n, n]`.
pub fn product(left: &[f64], right: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; left.len()];
    for (out, left) in out.chunks_mut(n).zip(left.chunks(n)) {
        for (l, right) in left.iter().zip(right.chunks(n)) {
            out.iter_mut().zip(right).for_each(|(o, r)| *o += l * r);
        }
    }
    out
}

/// X in M·X = R by elimination with row exchanges; M is `[n, n]`, R `[n, any]`.
fn solve(mut m: Vec<f64>, mut r: Vec<f64>, n: usize) -> Vec<f64> {
    let width = r.len() / n;
    /// Rows `i` and `j` of `values`, `i` before `j`.
    fn rows(values: &mut [f64], width: usize, i: usize, j: usize) -> (&mut [f64], &mut [f64]) {
        let (head, tail) = values.split_at_mut(j * width);
        (&mut head[i * width..(i + 1) * width], &mut tail[..width])
    }
    for column in 0..n {
        let below = (column..n).max_by(|&i, &j| m[i * n + column].abs().total_cmp(&m[j * n + column].abs()));
        if let Some(pivot) = below.filter(|&pivot| pivot > column) {
            let (a, b) = rows(&mut m, n, column, pivot);
            a.swap_with_slice(b);
            let (a, b) = rows(&mut r, width, column, pivot);
            a.swap_with_slice(b);
        }
        for row in column + 1..n {
            let factor = m[row * n + column] / m[column * n + column];
            let (a, b) = rows(&mut m, n, column, row);
            b.iter_mut().zip(a).skip(column).for_each(|(b, a)| *b -= factor * *a);
            let (a, b) = rows(&mut r, width, column, row);
            b.iter_mut().zip(a).for_each(|(b, a)| *b -= factor * *a);
        }
    }
    for row in (0..n).rev() {
        let pivot = m[row * n + row];
        r[row * width..(row + 1) * width].iter_mut().for_each(|v| *v /= pivot);
        for above in 0..row {
            let factor = m[above * n + row];
            let (a, b) = rows(&mut r, width, above, row);
            a.iter_mut().zip(b).for_each(|(a, b)| *a -= factor * *b);
        }
    }
    r
}
