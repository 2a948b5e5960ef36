//! Files as source or destination. The permutation happens in staging memory, while other pieces
//! are read and written.
//!
//! ```text
//! nest  ->  tiles, each dense in the file      sorted and merged: windows of the file
//! read the source's windows  ->  run the tiles' nests  ->  write the destination's windows
//!
//! round 1   read | permute | write
//! round 2          read    | permute | write
//! round 3          read ..           | permute | write
//! ```
//!
//! | file | what it does |
//! | --- | --- |
//! | `lane` | implements the file lane |
//! | `tiling` | splits nests into tiles that are dense in the file |
//! | `window` | merges the bytes of tiles into contiguous windows, and places them in staging memory |
//! | `piece` | splits windows and runs into reads and writes, direct or buffered |
//! | `queue` | keeps reads and writes in flight |
//! | `staging` | reuses queues and staging memory across transfers |
//! | `round` | tiles that share a slot of staging memory, and their permutation |
//! | `pipeline` | rounds and runs in progress, from the first read to the last write |
//! | `limits` | limits on the work in progress |
//! | `batch` | many pieces of one file without a plan: merged, and in flight together |
//!
//! A destination window contains exactly the bytes that tiles fill, so no other byte of the file is
//! rewritten. Long runs between memory and file skip the staging memory. The limits bound staging
//! memory and operations in flight for every placement of the pieces. When a transfer returns,
//! fails or panics, nothing is in flight any more.

mod batch;
#[cfg(test)]
mod batch_tests;
mod lane;
mod limits;
mod piece;
mod pipeline;
mod queue;
mod round;
mod staging;
#[cfg(test)]
mod tests;
mod tiling;
mod window;

use kvtile_layout::CopyPlan;
use limits::FileLimits;
use pipeline::FilePipeline;
use staging::FileWorker;
use tiling::{FileSides, NestTiling};

use super::bound::BoundLayout;
use crate::error::TransferError;

pub use batch::{FileBatch, FileRead, FileWrite};
pub(super) use lane::FileLane;
pub use queue::{FileIo, FileWay};

/// Executes all of `plan`. At least one side is in files.
///
/// # Safety
/// As for [`Lane::carry`](super::lane::Lane::carry).
unsafe fn copy_plan(
    plan: &CopyPlan,
    source: &BoundLayout,
    destination: &BoundLayout,
) -> Result<(), TransferError> {
    let limits = FileLimits::for_transfer(plan.bytes());
    // SAFETY: passed on to the caller.
    unsafe { copy_plan_within(plan, source, destination, &limits) }
}

/// [`copy_plan`] with explicit limits.
///
/// # Safety
/// As for [`Lane::carry`](super::lane::Lane::carry).
unsafe fn copy_plan_within(
    plan: &CopyPlan,
    source: &BoundLayout,
    destination: &BoundLayout,
    limits: &FileLimits,
) -> Result<(), TransferError> {
    let files = FileSides::of(source, destination, limits.round_bytes);
    let tilings = plan.classes().iter().map(|class| {
        let nests = class.nests.iter();
        nests.map(|nest| NestTiling::new(nest, files)).collect()
    });
    // The tiles of one class may be in progress while those of the next are prepared.
    let tilings: Vec<Vec<NestTiling>> = tilings.collect::<Result<_, _>>()?;
    let mut worker = FileWorker::take(limits.way);
    // SAFETY: passed on to the caller. Dropping the pipeline waits for its operations in flight,
    // before this function returns or unwinds.
    let mut pipeline = unsafe { FilePipeline::new(source, destination, limits, &mut worker) };
    for (class, tilings) in plan.classes().iter().zip(&tilings) {
        for pair in &class.pairs {
            for (nest, tiling) in class.nests.iter().zip(tilings) {
                for tile in tiling.tiles(plan.start(nest, pair)) {
                    let nest = tiling.nest(&tile);
                    pipeline.push(tile, nest)?;
                }
            }
        }
    }
    pipeline.finish()?;
    drop(pipeline);
    worker.give_back();
    Ok(())
}
