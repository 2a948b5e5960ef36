//! Kills a writing process at random moments, repeatedly, in the same folder. Every block that it
//! reported durable is recovered, and every recovered block has the bytes that were written.
//!
//! `KVTILE_DISK_KILLS=n` sets the number of kills; `cargo x soak --kills n` does that.

use std::{
    collections::HashSet,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::common::{content, key, room_for, usual};
use kvtile_testkit::disk::SplitMix64;
use kvtile_tiers::disk::{SlotState, SlotStore, SlotWrite};

const KILLS: u64 = 50;
const PLACES: u64 = 40;
/// Environment variables of the writer: its folder, and the first block number that it may use.
const FOLDER: &str = "KVTILE_DISK_WRITER_FOLDER";
const FIRST: &str = "KVTILE_DISK_WRITER_FIRST";
/// The writer ends by itself after this time if it is not killed.
const WRITER_SECONDS: u64 = 30;

#[test]
fn a_killed_writer_loses_nothing_durable_and_leaves_nothing_wrong() {
    let kills = std::env::var("KVTILE_DISK_KILLS").ok();
    let kills = kills.and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    let folder = tempfile::tempdir().unwrap();
    let mut numbers = SplitMix64::new(0x4b11);
    let mut durable = HashSet::new();
    let (mut first, mut said) = (0, 0);
    for kill in 0..kills {
        let after = Duration::from_micros(numbers.below(60_000));
        let (last, lines) = run_and_kill(folder.path(), first, after, &mut durable);
        first = last + 1;
        said += lines;
        durable = check(folder.path(), &durable, kill);
    }
    println!("{kills} kills, {said} blocks reported durable, {first} numbers used");
    assert!(said > 0 || kills < 10, "no writer reported a durable block");
}

/// Returns the last number that the writer used, and how many blocks it reported durable.
fn run_and_kill(
    folder: &Path,
    first: u64,
    after: Duration,
    durable: &mut HashSet<u64>,
) -> (u64, u64) {
    let mut writer = Command::new(std::env::current_exe().unwrap());
    writer.args(["--exact", "crash::the_writer_that_is_killed"]);
    writer.env(FOLDER, folder).env(FIRST, first.to_string());
    let mut writer = writer.stdout(Stdio::piped()).spawn().unwrap();
    thread::sleep(after);
    writer.kill().unwrap();
    let mut said = String::new();
    writer
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    writer.wait().unwrap();
    let (mut last, mut count) = (first, 0);
    for line in said.lines() {
        let mut words = line.split(' ');
        let what = words.next().unwrap();
        let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        last = numbers.iter().copied().fold(last, u64::max);
        match what {
            "durable" => {
                count += numbers.len() as u64;
                durable.extend(numbers);
            }
            "erasing" => numbers.iter().for_each(|number| {
                durable.remove(number);
            }),
            _ => {}
        }
    }
    (last, count)
}

/// Opens the folder, checks it, and returns the recovered blocks.
fn check(folder: &Path, durable: &HashSet<u64>, kill: u64) -> HashSet<u64> {
    let identity = usual();
    let settings = room_for(PLACES, &identity);
    let (store, recovered) = SlotStore::create_or_open(folder, &settings, &identity).unwrap();
    store.check_integrity();
    let mut buffer = vec![0; usize::try_from(identity.block_bytes()).unwrap()];
    let mut offered = HashSet::new();
    for entry in &recovered.entries {
        let number = u64::from(entry.tenant);
        assert_eq!(entry.key, key(number), "kill {kill}");
        store.read(entry.slot, &entry.key, &mut buffer).unwrap();
        assert!(
            buffer == content(number, &identity),
            "kill {kill}: block {number}"
        );
        offered.insert(number);
    }
    let missing: Vec<_> = durable.difference(&offered).collect();
    assert!(
        missing.is_empty(),
        "kill {kill}: durable blocks {missing:?} are missing"
    );
    assert_eq!(recovered.dropped.torn, 0, "a kill tears no sector");
    offered
}

/// Not a test: the process that is killed. Without the variable `FOLDER` it does nothing.
#[test]
fn the_writer_that_is_killed() {
    let (Ok(folder), Ok(first)) = (std::env::var(FOLDER), std::env::var(FIRST)) else {
        return;
    };
    let identity = usual();
    let settings = room_for(PLACES, &identity);
    let (store, recovered) =
        SlotStore::create_or_open(folder.as_ref(), &settings, &identity).unwrap();
    let mut next: u64 = first.parse().unwrap();
    let mut numbers = SplitMix64::new(next);
    let mut held: Vec<Option<u64>> = vec![None; store.slots() as usize];
    for entry in &recovered.entries {
        held[entry.slot as usize] = Some(u64::from(entry.tenant));
    }
    let ends = Instant::now() + Duration::from_secs(WRITER_SECONDS);
    while Instant::now() < ends {
        let slots: Vec<usize> = (0..1 + numbers.index(6))
            .map(|_| numbers.index(held.len()))
            .collect();
        let erased: Vec<u64> = slots.iter().filter_map(|slot| held[*slot].take()).collect();
        say("erasing", &erased);
        let ids: Vec<u32> = slots
            .iter()
            .map(|slot| u32::try_from(*slot).unwrap())
            .collect();
        store.erase(&ids).unwrap();
        let mut written = Vec::new();
        for slot in ids {
            if store.state(slot) != SlotState::Empty || numbers.once_in(3) {
                continue;
            }
            let bytes = content(next, &identity);
            let write = SlotWrite {
                slot,
                key: key(next),
                parent: None,
                position: 0,
                tenant: u32::try_from(next).unwrap(),
                bytes: &bytes,
            };
            assert!(store.write(&[write]).failed.is_empty());
            held[slot as usize] = Some(next);
            written.push(next);
            next += 1;
        }
        assert!(store.sync().failure.is_none());
        say("durable", &written);
    }
}

/// Prints a line in one write, which survives a kill. `println` would be captured.
fn say(what: &str, numbers: &[u64]) {
    let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
    let line = format!("\n{what} {}\n", numbers.join(" "));
    std::io::stdout().write_all(line.as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}
