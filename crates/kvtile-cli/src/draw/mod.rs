//! Pictures of layouts and plans, in the terminal and as SVG.
//!
//! They show digits, not words: what is drawn is what the planner works on.

mod icicle;
mod palette;
mod runs;
mod svg;
mod terminal;
mod tree;

pub(crate) use runs::{SampledRun, sample};
pub(crate) use svg::{DrawingSide, layout_svg, plan_svg};
pub(crate) use terminal::{picture, strips};
pub(crate) use tree::{NestingNode, NestingPart};
