//! Guards of blocks with one owner: being filled, full but not registered, or evicted. They do not
//! know the pool's use of a block; dropping them frees it.

use super::BlockPool;
use super::slot::BlockPhase;
use crate::{BlockId, BlockKey, BlocksError};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

/// An error that returns the argument.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct RejectedBlocks<Blocks: fmt::Debug> {
    /// The argument, unchanged.
    pub blocks: Blocks,
    /// The error.
    #[source]
    pub error: BlocksError,
}

impl<Blocks: fmt::Debug> From<RejectedBlocks<Blocks>> for BlocksError {
    /// Drops the blocks.
    fn from(rejected: RejectedBlocks<Blocks>) -> BlocksError {
        rejected.error
    }
}

/// Blocks that this guard owns exclusively.
pub(super) struct OwnedBlocks {
    pub(super) pool: Arc<BlockPool>,
    pub(super) ids: Vec<BlockId>,
}

impl OwnedBlocks {
    fn part(&mut self, range: Range<usize>) -> OwnedBlocks {
        OwnedBlocks {
            pool: Arc::clone(&self.pool),
            ids: take_range(&mut self.ids, range),
        }
    }

    /// Takes the blocks out, so that dropping the guard frees none.
    pub(super) fn release(mut self) -> (Arc<BlockPool>, Vec<BlockId>) {
        (Arc::clone(&self.pool), std::mem::take(&mut self.ids))
    }
}

impl Drop for OwnedBlocks {
    fn drop(&mut self) {
        if !self.ids.is_empty() {
            self.pool.free(&self.ids);
        }
    }
}

/// Takes the part of a range that exists.
pub(super) fn take_range(ids: &mut Vec<BlockId>, range: Range<usize>) -> Vec<BlockId> {
    let end = range.end.min(ids.len());
    let start = range.start.min(end);
    if end == ids.len() {
        return ids.split_off(start);
    }
    ids.drain(start..end).collect()
}

macro_rules! owned_blocks {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[must_use = "dropping the guard frees its blocks"]
        pub struct $name(pub(super) OwnedBlocks);

        impl $name {
            /// Their ids.
            #[must_use]
            pub fn ids(&self) -> &[BlockId] {
                &self.0.ids
            }

            /// The number of blocks.
            #[must_use]
            pub fn len(&self) -> usize {
                self.0.ids.len()
            }

            /// Whether there are no blocks.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.0.ids.is_empty()
            }

            /// The pool that the blocks belong to.
            #[must_use]
            pub fn pool(&self) -> &Arc<BlockPool> {
                &self.0.pool
            }

            /// Takes out the blocks from position `at` on; none if there are fewer.
            pub fn split_off(&mut self, at: usize) -> $name {
                $name(self.0.part(at..usize::MAX))
            }

            /// Takes out the blocks at these positions, as far as they exist.
            pub fn take(&mut self, range: Range<usize>) -> $name {
                $name(self.0.part(range))
            }

            /// Appends blocks.
            ///
            /// # Errors
            /// If they belong to another pool; they are returned.
            pub fn append(&mut self, mut other: $name) -> Result<(), RejectedBlocks<$name>> {
                if !Arc::ptr_eq(&self.0.pool, &other.0.pool) {
                    return Err(RejectedBlocks {
                        blocks: other,
                        error: BlocksError::AnotherPool,
                    });
                }
                self.0.ids.append(&mut other.0.ids);
                Ok(())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.0.ids).finish()
            }
        }
    };
}

owned_blocks! {
    /// Blocks that are being filled. Dropping them frees them.
    MutableBlocks
}

owned_blocks! {
    /// Full blocks with keys that lookups do not find yet. Dropping them frees them.
    CompleteBlocks
}

owned_blocks! {
    /// Evicted blocks: lookups do not find them any more. Their bytes stay intact until the guard
    /// is dropped, so that they can be written to a slower tier first.
    EvictedBlocks
}

impl MutableBlocks {
    /// Describes the blocks' contents: one key for each block, consecutive in a chain whose first
    /// block follows `parent`.
    ///
    /// # Errors
    /// If the numbers of keys and blocks differ; the blocks are returned.
    pub fn complete(
        self,
        keys: &[BlockKey],
        parent: Option<BlockKey>,
    ) -> Result<CompleteBlocks, RejectedBlocks<MutableBlocks>> {
        if keys.len() != self.len() {
            let error = BlocksError::KeyCount {
                blocks: self.len(),
                keys: keys.len(),
            };
            return Err(RejectedBlocks {
                blocks: self,
                error,
            });
        }
        let slots = &self.0.pool.slots;
        let mut before = parent.as_ref();
        for (&id, key) in self.0.ids.iter().zip(keys) {
            slots.describe(id, key, before);
            let slot = slots.of(id);
            slot.set_state(slot.state().with_phase(BlockPhase::Complete));
            before = Some(key);
        }
        Ok(CompleteBlocks(self.0))
    }
}

/// The description of an evicted block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvictedBlock {
    /// The block that still has the bytes.
    pub block: BlockId,
    /// The key of the content.
    pub key: BlockKey,
    /// The key of the block before it in its chain, `None` for the first one.
    pub parent: Option<BlockKey>,
}

impl EvictedBlocks {
    /// The descriptions of the blocks, in eviction order.
    pub fn iter(&self) -> impl Iterator<Item = EvictedBlock> {
        self.0.ids.iter().map(|&block| self.0.pool.evicted(block))
    }
}
