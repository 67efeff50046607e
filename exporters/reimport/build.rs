//! Turns every exported file into burn code, as far as burn-onnx can.

use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

/// What burn-onnx 0.21 reads.
const READABLE: [&str; 8] = ["rnn", "lstm", "gru", "nope", "absolute", "sinusoidal", "rope", "scalar"];
/// What it does not: the body of their `Scan` uses tensors from outside, and a body's types are not inferred.
const UNREADABLE: [&str; 6] = ["mingru", "deltanet", "s4", "mamba", "rwkv5", "rwkv6"];

fn main() {
    println!("cargo::rerun-if-env-changed=REIMPORT_CASES");
    let cases = PathBuf::from(env::var("REIMPORT_CASES").expect("REIMPORT_CASES is the folder with the exported files"));
    println!("cargo::rerun-if-changed={}", cases.display());
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    let generate = |name: &str| {
        let file = cases.join(format!("{name}.onnx"));
        let generate = || burn_onnx::ModelGen::new().input(file.to_str().unwrap()).out_dir("models/").run_from_script();
        catch_unwind(AssertUnwindSafe(generate))
    };
    let mut code = String::new();
    for name in READABLE {
        assert!(generate(name).is_ok(), "burn-onnx cannot read {name}.onnx");
        let path = out.join(format!("models/{name}.rs"));
        code += &format!("pub mod {name} {{ include!({path:?}); }}\n");
    }
    for name in UNREADABLE {
        assert!(generate(name).is_err(), "burn-onnx reads {name}.onnx now: it belongs to READABLE");
    }
    fs::write(out.join("models.rs"), code).unwrap();
}
