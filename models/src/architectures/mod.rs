//! One file (or folder) per architecture; the list of them is in [`architectures!`](crate::architectures!).

pub mod deltanet;
pub mod gated_deltanet;
pub mod gla;
pub mod gru;
pub mod hgrn2;
pub mod hybrid;
pub mod lstm;
pub mod mamba;
pub mod mamba2;
pub mod mingru;
pub mod minlstm;
pub mod rnn;
pub mod rwkv;
pub mod rwkv5;
pub mod rwkv6;
pub mod rwkv7;
pub mod s4;
pub mod transformer;
pub mod xlstm;
