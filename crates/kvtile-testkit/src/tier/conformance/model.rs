//! Random operations against a set of the blocks that must be present, with room for all of them.

use std::collections::HashSet;

use kvtile_blocks::Tick;
use kvtile_tiers::tier::{NotWritten, WriteSuccess};

use super::{ChainLink, GROUP, TierCheck, TierRig, chain, keys};
use crate::disk::SplitMix64;

pub(super) const CHECKS: &[TierCheck] = &[(
    "random operations have the results of a set of blocks",
    random_operations,
)];

const CHAINS: u64 = 4;

fn random_operations(rig: &mut TierRig) {
    for seed in 0..12 {
        println!("  seed {seed}");
        let mut numbers = SplitMix64::new(seed);
        rig.clear();
        let mut there: HashSet<ChainLink> = HashSet::new();
        let removed_before = rig.tier().stats().removed;
        let mut written = 0;
        for _ in 0..60 {
            let number = u8::try_from(numbers.below(CHAINS)).unwrap_or(0);
            let links = chain(number, 6);
            let from = numbers.index(6);
            let to = from + numbers.index(7 - from);
            let some = &links[from..to];
            match numbers.below(8) {
                0..=3 => written += write(rig, &mut there, some),
                4 => read(rig, &there, some),
                5 => {
                    let gone = some.iter().filter(|link| there.remove(link));
                    let gone = gone.count();
                    assert_eq!(rig.tier().forget(GROUP, &keys(some)), gone);
                }
                6 => {
                    let count = numbers.index(3);
                    let gone = rig.tier().evict(count, Tick(0));
                    assert_eq!(gone, count.min(there.len()), "evicted");
                    there.retain(|link| rig.tier().has(GROUP, &link.name.key));
                }
                _ => {
                    let has = |link: &&ChainLink| there.contains(link);
                    let leading = links.iter().take_while(has).count();
                    assert_eq!(rig.leading(&links), leading);
                }
            }
            for link in (0..4).flat_map(|number| chain(number, 6)) {
                let has = rig.tier().has(GROUP, &link.name.key);
                assert_eq!(has, there.contains(&link), "{link:?}");
            }
            rig.check();
            let stats = rig.tier().stats();
            assert_eq!(stats.present, there.len() as u64);
            let gone = stats.removed - removed_before;
            assert_eq!(gone, written - stats.present, "{stats:?}");
        }
    }
}

fn write(rig: &TierRig, there: &mut HashSet<ChainLink>, links: &[ChainLink]) -> u64 {
    let mut written = 0;
    for (outcome, link) in rig.write(links).iter().zip(links) {
        let parent = |one: &ChainLink| Some(one.name.key) == link.parent;
        let is_right = if there.contains(link) {
            matches!(outcome, Ok(WriteSuccess::Present))
        } else if link.parent.is_none() || there.iter().any(parent) {
            there.insert(*link);
            written += 1;
            matches!(outcome, Ok(WriteSuccess::New))
        } else {
            matches!(outcome, Err(NotWritten::NoParent))
        };
        assert!(is_right, "{link:?}: {outcome:?}");
    }
    written
}

fn read(rig: &TierRig, there: &HashSet<ChainLink>, links: &[ChainLink]) {
    for (outcome, link) in rig.read(links).iter().zip(links) {
        let has = there.contains(link);
        assert_eq!(outcome.is_ok(), has, "{link:?}: {outcome:?}");
    }
}
