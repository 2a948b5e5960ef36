//! Measures the cost of allocating and touching memory with huge pages and pre-faulting on and off.
//!
//! `cargo run --release -p kvtile-memory --example first_touch -- [MIB] [ROUNDS]`
//!
//! Times the allocation, then one write to each of its pages, and prints the fastest of the rounds.

use kvtile_memory::{MemoryError, Prefault, SharedMemory, SystemMemory};
use std::hint::black_box;
use std::time::{Duration, Instant};

fn main() -> Result<(), MemoryError> {
    let mut arguments = std::env::args().skip(1).map_while(|text| text.parse().ok());
    let mebibytes: usize = arguments.next().unwrap_or(1024);
    let rounds = arguments.next().unwrap_or(3);
    let bytes = mebibytes.saturating_mul(1 << 20);
    println!("{mebibytes} MiB, least of {rounds}");
    println!("kind    huge pages  pre-fault   allocate  touch all      both  GiB/s");
    for huge_pages in [false, true] {
        for (name, prefault) in [
            ("none", Prefault::None),
            ("1 thread", Prefault::Populate { threads: 1 }),
            ("all CPUs", Prefault::Populate { threads: 0 }),
        ] {
            let system = least(rounds, || system(bytes, huge_pages, prefault))?;
            print("system", huge_pages, name, bytes, system);
            let shared = least(rounds, || shared(bytes, huge_pages, prefault))?;
            print("shared", huge_pages, name, bytes, shared);
        }
    }
    Ok(())
}

/// Time to allocate, and then to touch every page.
type FirstTouchTimes = (Duration, Duration);

fn system(
    bytes: usize,
    huge_pages: bool,
    prefault: Prefault,
) -> Result<FirstTouchTimes, MemoryError> {
    let options = SystemMemory::options().huge_pages(huge_pages);
    let start = Instant::now();
    let mut memory = options.prefault(prefault).allocate(bytes)?;
    let allocated = start.elapsed();
    touch(memory.as_mut_slice());
    Ok((allocated, start.elapsed() - allocated))
}

fn shared(
    bytes: usize,
    huge_pages: bool,
    prefault: Prefault,
) -> Result<FirstTouchTimes, MemoryError> {
    let options = SharedMemory::options().huge_pages(huge_pages);
    let start = Instant::now();
    let mut memory = options.prefault(prefault).create(bytes)?;
    let allocated = start.elapsed();
    // SAFETY: no other process or mapping has the memory.
    touch(unsafe { memory.as_mut_slice() });
    Ok((allocated, start.elapsed() - allocated))
}

fn touch(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().step_by(4096) {
        *byte = 1;
    }
    black_box(bytes);
}

fn least(
    rounds: usize,
    run: impl Fn() -> Result<FirstTouchTimes, MemoryError>,
) -> Result<FirstTouchTimes, MemoryError> {
    let mut best = run()?;
    for _ in 1..rounds {
        let times = run()?;
        if times.0 + times.1 < best.0 + best.1 {
            best = times;
        }
    }
    Ok(best)
}

fn print(kind: &str, huge_pages: bool, prefault: &str, bytes: usize, times: FirstTouchTimes) {
    let milliseconds = |time: Duration| 1e3 * time.as_secs_f64();
    let both = times.0 + times.1;
    let speed = bytes as f64 / f64::from(1 << 30) / both.as_secs_f64();
    println!(
        "{kind:7} {:11} {prefault:10} {:7.1} ms {:7.1} ms {:6.1} ms {speed:6.2}",
        if huge_pages { "requested" } else { "declined" },
        milliseconds(times.0),
        milliseconds(times.1),
        milliseconds(both),
    );
}
