//! A shared tier over a store, with host memory for the blocks of a round.

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile_blocks::{
    BlockKey,
    events::{EventLog, TierId, TierKind},
};
use kvtile_shared::{
    store::SharedStore,
    tier::{SharedTier, SharedTierSettings},
};
use kvtile_testkit::tier::HostMemory;
use kvtile_tiers::{
    cache::SystemClock,
    tier::{BlockName, BlockRead, BlockWrite, GroupId, Tier, TierContext, TierGroup},
};

/// Blocks of a bundle.
const BUNDLE: u32 = 4;

/// Bytes of a token in host memory.
const TOKEN_BYTES: usize = 256;

/// The time limit of a round.
const WITHIN: Duration = Duration::from_secs(120);

/// Settings of a tier of the benchmark.
pub(crate) struct BenchTierSettings {
    pub(crate) prefix: &'static str,
    pub(crate) compress: bool,
    /// Without threads the calls of the store run within the calls of the tier.
    pub(crate) threads: usize,
    /// The content of every block; `None` makes one from its name.
    pub(crate) content: Option<Vec<u8>>,
}

impl Default for BenchTierSettings {
    fn default() -> BenchTierSettings {
        BenchTierSettings {
            prefix: "",
            compress: false,
            threads: 2,
            content: None,
        }
    }
}

pub(crate) struct BenchTier {
    tier: Arc<SharedTier>,
    host: HostMemory,
    content: Option<Vec<u8>>,
    bundles: usize,
    /// The round whose blocks the store has.
    round: usize,
}

impl BenchTier {
    /// A tier whose bundles have blocks of `bytes` bytes together; a round moves `bundles` of them.
    pub(crate) fn open(
        store: &Arc<dyn SharedStore>,
        (bytes, bundles): (usize, usize),
        of_tier: BenchTierSettings,
    ) -> BenchTier {
        let blocks = bundles * BUNDLE as usize;
        let tokens = bytes / BUNDLE as usize / TOKEN_BYTES;
        let host = HostMemory::with_page_size(blocks, tokens as u64).unwrap();
        assert_eq!(host.block_bytes() * BUNDLE as usize, bytes);
        let context = TierContext {
            groups: vec![TierGroup::new("kv", host.identity().clone())],
            events: Arc::new(EventLog::new(NonZeroUsize::MIN.saturating_add(1 << 16)).unwrap()),
            clock: Arc::new(SystemClock::default()),
            threads: of_tier.threads,
        };
        let settings = SharedTierSettings::new()
            .bundle_blocks(BUNDLE)
            .read_within(WITHIN)
            .write_within(WITHIN)
            .room_within(WITHIN)
            .compress(of_tier.compress)
            .prefix(of_tier.prefix);
        let id = TierId::new(TierKind::Remote, "shared").unwrap();
        let tier = SharedTier::open(id, Arc::clone(store), settings, &context).unwrap();
        BenchTier {
            tier,
            host,
            content: of_tier.content,
            bundles,
            round: 0,
        }
    }

    /// The names of a round's blocks, by bundle. Every bundle is a chain of its own.
    fn chains(&self, round: usize) -> Vec<Vec<BlockName>> {
        let name = |bundle: usize, block: u32| {
            let parts = [round as u64, bundle as u64, u64::from(block)].map(u64::to_le_bytes);
            let key = BlockKey::from_opaque(&parts.concat());
            let group = GroupId(0);
            BlockName { group, key }
        };
        let chain = |bundle| (0..BUNDLE).map(|block| name(bundle, block)).collect();
        (0..self.bundles).map(chain).collect()
    }

    /// Writes new blocks, and waits until the store has them.
    pub(crate) fn write(&mut self, round: usize) -> Duration {
        let mut reserved = Vec::new();
        let mut blocks = Vec::new();
        for chain in self.chains(round) {
            let mut parent = None;
            for (position, name) in (0..).zip(chain) {
                let (held, from) = match &self.content {
                    Some(bytes) => self.host.filled_with(bytes),
                    None => self.host.filled(&name),
                };
                reserved.push(held);
                let tenant = 0;
                blocks.push(BlockWrite {
                    name,
                    parent,
                    position,
                    tenant,
                    from,
                });
                parent = Some(name.key);
            }
        }
        self.round = round;
        let began = Instant::now();
        let written = self.tier.write(blocks).wait_timeout(WITHIN).unwrap();
        assert!(written.blocks.iter().all(Result::is_ok), "{written:?}");
        assert!(self.tier.wait_for_writes(WITHIN), "writes are slow");
        let took = began.elapsed();
        assert_eq!(self.tier.counters().write_failed, 0);
        took
    }

    /// Looks up a chain of 16 bundles that the store does not have.
    pub(crate) fn ask(&self, round: usize) -> Duration {
        let key = |block: u64| {
            let parts = [u64::MAX, round as u64, block].map(u64::to_le_bytes);
            BlockKey::from_opaque(&parts.concat())
        };
        let keys: Vec<BlockKey> = (0..16 * u64::from(BUNDLE)).map(key).collect();
        let began = Instant::now();
        let answer = self
            .tier
            .ask(GroupId(0), &keys)
            .wait_timeout(WITHIN)
            .unwrap();
        let took = began.elapsed();
        assert!(
            answer.leading == 0 && answer.failure.is_none(),
            "{answer:?}"
        );
        took
    }

    /// Reads the blocks of the last round that was written into host memory.
    pub(crate) fn read(&mut self) -> Duration {
        let mut reserved = Vec::new();
        let mut blocks = Vec::new();
        for name in self.chains(self.round).into_iter().flatten() {
            let (held, into) = self.host.empty();
            reserved.push(held);
            blocks.push(BlockRead { name, into });
        }
        let began = Instant::now();
        let read = self.tier.read(blocks).wait_timeout(WITHIN).unwrap();
        let took = began.elapsed();
        assert!(read.blocks.iter().all(Result::is_ok), "{read:?}");
        assert_eq!(
            self.tier.counters().read_staged_blocks,
            0,
            "the store was not asked"
        );
        took
    }
}
