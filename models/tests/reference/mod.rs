//! Reads the reference models: see `tests/fixtures/README.md` for the files.

pub mod npz;
pub mod parity;

use data::PositionIds;
use models::original::Original;
use models::{ModelConfig, Weights};
use npz::Npz;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A model with the published code's results.
pub struct Reference {
    pub config: ModelConfig,
    pub vocab: usize,
    pub weights: Weights,
    pub cases: Vec<Case>,
    /// The gradients of the case called `case`.
    pub gradients: Vec<Gradient>,
    /// The same with RWKV's extra term in the loss; empty for other architectures.
    pub gradients_l2_wrap: Vec<Gradient>,
    /// The norm of all gradients together, where single ones may be zero for reasons of symmetry.
    pub total_norm: Option<f64>,
}

/// One batch; integers are row-major `[batch, seq]`.
pub struct Case {
    pub name: String,
    pub batch: usize,
    pub seq: usize,
    pub input_ids: Vec<i64>,
    pub labels: Vec<i64>,
    pub attention_mask: Vec<i64>,
    /// Zeros where the model has none.
    pub position_ids: PositionIds,
    /// `[batch, seq, vocab]`, computed in float64.
    pub logits: Vec<f64>,
    /// The error of the logits due to the precision they are stored in.
    pub rounding: f64,
    pub loss: Option<f64>,
}

/// The reference gradient of one parameter, computed in float64.
pub struct Gradient {
    pub name: String,
    pub norm: f64,
    /// Σ gradient·parameter.
    pub dot_param: f64,
}

impl Reference {
    /// The reference model called `name`, or `None` with a note where its files are not there.
    pub fn open(name: &str) -> Option<Self> {
        let folders = folders(name);
        let Some(folder) = folders.first() else {
            eprintln!("skipped: the reference model {name} is not here");
            return None;
        };
        let config = json(&folder.join("config.json"));
        let grads = json(&folder.join("grads.json"));
        Some(Self {
            vocab: config["vocab"].as_array().unwrap().len(),
            config: Original::new(&config).unwrap().model,
            weights: Weights::read(&folder.join("model.safetensors")).unwrap(),
            cases: cases(&folders),
            gradients: gradients(&grads["params"]),
            gradients_l2_wrap: gradients(&grads["params_l2wrap"]),
            // Some parameters of these have gradients that are zero but for rounding.
            total_norm: grads["total_norm_f64"]
                .as_f64()
                .filter(|_| config["position"].is_string() || is_newer(&config)),
        })
    }
}

/// Whether the model is none of the paper's.
fn is_newer(config: &Value) -> bool {
    !["rnn", "lstm", "s4", "mamba", "rwkv", "transformer"].contains(&config["arch"].as_str().unwrap_or("transformer"))
}

/// Where the files are: a copy of some of them lies in this crate, all of them may lie beside the checkout.
fn folders(name: &str) -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let beside = here.join("../../shared/reference");
    let places = [here.join("tests/fixtures"), beside.join("models"), beside.join("models-beyond")];
    places.into_iter().map(|p| p.join(name)).filter(|p| p.is_dir()).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Every case of any of the folders, each name once.
fn cases(folders: &[PathBuf]) -> Vec<Case> {
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let files = files.map(|path| (name(&path), path)).filter(|(name, _)| name.starts_with("case"));
    files.collect::<BTreeMap<_, _>>().values().map(|path| case(path)).collect()
}

fn case(path: &Path) -> Case {
    let mut file = Npz::open(path);
    let (shape, input_ids) = file.array::<i64>("input_ids").unwrap();
    let [batch, seq] = shape[..] else { panic!("{}: input_ids {shape:?}", path.display()) };
    let logits: Vec<f64> = file.array("logits_f64").unwrap().1;
    let narrow = file.kind("logits_f64").unwrap() == "<f4";
    let largest = logits.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    Case {
        name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
        batch,
        seq,
        input_ids,
        labels: file.array("labels").unwrap().1,
        attention_mask: file.array("attention_mask").unwrap().1,
        position_ids: position_ids(&mut file).unwrap_or_else(|| PositionIds::Integers(vec![0; batch * seq])),
        rounding: if narrow { largest * f64::from(f32::EPSILON) } else { 0.0 },
        logits,
        loss: file.array::<f64>("loss_f64").map(|(_, values)| values[0]),
    }
}

/// int64, or float32 for scalar positions.
fn position_ids(file: &mut Npz) -> Option<PositionIds> {
    Some(match file.kind("position_ids")?.as_str() {
        "<f4" => PositionIds::Scalars(file.array("position_ids")?.1),
        _ => PositionIds::Integers(file.array("position_ids")?.1),
    })
}

fn gradients(params: &Value) -> Vec<Gradient> {
    let trained = params.as_array().into_iter().flatten().filter(|p| p["frozen"] != true);
    trained
        .map(|p| Gradient {
            name: p["name"].as_str().unwrap().to_owned(),
            norm: p["norm_f64"].as_f64().unwrap(),
            dot_param: p["dot_param_f64"].as_f64().unwrap(),
        })
        .collect()
}
