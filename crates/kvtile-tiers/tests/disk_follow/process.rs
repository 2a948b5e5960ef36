//! Two real processes: this one and a child, of which one writes a folder and the other follows it.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use kvtile_testkit::{disk::SplitMix64, tier::HostMemory};
use kvtile_tiers::{
    disk::{DiskFollower, DiskSettings, DiskTier},
    tier::{Tier, TierMiss},
};

use crate::common::{
    DISK_BYTES, FolderReader, FollowRig, GROUP, NOW, PATIENCE, chain, context_of, ended, keys,
    writes,
};

/// The folder of a child.
pub(crate) const FOLLOWED: &str = "KVTILE_FOLLOWED_FOLDER";

const CHAINS: u64 = 8;
const CHAIN_BLOCKS: u32 = 9;

/// Hits after which the following child ends.
const HITS: usize = 20_000;

/// A child with its lines of output.
pub(crate) struct TestChild {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl TestChild {
    /// Runs one test of this binary in a process of its own.
    pub(crate) fn run(test: &str, folder: &Path) -> TestChild {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", test]).env(FOLLOWED, folder);
        let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
        let output = child.stdout.take().unwrap();
        TestChild {
            child,
            lines: BufReader::new(output).lines(),
        }
    }

    /// The rest of the first line that begins with `word`.
    pub(crate) fn line(&mut self, word: &str) -> String {
        loop {
            let line = self.lines.next().unwrap().unwrap();
            if let Some(rest) = line.strip_prefix(word) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Waits until it has ended without a failure.
    pub(crate) fn end(mut self) {
        for line in self.lines.by_ref() {
            println!("child: {}", line.unwrap());
        }
        assert!(self.child.wait().unwrap().success());
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Prints a line in one write; `println` would be captured.
pub(crate) fn say(line: &str) {
    let line = format!("\n{line}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

pub(crate) fn followed() -> Option<PathBuf> {
    std::env::var_os(FOLLOWED).map(PathBuf::from)
}

#[test]
fn another_process_follows_while_this_one_writes() {
    let rig = FollowRig::new(2);
    // The child starts first: the folder does not exist yet.
    let mut child = TestChild::run("process::the_following_process", &rig.path());
    assert_eq!(child.line("opened"), "0");
    let writer = rig.writer();
    let mut numbers = SplitMix64::new(5);
    let start = Instant::now();
    let mut writes = 0;
    while child.child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < 2 * PATIENCE, "the child does not end");
        let blocks = chain(numbers.below(CHAINS), CHAIN_BLOCKS);
        match numbers.below(4) {
            0 => drop(
                writer
                    .tier
                    .forget(GROUP, &keys(&blocks[numbers.index(9)..])),
            ),
            1 => drop(writer.tier.evict(numbers.index(6), NOW)),
            _ => writes += writer.write(&blocks),
        }
        writer.sync();
    }
    let seen = child.line("hits");
    println!("{writes} blocks written or present; the other process: {seen}");
    child.end();
    let mut left = chain(1, CHAIN_BLOCKS);
    left.truncate(1);
    assert_eq!(writer.write(&left), 1, "the writer's folder is as it was");
}

/// Not a test: the process that follows. Without the variable it does nothing.
#[test]
fn the_following_process() {
    let Some(folder) = followed() else {
        return;
    };
    let host = HostMemory::new(64).unwrap();
    let settings = DiskSettings::new(folder, DISK_BYTES).refresh_after(Duration::from_millis(2));
    let context = context_of(host.identity().clone(), 2);
    let tier = DiskFollower::open(&settings, &context).unwrap();
    let reader = FolderReader::new(tier, &host);
    say(&format!("opened {}", reader.list().len()));
    let mut numbers = SplitMix64::new(6);
    let (mut hits, mut absent) = (0, 0);
    let start = Instant::now();
    while hits < HITS && start.elapsed() < PATIENCE {
        let blocks = chain(numbers.below(CHAINS), CHAIN_BLOCKS);
        let found = reader.found(&blocks);
        // Compares every byte.
        for outcome in reader.read(&blocks[..found]) {
            match outcome {
                Ok(()) => hits += 1,
                Err(TierMiss::Absent) => absent += 1,
                Err(miss) => panic!("{miss:?}"),
            }
        }
    }
    let stats = reader.tier.follower_stats();
    say(&format!("hits {hits}, absent {absent}, {stats:?}"));
    assert!(hits >= HITS, "{stats:?}");
}

#[test]
fn a_writer_that_is_killed_is_followed() {
    let rig = FollowRig::new(2);
    let reader = rig.follower();
    let mut numbers = SplitMix64::new(7);
    let mut hits = 0;
    for kill in 0..25 {
        let mut child = TestChild::run("process::the_writing_process", &rig.path());
        child.line("writes");
        let start = Instant::now();
        let length = Duration::from_micros(numbers.below(60_000));
        while start.elapsed() < length {
            hits += read_some(&reader, &mut numbers, kill);
        }
        child.kill();
        hits += read_some(&reader, &mut numbers, kill);
        reader.fresh(&[]);
        // Nobody writes now: what a read of the fresh index misses is not there.
        for number in 0..CHAINS {
            let blocks = chain(number, CHAIN_BLOCKS);
            for (block, outcome) in blocks.iter().zip(reader.read(&blocks)) {
                let there = reader.list().contains(&(block.key, block.parent));
                assert_eq!(
                    outcome.is_ok(),
                    there,
                    "kill {kill}: {block:?}: {outcome:?}"
                );
            }
        }
    }
    println!("{hits} hits");
    assert!(hits > 100, "{hits}");
}

fn read_some(reader: &FolderReader<'_>, numbers: &mut SplitMix64, kill: usize) -> usize {
    let blocks = chain(numbers.below(CHAINS), CHAIN_BLOCKS);
    if numbers.once_in(2) {
        reader.fresh(&blocks);
    }
    let mut hits = 0;
    for outcome in reader.read(&blocks) {
        match outcome {
            Ok(()) => hits += 1,
            Err(TierMiss::Absent) => {}
            Err(miss) => panic!("kill {kill}: {miss:?}"),
        }
    }
    hits
}

/// Not a test: the process that writes and is killed. Without the variable it does nothing.
#[test]
fn the_writing_process() {
    let Some(folder) = followed() else {
        return;
    };
    let host = HostMemory::new(64).unwrap();
    let settings = DiskSettings::new(folder, DISK_BYTES);
    let context = context_of(host.identity().clone(), 2);
    let tier = DiskTier::open(&settings, &context).unwrap();
    let mut numbers = SplitMix64::new(u64::from(std::process::id()));
    say("writes");
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let blocks = chain(numbers.below(CHAINS), CHAIN_BLOCKS);
        match numbers.below(4) {
            0 => drop(tier.forget(GROUP, &keys(&blocks[numbers.index(9)..]))),
            1 => drop(tier.evict(numbers.index(6), NOW)),
            _ => drop(ended(&tier.write(writes(&host, &blocks)))),
        }
        ended(&tier.sync());
    }
}
