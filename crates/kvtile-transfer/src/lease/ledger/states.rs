//! The lease state of each block of a layout: one number per block, and a list of parts where
//! leases hold single layers.
//!
//! ```text
//! 0            free
//! 1..          number of leases that read all layers
//! PARTED + i   the block's parts are in slot i; at least one part holds fewer than all layers
//! WRITER       one lease that writes all layers
//! ```
//!
//! A lease of all layers works on the number alone, unless the block has parts. Slots are reused,
//! so that leases of layers allocate memory only when the number of blocks with parts reaches a new
//! maximum.

use super::super::{LayoutHandle, LeaseMode, SideBlockIds, layers::HeldLayers};
use crate::{
    error::{LeaseError, RegisterError, TransferError},
    physical::PhysicalLayout,
};

use kvtile_layout::broken;

/// State of a block of which one lease writes all layers.
const WRITER: u32 = u32::MAX;

/// The first state that refers to a slot. Smaller states are the number of readers.
const PARTED: u32 = 1 << 31;

/// Maximum number of slots that states can refer to.
const SLOTS_MAX: u64 = (WRITER - PARTED) as u64;

/// Layers of one block that leases hold in the same mode.
struct LeasedLayers {
    layers: HeldLayers,
    mode: LeaseMode,
    /// Number of readers; in a written part, how often its one lease names the block.
    count: u32,
}

/// The lease states of all blocks of a layout.
pub(super) struct BlockStates {
    states: Vec<u32>,
    slots: Vec<Vec<LeasedLayers>>,
    /// Indices of free slots.
    unused: Vec<u32>,
}

impl BlockStates {
    /// The blocks of `layout`, all free. A remote layout cannot be leased, so it has no states.
    ///
    /// # Errors
    /// More blocks than fit in memory.
    pub(super) fn new(layout: &PhysicalLayout) -> Result<BlockStates, TransferError> {
        let blocks = match layout.is_remote() {
            true => 0,
            false => layout.shape().num_blocks(),
        };
        let mut states = Vec::new();
        let count = usize::try_from(blocks).unwrap_or(usize::MAX);
        states
            .try_reserve_exact(count)
            .map_err(|_| TransferError::Register(RegisterError::TooManyBlocks { blocks }))?;
        states.resize(count, 0);
        Ok(BlockStates {
            states,
            slots: Vec::new(),
            unused: Vec::new(),
        })
    }

    /// Refuses blocks whose layers conflict with another lease. `handle` is the layout's handle.
    pub(super) fn check(
        &self,
        handle: LayoutHandle,
        blocks: SideBlockIds<'_>,
        layers: &HeldLayers,
        mode: LeaseMode,
    ) -> Result<(), TransferError> {
        let wanted = blocks.len() as u64;
        let slots = (self.slots.len() - self.unused.len()) as u64;
        if matches!(layers, HeldLayers::Part(_)) && slots.saturating_add(wanted) > SLOTS_MAX {
            let blocks = slots.saturating_add(wanted);
            return Err(TransferError::Register(RegisterError::TooManyBlocks {
                blocks,
            }));
        }
        // The number of readers must stay below `PARTED`.
        let readers_max = u64::from(PARTED - 1).saturating_sub(wanted);
        let free_max = match (layers, mode) {
            (HeldLayers::All, LeaseMode::Read) => readers_max,
            _ => 0,
        };
        for block in blocks {
            let state = at(&self.states, block);
            if u64::from(state) > free_max
                && let Some(held) = self.conflict(state, layers, mode, readers_max)
            {
                return Err(leased(handle, block, held, mode));
            }
        }
        Ok(())
    }

    /// The mode in which a block in `state` is held, if that conflicts with the lease.
    fn conflict(
        &self,
        state: u32,
        layers: &HeldLayers,
        mode: LeaseMode,
        readers_max: u64,
    ) -> Option<LeaseMode> {
        match (state, mode) {
            (0, _) => None,
            (WRITER, _) => Some(LeaseMode::Write),
            (PARTED.., _) => {
                let parts = self.parts(state).iter();
                let mut met = parts.filter(|part| part.layers.meets(layers)).peekable();
                met.peek()?;
                let held = met.fold((LeaseMode::Read, 0), |(held, readers), part| {
                    let is_written = part.mode == LeaseMode::Write;
                    let held = if is_written { part.mode } else { held };
                    (held, readers.max(part.count))
                });
                let both_read = (held.0, mode) == (LeaseMode::Read, LeaseMode::Read);
                (!both_read || u64::from(held.1) > readers_max).then_some(held.0)
            }
            (_, LeaseMode::Write) => Some(LeaseMode::Read),
            (readers, LeaseMode::Read) => {
                (u64::from(readers) > readers_max).then_some(LeaseMode::Read)
            }
        }
    }

