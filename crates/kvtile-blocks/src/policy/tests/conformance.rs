//! Random operations against a model that knows the stored blocks, their parents and their pins. It
//! acts like a pool: it refuses candidates with cached children or pins. It checks that a policy
//! offers only what it may offer, and that every block is offered in the end. LRU must also keep
//! its order.

use kvtile_random::SplitMix64;
use std::collections::BTreeMap;

use super::{
    BlockId, BlockKey, EvictionHints, EvictionPolicy, EvictionRefusal, Insertion, PolicyKind,
    PolicySettings, Tick, Visit,
};

#[derive(Clone, Debug)]
struct ModelBlock {
    key: BlockKey,
    parent: Option<u32>,
    pins: u32,
    /// Children that the policy does not know: blocks of another tenant, or blocks that were stored
    /// before their parent.
    strangers: u32,
    /// The reason of a refusal that still applies.
    refused: Option<EvictionRefusal>,
    /// The number of the request that used it last; unpinning a parked block counts as a use.
    used: u64,
}

struct PolicyModel {
    policy: Box<dyn EvictionPolicy>,
    blocks: BTreeMap<u32, ModelBlock>,
    free: Vec<u32>,
    /// Pinned chains: the ids from the first block on.
    pins: Vec<Vec<u32>>,
    random: SplitMix64,
    now: u64,
    keys: u64,
    uses: u64,
    /// Whether the policy must evict the least recently used leaf.
    least_recently_used: bool,
}

impl PolicyModel {
    fn new(kind: PolicyKind, blocks: u32, seed: u64) -> PolicyModel {
        PolicyModel {
            policy: PolicySettings::from(kind).build(blocks),
            blocks: BTreeMap::new(),
            free: (0..blocks).rev().collect(),
            pins: Vec::new(),
            random: SplitMix64::new(seed),
            now: 0,
            keys: 0,
            uses: 0,
            least_recently_used: kind == PolicyKind::Lru,
        }
    }

    fn key(&mut self) -> BlockKey {
        // Some keys return, so that the policy meets ghosts.
        self.keys += 1;
        let number = match self.random.index(4) {
            0 => self.random.any() % self.keys,
            _ => self.keys,
        };
        let taken = |key: &BlockKey, blocks: &BTreeMap<u32, ModelBlock>| {
            blocks.values().any(|block| block.key == *key)
        };
        let key = BlockKey::from_bytes(u128::from(number).to_le_bytes());
        if taken(&key, &self.blocks) {
            let fresh = u128::from(self.keys) << 64 | u128::from(u64::MAX);
            return BlockKey::from_bytes(fresh.to_le_bytes());
        }
        key
    }

    /// Whether a cached block has this one as its parent.
    fn is_followed(&self, id: u32) -> bool {
        let children = || self.blocks.values().any(|block| block.parent == Some(id));
        self.blocks[&id].strangers > 0 || children()
    }

    /// Records that the request used these blocks.
    fn used(&mut self, blocks: &[u32]) {
        for id in blocks {
            let block = self.blocks.get_mut(id).unwrap();
            block.used = self.uses;
            // The policy may now offer it again.
            if block.refused == Some(EvictionRefusal::Followed) {
                block.refused = None;
            }
        }
    }

    /// Removes a block: its children become roots, and its parent loses a child.
    fn forget(&mut self, id: u32) {
        let block = self.blocks.remove(&id).unwrap();
        for child in self.blocks.values_mut().filter(|b| b.parent == Some(id)) {
            child.parent = None;
        }
        self.free.push(id);
        if let Some(parent) = block.parent {
            self.lost_child(parent);
        }
    }

    /// Removes a child of a block.
    fn lost_child(&mut self, id: u32) {
        if self.is_followed(id) {
            return;
        }
        let block = self.blocks.get_mut(&id).unwrap();
        if block.refused == Some(EvictionRefusal::Followed) {
            block.refused = None;
        }
        self.policy.became_leaf(BlockId(id));
    }

