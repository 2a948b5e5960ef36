//! Random operations on a pool of every policy, against a model: a map from keys to pins, with the
//! parent of each key. No block is evicted before its cached children; all other unpinned blocks
//! may be.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use kvtile_blocks::events::{EventLog, EventMirror, TierId};
use kvtile_blocks::policy::{PolicyKind, PolicySettings};
use kvtile_blocks::pool::{
    AllocateRequest, BlockPool, CompleteBlocks, DuplicateHandling, EventSink, EvictedBlocks,
    MutableBlocks, OwnerId, PinClaim, PinnedBlocks, PoolSettings, TenantId, TenantQuota,
};
use kvtile_blocks::{BlockKey, GroupId, Tick};
use kvtile_random::SplitMix64;
use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

const GROUP: GroupId = GroupId(2);
const BLOCKS: usize = 48;

/// The number of chains, and the length of the longest.
const CHAINS: usize = 9;
const LENGTH: usize = 12;

/// Chain `c` shares its first four blocks with all chains of the same remainder.
fn chain(number: usize, length: usize) -> Vec<BlockKey> {
    let key = |position: usize| {
        let family = if position < 4 { number % 3 } else { number };
        let words = [family as u64 + 1, position as u64];
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&words[0].to_le_bytes());
        bytes[8..].copy_from_slice(&words[1].to_le_bytes());
        BlockKey::from_bytes(bytes)
    };
    (0..length).map(key).collect()
}

/// The parent of each key.
fn parents() -> HashMap<BlockKey, BlockKey> {
    let chains = (0..CHAINS).map(|number| chain(number, LENGTH));
    let pairs = |keys: Vec<BlockKey>| keys.windows(2).map(|k| (k[1], k[0])).collect::<Vec<_>>();
    chains.flat_map(pairs).collect()
}

#[derive(Default)]
struct ModelGuards {
    mutable: Vec<MutableBlocks>,
    complete: Vec<(CompleteBlocks, Vec<BlockKey>)>,
    pinned: Vec<(PinnedBlocks, Vec<BlockKey>)>,
    evicted: Vec<EvictedBlocks>,
}

struct PoolWorld {
    pool: Arc<BlockPool>,
    log: Arc<EventLog>,
    mirror: EventMirror,
    subscriber: kvtile_blocks::events::EventSubscriber,
    /// The keys that lookups find, with the number of guards that pin each.
    stored: HashMap<BlockKey, usize>,
    guards: ModelGuards,
    random: SplitMix64,
    now: u64,
    parents: HashMap<BlockKey, BlockKey>,
}

impl PoolWorld {
    fn new(seed: u64, kind: PolicyKind, settings: PoolSettings) -> PoolWorld {
        let log = Arc::new(EventLog::new(NonZeroUsize::new(4096).unwrap()).unwrap());
        let sink = EventSink {
            log: Arc::clone(&log),
            tier: TierId::HOST,
            group: GROUP,
        };
        let policy = PolicySettings::from(kind);
        let pool = BlockPool::with_events(settings, |blocks| policy.build(blocks), sink).unwrap();
        PoolWorld {
            pool,
            subscriber: log.subscribe(),
            log,
            mirror: EventMirror::new(),
            stored: HashMap::new(),
            guards: ModelGuards::default(),
            random: SplitMix64::new(seed),
            now: 0,
            parents: parents(),
        }
    }

    fn claim(&mut self) -> PinClaim {
        PinClaim {
            owner: OwnerId(self.now),
            deadline: (self.random.index(2) == 0).then_some(Tick(self.now + 5)),
            now: Tick(self.now),
            ..PinClaim::default()
        }
    }

    fn keys(&mut self) -> Vec<BlockKey> {
        let (number, length) = (self.random.index(CHAINS), 1 + self.random.index(LENGTH));
        chain(number, length)
    }

    fn step(&mut self) {
        self.now += 1;
        match self.random.index(14) {
            0..=3 => self.store(),
            4..=6 => self.look_up(),
            7 => self.allocate(),
            8 | 9 => self.drop_one(),
            10 => self.evict(),
            11 => self.remove(),
            12 => self.pin_and_split(),
            _ => self.drop_one(),
        }
        if self.random.index(200) == 0 {
            self.clear();
        }
        if self.random.index(100) == 0 {
            self.pool.maintain();
        }
        self.check();
    }

