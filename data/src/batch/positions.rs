use crate::{DataError, ExampleRef, PAD, Vocabulary, stream_rng, suggest};
use rand::RngExt;
use rand::seq::index;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// The helper token that attention sees, unlike `<pad>`; neither of the two consumes a position.
pub const BLANK: &str = "<blk>";

/// How the positions of an example are made, arXiv 2405.20131.
///
/// With n tokens other than `<pad>` and `<blk>`, the table size P and E = n + 1, there are the effective positions
/// e_0 … e_n:
///
/// | scheme | e_j | kind |
/// |---|---|---|
/// | `none` | j | integers |
/// | `shift` | s + j, one s per example, uniform on 0..=P−E | integers |
/// | `randomized` | the j-th smallest of E distinct draws from 0..P (Ruoss et al., arXiv 2305.16843) | integers |
/// | `scaler+shift` | (s + j) / P, s as in `shift` | scalars |
/// | `zooming` | (j + 1) / E | scalars |
///
/// Every token gets the next one, but a helper token (`<pad>`, `<blk>`) shares that of the token after it, hence the
/// spare e_n. Padding on the right gets 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Augmentation {
    /// Positions count from 0.
    #[default]
    None,
    /// Positions count from a random start.
    Shift,
    /// Positions are a random increasing sequence.
    Randomized,
    /// Fractions of the position table, from a random start.
    #[serde(rename = "scaler+shift")]
    ScalerShift,
    /// Fractions of the sequence, from 1/E to at most 1.
    Zooming,
}

impl Augmentation {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::None, Self::Shift, Self::Randomized, Self::ScalerShift, Self::Zooming];

    /// The name in configs and model metadata.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Shift => "shift",
            Self::Randomized => "randomized",
            Self::ScalerShift => "scaler+shift",
            Self::Zooming => "zooming",
        }
    }

    /// Whether the same example gets other positions in every draw.
    pub fn is_random(self) -> bool {
        matches!(self, Self::Shift | Self::Randomized | Self::ScalerShift)
    }

    /// Whether positions are fractions rather than integers.
    pub fn is_scalar(self) -> bool {
        matches!(self, Self::ScalerShift | Self::Zooming)
    }

    /// Whether a token's position is the same regardless of the sequence's length.
    pub fn is_prefix_stable(self) -> bool {
        self == Self::None
    }
}

impl FromStr for Augmentation {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        Self::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| DataError::UnknownAugmentation {
            name: name.to_owned(),
            nearest: suggest::nearest(name, Self::ALL.map(Self::name)).map(str::to_owned),
        })
    }
}

/// Positions of a batch, row-major `[batch, seq]`.
#[derive(Debug, Clone, PartialEq)]
pub enum PositionIds {
    /// Indices, for tables, rotary and sinusoidal embeddings.
    Integers(Vec<i64>),
    /// Fractions in [0, 1], for scalar embeddings.
    Scalars(Vec<f32>),
}

impl PositionIds {
    /// The integers, if they are.
    pub fn as_integers(&self) -> Option<&[i64]> {
        match self {
            Self::Integers(ids) => Some(ids),
            Self::Scalars(_) => None,
        }
    }

    /// The scalars, if they are.
    pub fn as_scalars(&self) -> Option<&[f32]> {
        match self {
            Self::Integers(_) => None,
            Self::Scalars(values) => Some(values),
        }
    }
}

impl Default for PositionIds {
    fn default() -> Self {
        Self::Integers(vec![])
    }
}

/// An [`Augmentation`] with everything that its draws depend on: the positions of row r are a function of
/// (`seed`, `draw`, r), regardless of the machine, the threads and earlier draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionSampling {
    /// The scheme.
    pub augmentation: Augmentation,
    /// P: integer positions are drawn below this. Schemes without draws ignore it.
    pub max_position_embeddings: usize,
    /// The run's seed.
    pub seed: u64,
    /// The training step, or the pass over an evaluation set; below 2³².
    pub draw: u64,
}

impl PositionSampling {
    /// Positions 0, 1, 2 …
    pub const SEQUENTIAL: Self =
        Self { augmentation: Augmentation::None, max_position_embeddings: 0, seed: 0, draw: 0 };

    /// Zeros for a whole batch of `places` positions, of the scheme's kind.
    pub(crate) fn zeros(&self, places: usize) -> PositionIds {
        match self.augmentation.is_scalar() {
            true => PositionIds::Scalars(vec![0.0; places]),
            false => PositionIds::Integers(vec![0; places]),
        }
    }

    /// Writes the positions of `example` into `out` from index `at` on; `row` (below 2³²) selects the draw.
    pub(crate) fn fill(
        &self,
        example: ExampleRef<'_>,
        helpers: &HelperTokens,
        row: u64,
        out: &mut PositionIds,
        at: usize,
    ) -> Result<(), DataError> {
        let effective = example.input_ids.iter().filter(|id| !helpers.contains(**id)).count() + 1; // E
        let p = self.max_position_embeddings;
        if self.augmentation.is_random() && effective > p {
            return Err(DataError::PositionRange {
                augmentation: self.augmentation.name(),
                tokens: effective - 1,
                max_position_embeddings: p,
            });
        }
        let mut rng = stream_rng(self.seed, "positions", self.draw << 32 | row);
        let tokens = example.input_ids;
        match out {
            PositionIds::Integers(ids) => {
                let slots = ids[at..].iter_mut();
                match self.augmentation {
                    Augmentation::Randomized => {
                        let mut drawn = index::sample(&mut rng, p, effective).into_vec();
                        drawn.sort_unstable();
                        slots.zip(ranks(tokens, helpers)).for_each(|(id, j)| *id = drawn[j] as i64);
                    }
                    Augmentation::Shift => {
                        let start = rng.random_range(0..=p - effective);
                        slots.zip(ranks(tokens, helpers)).for_each(|(id, j)| *id = (start + j) as i64);
                    }
                    _ => slots.zip(ranks(tokens, helpers)).for_each(|(id, j)| *id = j as i64),
                }
            }
            PositionIds::Scalars(values) => {
                let (start, whole) = match self.augmentation {
                    Augmentation::ScalerShift => (rng.random_range(0..=p - effective), p),
                    _ => (1, effective),
                };
                let slots = values[at..].iter_mut();
                slots.zip(ranks(tokens, helpers)).for_each(|(v, j)| *v = (start + j) as f32 / whole as f32);
            }
        }
        Ok(())
    }
}

/// The j of every token's e_j: the number of tokens before it that are not helpers.
fn ranks<'a>(tokens: &'a [u16], helpers: &'a HelperTokens) -> impl Iterator<Item = usize> + 'a {
    tokens.iter().scan(0, |j, id| {
        let rank = *j;
        *j += usize::from(!helpers.contains(*id));
        Some(rank)
    })
}

/// The ids of `<pad>` and `<blk>`, where the vocabulary has them.
pub(crate) struct HelperTokens {
    pub pad: Option<u16>,
    pub blank: Option<u16>,
}

impl HelperTokens {
    pub fn of(vocabulary: &Vocabulary) -> Self {
        Self { pad: vocabulary.id(PAD), blank: vocabulary.id(BLANK) }
    }

    pub fn contains(&self, id: u16) -> bool {
        self.pad == Some(id) || self.blank == Some(id)
    }
}
