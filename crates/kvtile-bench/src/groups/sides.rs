//! The two caches: over groups, and of one group with the same bytes.

use std::{
    num::NonZeroU64,
    time::{Duration, Instant},
};

use kvtile::{
    Cache, CacheGroup, CacheSettings, GroupCache, GroupCacheSettings, TransferManager,
    blocks::{BlockKey, events::TierId},
    identity::Identity,
    layout::{Axis, GroupRule, LayoutError, PhysicalLayout, Plane, Shape, Unit, Word},
    tiers::groups::{LoadBlocks, StoreBlocks},
    transfer::{FillPattern, LayoutHandle},
};

use super::{GroupBenchSettings, PAGE_TOKENS};
use crate::error::BenchError;

/// Layers with full attention, and layers with a window.
const LAYERS: [u64; 2] = [4, 12];

/// Heads of K and of V, and elements of a head.
const HEADS: u64 = 2;
const HEAD_SIZE: u64 = 128;

/// Tokens that a layer with a window attends to: with the next token, 64 pages.
const WINDOW: u64 = 1024;

const NAMES: [&str; 3] = ["full", "window", "state"];

/// Pages of host memory beside those of a prompt.
const SPARE_PAGES: u64 = 8;

fn key(prompt: u64, number: u64) -> BlockKey {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&prompt.to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    BlockKey::from_bytes(bytes)
}

fn layout(shape: &Shape, word: &str) -> Result<PhysicalLayout, BenchError> {
    let word: Word = word.parse().map_err(LayoutError::from)?;
    Ok(PhysicalLayout::builder()
        .with_shape(shape.clone())
        .layout(word)
        .allocate_system()
        .build()?)
}

fn fell_short(operation: &'static str, came: usize, wanted: usize) -> Result<(), BenchError> {
    match came == wanted {
        true => Ok(()),
        false => Err(BenchError::CacheFellShort {
            operation,
            came,
            wanted,
        }),
    }
}

fn ids(count: u64) -> Vec<usize> {
    (0..usize::try_from(count).unwrap_or(0)).collect()
}

/// The cache over groups, and an engine.
pub(super) struct GroupSide {
    cache: GroupCache,
    engines: [LayoutHandle; 3],
    /// Pages of a stop in each group.
    pages: [u64; 3],
    block_bytes: [u64; 3],
    tokens: u64,
    /// The number of the prompt: each round stores another one.
    prompt: u64,
}

impl GroupSide {
    pub(super) fn new(settings: &GroupBenchSettings) -> Result<GroupSide, BenchError> {
        let unit = Unit::new("bf16", 2, 1)?;
        let full = settings.tokens / PAGE_TOKENS;
        let pages = [full, full.min(WINDOW / PAGE_TOKENS), 1];
        let kv =
            |pages, layers| Shape::key_value(pages, layers, PAGE_TOKENS, HEADS, HEAD_SIZE, &unit);
        let state = Plane::new("s", unit.clone())?.extent(Axis::C, settings.state_bytes / 2);
        let shapes = [
            kv(pages[0], LAYERS[0])?,
            kv(pages[1], LAYERS[1])?,
            Shape::new(1, 1, PAGE_TOKENS, vec![state.per_page()])?,
        ];
        let window = NonZeroU64::new(WINDOW).unwrap_or(NonZeroU64::MIN);
        let rules = [
            GroupRule::Full,
            GroupRule::Window { tokens: window },
            GroupRule::Stop,
        ];
        let manager = std::sync::Arc::new(TransferManager::new());
        let (mut groups, mut engines, mut block_bytes) = (Vec::new(), Vec::new(), Vec::new());
        let mut host_bytes = 0;
        // A group's share divides what is left after a stop of each group.
        let of_a_stop = [1, WINDOW / PAGE_TOKENS, 1];
        let counts = rules.into_iter().zip(pages).zip(of_a_stop);
        for ((name, shape), ((rule, pages), of_a_stop)) in NAMES.iter().zip(&shapes).zip(counts) {
            let word = if shape.planes().len() == 1 {
                "BLC"
            } else {
                "L|BKNHC"
            };
            engines.push(manager.register(layout(shape, word)?)?);
            let bytes = shape.block_bytes()?;
            block_bytes.push(bytes);
            let page = bytes.next_multiple_of(4096);
            let share = (pages.saturating_sub(of_a_stop) + SPARE_PAGES) * page;
            host_bytes += of_a_stop * page + share;
            let identity = Identity::new("benchmark", "none", shape)?;
            groups.push(
                CacheGroup::new(*name, rule, identity).share(share as f64 / (1 << 20) as f64),
            );
        }
        let host = GroupCacheSettings::new(groups)
            .host_bytes(host_bytes + (host_bytes / 64))
            .prefault(true);
        let engines: [LayoutHandle; 3] =
            <[LayoutHandle; 3]>::try_from(engines).map_err(|_| BenchError::StillHeld)?;
        let cache = GroupCache::builder(host).open_registered(manager, &engines)?;
        let block_bytes = <[u64; 3]>::try_from(block_bytes).map_err(|_| BenchError::StillHeld)?;
        let side = GroupSide {
            cache,
            engines,
            pages,
            block_bytes,
            tokens: settings.tokens,
            prompt: 0,
        };
        side.fill(0)?;
        Ok(side)
    }

