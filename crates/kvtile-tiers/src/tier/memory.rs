//! Host memory that a batch of a tier owns while it lasts.

use std::{any::Any, fmt, sync::Arc};

use kvtile_transfer::{BlockLease, TransferError};

use crate::error::TierError;

/// One leased block of host memory. While it lives, nothing else writes to the block, nothing else reads it
/// where the lease is for writing, and the block's place in its pool is not given out.
pub struct HostBlock {
    lease: BlockLease,
    block: u64,
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
        let [block] = *lease.blocks() else {
            return Err(TierError::NotOneBlock {
                blocks: lease.blocks().len(),
            });
        };
        Ok(HostBlock {
            lease,
            block,
            _place: place,
        })
    }

    /// Its bytes.
    ///
    /// # Errors
    /// Memory that another process may change.
    pub fn bytes(&self) -> Result<&[u8], TransferError> {
        self.lease.block(self.block)
    }

    /// Its bytes, to fill.
    ///
    /// # Errors
    /// A lease for reading; memory that another process may change.
    pub fn bytes_mut(&mut self) -> Result<&mut [u8], TransferError> {
        self.lease.block_mut(self.block)
    }
}
