//! The byte ranges of blocks, as spans of regions.

use std::sync::Arc;

use kvtile_layout::{
    BlockPair, CopyPlan, CopyPlanner, PlanSettings, RegionSpan, Selection, StridedLayout,
};

use crate::error::{CopyError, TransferError};

/// The byte ranges of `blocks` (distinct), merged and sorted by region and offset.
///
/// # Errors
/// More than `runs_max` runs before the merge.
pub(super) fn stored_spans(
    layout: &StridedLayout,
    blocks: &[u64],
    runs_max: u64,
) -> Result<Vec<RegionSpan>, TransferError> {
    if blocks.is_empty() {
        return Ok(Vec::new());
    }
    merged(&block_plan(layout, blocks)?, runs_max)
}

/// The byte ranges of single blocks. One planner serves all of them, so that block-independent work
/// is done once.
pub(super) struct BlockSpans {
    planner: CopyPlanner,
    page_size: u64,
    /// Blocks are planned onto themselves if this is set, else to canonical order.
    is_injective: bool,
}

impl BlockSpans {
    pub(super) fn new(layout: &Arc<StridedLayout>) -> Result<BlockSpans, TransferError> {
        let is_injective = layout.is_injective();
        let to = match is_injective {
            true => Arc::clone(layout),
            false => Arc::new(StridedLayout::canonical(
                &layout.shape().with_num_blocks(1)?,
            )?),
        };
        let settings = PlanSettings::new().source_order(true);
        Ok(BlockSpans {
            planner: CopyPlanner::new(Arc::clone(layout), to, settings)?,
            page_size: layout.shape().page_size(),
            is_injective,
        })
    }

    /// As [`stored_spans`] for one block.
    pub(super) fn of(
        &mut self,
        block: u64,
        runs_max: u64,
    ) -> Result<Vec<RegionSpan>, TransferError> {
        let pair = BlockPair {
            source_block: block,
            source_token: 0,
            destination_block: if self.is_injective { block } else { 0 },
            destination_token: 0,
            tokens: self.page_size,
        };
        merged(&self.planner.plan([pair])?, runs_max)
    }
}

/// The source runs of a plan, merged and sorted by region and offset.
fn merged(plan: &CopyPlan, runs_max: u64) -> Result<Vec<RegionSpan>, TransferError> {
    if plan.runs() > runs_max {
        return Err(TransferError::Copy(CopyError::OverlapUnproved {
            runs: plan.runs(),
        }));
    }
    let mut runs: Vec<RegionSpan> = Vec::new();
    plan.for_each_run(|start, _, bytes| runs.push(RegionSpan { start, bytes }));
    runs.sort_unstable_by_key(|span| span.start);
    let mut merged: Vec<RegionSpan> = Vec::new();
    for run in runs {
        match merged.last_mut() {
            Some(last)
                if last.start.region == run.start.region
                    && last.start.offset + last.bytes >= run.start.offset =>
            {
                // Units of a source-only layout may share bytes.
                let end = run.start.offset + run.bytes;
                last.bytes = last.bytes.max(end - last.start.offset);
            }
            _ => merged.push(run),
        }
    }
    Ok(merged)
}

/// A plan whose source runs are the bytes of `blocks`. Each block is planned onto itself, which
/// gives the longest possible runs. A layout that is not injective cannot be a destination, so its
/// blocks are planned to canonical order.
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
