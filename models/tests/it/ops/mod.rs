//! Operations and their kernels.

mod autocast;
mod fused;
mod fused_attention;
mod fused_scans;
mod unwritten;
