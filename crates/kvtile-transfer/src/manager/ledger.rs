//! The ledger: which layouts are registered, and who holds which of their blocks.
//!
//! A block is free, read by any number of leases, or written by one. Layouts of one manager may
//! share memory (groups of one engine do): a lease on a block of one then counts for every byte of
//! it in the others. Layouts of two managers may not share memory, since neither would see the
//! leases of the other.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use kvtile_layout::{CopyPlan, Selection, StridedLayout};
use kvtile_memory::StorageKind;

use super::{LayoutHandle, LeaseMode};
use crate::{error::TransferError, physical::PhysicalLayout};

/// Runs of a block list that are looked at to prove two layouts over one memory apart.
const RUNS_MAX: u64 = 1 << 22;

/// A block that is written by a lease; below it, the number of readers.
const WRITER: u32 = u32::MAX;

/// Addresses of memory, or offsets in the file with this descriptor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Extent {
    file: Option<u64>,
    start: u64,
    end: u64,
}

impl Extent {
    fn overlaps(&self, other: &Extent) -> bool {
        self.file == other.file && self.start < other.end && other.start < self.end
    }
}

/// Memory that managers have taken: manager and extent.
static CLAIMS: Mutex<Vec<(u64, Extent)>> = Mutex::new(Vec::new());

fn claims() -> MutexGuard<'static, Vec<(u64, Extent)>> {
    CLAIMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A registered layout.
struct Entry {
    layout: PhysicalLayout,
    extents: Vec<Extent>,
    /// Handles of layouts that share memory with it.
    aliases: Vec<u64>,
    blocks: Vec<u32>,
    leases: usize,
}

/// A lease on a layout that shares memory with others, byte by byte.
struct SharedLease {
    lease: u64,
    layout: u64,
    mode: LeaseMode,
    extents: Vec<Extent>,
}

/// See the module.
pub(crate) struct Ledger {
    manager: u64,
    next_layout: u64,
    next_lease: u64,
    entries: HashMap<u64, Entry>,
    shared: Vec<SharedLease>,
}

/// A lease as the ledger knows it: to be given back once.
#[derive(Debug)]
pub(crate) struct Ticket {
    lease: u64,
    layout: u64,
    blocks: Vec<u64>,
    mode: LeaseMode,
}

impl Ledger {
    pub(crate) fn new(manager: u64) -> Ledger {
        Ledger {
            manager,
            next_layout: 0,
            next_lease: 0,
            entries: HashMap::new(),
            shared: Vec::new(),
        }
    }

    pub(crate) fn register(
        &mut self,
        layout: PhysicalLayout,
    ) -> Result<LayoutHandle, TransferError> {
        let same = self.entries.iter().find(|(_, e)| e.layout.is_same(&layout));
        if let Some((id, _)) = same {
            return Err(TransferError::AlreadyRegistered {
                handle: self.handle(*id).to_string(),
            });
        }
        let extents = extents(&layout);
        let touches = |entry: &Entry| {
            let extents = extents.iter();
            extents
                .clone()
                .any(|e| entry.extents.iter().any(|o| o.overlaps(e)))
        };
        // Leases that exist do not know the bytes of the newcomer.
        let busy = self
            .entries
            .iter()
            .find(|(_, e)| e.leases > 0 && touches(e));
        if let Some((id, entry)) = busy {
            return Err(TransferError::LayoutInUse {
                handle: self.handle(*id).to_string(),
                leases: entry.leases,
            });
        }
        let mut claims = claims();
        let mut others = claims
            .iter()
            .filter(|(manager, _)| *manager != self.manager);
        if let Some((_, taken)) = others.find(|(_, c)| extents.iter().any(|e| e.overlaps(c))) {
            return Err(TransferError::ManagedElsewhere { addr: taken.start });
        }
        claims.extend(extents.iter().map(|extent| (self.manager, *extent)));
        drop(claims);
        let id = self.next_layout;
        self.next_layout += 1;
        let mut aliases = Vec::new();
        for (other, entry) in &mut self.entries {
            let touch = |e: &Extent| entry.extents.iter().any(|o| o.overlaps(e));
            if extents.iter().any(touch) {
                entry.aliases.push(id);
                aliases.push(*other);
            }
        }
        let blocks = usize::try_from(layout.shape().num_blocks()).unwrap_or(usize::MAX);
        self.entries.insert(
            id,
            Entry {
                layout,
                extents,
                aliases,
                blocks: vec![0; blocks],
                leases: 0,
            },
        );
        Ok(self.handle(id))
    }

