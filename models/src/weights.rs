use crate::Model;
use crate::ops::SequenceOps;
use crate::torch;
use burn::module::ParamId;
use burn::tensor::{TensorData, bf16, f16};
use burn_store::{ApplyError, ModuleSnapshot, TensorSnapshot};
use data::stream_rng;
use rand::RngExt;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One parameter: row-major values, as in PyTorch's state dict.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    /// The shape, outermost axis first.
    pub shape: Vec<usize>,
    /// The values; as many as the shape says.
    pub values: Vec<f32>,
}

/// A model's parameters by their names in the original's checkpoints, for example `lstm.weight_ih_l0`, and its integer
/// buffers. A tensor that files hold under two names is here once.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Weights {
    tensors: BTreeMap<String, Weight>,
    integers: BTreeMap<String, usize>,
}

/// Tensors that files hold a second time where a model ties them, as PyTorch saves shared ones: (second name, name).
const SHARED: [(&str, &str); 3] = [
    ("lm_head.weight", "backbone.embedding.weight"),
    ("lm_head.weight", "wte.weight"),
    ("decoder.weight", "encoder.weight"),
];

/// Weights that cannot be read, or that are not those of the model they are meant for.
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
    /// Neither a safetensors file nor a state dict of `torch.save`, or a damaged one.
    #[error(
        "cannot read the weights {}: {reason}\n  \
         hint: the file is damaged, or neither safetensors nor a state dict of torch.save; use another checkpoint of the run",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// Readable, but not this model's.
    #[error("the weights do not fit the model: {}\n  hint: were they saved with another architecture or other sizes?", .0.join("; "))]
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

    /// Puts the weights into `model`; either every parameter fits or nothing is claimed to. Buffers that the model can do
    /// without, such as a saved mask, are passed over.
    pub fn load_into<B: SequenceOps>(&self, model: &mut Model<B>) -> Result<(), WeightError> {
        let snapshot = |(name, weight): (&str, &Weight)| {
            let path = module_path(name).split('.').map(str::to_owned).collect();
            let data = TensorData::new(weight.values.clone(), weight.shape.clone());
            TensorSnapshot::from_data(data, path, vec![], ParamId::new())
        };
        let result = model.apply(self.iter().map(snapshot).collect(), None, None, true);
        let missing = result.missing.iter().map(|(path, _)| format!("{} is missing", checkpoint_name(path)));
        let extra = result.unused.iter().map(|path| checkpoint_name(path));
        let extra = extra.filter(|name| !is_buffer(name)).map(|name| format!("{name} is not in the model"));
        let misfits = result.errors.iter().map(|error| match error {
            ApplyError::ShapeMismatch { path, expected, found } => {
                let (name, found, expected) = (checkpoint_name(path), found.as_slice(), expected.as_slice());
                format!("{name} is {found:?}, but the model's is {expected:?}")
            }
            other => other.to_string(),
        });
        let mut problems: Vec<String> = missing.chain(extra).chain(misfits).collect();
        let integers: BTreeMap<String, usize> = model.integers().collect();
        let absent = integers.keys().filter(|name| !self.integers.contains_key(*name));
        problems.extend(absent.map(|name| format!("{name} is missing")));
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
        SHARED.into_iter().filter_map(tied)
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

    /// The same weights, each changed in its last bit, up or down at random: what rounding alone may do to them.
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
        safetensors::serialize(views, None).map_err(failed)
    }

    /// Reads a safetensors file or a state dict of `torch.save`, of any type of numbers and from any device. The prefix
    /// that DeepSpeed puts before every name is left out, and integers with axes, which are no model's parameters.
    pub fn read(path: &Path) -> Result<Self, WeightError> {
        let bytes = std::fs::read(path).map_err(|source| WeightError::Io { path: path.into(), source })?;
        let damaged = |reason: String| WeightError::Damaged { path: path.into(), reason };
        let tensors = if bytes.starts_with(torch::MAGIC) { torch::read(&bytes) } else { read_safetensors(&bytes) };
        let (mut floats, mut integers) = (Vec::new(), Vec::new());
        for (name, dtype, weight) in tensors.map_err(damaged)? {
            let name = name.strip_prefix("_forward_module.").unwrap_or(&name).to_owned();
            if matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                floats.push((name, weight));
            } else if let [value] = weight.values[..] {
                integers.push((name, value as usize));
            }
        }
        Ok(floats.into_iter().collect::<Self>().with_integers(integers))
    }
}

fn read_safetensors(bytes: &[u8]) -> Result<Vec<(String, Dtype, Weight)>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let tensor = |(name, view): (&str, TensorView<'_>)| {
        let values = numbers(view.dtype(), view.data()).map_err(|e| format!("{name}: {e}"))?;
        Ok((name.to_owned(), view.dtype(), Weight { shape: view.shape().to_vec(), values }))
    };
    file.iter().map(tensor).collect()
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
        let mut tensors: BTreeMap<String, Weight> = parameters.into_iter().collect();
        for (second, name) in SHARED {
            if tensors.contains_key(name) && tensors.get(second) == tensors.get(name) {
                tensors.remove(second);
            }
        }
        Self { tensors, integers: BTreeMap::new() }
    }
}

/// Whether a float tensor of a checkpoint is nothing that is trained, but a buffer that PyTorch models save.
fn is_buffer(name: &str) -> bool {
    ["sine.pe", "attn.bias", "attn.masked_bias", "inv_freq"].iter().any(|buffer| name.ends_with(buffer))
}

const RECURRENT: [&str; 4] = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"];

/// Module paths are checkpoint names, except that PyTorch appends a recurrent layer's number to the parameter:
/// `lstm.0.weight_ih` is called `lstm.weight_ih_l0`.
pub(crate) fn checkpoint_name(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    match parts[..] {
        [module @ ("lstm" | "gru"), layer, kind] if RECURRENT.contains(&kind) => format!("{module}.{kind}_l{layer}"),
        _ => path.to_owned(),
    }
}

fn module_path(name: &str) -> String {
    let recurrent = name.split_once('.').and_then(|(module, rest)| Some((module, rest.rsplit_once("_l")?)));
    match recurrent {
        Some((module @ ("lstm" | "gru"), (kind, layer))) if RECURRENT.contains(&kind) => {
            format!("{module}.{layer}.{kind}")
        }
        _ => name.to_owned(),
    }
}
