//! Several groups of blocks with sizes of their own, for tiers that have them.

use kvtile_blocks::{Tick, events::StoredBlock, pool::PinClaim};
use kvtile_layout::broken;
use kvtile_tiers::{
    BatchError, TierError,
    tier::{GroupId, NotWritten, TierGroup, TierMiss},
};

use super::{
    ChainLink, HOST_BLOCKS, OpenTierAt, TierCheck, TierRig, chain_of, ended, keys, run_check,
};
use crate::tier::HostMemory;

const CHECKS: &[TierCheck] = &[
    (
        "equal keys of two groups are two blocks of their own sizes",
        equal_keys,
    ),
    (
        "a group that the tier does not have fails alone in a batch",
        unknown_group,
    ),
    ("groups are forgotten and held apart", apart),
    ("evictions take blocks of all groups", evictions),
    (
        "durable blocks of all groups are found again",
        durable_groups,
    ),
    ("estimates are by group", estimates),
];

/// The first group: the larger blocks.
const FULL: GroupId = GroupId(0);

/// The second group: smaller blocks.
const SWA: GroupId = GroupId(1);

/// Tokens of a block of each group.
const PAGE_SIZES: [u64; 2] = [16, 4];

/// Checks a tier that has the groups of its context, with two groups of unequal blocks and with
/// `threads` threads. `new_place` creates an empty place for a tier with room for 24 to 96 blocks of
/// both groups together, at least 10 of each.
///
/// # Panics
/// At the first violation of the contract. The last line of standard output names the check.
pub fn check_tier_groups(threads: usize, new_place: &dyn Fn() -> OpenTierAt) {
    for (name, check) in CHECKS {
        let [full, swa] =
            PAGE_SIZES.map(
                |tokens| match HostMemory::with_page_size(HOST_BLOCKS, tokens) {
                    Ok(host) => host,
                    Err(error) => broken(format_args!("no host memory: {error}")),
                },
            );
        assert_ne!(full.block_bytes(), swa.block_bytes());
        let groups = vec![
            TierGroup::new("full", full.identity().clone()),
            TierGroup::new("swa", swa.identity().clone()),
        ];
        let rig = TierRig::with_groups((full, vec![swa]), groups, (threads, new_place()));
        run_check(name, *check, rig);
    }
}

/// The chains of both groups: the same keys.
fn chains(blocks: usize) -> [Vec<ChainLink>; 2] {
    [FULL, SWA].map(|group| chain_of(group, 1, blocks))
}

/// The blocks of both chains in turns.
fn mixed(blocks: usize) -> Vec<ChainLink> {
    let [full, swa] = chains(blocks);
    let pairs = full.into_iter().zip(swa);
    pairs.flat_map(|(full, swa)| [full, swa]).collect()
}

fn equal_keys(rig: &mut TierRig) {
    let [full, swa] = chains(5);
    assert_eq!(keys(&full), keys(&swa));
    rig.write_new(&full);
    rig.read_none(&swa);
    assert_eq!(rig.tier().stats().present, 5);
    rig.write_new(&swa);
    rig.check();
    // The rig compares the bytes, which differ between the groups.
    rig.read_all(&full);
    rig.read_all(&swa);
    rig.read_all(&mixed(5));
    assert_eq!(rig.tier().stats().present, 10);
    // A batch of both groups, of blocks that are partly there.
    let all = mixed(8);
    let outcomes = rig.write(&all);
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    rig.read_all(&all);
    assert_eq!(rig.tier().stats().present, 16);
}

fn unknown_group(rig: &mut TierRig) {
    let theirs = chain_of(GroupId(7), 1, 2);
    let mut batch = mixed(2);
    batch.insert(1, theirs[0]);
    batch.push(theirs[1]);
    let outcomes = rig.write(&batch);
    let read = rig.read(&batch);
    for ((link, outcome), read) in batch.iter().zip(&outcomes).zip(&read) {
        if link.name.group != GroupId(7) {
            assert!(outcome.is_ok() && read.is_ok(), "{outcome:?}, {read:?}");
        } else if let Err(outcome) = outcome {
            // A tier has the groups of its context, or takes any group.
            let NotWritten::Failed(TierError::Batch(error)) = outcome else {
                broken(format_args!("{outcome:?}"))
            };
            assert!(matches!(error, BatchError::NoSuchGroup { group: 7, .. }));
            assert!(matches!(read, Err(TierMiss::Absent)), "{read:?}");
        }
    }
}

