//! Programs: launches of kernels, and the tables that their loops read.

use crate::{
    kernel::MoveKernel,
    parameters::{LoopParameters, MoveParameters, SideParameters},
    shape::{DeviceLoop, LoopSide},
};

/// The launches that copy what a plan copies. They are independent: no launch reads or writes what another one
/// writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MoveProgram {
    pub(crate) launches: Vec<MoveLaunch>,
    pub(crate) tables: Vec<u64>,
}

impl MoveProgram {
    /// The launches.
    #[must_use]
    pub fn launches(&self) -> &[MoveLaunch] {
        &self.launches
    }

    /// The words of all tables. They have to be in memory of the device when a launch starts.
    #[must_use]
    pub fn tables(&self) -> &[u64] {
        &self.tables
    }

    /// Bytes that the program moves.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.launches.iter().map(|launch| launch.bytes).sum()
    }
}

/// A launch of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveLaunch {
    pub(crate) kernel: MoveKernel,
    pub(crate) threads: u32,
    pub(crate) blocks_max: u32,
    pub(crate) bytes: u64,
    /// Without the loops.
    pub(crate) parameters: MoveParameters,
    /// Innermost first.
    pub(crate) loops: Vec<DeviceLoop>,
}

impl MoveLaunch {
    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> MoveKernel {
        self.kernel
    }

    /// Threads of a block.
    #[must_use]
    pub fn threads(&self) -> u32 {
        self.threads
    }

    /// Blocks of the grid: at most `blocks`, and no more than have work. Any number of blocks copies the same.
    #[must_use]
    pub fn blocks(&self, blocks: u32) -> u32 {
        self.blocks_max.min(blocks).max(1)
    }

    /// Bytes that it moves.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The parameters, where the program's tables start at the address `tables`.
    #[must_use]
    pub fn parameters(&self, tables: u64) -> MoveParameters {
        let side = |side: LoopSide| match side {
            LoopSide::Stride(stride) => SideParameters { stride, table: 0 },
            LoopSide::Table(word) => SideParameters {
                stride: 0,
                table: tables.wrapping_add(word.wrapping_mul(8)),
            },
        };
        let loops = self.loops.iter().map(|l| {
            // The lowering splits longer loops.
            let extent = u32::try_from(l.extent).unwrap_or(u32::MAX);
            LoopParameters::new(extent, side(l.source), side(l.destination))
        });
        let loops: Vec<LoopParameters> = loops.collect();
        let mut parameters = self.parameters;
        parameters.set_loops(&loops);
        parameters
    }
}
