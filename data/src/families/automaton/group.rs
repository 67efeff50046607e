//! Finite groups by name, or as the permutations that some permutations generate.
//!
//! Elements are numbered as in the word problems of Merrill et al. (arXiv 2404.08819): permutations as image lists in
//! lexicographic order, so that 0 is the identity; Z_n by exponent; in G × H, element (g, h) is g·|H| + h.

use std::collections::{BTreeSet, VecDeque};

/// The largest group: its table has a row and a column for each element.
const MOST: usize = 1000;

/// A finite group as a multiplication table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// How many elements it has.
    pub order: usize,
    /// `[g·order + h]` is g·h; for permutations, (g·h)(x) = g(h(x)).
    pub product: Vec<u16>,
    /// The elements that it was generated from; all of them where it has a name.
    pub generators: Vec<u16>,
}

impl Group {
    /// `S5`, `A5`, `Z60`, or a product of such groups: `A4xZ5`.
    pub fn named(name: &str) -> Result<Self, String> {
        let wrong =
            |why: String| format!("group = \"{name}\": {why}\n  hint: write S5, A5, Z60 or a product such as A4xZ5");
        let mut product: Option<Self> = None;
        for factor in name.split(['x', '×', '*']).map(|factor| factor.trim_matches(['_', ' '])) {
            let (kind, size) = factor.split_at(factor.len().min(1));
            let n: usize =
                size.trim_start_matches('_').parse().map_err(|_| wrong(format!("`{factor}` is no group")))?;
            let range = match kind {
                "Z" => 1..=MOST,
                "S" | "A" => 1..=6,
                _ => return Err(wrong(format!("`{factor}` is no group"))),
            };
            if !range.contains(&n) {
                return Err(wrong(format!("{n} is not between 1 and {}", range.end())));
            }
            let factor = match kind {
                "S" => Self::of_permutations(permutations(n, |_| true)),
                "A" => Self::of_permutations(permutations(n, is_even)),
                _ => Self::cyclic(n),
            };
            product = Some(match product {
                None => factor,
                Some(before) if before.order * factor.order > MOST => {
                    return Err(wrong(format!("it has {} elements, more than {MOST}", before.order * factor.order)));
                }
                Some(before) => before.times(&factor),
            });
        }
        product.ok_or_else(|| wrong("it is empty".into()))
    }

    /// The group that permutations generate; each is a list of the images of 1..n.
    pub fn generated(generators: &[Vec<u32>]) -> Result<Self, String> {
        let wrong = |why: String| {
            format!("generators: {why}\n  hint: write image lists of 1..n, such as [[2, 1, 3], [2, 3, 1]]")
        };
        let points = generators.first().map_or(0, Vec::len);
        if points == 0 || points > 255 {
            return Err(wrong(format!("{points} points are not between 1 and 255")));
        }
        let permutation = |images: &Vec<u32>| {
            let mut sorted = images.clone();
            sorted.sort_unstable();
            let whole = images.len() == points && sorted.iter().copied().eq(1..=points as u32);
            whole.then(|| images.iter().map(|image| (image - 1) as u8).collect::<Vec<u8>>())
        };
        let of = generators.iter().map(|images| {
            permutation(images).ok_or_else(|| wrong(format!("{images:?} is no permutation of 1..{points}")))
        });
        let of: Vec<Vec<u8>> = of.collect::<Result<_, _>>()?;
        let identity: Vec<u8> = (0..points as u8).collect();
        let mut found = BTreeSet::from([identity.clone()]);
        let mut open = VecDeque::from([identity]);
        while let Some(element) = open.pop_front() {
            for next in of.iter().map(|generator| compose(&element, generator)) {
                if found.insert(next.clone()) {
                    open.push_back(next);
                }
            }
            if found.len() > MOST {
                return Err(wrong(format!("the group that they generate has more than {MOST} elements")));
            }
        }
        let elements: Vec<Vec<u8>> = found.into_iter().collect();
        let index = |generator| elements.binary_search(generator).unwrap_or(0) as u16;
        let mut generators: Vec<u16> = of.iter().map(index).collect();
        generators.sort_unstable();
        generators.dedup();
        Ok(Self { generators, ..Self::of_permutations(elements) })
    }

    /// A set of permutations that is closed, in lexicographic order.
    fn of_permutations(elements: Vec<Vec<u8>>) -> Self {
        let index = |element: &Vec<u8>| elements.binary_search(element).unwrap_or(0) as u16;
        let pairs = elements.iter().flat_map(|g| elements.iter().map(move |h| compose(g, h)));
        Self::all(elements.len(), pairs.map(|gh| index(&gh)).collect())
    }

    fn cyclic(n: usize) -> Self {
        Self::all(n, (0..n).flat_map(|a| (0..n).map(move |b| ((a + b) % n) as u16)).collect())
    }

    fn all(order: usize, product: Vec<u16>) -> Self {
        Self { order, product, generators: (0..order as u16).collect() }
    }

    /// The direct product.
    fn times(&self, other: &Self) -> Self {
        let (m, n) = (self.order, other.order);
        let pairs = || (0..m).flat_map(|g| (0..n).map(move |h| (g, h)));
        let product = pairs().flat_map(|(a, b)| {
            pairs().map(move |(c, d)| self.product[a * m + c] * n as u16 + other.product[b * n + d])
        });
        Self::all(m * n, product.collect())
    }
}

/// (g·h)(x) = g(h(x)).
fn compose(g: &[u8], h: &[u8]) -> Vec<u8> {
    h.iter().map(|image| g[usize::from(*image)]).collect()
}

/// The permutations of 0..n in lexicographic order that are `wanted`.
fn permutations(n: usize, wanted: fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
    let mut found = vec![];
    let mut permutation: Vec<u8> = (0..n as u8).collect();
    loop {
        if wanted(&permutation) {
            found.push(permutation.clone());
        }
        // the next one: raise the last element that has a larger one behind it
        let Some(at) = (1..n).rev().find(|i| permutation[i - 1] < permutation[*i]) else { return found };
        let other = (at..n).rev().find(|i| permutation[*i] > permutation[at - 1]).unwrap_or(at);
        permutation.swap(at - 1, other);
        permutation[at..].reverse();
    }
}

fn is_even(permutation: &[u8]) -> bool {
    let inversions = |(i, image): (usize, &u8)| permutation[i + 1..].iter().filter(|later| *later < image).count();
    permutation.iter().enumerate().map(inversions).sum::<usize>().is_multiple_of(2)
}
