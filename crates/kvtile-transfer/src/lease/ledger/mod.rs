//! The ledger: the registered layouts, and the leases on their blocks.
//!
//! A layer of a block is free, read by any number of leases, or written by one (`states`). Layouts
//! of one manager may share memory, as the groups of one engine do. Then a lease on a block of one
//! layout also holds the same bytes in the other layouts; a lease of some layers counts for all
//! bytes of its blocks. Leases that exist when a layout is registered also count for that layout
//! (`shared`). Layouts of two managers may not share memory, because neither manager sees the
//! leases of the other.

mod shared;
mod states;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

use std::collections::BTreeMap;

use kvtile_layout::broken;
use kvtile_memory::OwnedMemoryRegion;
use parking_lot::{Mutex, MutexGuard};

use self::{
    shared::{LayoutBlock, SharedBytes, SharedLease},
    states::BlockStates,
};
#[cfg(test)]
use super::extent::first_overlap;
use super::{
    LayoutHandle, LeaseMode, SideBlockIds, TransferPairs,
    extent::{AddressExtent, block_extents, extents, extents_by_block},
    layers::HeldLayers,
    routes::RouteCache,
};
use crate::{
    error::{LeaseError, RegisterError, TransferError},
    physical::PhysicalLayout,
};

/// Memory that a manager has claimed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct MemoryClaim {
    manager: u64,
    extent: AddressExtent,
    writable: bool,
}

impl MemoryClaim {
    /// Managers may share memory that none of them writes.
    fn excludes(&self, other: &MemoryClaim) -> bool {
        let differ = self.manager != other.manager && (self.writable || other.writable);
        differ && self.extent.overlaps(&other.extent)
    }
}

static CLAIMS: Mutex<Vec<MemoryClaim>> = Mutex::new(Vec::new());

fn claims() -> MutexGuard<'static, Vec<MemoryClaim>> {
    CLAIMS.lock()
}

/// A registered layout.
struct RegisteredLayout {
    layout: PhysicalLayout,
    extents: Vec<AddressExtent>,
    /// Handles of the layouts that share memory with it.
    aliases: Vec<u64>,
    blocks: BlockStates,
    leases: usize,
}

/// The layouts and leases of one manager.
pub(crate) struct LeaseLedger {
    manager: u64,
    next_layout: u64,
    next_lease: u64,
    entries: BTreeMap<u64, RegisteredLayout>,
    shared: SharedBytes,
    /// Cached routes between registered layouts.
    pub(crate) routes: RouteCache,
}

/// A lease in the ledger. It is released once, with the same blocks that it was taken for.
#[derive(Debug)]
pub(crate) struct LeaseTicket {
    lease: u64,
    layout: u64,
    layers: HeldLayers,
    mode: LeaseMode,
}

/// One side of a lease or transfer: a layout and layers. The caller passes the blocks separately.
pub(crate) struct LeaseSide<'a> {
    pub(crate) handle: LayoutHandle,
    pub(crate) layers: &'a HeldLayers,
}

impl LeaseLedger {
    pub(crate) fn new(manager: u64) -> LeaseLedger {
        LeaseLedger {
            manager,
            next_layout: 0,
            next_lease: 0,
            entries: BTreeMap::new(),
            shared: SharedBytes::default(),
            routes: RouteCache::default(),
        }
    }

    pub(crate) fn register(
        &mut self,
        layout: PhysicalLayout,
    ) -> Result<LayoutHandle, TransferError> {
        let same = self.entries.iter().find(|(_, e)| e.layout.is_same(&layout));
        if let Some((id, _)) = same {
            return Err(TransferError::Register(RegisterError::AlreadyRegistered {
                handle: self.handle(*id).to_string(),
            }));
        }
        let extents = extents(&layout);
        let newly_held = self.newly_shared(&extents)?;
        let blocks = BlockStates::new(&layout)?;
        let mine = self.claims_of(&layout, &extents);
        let mut claims = claims();
        let taken = claims.iter().find(|c| mine.iter().any(|m| m.excludes(c)));
        if let Some(taken) = taken {
            return Err(TransferError::Register(RegisterError::ManagedElsewhere {
                addr: taken.extent.start,
            }));
        }
        claims.extend(mine);
        drop(claims);
        self.shared.add_blocks(newly_held);
        let id = self.next_layout;
        self.next_layout += 1;
        let mut aliases = Vec::new();
        for (other, entry) in &mut self.entries {
            let touch = |e: &AddressExtent| entry.extents.iter().any(|o| o.overlaps(e));
            if extents.iter().any(touch) {
                entry.aliases.push(id);
                aliases.push(*other);
            }
        }
        self.entries.insert(
            id,
            RegisteredLayout {
                layout,
                extents,
                aliases,
                blocks,
                leases: 0,
            },
        );
        Ok(self.handle(id))
    }