    /// Adds or removes children that the policy does not know.
    fn strangers(&mut self) {
        let any: Vec<u32> = self.blocks.keys().copied().collect();
        if any.is_empty() {
            return;
        }
        let id = any[self.random.index(any.len())];
        let come = self.random.index(2) == 0;
        let strangers = &mut self.blocks.get_mut(&id).unwrap().strangers;
        if come {
            *strangers += 1;
        } else if *strangers > 0 {
            *strangers -= 1;
            self.lost_child(id);
        }
    }

    /// The chain that ends at a block, from its first block on.
    fn chain(&self, block: u32) -> Vec<u32> {
        let mut chain = vec![block];
        while let Some(parent) = self.blocks[chain.last().unwrap()].parent {
            chain.push(parent);
        }
        chain.reverse();
        chain
    }

    fn hints(&mut self) -> EvictionHints {
        EvictionHints {
            priority: i8::try_from(self.random.index(11)).unwrap() - 5,
            expires: (self.random.index(3) == 0).then(|| Tick(self.now + 5000)),
            output_tokens: u32::try_from(self.random.index(2000)).unwrap(),
            partial_tail: self.random.index(4) == 0,
        }
    }

    /// A request: finds part of a chain, sometimes without the chain's start, evicts, and stores
    /// further blocks after it.
    fn request(&mut self) {
        let any = self.blocks.keys().copied().collect::<Vec<u32>>();
        let found = match any.is_empty() || self.random.index(4) == 0 {
            true => Vec::new(),
            false => {
                let at = self.random.index(any.len());
                let mut chain = self.chain(any[at]);
                if self.random.index(3) == 0 {
                    let elsewhere = self.random.index(chain.len());
                    chain.drain(..elsewhere);
                }
                chain
            }
        };
        let more = self.random.index(9);
        let hints = self.hints();
        let ids: Vec<BlockId> = found.iter().map(|&id| BlockId(id)).collect();
        self.policy.visited(&Visit {
            blocks: &ids,
            continues: more > 0,
            hints,
            now: Tick(self.now),
        });
        self.uses += 1;
        self.used(&found);
        self.policy.check_integrity();
        self.pin(found.clone());
        let missing = more.saturating_sub(self.free.len());
        self.evict(missing);
        let more = more.min(self.free.len());
        let mut parent = found.last().copied();
        // In batches of any size, down to single blocks.
        let mut left = more;
        while left > 0 {
            let part = 1 + self.random.index(left);
            let keys: Vec<BlockKey> = (0..part).map(|_| self.key()).collect();
            let ids: Vec<BlockId> = (0..part)
                .map(|_| BlockId(self.free.pop().unwrap()))
                .collect();
            self.policy.inserted(&Insertion {
                parent: parent.map(BlockId),
                blocks: &ids,
                keys: &keys,
                hints,
                now: Tick(self.now),
            });
            for (id, key) in ids.iter().zip(keys) {
                let stored = ModelBlock {
                    key,
                    parent,
                    pins: 0,
                    strangers: 0,
                    refused: None,
                    used: 0,
                };
                assert!(self.blocks.insert(id.0, stored).is_none());
                parent = Some(id.0);
            }
            let ids: Vec<u32> = ids.iter().map(|id| id.0).collect();
            self.used(&ids);
            if self.random.index(8) == 0 {
                self.blocks.get_mut(&ids[0]).unwrap().strangers += 1;
            }
            left -= part;
        }
        if self.random.index(3) == 0 {
            self.unpin();
        }
    }

    fn pin(&mut self, chain: Vec<u32>) {
        for block in &chain {
            self.blocks.get_mut(block).unwrap().pins += 1;
        }
        self.pins.push(chain);
    }

