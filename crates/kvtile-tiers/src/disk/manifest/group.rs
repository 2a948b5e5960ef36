//! The manifest of one group: its identity, and the sizes of its blocks, records and slots.

use kvtile_layout::identity::{Difference, Fingerprint, Identity, LayoutIdentity};
use serde::{Deserialize, Serialize};

use super::super::{capacity, record::RecordForm};
use crate::{
    error::TierError,
    tier::{BlockPieces, StoreIdentity, TierGroup},
};

/// The manifest of one group: its blocks, and the sizes of the two files that store them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestGroup {
    /// Missing if the folder has one group, as in folders that versions without names wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    identity: Identity,
    identity_fingerprint: Fingerprint,
    block_layout: LayoutIdentity,
    block_layout_fingerprint: Fingerprint,
    block_bytes: u64,
    /// Where each piece of a block ends, in bytes.
    piece_ends: Vec<u64>,
    slot_bytes: u64,
    record_bytes: u64,
    slots: u32,
}

impl ManifestGroup {
    /// The manifest of a group without slots; `is_named` where the folder has several groups.
    pub(super) fn new(group: &TierGroup, is_named: bool) -> Result<ManifestGroup, TierError> {
        let identity = &group.identity;
        Ok(ManifestGroup {
            name: is_named.then(|| group.name.clone()),
            identity: identity.logical.clone(),
            identity_fingerprint: identity.logical.fingerprint(),
            block_layout: identity.block_layout.clone(),
            block_layout_fingerprint: identity.block_layout.fingerprint(),
            block_bytes: identity.block_bytes(),
            piece_ends: identity.pieces.ends().to_vec(),
            slot_bytes: capacity::slot_bytes(identity.block_bytes())?,
            record_bytes: RecordForm::of(&identity.pieces).stride(),
            slots: 0,
        })
    }

    /// Whether the numbers are consistent with each other.
    pub(super) fn is_sensible(&self) -> bool {
        let (Ok(pieces), Ok(slot_bytes)) = (
            BlockPieces::ending_at(&self.piece_ends),
            capacity::slot_bytes(self.block_bytes),
        ) else {
            return false;
        };
        pieces.block_bytes() == self.block_bytes
            && self.slot_bytes == slot_bytes
            && self.record_bytes == RecordForm::of(&pieces).stride()
            && (2..=capacity::SLOTS_MAX).contains(&self.slots)
            && slot_bytes.checked_mul(u64::from(self.slots)).is_some()
    }

    pub(super) fn resize(&mut self, slots: u32) {
        self.slots = slots;
    }

    /// The name of the group; `None` if it is the only group of its folder.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// What the values of a block mean.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The layout of one block.
    #[must_use]
    pub fn block_layout(&self) -> &LayoutIdentity {
        &self.block_layout
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.block_bytes
    }

    /// Bytes of one slot: a block, rounded up to pages.
    #[must_use]
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// Slots of the data file; a few of them are always erased.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Blocks that the group can hold.
    #[must_use]
    pub fn blocks_max(&self) -> u32 {
        self.slots - capacity::reserve(self.slots)
    }

    /// Bytes of all slots.
    pub(in super::super) fn data_bytes(&self) -> u64 {
        self.slot_bytes.saturating_mul(u64::from(self.slots))
    }

    /// How a block is cut into pieces. The manifest knows their bytes, not the layers behind them.
    pub(in super::super) fn pieces(&self) -> Result<BlockPieces, TierError> {
        BlockPieces::ending_at(&self.piece_ends)
    }

    /// Whether its blocks are cut into these pieces.
    pub(super) fn has_ends(&self, pieces: &BlockPieces) -> bool {
        pieces.ends() == self.piece_ends
    }

    /// The first field in which the group differs from `identity`.
    pub(super) fn first_difference(&self, identity: &StoreIdentity) -> Option<Difference> {
        let ends = identity.pieces.ends();
        let cut = (ends != self.piece_ends).then(|| {
            let (field, ours, theirs) = match identity.block_bytes() == self.block_bytes {
                true => (
                    "piece_ends",
                    format!("{ends:?}"),
                    format!("{:?}", self.piece_ends),
                ),
                false => (
                    "block_bytes",
                    identity.block_bytes().to_string(),
                    self.block_bytes.to_string(),
                ),
            };
            Difference {
                field: field.to_owned(),
                ours,
                theirs,
            }
        });
        let logical = identity.logical.first_difference(&self.identity);
        let layout = || identity.block_layout.first_difference(&self.block_layout);
        logical.or_else(layout).or(cut)
    }
}
