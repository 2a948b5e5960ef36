//! Room for the next blocks of a chain, by the rule that the cache and the dry replay share.

use kvtile_blocks::{BlocksError, pool::MutableBlocks};

/// As many of the `wanted` blocks as `allocate` gives, in halves. The caller has pinned the block before
/// them, so that no ancestor is evicted for its descendants; `None` where there is no room for one.
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