    fn request(&mut self) -> AllocateRequest {
        AllocateRequest {
            tenant: TenantId(u32::try_from(self.random.index(3)).unwrap()),
            now: Tick(self.now),
        }
    }

    /// How many blocks can be evicted one after the other: all but the pinned blocks and their
    /// ancestors.
    fn evictable(&self) -> usize {
        let mut stays: HashSet<BlockKey> = HashSet::new();
        for (key, _) in self.stored.iter().filter(|(_, pins)| **pins > 0) {
            let mut at = Some(key);
            while let Some(key) = at.filter(|key| self.stored.contains_key(*key)) {
                if !stays.insert(*key) {
                    break;
                }
                at = self.parents.get(key);
            }
        }
        self.stored.len() - stays.len()
    }

    /// The keys that have cached children.
    fn followed(&self) -> HashSet<BlockKey> {
        let parents = self.stored.keys().filter_map(|key| self.parents.get(key));
        parents.copied().collect()
    }

    /// Removes a block that the pool has evicted.
    fn forget(&mut self, key: &BlockKey) {
        assert_eq!(self.stored.remove(key), Some(0), "an inactive block");
        let followed = self.followed().contains(key);
        assert!(!followed, "{key} leaves before a block that follows it");
    }

    /// Removes the blocks that the pool has evicted; none may be pinned or have cached children.
    fn forget_evicted(&mut self) {
        let there: HashSet<BlockKey> = self.pool.snapshot().iter().map(|e| e.key).collect();
        let before: HashSet<BlockKey> = self.stored.keys().copied().collect();
        self.stored.retain(|key, pins| {
            let kept = there.contains(key);
            assert!(kept || *pins == 0, "{key} was evicted while pinned");
            kept
        });
        let gone = |key: &BlockKey| before.contains(key) && !there.contains(key);
        let broken = self.followed().into_iter().find(gone);
        assert_eq!(broken, None, "it was evicted before its children");
    }

    fn allocate(&mut self) {
        let count = self.random.index(10);
        let (request, free) = (self.request(), self.pool.census().free);
        let evictable = self.evictable();
        let mut shown: Vec<BlockKey> = Vec::new();
        let pool = Arc::clone(&self.pool);
        let outcome = pool.allocate_with(count, &request, |leaving| {
            for block in leaving {
                assert_eq!(pool.peek(&[block.key]), 0, "it is out of the cache");
                assert_eq!(block.parent, self.parents.get(&block.key).copied());
                shown.push(block.key);
            }
        });
        let in_order = shown.clone();
        let gone = |key: &BlockKey| pool.peek(std::slice::from_ref(key)) == 0;
        let mut left: Vec<BlockKey> = self.stored.keys().copied().filter(gone).collect();
        left.sort_unstable();
        shown.sort_unstable();
        assert_eq!(shown, left, "every evicted block is shown, once");
        for key in &in_order {
            self.forget(key);
        }
        let evicted = in_order.len();
        let quotas = !self.pool.settings().quotas.is_empty();
        match outcome {
            Ok(blocks) => {
                assert_eq!(blocks.len(), count);
                assert!(quotas || evicted == count.saturating_sub(free));
                self.guards.mutable.push(blocks);
            }
            Err(_) => {
                assert!(quotas || evicted == evictable && free + evictable < count);
            }
        }
    }

    fn store(&mut self) {
        let keys = self.keys();
        let claim = self.claim();
        let found = self.pool.match_prefix(&keys, &claim);
        self.pinned(&keys[..found.len()]);
        assert_eq!(
            found.len(),
            self.prefix(&keys),
            "the longest prefix is found"
        );
        let rest = keys[found.len()..].to_vec();
        let parent = found.len().checked_sub(1).map(|last| keys[last]);
        self.guards
            .pinned
            .push((found, keys[..keys.len() - rest.len()].to_vec()));
        let request = self.request();
        let Ok(blocks) = self.pool.allocate(rest.len(), &request) else {
            self.forget_evicted();
            return;
        };
        self.forget_evicted();
        let complete = blocks.complete(&rest, parent).unwrap();
        if self.random.index(4) == 0 {
            self.guards.complete.push((complete, rest));
            return;
        }
        self.register(complete, rest);
    }

