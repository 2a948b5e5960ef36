//! Allocating and populating a pool, against populating a plain mapping on as many threads.

use std::{
    thread,
    time::{Duration, Instant},
};

use kvtile::memory::{Prefault, SystemMemory};
use memmap2::{Advice, MmapOptions};
use serde::{Deserialize, Serialize};

use crate::{error::BenchError, machine::MachineFacts, settings::BenchSettings, times::RoundTimes};

/// Rounds of each side.
const ROUNDS: u32 = 3;

/// Largest pool, if the memory allows.
const POOL_BYTES: u64 = 8 << 30;

/// Largest pool in a quick run.
const POOL_BYTES_QUICK: u64 = 1 << 30;

/// The times of the first touch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstTouch {
    /// Size of the pool.
    pub bytes: u64,
    /// Threads that populate the memory.
    pub threads: u32,
    /// Seconds until kvtile has a populated pool, the median.
    pub seconds: f64,
    /// Seconds to map and populate as much memory, in turns with kvtile.
    pub populate_seconds: f64,
    /// The plain time over kvtile's: 1 is as fast.
    pub ratio: f64,
    /// Number of rounds; results are their median.
    pub rounds: u32,
}

/// Measures both in turns.
///
/// # Errors
/// Memory that cannot be allocated.
pub(crate) fn measure(settings: &BenchSettings) -> Result<FirstTouch, BenchError> {
    let wanted = if settings.quick {
        POOL_BYTES_QUICK
    } else {
        POOL_BYTES
    };
    let available = MachineFacts::available_bytes().unwrap_or(wanted);
    // Half of the memory stays free for other processes.
    let bytes = settings.bytes.iter().copied().max().unwrap_or(wanted);
    let bytes = bytes.min(available / 2).max(1 << 20);
    let size = usize::try_from(bytes).unwrap_or(usize::MAX);
    let threads = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (mut ours, mut plain) = (RoundTimes::default(), RoundTimes::default());
    let rounds = settings.rounds.unwrap_or(ROUNDS);
    for round in 0..rounds {
        let (mut first, mut second) = (None, None);
        for turn in 0..2 {
            match (round + turn) % 2 {
                0 => first = Some(pool(size)?),
                _ => second = Some(populate(size, threads)?),
            }
        }
        first.into_iter().for_each(|time| ours.add(time));
        second.into_iter().for_each(|time| plain.add(time));
    }
    let seconds = crate::times::seconds(ours.median());
    let populate_seconds = crate::times::seconds(plain.median());
    Ok(FirstTouch {
        bytes,
        threads: u32::try_from(threads).unwrap_or(u32::MAX),
        seconds,
        populate_seconds,
        ratio: populate_seconds / seconds,
        rounds,
    })
}

fn pool(bytes: usize) -> Result<Duration, BenchError> {
    let start = Instant::now();
    let options = SystemMemory::options().prefault(Prefault::Populate { threads: 0 });
    let memory = options.progress(|_| {}).allocate(bytes)?;
    let elapsed = start.elapsed();
    drop(memory);
    Ok(elapsed)
}

/// Populates a mapping with huge pages; each thread populates its share.
fn populate(bytes: usize, threads: usize) -> Result<Duration, BenchError> {
    let failed = |operation| {
        move |source| BenchError::File {
            operation,
            path: "memory".into(),
            source,
        }
    };
    let start = Instant::now();
    let mapping = MmapOptions::new()
        .len(bytes)
        .map_anon()
        .map_err(failed("map"))?;
    // A kernel without huge pages populates small ones, for kvtile too.
    let _ = mapping.advise(Advice::HugePage);
    let share = bytes.div_ceil(threads).next_multiple_of(2 << 20);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..bytes)
            .step_by(share)
            .map(|start| {
                let length = share.min(bytes - start);
                let mapping = &mapping;
                scope.spawn(move || mapping.advise_range(Advice::PopulateWrite, start, length))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            let panicked = || std::io::Error::other("a thread ended early");
            worker.join().map_err(|_| panicked()).and_then(|done| done)
        })
    })
    .map_err(failed("populate"))?;
    let elapsed = start.elapsed();
    drop(mapping);
    Ok(elapsed)
}
