//! The refused blocks of a batch of writes.

use std::collections::HashMap;

use super::{BlockName, BlockWrite, NotWritten, WriteSuccess};

/// The refused blocks of a batch of writes. A block whose parent was refused in its batch is refused too, even if another
/// batch has written the parent since. So the outcomes of a chain have no gap.
#[derive(Debug, Default)]
pub struct RefusedBlocks {
    /// Each with whether it had no room.
    blocks: HashMap<BlockName, bool>,
}

impl RefusedBlocks {
    /// Whether the batch may write this block.
    ///
    /// # Errors
    /// [`NotWritten::NoRoom`] if its parent in the batch had no room, [`NotWritten::NoParent`] if its
    /// parent was refused for another reason.
    pub fn check(&self, block: &BlockWrite) -> Result<(), NotWritten> {
        let parent = block.parent.map(|key| BlockName { key, ..block.name });
        match parent.and_then(|parent| self.blocks.get(&parent)) {
            None => Ok(()),
            Some(true) => Err(NotWritten::NoRoom),
            Some(false) => Err(NotWritten::NoParent),
        }
    }

    /// Takes the outcome of a block; the last one of a block counts.
    pub fn note(&mut self, name: BlockName, outcome: &Result<WriteSuccess, NotWritten>) {
        match outcome {
            Ok(_) => self.blocks.remove(&name),
            Err(NotWritten::NoRoom) => self.blocks.insert(name, true),
            Err(_) => self.blocks.insert(name, false),
        };
    }
}
