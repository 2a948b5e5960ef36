//! Host memory that a batch of a tier owns.

use std::{any::Any, fmt, sync::Arc};

use kvtile_transfer::{BlockLease, TransferError};

use crate::error::{BatchError, TierError};

/// One leased block of host memory, or some layers of one. While it lives, the lease excludes other
/// writers, and a write lease also excludes readers; and the pool does not reuse the block.
pub struct HostBlock {
    lease: BlockLease,
    block: u64,
    start: u64,
    /// Keeps the block from being reused until its last clone is dropped.
    _place: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for HostBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostBlock").field(&self.lease).finish()
    }
}

impl HostBlock {
    /// The block of a lease of one block. It keeps `place` alive.
    ///
    /// # Errors
    /// A lease of no block or of several blocks.
    pub fn new(
        lease: BlockLease,
        place: Arc<dyn Any + Send + Sync>,
    ) -> Result<HostBlock, TierError> {
        HostBlock::part(lease, 0, place)
    }

    /// The leased layers of one block; their bytes begin at offset `start` in the block.
    ///
    /// # Errors
    /// A lease of no block or of several blocks.
    pub fn part(
        lease: BlockLease,
        start: u64,
        place: Arc<dyn Any + Send + Sync>,
    ) -> Result<HostBlock, TierError> {
        let [block] = *lease.blocks() else {
            return Err(TierError::Batch(BatchError::NotOneBlock {
                blocks: lease.blocks().len(),
            }));
        };
        Ok(HostBlock {
            lease,
            block,
            start,
            _place: place,
        })
    }

    /// The offset of its bytes in the stored block: 0 for a whole block.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Its bytes.
    ///
    /// # Errors
    /// Memory that another process may modify.
    pub fn bytes(&self) -> Result<&[u8], TransferError> {
        self.lease.part(self.block)
    }

    /// Its bytes, mutable.
    ///
    /// # Errors
    /// A read lease; memory that another process may modify.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8], TransferError> {
        self.lease.part_mut(self.block)
    }
}