    /// Leases blocks that [`check`](Self::check) has accepted.
    pub(super) fn take(&mut self, blocks: SideBlockIds<'_>, layers: &HeldLayers, mode: LeaseMode) {
        for block in blocks {
            let state = at_mut(&mut self.states, block);
            match (layers, mode) {
                (HeldLayers::All, LeaseMode::Write) => *state = WRITER,
                (HeldLayers::All, LeaseMode::Read) if *state < PARTED - 1 => *state += 1,
                _ => self.add(block, layers, mode),
            }
        }
    }

    /// Releases blocks that one lease took. Calls `freed` for each block that is free afterwards.
    pub(super) fn give_back(
        &mut self,
        blocks: SideBlockIds<'_>,
        (layers, mode): (&HeldLayers, LeaseMode),
        mut freed: impl FnMut(u64),
    ) {
        for block in blocks {
            let state = at_mut(&mut self.states, block);
            let found = *state;
            let left = match (layers, mode) {
                (HeldLayers::All, LeaseMode::Read) if found > 0 && found < PARTED => {
                    *state = found - 1;
                    found - 1
                }
                (HeldLayers::All, LeaseMode::Write) => {
                    // Several pairs of a transfer may write one block.
                    assert!(
                        found == WRITER || found == 0,
                        "block {block}, released by its writer, is in state {found}"
                    );
                    *state = 0;
                    0
                }
                _ => self.remove(block, layers, mode),
            };
            if left == 0 {
                freed(block);
            }
        }
    }

    /// The mode in which a block is held; `None` if it is free. A written layer makes it `Write`.
    pub(super) fn held(&self, block: u64) -> Option<LeaseMode> {
        match at(&self.states, block) {
            0 => None,
            WRITER => Some(LeaseMode::Write),
            state @ PARTED.. => {
                let is_written = |part: &LeasedLayers| part.mode == LeaseMode::Write;
                match self.parts(state).iter().any(is_written) {
                    true => Some(LeaseMode::Write),
                    false => Some(LeaseMode::Read),
                }
            }
            _ => Some(LeaseMode::Read),
        }
    }

    /// The blocks that are held.
    pub(super) fn held_blocks(&self) -> impl Iterator<Item = u64> {
        let blocks = (0..).zip(&self.states);
        blocks.filter_map(|(block, state)| (*state > 0).then_some(block))
    }

    /// Adds a holder to the parts of a block.
    fn add(&mut self, block: u64, layers: &HeldLayers, mode: LeaseMode) {
        let parts = self.parts_mut(block);
        let same = |part: &&mut LeasedLayers| part.layers == *layers && part.mode == mode;
        match parts.iter_mut().find(same) {
            // Another reader, or the same writer that names the block again: `check` admits no
            // other holder.
            Some(part) => part.count = part.count.saturating_add(1),
            None => parts.push(LeasedLayers {
                layers: layers.clone(),
                mode,
                count: 1,
            }),
        }
    }

    /// Removes a holder from the parts of a block. Returns the block's new state.
    fn remove(&mut self, block: u64, layers: &HeldLayers, mode: LeaseMode) -> u32 {
        let state = at(&self.states, block);
        let lost = || {
            broken(format_args!(
                "block {block} in state {state} is not held by {layers:?} for {mode:?}"
            ))
        };
        let Some(slot) = slot(state) else { lost() };
        let Some(parts) = self.slots.get_mut(slot as usize) else {
            lost()
        };
        let same = |part: &LeasedLayers| part.layers == *layers && part.mode == mode;
        let found = parts.iter().position(same);
        let Some((index, part)) = found.and_then(|index| Some((index, parts.get_mut(index)?)))
        else {
            lost()
        };
        part.count -= 1;
        if part.count == 0 {
            parts.swap_remove(index);
        }
        let left = match parts.as_slice() {
            [] => 0,
            [part] if part.layers == HeldLayers::All => part.count,
            _ => return state,
        };
        parts.clear();
        self.unused.push(slot);
        *at_mut(&mut self.states, block) = left;
        left
    }

