//! Random balanced words of a probabilistic grammar, of a given length.

use rand::{Rng, RngExt};

/// The grammar S → (S) with probability p | SS with q | ε otherwise, in which a part longer than m pairs is replaced by
/// the empty word, as the generator of Bhattamishra et al. (arXiv 2009.11264) does.
///
/// A word is a sequence of words in brackets, whose number has the generating function G(z) = (1 − √((1 − 2qx)² −
/// 4pqz)) / 2q, where x is the probability of the empty word. So words are Galton–Watson trees.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Grammar {
    p: f64,
    q: f64,
    /// The probability of the empty word.
    x: f64,
    /// How many words in brackets follow one another: probabilities up to each number, with a mean of one, which leaves
    /// words of one length as they are.
    children: Vec<f64>,
    /// The same in units of 2⁻³², for fast draws.
    cuts: Vec<u32>,
}

impl Grammar {
    /// The grammar of words of at most `pairs` pairs. 0 < p, 0 ≤ q < 1 and p + q ≤ 1.
    pub fn new(p: f64, q: f64, pairs: usize) -> Self {
        let (mut low, mut high) = (0.0, if q > 0.0 { (0.5 / q).min(1.0) } else { 1.0 });
        for _ in 0..50 {
            let x = (low + high) / 2.0;
            match probabilities(p, q, x, pairs, 2.0).1 < 1.0 {
                true => low = x,
                false => high = x,
            }
        }
        let x = low;
        let root = 1.0 - 2.0 * q * x;
        let c = root * root;
        // at the tilt θ, the mean is one where √(c − 4pqθ) = 1 − √(1 − c)
        let s = 1.0 - (1.0 - c).max(0.0).sqrt();
        let theta = if q > 0.0 { (c - s * s) / (4.0 * p * q) } else { 1.0 };
        let mut weights = vec![x, p * theta / root];
        while weights.len() < 200 && q > 0.0 {
            let k = weights.len() as f64 - 1.0;
            weights.push(weights[weights.len() - 1] * (4.0 * p * q * theta / c) * (k - 0.5) / (k + 1.0));
        }
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let children = weights.iter().map(|weight| {
            sum += weight / total;
            sum
        });
        let children: Vec<f64> = children.collect();
        let cuts = children.iter().map(|to| (to * f64::from(u32::MAX)) as u32).collect();
        Self { p, q, x, children, cuts }
    }

    /// The probabilities of 0 ..= `pairs` pairs.
    pub fn lengths(&self, pairs: usize) -> Vec<f64> {
        probabilities(self.p, self.q, self.x, pairs, f64::INFINITY).0
    }

    fn weight(&self, k: usize) -> f64 {
        match (self.children.get(k), k.checked_sub(1)) {
            (Some(to), Some(before)) => to - self.children[before],
            (Some(to), None) => *to,
            (None, _) => 0.0,
        }
    }

    /// A word of `pairs` pairs, as whether each bracket opens.
    ///
    /// A tree of n nodes, here with a root around the word, is drawn by its numbers of children: n independent ones
    /// whose sum is n − 1, turned so that they are those of a tree from the root on (Dvoretzky and Motzkin's cycle
    /// lemma). The last of them is given by the others; it is accepted in proportion to its probability.
    pub fn word(&self, pairs: usize, rng: &mut impl Rng) -> Vec<bool> {
        if self.q == 0.0 {
            return (0..2 * pairs).map(|i| i < pairs).collect();
        }
        let n = pairs + 1;
        let most = self.weight(0).max(self.weight(1));
        let mut children: Vec<u32> = Vec::with_capacity(n);
        loop {
            children.clear();
            let mut left = pairs;
            while children.len() < pairs {
                let u: u32 = rng.random();
                let k = self.cuts.iter().position(|to| u < *to).unwrap_or(self.cuts.len() - 1);
                if k > left {
                    break;
                }
                left -= k;
                children.push(k as u32);
            }
            if children.len() == pairs && rng.random::<f64>() * most < self.weight(left) {
                children.push(left as u32);
                break;
            }
        }
        // the tree begins behind the first place where the sum of (children − 1) is the least
        let (mut sum, mut least, mut begin) = (0i64, 0, 0);
        for (i, k) in children.iter().enumerate() {
            sum += i64::from(*k) - 1;
            if sum < least {
                (least, begin) = (sum, i + 1);
            }
        }
        children.rotate_left(begin % n);
        let mut word = Vec::with_capacity(2 * pairs);
        let mut open: Vec<u32> = Vec::with_capacity(64); // children that each node still has to come
        for (i, k) in children.into_iter().enumerate() {
            if i > 0 {
                word.push(true);
            }
            open.push(k);
            while let Some(last) = open.last_mut() {
                if *last > 0 {
                    *last -= 1;
                    break;
                }
                open.pop();
                if !open.is_empty() {
                    word.push(false);
                }
            }
        }
        word
    }
}

