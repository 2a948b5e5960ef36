//! A transfer with everything it needs: plans, and leases on exactly the blocks that they touch.

use kvtile_layout::{BlockPair, CopyPlan, RangePair, Selection};

use super::{Backing, execute, lease::BlockLease, lease::LeaseMode, scratch::Scratch};
use crate::{
    error::TransferError,
    manager::{LayoutHandle, SharedLedger},
    physical::PhysicalLayout,
};

/// One side of a transfer.
pub(crate) struct Side<'a> {
    pub(crate) handle: LayoutHandle,
    pub(crate) layout: &'a PhysicalLayout,
}

/// Plans and the leases that make their execution sound. The leases live as long as it does.
pub(crate) struct LeasedTransfer {
    plans: Vec<CopyPlan>,
    layers: usize,
    selection: Selection,
    source: BlockLease,
    destination: BlockLease,
}

impl LeasedTransfer {
    /// Checks, plans and leases. `layer_by_layer`: one plan a layer; `None`: where the destination
    /// has a region for each.
    pub(crate) fn prepare(
        ledger: &SharedLedger,
        source: &Side<'_>,
        destination: &Side<'_>,
        selection: Selection,
        layer_by_layer: Option<bool>,
    ) -> Result<LeasedTransfer, TransferError> {
        let (from, to) = (source.layout.bound()?, destination.layout.bound()?);
        if !to.is_writable() {
            return Err(TransferError::ReadOnly);
        }
        let mut selection = selection;
        selection.source_order =
            matches!(from.backing(), Backing::File) && matches!(to.backing(), Backing::Memory(_));
        let layers = selection
            .layers
            .map_or(from.layout().shape().num_layers(), |l| l.count);
        let plans = plans(source, destination, &selection, layers, layer_by_layer)?;
        let ids = |id: fn(&BlockPair) -> u64| selection.pairs.iter().map(id).collect::<Vec<_>>();
        let (read, written) = (ids(|p| p.source_block), ids(|p| p.destination_block));
        if source.handle == destination.handle {
            check_distinct(&read, &written)?;
        }
        Ok(LeasedTransfer {
            plans,
            layers: usize::try_from(layers).unwrap_or(usize::MAX),
            source: BlockLease::take(ledger, source.handle, &read, LeaseMode::Read)?,
            destination: BlockLease::take(ledger, destination.handle, &written, LeaseMode::Write)?,
            selection,
        })
    }

    pub(crate) fn plans(&self) -> &[CopyPlan] {
        &self.plans
    }

    /// Layers that the transfer is about.
    pub(crate) fn layers(&self) -> usize {
        self.layers
    }

    /// Whether both sides are in memory.
    pub(crate) fn is_memory(&self) -> bool {
        [&self.source, &self.destination].into_iter().all(|lease| {
            let bound = lease.layout().bound();
            bound.is_ok_and(|bound| matches!(bound.backing(), Backing::Memory(_)))
        })
    }

    /// Executes plan after plan and calls `done` after each.
    pub(crate) fn run(&mut self, mut done: impl FnMut()) -> Result<(), TransferError> {
        let source = self.source.layout().bound()?;
        let destination = self.destination.layout().bound()?;
        for plan in &self.plans {
            // SAFETY: `prepare` made the plan from the layouts of these leases and leased exactly
            // the blocks that it touches: for reading, which keeps writers away, and for writing,
            // which keeps everybody away. No block is leased both ways, and leases on layouts that
            // share memory conflict byte by byte, so no byte is on both sides.
            unsafe { execute(plan, source, destination) }?;
            done();
        }
        Ok(())
    }

    /// Compares what was copied, pair by pair, in canonical order.
    pub(crate) fn compare(&self) -> Result<(), TransferError> {
        let layout = self.destination.layout().strided();
        let mut expected = Scratch::for_block_of(layout)?;
        let mut found = Scratch::for_block_of(layout)?;
        for pair in &self.selection.pairs {
            let block = pair.destination_block;
            let mut selection = Selection {
                pairs: vec![BlockPair {
                    destination_block: 0,
                    ..*pair
                }],
                ..self.selection.clone()
            };
            expected.gather_selection(&self.source, &selection)?;
            let there = |range: RangePair| RangePair::same(range.destination, range.count);
            selection.layers = selection.layers.map(there);
            selection.heads = selection.heads.map(there);
            for pair in &mut selection.pairs {
                pair.source_block = block;
                pair.source_token = pair.destination_token;
            }
            found.gather_selection(&self.destination, &selection)?;
            if expected.bytes()? != found.bytes()? {
                return Err(TransferError::VerifyFailed { block });
            }
            // What another pair of the same selection does not cover must not be left over.
            expected.bytes_mut()?.fill(0);
            found.bytes_mut()?.fill(0);
        }
        Ok(())
    }
}

fn check_distinct(read: &[u64], written: &[u64]) -> Result<(), TransferError> {
    let mut sorted = read.to_vec();
    sorted.sort_unstable();
    match written.iter().find(|b| sorted.binary_search(b).is_ok()) {
        Some(&block) => Err(TransferError::SameBlock { block }),
        None => Ok(()),
    }
}

/// Whether going layer by layer costs no run length and no order of reading: the destination is
/// memory with a region for each layer, and a source in files has one too.
fn costs_nothing(source: &Side<'_>, destination: &Side<'_>) -> Result<bool, TransferError> {
    let separate = |side: &Side<'_>| {
        let layout = side.layout.strided();
        layout.region_bytes().len() as u64 >= layout.shape().num_layers()
    };
    let from_memory = matches!(source.layout.bound()?.backing(), Backing::Memory(_));
    let to_memory = matches!(destination.layout.bound()?.backing(), Backing::Memory(_));
    Ok(to_memory && separate(destination) && (from_memory || separate(source)))
}

/// One plan, or one for each layer.
fn plans(
    source: &Side<'_>,
    destination: &Side<'_>,
    selection: &Selection,
    layers: u64,
    layer_by_layer: Option<bool>,
) -> Result<Vec<CopyPlan>, TransferError> {
    let (from, to) = (source.layout.strided(), destination.layout.strided());
    let whole = CopyPlan::new(from, to, selection)?;
    if layers == 1 || !layer_by_layer.unwrap_or(costs_nothing(source, destination)?) {
        return Ok(vec![whole]);
    }
    let all = selection.layers.unwrap_or(RangePair::same(0, layers));
    (0..layers)
        .map(|layer| {
            let one = RangePair {
                source: all.source + layer,
                destination: all.destination + layer,
                count: 1,
            };
            let selection = selection.clone().with_layers(one);
            Ok(CopyPlan::new(from, to, &selection)?)
        })
        .collect()
}