    pub(crate) fn unregister(
        &mut self,
        handle: LayoutHandle,
    ) -> Result<PhysicalLayout, TransferError> {
        let id = self.id(handle)?;
        let leases = self.entries.get(&id).map_or(0, |entry| entry.leases);
        if leases > 0 {
            return Err(TransferError::LayoutInUse {
                handle: handle.to_string(),
                leases,
            });
        }
        let Some(entry) = self.entries.remove(&id) else {
            return Err(unknown(handle));
        };
        for other in self.entries.values_mut() {
            other.aliases.retain(|alias| *alias != id);
        }
        self.release_claims(&entry.extents);
        Ok(entry.layout)
    }

    fn release_claims(&self, extents: &[Extent]) {
        let mut claims = claims();
        for extent in extents {
            let mine = |c: &(u64, Extent)| *c == (self.manager, *extent);
            if let Some(index) = claims.iter().position(mine) {
                claims.swap_remove(index);
            }
        }
    }

    pub(crate) fn layout(&self, handle: LayoutHandle) -> Result<&PhysicalLayout, TransferError> {
        let id = self.id(handle)?;
        self.entries
            .get(&id)
            .map(|entry| &entry.layout)
            .ok_or_else(|| unknown(handle))
    }

    /// Takes `blocks` of `handle`, all or none. `blocks` are sorted, distinct and in range.
    pub(crate) fn lease(
        &mut self,
        handle: LayoutHandle,
        blocks: Vec<u64>,
        mode: LeaseMode,
    ) -> Result<Ticket, TransferError> {
        let id = self.id(handle)?;
        let lease = self.next_lease;
        let entry = self.entries.get(&id).ok_or_else(|| unknown(handle))?;
        for &block in &blocks {
            let state = at(&entry.blocks, block);
            let busy = match mode {
                LeaseMode::Read => state == WRITER,
                LeaseMode::Write => state != 0,
            };
            if busy {
                return Err(leased(handle, block, state == WRITER, mode));
            }
        }
        if !entry.aliases.is_empty() {
            let extents = block_extents(&entry.layout, &blocks)?;
            self.check_shared(id, &extents, mode)?;
            self.shared.push(SharedLease {
                lease,
                layout: id,
                mode,
                extents,
            });
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.leases += 1;
            for &block in &blocks {
                if let Some(state) = at_mut(&mut entry.blocks, block) {
                    *state = match mode {
                        LeaseMode::Read => state.saturating_add(1),
                        LeaseMode::Write => WRITER,
                    };
                }
            }
        }
        self.next_lease += 1;
        Ok(Ticket {
            lease,
            layout: id,
            blocks,
            mode,
        })
    }

    /// Refuses bytes that a lease on another layout over the same memory holds.
    fn check_shared(
        &self,
        id: u64,
        extents: &[Extent],
        mode: LeaseMode,
    ) -> Result<(), TransferError> {
        let others = self.shared.iter().filter(|other| other.layout != id);
        for other in others {
            if mode == LeaseMode::Read && other.mode == LeaseMode::Read {
                continue;
            }
            if let Some(addr) = first_overlap(extents, &other.extents) {
                return Err(TransferError::Overlap { addr });
            }
        }
        Ok(())
    }

