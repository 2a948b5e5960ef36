//! Batches complete and release their memory, even if their completions or the tier are dropped,
//! and while other batches are in flight.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use kvtile_blocks::Tick;
use kvtile_tiers::tier::{NotWritten, TierMiss, WriteSuccess};
use parking_lot::Mutex;

use super::{ChainLink, GROUP, PATIENCE, RigHandle, TierCheck, TierRig, chain, keys};
use crate::disk::SplitMix64;

pub(super) const CHECKS: &[TierCheck] = &[
    (
        "batches whose completions are dropped complete and release their memory",
        left_alone,
    ),
    ("cancelled batches complete as others do", given_up),
    ("dropping a tier completes its batches first", dropped_tier),
    (
        "a hold outlives its tier and keeps no memory of a batch",
        dropped_before_its_holds,
    ),
    ("concurrent batches do not mix up blocks", at_once),
];

fn left_alone(rig: &mut TierRig) {
    let links = chain(1, 6);
    drop(rig.tier().write(rig.hands().writes(&links).1));
    drop(rig.tier().sync());
    assert!(rig.host.wait_until_free(PATIENCE));
    // The write has completed, and there was room.
    rig.read_all(&links);
    for _ in 0..8 {
        drop(rig.tier().read(rig.hands().reads(&links).1));
    }
    assert!(rig.host.wait_until_free(PATIENCE));
    rig.read_all(&links);
}

fn given_up(rig: &mut TierRig) {
    let links = chain(1, 6);
    let written = rig.tier().write(rig.hands().writes(&links).1);
    let _ = written.wait_timeout(Duration::ZERO);
    written.cancel();
    let read = rig.tier().read(rig.hands().reads(&links).1);
    let _ = read.wait_timeout(Duration::ZERO);
    read.cancel();
    let written = written.wait_timeout(PATIENCE);
    let written = written.map(|report| report.blocks.to_vec());
    let read = read
        .wait_timeout(PATIENCE)
        .map(|report| report.blocks.len());
    assert_eq!(written.as_ref().map(Vec::len), Some(6));
    assert_eq!(read, Some(6));
    assert_eq!(rig.host.free_blocks(), rig.host.blocks());
    // The reported outcome of each block is true.
    for (outcome, link) in written.iter().flatten().zip(&links) {
        assert_eq!(
            outcome.is_ok(),
            rig.tier().has(GROUP, &link.name.key),
            "{link:?}: {outcome:?}"
        );
    }
}

fn dropped_tier(rig: &mut TierRig) {
    let links = chain(1, 8);
    rig.write_new(&links[..4]);
    let mut written = Vec::new();
    let mut read = Vec::new();
    for number in 2..6 {
        written.push(rig.tier().write(rig.hands().writes(&chain(number, 6)).1));
        read.push(rig.tier().read(rig.hands().reads(&links).1));
    }
    let synced = rig.tier().sync();
    rig.reopen();
    let start = Instant::now();
    let left = || PATIENCE.saturating_sub(start.elapsed());
    for completion in written {
        let report = completion.wait_timeout(left());
        assert_eq!(report.map(|report| report.blocks.len()), Some(6));
    }
    for completion in read {
        let report = completion.wait_timeout(left());
        assert_eq!(report.map(|report| report.blocks.len()), Some(8));
    }
    assert!(synced.wait_timeout(left()).is_some());
    assert_eq!(rig.host.free_blocks(), rig.host.blocks());
}

fn dropped_before_its_holds(rig: &mut TierRig) {
    let links = chain(1, 4);
    rig.write_new(&links);
    let mut hold = rig.find(&links);
    drop(rig.opened.take());
    assert_eq!(rig.host.free_blocks(), rig.host.blocks());
    let rest = hold.as_mut().map(|hold| hold.split_off(1));
    assert_eq!(rest.map(|rest| rest.blocks()), Some(3));
    drop(hold);
    rig.reopen();
}

/// Several threads write, read, look up and evict at random in a few shared chains, which exceed
/// the tier's capacity.
fn at_once(rig: &mut TierRig) {
    let began = Mutex::default();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (hands, began) = (rig.hands(), &began);
            scope.spawn(move || work(hands, began, thread));
        }
    });
    assert_eq!(rig.host.free_blocks(), rig.host.blocks());
    rig.check();
    let present = rig.tier().stats().present;
    let there = |number| rig.leading(&chain(number, 8)) as u64;
    // Only the ends of chains were evicted.
    assert_eq!((0..CHAINS).map(there).sum::<u64>(), present);
    for number in 0..CHAINS {
        let links = chain(number, 8);
        rig.read_all(&links[..rig.leading(&links)]);
    }
    assert_eq!(rig.clear() as u64, present, "something is still pinned");
}

const CHAINS: u8 = 16;

/// The work of one thread. `began` holds all blocks that any thread has begun to write.
fn work(hands: RigHandle<'_>, began: &Mutex<HashSet<ChainLink>>, thread: u64) {
    let began = || began.lock();
    let is_shared = hands.tier.abilities().is_shared;
    let mut numbers = SplitMix64::new(thread);
    for _ in 0..120 {
        let number = numbers.below(u64::from(CHAINS));
        let links = chain(u8::try_from(number).unwrap_or(0), 1 + numbers.index(8));
        match numbers.below(8) {
            0..=2 => {
                began().extend(&links);
                let mut is_there = true;
                for (outcome, link) in hands.write(&links).iter().zip(&links) {
                    match outcome {
                        Ok(WriteSuccess::New | WriteSuccess::Present) => {
                            assert!(is_there, "{link:?} without the block before it");
                        }
                        Err(NotWritten::NoRoom | NotWritten::NoParent) => is_there = false,
                        other => assert!(other.is_ok(), "{link:?}: {other:?}"),
                    }
                }
            }
            3..=5 => {
                let hold = hands.tier.hold(GROUP, &keys(&links));
                let held = hold.as_ref().map_or(0, |hold| hold.blocks());
                let outcomes = hands.read(&links);
                // A block that was read is one that some thread had begun to write.
                let began = began();
                for (at, (outcome, link)) in outcomes.iter().zip(&links).enumerate() {
                    match outcome {
                        Ok(()) => assert!(began.contains(link), "{link:?} from nowhere"),
                        Err(TierMiss::Absent) => {
                            assert!(is_shared || at >= held, "{link:?} was held");
                        }
                        other => assert!(other.is_ok(), "{link:?}: {other:?}"),
                    }
                }
            }
            6 => {
                hands.tier.evict(numbers.index(6), Tick(0));
            }
            _ => drop(super::ended(&hands.tier.sync())),
        }
    }
}
