//! What can go wrong in a tier.

use std::{fmt, io, sync::Arc, time::Duration};

use kvtile_blocks::{BlockKey, BlocksError, events::TierId};
use kvtile_layout::{
    LayoutError, Shown,
    identity::{Difference, Fingerprint},
};
use kvtile_transfer::TransferError;
use thiserror::Error;

use crate::medium::{FoundInstead, LockHolder, NotLocal, NotPlain};

/// Why a tier refused something. Every message names the values and what to do.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum TierError {
    /// What layouts and memory refuse.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// What pools and events refuse.
    #[error(transparent)]
    Blocks(#[from] BlocksError),
    /// A page size of keys that is not the identity's.
    #[error(
        "page_size is {given}, and blocks of this identity have {of_identity} tokens, so no cache would find the \
         keys; leave page_size out, or make the identity with page_size={given} (only the profile \"router\" has \
         pages of its own)"
    )]
    KeyPageSize {
        /// Tokens of a block that were given.
        given: usize,
        /// Tokens of a block of the identity.
        of_identity: usize,
    },
    /// The blocks of a layout are not of the identity that was given.
    #[error("the layout is not of this identity: {difference}")]
    IdentityDiffers {
        /// The first part that differs.
        difference: Difference,
    },
    /// The engine's layout was made for another identity.
    #[error(
        "the engine's layout was made for the identity {theirs}, the settings have {ours}; give \
         both the same"
    )]
    EngineDiffers {
        /// The fingerprint of the settings' identity.
        ours: Fingerprint,
        /// The fingerprint that the layout carries.
        theirs: Fingerprint,
    },
    /// A storage order whose blocks are not one piece each.
    #[error(
        "blocks are stored in one piece each, and in {layout} they are not; give a word that \
         begins with B"
    )]
    StorageNotContiguous {
        /// The layout.
        layout: String,
    },
    /// Host memory in which not even one block has room.
    #[error("{host_bytes} bytes of host memory hold no block; give at least {needed_bytes}")]
    HostTooSmall {
        /// What was given.
        host_bytes: u64,
        /// What one block needs.
        needed_bytes: u64,
    },
    /// A rate of computing that is no rate.
    #[error("{rate} tokens per second is no rate; give a number above 0, or none")]
    RecomputeRate {
        /// What was given.
        rate: f64,
    },
    /// A number of the settings outside its limits.
    #[error("{setting} is {value}; give {least} to {most}")]
    SettingOutOfRange {
        /// The setting.
        setting: &'static str,
        /// What was given.
        value: u64,
        /// The least that it may be.
        least: u64,
        /// The most that it may be.
        most: u64,
    },
    /// A disk tier whose folder has no name.
    #[error("the path of the disk tier's folder is empty; give the path of a folder")]
    NoFolder,
    /// Blocks that are to be written to disk after no use at all.
    #[error("0 uses is before a block is stored; say at once, or at least 1")]
    ZeroUses,
    /// A thread that the system does not give.
    #[error("no thread for the cache")]
    Thread {
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// More blocks to load than were found.
    #[error("{destinations} destinations for a match of {blocks} blocks")]
    TooManyDestinations {
        /// Ids that were given.
        destinations: usize,
        /// Blocks that were found.
        blocks: usize,
    },
    /// Blocks of keys and values that cannot be halved.
    #[error(
        "blocks of {block_bytes} bytes do not have as many keys as values; give an even number"
    )]
    OddBlockBytes {
        /// Bytes of a block.
        block_bytes: u64,
    },
    /// A block that came back is not what was stored.
    #[error("block {key} came back with other bytes than it was stored with")]
    WrongBytes {
        /// Its key.
        key: BlockKey,
    },
    /// A match of another cache.
    #[error("the match was found in another cache; look its keys up in this one")]
    OtherCache,
    /// Fewer keys than blocks to store.
    #[error(
        "{blocks} blocks from block {first} of the chain on, and only {keys} keys; give the keys \
         of the whole chain"
    )]
    TooFewKeys {
        /// Keys that were given.
        keys: usize,
        /// Index of the first block to store.
        first: usize,
        /// Blocks to store.
        blocks: usize,
    },
    /// A block id that the engine's layout, or another one that was given, does not have.
    #[error("engine block {block} is not one of its {blocks}")]
    EngineBlockOutOfRange {
        /// The id.
        block: usize,
        /// How many there are.
        blocks: u64,
    },
    /// The same engine block twice in one list.
    #[error("engine block {block} is twice in one list")]
    EngineBlockTwice {
        /// The id.
        block: usize,
    },
    /// No place in the queue. Nothing was begun; go on without the cache.
    #[error(
        "{waiting} of {capacity} jobs wait already; compute the blocks instead, or try again later"
    )]
    Busy {
        /// Jobs that wait.
        waiting: usize,
        /// Jobs that can wait.
        capacity: usize,
    },
    /// A batch of a tier over a lease of another number of blocks than one.
    #[error("a lease of {blocks} blocks was given for one block")]
    NotOneBlock {
        /// Blocks of the lease.
        blocks: usize,
    },
    /// Two tiers of one cache with the same name.
    #[error("two tiers are named {tier}; give each of them a name of its own")]
    TierTwice {
        /// The name.
        tier: TierId,
    },
    /// A tier that did not answer in time. It is left alone for a while.
    #[error("the {tier} tier did not {operation} within {} ms", within.as_millis())]
    Late {
        /// The tier.
        tier: TierId,
        /// What it was to do.
        operation: &'static str,
        /// How long the cache waited.
        within: Duration,
    },
    /// A group that a tier does not keep blocks of.
    #[error("the {tier} tier has no group {group}")]
    NoSuchGroup {
        /// The tier.
        tier: TierId,
        /// The number of the group.
        group: u32,
    },
    /// A tier broke its contract: a defect of its implementation.
    #[error("the {tier} tier {what}; this is a defect of the tier")]
    TierBroken {
        /// The tier.
        tier: TierId,
        /// What it did.
        what: &'static str,
    },
    /// The cache is being closed.
    #[error("the cache is closed")]
    Closed,
    /// A tier that the cache does not have.
    #[error("this cache has no {tier} tier")]
    NoSuchTier {
        /// The tier.
        tier: TierId,
    },
    /// A part of the cache panicked: a medium, a clock, or kvtile itself. The log of the process has what it
    /// said.
    #[error("{what} panicked; its outcome is taken for a failure")]
    Panicked {
        /// What did.
        what: &'static str,
    },
    /// The disk could not be brought to forget its blocks; a crash may bring some of them back.
    #[error("what was cleared is not yet erased on the disk; its sync failed")]
    NotDurable,
    /// Another process, or another part of this one, has the folder.
    #[error("{folder} is in use{}", in_use(.holder))]
    InUse {
        /// The folder.
        folder: String,
        /// The process that has it, as far as can be seen.
        holder: LockHolder,
    },
    /// A store that is used in a child of the process that opened it.
    #[error(
        "the store was opened by process {opened_by}, and this is a child of it made by fork; open a \
         folder of its own in the child"
    )]
    Forked {
        /// The process that opened it.
        opened_by: u32,
    },
    /// A folder on a file system that is not known to be local. Nothing was touched.
    #[error(
        "{folder} is on {file_system}, which is not known to be a local file system: its locks may be \
         unknown to other machines, and two caches would write over each other's blocks. Give a \
         folder on a disk of this machine (ext4, xfs, btrfs or another local file system)"
    )]
    NotLocal {
        /// The folder, or the file.
        folder: String,
        /// What the file system is called.
        file_system: String,
    },
    /// A folder with files that are not a disk tier's. Nothing was touched.
    #[error("{folder} is no disk tier and holds {found:?}; give an empty folder or a new one")]
    ForeignFolder {
        /// The folder.
        folder: String,
        /// The first name that is not one of ours.
        found: String,
    },
    /// A folder without a disk tier was to be looked into.
    #[error("{folder} is no disk tier: it has no manifest")]
    NotAStore {
        /// The folder.
        folder: String,
    },
    /// A disk tier where a new or an empty folder is needed. Nothing was touched.
    #[error("{folder} is a disk tier already; give a new or an empty folder")]
    AlreadyAStore {
        /// The folder.
        folder: String,
    },
    /// A conversion to the folder that it reads, or to one inside it. Nothing was touched.
    #[error(
        "{target} is {source_folder} or lies in it, and a conversion only reads that; give another folder"
    )]
    TargetInSource {
        /// The folder that is to be made.
        target: String,
        /// The folder that is read.
        source_folder: String,
    },
    /// Stored blocks whose order is none of those that are tried.
    #[error(
        "the blocks of {folder} lie in none of the {tried} orders that kvtile tries; give the word that the          cache stored them with (`--stored-layout`)"
    )]
    StoredOrderUnknown {
        /// The folder.
        folder: String,
        /// How many words were tried.
        tried: usize,
    },
    /// Stored blocks that do not lie as a word says.
    #[error(
        "the blocks of {folder} do not lie as {word} says: {difference}; give the word that the cache          stored them with"
    )]
    StoredOrderDiffers {
        /// The folder.
        folder: String,
        /// The word.
        word: String,
        /// The first part that differs: `ours` is the word's, `theirs` the folder's.
        difference: Box<Difference>,
    },
    /// A capacity in which not all blocks have room. Nothing was written.
    #[error(
        "{capacity_bytes} bytes of disk are too few for {blocks} blocks; give at least {needed_bytes}"
    )]
    BlocksDoNotFit {
        /// The capacity given.
        capacity_bytes: u64,
        /// How many blocks there are.
        blocks: u64,
        /// The least that would do.
        needed_bytes: u64,
    },
    /// A manifest that is not what was written.
    #[error(
        "the manifest of {folder} cannot be used: {problem}; its blocks cannot be told from those \
         of another model, so clear the folder (`kvtile cache clear`)"
    )]
    ManifestDamaged {
        /// The folder.
        folder: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A folder that an older or newer version of kvtile wrote. Nothing was touched.
    #[error(
        "{folder} has version {found} of the format on disk, and this kvtile reads version {ours}; \
         {}", version_advice(*found, *ours)
    )]
    FolderVersion {
        /// The folder.
        folder: String,
        /// Its version.
        found: u32,
        /// The version that is read and written.
        ours: u32,
    },
    /// A folder that keeps several groups of layers. Nothing was touched.
    #[error(
        "{folder} keeps {groups} groups of layers, and this kvtile opens folders of one; use a newer kvtile"
    )]
    FolderGroups {
        /// The folder.
        folder: String,
        /// How many it keeps.
        groups: usize,
    },
    /// A part of a block that is not made of whole pieces.
    #[error("bytes {start} to {end} of a block are no whole pieces; its pieces end at {ends:?}")]
    NoSuchPieces {
        /// The first byte.
        start: u64,
        /// The byte behind the last.
        end: u64,
        /// Where the pieces of a block end.
        ends: Arc<[u64]>,
    },
    /// Pieces that a block cannot be cut into.
    #[error(
        "a block cannot be cut into pieces that end at {ends:?}; give 1 to {most} ends that ascend"
    )]
    Pieces {
        /// The ends that were given, in bytes.
        ends: Arc<[u64]>,
        /// The most pieces of a block.
        most: usize,
    },
    /// A folder of another identity, layout or block size. Nothing was touched.
    #[error("{folder} belongs to another cache: {difference}; give another folder or clear it")]
    FolderDiffers {
        /// The folder.
        folder: String,
        /// The first field that differs.
        difference: Difference,
    },
    /// A capacity in which not even one block can be kept safely.
    #[error(
        "{capacity_bytes} bytes of disk are too few for blocks of {block_bytes} bytes; give at \
         least {needed_bytes}"
    )]
    CapacityTooSmall {
        /// The capacity given.
        capacity_bytes: u64,
        /// Bytes of a block.
        block_bytes: u64,
        /// The least that would do.
        needed_bytes: u64,
    },
    /// A capacity for more blocks than a disk tier counts.
    #[error(
        "{capacity_bytes} bytes of disk are more than {blocks_max} blocks of {block_bytes} bytes; \
         give at most {most_bytes}"
    )]
    CapacityTooLarge {
        /// The capacity given.
        capacity_bytes: u64,
        /// Bytes of a block.
        block_bytes: u64,
        /// The most blocks.
        blocks_max: u32,
        /// The most that would do.
        most_bytes: u64,
    },
    /// A block size that no slot can have.
    #[error("blocks of {block_bytes} bytes cannot be stored; a block has 1 byte to 1 TiB")]
    BlockBytes {
        /// Bytes of a block.
        block_bytes: u64,
    },
    /// A slot that the store does not have.
    #[error("slot {slot} is not one of the {slots} slots")]
    SlotOutOfRange {
        /// The slot.
        slot: u32,
        /// How many there are.
        slots: u32,
    },
    /// A write to a slot that holds a block, or is being written.
    #[error("slot {slot} holds a block; erase it before something else is written there")]
    SlotOccupied {
        /// The slot.
        slot: u32,
    },
    /// Bytes that are not one block.
    #[error("{found_bytes} bytes were given for a block of {block_bytes}")]
    WrongBlockBytes {
        /// Bytes of a block.
        block_bytes: u64,
        /// Bytes that were given.
        found_bytes: u64,
    },
    /// No slot is known to be erased on the disk, because the erasures could not be synced.
    #[error(
        "no erased slot is left: earlier erasures are not on the disk ({failures} syncs failed)"
    )]
    NoErasedSlot {
        /// Syncs that failed since the folder was opened.
        failures: u64,
    },
    /// A sync failed while the block was being written, and may have lost it.
    #[error("the disk failed a sync while slot {slot} was being written; write it again")]
    SyncFailedMeanwhile {
        /// The slot.
        slot: u32,
    },
    /// A file of an open folder, or the folder itself, is no longer what its name stands for: what is
    /// written to it is gone with the process, and so is what was durable before.
    #[error(
        "{file} {change} while the store had it open; nothing in it outlives this process. Close \
         the cache and open it again"
    )]
    FileGone {
        /// The file, or the folder.
        file: String,
        /// What became of it.
        change: FileChange,
    },
    /// Something else stands where a file of the disk tier belongs. It was not opened.
    #[error(
        "{file} is {found}; a disk tier opens only plain files of its own folder. Remove it, or give \
         another folder"
    )]
    NotAPlainFile {
        /// The file.
        file: String,
        /// What was found.
        found: FoundInstead,
    },
    /// The disk, a quota or a file size limit has no room.
    #[error("no room to {operation} {file}")]
    DiskFull {
        /// What was tried.
        operation: &'static str,
        /// The file.
        file: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A file operation failed.
    #[error("cannot {operation} {file}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        file: String,
        /// What the system said.
        source: Arc<io::Error>,
    },
}

