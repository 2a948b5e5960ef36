//! One measurement, as stored.

use serde::{Deserialize, Serialize};

use crate::{class::CopyClass, contender::CopyMethod, matrix::PairPurpose};

/// The memory of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SideMemory {
    /// Memory that does not fit a cache.
    Memory,
    /// Memory that fits the second-level cache together with the other side.
    Cache,
    /// A file through the page cache.
    File,
    /// A file that bypasses the page cache.
    DirectFile,
}

impl SideMemory {
    /// The title in reports.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            SideMemory::Memory => "memory",
            SideMemory::Cache => "in cache",
            SideMemory::File => "file",
            SideMemory::DirectFile => "direct file",
        }
    }
}

/// The result of a cell with one method and one number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// The word of the source, or the name of a known layout without a word.
    pub source: String,
    /// The word of the destination.
    pub destination: String,
    /// The purpose of the pair.
    pub purpose: PairPurpose,
    /// The memory of the source.
    pub source_place: SideMemory,
    /// The memory of the destination.
    pub destination_place: SideMemory,
    /// The copied part of the model, where it is not the whole: `rank 1 of 2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// The model of the blocks.
    pub model: String,
    /// The method.
    pub method: CopyMethod,
    /// The class of the copy.
    pub class: CopyClass,
    /// Payload bytes of one transfer, each counted once.
    pub bytes: u64,
    /// Blocks of one transfer.
    pub blocks: u64,
    /// Layers per block: fewer than the model's where the cell is small.
    pub layers: u64,
    /// Tokens per block.
    pub page_size: u64,
    /// Runs of the plan.
    pub runs: u64,
    /// Bytes of the longest run.
    pub run_bytes: u64,
    /// Bytes of the shortest run.
    pub run_bytes_min: u64,
    /// Copy threads.
    pub threads: u32,
    /// Number of rounds; results are their median.
    pub rounds: u32,
    /// Transfers in a round.
    pub repeats: u32,
    /// Payload bytes over time, in 10^9 bytes per second.
    pub gb_per_s: f64,
    /// The throughput of one flat `memcpy` of as many bytes on one thread, in turns with the
    /// method.
    pub memcpy_gb_per_s: f64,
    /// The throughput of the method over that of `memcpy`.
    pub ratio: f64,
    /// Longest minus shortest time of the rounds, as a part of the median.
    pub spread: f64,
    /// The lowest sufficient ratio, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<f64>,
    /// Nanoseconds per transfer from the call to its completion, for the class of fixed costs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ns_per_transfer: Option<f64>,
    /// Nanoseconds per `memcpy` of the same bytes, together with `ns_per_transfer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memcpy_ns_per_transfer: Option<f64>,
    /// The throughput of `fio` with direct I/O on a file of this size, in turns with the method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fio_gb_per_s: Option<f64>,
    /// `gb_per_s` over `fio_gb_per_s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fio_ratio: Option<f64>,
}

impl BenchRow {
    /// `L|KBNHC → BHLKNC (file)`.
    #[must_use]
    pub fn pair(&self) -> String {
        let end = |word: &str, place: SideMemory| match place {
            SideMemory::Memory | SideMemory::Cache => word.to_owned(),
            SideMemory::File | SideMemory::DirectFile => format!("{word} ({})", place.title()),
        };
        match self.class {
            CopyClass::Flat => "one flat memcpy".to_owned(),
            _ => format!(
                "{} → {}{}",
                end(&self.source, self.source_place),
                end(&self.destination, self.destination_place),
                self.part
                    .as_ref()
                    .map_or_else(String::new, |part| format!(", {part}"))
            ),
        }
    }

    /// The figure that a goal applies to, and the goal; `None` without a goal.
    #[must_use]
    pub fn against_goal(&self) -> Option<(f64, f64)> {
        let reached = match self.class {
            CopyClass::File => self.fio_ratio?,
            _ => self.ratio,
        };
        Some((reached, self.goal?))
    }

    /// Whether kvtile has a goal here and misses it.
    #[must_use]
    pub fn misses(&self) -> bool {
        let short = |(reached, goal)| reached < goal;
        self.method == CopyMethod::Kvtile && self.against_goal().is_some_and(short)
    }
}
