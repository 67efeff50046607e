//! Every architecture against the published PyTorch code, and every GPU kernel against its reference, on a CUDA GPU.
//! Takes minutes to compile and needs the card, so it runs only where it is named:
//! `cargo test --release --workspace --test parity_cuda`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/gpu.rs"]
mod gpu;
mod reference;

use burn::backend::Autodiff;

macro_rules! parity {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            reference::parity::check::<Autodiff<models::Cuda>>(stringify!($name), &Default::default(), &reference::parity::FLOAT32);
        })*
    };
}

parity! {
    rnn lstm s4 mamba
    rwkv5 rwkv5_x052 rwkv5_bf16ckpt
    transformer_nope transformer_ape_shift transformer_sinusoidal_shift transformer_rope_shift transformer_spe
    transformer_padhelper_rope
    options_absolute_frozen options_identity options_tied options_null options_scales
    options_rnn_tied options_rnn_null options_lstm_tied options_lstm_null
}

macro_rules! kernels {
    ($($name:ident)*) => {
        mod kernels {
            $(#[test]
            fn $name() {
                super::gpu::$name::<models::Cuda>();
            })*
        }
    };
}

kernels! { selective_scan wkv linear_recurrence rnn lstm gru exact_gelu }
