pub(crate) use crate::architecture::SHARED;
use crate::ops::SequenceOps;
use crate::{Model, ModelConfig};
use burn::module::ParamId;
use burn::tensor::{TensorData, bf16, f16};
use burn_store::{ApplyError, ModuleSnapshot, TensorSnapshot};
use data::stream_rng;
use rand::RngExt;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;

/// One parameter: row-major values, as in PyTorch's state dict.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    /// The shape, outermost axis first.
    pub shape: Vec<usize>,
    /// The values; as many as the shape says.
    pub values: Vec<f32>,
}

/// A model's parameters by their names in the original's checkpoints, for example `lstm.weight_ih_l0`, and its integer
/// buffers. A tensor with two names in a file appears once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Weights {
    tensors: BTreeMap<String, Weight>,
    integers: BTreeMap<String, usize>,
}

/// The key of a safetensors file's metadata under which a table is named that equals another and is not tied to it.
pub(crate) const UNTIED: &str = "untied";

/// Weights that cannot be read, or do not belong to the model.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// The file cannot be opened.
    #[error("cannot read the weights {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason the operating system gave.
        source: std::io::Error,
    },
    /// Neither a safetensors file nor one of `torch.save`, one that is damaged, or one with more than one model in it.
    #[error("cannot read the weights {}: {reason}\n  hint: {hint}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The kind of file found, or the problem.
        reason: String,
        /// The remedy.
        hint: String,
    },
    /// Readable, but not this model's.
    #[error("the weights do not fit the model: {}\n  hint: were they saved with another architecture or other sizes?", shortened(.0))]
    Mismatch(
        /// Every missing, extra and misshaped tensor.
        Vec<String>,
    ),
}

impl Weights {
    /// The parameters of `model`, copied to the CPU.
    pub fn of<B: SequenceOps>(model: &Model<B>) -> Result<Self, WeightError> {
        let mut tensors = BTreeMap::new();
        for snapshot in model.collect(None, None, true) {
            let name = checkpoint_name(&snapshot.full_path());
            let data = snapshot.to_data().map_err(|e| WeightError::Mismatch(vec![format!("{name}: {e:?}")]))?;
            let shape = data.shape.iter().copied().collect();
            tensors.insert(name, Weight { shape, values: data.iter::<f32>().collect() });
        }
        Ok(Self { tensors, integers: model.integers().collect() })
    }

    /// Puts the weights into `model`; it is an error unless every parameter fits. Buffers that the model does not need,
    /// such as a saved mask, are ignored.
    pub fn load_into<B: SequenceOps>(&self, model: &mut Model<B>) -> Result<(), WeightError> {
        let snapshots = model.collect(None, None, true);
        let paths: HashMap<String, String> =
            snapshots.iter().map(|s| (checkpoint_name(&s.full_path()), s.full_path())).collect();
        let snapshot = |(name, weight): (&str, &Weight)| {
            let path = paths.get(name).map_or(name, String::as_str).split('.').map(str::to_owned).collect();
            let data = TensorData::new(weight.values.clone(), with_axes(&weight.shape));
            TensorSnapshot::from_data(data, path, vec![], ParamId::new())
        };
        let result = model.apply(self.iter().map(snapshot).collect(), None, None, true);
        let shape = |s: &TensorSnapshot| (checkpoint_name(&s.full_path()), s.shape.as_slice().to_vec());
        let wanted: BTreeMap<String, Vec<usize>> = snapshots.iter().map(shape).collect();
        let integers: BTreeSet<String> = model.integers().map(|(name, _)| name).collect();
        let found = |name: &str| self.tensors.get(name).map(|weight| weight.shape.as_slice());
        // A second name is fine where the numbers agree.
        let is_second = |name: &str| SHARED.iter().any(|(s, n)| *s == name && self.get(s) == self.get(n));
        let extra = self.tensors.keys().filter(|name| !wanted.contains_key(*name) && !is_buffer(name));
        let extra: Vec<String> = extra.filter(|name| !is_second(name)).cloned().collect();
        let integer = |name: &str| self.integers.contains_key(name);
        let mut problems = mismatch(&wanted, &integers, found, integer, &extra);
        if problems.is_empty() {
            let other = |error: &ApplyError| !matches!(error, ApplyError::ShapeMismatch { .. });
            problems.extend(result.errors.iter().filter(|error| other(error)).map(ToString::to_string));
        }
        if !problems.is_empty() {
            return Err(WeightError::Mismatch(problems));
        }
        model.set_integers(&self.integers).map_err(|problem| WeightError::Mismatch(vec![problem]))
    }