    pub(crate) fn release(&mut self, ticket: &Ticket) {
        self.shared.retain(|lease| lease.lease != ticket.lease);
        let Some(entry) = self.entries.get_mut(&ticket.layout) else {
            return;
        };
        entry.leases = entry.leases.saturating_sub(1);
        for &block in &ticket.blocks {
            if let Some(state) = at_mut(&mut entry.blocks, block) {
                *state = match ticket.mode {
                    LeaseMode::Read => state.saturating_sub(1),
                    LeaseMode::Write => 0,
                };
            }
        }
    }

    /// Panics where states, counts and claims contradict each other.
    #[cfg(test)]
    pub(crate) fn check_integrity(&self) {
        for (id, entry) in &self.entries {
            let held = entry.blocks.iter().any(|state| *state != 0);
            assert!(!held || entry.leases > 0, "blocks held without a lease");
            for alias in &entry.aliases {
                let other = self.entries.get(alias);
                assert!(other.is_some_and(|other| other.aliases.contains(id)));
            }
        }
        for shared in &self.shared {
            assert!(
                self.entries
                    .get(&shared.layout)
                    .is_some_and(|e| e.leases > 0)
            );
        }
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

impl Drop for Ledger {
    fn drop(&mut self) {
        claims().retain(|(manager, _)| *manager != self.manager);
    }
}

fn unknown(handle: LayoutHandle) -> TransferError {
    TransferError::UnknownHandle {
        handle: handle.to_string(),
    }
}

fn leased(handle: LayoutHandle, block: u64, written: bool, mode: LeaseMode) -> TransferError {
    TransferError::BlockLeased {
        handle: handle.to_string(),
        block,
        held: if written {
            "being written"
        } else {
            "being read"
        },
        wanted: match mode {
            LeaseMode::Read => "read",
            LeaseMode::Write => "written",
        },
    }
}

fn at(blocks: &[u32], block: u64) -> u32 {
    let index = usize::try_from(block).unwrap_or(usize::MAX);
    blocks.get(index).copied().unwrap_or(0)
}

fn at_mut(blocks: &mut [u32], block: u64) -> Option<&mut u32> {
    blocks.get_mut(usize::try_from(block).unwrap_or(usize::MAX))
}

/// The extents of the regions of a layout; none for a remote one.
fn extents(layout: &PhysicalLayout) -> Vec<Extent> {
    let regions = layout.memory_regions().iter();
    regions
        .map(|region| Extent {
            file: match region.storage_kind() {
                StorageKind::Disk(descriptor) => Some(descriptor),
                _ => None,
            },
            start: region.addr() as u64,
            end: (region.addr() + region.size()) as u64,
        })
        .collect()
}

/// The bytes of `blocks`, exactly.
fn block_extents(layout: &PhysicalLayout, blocks: &[u64]) -> Result<Vec<Extent>, TransferError> {
    let strided = layout.strided();
    let shape = strided.shape().with_num_blocks(blocks.len() as u64)?;
    let canonical = StridedLayout::canonical(&shape)?;
    let ids: Vec<u64> = (0..blocks.len() as u64).collect();
    let selection = Selection::blocks(blocks, &ids, shape.page_size())?.in_source_order();
    let plan = CopyPlan::new(strided, &canonical, &selection)?;
    if plan.runs() > RUNS_MAX {
        return Err(TransferError::OverlapUnproved { runs: plan.runs() });
    }
    let regions = extents(layout);
    let mut found = Vec::new();
    plan.for_each_run(|source, _, bytes| {
        let region = usize::try_from(source.region).unwrap_or(usize::MAX);
        if let Some(region) = regions.get(region) {
            let start = region.start + source.offset;
            found.push(Extent {
                file: region.file,
                start,
                end: start + bytes,
            });
        }
    });
    found.sort_unstable();
    Ok(found)
}

/// The first byte that two sorted lists of extents share.
fn first_overlap(a: &[Extent], b: &[Extent]) -> Option<u64> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(first), Some(second)) = (a.peek(), b.peek()) {
        if first.overlaps(second) {
            return Some(first.start.max(second.start));
        }
        if (first.file, first.end) <= (second.file, second.end) {
            a.next();
        } else {
            b.next();
        }
    }
    None
}
