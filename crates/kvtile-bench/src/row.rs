//! One measurement, as it is stored.

use serde::{Deserialize, Serialize};

use crate::{class::Class, contender::Method, matrix::Purpose};

/// Where one side lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Memory that does not fit a cache.
    Memory,
    /// Memory that fits the second-level cache together with the other side.
    Cache,
    /// A file through the page cache.
    File,
    /// A file past the page cache.
    DirectFile,
}

impl Place {
    /// What a reader calls it.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Place::Memory => "memory",
            Place::Cache => "in cache",
            Place::File => "file",
            Place::DirectFile => "direct file",
        }
    }
}

/// What a cell came to with one method and one number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The word of what was read, or the name of a known layout without one.
    pub source: String,
    /// The word of what was written.
    pub destination: String,
    /// What the pair is for.
    pub purpose: Purpose,
    /// Where the source lies.
    pub source_place: Place,
    /// Where the destination lies.
    pub destination_place: Place,
    /// Which part of the model is copied, where it is not all of it: `rank 1 of 2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// What the blocks hold.
    pub model: String,
    /// What copied.
    pub method: Method,
    /// What the copy comes to.
    pub class: Class,
    /// Payload bytes of one transfer, each counted once.
    pub bytes: u64,
    /// Blocks of one transfer.
    pub blocks: u64,
    /// Layers of a block: fewer than the model's where the cell is small.
    pub layers: u64,
    /// Tokens of a block.
    pub page_size: u64,
    /// Runs of the plan.
    pub runs: u64,
    /// Bytes of the longest run.
    pub run_bytes: u64,
    /// Bytes of the shortest run.
    pub run_bytes_min: u64,
    /// Threads that copy.
    pub threads: u32,
    /// Rounds of which the medians are given.
    pub rounds: u32,
    /// Transfers in a round.
    pub repeats: u32,
    /// Payload bytes over time, in 10^9 bytes a second.
    pub gb_per_s: f64,
    /// The same for one flat `memcpy` of as many bytes on one thread, in turns with this.
    pub memcpy_gb_per_s: f64,
    /// One over the other.
    pub ratio: f64,
    /// Longest less shortest time of the rounds, as a part of the median.
    pub spread: f64,
    /// The least ratio that is good enough, where one was set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<f64>,
    /// Of one transfer from the call to its completion, where that is what counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ns_per_transfer: Option<f64>,
    /// Of a `memcpy` of the same bytes, beside `ns_per_transfer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memcpy_ns_per_transfer: Option<f64>,
    /// What `fio` reached with direct I/O on a file of this size, in turns with this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fio_gb_per_s: Option<f64>,
    /// `gb_per_s` over `fio_gb_per_s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fio_ratio: Option<f64>,
}

impl Row {
    /// `L|KBNHC → BHLKNC (file)`.
    #[must_use]
    pub fn pair(&self) -> String {
        let end = |word: &str, place: Place| match place {
            Place::Memory | Place::Cache => word.to_owned(),
            Place::File | Place::DirectFile => format!("{word} ({})", place.title()),
        };
        match self.class {
            Class::Flat => "one flat memcpy".to_owned(),
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

    /// What is compared with the goal, and the goal; `None` where there is none.
    #[must_use]
    pub fn against_goal(&self) -> Option<(f64, f64)> {
        let reached = match self.class {
            Class::File => self.fio_ratio?,
            _ => self.ratio,
        };
        Some((reached, self.goal?))
    }

    /// Whether a goal was set for kvtile and is missed.
    #[must_use]
    pub fn misses(&self) -> bool {
        let short = |(reached, goal)| reached < goal;
        self.method == Method::Kvtile && self.against_goal().is_some_and(short)
    }
}
