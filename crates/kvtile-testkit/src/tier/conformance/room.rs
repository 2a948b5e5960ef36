//! Capacity: which blocks are evicted, which stay, and how many.

use kvtile_blocks::Tick;
use kvtile_tiers::tier::{NotWritten, WriteSuccess};

use super::{ChainLink, GROUP, TierCheck, TierRig, chain, keys};

pub(super) const CHECKS: &[TierCheck] = &[
    (
        "the head of a chain that is longer than the tier stays",
        longer_than_the_tier,
    ),
    (
        "evictions for room take the ends of chains",
        leaves_from_the_end,
    ),
    ("pinned blocks and their ancestors stay", pinned_blocks_stay),
    (
        "nothing is written while all blocks are pinned",
        all_room_is_pinned,
    ),
    (
        "requested evictions return their number",
        evictions_are_counted,
    ),
    ("forgotten blocks are absent", forgotten_blocks),
    (
        "blocks forgotten while pinned are absent too",
        forgotten_while_pinned,
    ),
    (
        "a write in flight brings no removed block back",
        removed_while_written,
    ),
];

/// The number of leading blocks; checks that no block after them is present.
fn is_whole(rig: &TierRig, links: &[ChainLink]) -> usize {
    let leading = rig.leading(links);
    for link in &links[leading..] {
        assert!(
            !rig.tier().has(GROUP, &link.name.key),
            "{link:?} is present, and the block before it is not"
        );
    }
    leading
}

fn longer_than_the_tier(rig: &mut TierRig) {
    if !rig.tier().abilities().is_bounded {
        return;
    }
    let capacity = rig.capacity();
    let links = chain(1, capacity + 5);
    let outcomes = rig.write(&links);
    for (at, outcome) in outcomes.iter().enumerate() {
        match at < capacity {
            true => assert!(
                matches!(outcome, Ok(WriteSuccess::New)),
                "{at}: {outcome:?}"
            ),
            false => assert!(
                matches!(outcome, Err(NotWritten::NoRoom)),
                "{at}: {outcome:?}"
            ),
        }
    }
    assert_eq!(is_whole(rig, &links), capacity);
    rig.read_all(&links[..capacity]);
    // Once more, in pieces: the head of the chain is not evicted for its tail.
    for piece in links.chunks(7) {
        rig.write(piece);
    }
    assert!(is_whole(rig, &links) > 0);
    rig.check();
}

fn leaves_from_the_end(rig: &mut TierRig) {
    if !rig.tier().abilities().is_bounded {
        return;
    }
    let capacity = rig.capacity();
    let first = chain(1, capacity / 2);
    let second = chain(2, capacity - capacity / 2);
    rig.write_new(&first);
    rig.write_new(&second);
    let third = chain(3, 5);
    rig.write_new(&third);
    let left = is_whole(rig, &first) + is_whole(rig, &second);
    assert_eq!(left, capacity - 5);
    assert_eq!(is_whole(rig, &third), 5);
    let stats = rig.tier().stats();
    assert_eq!(stats.present, capacity as u64, "{stats:?}");
    assert_eq!(stats.evicted_for_room, 5, "{stats:?}");
    rig.check();
}

fn pinned_blocks_stay(rig: &mut TierRig) {
    let links = chain(1, 8);
    rig.write_new(&links);
    let Some(mut hold) = rig.hold(&links[3..5]) else {
        assert_eq!(rig.leading(&links), 8);
        return;
    };
    if !rig.tier().abilities().is_shared {
        assert_eq!(rig.tier().evict(usize::MAX, Tick(0)), 3);
        assert_eq!(is_whole(rig, &links), 5);
        drop(hold.split_off(1));
        assert_eq!(rig.clear(), 1);
        assert_eq!(is_whole(rig, &links), 4);
        drop(hold);
        assert_eq!(rig.clear(), 4);
        assert_eq!(rig.tier().stats().removed, 8);
    }
    rig.check();
}