    /// Bytes of a stop in each group.
    pub(super) fn stop_bytes(&self) -> [u64; 3] {
        let [full, window, state] = self.pages;
        let [of_full, of_window, of_state] = self.block_bytes;
        [full * of_full, window * of_window, state * of_state]
    }

    fn fill(&self, seed: u64) -> Result<(), BenchError> {
        for (engine, pages) in self.engines.iter().zip(self.pages) {
            let pattern = FillPattern::Distinct { seed };
            self.cache.manager().fill(*engine, &ids(pages), pattern)?;
        }
        Ok(())
    }

    fn chain(&self) -> Vec<BlockKey> {
        (0..self.tokens / PAGE_TOKENS)
            .map(|number| key(self.prompt, number))
            .collect()
    }

    /// Stores a stop of another prompt.
    pub(super) fn store(&mut self) -> Result<Duration, BenchError> {
        self.cache.clear()?;
        self.prompt += 1;
        let chain = self.chain();
        let blocks = self.pages.map(ids);
        let [full, window, state] = self.pages;
        let firsts = [0, full - window, full - state];
        let all: Vec<StoreBlocks<'_>> = NAMES
            .iter()
            .zip(&blocks)
            .zip(firsts)
            .map(|((name, blocks), first)| StoreBlocks::new(name, first, blocks))
            .collect();
        let begun = Instant::now();
        let stored = self.cache.store(&chain, &all, self.tokens)?.wait();
        let elapsed = begun.elapsed();
        let wanted: usize = blocks.iter().map(Vec::len).sum();
        fell_short("store", stored.stored(), wanted)?;
        Ok(elapsed)
    }

    /// Loads the stop.
    pub(super) fn load(&self) -> Result<Duration, BenchError> {
        let found = self.cache.lookup(&self.chain());
        let blocks = self.pages.map(ids);
        let all: Vec<LoadBlocks<'_>> = NAMES
            .iter()
            .zip(&blocks)
            .map(|(name, blocks)| LoadBlocks::new(name, blocks))
            .collect();
        let begun = Instant::now();
        let loaded = self.cache.load(found, &all)?.wait();
        let elapsed = begun.elapsed();
        let tokens = |tokens: u64| usize::try_from(tokens).unwrap_or(usize::MAX);
        fell_short("load", tokens(loaded.tokens), tokens(self.tokens))?;
        Ok(elapsed)
    }

