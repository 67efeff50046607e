//! The `pipeline` command; everything that it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    disable_telemetry();
    pipeline::command_line()
}

/// ONNX Runtime 1.29 and later write a device id into the user's cache, and may send it, unless told not to before they
/// are loaded.
#[allow(unsafe_code)]
fn disable_telemetry() {
    // SAFETY: the first statement of the program; no other thread exists that could read the environment.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
}