fn all_room_is_pinned(rig: &mut TierRig) {
    let abilities = rig.tier().abilities();
    if !abilities.is_bounded || abilities.is_shared {
        return;
    }
    let links = chain(1, rig.capacity());
    rig.write_new(&links);
    let hold = rig.find(&links);
    let others = chain(2, 3);
    for outcome in rig.write(&others) {
        assert!(matches!(outcome, Err(NotWritten::NoRoom)), "{outcome:?}");
    }
    assert_eq!(is_whole(rig, &links), links.len());
    drop(hold);
    rig.write_new(&others);
    assert_eq!(is_whole(rig, &links), links.len() - 3);
}

fn evictions_are_counted(rig: &mut TierRig) {
    let (first, second) = (chain(1, 5), chain(2, 6));
    rig.write_new(&first);
    rig.write_new(&second);
    for left in (0..11).rev() {
        assert_eq!(rig.tier().evict(1, Tick(0)), 1);
        assert_eq!(is_whole(rig, &first) + is_whole(rig, &second), left);
        assert_eq!(rig.tier().stats().present, left as u64);
    }
    assert_eq!(rig.tier().evict(3, Tick(0)), 0);
    assert_eq!(rig.clear(), 0);
    let stats = rig.tier().stats();
    assert_eq!((stats.removed, stats.evicted_for_room), (11, 0));
    rig.read_none(&first);
    // The evictions have freed room.
    rig.write_new(&first);
    rig.read_all(&first);
    rig.check();
}

fn forgotten_blocks(rig: &mut TierRig) {
    let links = chain(1, 6);
    rig.write_new(&links);
    let absent = chain(2, 1);
    let some = [links[2].name.key, absent[0].name.key, links[5].name.key];
    assert_eq!(rig.tier().forget(GROUP, &some), 2);
    assert_eq!(rig.tier().forget(GROUP, &some), 0);
    assert_eq!(rig.leading(&links), 2);
    rig.read_none(&[links[2], links[5]]);
    rig.read_all(&links[3..5]);
    let stats = rig.tier().stats();
    assert_eq!((stats.present, stats.removed), (4, 2), "{stats:?}");
    rig.check();
    rig.write_new(&[links[2], links[5]]);
    assert_eq!(rig.leading(&links), 6);
    rig.read_all(&links);
    assert_eq!(rig.tier().forget(GROUP, &keys(&links)), 6);
    assert_eq!(rig.tier().stats().present, 0);
}

fn forgotten_while_pinned(rig: &mut TierRig) {
    let links = chain(1, 4);
    rig.write_new(&links);
    let hold = rig.find(&links);
    assert_eq!(rig.tier().forget(GROUP, &keys(&links)), 4);
    assert_eq!(rig.leading(&links), 0);
    rig.read_none(&links);
    // The blocks are written again while a hold of the forgotten ones lives.
    rig.write_new(&links);
    rig.read_all(&links);
    drop(hold);
    assert_eq!(is_whole(rig, &links), 4);
    rig.read_all(&links);
    assert_eq!(rig.clear(), 4);
    rig.check();
}

fn removed_while_written(rig: &mut TierRig) {
    for round in 0..40_u8 {
        let links = chain(round, 8);
        let (reserved, blocks) = rig.hands().writes(&links);
        let write = rig.tier().write(blocks);
        match round % 2 {
            0 => drop(rig.tier().forget(GROUP, &keys(&links))),
            _ => drop(rig.clear()),
        }
        // A later write of the same blocks waits for no earlier one, and is not affected.
        let (later, blocks) = rig.hands().writes(&links[..4]);
        let again = rig.tier().write(blocks);
        let outcomes = super::ended(&write).blocks;
        assert_eq!(outcomes.len(), 8);
        super::ended(&again);
        assert_eq!(rig.leading(&links), 4, "{outcomes:?}");
        assert_eq!(is_whole(rig, &links), 4);
        rig.read_all(&links[..4]);
        drop((reserved, later));
        assert_eq!(rig.clear(), 4);
        rig.check();
    }
}
