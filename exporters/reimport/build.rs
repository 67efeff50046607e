//! Turns every exported file into burn code, as far as burn-onnx can.

use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-env-changed=REIMPORT_CASES");
    let cases =
        PathBuf::from(env::var("REIMPORT_CASES").expect("REIMPORT_CASES is the folder with the exported files"));
    println!("cargo::rerun-if-changed={}", cases.display());
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    let generate = |name: &str| {
        let file = cases.join(format!("{name}.onnx"));
        let generate = || burn_onnx::ModelGen::new().input(file.to_str().unwrap()).out_dir("models/").run_from_script();
        catch_unwind(AssertUnwindSafe(generate))
    };
    let mut names: Vec<String> = fs::read_dir(&cases)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "onnx"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    let (mut modules, mut checks) = (String::new(), String::new());
    for name in names {
        if generate(&name).is_ok() {
            let path = out.join(format!("models/{name}.rs"));
            modules += &format!("pub mod {name} {{ include!({path:?}); }}\n");
            checks += &check(&name, &fs::read_to_string(&path).unwrap());
        } else {
            // burn-onnx 0.21 does not infer the types of a loop's body that uses tensors from outside.
            let file = fs::read(cases.join(format!("{name}.onnx"))).unwrap();
            assert!(file.windows(6).any(|bytes| bytes == b"\x22\x04Scan"), "burn-onnx cannot read {name}.onnx");
            println!("cargo::warning={name}.onnx has a Scan, which burn-onnx cannot read: not compared");
        }
    }
    fs::write(out.join("models.rs"), modules).unwrap();
    fs::write(out.join("checks.rs"), format!("[{checks}]")).unwrap();
}

/// A call of `check!` that runs the model with the inputs that its `forward` takes; logits are the first output.
fn check(name: &str, code: &str) -> String {
    // Large models are in parts with a `forward` of their own.
    let (_, model) = code.split_once("> Model<B> {").unwrap();
    let (_, forward) = model.split_once("pub fn forward").unwrap();
    let (signature, _) = forward.split_once('{').unwrap();
    let (arguments, output) = signature.split_once("->").unwrap();
    let arguments: Vec<String> = arguments
        .replace('\n', " ")
        .split(": ")
        .zip(arguments.replace('\n', " ").split(": ").skip(1))
        .map(|(before, kind)| {
            let name = before.rsplit([' ', '(']).next().unwrap();
            let is_integer = kind.starts_with("Tensor<B, 2, Int>");
            // positions that are fractions are called so in the case
            let stored = if !is_integer && name == "position_ids" { "positions" } else { name };
            format!("c.{}({stored:?})", if is_integer { "ints" } else { "floats" })
        })
        .collect();
    let first = if output.trim_start().starts_with('(') { ".0" } else { "" };
    format!("check!({name}, |m, c| m.forward({}){first}),\n", arguments.join(", "))
}
