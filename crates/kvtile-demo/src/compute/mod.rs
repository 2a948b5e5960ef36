//! Arithmetic on slices of f32: matrix products, norms, softmax, rotary embedding.
//!
//! The instruction set is chosen at run time (AVX-512, AVX2, NEON, else scalar).
//! It knows neither models nor caches.
//!
//! **Order of summation.** Every element of a matrix product is one chain of fused multiply-adds
//! along the inner axis, first to last. The chain does not depend on the number of rows computed
//! together, of threads, or of vector lanes. Norms and softmax sum in sixteen interleaved chains,
//! on every machine. (A processor without fused multiply-add rounds product and sum separately.)
//! Hence the result of a token is the same to the last bit for any split of a prompt into passes
//! and any place of its keys and values.

mod elementwise;
mod multiply;
mod panels;
mod rotary;

pub(crate) use elementwise::{add_assign, rms_norm, silu_gate, softmax_prefix};
pub(crate) use multiply::{multiply, multiply_parallel};
pub(crate) use panels::{PANEL_COLUMNS, PanelView, Panels};
pub(crate) use rotary::Rotations;
