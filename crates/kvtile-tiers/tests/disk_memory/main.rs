//! The memory that a disk tier takes for each slot and for each stored block: the bytes that the
//! process allocates. The blocks' own bytes are not written, since the counts do not depend on them.

#![expect(clippy::unwrap_used, reason = "tests")]

mod unwritten;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    num::NonZeroUsize,
    sync::Arc,
};

use kvtile_blocks::{BlockKey, events::EventLog, policy::PolicyKind};
use kvtile_random::mix;
use kvtile_testkit::tier::HostMemory;
use kvtile_tiers::{
    cache::SystemClock,
    disk::{DiskSettings, DiskTier},
    tier::{
        BlockName, BlockPieces, BlockWrite, GroupId, StoreIdentity, Tier, TierContext, TierGroup,
    },
};
use unwritten::UnwrittenFolder;

thread_local! {
    static BYTES: Cell<isize> = const { Cell::new(0) };
}

/// Counts per thread; the tier has no threads here.
struct CountedAllocator;

fn count(bytes: isize) {
    // A thread that ends has no counter any more; its count is lost.
    let _ = BYTES.try_with(|counter| counter.set(counter.get() + bytes));
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for CountedAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller guarantees the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the pointer came from the system's allocator with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountedAllocator = CountedAllocator;

/// Slots of the folder.
const SLOTS: usize = 200_000;

/// Blocks written at a time.
const BATCH: usize = 64;

/// Blocks of a chain or a tree.
const CHAIN: usize = 32;

/// How blocks follow each other.
#[derive(Clone, Copy, Debug)]
enum BlockShape {
    /// In chains.
    Chains,
    /// Each without a parent.
    Alone,
    /// In binary trees: the policy can join no two blocks to a run.
    Trees,
}

impl BlockShape {
    /// The parent of a block and the number of its ancestors.
    fn parent(self, number: usize) -> (Option<usize>, usize) {
        let (root, at) = (number - number % CHAIN, number % CHAIN);
        match self {
            BlockShape::Chains => (at.checked_sub(1).map(|before| root + before), at),
            BlockShape::Alone => (None, 0),
            BlockShape::Trees => {
                let parent = (at > 0).then(|| root + (at - 1) / 2);
                (parent, (at + 1).ilog2() as usize)
            }
        }
    }
}

/// A tier of one group, whose blocks have one checksum each.
struct MeasuredTier {
    host: HostMemory,
    tier: DiskTier,
    shape: BlockShape,
    /// Bytes allocated before it was opened.
    before: isize,
}

impl MeasuredTier {
    fn open(folder: &std::path::Path, policy: PolicyKind, shape: BlockShape) -> MeasuredTier {
        let host = HostMemory::new(2 * BATCH).unwrap();
        let identity = StoreIdentity {
            pieces: BlockPieces::whole(host.block_bytes() as u64),
            ..host.identity().clone()
        };
        let context = TierContext {
            groups: vec![TierGroup::new("kv", identity)],
            events: Arc::new(EventLog::new(NonZeroUsize::new(16).unwrap()).unwrap()),
            clock: Arc::new(SystemClock::default()),
            threads: 0,
        };
        // Each slot takes a page and a record; some slots are a reserve.
        let bytes = (SLOTS as u64 + 1_200) * (4096 + 64);
        let settings = DiskSettings::new(folder, bytes).policy(policy);
        let medium = Arc::new(UnwrittenFolder::new(folder));
        let before = BYTES.get();
        let tier = DiskTier::open_on(medium, &settings, &context).unwrap();
        MeasuredTier {
            host,
            tier,
            shape,
            before,
        }
    }

    fn slots(&self) -> usize {
        usize::try_from(self.tier.store_stats().slots).unwrap()
    }

    /// Bytes for each of `blocks` blocks.
    fn each(&self, blocks: usize) -> f64 {
        (BYTES.get() - self.before) as f64 / blocks as f64
    }

    fn bound(&self, what: &str, blocks: usize, bytes: f64) {
        let each = self.each(blocks);
        println!("  {what}: {each:.1} bytes, {blocks} blocks");
        assert!(each <= bytes, "{what}: {each:.1} bytes");
    }

    fn key(number: usize) -> BlockKey {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&mix(number as u64).to_le_bytes());
        bytes[8..].copy_from_slice(&mix(!(number as u64)).to_le_bytes());
        BlockKey::from_bytes(bytes)
    }

    fn write(&self, first: usize) {
        let block = |number: usize| {
            let name = BlockName {
                group: GroupId(0),
                key: MeasuredTier::key(number),
            };
            let (parent, position) = self.shape.parent(number);
            BlockWrite {
                name,
                parent: parent.map(MeasuredTier::key),
                position: u32::try_from(position).unwrap(),
                tenant: 0,
                from: self.host.filled(&name).1,
            }
        };
        let blocks = (first..first + BATCH).map(block).collect();
        let report = self.tier.write(blocks).wait();
        assert!(report.blocks.iter().all(Result::is_ok));
        if first / BATCH % 128 == 127 {
            self.sync();
        }
    }

    fn sync(&self) {
        assert!(self.tier.sync().wait().failure.is_none());
    }
}

#[test]
fn a_stored_block_takes_at_most_100_bytes_unless_chains_branch_at_each() {
    let (gittins, lru) = (PolicyKind::default(), PolicyKind::Lru);
    for (policy, shape, bytes) in [
        (gittins, BlockShape::Chains, 100.0),
        (gittins, BlockShape::Alone, 100.0),
        (gittins, BlockShape::Trees, 135.0),
        (lru, BlockShape::Chains, 100.0),
        (lru, BlockShape::Alone, 100.0),
    ] {
        let folder = tempfile::tempdir().unwrap();
        println!("{policy}, {shape:?}");
        let measured = MeasuredTier::open(folder.path(), policy, shape);
        let slots = measured.slots();
        assert!(slots >= SLOTS, "{slots} slots");
        measured.bound("each slot of an empty folder", slots, 40.0);
        let full = slots / BATCH * BATCH;
        (0..full).step_by(BATCH).for_each(|at| measured.write(at));
        measured.sync();
        let stored = measured.tier.pool_stats().cached;
        assert_eq!(stored, full);
        measured.bound("each block of a full folder", stored, bytes);
        // The default policy remembers half as many evicted blocks.
        let again = (full..full + full * 5 / 8).step_by(BATCH);
        again.for_each(|at| measured.write(at));
        measured.sync();
        let stored = measured.tier.pool_stats().cached;
        measured.bound("each block after evictions", stored, bytes);
        measured.tier.check_integrity();
    }
}
