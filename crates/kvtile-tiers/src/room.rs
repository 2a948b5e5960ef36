//! Allocation of host blocks for a chain; the cache and the dry replay share this rule.

use kvtile_blocks::{BlocksError, pool::MutableBlocks};

/// Allocates host blocks, halving the count after each refusal of `allocate`; `None` if not even
/// one block fits. The caller has pinned the parent of these blocks, so that the allocation evicts
/// no ancestor of theirs.
pub(crate) fn chain_room(
    wanted: usize,
    mut allocate: impl FnMut(usize) -> Result<MutableBlocks, BlocksError>,
) -> Option<MutableBlocks> {
    let mut count = wanted;
    while count > 0 {
        match allocate(count) {
            Ok(room) => return Some(room),
            Err(_) => count /= 2,
        }
    }
    None
}