fn apart(rig: &mut TierRig) {
    let [full, swa] = chains(6);
    rig.write_new(&mixed(6));
    let held = |group, links: &[ChainLink]| {
        let hold = rig.tier().hold(group, &keys(links));
        hold.map_or(0, |hold| hold.blocks())
    };
    assert_eq!(rig.tier().forget(SWA, &keys(&swa[4..])), 2);
    assert_eq!((held(FULL, &full), held(SWA, &swa)), (6, 4));
    let found = rig.tier().find(SWA, &keys(&swa), &PinClaim::default());
    assert_eq!(found.map(|found| found.blocks()), Some(4));
    assert!(!rig.tier().has(SWA, &swa[5].name.key));
    assert!(rig.tier().has(FULL, &full[5].name.key));
    rig.read_none(&swa[4..]);
    rig.read_all(&full);
    let mut listed: Vec<StoredBlock> = Vec::new();
    rig.tier().list(&mut listed);
    let of = |group| listed.iter().filter(|block| block.group == group).count();
    assert_eq!((of(FULL), of(SWA)), (6, 4));
    rig.check();
}

fn evictions(rig: &mut TierRig) {
    rig.write_new(&mixed(8));
    let left = |rig: &TierRig| {
        let mut listed: Vec<StoredBlock> = Vec::new();
        rig.tier().list(&mut listed);
        [FULL, SWA].map(|group| listed.iter().filter(|block| block.group == group).count())
    };
    assert_eq!(rig.tier().evict(6, Tick(0)), 6);
    assert_eq!(left(rig).iter().sum::<usize>(), 10);
    rig.check();
    // Held blocks of one group do not keep blocks of the other.
    if !rig.tier().abilities().is_shared {
        let [full, _] = chains(8);
        let hold = rig.tier().hold(FULL, &keys(&full));
        let kept = hold.as_ref().map_or(0, |hold| hold.blocks());
        assert_eq!(rig.clear(), 10 - kept);
        assert_eq!(left(rig), [kept, 0]);
        drop(hold);
    }
    rig.clear();
    assert_eq!(left(rig), [0, 0]);
    assert_eq!(rig.tier().stats().present, 0);
    assert_eq!(rig.tier().stats().removed, 16);
    rig.write_new(&mixed(8));
}

fn durable_groups(rig: &mut TierRig) {
    let is_durable = rig.tier().abilities().is_durable;
    let [full, swa] = chains(6);
    let durable =
        |rig: &TierRig, group, links: &[ChainLink]| rig.tier().durable(group, &keys(links));
    rig.write_new(&full);
    rig.write_new(&swa[..3]);
    let synced = ended(&rig.tier().sync());
    assert!(synced.failure.is_none() && synced.lost == 0, "{synced:?}");
    assert_eq!(durable(rig, FULL, &full), [is_durable; 6]);
    assert_eq!(durable(rig, SWA, &swa)[..3], [is_durable; 3]);
    assert_eq!(durable(rig, SWA, &swa)[3..], [false; 3]);
    assert_eq!(durable(rig, GroupId(7), &swa), [false; 6]);
    rig.reopen();
    if !is_durable {
        assert_eq!(rig.tier().stats().present, 0);
        return;
    }
    // A tier that answers later finds blocks after a query.
    let asked = |group, links: &[ChainLink]| ended(&rig.tier().ask(group, &keys(links))).leading;
    assert_eq!((asked(FULL, &full), asked(SWA, &swa)), (6, 3));
    rig.read_all(&full);
    rig.read_all(&swa[..3]);
    rig.read_none(&swa[3..]);
    assert_eq!(rig.tier().stats().present, 9);
    rig.check();
    rig.write_new(&swa[3..]);
    rig.read_all(&mixed(6));
}

fn estimates(rig: &mut TierRig) {
    for group in [FULL, SWA] {
        assert_eq!(rig.tier().estimate(group, 1), None, "before a measurement");
    }
    rig.write_new(&mixed(6));
    for _ in 0..4 {
        rig.read_all(&mixed(6));
    }
    let of = |group| rig.tier().estimate(group, 1000);
    if let (Some(full), Some(swa)) = (of(FULL), of(SWA)) {
        assert!(
            swa <= full,
            "{swa:?} for smaller blocks, {full:?} for larger"
        );
    }
}