    /// The held blocks of layouts that had no aliases and will share memory with a new layout over
    /// `extents`.
    fn newly_shared(
        &self,
        extents: &[AddressExtent],
    ) -> Result<Vec<(LayoutBlock, Vec<AddressExtent>)>, TransferError> {
        let mut held = Vec::new();
        for (id, entry) in &self.entries {
            let mut theirs = entry.extents.iter();
            let touches = theirs.any(|e| extents.iter().any(|o| o.overlaps(e)));
            if !touches || entry.leases == 0 || !entry.aliases.is_empty() {
                continue;
            }
            let layout = entry.layout.bound()?.layout();
            let blocks = entry.blocks.held_blocks();
            let bytes = extents_by_block(layout, &entry.extents, blocks)?;
            held.extend(bytes.into_iter().map(|(block, e)| ((*id, block), e)));
        }
        Ok(held)
    }

    /// The mode in which a block with shared bytes is held. A block with a written layer counts as
    /// written.
    fn held(&self, (layout, block): LayoutBlock) -> LeaseMode {
        let entry = self.entries.get(&layout);
        match entry.and_then(|entry| entry.blocks.held(block)) {
            Some(mode) => mode,
            None => broken(format_args!(
                "shared bytes of block {block} of layout {layout}, which is not held"
            )),
        }
    }

    pub(crate) fn unregister(
        &mut self,
        handle: LayoutHandle,
    ) -> Result<PhysicalLayout, TransferError> {
        let id = self.id(handle)?;
        let leases = self.entries.get(&id).map_or(0, |entry| entry.leases);
        if leases > 0 {
            return Err(TransferError::Register(RegisterError::LayoutInUse {
                handle: handle.to_string(),
                leases,
            }));
        }
        let Some(entry) = self.entries.remove(&id) else {
            return Err(unknown(handle));
        };
        self.routes.forget(handle);
        for other in self.entries.values_mut() {
            other.aliases.retain(|alias| *alias != id);
        }
        self.release_claims(&entry);
        Ok(entry.layout)
    }

    fn release_claims(&self, entry: &RegisteredLayout) {
        let mut claims = claims();
        for claim in self.claims_of(&entry.layout, &entry.extents) {
            if let Some(index) = claims.iter().position(|c| *c == claim) {
                claims.swap_remove(index);
            }
        }
    }

    fn claims_of(&self, layout: &PhysicalLayout, extents: &[AddressExtent]) -> Vec<MemoryClaim> {
        let regions = layout.memory_regions().iter();
        let claim = |(region, extent): (&OwnedMemoryRegion, &AddressExtent)| MemoryClaim {
            manager: self.manager,
            extent: *extent,
            writable: region.is_writable(),
        };
        regions.zip(extents).map(claim).collect()
    }

    pub(crate) fn layout(&self, handle: LayoutHandle) -> Result<&PhysicalLayout, TransferError> {
        let id = self.id(handle)?;
        self.entries
            .get(&id)
            .map(|entry| &entry.layout)
            .ok_or_else(|| unknown(handle))
    }

    /// Leases layers of `blocks`, all or none. The blocks are in range; a block may occur several
    /// times.
    pub(crate) fn lease(
        &mut self,
        LeaseSide { handle, layers }: LeaseSide<'_>,
        blocks: SideBlockIds<'_>,
        mode: LeaseMode,
    ) -> Result<LeaseTicket, TransferError> {
        let id = handle.layout;
        let lease = self.next_lease;
        let entry = match handle.manager == self.manager {
            true => self.entries.get(&id),
            false => None,
        };
        let entry = entry.ok_or_else(|| unknown(handle))?;
        entry.blocks.check(handle, blocks.clone(), layers, mode)?;
        if !entry.aliases.is_empty() {
            let mut distinct: Vec<u64> = blocks.clone().collect();
            distinct.sort_unstable();
            distinct.dedup();
            let strided = entry.layout.strided();
            let extents = block_extents(strided, &entry.extents, &distinct)?;
            let held = |block| self.held(block);
            self.shared.check(id, &extents, mode, held)?;
            self.shared.add(SharedLease {
                lease,
                layout: id,
                mode,
                extents,
            });
        }
        let entry = self.entries.get_mut(&id).ok_or_else(|| unknown(handle))?;
        entry.leases += 1;
        entry.blocks.take(blocks, layers, mode);
        self.next_lease += 1;
        Ok(LeaseTicket {
            lease,
            layout: id,
            layers: layers.clone(),
            mode,
        })
    }

