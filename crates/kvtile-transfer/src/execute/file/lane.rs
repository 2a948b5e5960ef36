//! The lane between files and memory, and between two files.

use std::num::NonZeroUsize;

use kvtile_layout::CopyPlan;

use super::{
    super::{
        flight::TransferFlight,
        lane::{Lane, LaneEnd, LanePlanning, LaneSides, TransferHints},
    },
    copy_plan,
};
use crate::error::TransferError;

/// The lane between files and memory, and between two files.
#[derive(Debug)]
pub(crate) struct FileLane {
    threads: NonZeroUsize,
}

impl FileLane {
    /// At most `threads` transfers run concurrently; 0 counts as 1.
    pub(crate) fn new(threads: usize) -> FileLane {
        FileLane {
            threads: NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN),
        }
    }
}

impl Lane for FileLane {
    fn name(&self) -> &'static str {
        "kvtile-file"
    }

    /// A transfer waits for its device, so several may run concurrently.
    fn threads(&self) -> NonZeroUsize {
        self.threads
    }

    fn carries(&self, from: LaneEnd, to: LaneEnd) -> bool {
        [from, to].contains(&LaneEnd::File) && ![from, to].contains(&LaneEnd::Device)
    }

    /// A read from a file into memory follows the order of the file. Going layer by layer is free
    /// where it keeps that order: the destination must be memory with one region per layer, and a
    /// source in files must have one region per layer too.
    fn planning(&self, (source, destination): LaneSides<'_>) -> LanePlanning {
        let (from_file, to_file) = (
            source.end() == LaneEnd::File,
            destination.end() == LaneEnd::File,
        );
        let is_separate =
            destination.has_region_per_layer() && (!from_file || source.has_region_per_layer());
        LanePlanning {
            source_order: from_file && !to_file,
            layers_are_free: !to_file && is_separate,
        }
    }

    /// A file transfer may take arbitrarily long.
    fn inline_bytes(&self) -> u64 {
        0
    }

    unsafe fn carry(
        &self,
        plan: &CopyPlan,
        (source, destination): LaneSides<'_>,
        _hints: TransferHints,
    ) -> Result<(), TransferError> {
        // SAFETY: passed on to the caller.
        unsafe { copy_plan(plan, source, destination) }
    }

    fn fly(&self, flight: TransferFlight) {
        flight.fly(self);
    }
}
