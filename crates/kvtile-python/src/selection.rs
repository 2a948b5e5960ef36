//! Selections of blocks of two layouts, whose page sizes may differ.

use kvtile::layout::{BlockPair, LayoutError, RangePair, Selection, StridedLayout};

/// Converts block ids to the library's type.
pub(crate) fn ids(blocks: Vec<usize>) -> Vec<u64> {
    blocks.into_iter().map(|block| block as u64).collect()
}

/// Selects whole blocks, the same tokens of each block, or a token sequence across two page sizes.
pub(crate) fn between(
    from: &StridedLayout,
    to: &StridedLayout,
    source: &[u64],
    destination: &[u64],
    tokens: Option<RangePair>,
) -> Result<Selection, LayoutError> {
    let (page, other) = (from.shape().page_size(), to.shape().page_size());
    let tokens = match tokens {
        None if page != other => {
            let held = |blocks: &[u64], page: u64| page.saturating_mul(blocks.len() as u64);
            let tokens = held(source, page).min(held(destination, other));
            return Selection::sequence(source, page, destination, other, tokens);
        }
        None => RangePair::same(0, page),
        Some(tokens) => tokens,
    };
    let mut selection = Selection::blocks(source, destination, page)?;
    for pair in &mut selection.pairs {
        *pair = BlockPair {
            source_token: tokens.source,
            destination_token: tokens.destination,
            tokens: tokens.count,
            ..*pair
        };
    }
    Ok(selection)
}
