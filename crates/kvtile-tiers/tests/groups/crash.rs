//! A process with a cache over groups is killed at random moments, also between the writes of the
//! groups. Afterwards every stop that a flush reported as durable is found, and every stop that is
//! found has the right bytes in all groups.
//!
//! `KVTILE_GROUPS_KILLS=n` sets the number of kills.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use kvtile_testkit::disk::SplitMix64;
use kvtile_tiers::{cache::TierWrites, groups::GroupCacheSettings};

use super::common::{GroupEngine, chain, number, settings, with_disk};

const KILLS: u64 = 12;
const ALL: [usize; 4] = [0, 1, 2, 3];
const UNITS: usize = 8;
/// Environment variables of the process: its folder, and the first chain that it may store.
const FOLDER: &str = "KVTILE_GROUPS_FOLDER";
const FIRST: &str = "KVTILE_GROUPS_FIRST";
/// A process that is not killed ends after this time.
const SECONDS: u64 = 30;

/// Room on the disk for more than the test stores.
fn settings_of(folder: &Path, first: u64) -> GroupCacheSettings {
    let mut settings = with_disk(settings(&ALL, &[10, 4, 4, 2]), folder);
    let disk = settings.disk.as_mut().unwrap();
    disk.capacity_bytes = 512 << 20;
    if first % 2 == 1 {
        disk.writes = TierWrites::AtOnce;
    }
    settings
}

#[test]
fn a_killed_cache_keeps_durable_stops_and_serves_no_torn_one() {
    let kills = number("KVTILE_GROUPS_KILLS").unwrap_or(KILLS);
    let folder = tempfile::tempdir().unwrap();
    let mut numbers = SplitMix64::new(0x6709);
    let mut durable = BTreeSet::new();
    let mut first = 0;
    for kill in 0..kills {
        let after = Duration::from_micros(60_000 + numbers.below(150_000));
        first = 1 + run_and_kill(folder.path(), first, after, &mut durable);
        check(folder.path(), (&durable, first), kill);
    }
    println!(
        "{kills} kills, {} durable stops, {first} chains",
        durable.len()
    );
    assert!(
        !durable.is_empty() || kills < 10,
        "no process stored a stop"
    );
}

fn run_and_kill(
    folder: &Path,
    first: u64,
    after: Duration,
    durable: &mut BTreeSet<(u64, u64)>,
) -> u64 {
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", "crash::the_cache_over_groups_that_is_killed"]);
    process.env(FOLDER, folder).env(FIRST, first.to_string());
    let mut process = process.stdout(Stdio::piped()).spawn().unwrap();
    thread::sleep(after);
    process.kill().unwrap();
    let mut said = String::new();
    let mut output = process.stdout.take().unwrap();
    output.read_to_string(&mut said).unwrap();
    process.wait().unwrap();
    let mut last = first;
    for line in said
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["begun", chain] => last = chain.parse().unwrap(),
            ["durable", chain, stop] => {
                durable.insert((chain.parse().unwrap(), stop.parse().unwrap()));
            }
            _ => {}
        }
    }
    last
}

fn check(folder: &Path, (durable, chains): (&BTreeSet<(u64, u64)>, u64), kill: u64) {
    let engine = GroupEngine::new(&ALL);
    let cache = engine.open(settings_of(folder, 0));
    cache.check_integrity();
    for number in 0..chains {
        let keys = chain(number, 0, 0, UNITS);
        let found = cache.lookup(&keys);
        let stops = found.stops();
        assert_eq!(
            stops,
            engine.naive(&cache, &keys),
            "kill {kill}: chain {number}"
        );
        let promised = durable.range((number, 0)..(number + 1, 0));
        for (_, stop) in promised {
            assert!(
                stops.contains(stop),
                "kill {kill}: chain {number}: {stop} of {stops:?}"
            );
        }
        let stop = found.stop();
        let loaded = engine.load(&cache, &keys, found).tokens;
        assert_eq!(loaded, stop, "kill {kill}: chain {number}");
    }
}

/// Not a test by itself: the process to kill. Without the environment variables it does nothing.
#[test]
fn the_cache_over_groups_that_is_killed() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let mut next = number(FIRST).unwrap();
    let engine = GroupEngine::new(&ALL);
    let cache = engine.open(settings_of(folder.as_ref(), next).workers(1));
    let mut numbers = SplitMix64::new(next);
    let ends = Instant::now() + Duration::from_secs(SECONDS);
    while Instant::now() < ends {
        let mut stored = Vec::new();
        for _ in 0..1 + numbers.index(3) {
            say(&format!("begun {next}"));
            let stop = 8 * (1 + numbers.below(4));
            engine.store(&cache, &chain(next, 0, 0, UNITS), &[stop]);
            stored.push((next, stop));
            let earlier = chain(numbers.below(next + 1), 0, 0, UNITS);
            let found = cache.lookup(&earlier);
            engine.load(&cache, &earlier, found);
            next += 1;
        }
        let flushed = cache.flush();
        if flushed.iter().all(|(_, report)| report.durable) {
            for (chain, stop) in stored {
                say(&format!("durable {chain} {stop}"));
            }
        }
    }
}

/// Prints a line in one write, which outlives the process. `println` would be captured.
fn say(what: &str) {
    let line = format!("\n{what}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}
