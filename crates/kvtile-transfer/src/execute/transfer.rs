//! A transfer with everything it needs: plans, and leases on exactly the blocks that they touch.
//!
//! ```text
//! Route    two layouts that may be copied, with their planner   kept and used again
//! Planned  a route and a list of pairs, with its plans          nothing is held yet
//! LeasedTransfer  the same, with the leases                     may be run
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use kvtile_layout::{
    BlockPair, CopyPlan, CopyPlanner, LayerPlans, PlanSettings, RangePair, Selection,
};

use super::{
    Backing, execute,
    executor::{Executor, Hints},
    scratch::Scratch,
};
use crate::{
    error::TransferError,
    manager::{Held, INLINE_BYTES, Ledger, Pairs, RouteKey, Ticket, lock},
    physical::PhysicalLayout,
};

/// Two layouts between which ranges of layers and heads may be copied, and the planner for them.
pub(crate) struct Route {
    key: RouteKey,
    from: PhysicalLayout,
    to: PhysicalLayout,
    planner: Mutex<CopyPlanner>,
    layers: usize,
    /// Bytes of a block of the source.
    block_bytes: u64,
    is_memory: bool,
    /// Whether going layer by layer costs no run length and no order of reading: the destination
    /// is memory with a region for each layer, and a source in files has one too.
    layers_are_free: bool,
}

impl Route {
    /// Checks what does not depend on the blocks. `from` and `to` are the layouts of the key.
    pub(crate) fn new(
        key: RouteKey,
        from: PhysicalLayout,
        to: PhysicalLayout,
    ) -> Result<Route, TransferError> {
        match (from.logical_fingerprint(), to.logical_fingerprint()) {
            (Some(a), Some(b)) if a != b => {
                return Err(TransferError::LogicalDiffers { from: a, to: b });
            }
            _ => {}
        }
        let (source, destination) = (from.bound()?, to.bound()?);
        if !destination.is_writable() {
            return Err(TransferError::ReadOnly);
        }
        let from_memory = matches!(source.backing(), Backing::Memory(_));
        let to_memory = matches!(destination.backing(), Backing::Memory(_));
        let settings = PlanSettings {
            layers: key.layers,
            heads: key.heads,
            source_order: !from_memory && to_memory,
        };
        let layouts = (
            Arc::clone(source.layout()),
            Arc::clone(destination.layout()),
        );
        let planner = CopyPlanner::new(layouts.0, layouts.1, settings)?;
        let separate = |layout: &PhysicalLayout| {
            let regions = layout.strided().region_bytes().len();
            regions as u64 >= layout.shape().num_layers()
        };
        Ok(Route {
            key,
            layers: usize::try_from(planner.layers().count).unwrap_or(usize::MAX),
            planner: Mutex::new(planner),
            block_bytes: from.shape().block_bytes()?,
            is_memory: from_memory && to_memory,
            layers_are_free: to_memory && separate(&to) && (from_memory || separate(&from)),
            from,
            to,
        })
    }

    pub(crate) fn key(&self) -> &RouteKey {
        &self.key
    }

    /// The tokens of every block: the given ones, or all of pages of one size.
    pub(crate) fn tokens(&self, given: Option<RangePair>) -> Result<RangePair, TransferError> {
        let pages = (self.from.shape().page_size(), self.to.shape().page_size());
        match given {
            Some(tokens) => Ok(tokens),
            None if pages.0 == pages.1 => Ok(RangePair::same(0, pages.0)),
            None => Err(TransferError::PageSizesDiffer {
                source_page_size: pages.0,
                destination_page_size: pages.1,
            }),
        }
    }
}

/// What is executed: one plan, or one for each layer.
enum Plans {
    Whole(CopyPlan),
    Layers(LayerPlans),
}

/// A transfer that was checked and planned, and holds nothing yet.
pub(crate) struct Planned<'a> {
    route: Arc<Route>,
    pairs: Pairs<'a>,
    plans: Plans,
}

