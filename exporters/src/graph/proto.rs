#![allow(missing_docs, clippy::all)]
//! The ONNX messages, generated from `proto/onnx.proto`.
include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
