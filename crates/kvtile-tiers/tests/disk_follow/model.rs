//! Random operations of a writer, a follower and damage, compared with a naive model: what the
//! writer has synced is what the follower lists.
//!
//! `KVTILE_FOLLOW_SEED=n` runs one seed.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use kvtile_blocks::BlockKey;
use kvtile_testkit::disk::SplitMix64;
use kvtile_tiers::tier::{Tier, TierMiss};

use crate::{
    common::{ChainBlock, FolderReader, FolderWriter, FollowRig, GROUP, NOW, chain, keys},
    engine::number,
};

const SEEDS: u64 = 60;
const STEPS: usize = 60;
const CHAINS: u64 = 6;
const CHAIN_BLOCKS: u32 = 12;

/// The blocks that the writer had at its last sync, each with its parent.
type SyncedBlocks = BTreeSet<(BlockKey, Option<BlockKey>)>;

struct FollowModel<'a> {
    rig: &'a FollowRig,
    numbers: SplitMix64,
    writer: Option<FolderWriter<'a>>,
    reader: FolderReader<'a>,
    /// Whether nothing was written or erased since the last sync.
    is_synced: bool,
    synced: SyncedBlocks,
    hits: usize,
}

#[test]
fn a_follower_lists_what_the_writer_has_synced() {
    if let Some(seed) = number("KVTILE_FOLLOW_SEED") {
        run(seed);
        return;
    }
    let mut hits = 0;
    for seed in 0..SEEDS {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(came) => hits += came,
            Err(panic) => {
                println!("seed {seed} failed; KVTILE_FOLLOW_SEED={seed} runs it alone");
                resume_unwind(panic);
            }
        }
    }
    println!("{SEEDS} seeds, {hits} blocks read");
    assert!(hits > 3000, "{hits}");
}

fn run(seed: u64) -> usize {
    let rig = FollowRig::new((seed % 2) as usize * 2);
    let mut model = FollowModel {
        rig: &rig,
        numbers: SplitMix64::new(seed),
        writer: None,
        reader: rig.follower(),
        is_synced: true,
        synced: SyncedBlocks::new(),
        hits: 0,
    };
    if !seed.is_multiple_of(5) {
        model.reopen();
    }
    for _ in 0..STEPS {
        model.step();
        model.check();
    }
    let stats = model.reader.tier.follower_stats();
    assert_eq!((stats.misses_damaged, stats.misses_io), (0, 0), "{stats:?}");
    assert_eq!(stats.refresh_failures, 0, "{stats:?}");
    model.hits
}

impl FollowModel<'_> {
    fn step(&mut self) {
        match self.numbers.below(12) {
            0 => self.reopen(),
            1 if self.numbers.once_in(4) => self.clear_folder(),
            1 => self.sync(),
            2 | 3 => self.forget(),
            4 => self.evict(),
            5..=8 => self.write(),
            9 => self.sync(),
            _ => self.read(),
        }
    }

    /// A few leading blocks of a chain.
    fn some(&mut self) -> Vec<ChainBlock> {
        let blocks = chain(self.numbers.below(CHAINS), CHAIN_BLOCKS);
        let count = 1 + self.numbers.index(blocks.len());
        blocks[..count].to_vec()
    }

    /// Drops the writer and opens it again, perhaps with another capacity.
    fn reopen(&mut self) {
        self.writer = None;
        let bytes = (10 + self.numbers.below(60)) * 4096;
        let writer = self.rig.writer_of(bytes);
        // Opening makes the erasures that it decides durable.
        self.synced = writer.list();
        self.is_synced = true;
        self.writer = Some(writer);
    }

    fn clear_folder(&mut self) {
        if self.writer.take().is_some() {
            self.rig.clear();
        }
        self.synced.clear();
        if self.numbers.once_in(2) {
            self.reopen();
        }
        self.is_synced = true;
    }

    fn write(&mut self) {
        let blocks = self.some();
        if let Some(writer) = &self.writer {
            writer.write(&blocks);
            self.is_synced = false;
        }
    }

    fn forget(&mut self) {
        let blocks = self.some();
        let from = self.numbers.index(blocks.len());
        if let Some(writer) = &self.writer {
            writer.tier.forget(GROUP, &keys(&blocks[from..]));
            self.is_synced = false;
        }
    }

    fn evict(&mut self) {
        let blocks = self.numbers.index(10);
        if let Some(writer) = &self.writer {
            writer.tier.evict(blocks, NOW);
            self.is_synced = false;
        }
    }

    fn sync(&mut self) {
        if let Some(writer) = &self.writer {
            writer.sync();
            self.synced = writer.list();
            self.is_synced = true;
        }
    }

    /// Reads with the index as it is, which may be old.
    fn read(&mut self) {
        let blocks = self.some();
        for outcome in self.reader.read(&blocks) {
            match outcome {
                Ok(()) => self.hits += 1,
                Err(miss) => assert!(matches!(miss, TierMiss::Absent), "{miss:?}"),
            }
        }
        self.reader.tier.check_integrity();
    }

    fn check(&mut self) {
        if !self.is_synced || !self.numbers.once_in(2) {
            return;
        }
        self.reader.fresh(&[]);
        assert_eq!(self.reader.list(), self.synced);
        for number in 0..CHAINS {
            let blocks = chain(number, CHAIN_BLOCKS);
            for (block, outcome) in blocks.iter().zip(self.reader.read(&blocks)) {
                let there = self.synced.contains(&(block.key, block.parent));
                assert_eq!(outcome.is_ok(), there, "{block:?}: {outcome:?}");
                self.hits += usize::from(there);
            }
        }
    }
}