impl<'a> Planned<'a> {
    /// Checks and plans. `layer_by_layer`: one plan a layer; `None`: where that is free.
    pub(crate) fn new(
        route: Arc<Route>,
        pairs: Pairs<'a>,
        layer_by_layer: Option<bool>,
    ) -> Result<Planned<'a>, TransferError> {
        let by_layer = route.layers > 1
            && layer_by_layer.unwrap_or_else(|| {
                // What is over before its caller returns is waited for as a whole.
                let bytes = route
                    .block_bytes
                    .saturating_mul(pairs.sources().len() as u64);
                let is_over = route.is_memory && bytes <= INLINE_BYTES;
                route.layers_are_free && !is_over
            });
        // Nothing that a planner leaves behind makes a later plan wrong, only slower.
        let planner = route.planner.lock();
        let mut planner = planner.unwrap_or_else(PoisonError::into_inner);
        let plans = match by_layer {
            true => Plans::Layers(pairs.plan_layers(&mut planner)?),
            false => Plans::Whole(pairs.plan(&mut planner)?),
        };
        drop(planner);
        Ok(Planned {
            route,
            pairs,
            plans,
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        match &self.plans {
            Plans::Whole(plan) => plan.bytes(),
            Plans::Layers(plans) => plans.bytes(),
        }
    }

    fn runs(&self) -> u64 {
        match &self.plans {
            Plans::Whole(plan) => plan.runs(),
            Plans::Layers(plans) => plans.runs(),
        }
    }

    /// Layers that the transfer is about.
    pub(crate) fn layers(&self) -> usize {
        self.route.layers
    }

    /// Whether both sides are in memory.
    pub(crate) fn is_memory(&self) -> bool {
        self.route.is_memory
    }

    /// The same transfer, to be kept.
    pub(crate) fn into_owned(self) -> Planned<'static> {
        Planned {
            route: self.route,
            pairs: self.pairs.into_owned(),
            plans: self.plans,
        }
    }

    /// Takes both leases, or none. `read_next`: the destination is read as soon as it is there.
    pub(crate) fn lease(
        self,
        ledger: Held<'a, Mutex<Ledger>>,
        executor: Held<'a, Executor>,
        read_next: bool,
    ) -> Result<LeasedTransfer<'a>, TransferError> {
        let key = self.route.key();
        let mut guard = lock(&ledger);
        let tickets = guard.lease_both(key.source, key.destination, &self.pairs);
        drop(guard);
        Ok(LeasedTransfer {
            tickets: tickets?,
            ledger,
            executor,
            hints: Hints {
                bytes: self.bytes(),
                read_next,
            },
            planned: self,
        })
    }
}

/// Plans and the leases that make their execution sound. The leases live as long as it does.
pub(crate) struct LeasedTransfer<'a> {
    planned: Planned<'a>,
    ledger: Held<'a, Mutex<Ledger>>,
    executor: Held<'a, Executor>,
    hints: Hints,
    tickets: [Ticket; 2],
}

impl LeasedTransfer<'_> {
    pub(crate) fn bytes(&self) -> u64 {
        self.planned.bytes()
    }

    pub(crate) fn runs(&self) -> u64 {
        self.planned.runs()
    }

    /// Whether layers are done one after the other.
    pub(crate) fn is_by_layer(&self) -> bool {
        matches!(self.planned.plans, Plans::Layers(_)) || self.planned.layers() == 1
    }

    /// Executes plan after plan and calls `done` after each.
    pub(crate) fn run(&mut self, mut done: impl FnMut()) -> Result<(), TransferError> {
        match &self.planned.plans {
            Plans::Whole(plan) => {
                self.execute(plan)?;
                done();
            }
            Plans::Layers(plans) => {
                for plan in plans.iter() {
                    self.execute(&plan)?;
                    done();
                }
            }
        }
        Ok(())
    }

    /// Executes one of its own plans.
    fn execute(&self, plan: &CopyPlan) -> Result<(), TransferError> {
        let route = &self.planned.route;
        let (source, destination) = (route.from.bound()?, route.to.bound()?);
        // SAFETY: the plan is one of ours (`run` is the only caller): the planner of the route
        // made it from these layouts and the pairs whose blocks are leased, for reading, which
        // keeps writers away, and for writing, which keeps everybody away. No block is leased both
        // ways, and leases on layouts that share memory conflict byte by byte, so no byte is on
        // both sides.
        unsafe { execute(plan, (source, destination), &self.executor, self.hints) }
    }

    /// Compares what was copied, pair by pair, in canonical order.
    pub(crate) fn compare(&self) -> Result<(), TransferError> {
        let route = &self.planned.route;
        let (from, to) = (route.from.bound()?, route.to.bound()?);
        let mut expected = Scratch::for_block_of(to.layout())?;
        let mut found = Scratch::for_block_of(to.layout())?;
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
            // SAFETY: the source blocks of the pairs are leased for reading.
            unsafe { expected.gather_leased(from, &selection) }?;
            let there = |range: RangePair| RangePair::same(range.destination, range.count);
            selection.layers = selection.layers.map(there);
            selection.heads = selection.heads.map(there);
            for pair in &mut selection.pairs {
                pair.source_block = block;
                pair.source_token = pair.destination_token;
            }
            // SAFETY: the destination blocks of the pairs are leased for writing, and nothing is
            // being written now.
            unsafe { found.gather_leased(to, &selection) }?;
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

impl Drop for LeasedTransfer<'_> {
    fn drop(&mut self) {
        let pairs = &self.planned.pairs;
        lock(&self.ledger).release_both(&self.tickets, pairs);
    }
}
