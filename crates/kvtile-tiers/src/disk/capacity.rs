//! How many slots fit a capacity. The count includes every file of the folder, to the byte.
//!
//! ```text
//! folder and lock       one page each
//! manifest              its length in pages, twice: while it is replaced there are two
//! records               a record a slot, in pages, for each group
//! slots                 a block a slot, in pages, for each group
//! ```
//!
//! `share` divides the capacity among several groups.

use super::record::RecordForm;
use crate::error::{SettingsError, TierError};

/// The page size of file systems and the alignment of direct I/O, in bytes.
pub(super) const PAGE_BYTES: u64 = PAGE as u64;

/// [`PAGE_BYTES`] as a `usize`.
pub(super) const PAGE: usize = 4096;

/// The largest block.
const BLOCK_BYTES_MAX: u64 = 1 << 40;

/// One slot in this many is kept erased for the next write.
const RESERVE_SHARE: u32 = 64;

/// The most slots that are kept erased: no more are needed between two syncs.
const RESERVE_MAX: u32 = 1024;

/// The most slots of a folder, of all groups together; it bounds the memory that the stores keep for
/// each slot.
pub const SLOTS_MAX: u32 = 1 << 26;

/// The most groups of a folder.
pub const GROUPS_MAX: usize = 64;

/// The fewest slots: one that holds a block and an erased one.
pub(super) const PHYSICAL_MIN: u32 = 2;

/// Bytes of a slot for blocks of `block_bytes`.
pub(super) fn slot_bytes(block_bytes: u64) -> Result<u64, TierError> {
    if block_bytes == 0 || block_bytes > BLOCK_BYTES_MAX {
        return Err(TierError::Settings(SettingsError::BlockBytes {
            block_bytes,
        }));
    }
    Ok(block_bytes.next_multiple_of(PAGE_BYTES))
}

/// How many of `physical` slots are kept erased.
pub(super) fn reserve(physical: u32) -> u32 {
    (physical / RESERVE_SHARE).clamp(1, RESERVE_MAX)
}

/// The fewest slots of which `blocks` can hold a block.
pub(super) fn physical_for(blocks: u32) -> u32 {
    let holds = |physical: u32| physical - reserve(physical) >= blocks;
    let most = blocks.saturating_add(RESERVE_MAX).max(PHYSICAL_MIN);
    let (mut least, mut enough) = (PHYSICAL_MIN, most);
    while least < enough {
        let middle = least + (enough - least) / 2;
        match holds(middle) {
            true => enough = middle,
            false => least = middle + 1,
        }
    }
    enough
}

/// The sizes that decide how many bytes a slot takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct SlotForm {
    pub(super) block_bytes: u64,
    pub(super) record: RecordForm,
}

/// Bytes of the records of `physical` slots.
pub(super) fn records_bytes(physical: u32, record: RecordForm) -> u64 {
    (u64::from(physical) * record.stride()).next_multiple_of(PAGE_BYTES)
}

/// Bytes of the slots and records of `physical` slots; `None` if they exceed 2^64.
pub(super) fn group_bytes(physical: u32, form: SlotForm) -> Option<u64> {
    let slot_bytes = slot_bytes(form.block_bytes).ok()?;
    let slots = u64::from(physical).checked_mul(slot_bytes)?;
    slots.checked_add(records_bytes(physical, form.record))
}

/// Bytes that a folder takes once, however many groups it has: the folder itself, its lock and two
/// manifests.
pub(super) fn fixed_bytes(manifest_bytes: u64) -> Option<u64> {
    let manifest = manifest_bytes.checked_next_multiple_of(PAGE_BYTES)?;
    manifest.checked_mul(2)?.checked_add(2 * PAGE_BYTES)
}

/// Bytes of all files of a folder of one group with `physical` slots; `None` if they exceed 2^64.
pub(super) fn total_bytes(physical: u32, form: SlotForm, manifest_bytes: u64) -> Option<u64> {
    fixed_bytes(manifest_bytes)?.checked_add(group_bytes(physical, form)?)
}

/// The most slots for which `fits` holds: at most `SLOTS_MAX + 1`, and 0 if not even the fewest fit.
/// Fewer slots than some that fit must fit too.
pub(super) fn most_slots(fits: impl Fn(u32) -> bool) -> u32 {
    if !fits(PHYSICAL_MIN) {
        return 0;
    }
    let (mut most, mut too_many) = (PHYSICAL_MIN, SLOTS_MAX + 2);
    while too_many - most > 1 {
        let middle = most + (too_many - most) / 2;
        if fits(middle) {
            most = middle;
        } else {
            too_many = middle;
        }
    }
    most
}