    fn register(&mut self, complete: CompleteBlocks, keys: Vec<BlockKey>) {
        let claim = self.claim();
        let known: Vec<usize> = (0..keys.len())
            .filter(|&i| self.stored.contains_key(&keys[i]))
            .collect();
        match complete.register(&claim) {
            Ok(registered) => {
                assert_eq!(registered.duplicates, known);
                self.pinned(&keys);
                assert!(registered.blocks.keys().eq(keys.iter().copied()));
                self.guards.pinned.push((registered.blocks, keys));
            }
            Err(rejected) => {
                assert_eq!(self.pool.settings().duplicates, DuplicateHandling::Refuse);
                assert!(!known.is_empty());
                assert_eq!(rejected.blocks.len(), keys.len());
            }
        }
    }

    fn pinned(&mut self, keys: &[BlockKey]) {
        for key in keys {
            *self.stored.entry(*key).or_insert(0) += 1;
        }
    }

    fn prefix(&self, keys: &[BlockKey]) -> usize {
        keys.iter()
            .take_while(|key| self.stored.contains_key(key))
            .count()
    }

    fn look_up(&mut self) {
        let mut keys = self.keys();
        if self.random.index(3) == 0 {
            // Other tiers hold the start of the chain.
            keys.drain(..self.random.index(keys.len()));
        }
        let expected = self.prefix(&keys);
        assert_eq!(self.pool.peek(&keys), expected);
        let claim = self.claim();
        let found = self.pool.match_prefix(&keys, &claim);
        assert!(found.keys().eq(keys[..expected].iter().copied()));
        self.pinned(&keys[..expected]);
        self.guards.pinned.push((found, keys[..expected].to_vec()));
    }

    fn pin_and_split(&mut self) {
        let keys = self.keys();
        let claim = self.claim();
        let pinned = self.pool.pin(&keys, &claim);
        let known: Vec<usize> = (0..keys.len())
            .filter(|&i| self.stored.contains_key(&keys[i]))
            .collect();
        assert_eq!(pinned.positions, known);
        let keys: Vec<BlockKey> = known.iter().map(|&i| keys[i]).collect();
        self.pinned(&keys);
        let (mut blocks, mut keys) = (pinned.blocks, keys);
        let at = self.random.index(keys.len() + 1);
        let tail = blocks.split_off(at);
        let tail_keys = keys.split_off(at);
        if let Some((other, other_keys)) = self.guards.pinned.last_mut() {
            other.append(tail).unwrap();
            other_keys.extend(tail_keys);
        } else {
            self.guards.pinned.push((tail, tail_keys));
        }
        self.guards.pinned.push((blocks, keys));
    }

    fn drop_one(&mut self) {
        let which = self.random.index(4);
        if which == 0 && !self.guards.mutable.is_empty() {
            let at = self.random.index(self.guards.mutable.len());
            drop(self.guards.mutable.swap_remove(at));
        } else if which == 1 && !self.guards.complete.is_empty() {
            let at = self.random.index(self.guards.complete.len());
            let (complete, keys) = self.guards.complete.swap_remove(at);
            self.register(complete, keys);
        } else if !self.guards.evicted.is_empty() && which == 2 {
            self.guards.evicted.clear();
        } else if !self.guards.pinned.is_empty() {
            let at = self.random.index(self.guards.pinned.len());
            let (blocks, keys) = self.guards.pinned.swap_remove(at);
            drop(blocks);
            self.unpinned(&keys);
        }
    }

    /// Pins of keys that were removed, and perhaps stored again, are not this guard's. The model
    /// drops guards of removed keys at once, so there are none.
    fn unpinned(&mut self, keys: &[BlockKey]) {
        for key in keys {
            *self.stored.get_mut(key).unwrap() -= 1;
        }
    }

    fn evict(&mut self) {
        let count = self.random.index(8);
        let most = count.min(self.evictable());
        let evicted = self.pool.evict(count, Tick(self.now));
        assert_eq!(evicted.len(), most, "every evictable block is evicted");
        for block in evicted.iter() {
            self.forget(&block.key);
        }
        self.guards.evicted.push(evicted);
    }

    fn remove(&mut self) {
        let keys = self.keys();
        let keys = &keys[keys.len() / 2..];
        let expected = keys
            .iter()
            .filter(|key| self.stored.contains_key(key))
            .count();
        let pinned = keys
            .iter()
            .filter(|key| self.stored.get(key).is_some_and(|&pins| pins > 0));
        let pinned = pinned.count();
        let removed = self.pool.remove(keys);
        assert_eq!((removed.blocks, removed.pinned), (expected, pinned));
        for key in keys {
            self.stored.remove(key);
        }
        self.pool.check_integrity();
        self.drop_guards_of_removed();
    }

