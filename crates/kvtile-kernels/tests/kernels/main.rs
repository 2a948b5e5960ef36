//! The kernels' text, executed by the interpreter with the programs of plans.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests")]

mod barriers;
mod counts;
mod packed;
mod presets;
mod random;
mod refusals;
mod run;
mod standin;
