//! The event log under concurrency: owners that append under locks of their own, and a subscriber
//! that lags and resynchronises.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use kvtile_blocks::events::{
    Event, EventKind, EventLog, EventMirror, EventSubscriber, StoredBlock, TierId,
};
use kvtile_blocks::{BlockKey, GroupId};
use kvtile_random::SplitMix64;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn log(capacity: usize) -> Arc<EventLog> {
    Arc::new(EventLog::new(NonZeroUsize::new(capacity).unwrap()).unwrap())
}

fn key(number: u64) -> BlockKey {
    BlockKey::from_bytes(u128::from(number).to_le_bytes())
}

fn poll_all(subscriber: &mut EventSubscriber) -> Vec<Event> {
    let mut events = Vec::new();
    subscriber.poll(&mut events, usize::MAX).unwrap();
    events
}

/// A reader that waits returns for each new event, and once for all when waits end.
#[test]
fn a_subscriber_waits_until_there_is_something_to_poll_or_waits_end() {
    let log = log(4);
    let mut subscriber = log.subscribe();
    log.cleared(TierId::HOST, GroupId(0));
    assert!(subscriber.wait());
    assert_eq!(poll_all(&mut subscriber).len(), 1);
    let reader = std::thread::spawn(move || {
        let mut read = 0;
        while subscriber.wait() {
            read += poll_all(&mut subscriber).len();
        }
        assert!(!subscriber.wait());
        read + poll_all(&mut subscriber).len()
    });
    for number in 0..3 {
        log.stored(TierId::HOST, GroupId(0), None, &[key(number)]);
    }
    log.end_waits();
    assert_eq!(reader.join().unwrap(), 3);
}

/// Sorts the blocks, as the order of a list does not matter.
fn sorted(
    mirror: &EventMirror,
    (tier, group): (TierId, GroupId),
) -> BTreeMap<BlockKey, Option<BlockKey>> {
    mirror.blocks(tier, group).collect()
}

/// A tier whose blocks are in several maps, each under its own lock, like a sharded pool.
struct ShardedOwner {
    log: Arc<EventLog>,
    tier: TierId,
    group: GroupId,
    shards: Vec<Mutex<BTreeMap<BlockKey, Option<BlockKey>>>>,
}

impl ShardedOwner {
    fn new(log: &Arc<EventLog>, (tier, group): (TierId, GroupId)) -> ShardedOwner {
        ShardedOwner {
            log: Arc::clone(log),
            tier,
            group,
            shards: (0..4).map(|_| Mutex::default()).collect(),
        }
    }

    /// Stores the block if it is absent and removes it if it is present, under its shard's lock.
    fn toggle(&self, number: u64) {
        let shard = &self.shards[usize::try_from(number).unwrap() % self.shards.len()];
        let mut blocks = shard.lock();
        let stored = key(number);
        if blocks.remove(&stored).is_some() {
            self.log.removed(self.tier, self.group, &[stored]);
        } else {
            let parent = number.checked_sub(1).map(key);
            blocks.insert(stored, parent);
            self.log.stored(self.tier, self.group, parent, &[stored]);
        }
    }

    /// Removes all blocks, under the locks of all shards.
    fn clear(&self) {
        let mut shards: Vec<_> = self.shards.iter().map(|shard| shard.lock()).collect();
        for shard in &mut shards {
            shard.clear();
        }
        self.log.cleared(self.tier, self.group);
    }

    fn list(&self, out: &mut Vec<StoredBlock>) {
        for shard in &self.shards {
            let blocks = shard.lock();
            out.extend(blocks.iter().map(|(&key, &parent)| StoredBlock {
                tier: self.tier,
                group: self.group,
                key,
                parent,
            }));
            drop(blocks);
            std::thread::yield_now();
        }
    }

    fn stored(&self) -> BTreeMap<BlockKey, Option<BlockKey>> {
        let mut blocks = Vec::new();
        self.list(&mut blocks);
        blocks
            .iter()
            .map(|block| (block.key, block.parent))
            .collect()
    }
}

