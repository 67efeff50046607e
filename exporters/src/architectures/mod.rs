//! One lowering per architecture, the counterparts of `models::architectures`.

pub(crate) mod deltanet;
pub(crate) mod gated_deltanet;
pub(crate) mod gla;
pub(crate) mod gru;
pub(crate) mod hgrn2;
pub(crate) mod hybrid;
pub(crate) mod lstm;
pub(crate) mod mamba;
pub(crate) mod mamba2;
pub(crate) mod mingru;
pub(crate) mod minlstm;
pub(crate) mod rnn;
mod rwkv;
pub(crate) mod rwkv5;
pub(crate) mod rwkv6;
pub(crate) mod rwkv7;
pub(crate) mod s4;
pub(crate) mod transformer;
pub(crate) mod xlstm;