/// By which process, and what to do.
fn in_use(holder: &LockHolder) -> String {
    let advice = "give each process a folder of its own, or stop that process";
    let named = |pid: u32| match &holder.program {
        Some(program) => format!("process {pid} ({})", Shown(program)),
        None => format!("process {pid}"),
    };
    match (holder.pid, holder.opened_by) {
        (Some(pid), Some(opened_by)) if pid != opened_by => format!(
            " by {}, which has it from process {opened_by}, which opened it; {advice}",
            named(pid)
        ),
        (Some(pid), _) => format!(" by {}; {advice}", named(pid)),
        (None, Some(opened_by)) => format!(
            " by a process that cannot be seen from here (another user's, or in another container); \
             its lock says that process {opened_by} opened it; {advice}"
        ),
        (None, None) => format!(" by a process that cannot be seen from here; {advice}"),
    }
}

/// What became of a file that a store has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileChange {
    /// It was removed or renamed.
    Removed,
    /// Another one was put in its place.
    Replaced,
    /// It was made shorter.
    Cut {
        /// Its length now, in bytes.
        length_bytes: u64,
    },
    /// Something else was written into it.
    Overwritten,
}

impl fmt::Display for FileChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FileChange::Removed => f.write_str("was removed or renamed"),
            FileChange::Replaced => f.write_str("was replaced by another one"),
            FileChange::Cut { length_bytes } => write!(f, "was cut to {length_bytes} bytes"),
            FileChange::Overwritten => f.write_str("was overwritten"),
        }
    }
}

