//! Runs the models that burn-onnx made of exported files, and compares their logits with those of the models that were
//! exported. Exits with 1 if any differs.

use burn::backend::Flex;
use burn::prelude::*;
use burn::tensor::{DType, TensorData};
use safetensors::SafeTensors;
use std::process::ExitCode;

#[allow(warnings, clippy::all)]
mod models {
    include!(concat!(env!("OUT_DIR"), "/models.rs"));
}

const TOLERANCE: f32 = 2e-5;

/// The inputs of a model, and the logits it gave.
struct Case {
    file: Vec<u8>,
}

impl Case {
    fn open(name: &str) -> Self {
        let path = format!("{}/{name}.safetensors", env!("REIMPORT_CASES"));
        Self { file: std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}")) }
    }

    fn data(&self, name: &str) -> TensorData {
        let file = SafeTensors::deserialize(&self.file).unwrap();
        let view = file.tensor(name).unwrap();
        let dtype = if name.ends_with("_ids") || name.ends_with("_mask") { DType::I64 } else { DType::F32 };
        TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype)
    }

    fn ints(&self, name: &str) -> Tensor<Flex, 2, Int> {
        Tensor::from_data(self.data(name), (&Default::default(), DType::I64))
    }

    fn floats(&self, name: &str) -> Tensor<Flex, 2> {
        Tensor::from_data(self.data(name), &Default::default())
    }
}

/// Prints how far the logits are from the expected ones, and says whether that is close.
fn agrees(name: &str, case: &Case, logits: Tensor<Flex, 3>) -> bool {
    let expected = Tensor::<Flex, 3>::from_data(case.data("logits"), &Default::default());
    let difference = (logits - expected).abs().max().into_scalar();
    println!("{name}: largest difference {difference:.1e}");
    difference < TOLERANCE // false for NaN
}

/// Loads the model called `$name` and hands it to a closure that runs it.
macro_rules! check {
    ($name:ident, $run:expr) => {{
        let case = Case::open(stringify!($name));
        let weights = concat!(env!("OUT_DIR"), "/models/", stringify!($name), ".bpk");
        let model = models::$name::Model::<Flex>::from_file(weights, &Default::default());
        let run: fn(&models::$name::Model<Flex>, &Case) -> Tensor<Flex, 3> = $run;
        agrees(stringify!($name), &case, run(&model, &case))
    }};
}

fn main() -> ExitCode {
    let all = include!(concat!(env!("OUT_DIR"), "/checks.rs"));
    if all.iter().all(|&agrees| agrees) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