    /// Loads the stop over other bytes, and compares every block with what was stored.
    pub(super) fn compare(&self) -> Result<(), BenchError> {
        let manager = self.cache.manager();
        let digests = || -> Result<Vec<_>, BenchError> {
            let mut digests = Vec::new();
            for (engine, pages) in self.engines.iter().zip(self.pages) {
                for block in ids(pages) {
                    digests.push(manager.block_digest(*engine, block)?);
                }
            }
            Ok(digests)
        };
        let expected = digests()?;
        self.fill(1)?;
        self.load()?;
        let came = digests()?;
        let wrong = expected
            .iter()
            .zip(&came)
            .position(|(one, other)| one != other);
        match wrong {
            None => Ok(()),
            Some(block) => Err(BenchError::WrongCopy {
                row: "groups".to_owned(),
                method: "kvtile",
                block: block as u64,
            }),
        }
    }

    /// Looks the prompt up, and expects this stop.
    pub(super) fn lookup(&self, stop: u64) -> Result<Duration, BenchError> {
        let chain = self.chain();
        let begun = Instant::now();
        let found = self.cache.lookup(&chain);
        let came = found.stop();
        drop(found);
        let elapsed = begun.elapsed();
        let tokens = |tokens: u64| usize::try_from(tokens).unwrap_or(usize::MAX);
        fell_short("lookup", tokens(came), tokens(stop))?;
        Ok(elapsed)
    }

    /// Evicts the state, and looks the prompt up: no stop is left.
    pub(super) fn lookup_lost(&self) -> Result<Duration, BenchError> {
        fell_short("evict", self.cache.evict("state", TierId::HOST, 1)?, 1)?;
        self.lookup(0)
    }
}

/// The cache of one group, and an engine.
pub(super) struct OneSide {
    cache: Cache,
    pages: u64,
    prompt: u64,
}

impl OneSide {
    /// A cache whose prompts have as many pages as the full group of the other side, and together at
    /// least `bytes` bytes.
    pub(super) fn new(settings: &GroupBenchSettings, bytes: u64) -> Result<OneSide, BenchError> {
        let pages = settings.tokens / PAGE_TOKENS;
        let unit = Unit::new("bf16", 2, 1)?;
        // A layer of a page has K and V of two bytes.
        let layers = LAYERS.iter().sum::<u64>();
        let of_head = layers * PAGE_TOKENS * HEADS * 2 * 2;
        let head_size = bytes.div_ceil(pages * of_head);
        let shape = Shape::key_value(pages, layers, PAGE_TOKENS, HEADS, head_size, &unit)?;
        let identity = Identity::new("benchmark", "none", &shape)?;
        let host_bytes = (pages + SPARE_PAGES) * shape.block_bytes()?.next_multiple_of(4096);
        let host = CacheSettings::new(identity)
            .host_bytes(host_bytes)
            .prefault();
        let cache = Cache::open(host, layout(&shape, "L|BKNHC")?)?;
        let pattern = FillPattern::Distinct { seed: 3 };
        cache.manager().fill(cache.engine(), &ids(pages), pattern)?;
        Ok(OneSide {
            cache,
            pages,
            prompt: 0,
        })
    }

    fn chain(&self) -> Vec<BlockKey> {
        (0..self.pages)
            .map(|number| key(self.prompt, number))
            .collect()
    }

    pub(super) fn store(&mut self) -> Result<Duration, BenchError> {
        self.cache.clear()?;
        self.prompt += 1;
        let (chain, ids) = (self.chain(), ids(self.pages));
        let begun = Instant::now();
        let stored = self.cache.store(&chain, &ids)?.wait();
        let elapsed = begun.elapsed();
        fell_short("store", stored.stored, ids.len())?;
        Ok(elapsed)
    }

    pub(super) fn load(&self) -> Result<Duration, BenchError> {
        let (found, ids) = (self.cache.lookup(&self.chain()), ids(self.pages));
        let begun = Instant::now();
        let loaded = self.cache.load(found, &ids)?.wait();
        let elapsed = begun.elapsed();
        fell_short("load", loaded.blocks, ids.len())?;
        Ok(elapsed)
    }

    pub(super) fn lookup(&self) -> Result<Duration, BenchError> {
        let chain = self.chain();
        let begun = Instant::now();
        let found = self.cache.lookup(&chain);
        let came = found.blocks();
        drop(found);
        let elapsed = begun.elapsed();
        fell_short("lookup", came, chain.len())?;
        Ok(elapsed)
    }
}
