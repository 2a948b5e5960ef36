//! The bytes of blocks as spans of regions.

use kvtile_layout::{CopyPlan, Selection, Span, StridedLayout};

use crate::error::TransferError;

/// The bytes of `blocks` (distinct), merged and in the order of regions and offsets.
///
/// # Errors
/// More than `runs_max` runs before they are merged.
pub(super) fn stored_spans(
    layout: &StridedLayout,
    blocks: &[u64],
    runs_max: u64,
) -> Result<Vec<Span>, TransferError> {
    if blocks.is_empty() {
        return Ok(Vec::new());
    }
    let plan = block_plan(layout, blocks)?;
    if plan.runs() > runs_max {
        return Err(TransferError::OverlapUnproved { runs: plan.runs() });
    }
    let mut runs: Vec<Span> = Vec::new();
    plan.for_each_run(|start, _, bytes| runs.push(Span { start, bytes }));
    runs.sort_unstable_by_key(|span| span.start);
    let mut merged: Vec<Span> = Vec::new();
    for run in runs {
        match merged.last_mut() {
            Some(last)
                if last.start.region == run.start.region
                    && last.start.offset + last.bytes >= run.start.offset =>
            {
                // Units of a layout that is only a source may share bytes.
                let end = run.start.offset + run.bytes;
                last.bytes = last.bytes.max(end - last.start.offset);
            }
            _ => merged.push(run),
        }
    }
    Ok(merged)
}

/// A plan whose source runs are the bytes of `blocks`: each onto itself, which has the longest
/// runs there are. What may not be written is planned to canonical order.
fn block_plan(layout: &StridedLayout, blocks: &[u64]) -> Result<CopyPlan, TransferError> {
    let page_size = layout.shape().page_size();
    if layout.is_injective() {
        let selection = Selection::blocks(blocks, blocks, page_size)?.in_source_order();
        return Ok(CopyPlan::new(layout, layout, &selection)?);
    }
    let shape = layout.shape().with_num_blocks(blocks.len() as u64)?;
    let canonical = StridedLayout::canonical(&shape)?;
    let ids: Vec<u64> = (0..blocks.len() as u64).collect();
    let selection = Selection::blocks(blocks, &ids, page_size)?.in_source_order();
    Ok(CopyPlan::new(layout, &canonical, &selection)?)
}
