//! The caller's memory and its store. The content of each block is derived from its key.

use std::{path::Path, sync::Arc};

use kvtile_blocks::BlockKey;
use kvtile_layout::{Shape, Word, identity::Identity};
use kvtile_tiers::{
    block_store::{
        BlockOutcome, BlockOutcomes, BlockStore, BlockStoreSettings, StoreGroup, StoreRows,
    },
    cache::Completion,
    disk::DiskSettings,
};
use kvtile_transfer::{FillPattern, LayoutHandle, PhysicalLayout, TransferManager};

/// Number of rows of the caller.
pub(crate) const ROWS: usize = 64;

/// The order of stored blocks: rows in this order are direct.
pub(crate) const DIRECT: &str = "BLHKNC";

/// Another order.
pub(crate) const PERMUTED: &str = "L|BH(kCN,vNC)";

pub(crate) fn shape() -> Shape {
    Shape::key_value(ROWS as u64, 3, 4, 2, 32, "f32").unwrap()
}

pub(crate) fn block_bytes() -> u64 {
    shape().block_bytes().unwrap()
}

pub(crate) fn group() -> StoreGroup {
    let identity = Identity::new("a-model", "main", &shape()).unwrap();
    StoreGroup::new("kv", identity, shape())
}

pub(crate) fn settings(folder: &Path) -> BlockStoreSettings {
    BlockStoreSettings::new(vec![group()])
        .disk(DiskSettings::new(folder, 4 << 20))
        .staging_bytes(16 * block_bytes().next_multiple_of(4096))
}

pub(crate) fn key(number: u64) -> BlockKey {
    BlockKey::from_opaque(format!("a key of the caller: {number}").as_bytes())
}

pub(crate) fn keys(numbers: impl IntoIterator<Item = u64>) -> Vec<BlockKey> {
    numbers.into_iter().map(key).collect()
}

/// A store with rows that are registered with its manager, so that tests fill and digest them.
pub(crate) struct TestRows {
    pub(crate) rows: StoreRows,
    manager: Arc<TransferManager>,
    handle: LayoutHandle,
}

pub(crate) fn manager() -> Arc<TransferManager> {
    Arc::new(TransferManager::new())
}

pub(crate) fn layout(word: &str) -> PhysicalLayout {
    let word: Word = word.parse().unwrap();
    PhysicalLayout::builder()
        .with_shape(shape())
        .layout(word)
        .allocate_system()
        .build()
        .unwrap()
}

/// Opens a store, and registers rows in the order `word`.
pub(crate) fn open(folder: &Path, word: &str) -> (BlockStore, TestRows) {
    let manager = manager();
    let store = BlockStore::builder(settings(folder))
        .manager(Arc::clone(&manager))
        .open()
        .unwrap();
    let rows = TestRows::new(&store, &manager, word);
    (store, rows)
}

impl TestRows {
    pub(crate) fn new(store: &BlockStore, manager: &Arc<TransferManager>, word: &str) -> TestRows {
        let handle = manager.register(layout(word)).unwrap();
        TestRows {
            rows: store.register_handle("kv", handle, Arc::new(())).unwrap(),
            manager: Arc::clone(manager),
            handle,
        }
    }

    /// Writes the content of a key to a row.
    pub(crate) fn fill(&self, key: &BlockKey, row: usize) {
        let pattern = FillPattern::Distinct { seed: seed(key) };
        self.manager.fill(self.handle, &[row], pattern).unwrap();
    }

    /// Overwrites a row with content of no key.
    pub(crate) fn poison(&self, row: usize) {
        let pattern = FillPattern::Constant(0xa5);
        self.manager.fill(self.handle, &[row], pattern).unwrap();
    }

    /// Whether a row has the content of a key; `spare` is another row, which the call overwrites.
    pub(crate) fn holds(&self, key: &BlockKey, row: usize, spare: usize) -> bool {
        self.fill(key, spare);
        let digest = |row| self.manager.block_digest(self.handle, row).unwrap();
        digest(row) == digest(spare)
    }

    /// Fills rows from `first` on and stores them.
    pub(crate) fn store(
        &self,
        store: &BlockStore,
        keys: &[BlockKey],
        first: usize,
    ) -> BlockOutcomes {
        for (key, row) in keys.iter().zip(first..) {
            self.fill(key, row);
        }
        self.start_store(store, keys, first).wait()
    }

    pub(crate) fn start_store(
        &self,
        store: &BlockStore,
        keys: &[BlockKey],
        first: usize,
    ) -> Completion<BlockOutcomes> {
        let rows: Vec<usize> = (first..first + keys.len()).collect();
        store.store(keys, &self.rows, &rows).unwrap()
    }

    pub(crate) fn start_load(
        &self,
        store: &BlockStore,
        keys: &[BlockKey],
        first: usize,
    ) -> Completion<BlockOutcomes> {
        let rows: Vec<usize> = (first..first + keys.len()).collect();
        rows.iter().for_each(|row| self.poison(*row));
        store.load(keys, &self.rows, &rows).unwrap()
    }

    /// Loads into rows from `first` on and compares every block that the load reports. The last row
    /// is overwritten.
    pub(crate) fn load(
        &self,
        store: &BlockStore,
        keys: &[BlockKey],
        first: usize,
    ) -> Vec<&'static str> {
        let outcomes = self.start_load(store, keys, first).wait();
        assert_eq!(outcomes.blocks.len(), keys.len());
        for ((key, outcome), row) in keys.iter().zip(outcomes.blocks.iter()).zip(first..) {
            if matches!(outcome, BlockOutcome::Done) {
                assert!(self.holds(key, row, ROWS - 1), "row {row} is not {key}");
            }
        }
        names(&outcomes)
    }
}

impl Drop for TestRows {
    fn drop(&mut self) {
        let _ = self.rows.clone().release();
        let _ = self.manager.unregister(self.handle);
    }
}

pub(crate) fn names(outcomes: &BlockOutcomes) -> Vec<&'static str> {
    outcomes.blocks.iter().map(BlockOutcome::name).collect()
}

/// The content of a key, as the seed of a fill pattern.
fn seed(key: &BlockKey) -> u64 {
    u64::from_le_bytes(key.as_bytes()[..8].try_into().unwrap())
}

/// A number from an environment variable.
pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
