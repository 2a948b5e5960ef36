//! A transfer with its plans, and leases on exactly the layers of the blocks that the plans touch.
//!
//! ```text
//! TransferRoute    two compatible layouts, with planner and lane  cached and reused
//! PlannedTransfer  a route and a list of pairs, with its plans    holds no leases yet
//! LeasedTransfer   the same, with the leases                      cargo of a lane
//! ```

use std::{sync::Arc, time::Instant};

use kvtile_device::DeviceMark;
use kvtile_layout::{
    BlockPair, CopyPlan, CopyPlanner, LayerPlans, PlanSettings, RangePair, Selection,
};
use parking_lot::Mutex;

use super::{
    BlockScratch, LedgerHandle, RouteKey, TransferPairs,
    layers::HeldLayers,
    ledger::{LeaseSide, LeaseTicket},
    lock,
};
use crate::{
    error::{CopyError, TransferError},
    execute::{
        DeviceRoute, LaneSides, Lanes, QueuedLane, TransferCargo, TransferHints, TransferReport,
        TransferResult, carry,
    },
    physical::PhysicalLayout,
};

/// Two layouts that are checked for copies of ranges of layers and heads, and the planner for such
/// copies.
pub(crate) struct TransferRoute {
    key: RouteKey,
    from: PhysicalLayout,
    to: PhysicalLayout,
    planner: Mutex<CopyPlanner>,
    layers: usize,
    /// The copied layers of the source and of the destination.
    held: [HeldLayers; 2],
    /// Bytes of a block of the source.
    block_bytes: u64,
    lane: Arc<QueuedLane>,
    layers_are_free: bool,
}

impl TransferRoute {
    /// Runs the checks that do not depend on the blocks, and chooses the lane. `from` and `to` are
    /// the layouts of the key.
    pub(crate) fn new(
        key: RouteKey,
        from: PhysicalLayout,
        to: PhysicalLayout,
        lanes: &Lanes,
    ) -> Result<TransferRoute, TransferError> {
        match (from.logical_fingerprint(), to.logical_fingerprint()) {
            (Some(a), Some(b)) if a != b => {
                return Err(TransferError::Copy(CopyError::LogicalDiffers {
                    from: a,
                    to: b,
                }));
            }
            _ => {}
        }
        let (source, destination) = (from.bound()?, to.bound()?);
        if !destination.is_writable() {
            return Err(TransferError::Copy(CopyError::ReadOnly));
        }
        let lane = lanes.between((source, destination))?;
        let planning = lane.lane().planning((source, destination));
        let settings = PlanSettings::new()
            .layers(key.layers)
            .heads(key.heads)
            .source_order(planning.source_order);
        let layouts = (
            Arc::clone(source.layout()),
            Arc::clone(destination.layout()),
        );
        let planner = CopyPlanner::new(layouts.0, layouts.1, settings)?;
        let layers = planner.layers();
        let held = |first: u64, of: &PhysicalLayout| {
            let end = first.saturating_add(layers.count);
            HeldLayers::of(first..end, of.shape().num_layers())
        };
        Ok(TransferRoute {
            key,
            layers: usize::try_from(layers.count).unwrap_or(usize::MAX),
            held: [held(layers.source, &from)?, held(layers.destination, &to)?],
            planner: Mutex::new(planner),
            block_bytes: from.shape().block_bytes()?,
            lane: Arc::clone(lane),
            layers_are_free: planning.layers_are_free,
            from,
            to,
        })
    }

    pub(crate) fn key(&self) -> &RouteKey {
        &self.key
    }

    /// The token range of every block: the given range, or the whole page if both page sizes are
    /// equal.
    pub(crate) fn tokens(&self, given: Option<RangePair>) -> Result<RangePair, TransferError> {
        let pages = (self.from.shape().page_size(), self.to.shape().page_size());
        match given {
            Some(tokens) => Ok(tokens),
            None if pages.0 == pages.1 => Ok(RangePair::same(0, pages.0)),
            None => Err(TransferError::Copy(CopyError::PageSizesDiffer {
                source_page_size: pages.0,
                destination_page_size: pages.1,
            })),
        }
    }
}

/// The plans of a transfer: one for all layers, or one per layer.
enum TransferPlans {
    Whole(CopyPlan),
    Layers(LayerPlans),
}

