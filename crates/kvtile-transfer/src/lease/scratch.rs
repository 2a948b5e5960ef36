//! Copies of blocks in canonical order in private memory, for digests, comparisons and patterns.

use std::sync::Arc;

use kvtile_layout::{BlockPair, CopyPlan, Location, RegionSpan, Selection, StridedLayout};
use kvtile_memory::{OwnedMemoryRegion, SystemMemory};

use super::BlockLease;
use crate::{
    error::TransferError,
    execute::{BoundLayout, TransferHints, access, one_thread_lane},
};

/// One block in [canonical order](StridedLayout::canonical), owned by the scratch.
pub(crate) struct BlockScratch {
    bound: BoundLayout,
    span: RegionSpan,
}

impl BlockScratch {
    /// Zeroed memory for one block of the shape of `layout`.
    pub(crate) fn for_block_of(layout: &StridedLayout) -> Result<BlockScratch, TransferError> {
        let shape = layout.shape().with_num_blocks(1)?;
        let canonical = StridedLayout::canonical(&shape)?;
        let bytes = shape.block_bytes()?;
        let size = usize::try_from(bytes).unwrap_or(usize::MAX);
        let memory: OwnedMemoryRegion =
            Arc::new(SystemMemory::options().huge_pages(false).allocate(size)?);
        Ok(BlockScratch {
            bound: BoundLayout::new(Arc::new(canonical), vec![memory])?,
            span: RegionSpan {
                start: Location {
                    region: 0,
                    offset: 0,
                },
                bytes,
            },
        })
    }

    /// The bytes in canonical order.
    pub(crate) fn bytes(&self) -> Result<&[u8], TransferError> {
        // SAFETY: only `&mut self` methods write the memory, and no other code has its address.
        unsafe { access::bytes(&self.bound, self.span) }
    }

    /// The bytes in canonical order, for writing.
    pub(crate) fn bytes_mut(&mut self) -> Result<&mut [u8], TransferError> {
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { access::bytes_mut(&self.bound, self.span) }
    }

    /// Copies one block of a lease into the scratch.
    pub(crate) fn gather(&mut self, lease: &BlockLease, block: u64) -> Result<(), TransferError> {
        let page_size = self.bound.layout().shape().page_size();
        let selection = Selection::blocks(&[block], &[0], page_size)?;
        self.gather_selection(lease, &selection)
    }

    /// Copies the part of a block that `selection` names. The scratch is block 0 of the
    /// destination.
    fn gather_selection(
        &mut self,
        lease: &BlockLease,
        selection: &Selection,
    ) -> Result<(), TransferError> {
        check_held(selection, |pair| pair.source_block, lease)?;
        let source = lease.layout().bound()?;
        // SAFETY: the lease holds all layers of the source blocks and keeps writers away from them.
        unsafe { self.gather_leased(source, selection) }
    }

    /// As [`gather_selection`](Self::gather_selection), for layers of blocks that the caller has
    /// leased.
    ///
    /// # Safety
    /// For the whole call nothing writes the source units of `selection` in `source`: the units of
    /// its layers, or of all layers if it names none.
    pub(super) unsafe fn gather_leased(
        &mut self,
        source: &BoundLayout,
        selection: &Selection,
    ) -> Result<(), TransferError> {
        let plan = CopyPlan::new(source.layout(), self.bound.layout(), selection)?;
        let sides = (source, &self.bound);
        let lane = one_thread_lane(sides)?;
        // SAFETY: the plan was made from these two; the caller keeps writers away from its units;
        // the scratch is borrowed exclusively and its memory is private to it.
        unsafe { lane.carry(&plan, sides, READ_NEXT) }
    }

    /// Copies the scratch to one block of a write lease.
    pub(crate) fn scatter(&self, lease: &mut BlockLease, block: u64) -> Result<(), TransferError> {
        let page_size = self.bound.layout().shape().page_size();
        let selection = Selection::blocks(&[0], &[block], page_size)?;
        lease.check_writable()?;
        check_held(&selection, |pair| pair.destination_block, lease)?;
        let destination = lease.layout().bound()?;
        let plan = CopyPlan::new(self.bound.layout(), destination.layout(), &selection)?;
        let sides = (&self.bound, &**destination);
        let lane = one_thread_lane(sides)?;
        // SAFETY: the plan was made from these two; the write lease excludes all other access to
        // all layers of its blocks; nothing writes the scratch while it is borrowed.
        unsafe { lane.carry(&plan, sides, READ_NEXT) }
    }
}

/// A block is small, and the caller reads it at once.
const READ_NEXT: TransferHints = TransferHints {
    bytes: 0,
    read_next: true,
    route: None,
};

/// Checks that the lease holds all layers of every block of `selection` on one side.
fn check_held(
    selection: &Selection,
    id: impl Fn(&BlockPair) -> u64,
    lease: &BlockLease,
) -> Result<(), TransferError> {
    selection
        .pairs
        .iter()
        .try_for_each(|pair| lease.check_holds_all(id(pair)))
}
