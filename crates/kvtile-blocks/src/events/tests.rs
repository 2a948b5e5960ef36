//! The log against a naive list. The concurrent tests are in `tests/events.rs`.

use super::*;
use kvtile_random::SplitMix64;
use std::num::NonZeroUsize;
use std::sync::Arc;

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

#[test]
fn a_chain_is_stored_with_the_block_before_each_block() {
    let log = log(8);
    let mut subscriber = log.subscribe();
    log.stored(TierId::HOST, GroupId(3), Some(key(9)), &[key(1), key(2)]);
    log.removed(TierId::DISK, GroupId(0), &[key(1)]);
    log.cleared(TierId::HOST, GroupId(u32::MAX));
    log.check_integrity();
    let stored = |key, parent| EventKind::Stored { key, parent };
    let expected = [
        (TierId::HOST, GroupId(3), stored(key(1), Some(key(9)))),
        (TierId::HOST, GroupId(3), stored(key(2), Some(key(1)))),
        (TierId::DISK, GroupId(0), EventKind::Removed { key: key(1) }),
        (TierId::HOST, GroupId(u32::MAX), EventKind::Cleared),
    ];
    let expected: Vec<Event> = (0..)
        .zip(expected)
        .map(|(sequence, (tier, group, kind))| Event {
            sequence,
            tier,
            group,
            kind,
        })
        .collect();
    assert_eq!(poll_all(&mut subscriber), expected);
    assert_eq!(poll_all(&mut subscriber), []);
}

/// Pitfall 31: events were lost silently when a subscriber lagged, and had no sequence numbers.
#[test]
fn pitfall_31_a_subscriber_that_lags_learns_how_many_events_it_missed() {
    let log = log(4);
    let mut subscriber = log.subscribe();
    for number in 0..7 {
        log.stored(TierId::HOST, GroupId(0), None, &[key(number)]);
    }
    let mut events = Vec::new();
    let lagged = Lagged {
        missed: 3,
        resume_at: 3,
    };
    assert_eq!(subscriber.poll(&mut events, 100), Err(lagged));
    assert_eq!(events, []);
    assert_eq!(subscriber.poll(&mut events, 3), Ok(3));
    assert_eq!(subscriber.poll(&mut events, 3), Ok(1));
    let sequences: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, [3, 4, 5, 6]);
    assert!(lagged.to_string().contains("missed 3 events"));
}

#[test]
fn a_subscriber_reads_only_events_after_its_subscription() {
    let log = log(4);
    log.cleared(TierId::DISK, GroupId(0));
    let mut subscriber = log.subscribe();
    assert_eq!(subscriber.next_sequence(), 1);
    log.cleared(TierId::HOST, GroupId(0));
    assert_eq!(
        poll_all(&mut subscriber).first().unwrap().tier,
        TierId::HOST
    );
}

#[test]
fn a_snapshot_of_another_log_does_not_stop_a_subscriber() {
    let (long, short) = (log(4), log(4));
    for _ in 0..9 {
        long.cleared(TierId::HOST, GroupId(0));
    }
    let mut subscriber = short.subscribe();
    subscriber.resynchronise(&long.snapshot(|_| {}));
    assert_eq!(poll_all(&mut subscriber), []);
    short.cleared(TierId::HOST, GroupId(0));
    assert_eq!(poll_all(&mut subscriber).len(), 1);
}

#[test]
fn a_log_that_no_memory_holds_is_refused() {
    let refused = EventLog::new(NonZeroUsize::MAX).unwrap_err();
    let message = refused.to_string();
    assert!(message.contains(&usize::MAX.to_string()), "{message}");
}

#[test]
fn a_panic_in_the_middle_of_a_batch_leaves_the_log_whole() {
    let log = log(4);
    let mut subscriber = log.subscribe();
    let thrown = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let kinds = (0..3).map(|number| {
            assert!(number < 2, "on purpose");
            EventKind::Removed { key: key(number) }
        });
        log.append(TierId::HOST, GroupId(0), kinds);
    }));
    assert!(thrown.is_err());
    log.check_integrity();
    assert_eq!(poll_all(&mut subscriber).len(), 2);
}

#[test]
fn a_mirror_refuses_events_with_a_gap_before_them() {
    let log = log(4);
    let mut subscriber = log.subscribe();
    log.removed(TierId::HOST, GroupId(0), &[key(0), key(1)]);
    let events = poll_all(&mut subscriber);
    let mut mirror = EventMirror::new();
    assert!(!mirror.apply(&events[1]));
    assert!(mirror.apply(&events[0]));
    assert!(mirror.apply(&events[0]), "an event that is known already");
    assert!(mirror.apply(&events[1]));
}