    /// Unpins a chain; its refused blocks may be offered again.
    fn unpin(&mut self) {
        if self.pins.is_empty() {
            return;
        }
        let at = self.random.index(self.pins.len());
        let mut chain = self.pins.swap_remove(at);
        if self.random.index(2) == 0 {
            chain.reverse();
        }
        for id in chain {
            let block = self.blocks.get_mut(&id).unwrap();
            block.pins -= 1;
            if block.pins == 0 && block.refused == Some(EvictionRefusal::Pinned) {
                block.refused = None;
                self.uses += 1;
                block.used = self.uses;
                self.policy.released(BlockId(id));
            }
        }
    }

    fn evict(&mut self, wanted: usize) -> usize {
        let mut evicted = 0;
        while evicted < wanted
            && let Some(BlockId(id)) = self.policy.candidate(Tick(self.now))
        {
            let followed = self.is_followed(id);
            let block = self.blocks.get_mut(&id).expect("candidates are stored");
            assert_eq!(block.refused, None, "{id} is offered again");
            if followed || block.pins > 0 {
                let refusal = match followed {
                    true => EvictionRefusal::Followed,
                    false => EvictionRefusal::Pinned,
                };
                block.refused = Some(refusal);
                self.policy.refused(BlockId(id), refusal);
                continue;
            }
            let (key, used) = (block.key, block.used);
            if self.least_recently_used {
                let longest_ago = self.leaves().all(|leaf| leaf.used >= used);
                assert!(longest_ago, "{id} is not the leaf used longest ago");
            }
            self.policy.evicted(BlockId(id), &key);
            self.forget(id);
            self.policy.check_integrity();
            evicted += 1;
        }
        let could = self.leaves().count();
        assert!(evicted == wanted || could == 0, "{could} were not offered");
        self.policy.check_integrity();
        evicted
    }

    /// The evictable blocks.
    fn leaves(&self) -> impl Iterator<Item = &ModelBlock> {
        let unused = self.blocks.iter().filter(|(_, block)| block.pins == 0);
        let leaves = unused.filter(|(id, _)| !self.is_followed(**id));
        leaves.map(|(_, block)| block)
    }

    /// Removes an unpinned block, at any position of its chain.
    fn remove(&mut self) {
        let free = self.blocks.iter().filter(|(_, block)| block.pins == 0);
        let any: Vec<u32> = free.map(|(&id, _)| id).collect();
        if any.is_empty() {
            return;
        }
        let id = any[self.random.index(any.len())];
        self.policy.removed(BlockId(id));
        self.forget(id);
    }

    fn step(&mut self) {
        self.now += self.random.any() % 1000;
        match self.random.index(17) {
            0..=8 => self.request(),
            9..=11 => self.unpin(),
            12 => {
                let wanted = self.random.index(12);
                self.evict(wanted);
            }
            13 => self.remove(),
            14 | 15 => self.strangers(),
            _ => {
                if let Some(lesson) = self.policy.lesson() {
                    self.policy.learn(lesson.study());
                }
            }
        }
        self.policy.check_integrity();
        assert_eq!(self.policy.len(), self.blocks.len());
        assert_eq!(self.policy.is_empty(), self.blocks.is_empty());
    }
}

#[test]
fn every_policy_offers_only_evictable_blocks_and_forgets_none() {
    for kind in PolicyKind::ALL {
        for seed in 0..24 {
            println!("{kind}, seed {seed}");
            let blocks = [1, 2, 7, 40, 150][usize::try_from(seed).unwrap() % 5];
            let mut model = PolicyModel::new(kind, blocks, seed);
            assert_eq!(model.policy.name(), kind.name());
            for _ in 0..400 {
                model.step();
            }
            while !model.pins.is_empty() {
                model.unpin();
            }
            let followed: Vec<u32> = model.blocks.keys().copied().collect();
            for id in followed {
                if std::mem::take(&mut model.blocks.get_mut(&id).unwrap().strangers) > 0 {
                    model.lost_child(id);
                }
            }
            let left = model.blocks.len();
            assert_eq!(model.evict(usize::MAX), left, "unpinned blocks are evicted");
            assert!(model.policy.is_empty());
        }
    }
}
