//! The identity of a tier's blocks, and the groups of blocks that a tier stores.

use kvtile_layout::identity::{Identity, LayoutIdentity};

use super::BlockPieces;

/// The default order of stored blocks: layers outermost, so that the first layers of a block can be
/// read, verified and copied while the later ones are being read.
pub const STORAGE_WORD: &str = "BLHKNC";

/// Everything that must be equal before a block of a tier may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreIdentity {
    /// The meaning of a block's values.
    pub logical: Identity,
    /// The layout of one block ([`LayoutIdentity::of_block`]).
    pub block_layout: LayoutIdentity,
    /// The size of one block, and its pieces.
    pub pieces: BlockPieces,
}

impl StoreIdentity {
    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.pieces.block_bytes()
    }
}

/// One group of blocks of a tier: layers whose blocks have one size and one identity.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct TierGroup {
    /// The name of the group, unique within the tier: 1 to [`TierGroup::NAME_BYTES_MAX`] visible
    /// ASCII characters.
    pub name: String,
    /// The identity, the layout and the size of its blocks.
    pub identity: StoreIdentity,
    /// Its share of the capacity, relative to the sum of all shares. Groups without a share count 1
    /// on average; they divide that part so that each of them has the same number of blocks.
    pub share: Option<f64>,
    /// Whether other groups have blocks of the same keys, perhaps with an equal identity. A tier whose
    /// names of blocks outlive it, and that other caches use, adds the name of the group to them.
    pub shares_keys: bool,
    /// Whether no block has a parent, so that blocks come and go one by one.
    pub is_rootless: bool,
    /// Whether caches with other layers and heads of the model read its blocks, as parts of their own. A tier over a place
    /// where such readers look for announcements of parts makes them only then.
    pub has_part_readers: bool,
}

impl TierGroup {
    /// The longest name, in bytes.
    pub const NAME_BYTES_MAX: usize = 64;

    /// A group of chains, without a share, whose keys are its own, and which no cache reads in parts.
    #[must_use]
    pub fn new(name: impl Into<String>, identity: StoreIdentity) -> TierGroup {
        TierGroup {
            name: name.into(),
            identity,
            share: None,
            shares_keys: false,
            is_rootless: false,
            has_part_readers: false,
        }
    }

    /// Sets [`shares_keys`](Self::shares_keys).
    #[must_use]
    pub fn shares_keys(mut self, shares_keys: bool) -> TierGroup {
        self.shares_keys = shares_keys;
        self
    }

    /// Sets [`is_rootless`](Self::is_rootless).
    #[must_use]
    pub fn is_rootless(mut self, is_rootless: bool) -> TierGroup {
        self.is_rootless = is_rootless;
        self
    }

    /// Sets [`has_part_readers`](Self::has_part_readers).
    #[must_use]
    pub fn has_part_readers(mut self, has_part_readers: bool) -> TierGroup {
        self.has_part_readers = has_part_readers;
        self
    }

    /// Sets [`share`](Self::share).
    #[must_use]
    pub fn share(mut self, share: impl Into<Option<f64>>) -> TierGroup {
        self.share = share.into();
        self
    }

    /// Whether a group may have this name.
    pub(crate) fn is_name(name: &str) -> bool {
        (1..=TierGroup::NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_graphic())
    }
}