/// How a planned transfer is executed.
pub(crate) struct TransferTerms {
    /// Compare destination and source after the copy.
    pub(crate) verify: bool,
    /// A hint that the destination is read at once.
    pub(crate) read_next: bool,
    /// The way that a device prefers.
    pub(crate) route: Option<DeviceRoute>,
    /// Marks of devices that are passed before a byte of a device is read or written.
    pub(crate) after: Vec<DeviceMark>,
}

/// A transfer that was checked and planned, and holds no leases yet.
pub(crate) struct PlannedTransfer<'a> {
    route: Arc<TransferRoute>,
    pairs: TransferPairs<'a>,
    plans: TransferPlans,
}

impl<'a> PlannedTransfer<'a> {
    /// Checks and plans. `layer_by_layer` requests one plan per layer. With `None`, the transfer
    /// goes layer by layer where that costs nothing.
    pub(crate) fn new(
        route: Arc<TransferRoute>,
        pairs: TransferPairs<'a>,
        layer_by_layer: Option<bool>,
    ) -> Result<PlannedTransfer<'a>, TransferError> {
        let by_layer = route.layers > 1
            && layer_by_layer.unwrap_or_else(|| {
                // A transfer that ends before the call returns needs no per-layer progress.
                let bytes = route
                    .block_bytes
                    .saturating_mul(pairs.sources().len() as u64);
                let is_over = bytes <= route.lane.lane().inline_bytes();
                route.layers_are_free && !is_over
            });
        // A failed plan or a panic can leave the planner's caches incomplete. That makes later
        // plans slower, never wrong.
        let mut planner = route.planner.lock();
        let plans = match by_layer {
            true => TransferPlans::Layers(pairs.plan_layers(&mut planner)?),
            false => TransferPlans::Whole(pairs.plan(&mut planner)?),
        };
        drop(planner);
        Ok(PlannedTransfer {
            route,
            pairs,
            plans,
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        match &self.plans {
            TransferPlans::Whole(plan) => plan.bytes(),
            TransferPlans::Layers(plans) => plans.bytes(),
        }
    }

    fn runs(&self) -> u64 {
        match &self.plans {
            TransferPlans::Whole(plan) => plan.runs(),
            TransferPlans::Layers(plans) => plans.runs(),
        }
    }

    /// Number of layers of the transfer.
    pub(crate) fn layers(&self) -> usize {
        self.route.layers
    }

    /// The lane of the transfer.
    pub(crate) fn lane(&self) -> &Arc<QueuedLane> {
        &self.route.lane
    }

    /// Whether the transfer ends sooner than another thread would wake up.
    pub(crate) fn is_short(&self) -> bool {
        self.bytes() <= self.route.lane.lane().inline_bytes()
    }

    /// Converts to an owned transfer.
    pub(crate) fn into_owned(self) -> PlannedTransfer<'static> {
        PlannedTransfer {
            route: self.route,
            pairs: self.pairs.into_owned(),
            plans: self.plans,
        }
    }

    /// Refuses a transfer that cannot wait for work of a device.
    pub(crate) fn check_has_marks(&self) -> Result<(), TransferError> {
        if self.route.lane.lane().has_marks() {
            return Ok(());
        }
        Err(TransferError::Copy(CopyError::AfterWithoutDevice {
            from: self.route.from.bound()?.kind(),
            to: self.route.to.bound()?.kind(),
        }))
    }

    /// Leases both sides, or none.
    pub(crate) fn lease(
        self,
        ledger: LedgerHandle<'a>,
        terms: TransferTerms,
    ) -> Result<LeasedTransfer<'a>, TransferError> {
        let key = self.route.key();
        let [read, written] = &self.route.held;
        let sides = [(key.source, read), (key.destination, written)];
        let sides = sides.map(|(handle, layers)| LeaseSide { handle, layers });
        let mut guard = lock(&ledger);
        let tickets = guard.lease_both(sides, &self.pairs);
        drop(guard);
        Ok(LeasedTransfer {
            tickets: tickets?,
            ledger,
            hints: TransferHints {
                bytes: self.bytes(),
                read_next: terms.read_next || terms.verify,
                route: terms.route,
            },
            terms,
            planned: self,
        })
    }
}

