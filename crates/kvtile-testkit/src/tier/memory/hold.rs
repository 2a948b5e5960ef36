//! The pins on blocks of a memory tier.

use std::{fmt, sync::Arc};

use kvtile_blocks::BlockKey;
use kvtile_layout::broken;
use kvtile_tiers::tier::{BlockName, TierHold};

use super::MemoryTierShared;

/// Pinned blocks of a memory tier.
pub(super) struct MemoryHold {
    pub(super) shared: Arc<MemoryTierShared>,
    pub(super) blocks: Vec<PinnedMemoryBlock>,
    /// The number of its pin, if it has a deadline.
    pub(super) pin: Option<u64>,
}

pub(super) struct PinnedMemoryBlock {
    pub(super) name: BlockName,
    pub(super) serial: u64,
    pub(super) parent: Option<BlockKey>,
    pub(super) tenant: u32,
}

impl fmt::Debug for MemoryHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemoryHold")
            .field(&self.blocks.len())
            .finish()
    }
}

impl TierHold for MemoryHold {
    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn parent(&self, index: usize) -> Option<BlockKey> {
        self.block(index).parent
    }

    fn tenant(&self, index: usize) -> u32 {
        self.block(index).tenant
    }

    fn split_off(&mut self, at: usize) -> Box<dyn TierHold> {
        Box::new(MemoryHold {
            shared: Arc::clone(&self.shared),
            blocks: self.blocks.split_off(at),
            pin: self.pin,
        })
    }
}

impl MemoryHold {
    fn block(&self, index: usize) -> &PinnedMemoryBlock {
        let Some(block) = self.blocks.get(index) else {
            broken(format_args!("block {index} of {}", self.blocks.len()))
        };
        block
    }
}

impl Drop for MemoryHold {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        for pinned in &self.blocks {
            // A forgotten block may have been stored again, with another serial.
            if let Some(block) = state.blocks.get_mut(&pinned.name)
                && block.serial == pinned.serial
            {
                block.pins -= 1;
            }
        }
        let Some(number) = self.pin else {
            return;
        };
        if let Some(pin) = state.pins.get_mut(&number) {
            pin.blocks -= self.blocks.len();
            if pin.blocks == 0 {
                state.pins.remove(&number);
            }
        }
    }
}
