//! What a cache and a block store open alike: storage for blocks, and the tiers.

use std::sync::Arc;

use kvtile_blocks::events::TierId;
use kvtile_layout::{LayoutError, Shape, Word, identity::Identity, tradition::LayoutSpec};
use kvtile_memory::{OwnedMemoryRegion, Prefault};
use kvtile_transfer::PhysicalLayout;

use crate::{
    below::TendedTier,
    disk::{DiskSettings, DiskTier, medium::Medium},
    error::{MismatchError, SettingsError, TierError},
    tier::{STORAGE_WORD, TierContext, TierOpener, TierSettings},
};

/// Alignment of blocks in host memory, for direct I/O.
pub(crate) const ALIGNMENT: u64 = 4096;

/// Refuses a layout whose shape does not match the identity.
pub(crate) fn check_identity(
    identity: &Identity,
    engine: &PhysicalLayout,
) -> Result<(), TierError> {
    check_shape(identity, engine.shape())?;
    match engine.logical_fingerprint() {
        Some(theirs) if theirs != identity.fingerprint() => {
            Err(TierError::Mismatch(MismatchError::EngineDiffers {
                ours: identity.fingerprint(),
                theirs,
            }))
        }
        _ => Ok(()),
    }
}

/// Refuses a shape that does not match the identity.
pub(crate) fn check_shape(identity: &Identity, shape: &Shape) -> Result<(), TierError> {
    match identity.difference_to_shape(shape)? {
        Some(difference) => Err(TierError::Mismatch(MismatchError::IdentityDiffers {
            difference,
        })),
        None => Ok(()),
    }
}

/// Where storage lies.
pub(crate) enum StorageMemory {
    /// New memory of this process.
    Own(Prefault),
    /// New memory of this process that the device of this layout reaches.
    ForDeviceOf(PhysicalLayout),
    /// New memory that other processes may map for reading.
    ForReaders(Prefault),
    /// New memory that another process may map.
    Shared,
    /// Memory that exists.
    Over(OwnedMemoryRegion),
}

/// Makes storage for the blocks of `shape`, each one contiguous range in the order `word`
/// (default: [`STORAGE_WORD`]).
pub(crate) fn storage(
    shape: Shape,
    identity: &Identity,
    word: Option<&Word>,
    memory: StorageMemory,
) -> Result<PhysicalLayout, TierError> {
    let word = match word {
        Some(word) => word.clone(),
        None => Word::parse(STORAGE_WORD).map_err(LayoutError::from)?,
    };
    let storage = PhysicalLayout::builder()
        .with_aligned_shape(shape, ALIGNMENT)
        .with_logical_fingerprint(identity.fingerprint())
        .layout(LayoutSpec::Word(word));
    let storage = match memory {
        StorageMemory::Own(prefault) => storage.allocate_system_with(prefault),
        StorageMemory::ForDeviceOf(engine) => match engine.device() {
            Some(device) => storage.allocate_registered(device),
            None => storage.allocate_system(),
        },
        StorageMemory::ForReaders(prefault) => storage.allocate_shared_for_readers(prefault),
        StorageMemory::Shared => storage.allocate_shared(),
        StorageMemory::Over(memory) => storage.over_memory(memory),
    };
    let storage = storage.build()?;
    if !storage.strided().blocks_are_contiguous() {
        return Err(TierError::Settings(SettingsError::StorageNotContiguous {
            layout: storage.strided().describe(),
        }));
    }
    Ok(storage)
}

/// Opens the tiers below host memory, in order.
pub(crate) fn open_below<K>(
    disk: Option<&DiskSettings>,
    medium: Option<Arc<dyn Medium>>,
    tiers: Vec<(TierSettings, TierOpener)>,
    context: &TierContext,
) -> Result<Vec<TendedTier<K>>, TierError> {
    let mut below: Vec<TendedTier<K>> = Vec::new();
    if let Some(disk) = disk {
        let tier = match medium {
            Some(medium) => DiskTier::open_on(medium, disk, context)?,
            None => DiskTier::open(disk, context)?,
        };
        below.push(TendedTier::new(Arc::new(tier), disk.tier()));
    }
    for (settings, open) in tiers {
        settings.check()?;
        let tier = open(context)?;
        let id = tier.id();
        let known = [TierId::DEVICE, TierId::HOST];
        if known.contains(&id) || below.iter().any(|below| below.id == id) {
            return Err(TierError::Settings(SettingsError::TierTwice { tier: id }));
        }
        let abilities = tier.abilities();
        if abilities.reads_pieces && !abilities.verifies {
            return Err(TierError::Settings(SettingsError::PiecesNotVerified {
                tier: id,
            }));
        }
        below.push(TendedTier::new(tier, settings));
    }
    Ok(below)
}
