//! Blocks in the order of their chains: routers refuse a block whose parent they do not know.

use std::collections::{BTreeMap, HashMap};

use kvtile_blocks::{BlockKey, GroupId, events::StoredBlock, events::TierId};

/// The blocks of each tier and group, each after its parent if that is among them. Branches follow
/// each other. No depth of a chain uses the stack.
pub(crate) fn parents_first(blocks: Vec<StoredBlock>) -> Vec<StoredBlock> {
    let mut places: BTreeMap<(TierId, GroupId), Vec<StoredBlock>> = BTreeMap::new();
    for block in blocks {
        let place = places.entry((block.tier, block.group)).or_default();
        place.push(block);
    }
    places.into_values().flat_map(of_place).collect()
}

fn of_place(blocks: Vec<StoredBlock>) -> Vec<StoredBlock> {
    let mut known: HashMap<BlockKey, StoredBlock> =
        blocks.iter().map(|block| (block.key, *block)).collect();
    let mut children: HashMap<BlockKey, Vec<BlockKey>> = HashMap::new();
    let mut open = Vec::new();
    for block in &blocks {
        match block.parent.filter(|parent| known.contains_key(parent)) {
            Some(parent) => children.entry(parent).or_default().push(block.key),
            None => open.push(block.key),
        }
    }
    let mut ordered = Vec::with_capacity(blocks.len());
    while let Some(key) = open.pop() {
        ordered.extend(known.remove(&key));
        open.extend(children.remove(&key).into_iter().flatten());
    }
    // Parents that callers of a block store name may form a circle.
    let rest = blocks
        .into_iter()
        .filter_map(|block| known.remove(&block.key));
    ordered.extend(rest);
    ordered
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use kvtile_random::SplitMix64;

    use super::*;

    fn key(number: u64) -> BlockKey {
        BlockKey::from_opaque(&number.to_be_bytes())
    }

    fn block(tier: TierId, number: u64, parent: Option<u64>) -> StoredBlock {
        StoredBlock {
            tier,
            group: GroupId(0),
            key: key(number),
            parent: parent.map(key),
        }
    }

    #[test]
    fn every_block_comes_once_and_after_its_parent() {
        for seed in 0..100 {
            let mut random = SplitMix64::new(seed);
            let mut blocks = Vec::new();
            for number in 0..random.below(60) {
                let tier = [TierId::HOST, TierId::DISK][usize::from(random.below(2) == 0)];
                let parent = (number > 0 && random.below(5) > 0).then(|| random.below(number));
                let at = usize::try_from(random.below(blocks.len() as u64 + 1)).unwrap();
                blocks.insert(at, block(tier, number, parent));
            }
            let ordered = parents_first(blocks.clone());
            assert_eq!(ordered.len(), blocks.len(), "seed {seed}");
            let mut before = HashSet::new();
            for one in &ordered {
                let place = (one.tier, one.group);
                let parent = one.parent.filter(|parent| {
                    let mut there = blocks.iter();
                    there.any(|other| {
                        (other.tier, other.group, other.key) == (place.0, place.1, *parent)
                    })
                });
                assert!(parent.is_none_or(|parent| before.contains(&(place, parent))));
                assert!(before.insert((place, one.key)), "seed {seed}");
            }
        }
    }

    #[test]
    fn circles_and_long_chains_are_listed() {
        let host = TierId::HOST;
        let circle = [(1, 2), (2, 1), (3, 3)].map(|(at, parent)| block(host, at, Some(parent)));
        assert_eq!(parents_first(circle.to_vec()).len(), 3);
        let chain = (0..200_000_u64).rev();
        let chain = chain.map(|at| block(host, at, at.checked_sub(1)));
        let ordered = parents_first(chain.collect());
        assert!(ordered.iter().zip(0..).all(|(one, at)| one.key == key(at)));
    }
}
