//! Measures copies between layouts against one flat `memcpy` of the same bytes, and against common
//! alternatives.
//!
//! | module | content |
//! | --- | --- |
//! | [`settings`] | the settings of a run |
//! | [`matrix`] | pairs of layouts, models and sizes, and how they combine |
//! | [`class`] | classes of copies, and the goal of each |
//! | `arena`, `walk` | memory of both sides; the place of every byte of a block, without a plan |
//! | `contender`, `rivals` | the copying methods: kvtile, `memcpy`, and common alternatives |
//! | `memory_rows`, `file_rows`, `fixed_cost`, [`first_touch`] | the measurements |
//! | [`blocks`] | keys from tokens and the operations of pools, in nanoseconds per block |
//! | [`disk`] | the slot store of the disk tier against `fio` |
//! | [`groups`] | a cache over groups against a cache of one group and `memcpy` |
//! | [`row`], [`report`], [`machine`] | the results, as stored |
//! | `text`, `html` | the results, as shown |
//!
//! `docs/benchmarks/README.md` describes the measurement of a cell. Only the program and
//! `kvtile-rivals` depend on this crate, so no other crate depends on the rivals. It tunes nothing.

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
pub mod groups;
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

pub use contender::CopyMethod;
pub use error::BenchError;
pub use html::{BENCH_STYLE, escaped};
pub use report::BenchReport;
pub use run::{BenchProgress, run};
pub use settings::BenchSettings;
pub use text::Emphasis;
