//! The report as text.

use std::fmt::{self, Display};

use super::{BlockMemory, BlockPlacement, DiskBenchReport, DiskBenchRow};
use crate::{fio::FioDirection, lines::bytes};

impl Display for DiskBenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} cores", self.machine.cpu, self.machine.cores)?;
        writeln!(
            f,
            "Slot store through {}, {}, {} a round, medians of {} rounds, in turns with fio",
            self.through,
            match self.direct {
                true => "past the page cache",
                false => "through the page cache",
            },
            bytes(self.bytes),
            self.rounds
        )?;
        writeln!(
            f,
            "\n  block    what    blocks          GB/s  spread  fio GB/s  spread  ratio  (lowest, highest)"
        )?;
        for row in &self.rows {
            line(f, row)?;
        }
        writeln!(
            f,
            "\nwrite*: bytes of all blocks from as much memory as the requests of fio have, which a cache may \
             hold; write: each block from memory of its own; in a cache: evicted from host memory to disk, and prefetched from there"
        )?;
        for reason in &self.left_out {
            writeln!(f, "\n{reason}")?;
        }
        Ok(())
    }
}

fn line(f: &mut fmt::Formatter<'_>, row: &DiskBenchRow) -> fmt::Result {
    let direction = match (row.direction, row.memory) {
        (FioDirection::Read, _) => "read",
        (FioDirection::Write, BlockMemory::Own) => "write",
        (FioDirection::Write, BlockMemory::AsFio) => "write*",
    };
    let placement = match row.placement {
        BlockPlacement::SideBySide => "side by side",
        BlockPlacement::Scattered => "scattered",
        BlockPlacement::ThroughCache => "in a cache",
    };
    write!(
        f,
        "  {:7}  {direction:6}  {placement:12}  {:6.2}  {:6.2}",
        bytes(row.block_bytes),
        row.gb_per_s,
        row.spread
    )?;
    if let (Some(fio), Some(spread), Some(ratio), Some((lowest, highest))) =
        (row.fio_gb_per_s, row.fio_spread, row.ratio, row.ratio_range)
    {
        let mark = if row.misses() { '!' } else { ' ' };
        write!(
            f,
            "  {fio:8.2}  {spread:6.2}  {ratio:5.2}{mark} ({lowest:.2}, {highest:.2})"
        )?;
    }
    writeln!(f)
}
