//! Durability, and the tier's reports on itself.

use std::time::Duration;

use kvtile_blocks::{
    Tick,
    pool::{OwnerId, PinClaim},
};

use super::{ChainLink, GROUP, TierCheck, TierRig, chain, keys};

pub(super) const CHECKS: &[TierCheck] = &[
    (
        "durable blocks are found when the tier is reopened",
        durable_blocks,
    ),
    (
        "blocks removed before a sync are not found again",
        given_up_blocks,
    ),
    ("pins that last too long are reported", overdue_pins),
    ("an estimate grows with the blocks", estimates),
    ("only finds count as uses of a pool", finds_are_uses),
];

fn sync(rig: &TierRig) {
    let report = super::ended(&rig.tier().sync());
    assert!(report.failure.is_none() && report.lost == 0, "{report:?}");
}

fn durable(rig: &TierRig, links: &[ChainLink]) -> Vec<bool> {
    let durable = rig.tier().durable(GROUP, &keys(links));
    assert_eq!(durable.len(), links.len());
    durable
}

fn durable_blocks(rig: &mut TierRig) {
    let is_durable = rig.tier().abilities().is_durable;
    let links = chain(1, 6);
    rig.write_new(&links[..4]);
    sync(rig);
    let first = [is_durable; 4];
    assert_eq!(durable(rig, &links)[..4], first);
    assert_eq!(durable(rig, &links)[4..], [false; 2], "absent blocks");
    rig.write_new(&links[4..]);
    // Blocks that an earlier sync covered stay durable.
    assert_eq!(durable(rig, &links)[..4], first);
    sync(rig);
    sync(rig);
    assert_eq!(durable(rig, &links), [is_durable; 6]);
    // In any order, with an absent block in between.
    let mixed = [links[5], chain(2, 1)[0], links[0]];
    assert_eq!(durable(rig, &mixed), [is_durable, false, is_durable]);
    rig.reopen();
    let is_shared = rig.tier().abilities().is_shared;
    let left = match (is_durable, is_shared) {
        (true, _) => 6,
        // Others may hold them.
        (false, true) => rig.leading(&links),
        (false, false) => 0,
    };
    assert_eq!(rig.leading(&links), left);
    rig.read_all(&links[..left]);
    rig.read_none(&links[left..]);
    if let Some(hold) = rig.hold(&links) {
        for (at, link) in links[..left].iter().enumerate() {
            assert_eq!(hold.parent(at), link.parent);
            // Tenants are numbers of one process.
            if !rig.tier().abilities().is_shared {
                assert_eq!(hold.tenant(at), super::TENANT);
            }
        }
    }
    assert_eq!(durable(rig, &links), [is_durable; 6]);
    rig.check();
    // The chain can be continued.
    let behind = &chain(1, 9)[left..];
    rig.write_new(behind);
    rig.read_all(behind);
}

fn given_up_blocks(rig: &mut TierRig) {
    let links = chain(1, 6);
    rig.write_new(&links);
    sync(rig);
    assert_eq!(rig.tier().forget(GROUP, &keys(&links)[5..]), 1);
    assert_eq!(rig.tier().evict(2, Tick(0)), 2);
    assert!(!durable(rig, &links)[3..].iter().any(|durable| *durable));
    sync(rig);
    let abilities = rig.tier().abilities();
    if abilities.is_shared {
        // The blocks were removed for that cache, and may be there for others.
        assert_eq!(rig.leading(&links), 3);
        rig.reopen();
        let left = rig.leading(&links);
        assert!(left >= 3 || !abilities.is_durable, "{left} of 6 blocks");
        rig.read_all(&links[..left]);
        return;
    }
    rig.reopen();
    let left = if rig.tier().abilities().is_durable {
        3
    } else {
        0
    };
    assert_eq!(rig.leading(&links), left);
    rig.read_none(&links[left..]);
    assert_eq!(rig.clear(), left);
    sync(rig);
    rig.reopen();
    assert_eq!(rig.leading(&links), 0);
    assert_eq!(rig.tier().stats().present, 0);
}

fn overdue_pins(rig: &mut TierRig) {
    if rig.tier().abilities().is_shared {
        return;
    }
    let links = chain(1, 5);
    rig.write_new(&links);
    let claim = PinClaim {
        owner: OwnerId(3),
        deadline: Some(Tick(100)),
        now: Tick(10),
        ..PinClaim::default()
    };
    let Some(mut hold) = rig.tier().find(GROUP, &keys(&links), &claim) else {
        assert_eq!(rig.leading(&links), 5);
        return;
    };
    let without_end = rig.find(&links);
    assert!(rig.tier().overdue(Tick(100)).is_empty());
    let reports = rig.tier().overdue(Tick(101));
    let of_owner = |owner| {
        reports
            .iter()
            .filter(move |pin| pin.owner == OwnerId(owner))
    };
    assert_eq!(reports.len(), of_owner(3).count(), "{reports:?}");
    assert_eq!(of_owner(3).map(|pin| pin.blocks).sum::<usize>(), 5);
    assert!(
        reports
            .iter()
            .all(|pin| pin.deadline == Tick(100) && pin.since == Tick(10))
    );
    let rest = hold.split_off(2);
    drop(hold);
    let left = rig.tier().overdue(Tick(101));
    assert_eq!(left.iter().map(|pin| pin.blocks).sum::<usize>(), 3);
    drop(rest);
    assert!(rig.tier().overdue(Tick(101)).is_empty());
    drop(without_end);
}

fn estimates(rig: &mut TierRig) {
    assert_eq!(
        rig.tier().estimate(GROUP, 1),
        None,
        "before the first measurement"
    );
    let links = chain(1, 8);
    rig.write_new(&links);
    rig.read_all(&links);
    rig.read_all(&links[..1]);
    let of = |blocks| rig.tier().estimate(GROUP, blocks);
    if let (Some(one), Some(some), Some(many)) = (of(1), of(10), of(1000)) {
        assert!(one <= some && some <= many, "{one:?} {some:?} {many:?}");
        assert!(many < Duration::from_secs(3600), "{many:?}");
    }
}

fn finds_are_uses(rig: &mut TierRig) {
    let links = chain(1, 4);
    rig.write_new(&links);
    let Some(before) = rig.tier().stats().pool else {
        return;
    };
    drop(rig.hold(&links));
    assert!(rig.tier().has(GROUP, &links[0].name.key));
    let held = rig.tier().stats().pool.unwrap_or_default();
    assert_eq!(held.lookups, before.lookups, "a hold counts as no use");
    drop(rig.find(&links));
    let found = rig.tier().stats().pool.unwrap_or_default();
    assert_eq!(found.lookups, before.lookups + 1);
    assert_eq!(found.hit_blocks, before.hit_blocks + 4);
}
