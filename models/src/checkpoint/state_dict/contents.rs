//! The tensors of a file of any kind and their places in it; and why a file cannot be read.

use crate::checkpoint::weights::{Weight, WeightError, numbers};
use safetensors::tensor::Dtype;
use std::path::Path;

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct View {
    /// The index of its part in the file.
    pub place: usize,
    pub dtype: Dtype,
    /// In elements.
    pub offset: usize,
    pub stride: Vec<usize>,
}

/// A tensor of a file.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The keys that lead to it, joined by dots.
    pub name: String,
    /// The number of its container.
    pub container: usize,
    pub shape: Vec<usize>,
    /// Its place, or the unsupported kind of tensor.
    pub view: Result<View, String>,
    /// A second name of another tensor, only mentioned in the file.
    pub alias: bool,
}

/// A part of a file with the numbers of one or more tensors.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Range {
        start: u64,
        bytes: u64,
    },
    /// A member of a zip archive.
    Member(usize),
    /// A member missing from the archive.
    Missing(String),
}

/// The contents of a file.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub entries: Vec<Entry>,
    /// Expressions of Python, as `['model']`, behind what `torch.load` gives.
    pub containers: Vec<String>,
    pub places: Vec<Place>,
    pub big_endian: bool,
    /// Whether `torch.save` wrote it.
    pub is_torch: bool,
    /// Whole numbers beside the tensors, such as the epoch.
    pub numbers: Vec<(String, i64)>,
    /// Second names: (name, name of the tensor).
    pub aliases: Vec<(String, String)>,
    /// The tensors that equal another one without being tied to it.
    pub untied: Vec<String>,
}

/// Why a file cannot be read, and what to do.
#[derive(Debug)]
pub(crate) struct Trouble {
    reason: String,
    hint: String,
}

impl Trouble {
    /// A damaged file.
    pub fn damaged(reason: impl Into<String>) -> Self {
        let hint = "the file is damaged: copy or download it again, or use another checkpoint of the run";
        Self { reason: reason.into(), hint: hint.into() }
    }

    /// A file of another kind.
    pub fn foreign(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: hint.into() }
    }

    pub(super) fn at(self, path: &Path) -> WeightError {
        WeightError::Damaged { path: path.into(), reason: self.reason, hint: self.hint }
    }
}

impl View {
    /// The tensor's numbers, row-major.
    pub(super) fn gather(&self, shape: &[usize], storage: &[u8], big_endian: bool) -> Result<Weight, String> {
        let Self { dtype, offset, stride, .. } = self;
        let size = dtype.bitsize() / 8;
        let stored = storage.len().checked_div(size).ok_or_else(|| format!("numbers of type {dtype:?}"))?;
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= stored);
        let last = shape.iter().zip(stride).try_fold(*offset, |at, (&d, &s)| {
            let reach = d.saturating_sub(1).checked_mul(s)?;
            at.checked_add(reach)
        });
        let (Some(elements), Some(last)) = (elements, last) else { return Err("its size is absurd".into()) };
        if elements > 0 && last >= stored {
            return Err(format!("it reaches to element {last} of a storage of {stored}"));
        }
        let mut bytes = Vec::with_capacity(elements * size);
        // A row-major view is one run of elements; others are taken one by one.
        let run =
            if elements > 0 && last - offset == elements - 1 && is_row_major(shape, stride) { elements } else { 1 };
        let mut place = vec![0; shape.len()]; // counts through the shape, the last axis fastest
        for _ in 0..elements / run {
            let at = offset + place.iter().zip(stride).map(|(i, s)| i * s).sum::<usize>();
            bytes.extend_from_slice(&storage[at * size..(at + run) * size]);
            for (axis, i) in place.iter_mut().enumerate().rev() {
                *i += 1;
                if *i < shape[axis] {
                    break;
                }
                *i = 0;
            }
        }
        if big_endian {
            bytes.chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
        Ok(Weight { shape: shape.to_vec(), values: numbers(*dtype, &bytes)? })
    }
}

fn is_row_major(shape: &[usize], stride: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(stride).rev().all(|(&d, &s)| {
        let fits = d == 1 || s == expected;
        expected *= d;
        fits
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn views_are_gathered_by_offset_and_stride() {
        let view = |offset, shape: &[usize], stride: &[usize]| {
            let view = View { place: 0, dtype: Dtype::U8, offset, stride: stride.to_vec() };
            view.gather(shape, &[0, 1, 2, 3, 4, 5], false)
        };
        assert_eq!(view(0, &[2, 3], &[3, 1]).unwrap().values, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(view(0, &[3, 2], &[1, 3]).unwrap().values, [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(view(1, &[2, 2], &[3, 1]).unwrap().values, [1.0, 2.0, 4.0, 5.0]);
        assert_eq!(view(0, &[2, 2], &[1, 1]).unwrap().values, [0.0, 1.0, 1.0, 2.0]);
        assert_eq!(view(0, &[1, 2, 1], &[9, 1, 7]).unwrap().values, [0.0, 1.0]);
        assert_eq!(view(4, &[2], &[1]).unwrap().values, [4.0, 5.0]);
        assert_eq!(view(5, &[], &[]).unwrap().values, [5.0]);
        assert!(view(9, &[0], &[1]).unwrap().values.is_empty());
        assert!(view(5, &[2], &[1]).is_err());
        assert!(view(0, &[7], &[0]).is_err());
        assert!(view(0, &[usize::MAX, 2], &[1, 1]).is_err());
        assert!(view(usize::MAX, &[2], &[1]).is_err());
        let big = View { place: 0, dtype: Dtype::I16, offset: 1, stride: vec![1] };
        assert_eq!(big.gather(&[2], &[9, 9, 1, 0, 0, 2], true).unwrap().values, [256.0, 2.0]);
    }
}