    fn clear(&mut self) {
        let removed = self.pool.clear();
        assert_eq!(removed.blocks, self.stored.len());
        self.stored.clear();
        self.pool.check_integrity();
        self.drop_guards_of_removed();
    }

    fn drop_guards_of_removed(&mut self) {
        let stored = &self.stored;
        let gone = |keys: &[BlockKey]| keys.iter().any(|key| !stored.contains_key(key));
        let (dead, alive) = std::mem::take(&mut self.guards.pinned)
            .into_iter()
            .partition::<Vec<_>, _>(|(_, keys)| gone(keys));
        self.guards.pinned = alive;
        for (blocks, keys) in dead {
            drop(blocks);
            for key in keys {
                if let Some(pins) = self.stored.get_mut(&key) {
                    *pins -= 1;
                }
            }
        }
    }

    fn check(&mut self) {
        self.pool.check_integrity();
        let followed = self.followed();
        for number in 0..CHAINS {
            for key in chain(number, LENGTH) {
                assert_eq!(self.pool.has(&key), self.stored.contains_key(&key));
                assert_eq!(self.pool.has_child(&key), followed.contains(&key));
            }
        }
        let census = self.pool.census();
        let pinned = self.stored.values().filter(|&&pins| pins > 0).count();
        assert_eq!(census.active, pinned);
        assert_eq!(census.inactive, self.stored.len() - pinned);
        let held = self
            .guards
            .mutable
            .iter()
            .map(MutableBlocks::len)
            .sum::<usize>()
            + self
                .guards
                .complete
                .iter()
                .map(|(blocks, _)| blocks.len())
                .sum::<usize>()
            + self
                .guards
                .evicted
                .iter()
                .map(EvictedBlocks::len)
                .sum::<usize>();
        assert_eq!(census.owned, held);
        assert_eq!(census.withdrawn, 0);
        for event in self.subscriber_events() {
            assert!(self.mirror.apply(&event));
        }
        assert_eq!(self.mirror.len(TierId::HOST), self.stored.len());
        assert!(
            self.stored
                .keys()
                .all(|key| self.mirror.contains(TierId::HOST, GROUP, key))
        );
        assert!(self.log.next_sequence() > 0 || self.stored.is_empty());
    }

    fn subscriber_events(&mut self) -> Vec<kvtile_blocks::events::Event> {
        let mut events = Vec::new();
        self.subscriber.poll(&mut events, 4096).unwrap();
        events
    }
}

fn run(kind: PolicyKind, seed: u64, settings: &PoolSettings) {
    println!("policy {kind}, seed {seed}, {:?}", settings.duplicates);
    let mut world = PoolWorld::new(seed, kind, settings.clone());
    for _ in 0..1_500 {
        world.step();
    }
    let pool = Arc::clone(&world.pool);
    drop(world);
    pool.check_integrity();
    let census = pool.census();
    assert_eq!(
        census.free + census.inactive,
        BLOCKS,
        "every guard gave its blocks back"
    );
    assert_eq!(pool.stats().open_claims, 0, "and its claim");
    drop(pool.evict(usize::MAX, Tick::default()));
    assert_eq!(pool.cached(), 0, "no block stays cached");
    pool.check_integrity();
}

fn settings() -> PoolSettings {
    PoolSettings::new().blocks(BLOCKS).visit_queue_blocks(16)
}

#[test]
fn a_pool_does_what_the_model_does_with_every_policy() {
    for kind in PolicyKind::ALL {
        for seed in 0..6 {
            run(kind, seed, &settings());
        }
    }
}

#[test]
fn a_pool_that_refuses_duplicates_does_what_the_model_does() {
    for (kind, seed) in PolicyKind::ALL.into_iter().zip(100..) {
        let settings = settings().duplicates(DuplicateHandling::Refuse);
        run(kind, seed, &settings);
    }
}

#[test]
fn a_pool_with_quotas_does_what_the_model_does_and_no_tenant_is_over_its_quota() {
    for seed in 200..204 {
        let quota = |tenant, blocks| TenantQuota {
            tenant: TenantId(tenant),
            blocks,
        };
        let settings = settings().quotas(vec![quota(1, 12), quota(2, 20)]);
        for kind in PolicyKind::ALL {
            run(kind, seed, &settings);
        }
    }
}
