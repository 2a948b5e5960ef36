//! Permuting copies on a device: kernels as PTX text, and the lowering of copy plans to their parameters.
//!
//! ```text
//! CopyPlan + addresses of regions ──lower──► MoveProgram
//!                                              launches: kernel, parameters    rows_{16,8,4,2,1}, tiles_{4,2,1}
//!                                              words: tables of differences    copied to the device before a launch
//! ```
//!
//! Everything here is arithmetic: no driver, no memory. A plan is refused if it would leave its regions, so kernels
//! check nothing. The text is compiled from `cuda/move.cu` by `cargo x kernels`; tests execute it with an interpreter.
//! It was not run on hardware.
#![forbid(unsafe_code)]

mod error;
mod kernel;
mod lower;
mod parameters;
mod program;
mod shape;

pub use error::LowerError;
pub use kernel::{MOVE_PTX, MoveKernel, VectorBytes};
pub use lower::{MoveRegion, MoveSide, PackedPiece, PackedSide, PlanPart, lower, lower_part};
pub use parameters::{
    LOOPS_MAX, LoopParameters, MoveParameters, RowsParameters, SideParameters, TileParameters,
};
pub use program::{MoveLaunch, MoveProgram};