impl From<LayoutError> for TierError {
    fn from(error: LayoutError) -> TierError {
        TierError::Transfer(error.into())
    }
}

impl TierError {
    pub(crate) fn thread(error: io::Error) -> TierError {
        let source = Arc::new(error);
        TierError::Thread { source }
    }

    pub(crate) fn file(operation: &'static str, file: String, error: io::Error) -> TierError {
        let inner = error.get_ref();
        if let Some(NotLocal { file_system }) = inner.and_then(|inner| inner.downcast_ref()) {
            return TierError::NotLocal {
                folder: file,
                file_system: file_system.clone(),
            };
        }
        if let Some(NotPlain { found }) = inner.and_then(|inner| inner.downcast_ref()) {
            let found = *found;
            return TierError::NotAPlainFile { file, found };
        }
        let full = [
            io::ErrorKind::StorageFull,
            io::ErrorKind::QuotaExceeded,
            io::ErrorKind::FileTooLarge,
        ];
        let is_full = full.contains(&error.kind());
        let source = Arc::new(error);
        if is_full {
            return TierError::DiskFull {
                operation,
                file,
                source,
            };
        }
        TierError::File {
            operation,
            file,
            source,
        }
    }
}

/// What to do about a folder of another version.
fn version_advice(found: u32, ours: u32) -> &'static str {
    match found < ours {
        true => "copy its blocks to a new folder with `kvtile cache convert`, or clear it",
        false => "use a newer kvtile, or another folder",
    }
}