    /// The tied tensors under their second names.
    fn second_names(&self) -> impl Iterator<Item = (&str, &Weight)> {
        let tied = |(second, name): (&'static str, &str)| {
            let weight = self.tensors.get(name)?;
            (!self.tensors.contains_key(second)).then_some((second, weight))
        };
        SHARED.iter().copied().filter_map(tied)
    }

    /// The parameter called `name`.
    pub fn get(&self, name: &str) -> Option<&Weight> {
        self.tensors.get(name)
    }

    /// The integer buffer called `name`.
    pub fn integer(&self, name: &str) -> Option<usize> {
        self.integers.get(name).copied()
    }

    /// The integer buffers by name.
    pub fn integers(&self) -> impl Iterator<Item = (&str, usize)> {
        self.integers.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// The same weights with these integer buffers.
    pub fn with_integers(self, integers: impl IntoIterator<Item = (String, usize)>) -> Self {
        Self { integers: integers.into_iter().collect(), ..self }
    }

    /// Names and parameters, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Weight)> {
        self.tensors.iter().map(|(name, weight)| (name.as_str(), weight))
    }

    /// The same weights, each changed in its last bit, up or down at random: the effect of rounding alone.
    pub fn nudged(&self, seed: u64) -> Self {
        let mut rng = stream_rng(seed, "last bits", 0);
        let mut nudge = |v: &mut f32| if rng.random::<bool>() { v.next_up() } else { v.next_down() };
        let mut out = self.clone();
        out.tensors.values_mut().flat_map(|w| &mut w.values).for_each(|v| *v = nudge(v));
        out
    }

    /// How many numbers the parameters have in all.
    pub fn num_parameters(&self) -> usize {
        self.tensors.values().map(|w| w.values.len()).sum()
    }

    /// The safetensors file with these weights: 32-bit floats, and 64-bit integers without axes.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, WeightError> {
        let failed = |e: safetensors::SafeTensorError| WeightError::Mismatch(vec![e.to_string()]);
        let bytes = |w: &Weight| w.values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let tensor = |(name, w): (&str, &Weight)| (name.to_owned(), Dtype::F32, w.shape.clone(), bytes(w));
        let tensors = self.iter().chain(self.second_names()).map(tensor);
        let integers = self.integers.iter();
        let integers = integers.map(|(name, v)| (name.clone(), Dtype::I64, vec![], (*v as i64).to_le_bytes().to_vec()));
        let buffers: Vec<_> = tensors.chain(integers).collect();
        let views = buffers.iter().map(|(name, dtype, shape, bytes)| {
            Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).map_err(failed)?))
        });
        let views: Vec<_> = views.collect::<Result<_, WeightError>>()?;
        let untied =
            SHARED.iter().find(|(second, name)| self.get(name).is_some() && self.get(second) == self.get(name));
        let metadata = untied.map(|(second, _)| HashMap::from([(UNTIED.to_owned(), (*second).to_owned())]));
        safetensors::serialize(views, metadata).map_err(failed)
    }
}

/// Whether numbers of a type are those of parameters.
pub(crate) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Little-endian numbers of any common type, as 32-bit floats.
pub(crate) fn numbers(dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, String> {
    fn each<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        bytes.as_chunks::<N>().0.iter().map(|b| read(*b)).collect()
    }
    Ok(match dtype {
        Dtype::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
        Dtype::F32 => each(bytes, f32::from_le_bytes),
        Dtype::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::U64 => each(bytes, |b| u64::from_le_bytes(b) as f32),
        Dtype::U32 => each(bytes, |b| u32::from_le_bytes(b) as f32),
        Dtype::U16 => each(bytes, |b| u16::from_le_bytes(b).into()),
        Dtype::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
        Dtype::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
        Dtype::I16 => each(bytes, |b| i16::from_le_bytes(b).into()),
        Dtype::I8 => each(bytes, |b| i8::from_le_bytes(b).into()),
        Dtype::U8 | Dtype::BOOL => each(bytes, |[b]| b.into()),
        other => return Err(format!("numbers of type {other:?} cannot be read")),
    })
}