/// Plans, and the leases that make their execution sound. The leases are released on drop.
pub(crate) struct LeasedTransfer<'a> {
    planned: PlannedTransfer<'a>,
    ledger: LedgerHandle<'a>,
    hints: TransferHints,
    terms: TransferTerms,
    tickets: [LeaseTicket; 2],
}

// SAFETY: the planner of the route made the plans from the layouts of `sides`, the pairs and a
// range of layers, which is the range of `TransferRoute::held`. So a plan touches only units of these
// layers of these blocks. They are leased while this lives: the source for reading, which keeps
// writers away, and the destination for writing, which excludes all other access. A lease of other
// layers of a block gives access to other bytes: planner and slices write only where no two units
// of the layout share a byte. Leases on layouts that share memory conflict byte by byte, and there
// a lease of layers counts for its blocks as a whole. No layer of a block is leased both ways, so
// no byte is on both sides.
unsafe impl TransferCargo for LeasedTransfer<'_> {
    fn sides(&self) -> Result<LaneSides<'_>, TransferError> {
        let route = &self.planned.route;
        Ok((route.from.bound()?, route.to.bound()?))
    }

    fn hints(&self) -> TransferHints {
        self.hints
    }

    fn after(&self) -> &[DeviceMark] {
        &self.terms.after
    }

    fn verifies(&self) -> bool {
        self.terms.verify
    }

    fn for_each_plan(
        &self,
        carry: &mut dyn FnMut(&CopyPlan) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        match &self.planned.plans {
            TransferPlans::Whole(plan) => carry(plan),
            TransferPlans::Layers(plans) => plans.iter().try_for_each(|plan| carry(&plan)),
        }
    }

    fn announces_layers(&self) -> bool {
        let is_by_layer = matches!(self.planned.plans, TransferPlans::Layers(_));
        // Layers that are not yet verified may not be read.
        (is_by_layer || self.planned.layers() == 1) && !self.terms.verify
    }

    fn arrived(&self, start: Instant) -> TransferResult {
        if self.terms.verify {
            self.compare()?;
        }
        Ok(TransferReport {
            bytes: self.planned.bytes(),
            runs: self.planned.runs(),
            elapsed: start.elapsed(),
            verified: self.terms.verify,
        })
    }
}

impl LeasedTransfer<'_> {
    /// Executes the transfer on this thread, and releases the leases.
    pub(crate) fn fly_here(self) -> TransferResult {
        carry(self.planned.route.lane.lane(), &self, &mut || {})
    }

    /// Compares destination and source pair by pair, in canonical order.
    fn compare(&self) -> Result<(), TransferError> {
        let route = &self.planned.route;
        let (from, to) = (route.from.bound()?, route.to.bound()?);
        let mut expected = BlockScratch::for_block_of(to.layout())?;
        let mut found = BlockScratch::for_block_of(to.layout())?;
        for pair in self.planned.pairs.to_vec() {
            let block = pair.destination_block;
            let mut selection = Selection {
                pairs: vec![BlockPair {
                    destination_block: 0,
                    ..pair
                }],
                layers: route.key.layers,
                heads: route.key.heads,
                source_order: false,
            };
            // SAFETY: the layers of the source blocks of the pairs are leased for reading, and the
            // selection contains only these layers.
            unsafe { expected.gather_leased(from, &selection) }?;
            let there = |range: RangePair| RangePair::same(range.destination, range.count);
            selection.layers = selection.layers.map(there);
            selection.heads = selection.heads.map(there);
            for pair in &mut selection.pairs {
                pair.source_block = block;
                pair.source_token = pair.destination_token;
            }
            // SAFETY: the layers of the destination blocks of the pairs are leased for writing, the
            // selection contains only these layers, and nothing writes them now.
            unsafe { found.gather_leased(to, &selection) }?;
            if expected.bytes()? != found.bytes()? {
                return Err(TransferError::Copy(CopyError::VerifyFailed { block }));
            }
            // The next pair may cover less of the scratch, so bytes of this pair must not remain.
            expected.bytes_mut()?.fill(0);
            found.bytes_mut()?.fill(0);
        }
        Ok(())
    }
}

impl Drop for LeasedTransfer<'_> {
    fn drop(&mut self) {
        let pairs = &self.planned.pairs;
        lock(&self.ledger).release_both(&self.tickets, pairs);
    }
}
