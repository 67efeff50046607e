//! The GPU kernels on a Vulkan device, against the references.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../tests/common/gpu.rs"]
mod gpu;

type Gpu = burn_wgpu::Wgpu;

macro_rules! kernels {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            gpu::$name::<Gpu>();
        })*
    };
}

kernels! { selective_scan wkv generalized_delta delta_rule slstm linear_recurrence rnn lstm gru exact_gelu }
