//! The disk tier against `fio` with the same piece size, in turns: its slot store, and a whole
//! cache.
//!
//! `docs/benchmarks/README.md` describes the method.

mod store;
mod text;
mod through_cache;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kvtile::{
    tiers::disk::{SlotStore, medium::BatchIo},
    transfer::FileIo,
};
use serde::Serialize;
use tempfile::TempDir;

use self::{
    store::{BlockMemory, BlockPlacement, StoreUnderTest},
    through_cache::CacheUnderTest,
};
use crate::{
    error::BenchError,
    fio::{self, FioDirection, FioJob},
    machine::MachineFacts,
    times::{RoundTimes, seconds},
};

/// The goal: this part of the throughput of `fio`.
const GOAL: f64 = 0.9;

/// Requests of `fio` in flight: the same number as the store's.
const DEPTH: u32 = 32;

/// Settings of the measurement.
#[derive(Clone, Debug)]
pub struct DiskBenchSettings {
    /// The folder of the temporary files.
    pub folder: PathBuf,
    /// Block sizes in bytes, each a multiple of 4096.
    pub block_bytes: Vec<u64>,
    /// Bytes to write and read in each round.
    pub bytes: u64,
    /// Number of rounds; results are their median.
    pub rounds: u32,
}

impl Default for DiskBenchSettings {
    fn default() -> DiskBenchSettings {
        DiskBenchSettings {
            folder: PathBuf::from("/var/tmp"),
            block_bytes: vec![8 << 10, 64 << 10, 512 << 10, 4 << 20],
            bytes: 256 << 20,
            rounds: 3,
        }
    }
}

/// The report.
#[derive(Clone, Debug, Serialize)]
pub struct DiskBenchReport {
    /// The machine.
    pub machine: MachineFacts,
    /// The I/O interface of the store's batches.
    pub through: String,
    /// Whether the store's blocks bypass the page cache.
    pub direct: bool,
    /// Bytes written and read in each round.
    pub bytes: u64,
    /// Number of rounds; results are their median.
    pub rounds: u32,
    /// The figures.
    pub rows: Vec<DiskBenchRow>,
    /// Measurements that were not possible, with the reasons.
    pub left_out: Vec<String>,
}

/// One block size in one direction.
#[derive(Clone, Debug, Serialize)]
pub struct DiskBenchRow {
    /// Bytes of a block.
    pub block_bytes: u64,
    direction: FioDirection,
    placement: BlockPlacement,
    memory: BlockMemory,
    /// 10^9 bytes per second of the store, by the median.
    pub gb_per_s: f64,
    /// Longest round minus shortest, as a part of the median.
    pub spread: f64,
    /// 10^9 bytes per second of `fio`, by the median.
    pub fio_gb_per_s: Option<f64>,
    /// Longest round of `fio` minus shortest, as a part of the median.
    pub fio_spread: Option<f64>,
    /// The store over `fio`: the median of the ratios of all rounds.
    pub ratio: Option<f64>,
    /// The lowest and the highest of these ratios.
    pub ratio_range: Option<(f64, f64)>,
    /// The goal of the ratio.
    pub goal: f64,
}

impl DiskBenchRow {
    fn misses(&self) -> bool {
        self.ratio.is_some_and(|ratio| ratio < self.goal)
    }
}

/// Times of the store and of `fio`, by round.
#[derive(Clone, Default)]
struct DiskTurns {
    ours: RoundTimes,
    theirs: RoundTimes,
    ratios: Vec<f64>,
}

/// Measures all block sizes in sequence.
///
/// # Errors
/// A folder that cannot be used, a store that refuses or loses a block, or a failure of `fio`.
pub fn run(settings: &DiskBenchSettings) -> Result<DiskBenchReport, BenchError> {
    let with_fio = fio::is_installed();
    let mut report = DiskBenchReport {
        machine: MachineFacts::probe(),
        through: String::new(),
        direct: false,
        bytes: settings.bytes,
        rounds: settings.rounds,
        rows: Vec::new(),
        left_out: Vec::new(),
    };
    if !with_fio {
        report.left_out.push(fio::NOT_INSTALLED.to_owned());
    }
    for &block_bytes in &settings.block_bytes {
        let folder = TempDir::new_in(&settings.folder).map_err(|source| BenchError::File {
            operation: "create a folder in",
            path: settings.folder.clone(),
            source,
        })?;
        let mut store = StoreUnderTest::new(folder.path(), block_bytes, settings.bytes)?;
        (report.through, report.direct) = facts(store.store());
        let beside = with_fio.then(|| folder.path().join("fio"));
        let rows = measure(&mut store, beside.as_deref(), settings)?;
        report.rows.extend(rows);
        drop(store);
        let mut cache = CacheUnderTest::new(folder.path(), block_bytes, settings.bytes)?;
        let rows = measure_cache(&mut cache, beside.as_deref(), settings)?;
        report.rows.extend(rows);
    }
    if !report.direct {
        let note = "the file system has no direct I/O: the store goes through the page cache";
        report.left_out.push(note.to_owned());
    }
    Ok(report)
}

fn facts(store: &SlotStore) -> (String, bool) {
    let through = match store.batch_io() {
        BatchIo::InFlight(FileIo::IoUring) => "io_uring".to_owned(),
        BatchIo::InFlight(FileIo::Threads { reason }) => format!("threads ({reason})"),
        _ => "one operation after the other".to_owned(),
    };
    (through, store.is_direct())
}