    /// The parts of a block in `state`.
    fn parts(&self, state: u32) -> &[LeasedLayers] {
        match slot(state).and_then(|slot| self.slots.get(slot as usize)) {
            Some(parts) => parts,
            None => broken(format_args!(
                "state {state} among {} slots",
                self.slots.len()
            )),
        }
    }

    /// The parts of a block that is not written as a whole. Its readers of all layers become a
    /// part.
    fn parts_mut(&mut self, block: u64) -> &mut Vec<LeasedLayers> {
        let state = at_mut(&mut self.states, block);
        assert!(*state != WRITER, "parts of block {block}, which is written");
        let (index, readers) = match slot(*state) {
            Some(index) => (index, 0),
            None => {
                let next = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
                let index = self.unused.pop().unwrap_or(next);
                let readers = *state;
                // `check` guarantees fewer slots than `SLOTS_MAX`.
                *state = PARTED.saturating_add(index);
                (index, readers)
            }
        };
        let count = self.slots.len();
        if index as usize == count {
            self.slots.push(Vec::new());
        }
        let Some(parts) = self.slots.get_mut(index as usize) else {
            broken(format_args!("slot {index} of block {block} among {count}"))
        };
        if readers > 0 {
            parts.push(LeasedLayers {
                layers: HeldLayers::All,
                mode: LeaseMode::Read,
                count: readers,
            });
        }
        parts
    }

    /// Panics where states, slots and parts are inconsistent.
    #[cfg(test)]
    pub(super) fn check_integrity(&self) {
        let mut used: Vec<u32> = self.states.iter().filter_map(|s| slot(*s)).collect();
        used.extend(&self.unused);
        used.sort_unstable();
        let slots = u32::try_from(self.slots.len()).unwrap();
        assert!(
            used.iter().copied().eq(0..slots),
            "each slot is either in use or free"
        );
        for unused in &self.unused {
            assert!(
                self.slots[*unused as usize].is_empty(),
                "parts in a free slot"
            );
        }
        for state in self.states.iter().filter(|s| slot(**s).is_some()) {
            let parts = self.parts(*state);
            let is_part = |part: &LeasedLayers| matches!(part.layers, HeldLayers::Part(_));
            assert!(parts.iter().any(is_part), "a slot for whole blocks");
            for (index, part) in parts.iter().enumerate() {
                assert!(part.count > 0 && (is_part(part) || part.mode == LeaseMode::Read));
                for other in &parts[index + 1..] {
                    let both_read = [part.mode, other.mode] == [LeaseMode::Read; 2];
                    let same = part.layers == other.layers;
                    assert!(
                        !same && (both_read || !part.layers.meets(&other.layers)),
                        "conflicting parts"
                    );
                }
            }
        }
    }
}

/// The slot that a state refers to.
fn slot(state: u32) -> Option<u32> {
    match state {
        WRITER => None,
        _ => state.checked_sub(PARTED),
    }
}

fn leased(handle: LayoutHandle, block: u64, held: LeaseMode, wanted: LeaseMode) -> TransferError {
    TransferError::Lease(LeaseError::BlockLeased {
        handle: handle.to_string(),
        block,
        held: match held {
            LeaseMode::Read => "being read",
            LeaseMode::Write => "being written",
        },
        wanted: match wanted {
            LeaseMode::Read => "read",
            LeaseMode::Write => "written",
        },
    })
}

/// The state of a block, which the caller has checked to be in range. A missing state is a defect:
/// its block could never be held.
fn at(states: &[u32], block: u64) -> u32 {
    let index = usize::try_from(block).ok();
    let Some(&state) = index.and_then(|index| states.get(index)) else {
        broken(format_args!("block {block} among {} states", states.len()))
    };
    state
}

fn at_mut(states: &mut [u32], block: u64) -> &mut u32 {
    let (index, count) = (usize::try_from(block).ok(), states.len());
    let Some(state) = index.and_then(|index| states.get_mut(index)) else {
        broken(format_args!("block {block} among {count} states"))
    };
    state
}
