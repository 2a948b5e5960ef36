//! A tier over a store, with host memory.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use kvtile_blocks::{
    BlockKey, GroupId,
    events::{EventLog, TierId, TierKind},
};
use kvtile_layout::broken;
use kvtile_shared::{
    bundle::parse_bundle_name,
    store::{Deadline, SharedStore, ValueName},
    tier::{SharedTier, SharedTierSettings},
};
use kvtile_tiers::{
    cache::SystemClock,
    tier::{
        BlockName, BlockRead, BlockWrite, NotWritten, ReadReport, Tier, TierAnswer, TierContext,
        TierGroup, TierMiss, WriteReport, WriteSuccess,
    },
};
use kvtile_transfer::completion::Completion;

use crate::tier::{HostMemory, ReservedBlock, content};

/// The time limit for a batch.
const PATIENCE: Duration = Duration::from_secs(60);

/// Host blocks of a rig.
const HOST_BLOCKS: usize = 160;

/// The one group of a rig.
const GROUP: GroupId = GroupId(0);

/// A tier over a store, with host memory to read and write blocks.
pub struct SharedTierRig {
    host: HostMemory,
    tier: Arc<SharedTier>,
}

impl std::fmt::Debug for SharedTierRig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SharedTierRig").field(&self.tier).finish()
    }
}

/// The name of the block at a position of a chain.
#[must_use]
pub fn chain_link(chain: u64, position: u32) -> BlockName {
    let mut bytes = [0; 16];
    let (first, rest) = bytes.split_at_mut(8);
    first.copy_from_slice(&chain.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    for (to, from) in rest.iter_mut().zip(position.to_le_bytes()) {
        *to = from;
    }
    BlockName {
        group: GROUP,
        key: BlockKey::from_bytes(bytes),
    }
}

impl SharedTierRig {
    /// Opens a tier of blocks of `page_size` tokens (256 bytes each) with `threads` threads.
    #[must_use]
    pub fn open(
        store: Arc<dyn SharedStore>,
        settings: SharedTierSettings,
        (page_size, threads): (u64, usize),
    ) -> SharedTierRig {
        let host = match HostMemory::with_page_size(HOST_BLOCKS, page_size) {
            Ok(host) => host,
            Err(error) => broken(format_args!("no host memory: {error}")),
        };
        let events = match EventLog::new(NonZeroUsize::MIN.saturating_add(1 << 16)) {
            Ok(events) => events,
            Err(error) => broken(format_args!("no event log: {error}")),
        };
        let context = TierContext {
            groups: vec![TierGroup::new("kv", host.identity().clone()).has_part_readers(true)],
            events: Arc::new(events),
            clock: Arc::new(SystemClock::default()),
            threads,
        };
        let opened = TierId::new(TierKind::Remote, "shared")
            .map_err(Into::into)
            .and_then(|id| SharedTier::open(id, store, settings, &context));
        match opened {
            Ok(tier) => SharedTierRig { host, tier },
            Err(error) => broken(format_args!("no tier: {error}")),
        }
    }

    /// The tier.
    #[must_use]
    pub fn tier(&self) -> &Arc<SharedTier> {
        &self.tier
    }

    /// Drops the tier, and returns the host memory.
    #[must_use]
    pub fn close(self) -> HostMemory {
        self.host
    }

    /// The host memory.
    #[must_use]
    pub fn host(&self) -> &HostMemory {
        &self.host
    }

    /// The first blocks of a chain.
    #[must_use]
    pub fn chain(chain: u64, blocks: u32) -> Vec<BlockName> {
        (0..blocks).map(|at| chain_link(chain, at)).collect()
    }

    /// Writes a chain, given by its blocks, and waits until the whole bundles are in the store.
    ///
    /// # Panics
    /// A batch that does not end.
    pub fn write(&self, chain: &[BlockName]) -> Vec<Result<WriteSuccess, NotWritten>> {
        let report = ended(&self.begin_write(chain));
        assert!(self.tier.wait_for_writes(PATIENCE), "writes do not end");
        report.blocks.to_vec()
    }

    /// Begins to write a chain.
    pub fn begin_write(&self, chain: &[BlockName]) -> Completion<WriteReport> {
        let mut parent = None;
        let writes = (0..).zip(chain).map(|(position, &name)| BlockWrite {
            name,
            parent: parent.replace(name.key),
            position,
            tenant: 0,
            from: self.host.filled(&name).1,
        });
        self.tier.write(writes.collect())
    }

    /// Queries a chain.
    #[must_use]
    pub fn ask(&self, chain: &[BlockName]) -> TierAnswer {
        let keys: Vec<BlockKey> = chain.iter().map(|name| name.key).collect();
        ended(&self.tier.ask(GROUP, &keys))
    }

    /// Begins to read blocks.
    pub fn begin_read(&self, blocks: &[BlockName]) -> (Vec<ReservedBlock>, Completion<ReadReport>) {
        let reads = blocks.iter().map(|&name| {
            let (reserved, into) = self.host.empty();
            (reserved, BlockRead { name, into })
        });
        let (reserved, reads): (Vec<_>, Vec<_>) = reads.unzip();
        (reserved, self.tier.read(reads))
    }

    /// Reads blocks and checks the bytes of those that came.
    ///
    /// # Panics
    /// Wrong bytes; a batch that does not end, or that ends before it gives its memory back.
    pub fn read(&self, blocks: &[BlockName]) -> Vec<Result<(), TierMiss>> {
        let (reserved, read) = self.begin_read(blocks);
        let report = ended(&read);
        let outcomes = report.blocks.iter().zip(&reserved).zip(blocks);
        let checked = outcomes.map(|((outcome, reserved), name)| {
            assert!(reserved.is_let_go(), "memory of a batch that has ended");
            outcome.clone()?;
            let expected = content(name, self.host.block_bytes());
            let found = self.host.bytes(reserved);
            assert!(found == expected, "wrong bytes of {name:?}");
            Ok(())
        });
        checked.collect()
    }

    /// Reads blocks that must all come.
    ///
    /// # Panics
    /// A block that does not come, and as [`read`](Self::read).
    pub fn read_all(&self, blocks: &[BlockName]) {
        for (outcome, name) in self.read(blocks).iter().zip(blocks) {
            assert!(outcome.is_ok(), "{name:?}: {outcome:?}");
        }
    }

    /// The names of all bundles of a store.
    ///
    /// # Panics
    /// A store that cannot list.
    #[must_use]
    pub fn names(store: &dyn SharedStore) -> Vec<ValueName> {
        let mut names = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let by = Deadline::within(PATIENCE);
            let page = match store.list("kvt1/", after.as_deref(), by) {
                Ok(page) => page,
                Err(error) => broken(format_args!("a store that cannot list: {error}")),
            };
            let listed = page.values.into_iter().map(|value| value.name);
            names.extend(listed.filter(|name| parse_bundle_name("", name).is_some()));
            match page.next {
                Some(next) => after = Some(next),
                None => return names,
            }
        }
    }
}

fn ended<T: Clone>(completion: &Completion<T>) -> T {
    match completion.wait_timeout(PATIENCE) {
        Some(end) => end,
        None => broken(format_args!("a batch did not end within {PATIENCE:?}")),
    }
}