/// Follows the log until the writers are done and all events are read. Returns how often it lagged.
fn follow(owners: &[ShardedOwner], done: &AtomicBool) -> (EventMirror, u64) {
    let log = &owners[0].log;
    let snapshot = || log.snapshot(|blocks| owners.iter().for_each(|owner| owner.list(blocks)));
    let mut subscriber = log.subscribe();
    let mut mirror = EventMirror::from_snapshot(&{
        let first = snapshot();
        subscriber.resynchronise(&first);
        first
    });
    let mut events = Vec::new();
    let mut lagged = 0;
    loop {
        let finished = done.load(Ordering::SeqCst);
        events.clear();
        match subscriber.poll(&mut events, 7) {
            Ok(0) if finished => return (mirror, lagged),
            Ok(_) => {
                for event in &events {
                    assert!(mirror.apply(event), "no event is missing");
                }
            }
            Err(_) => {
                lagged += 1;
                let fresh = snapshot();
                subscriber.resynchronise(&fresh);
                mirror = EventMirror::from_snapshot(&fresh);
            }
        }
    }
}

/// Pitfall 31: the stored and removed events of a block came out of order, and a subscriber that
/// lagged could not resynchronise.
#[test]
fn pitfall_31_a_subscriber_that_lags_finds_back_by_a_snapshot_while_others_write() {
    let mut lagged_in_all = 0;
    for seed in 0..20 {
        println!("seed {seed}");
        let log = log(64);
        let owners = [
            ShardedOwner::new(&log, (TierId::HOST, GroupId(0))),
            ShardedOwner::new(&log, (TierId::HOST, GroupId(1))),
            ShardedOwner::new(&log, (TierId::DISK, GroupId(1))),
        ];
        let done = AtomicBool::new(false);
        let (mirror, lagged) = std::thread::scope(|scope| {
            let follower = scope.spawn(|| follow(&owners, &done));
            let writers: Vec<_> = (0..3)
                .map(|writer| {
                    let owners = &owners;
                    scope.spawn(move || {
                        let mut random = SplitMix64::new(seed * 3 + writer);
                        for _ in 0..2_000 {
                            let owner = &owners[usize::try_from(random.below(3)).unwrap()];
                            match random.below(200) {
                                0 => owner.clear(),
                                number => owner.toggle(number),
                            }
                        }
                    })
                })
                .collect();
            for writer in writers {
                writer.join().unwrap();
            }
            done.store(true, Ordering::SeqCst);
            follower.join().unwrap()
        });
        lagged_in_all += lagged;
        log.check_integrity();
        assert!(mirror.is_exact());
        for owner in &owners {
            assert_eq!(sorted(&mirror, (owner.tier, owner.group)), owner.stored());
        }
    }
    assert!(lagged_in_all > 0, "no run was slow enough to lag");
}

/// Pitfall 31: stored and removed events of one block must alternate.
#[test]
fn pitfall_31_stored_and_removed_alternate_for_each_block_whichever_threads_write() {
    let log = log(1 << 16);
    let owner = ShardedOwner::new(&log, (TierId::HOST, GroupId(0)));
    let mut subscriber = log.subscribe();
    std::thread::scope(|scope| {
        for seed in 0..3 {
            println!("seed {seed}");
            let owner = &owner;
            scope.spawn(move || {
                let mut random = SplitMix64::new(seed);
                (0..5_000).for_each(|_| owner.toggle(random.below(50)));
            });
        }
    });
    let events = poll_all(&mut subscriber);
    assert_eq!(events.len(), 15_000);
    let mut present: BTreeMap<BlockKey, bool> = BTreeMap::new();
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event.sequence, index as u64, "no gaps");
        let (key, stored) = match event.kind {
            EventKind::Stored { key, .. } => (key, true),
            EventKind::Removed { key } => (key, false),
            EventKind::Cleared => continue,
        };
        let before = present.insert(key, stored).unwrap_or(false);
        assert_ne!(before, stored, "event {index} of {key}");
    }
}