fn measure(
    store: &mut StoreUnderTest,
    beside: Option<&Path>,
    settings: &DiskBenchSettings,
) -> Result<Vec<DiskBenchRow>, BenchError> {
    let (block_bytes, bytes) = (store.block_bytes(), store.bytes());
    if let Some(path) = beside {
        // Creates the file that later jobs read and overwrite.
        fio::run(&FioJob {
            path,
            bytes,
            piece_bytes: 1 << 20,
            depth: DEPTH,
            direction: FioDirection::Write,
            is_random: false,
        })?;
    }
    let mut rows = Vec::new();
    for placement in [BlockPlacement::SideBySide, BlockPlacement::Scattered] {
        let mut all = WORK.map(|work| (work, DiskTurns::default()));
        for round in 0..=settings.rounds {
            for (work, turns) in &mut all {
                let job = fio_job(beside, (block_bytes, bytes), (*work, placement));
                turns.take(job.as_ref(), round, || match work.direction {
                    FioDirection::Write => store.write(placement, work.memory),
                    FioDirection::Read => store.read(placement, round == 0),
                })?;
            }
            store.erase(placement)?;
        }
        rows.extend(
            all.into_iter()
                .map(|(work, turns)| turns.row((block_bytes, bytes), work, placement)),
        );
    }
    Ok(rows)
}

/// The `fio` job of a row, if `fio` is installed.
fn fio_job(
    beside: Option<&Path>,
    (piece_bytes, bytes): (u64, u64),
    (work, placement): (DiskWork, BlockPlacement),
) -> Option<FioJob<'_>> {
    beside.map(|path| FioJob {
        path,
        bytes,
        piece_bytes,
        depth: DEPTH,
        direction: work.direction,
        is_random: placement == BlockPlacement::Scattered,
    })
}

/// Measures through a cache, which places blocks side by side. Its writes continue while its own
/// thread syncs.
fn measure_cache(
    cache: &mut CacheUnderTest,
    beside: Option<&Path>,
    settings: &DiskBenchSettings,
) -> Result<Vec<DiskBenchRow>, BenchError> {
    let (block_bytes, bytes) = (cache.block_bytes(), cache.bytes());
    let placement = BlockPlacement::ThroughCache;
    let work = [FioDirection::Write, FioDirection::Read].map(|direction| DiskWork {
        direction,
        memory: BlockMemory::Own,
    });
    let mut all = work.map(|work| (work, DiskTurns::default()));
    for round in 0..=settings.rounds {
        for (work, turns) in &mut all {
            let job = fio_job(beside, (block_bytes, bytes), (*work, placement));
            turns.take(job.as_ref(), round, || match work.direction {
                FioDirection::Write => cache.write(),
                FioDirection::Read => cache.read(round == 0),
            })?;
        }
    }
    let row =
        |(work, turns): (DiskWork, DiskTurns)| turns.row((block_bytes, bytes), work, placement);
    Ok(all.into_iter().map(row).collect())
}

/// The work of one row.
#[derive(Clone, Copy, Debug)]
struct DiskWork {
    direction: FioDirection,
    memory: BlockMemory,
}

/// The work of a round, in this order.
const WORK: [DiskWork; 3] = [
    DiskWork {
        direction: FioDirection::Write,
        memory: BlockMemory::AsFio,
    },
    DiskWork {
        direction: FioDirection::Write,
        memory: BlockMemory::Own,
    },
    DiskWork {
        direction: FioDirection::Read,
        memory: BlockMemory::Own,
    },
];

impl DiskTurns {
    /// Runs both in turns, alternating the first. Round 0 does not count.
    fn take(
        &mut self,
        job: Option<&FioJob<'_>>,
        round: u32,
        ours: impl FnOnce() -> Result<Duration, BenchError>,
    ) -> Result<(), BenchError> {
        let mut theirs = None;
        let is_first = round.is_multiple_of(2);
        if let (true, Some(job)) = (is_first, job) {
            theirs = Some(fio::run(job)?);
        }
        let ours = ours()?;
        if let (false, Some(job)) = (is_first, job) {
            theirs = Some(fio::run(job)?);
        }
        if round == 0 {
            return Ok(());
        }
        self.ours.add(ours);
        if let Some(theirs) = theirs {
            self.theirs.add(theirs);
            self.ratios.push(seconds(theirs) / seconds(ours));
        }
        Ok(())
    }

    fn row(
        mut self,
        (block_bytes, bytes): (u64, u64),
        work: DiskWork,
        placement: BlockPlacement,
    ) -> DiskBenchRow {
        let bytes = bytes as f64;
        self.ratios.sort_unstable_by(f64::total_cmp);
        let ratio = self.ratios.get(self.ratios.len() / 2).copied();
        let range = self
            .ratios
            .first()
            .copied()
            .zip(self.ratios.last().copied());
        DiskBenchRow {
            block_bytes,
            direction: work.direction,
            placement,
            memory: work.memory,
            gb_per_s: self.ours.gb_per_s(bytes),
            spread: self.ours.spread(),
            fio_gb_per_s: ratio.map(|_| self.theirs.gb_per_s(bytes)),
            fio_spread: ratio.map(|_| self.theirs.spread()),
            ratio,
            ratio_range: range,
            goal: GOAL,
        }
    }
}