/// The probabilities of words of 0 ..= `pairs` pairs where the empty one has x, and their sum, which stops at `limit`.
///
/// With F = x + f_1 z + …: F = pzF + qF² + x − qx², whose root satisfies a recurrence of two terms.
fn probabilities(p: f64, q: f64, x: f64, pairs: usize, limit: f64) -> (Vec<f64>, f64) {
    let root = 1.0 - 2.0 * q * x;
    let first = p * x / root;
    let mut f = vec![x, first, (p * first + q * first * first) / root];
    f.truncate(pairs + 1);
    let mut sum: f64 = f.iter().sum();
    while f.len() <= pairs && sum < limit {
        let m = (f.len() - 1) as f64;
        let (a, b) = (f[f.len() - 1], f[f.len() - 2]);
        let earlier = if f.len() == 3 { 0.0 } else { p * p * (m - 2.0) * b };
        let next = ((2.0 * p * (m - 0.5) * a - earlier) / (root * root * (m + 1.0))).max(0.0);
        f.push(next);
        sum += next;
    }
    (f, sum)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::stream_rng;
    use std::collections::HashMap;

    /// f_m by the grammar itself.
    fn convolved(p: f64, q: f64, x: f64, pairs: usize) -> Vec<f64> {
        let mut f = vec![x];
        for m in 1..=pairs {
            let both: f64 = (1..m).map(|i| f[i] * f[m - i]).sum();
            f.push((p * f[m - 1] + q * both) / (1.0 - 2.0 * q * x));
        }
        f
    }

    #[test]
    fn lengths_are_those_of_the_grammar() {
        for (p, q, pairs) in
            [(0.5, 0.25, 25), (0.5, 0.25, 75), (0.3, 0.2, 40), (0.6, 0.0, 12), (0.2, 0.6, 30), (0.5, 0.25, 1)]
        {
            let grammar = Grammar::new(p, q, pairs);
            let found = grammar.lengths(pairs);
            let expected = convolved(p, q, grammar.x, pairs);
            assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{p} {q} {pairs}");
            for (m, (a, b)) in found.iter().zip(&expected).enumerate() {
                assert!((a - b).abs() < 1e-9 * b.max(1e-12), "{p} {q} {pairs}: f_{m} is {a}, not {b}");
            }
        }
    }

    /// Words of one length by the grammar, each with its probability.
    fn words(p: f64, q: f64, f: &[f64], pairs: usize) -> HashMap<Vec<bool>, f64> {
        let mut all: Vec<HashMap<Vec<bool>, f64>> = vec![HashMap::from([(vec![], f[0])])];
        for m in 1..=pairs {
            let mut of: HashMap<Vec<bool>, f64> = HashMap::new();
            for (word, weight) in &all[m - 1] {
                *of.entry([&[true], &word[..], &[false]].concat()).or_default() += p * weight;
            }
            for i in 1..m {
                for (left, a) in &all[i] {
                    for (right, b) in &all[m - i] {
                        *of.entry([&left[..], &right[..]].concat()).or_default() += q * a * b;
                    }
                }
            }
            // ε on either side of SS
            of.values_mut().for_each(|weight| *weight /= 1.0 - 2.0 * q * f[0]);
            all.push(of);
        }
        all.pop().unwrap()
    }

    /// χ² at 10⁻³: 41 degrees of freedom, whose quantile is 74.7.
    #[test]
    fn words_of_one_length_have_the_probabilities_of_the_grammar() {
        let grammar = Grammar::new(0.5, 0.25, 25);
        let expected = words(0.5, 0.25, &grammar.lengths(5), 5);
        assert_eq!(expected.len(), 42);
        let total: f64 = expected.values().sum();
        let mut rng = stream_rng(1, "words", 0);
        let mut counts: HashMap<Vec<bool>, f64> = HashMap::new();
        for _ in 0..100_000 {
            *counts.entry(grammar.word(5, &mut rng)).or_default() += 1.0;
        }
        assert!(counts.keys().all(|word| expected.contains_key(word)));
        let chi2 = |(word, weight): (&Vec<bool>, &f64)| {
            let wanted = 100_000.0 * weight / total;
            (counts.get(word).copied().unwrap_or(0.0) - wanted).powi(2) / wanted
        };
        let chi2: f64 = expected.iter().map(chi2).sum();
        assert!(chi2 < 74.7, "{chi2}");
    }
}
