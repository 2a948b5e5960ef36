//! Held bytes of layouts that share memory. Through them, a lease on one layout counts for the
//! others.
//!
//! A lease that is taken while its layout shares memory adds its bytes here. An earlier lease does
//! not. When a new layout is registered over its memory, the ledger adds the bytes of each block
//! that is held at that time. The check queries the ledger for the current mode of such a block.
//! The bytes are removed when the block is free.
//!
//! A lease of some layers counts for all bytes of its blocks here: a block with a written layer
//! counts as written. This may refuse a lease that a check of single bytes would grant, but never
//! grants a conflicting one.

use std::collections::BTreeMap;

use super::{
    super::extent::{AddressExtent, first_overlap},
    LeaseMode,
};
use crate::error::{CopyError, TransferError};

/// A lease that was taken while its layout shared memory.
pub(super) struct SharedLease {
    pub(super) lease: u64,
    pub(super) layout: u64,
    pub(super) mode: LeaseMode,
    pub(super) extents: Vec<AddressExtent>,
}

/// A layout and a block of it.
pub(super) type LayoutBlock = (u64, u64);

/// The held bytes of layouts that share memory.
#[derive(Default)]
pub(super) struct SharedBytes {
    leases: Vec<SharedLease>,
    blocks: BTreeMap<LayoutBlock, Vec<AddressExtent>>,
}

impl SharedBytes {
    /// Refuses bytes that are held through a layout other than `id`. `mode_of` returns the mode in
    /// which a block is held.
    pub(super) fn check(
        &self,
        id: u64,
        extents: &[AddressExtent],
        mode: LeaseMode,
        mode_of: impl Fn(LayoutBlock) -> LeaseMode,
    ) -> Result<(), TransferError> {
        let both_read = |held: LeaseMode| (mode, held) == (LeaseMode::Read, LeaseMode::Read);
        let leases = self.leases.iter();
        let leases = leases.filter(|held| held.layout != id && !both_read(held.mode));
        let leased = leases.map(|held| &held.extents);
        let blocks = self
            .blocks
            .iter()
            .filter(|(block, _)| block.0 != id && !both_read(mode_of(**block)));
        let mut held = leased.chain(blocks.map(|(_, extents)| extents));
        match held.find_map(|held| first_overlap(extents, held)) {
            None => Ok(()),
            Some(addr) => Err(TransferError::Copy(CopyError::Overlap { addr })),
        }
    }

    pub(super) fn add(&mut self, lease: SharedLease) {
        self.leases.push(lease);
    }

    /// Adds held blocks, each with its bytes.
    pub(super) fn add_blocks(&mut self, blocks: Vec<(LayoutBlock, Vec<AddressExtent>)>) {
        self.blocks.extend(blocks);
    }

    /// Removes the bytes of a lease that has ended.
    pub(super) fn remove(&mut self, lease: u64) {
        self.leases.retain(|held| held.lease != lease);
    }

    /// Removes the bytes of a block that is free.
    pub(super) fn remove_block(&mut self, block: LayoutBlock) {
        self.blocks.remove(&block);
    }

    #[cfg(test)]
    pub(super) fn leases(&self) -> &[SharedLease] {
        &self.leases
    }

    #[cfg(test)]
    pub(super) fn blocks(&self) -> impl Iterator<Item = (&LayoutBlock, &Vec<AddressExtent>)> {
        self.blocks.iter()
    }
}
