//! Copies between layouts against one flat `memcpy` of the same bytes, and against the plain ways
//! of doing the same.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`settings`] | what a run is asked to do |
//! | [`matrix`] | pairs of layouts, models and sizes, and how they combine |
//! | [`class`] | classes of copies, and the goal of each |
//! | `arena`, `walk` | memory of both sides; where every byte of a block lies, without a plan |
//! | `contender`, `rivals` | everything that can copy: kvtile, `memcpy`, and what people use otherwise |
//! | `memory_rows`, `file_rows`, `fixed_cost`, [`first_touch`] | the measurements |
//! | [`blocks`] | keys from tokens and the operations of pools, in nanoseconds a block |
//! | [`disk`] | the slot store of the disk tier against `fio` |
//! | [`row`], [`report`], [`machine`] | what they came to, as it is stored |
//! | `text`, `html` | what they came to, as people read it |
//!
//! How a cell is measured stands in `docs/benchmarks/README.md`. Of our crates only the program and
//! `kvtile-rivals` are built with this one, so no other crate depends on the rivals. It does
//! not tune anything.

mod arena;
pub mod blocks;
pub mod class;
mod contender;
pub mod disk;
mod error;
mod file_rows;
mod fio;
pub mod first_touch;
mod fixed_cost;
mod flat_rows;
mod html;
mod lines;
pub mod machine;
pub mod matrix;
mod memory_rows;
pub mod report;
mod rivals;
pub mod row;
mod run;
pub mod settings;
mod text;
mod times;
mod walk;

pub use contender::Method;
pub use error::BenchError;
pub use report::Report;
pub use run::{Progress, run};
pub use settings::Settings;
pub use text::Emphasis;