/// The same key in two groups names two blocks, and clearing one group leaves the other.
#[test]
fn a_mirror_keeps_groups_apart() {
    let (one, two) = (GroupId(0), GroupId(7));
    let log = log(16);
    let mut subscriber = log.subscribe();
    log.stored(TierId::HOST, one, None, &[key(1), key(2)]);
    log.stored(TierId::HOST, two, Some(key(9)), &[key(1)]);
    log.stored(TierId::DISK, two, None, &[key(3)]);
    log.removed(TierId::HOST, one, &[key(2)]);
    let mut mirror = EventMirror::new();
    for event in poll_all(&mut subscriber) {
        assert!(mirror.apply(&event));
    }
    let groups = |mirror: &EventMirror, tier| mirror.groups(tier).collect::<Vec<GroupId>>();
    assert_eq!(groups(&mirror, TierId::HOST), [one, two]);
    assert_eq!(groups(&mirror, TierId::DISK), [two]);
    assert_eq!((mirror.len(TierId::HOST), mirror.len(TierId::DISK)), (2, 1));
    let blocks: Vec<_> = mirror.blocks(TierId::HOST, two).collect();
    assert_eq!(blocks, [(key(1), Some(key(9)))]);
    assert!(mirror.contains(TierId::HOST, one, &key(1)));
    assert!(!mirror.contains(TierId::DISK, one, &key(3)));
    log.cleared(TierId::HOST, two);
    assert!(mirror.apply(&poll_all(&mut subscriber)[0]));
    assert_eq!(groups(&mirror, TierId::HOST), [one]);
    assert!(mirror.contains(TierId::HOST, one, &key(1)) && !mirror.is_empty(TierId::HOST));
}

#[test]
fn a_log_equals_a_naive_list_under_random_appends_and_polls() {
    for seed in 0..200 {
        println!("seed {seed}");
        let mut random = SplitMix64::new(seed);
        let capacity = 1 + usize::try_from(random.below(20)).unwrap();
        let log = log(capacity);
        let mut naive: Vec<NaiveEvent> = Vec::new();
        let mut subscribers: Vec<EventSubscriber> = (0..3).map(|_| log.subscribe()).collect();
        for _ in 0..300 {
            if random.below(2) == 0 {
                append_at_random(&log, &mut naive, &mut random);
                log.check_integrity();
                assert_eq!(log.next_sequence(), naive.len() as u64);
            } else {
                let which = usize::try_from(random.below(3)).unwrap();
                let max = usize::try_from(random.below(12)).unwrap();
                poll_as_naively(&mut subscribers[which], &naive, capacity, max);
            }
        }
    }
}

type NaiveEvent = (TierId, GroupId, EventKind);

const TIERS: [TierId; 3] = [TierId::DEVICE, TierId::HOST, TierId::DISK];

fn append_at_random(log: &EventLog, naive: &mut Vec<NaiveEvent>, random: &mut SplitMix64) {
    let tier = TIERS[usize::try_from(random.below(TIERS.len() as u64)).unwrap()];
    let group = GroupId(u32::try_from(random.below(3)).unwrap() * (u32::MAX / 2));
    let keys: Vec<BlockKey> = (0..random.below(8)).map(|_| key(random.any())).collect();
    match random.below(4) {
        0 => {
            log.stored(tier, group, None, &keys);
            for (index, &key) in keys.iter().enumerate() {
                let parent = index.checked_sub(1).map(|before| keys[before]);
                naive.push((tier, group, EventKind::Stored { key, parent }));
            }
        }
        1 => {
            log.removed(tier, group, &keys);
            naive.extend(
                keys.iter()
                    .map(|&key| (tier, group, EventKind::Removed { key })),
            );
        }
        2 => {
            let kinds = || keys.iter().map(|&key| EventKind::Removed { key });
            log.append(tier, group, kinds());
            naive.extend(kinds().map(|kind| (tier, group, kind)));
        }
        _ => {
            log.cleared(tier, group);
            naive.push((tier, group, EventKind::Cleared));
        }
    }
}

fn poll_as_naively(
    subscriber: &mut EventSubscriber,
    naive: &[NaiveEvent],
    capacity: usize,
    max: usize,
) {
    let at = usize::try_from(subscriber.next_sequence()).unwrap();
    let oldest = naive.len().saturating_sub(capacity);
    let mut events = Vec::new();
    let polled = subscriber.poll(&mut events, max);
    if at < oldest {
        let (missed, resume_at) = ((oldest - at) as u64, oldest as u64);
        assert_eq!(polled, Err(Lagged { missed, resume_at }));
        assert_eq!(subscriber.next_sequence(), resume_at);
        assert_eq!(events, []);
        return;
    }
    let end = naive.len().min(at.saturating_add(max));
    let expected: Vec<Event> = (at..end)
        .map(|index| Event {
            sequence: index as u64,
            tier: naive[index].0,
            group: naive[index].1,
            kind: naive[index].2,
        })
        .collect();
    assert_eq!(polled, Ok(expected.len()));
    assert_eq!(events, expected);
}
