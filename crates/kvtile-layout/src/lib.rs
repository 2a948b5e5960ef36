//! KV cache layouts as arithmetic.
//!
//! This crate contains units, planes, shapes, the layout language, digits, copy plans and identity.
//! It does no I/O, holds no addresses, reads no clock and no environment, starts no thread and has
//! no unsafe code. Other crates own the bytes.
#![forbid(unsafe_code)]

mod axis;
mod broken;
mod dtype;
mod error;
pub mod identity;
mod near;
mod plan;
pub mod presets;
mod rule;
mod shape;
mod shown;
mod strided;
pub mod tensor;
pub mod tradition;
mod unit;
mod word;

pub use axis::Axis;
pub use broken::broken;
pub use error::{LayoutError, PlanError, ResolveError, ShapeError};
pub use near::nearest;
pub use plan::{
    AxisSet, BlockMap, BlockPair, ClassNests, CopyPlan, CopyPlanner, LayerPlans, Loop, MapPair,
    Nest, PairBase, PlanClass, PlanSettings, RangePair, Selection,
};
pub use rule::{GroupPresence, GroupRule, UsableStops, usable_stops};
pub use shape::{
    AxisRange, BYTES_MAX, LAYER_RUNS_MAX, LayerSet, PLANES_MAX, Plane, PlaneName, PlanePer, Shape,
    Shard,
};
pub use shown::ShownText;
pub use strided::{
    AddressStep, Digit, Location, PlaneDigits, PlanePiece, REGIONS_MAX, RegionSpan, StridedLayout,
    UnitIndex,
};
pub use unit::{NAME_BYTES_MAX, UNIT_BYTES_MAX, Unit};
pub use word::{AxisItem, ParseError, StrideRule, WORD_CHARS_MAX, WORD_DEPTH_MAX, Word, WordItem};
