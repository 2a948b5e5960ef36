//! What a process needs that serves its cache to other processes, and the messages that both sides
//! exchange. `kvtile-daemon` serves; [`Cache::connect`](super::Cache::connect) is the other side.

pub(in crate::cache) mod codes;
mod messages;

use std::time::Duration;

use kvtile_blocks::{BlockKey, events::TierId};
use kvtile_memory::OwnedMemoryRegion;
use kvtile_transfer::{LayoutHandle, PhysicalLayout, completion::Completion};

pub use super::hold::{HoldReport, HostHold};
pub use codes::{
    frame_of_load, frame_of_store, load_stop_of, lookup_options_of, milliseconds, runs_of,
    store_options_of, store_stop_of, time_of,
};
pub use messages::{
    CallAnswer, CallMessage, HelloBlocks, HelloGroup, HelloMessage, HelloVersion, PinMessage,
    StopCountsMessage, WelcomeGroup, WelcomeMessage,
};

use super::{Cache, CacheParts, LoadOptions, Match, load};
use crate::{
    error::{RequestError, TierError},
    opening::{self, StorageMemory},
};

/// What only the process that has the tiers can do.
impl Cache {
    fn here(&self, what: &'static str) -> Result<&std::sync::Arc<CacheParts>, TierError> {
        self.parts_here()
            .ok_or(TierError::Request(RequestError::Connected { what }))
    }

    /// Starts bringing the blocks of a match to host memory and returns at once. The leading blocks
    /// that come stay pinned there until the [`HostHold`] of the report are dropped.
    ///
    /// # Errors
    /// As for [`load`](Self::load); a cache that is connected to a daemon.
    pub fn hold(
        &self,
        found: Match,
        options: &LoadOptions,
    ) -> Result<Completion<HoldReport>, TierError> {
        load::hold(self.here("holds blocks")?, found, options)
    }

    /// Host memory: the blocks of the pool, and one spare block for each tier below.
    ///
    /// # Errors
    /// A cache that is connected to a daemon.
    pub fn host_memory(&self) -> Result<PhysicalLayout, TierError> {
        let inner = self.here("owns host memory")?;
        Ok(inner.manager.layout(inner.host.handle)?)
    }

    /// Registers `blocks` blocks in the order of host memory that lie in `memory`, as a layout to
    /// store from ([`StoreOptions::layout`](super::StoreOptions::layout)).
    ///
    /// # Errors
    /// Memory that is too small or overlaps; a cache that is connected to a daemon.
    pub fn register_storage(
        &self,
        memory: OwnedMemoryRegion,
        blocks: u64,
    ) -> Result<LayoutHandle, TierError> {
        let inner = self.here("owns the storage")?;
        let shape = inner.manager.layout(inner.host.handle)?;
        let shape = shape.shape().with_num_blocks(blocks)?;
        let settings = &inner.settings;
        let word = settings.storage_word.as_ref();
        let over = StorageMemory::Over(memory);
        let storage = opening::storage(shape, &settings.identity, word, over)?;
        Ok(inner.manager.register(storage)?)
    }

    /// Number of leading keys whose blocks are in host memory. It pins nothing and counts no use.
    ///
    /// # Errors
    /// A cache that is connected to a daemon.
    pub fn leading_in_host(&self, keys: &[BlockKey]) -> Result<usize, TierError> {
        Ok(self.here("has the index")?.host.pool.peek(keys))
    }

    /// Counts blocks that another process copied out of host memory to its engine.
    ///
    /// # Errors
    /// A cache that is connected to a daemon.
    pub fn copied_out(&self, blocks: u64, bytes: u64, time: Duration) -> Result<(), TierError> {
        let inner = self.here("counts the copies")?;
        inner.moved((TierId::HOST, TierId::DEVICE), blocks, bytes, time);
        Ok(())
    }
}
