//! HiPPO-LegS in the form in which S4 starts from it: normal plus low rank, diagonalised (Gu et al., arXiv 2008.07669
//! and 2111.00396, appendix C).

/// The diagonalised start, one entry per conjugate pair of modes; the eigenvalues all have the real part −½.
#[derive(Debug, Clone)]
pub struct HippoLegS {
    /// Imaginary parts of the eigenvalues: negative, the most negative first.
    pub frequencies: Vec<f64>,
    /// V*·P, `[re, im]`.
    pub p: Vec<[f64; 2]>,
    /// V*·B, `[re, im]`.
    pub b: Vec<[f64; 2]>,
}

impl HippoLegS {
    /// The first `modes` of `2·modes` states, in the basis V of the normal part S.
    ///
    /// A_nk = −√((2n+1)(2k+1)) below the diagonal and −(n+1) on it, B_n = √(2n+1), P_n = √(n+½). S = A + P·Pᵀ is −½ on
    /// the diagonal and skew-symmetric off it, S_nk = −√((n+½)(k+½)) below. The eigenvectors V of the Hermitian −i·S
    /// have length 1 and a positive real first component.
    pub fn new(modes: usize) -> Self {
        let n = 2 * modes;
        let p: Vec<f64> = (0..n).map(|i| (i as f64 + 0.5).sqrt()).collect();
        // x + i·y is an eigenvector of −i·K, K real and skew, where (x, y) is one of [[0, K], [−K, 0]]. That matrix is
        // symmetric, and has each eigenvalue twice: i·(x + i·y) is an eigenvector as well.
        let mut matrix = vec![0.0; 4 * n * n];
        for row in 0..n {
            for column in 0..row {
                let entry = -p[row] * p[column];
                for (i, j, k) in [(row, column, entry), (column, row, -entry)] {
                    matrix[i * 2 * n + n + j] = k;
                    matrix[(n + i) * 2 * n + j] = -k;
                }
            }
        }
        let pairs = symmetric_eigenpairs(matrix, 2 * n);
        let mut out = Self { frequencies: vec![], p: vec![], b: vec![] };
        for (value, vector) in pairs.iter().step_by(2).take(modes) {
            let (x, y) = vector.split_at(n);
            let length = x[0].hypot(y[0]);
            let phase = [x[0] / length, -y[0] / length];
            // V*·P: the conjugate of the turned vector, times P
            let re: f64 = (0..n).map(|i| (x[i] * phase[0] - y[i] * phase[1]) * p[i]).sum();
            let im: f64 = (0..n).map(|i| -(x[i] * phase[1] + y[i] * phase[0]) * p[i]).sum();
            out.frequencies.push(*value);
            out.p.push([re, im]);
            out.b.push([re, im].map(|v| v * 2f64.sqrt())); // B = √2·P
        }
        out
    }
}

/// Eigenvalues, ascending, and eigenvectors of length 1 of a symmetric matrix, row-major `[n, n]`, by Jacobi's
/// rotations (Golub & Van Loan, Matrix Computations, section 8.5).
fn symmetric_eigenpairs(mut a: Vec<f64>, n: usize) -> Vec<(f64, Vec<f64>)> {
    let size: f64 = a.iter().map(|v| v * v).sum();
    let mut vectors: Vec<Vec<f64>> = (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    // Convergence is quadratic: a few rounds suffice; the limit guards against divergence.
    for _ in 0..50 {
        let off: f64 = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i * n + j].powi(2)).sum();
        if off <= 1e-32 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                let entry = a[p * n + q];
                if entry == 0.0 {
                    continue;
                }
                let tau = (a[q * n + q] - a[p * n + p]) / (2.0 * entry);
                let t = if tau >= 0.0 { 1.0 } else { -1.0 } / (tau.abs() + tau.hypot(1.0));
                let cos = 1.0 / t.hypot(1.0);
                let sin = t * cos;
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    (a[k * n + p], a[k * n + q]) = (cos * x - sin * y, sin * x + cos * y);
                }
                for k in 0..n {
                    let (x, y) = (a[p * n + k], a[q * n + k]);
                    (a[p * n + k], a[q * n + k]) = (cos * x - sin * y, sin * x + cos * y);
                    let (x, y) = (vectors[p][k], vectors[q][k]);
                    (vectors[p][k], vectors[q][k]) = (cos * x - sin * y, sin * x + cos * y);
                }
            }
        }
    }
    let mut pairs: Vec<(f64, Vec<f64>)> = vectors.into_iter().enumerate().map(|(i, v)| (a[i * n + i], v)).collect();
    pairs.sort_by(|x, y| x.0.total_cmp(&y.0));
    pairs
}
