use crate::Model;
use crate::ops::SequenceOps;
use burn::module::ParamId;
use burn::tensor::TensorData;
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

/// A model's parameters by their names in the original's checkpoints, for example `lstm.weight_ih_l0`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Weights(BTreeMap<String, Weight>);

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
    /// Not a safetensors file, or a damaged one.
    #[error(
        "cannot read the weights {}: {reason}\n  hint: the file is damaged or not safetensors; use another checkpoint of the run",
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
        let mut out = BTreeMap::new();
        for snapshot in model.collect(None, None, true) {
            let name = checkpoint_name(&snapshot.full_path());
            let data = snapshot.to_data().map_err(|e| WeightError::Mismatch(vec![format!("{name}: {e:?}")]))?;
            let shape = data.shape.iter().copied().collect();
            out.insert(name, Weight { shape, values: data.iter::<f32>().collect() });
        }
        Ok(Self(out))
    }

    /// Puts the weights into `model`; either every parameter fits or nothing is claimed to.
    pub fn load_into<B: SequenceOps>(&self, model: &mut Model<B>) -> Result<(), WeightError> {
        let snapshot = |(name, weight): (&String, &Weight)| {
            let path = module_path(name).split('.').map(str::to_owned).collect();
            let data = TensorData::new(weight.values.clone(), weight.shape.clone());
            TensorSnapshot::from_data(data, path, vec![], ParamId::new())
        };
        let result = model.apply(self.0.iter().map(snapshot).collect(), None, None, true);
        let missing = result.missing.iter().map(|(path, _)| format!("{} is missing", checkpoint_name(path)));
        let extra = result.unused.iter().map(|path| format!("{} is not in the model", checkpoint_name(path)));
        let misfits = result.errors.iter().map(|error| match error {
            ApplyError::ShapeMismatch { path, expected, found } => {
                let (name, found, expected) = (checkpoint_name(path), found.as_slice(), expected.as_slice());
                format!("{name} is {found:?}, but the model's is {expected:?}")
            }
            other => other.to_string(),
        });
        let problems: Vec<String> = missing.chain(extra).chain(misfits).collect();
        if problems.is_empty() { Ok(()) } else { Err(WeightError::Mismatch(problems)) }
    }

    /// The parameter called `name`.
    pub fn get(&self, name: &str) -> Option<&Weight> {
        self.0.get(name)
    }

    /// Names and parameters, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Weight)> {
        self.0.iter().map(|(name, weight)| (name.as_str(), weight))
    }

    /// The same weights, each changed in its last bit, up or down at random: what rounding alone may do to them.
    pub fn nudged(&self, seed: u64) -> Self {
        let mut rng = stream_rng(seed, "last bits", 0);
        let mut nudge = |v: &mut f32| if rng.random::<bool>() { v.next_up() } else { v.next_down() };
        let mut out = self.clone();
        out.0.values_mut().flat_map(|w| &mut w.values).for_each(|v| *v = nudge(v));
        out
    }

    /// How many numbers there are in all.
    pub fn num_parameters(&self) -> usize {
        self.0.values().map(|w| w.values.len()).sum()
    }

    /// The safetensors file with these weights, 32-bit floats.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, WeightError> {
        let failed = |e: safetensors::SafeTensorError| WeightError::Mismatch(vec![e.to_string()]);
        let bytes = |w: &Weight| w.values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let buffers: Vec<(&String, &Weight, Vec<u8>)> = self.0.iter().map(|(n, w)| (n, w, bytes(w))).collect();
        let views = buffers.iter().map(|(name, w, bytes)| {
            let view = TensorView::new(Dtype::F32, w.shape.clone(), bytes).map_err(failed)?;
            Ok((name.as_str(), view))
        });
        let views: Vec<_> = views.collect::<Result<_, WeightError>>()?;
        safetensors::serialize(views, None).map_err(failed)
    }

    /// Reads a safetensors file of 32-bit floats or of bfloat16s.
    pub fn read(path: &Path) -> Result<Self, WeightError> {
        let bytes = std::fs::read(path).map_err(|source| WeightError::Io { path: path.into(), source })?;
        let damaged = |reason: String| WeightError::Damaged { path: path.into(), reason };
        let file = SafeTensors::deserialize(&bytes).map_err(|e| damaged(e.to_string()))?;
        let mut out = BTreeMap::new();
        for (name, view) in file.iter() {
            let values = match view.dtype() {
                Dtype::F32 => view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
                // bfloat16 is the upper half of a 32-bit float
                Dtype::BF16 => {
                    view.data().as_chunks().0.iter().map(|&[a, b]| f32::from_le_bytes([0, 0, a, b])).collect()
                }
                other => return Err(damaged(format!("{name} is {other:?}, not F32 or BF16"))),
            };
            out.insert(name.to_owned(), Weight { shape: view.shape().to_vec(), values });
        }
        Ok(Self(out))
    }
}

impl FromIterator<(String, Weight)> for Weights {
    fn from_iter<I: IntoIterator<Item = (String, Weight)>>(parameters: I) -> Self {
        Self(parameters.into_iter().collect())
    }
}

const RECURRENT: [&str; 4] = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"];

/// Module paths are checkpoint names, except that PyTorch appends a recurrent layer's number to the parameter:
/// `lstm.0.weight_ih` is called `lstm.weight_ih_l0`.
pub(crate) fn checkpoint_name(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    match parts[..] {
        ["lstm", layer, kind] if RECURRENT.contains(&kind) => format!("lstm.{kind}_l{layer}"),
        _ => path.to_owned(),
    }
}

fn module_path(name: &str) -> String {
    let recurrent = name.strip_prefix("lstm.").and_then(|rest| rest.rsplit_once("_l"));
    match recurrent {
        Some((kind, layer)) if RECURRENT.contains(&kind) => format!("lstm.{layer}.{kind}"),
        _ => name.to_owned(),
    }
}