impl FromIterator<(String, Weight)> for Weights {
    fn from_iter<I: IntoIterator<Item = (String, Weight)>>(parameters: I) -> Self {
        Self { tensors: parameters.into_iter().collect(), integers: BTreeMap::new() }
    }
}

/// Every missing, extra and misshaped tensor, each once; an extra one with the name that may be meant.
pub(crate) fn mismatch<'a>(
    wanted: &BTreeMap<String, Vec<usize>>,
    integers: &BTreeSet<String>,
    found: impl Fn(&str) -> Option<&'a [usize]>,
    integer: impl Fn(&str) -> bool,
    extra: &[String],
) -> Vec<String> {
    let floats = wanted.keys().filter(|name| found(name).is_none());
    let missing: Vec<&String> = floats.chain(integers.iter().filter(|name| !integer(name))).collect();
    let mut problems: Vec<String> = missing.iter().map(|name| format!("{name} is missing")).collect();
    for (i, name) in extra.iter().enumerate() {
        // A long list is cut: nobody reads all of it.
        let close = if i < SHOWN { nearest(name, &missing) } else { None };
        let meant = close.map(|close| format!(" (is it {close}?)")).unwrap_or_default();
        problems.push(format!("{name} is not in the model{meant}"));
    }
    for (name, expected) in wanted {
        if let Some(shape) = found(name).filter(|shape| with_axes(shape) != *expected) {
            problems.push(format!("{name} is {shape:?}, but the model's is {expected:?}"));
        }
    }
    problems
}

/// The missing name that an extra one resembles most.
fn nearest<'a>(name: &str, missing: &[&'a String]) -> Option<&'a str> {
    const CLOSE: f64 = 0.5;
    let alike = |other: &&'a String| strsim::normalized_levenshtein(name, other);
    let missing = missing.iter().filter(|other| name.len().max(other.len()) < 200);
    let scored = missing.map(|other| (alike(other), other.as_str())).filter(|(score, _)| *score >= CLOSE);
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, other)| other)
}

/// The most problems of each kind that are printed.
const SHOWN: usize = 40;

fn shortened(problems: &[String]) -> String {
    let mut kinds = [("missing", 0), ("not in the model", 0), ("", 0)];
    let mut shown = Vec::new();
    for problem in problems {
        for (kind, count) in &mut kinds {
            if problem.contains(*kind) {
                *count += 1;
                if *count <= SHOWN {
                    shown.push(problem.clone());
                }
                break;
            }
        }
    }
    if shown.len() < problems.len() {
        shown.push(format!("… ({} in all)", problems.len()));
    }
    shown.join("; ")
}

/// The shape as models have it, in which a number without axes has one.
pub(crate) fn with_axes(shape: &[usize]) -> Vec<usize> {
    if shape.is_empty() { vec![1] } else { shape.to_vec() }
}

/// Whether a float tensor of a checkpoint is not a parameter but a buffer that PyTorch models save, or a parameter that
/// takes no part in anything.
pub(crate) fn is_buffer(name: &str) -> bool {
    let unused = || ModelConfig::KINDS.iter().any(|kind| (kind.unused)().contains(&name));
    ["sine.pe", "attn.bias", "attn.masked_bias", "inv_freq"].iter().any(|buffer| name.ends_with(buffer)) || unused()
}

const RECURRENT: [&str; 4] = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"];

/// Module paths are checkpoint names, except that PyTorch appends a recurrent layer's number to the parameter:
/// `lstm.0.weight_ih` is called `lstm.weight_ih_l0`. The parameters of a Transformer's positional scheme have no
/// prefix, or are in the attention of the layer that they are of.
pub(crate) fn checkpoint_name(path: &str) -> String {
    if let Some((layer, name)) = path.strip_prefix("positions.layers.").and_then(|path| path.split_once('.')) {
        return format!("h.{layer}.attn.{name}");
    }
    let path = path.strip_prefix("positions.").unwrap_or(path);
    let parts: Vec<&str> = path.split('.').collect();
    match parts[..] {
        [module @ ("lstm" | "gru"), layer, kind] if RECURRENT.contains(&kind) => format!("{module}.{kind}_l{layer}"),
        _ => path.to_owned(),
    }
}