    /// Leases both sides of a transfer, or none.
    pub(crate) fn lease_both(
        &mut self,
        [source, destination]: [LeaseSide<'_>; 2],
        pairs: &TransferPairs<'_>,
    ) -> Result<[LeaseTicket; 2], TransferError> {
        let meet = source.handle == destination.handle && source.layers.meets(destination.layers);
        let read = self.lease(source, pairs.sources(), LeaseMode::Read)?;
        match self.lease(destination, pairs.destinations(), LeaseMode::Write) {
            Ok(written) => Ok([read, written]),
            Err(error) => {
                self.release(&read, pairs.sources());
                let own = pairs.common().filter(|_| meet);
                Err(own.map_or(error, |block| {
                    TransferError::Lease(LeaseError::SameBlock { block })
                }))
            }
        }
    }

    /// Releases both sides of a transfer.
    pub(crate) fn release_both(&mut self, tickets: &[LeaseTicket; 2], pairs: &TransferPairs<'_>) {
        let [read, written] = tickets;
        self.release(read, pairs.sources());
        self.release(written, pairs.destinations());
    }

    pub(crate) fn release(&mut self, ticket: &LeaseTicket, blocks: SideBlockIds<'_>) {
        self.shared.remove(ticket.lease);
        let Some(entry) = self.entries.get_mut(&ticket.layout) else {
            broken(format_args!(
                "{ticket:?} of a layout that is not registered"
            ))
        };
        assert!(entry.leases > 0, "{ticket:?} of a layout without leases");
        entry.leases -= 1;
        let shared = &mut self.shared;
        let held = (&ticket.layers, ticket.mode);
        entry.blocks.give_back(blocks, held, |block| {
            shared.remove_block((ticket.layout, block));
        });
    }

    /// Panics where states, counts, aliases, leases and claims are inconsistent.
    #[cfg(test)]
    pub(crate) fn check_integrity(&self) {
        for (id, entry) in &self.entries {
            entry.blocks.check_integrity();
            let held = entry.blocks.held_blocks().next().is_some();
            assert!(!held || entry.leases > 0, "blocks held without a lease");
            for (other_id, other) in self.entries.iter().filter(|(other, _)| *other != id) {
                let mut mine = entry.extents.iter();
                let touch = mine.any(|e| other.extents.iter().any(|o| o.overlaps(e)));
                assert_eq!(
                    touch,
                    entry.aliases.contains(other_id),
                    "{id} and {other_id}"
                );
            }
            let shared = self.shared.leases().iter();
            let shared = shared.filter(|lease| lease.layout == *id);
            assert!(shared.count() <= entry.leases);
            let claims = claims();
            for claim in self.claims_of(&entry.layout, &entry.extents) {
                assert!(claims.contains(&claim), "memory without a claim");
            }
        }
        for key in self.routes.keys() {
            for handle in [key.source, key.destination] {
                assert!(self.id(handle).is_ok(), "a route without its layout");
            }
        }
        let mut held: Vec<(u64, LeaseMode, &Vec<AddressExtent>)> = Vec::new();
        for lease in self.shared.leases() {
            held.push((lease.layout, lease.mode, &lease.extents));
        }
        for (block, extents) in self.shared.blocks() {
            let mode = self.held(*block);
            held.push((block.0, mode, extents));
        }
        for (index, (layout, mode, extents)) in held.iter().enumerate() {
            assert!(self.entries.contains_key(layout));
            for (other, other_mode, others) in held.iter().skip(index + 1) {
                let exclusive = [*mode, *other_mode].contains(&LeaseMode::Write);
                let apart = layout == other || first_overlap(extents, others).is_none();
                assert!(apart || !exclusive, "two leases on the same bytes");
            }
        }
        let claimed = claims();
        let claimed = claimed.iter().filter(|claim| claim.manager == self.manager);
        let regions = self.entries.values().map(|entry| entry.extents.len());
        assert_eq!(
            claimed.count(),
            regions.sum::<usize>(),
            "claims without a layout"
        );
    }

    fn handle(&self, id: u64) -> LayoutHandle {
        LayoutHandle {
            manager: self.manager,
            layout: id,
        }
    }

    fn id(&self, handle: LayoutHandle) -> Result<u64, TransferError> {
        if handle.manager == self.manager && self.entries.contains_key(&handle.layout) {
            Ok(handle.layout)
        } else {
            Err(unknown(handle))
        }
    }
}

impl Drop for LeaseLedger {
    fn drop(&mut self) {
        claims().retain(|claim| claim.manager != self.manager);
    }
}

fn unknown(handle: LayoutHandle) -> TransferError {
    TransferError::Register(RegisterError::UnknownHandle {
        handle: handle.to_string(),
    })
}
