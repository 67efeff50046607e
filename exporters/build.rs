//! Generates the ONNX protobuf types. `protox` parses the schema in Rust, so there is no `protoc` to install.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let schema = "proto/onnx.proto";
    println!("cargo:rerun-if-changed={schema}");
    prost_build::compile_fds(protox::compile([schema], ["proto"])?)?;
    Ok(())
}
