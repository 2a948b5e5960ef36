//! Pictures of layouts, plans and groups, in the terminal and as SVG.
//!
//! Those of layouts and plans show digits, not words: what is drawn is what the planner works on.

mod groups;
mod icicle;
mod palette;
mod runs;
mod svg;
mod terminal;
mod tree;

pub(crate) use groups::{GroupNeeds, picture as groups_picture, svg as groups_svg};
pub(crate) use runs::{SampledRun, sample};
pub(crate) use svg::{DrawingSide, layout_svg, plan_svg};
pub(crate) use terminal::{picture, strips};
pub(crate) use tree::{NestingNode, NestingPart};
