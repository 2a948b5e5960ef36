//! Host memory that a batch of a tier owns while it lasts.

use std::{any::Any, fmt, sync::Arc};

use kvtile_transfer::{BlockLease, TransferError};

use crate::error::TierError;

/// One leased block of host memory, or some layers of one. While it lives, nothing else writes to these bytes, nothing else reads
/// them where the lease is for writing, and the block's place in its pool is not given out.
pub struct HostBlock {
    lease: BlockLease,
    block: u64,
    start: u64,
    /// Frees the block's place when the last one is dropped.
    _place: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for HostBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostBlock").field(&self.lease).finish()
    }
}

impl HostBlock {
    /// The one block of a lease; `place` is dropped with it.
    ///
    /// # Errors
    /// A lease of no block, or of several.
    pub fn new(
        lease: BlockLease,
        place: Arc<dyn Any + Send + Sync>,
    ) -> Result<HostBlock, TierError> {
        HostBlock::part(lease, 0, place)
    }

    /// The leased layers of one block, whose bytes begin at `start` in it.
    ///
    /// # Errors
    /// A lease of no block, or of several.
    pub fn part(
        lease: BlockLease,
        start: u64,
        place: Arc<dyn Any + Send + Sync>,
    ) -> Result<HostBlock, TierError> {
        let [block] = *lease.blocks() else {
            return Err(TierError::NotOneBlock {
                blocks: lease.blocks().len(),
            });
        };
        Ok(HostBlock {
            lease,
            block,
            start,
            _place: place,
        })
    }

    /// Where in the stored block its bytes begin: 0 for a whole block.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Its bytes.
    ///
    /// # Errors
    /// Memory that another process may change.
    pub fn bytes(&self) -> Result<&[u8], TransferError> {
        self.lease.part(self.block)
    }

    /// Its bytes, to fill.
    ///
    /// # Errors
    /// A lease for reading; memory that another process may change.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8], TransferError> {
        self.lease.part_mut(self.block)
    }
}
