//! Arithmetic on slices of f32: matrix products, norms, softmax, rotary embedding.
//!
//! The instruction set is chosen at run time (AVX-512, AVX2, NEON, else scalar).
//! It knows neither models nor caches.
//!
//! **Order of summation.** Every element of a matrix product is one chain of
//! fused multiply-adds along the inner axis, first to last, whatever the number
//! of rows computed together, of threads, or of vector lanes. Norms and softmax
//! sum in sixteen interleaved chains, on every machine. (Where a processor has no
//! fused multiply-add, product and sum are rounded apart.) Hence a token's result
//! does not depend, not even in its last bit, on how a prompt was cut into
//! passes, nor on where its keys and values were stored.

mod elementwise;
mod multiply;
mod panels;
mod rotary;

pub(crate) use elementwise::{add_assign, rms_norm, silu_gate, softmax_prefix};
pub(crate) use multiply::{multiply, multiply_parallel};
pub(crate) use panels::{PANEL_COLUMNS, PanelView, Panels};
pub(crate) use rotary::Rotations;
