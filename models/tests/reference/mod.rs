//! Reads the reference models: see `tests/fixtures/README.md` for the files.

mod npz;
pub mod parity;

use models::lstm::LstmConfig;
use models::mamba::{MambaConfig, RMS_NORM_EPSILON};
use models::rnn::RnnConfig;
use models::rwkv5::Rwkv5Config;
use models::rwkv6::Rwkv6Config;
use models::s4::S4Config;
use models::transformer::{LAYER_NORM_EPSILON, PositionalEmbedding, TransformerConfig};
use models::{ModelConfig, Weights};
use npz::Npz;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A model with what the published code computes with it.
pub struct Reference {
    pub config: ModelConfig,
    pub vocab: usize,
    pub weights: Weights,
    pub cases: Vec<Case>,
    /// The gradients of the case called `case`.
    pub gradients: Vec<Gradient>,
    /// The same with RWKV's extra term in the loss; empty for other architectures.
    pub gradients_l2_wrap: Vec<Gradient>,
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
    pub position_ids: Vec<i64>,
    /// `[batch, seq, vocab]`, computed in float64.
    pub logits: Vec<f64>,
    pub loss: Option<f64>,
}

/// What is known of the gradient of one parameter, computed in float64.
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
            config: model_config(&config),
            weights: Weights::read(&folder.join("model.safetensors")).unwrap(),
            cases: cases(&folders),
            gradients: gradients(&grads["params"]),
            gradients_l2_wrap: gradients(&grads["params_l2wrap"]),
        })
    }
}

/// Where the files are: a copy of some of them lies in this crate, all of them may lie beside the checkout.
fn folders(name: &str) -> Vec<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = [here.join("tests/fixtures"), here.join("../../shared/reference/models")];
    places.into_iter().map(|p| p.join(name)).filter(|p| p.is_dir()).collect()
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The settings under the original's field names, as ours. Refuses those that ours cannot express.
fn model_config(config: &Value) -> ModelConfig {
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let on = |key: &str| config[key].as_bool().unwrap();
    match config["arch"].as_str().unwrap() {
        "rwkv" => {}
        "mamba" => assert!(on("tie_word_embeddings")),
        _ => assert!(!on("tie_word_embeddings") && !on("freeze_null_emb")),
    }
    let (hidden_size, num_layers) = (size("hidden_size"), size("num_hidden_layers"));
    let dropout = config["dropout"].as_f64();
    match config["arch"].as_str().unwrap() {
        "RNN" => ModelConfig::Rnn(RnnConfig { hidden_size, num_layers, dropout: dropout.unwrap() }),
        "LSTM" => ModelConfig::Lstm(LstmConfig { hidden_size, num_layers, dropout: dropout.unwrap() }),
        "S4" => {
            let (dropout, kernel_length) = (dropout.unwrap(), size("max_seq_len"));
            ModelConfig::S4(S4Config { hidden_size, num_layers, dropout, kernel_length })
        }
        "mamba" => {
            assert!(on("rms_norm") && config["norm_epsilon"] == RMS_NORM_EPSILON);
            let (state_size, conv_kernel, expand) = (size("d_state"), size("d_conv"), size("expand"));
            ModelConfig::Mamba(MambaConfig { hidden_size, num_layers, state_size, conv_kernel, expand })
        }
        "rwkv" => {
            assert_eq!(size("head_size_divisor"), 8);
            let (head_size, dropout) = (size("head_size_a"), dropout.unwrap());
            match config["my_testing"].as_str().unwrap() {
                "x052" => ModelConfig::Rwkv5(Rwkv5Config { hidden_size, num_layers, head_size, dropout }),
                "x060" => ModelConfig::Rwkv6(Rwkv6Config { hidden_size, num_layers, head_size, dropout }),
                other => panic!("no block is called {other}"),
            }
        }
        "transformer" => {
            assert!(on("scale_attn_weights") && on("scale_attn_by_inverse_layer_idx"));
            assert!(!on("must_attend_to_identity") && !on("absolute_posemb") && !on("sinusoidal_posemb"));
            assert!(!on("scaler_posemb") && config["activation_function"] == "relu");
            assert_eq!(config["layer_norm_epsilon"], LAYER_NORM_EPSILON);
            assert_eq!(size("mlp_dim_multipler"), 4);
            let positional_embedding =
                if on("rotary_posemb") { PositionalEmbedding::Rope } else { PositionalEmbedding::None };
            let num_heads = size("num_attention_heads");
            ModelConfig::Transformer(TransformerConfig { hidden_size, num_layers, num_heads, positional_embedding })
        }
        other => panic!("no architecture is called {other}"),
    }
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
    Case {
        name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
        batch,
        seq,
        input_ids,
        labels: file.array("labels").unwrap().1,
        attention_mask: file.array("attention_mask").unwrap().1,
        position_ids: file.array("position_ids").map_or_else(|| vec![0; batch * seq], |(_, values)| values),
        logits: file.array("logits_f64").unwrap().1,
        loss: file.array::<f64>("loss_f64").map(|(_, values)| values[0]),
    }
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
