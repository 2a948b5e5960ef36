//! Guards of blocks that one owner has: being filled, full but not to be found yet, or taken out of
//! the cache. They do not know what the pool does with a block; they give it back.

use super::BlockPool;
use super::slot::Phase;
use crate::{BlockId, BlockKey, BlocksError};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

/// An error that gives back what was handed in.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct Rejected<Blocks: fmt::Debug> {
    /// What was handed in, unchanged.
    pub blocks: Blocks,
    /// Why.
    #[source]
    pub error: BlocksError,
}

impl<Blocks: fmt::Debug> From<Rejected<Blocks>> for BlocksError {
    /// The blocks are dropped.
    fn from(rejected: Rejected<Blocks>) -> BlocksError {
        rejected.error
    }
}

/// Blocks that nobody else has.
pub(super) struct Owned {
    pub(super) pool: Arc<BlockPool>,
    pub(super) ids: Vec<BlockId>,
}

impl Owned {
    fn part(&mut self, range: Range<usize>) -> Owned {
        Owned {
            pool: Arc::clone(&self.pool),
            ids: take_range(&mut self.ids, range),
        }
    }

    /// Leaves nothing for the guard to give back.
    pub(super) fn release(mut self) -> (Arc<BlockPool>, Vec<BlockId>) {
        (Arc::clone(&self.pool), std::mem::take(&mut self.ids))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.ids.is_empty() {
            self.pool.free(&self.ids);
        }
    }
}

/// Takes the part of a range that there is.
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
        #[must_use = "blocks that nobody holds are free"]
        pub struct $name(pub(super) Owned);

        impl $name {
            /// Their ids.
            #[must_use]
            pub fn ids(&self) -> &[BlockId] {
                &self.0.ids
            }

            /// How many.
            #[must_use]
            pub fn len(&self) -> usize {
                self.0.ids.len()
            }

            /// Whether there are none.
            #[must_use]
            pub fn is_empty(&self) -> bool {
                self.0.ids.is_empty()
            }

            /// The pool that they are of.
            #[must_use]
            pub fn pool(&self) -> &Arc<BlockPool> {
                &self.0.pool
            }

            /// Takes out the blocks from position `at` on; none where there are not so many.
            pub fn split_off(&mut self, at: usize) -> $name {
                $name(self.0.part(at..usize::MAX))
            }

            /// Takes out the blocks at these positions, as far as there are any.
            pub fn take(&mut self, range: Range<usize>) -> $name {
                $name(self.0.part(range))
            }

            /// Puts blocks behind the others.
            ///
            /// # Errors
            /// Where they are of another pool; they come back.
            pub fn append(&mut self, mut other: $name) -> Result<(), Rejected<$name>> {
                if !Arc::ptr_eq(&self.0.pool, &other.0.pool) {
                    return Err(Rejected {
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
    /// Full blocks with keys that cannot be found yet. Dropping them frees them.
    CompleteBlocks
}

owned_blocks! {
    /// Blocks that were evicted: nobody finds them any more, and their bytes stay until they are
    /// dropped, so that they can be written to a slower tier first.
    EvictedBlocks
}

impl MutableBlocks {
    /// Says what the blocks hold: a key each, neighbours in a chain of which the first one comes
    /// after `parent`.
    ///
    /// # Errors
    /// Where there are not as many keys as blocks; the blocks come back.
    pub fn complete(
        self,
        keys: &[BlockKey],
        parent: Option<BlockKey>,
    ) -> Result<CompleteBlocks, Rejected<MutableBlocks>> {
        if keys.len() != self.len() {
            let error = BlocksError::KeyCount {
                blocks: self.len(),
                keys: keys.len(),
            };
            return Err(Rejected {
                blocks: self,
                error,
            });
        }
        let slots = &self.0.pool.slots;
        let mut before = parent.as_ref();
        for (&id, key) in self.0.ids.iter().zip(keys) {
            slots.describe(id, key, before);
            let slot = slots.of(id);
            slot.set_state(slot.state().with_phase(Phase::Complete));
            before = Some(key);
        }
        Ok(CompleteBlocks(self.0))
    }
}

/// A block that was evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvictedBlock {
    /// Where its bytes still are.
    pub block: BlockId,
    /// What they are.
    pub key: BlockKey,
    /// The key of the block before it in its chain, `None` for the first one.
    pub parent: Option<BlockKey>,
}

impl EvictedBlocks {
    /// What they hold, in the order in which they were evicted.
    pub fn iter(&self) -> impl Iterator<Item = EvictedBlock> {
        self.0.ids.iter().map(|&block| self.0.pool.evicted(block))
    }
}
