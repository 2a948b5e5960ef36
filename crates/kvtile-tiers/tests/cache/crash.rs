//! A process with a whole cache is killed at random moments, again and again, in the same folder,
//! while it stores, evicts, reads back and flushes on several threads. Every block that a flush
//! reported as durable is found, and every loaded byte is what was stored.
//!
//! `KVTILE_CACHE_KILLS=n` sets the number of kills; `cargo x soak` uses it.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use kvtile_blocks::events::TierId;
use kvtile_testkit::disk::SplitMix64;
use kvtile_tiers::cache::{Cache, CacheSettings, TierWrites};

use super::{
    common::{TestEngine, chain, engine_layout, number, with_disk},
    keeper,
};

/// Room for more than the test stores, so that no durable block is evicted.
const DISK: u64 = 256 << 20;
const HOST_BLOCKS: u64 = 12;
/// Length of the longest chain.
const LENGTH_MAX: usize = 8;
/// Environment variables of the process: its folder, and the first chain that it may store.
const FOLDER: &str = "KVTILE_CACHE_FOLDER";
const FIRST: &str = "KVTILE_CACHE_FIRST";
/// A process that is not killed ends after this time.
const SECONDS: u64 = 30;
/// A process prints something within this time.
const AWAITED_WITHIN: Duration = Duration::from_secs(60);

fn settings(folder: &Path, first: u64) -> CacheSettings {
    let writes = if first.is_multiple_of(2) {
        TierWrites::OnEviction
    } else {
        TierWrites::AtOnce
    };
    with_disk(HOST_BLOCKS, folder, DISK).disk_writes(writes)
}

#[test]
fn a_killed_cache_loses_nothing_durable_and_serves_nothing_wrong() {
    let kills = number("KVTILE_CACHE_KILLS").unwrap_or(keeper::KILLS);
    let folder = tempfile::tempdir().unwrap();
    let mut numbers = SplitMix64::new(0xcac4e);
    let mut durable = BTreeMap::new();
    let mut first = 0;
    for kill in 0..kills {
        let after = Duration::from_micros(numbers.below(120_000));
        // However long a start takes, some processes come to store blocks.
        let awaited = ["durable", "begun", "", "begun"][usize::try_from(kill % 4).unwrap()];
        first = 1 + run_and_kill((folder.path(), first), awaited, after, &mut durable);
        check(folder.path(), &durable, kill);
    }
    let blocks: usize = durable.values().sum();
    println!("{kills} kills, {blocks} durable blocks, {first} chains");
    assert!(blocks > 0 || kills < 10, "no process stored a block");
}

/// Kills a process some time after it has said a word. Returns the last chain that was begun. Adds the chains reported as
/// durable, with their lengths.
fn run_and_kill(
    (folder, first): (&Path, u64),
    awaited: &str,
    after: Duration,
    durable: &mut BTreeMap<u64, usize>,
) -> u64 {
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", "crash::the_cache_that_is_killed"]);
    process.env(FOLDER, folder).env(FIRST, first.to_string());
    let mut process = process.stdout(Stdio::piped()).spawn().unwrap();
    let mut output = process.stdout.take().unwrap();
    let (send, pieces) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut piece = [0; 256];
        while let Ok(bytes @ 1..) = output.read(&mut piece) {
            let text = std::str::from_utf8(&piece[..bytes]).unwrap();
            send.send(text.to_owned()).unwrap();
        }
    });
    let mut said = String::new();
    while !said.contains(awaited) {
        let piece = pieces.recv_timeout(AWAITED_WITHIN);
        if piece.is_err() {
            process.kill().unwrap();
        }
        assert!(piece.is_ok(), "no {awaited:?} came ({piece:?}): {said}");
        said.push_str(&piece.unwrap());
    }
    thread::sleep(after);
    process.kill().unwrap();
    said.extend(pieces.iter());
    reader.join().unwrap();
    process.wait().unwrap();
    let mut last = first;
    // A line that the kill cut off has no newline.
    for line in said
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["begun", chain] => last = chain.parse().unwrap(),
            ["durable", chain, length] => {
                durable.insert(chain.parse().unwrap(), length.parse().unwrap());
            }
            _ => {}
        }
    }
    last
}

/// Every durable block is found, and every loaded block has the right content.
fn check(folder: &Path, durable: &BTreeMap<u64, usize>, kill: u64) {
    let cache = Cache::open(settings(folder, 0), engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let last = durable.keys().next_back().map_or(0, |last| last + 8);
    for number in 0..last {
        let keys = chain(number, LENGTH_MAX);
        let found = cache.lookup(&keys).blocks();
        let promised = durable.get(&number).copied().unwrap_or(0);
        assert!(
            found >= promised,
            "kill {kill}: chain {number} has {found} of {promised} blocks"
        );
        assert_eq!(engine.load(&keys, 0), found, "kill {kill}: chain {number}");
    }
    assert_eq!(cache.pool_stats(TierId::DISK).unwrap().open_claims, 0);
    cache.check_integrity();
}

/// Not a test by itself: the process to kill. Without the environment variables it does nothing.
#[test]
fn the_cache_that_is_killed() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let mut next = number(FIRST).unwrap();
    let cache = Cache::open(settings(folder.as_ref(), next), engine_layout()).unwrap();
    let mut engine = TestEngine::new(&cache);
    let mut numbers = SplitMix64::new(next);
    let ends = Instant::now() + Duration::from_secs(SECONDS);
    while Instant::now() < ends {
        let mut stored = Vec::new();
        for _ in 0..1 + numbers.index(4) {
            say(&format!("begun {next}"));
            let length = 1 + numbers.index(LENGTH_MAX);
            engine.store(&chain(next, length), 0);
            stored.push((next, length));
            let earlier = numbers.below(next + 1);
            engine.load(&chain(earlier, LENGTH_MAX), 20);
            next += 1;
        }
        let flushed = cache.flush();
        assert!(flushed.durable && flushed.failed == 0, "{flushed:?}");
        for (chain, length) in stored {
            say(&format!("durable {chain} {length}"));
        }
    }
}

/// Prints a line in one write, which outlives the process. `println` would be captured.
fn say(what: &str) {
    let line = format!("\n{what}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}