/// The most slots, erased ones included, that fit `capacity_bytes`.
pub(super) fn physical_slots(
    capacity_bytes: u64,
    form: SlotForm,
    manifest_bytes: u64,
) -> Result<u32, TierError> {
    let block_bytes = form.block_bytes;
    slot_bytes(block_bytes)?;
    let fits = |physical: u32| {
        let total = total_bytes(physical, form, manifest_bytes);
        total.is_some_and(|total| total <= capacity_bytes)
    };
    let physical = most_slots(fits);
    if physical < PHYSICAL_MIN {
        let needed = total_bytes(PHYSICAL_MIN, form, manifest_bytes);
        return Err(TierError::Settings(SettingsError::CapacityTooSmall {
            capacity_bytes,
            block_bytes,
            needed_bytes: needed.unwrap_or(u64::MAX),
        }));
    }
    if physical > SLOTS_MAX {
        let most = total_bytes(SLOTS_MAX, form, manifest_bytes);
        return Err(TierError::Settings(SettingsError::CapacityTooLarge {
            capacity_bytes,
            block_bytes,
            blocks_max: SLOTS_MAX,
            most_bytes: most.unwrap_or(u64::MAX),
        }));
    }
    Ok(physical)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::BlockPieces;

    fn form(block_bytes: u64, pieces: u64) -> SlotForm {
        let ends: Vec<u64> = (1..pieces).chain([pieces.max(block_bytes)]).collect();
        SlotForm {
            block_bytes,
            record: RecordForm::of(&BlockPieces::ending_at(&ends).unwrap()),
        }
    }

    /// Pitfall 35: the files stay within the capacity to the byte, with as many slots as fit.
    #[test]
    fn as_many_slots_as_fit_and_not_one_more() {
        for (block_bytes, pieces) in [(1, 1), (4096, 1), (4097, 2), (65_536, 10), (1 << 20, 121)] {
            let form = form(block_bytes, pieces);
            for physical in [2, 3, 63, 64, 65, 1000, 1_000_000] {
                let exact = total_bytes(physical, form, 2000).unwrap();
                assert_eq!(physical_slots(exact, form, 2000).unwrap(), physical);
                let less = physical_slots(exact - 1, form, 2000);
                match physical {
                    2 => assert!(matches!(
                        less,
                        Err(TierError::Settings(SettingsError::CapacityTooSmall { needed_bytes, .. })) if needed_bytes == exact
                    )),
                    _ => assert_eq!(less.unwrap(), physical - 1),
                }
            }
        }
    }

    #[test]
    fn no_fewer_slots_hold_as_many_blocks() {
        let held = |physical| physical - reserve(physical);
        for blocks in (1..3000).chain([100_000, SLOTS_MAX - RESERVE_MAX]) {
            let physical = physical_for(blocks);
            assert!(held(physical) >= blocks, "{blocks} blocks in {physical}");
            assert!(physical == PHYSICAL_MIN || held(physical - 1) < blocks);
        }
        assert_eq!(physical_for(0), PHYSICAL_MIN);
    }

    #[test]
    fn absurd_sizes_and_absurd_capacities_are_refused() {
        assert!(matches!(
            slot_bytes(0),
            Err(TierError::Settings(SettingsError::BlockBytes { .. }))
        ));
        assert!(slot_bytes(u64::MAX).is_err());
        let absurd = physical_slots(u64::MAX, form(4096, 1), 2000);
        let Err(TierError::Settings(SettingsError::CapacityTooLarge { most_bytes, .. })) = absurd
        else {
            panic!("{absurd:?}");
        };
        assert_eq!(
            physical_slots(most_bytes, form(4096, 1), 2000).unwrap(),
            SLOTS_MAX
        );
        assert!(physical_slots(most_bytes + 2 * PAGE_BYTES, form(4096, 1), 2000).is_err());
        // With the largest blocks, the 2^64 bytes of offsets run out before the slots do.
        assert!(physical_slots(u64::MAX, form(1 << 40, 1), 2000).unwrap() < SLOTS_MAX);
    }

    #[test]
    fn there_is_always_an_erased_slot_and_one_that_holds_a_block() {
        for physical in [2, 3, 64, 200, 1_000_000, SLOTS_MAX] {
            let reserve = reserve(physical);
            assert!(reserve >= 1 && reserve < physical && reserve <= RESERVE_MAX);
        }
    }
}
