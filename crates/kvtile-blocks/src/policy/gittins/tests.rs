//! The time of learning does not change the policy's decisions.

use super::*;
use crate::policy::EvictionHints;
use kvtile_random::SplitMix64;

/// Two policies with the same events; one of them learns from each event at once.
struct PolicyPair {
    late: Gittins,
    prompt: Gittins,
    /// Chains of stored blocks, with their keys.
    chains: Vec<Vec<(BlockId, BlockKey)>>,
    free: Vec<u32>,
    random: SplitMix64,
    keys: u128,
}

const BLOCKS: u32 = 400;

impl PolicyPair {
    fn new(seed: u64) -> PolicyPair {
        let mut policy = Gittins::new(BLOCKS);
        policy.next_lesson = 5;
        PolicyPair {
            late: policy.clone(),
            prompt: policy,
            chains: Vec::new(),
            free: (0..BLOCKS).collect(),
            random: SplitMix64::new(seed),
            keys: 0,
        }
    }

    fn both(&mut self, happens: impl Fn(&mut Gittins)) {
        happens(&mut self.late);
        happens(&mut self.prompt);
        self.prompt.catch_up();
        self.prompt.forget_excess();
    }

    fn hints(&mut self) -> EvictionHints {
        EvictionHints {
            priority: i8::try_from(self.random.index(20) / 19).unwrap(),
            output_tokens: u32::try_from(self.random.index(3) * 100).unwrap(),
            partial_tail: self.random.index(3) == 0,
            ..EvictionHints::default()
        }
    }

    /// A request: uses the start of a chain, and stores a new end after it.
    fn request(&mut self) {
        let hints = self.hints();
        let at = self.random.index(self.chains.len() + 2);
        let mut chain = self.chains.get(at).cloned().unwrap_or_default();
        let used = self.random.index(chain.len() + 1);
        let blocks: Vec<BlockId> = chain.iter().take(used).map(|&(block, _)| block).collect();
        let now = Tick(0);
        let continues = self.random.index(2) == 0;
        self.both(|policy| {
            policy.visited(&Visit {
                blocks: &blocks,
                continues,
                hints,
                now,
            });
        });
        let count = (1 + self.random.index(12)).min(self.free.len());
        if count == 0 {
            return;
        }
        let turn = self.random.index(self.free.len());
        self.free.rotate_left(turn);
        let stored: Vec<BlockId> = self.free.drain(..count).map(BlockId).collect();
        let keys: Vec<BlockKey> = stored.iter().map(|_| self.key()).collect();
        let parent = blocks.last().copied();
        self.both(|policy| {
            policy.inserted(&Insertion {
                parent,
                blocks: &stored,
                keys: &keys,
                hints,
                now,
            });
        });
        chain.truncate(used);
        chain.extend(stored.into_iter().zip(keys));
        self.chains.push(chain);
    }

    /// A new key, or an old one that may have a ghost.
    fn key(&mut self) -> BlockKey {
        self.keys += 1;
        let old = u128::from(self.random.any()) % self.keys;
        let stored = |number: u128| {
            let key = BlockKey::from_bytes(number.to_le_bytes());
            self.chains.iter().flatten().any(|(_, other)| *other == key)
        };
        let number = match self.random.index(2) {
            0 if !stored(old) => old,
            _ => self.keys,
        };
        BlockKey::from_bytes(number.to_le_bytes())
    }

    fn evict(&mut self) {
        let now = Tick(0);
        let offered = self.late.candidate(now);
        assert_eq!(offered, self.prompt.candidate(now));
        let Some(block) = offered else { return };
        let mut chains = self.chains.iter();
        let stored = chains.find_map(|chain| chain.iter().find(|(id, _)| *id == block));
        let key = stored.expect("only stored blocks are offered").1;
        self.both(|policy| policy.evicted(block, &key));
        for chain in &mut self.chains {
            let end = chain.iter().position(|(id, _)| *id == block);
            chain.truncate(end.unwrap_or(chain.len()));
        }
        self.chains.retain(|chain| !chain.is_empty());
        self.free.push(block.0);
    }

    fn study(&mut self) {
        let lessons = (self.late.lesson(), self.prompt.lesson());
        assert_eq!(lessons.0.is_some(), lessons.1.is_some());
        if let (Some(late), Some(prompt)) = lessons {
            self.late.learn(late.study());
            self.prompt.learn(prompt.study());
        }
    }
}

#[test]
fn when_it_learns_makes_no_difference() {
    for seed in 0..12 {
        println!("seed {seed}");
        let mut pair = PolicyPair::new(seed);
        for step in 0..2_000 {
            match pair.random.index(40) {
                0 => pair.study(),
                1..=6 if pair.free.len() < 40 => (0..25).for_each(|_| pair.evict()),
                7..=9 => pair.evict(),
                _ => pair.request(),
            }
            if step % 50 == 0 {
                pair.late.check_integrity();
                pair.prompt.check_integrity();
                assert_eq!(pair.late.len(), pair.prompt.len());
                assert_eq!(pair.late.len(), BLOCKS as usize - pair.free.len());
            }
        }
        let mut late = pair.late.clone();
        late.catch_up();
        late.forget_excess();
        let state = |policy: &Gittins| {
            let ghosts: Vec<String> = policy
                .ghosts
                .iter()
                .map(|ghost| format!("{ghost:?}"))
                .collect();
            (
                policy.clock,
                policy.requests,
                ghosts,
                format!("{:?}", policy.observed),
            )
        };
        assert_eq!(state(&late), state(&pair.prompt));
    }
}
