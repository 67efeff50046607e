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
    rwkv5 rwkv5_x052 rwkv5_bf16ckpt rwkv7 rwkv7_small rwkv7_saved_while_training
    transformer_nope transformer_ape_shift transformer_sinusoidal_shift transformer_rope_shift transformer_spe
    transformer_padhelper_rope
    transformer_alibi transformer_t5 transformer_kerple transformer_fire transformer_cope transformer_ssmax
    transformer_fire_L64 transformer_kerple_clamped transformer_cope_npos8 transformer_logn transformer_logn_clip
    options_alibi options_t5 options_kerple options_fire options_cope options_ssmax options_logn options_logn_clip
    options_windows options_encoder options_both_ways
    gla gla_small gla_conv_kv gla_no_gate hgrn2 hgrn2_small hgrn2_conv mamba2 mamba2_small mamba2_groups
    xlstm_slstm xlstm_mlstm xlstm_small xlstm_plain xlstm_no_ff
    gated_deltanet gated_deltaproduct_n2
    gated_deltanet_bare gated_deltanet_shared gated_deltaproduct_small gated_deltaproduct_steady
    hybrid_griffin hybrid_jamba minlstm_small looped looped_injected
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

kernels! { selective_scan wkv generalized_delta delta_rule slstm linear_recurrence rnn lstm gru exact_gelu }
