//! The errors of tiers and of the cache.

use std::{fmt, io, sync::Arc, time::Duration};

use kvtile_blocks::{BlockKey, BlocksError, events::TierId};
use kvtile_layout::{
    LayoutError, Shown,
    identity::{Difference, Fingerprint},
};
use kvtile_transfer::TransferError;
use thiserror::Error;

use crate::medium::{FoundInstead, LockHolder, NotLocal, NotPlain};

/// Why a tier or the cache refused an operation. Every message contains the values and a remedy.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum TierError {
    /// An error of a layout, of memory or of a transfer.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// An error of a pool or of the event log.
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
    /// The shape of the engine's layout does not match the identity.
    #[error("the layout is not of this identity: {difference}")]
    IdentityDiffers {
        /// The first field that differs.
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
    /// A storage order in which a block is not one contiguous range.
    #[error(
        "blocks are stored in one piece each, and in {layout} they are not; give a word that \
         begins with B"
    )]
    StorageNotContiguous {
        /// The layout.
        layout: String,
    },
    /// Host memory too small for one block.
    #[error("{host_bytes} bytes of host memory hold no block; give at least {needed_bytes}")]
    HostTooSmall {
        /// Bytes that were given.
        host_bytes: u64,
        /// Bytes that one block needs.
        needed_bytes: u64,
    },
    /// A recompute rate that is not a positive, finite number.
    #[error("{rate} tokens per second is not a rate; give a finite number above 0, or none")]
    RecomputeRate {
        /// The rate that was given.
        rate: f64,
    },
    /// A setting outside its range.
    #[error("{setting} is {value}; give {least} to {most}")]
    SettingOutOfRange {
        /// The setting.
        setting: &'static str,
        /// The value that was given.
        value: u64,
        /// The smallest allowed value.
        least: u64,
        /// The largest allowed value.
        most: u64,
    },
    /// The path of the disk tier's folder is empty.
    #[error("the path of the disk tier's folder is empty; give the path of a folder")]
    NoFolder,
    /// [`TierWrites::AfterUses`](crate::tier::TierWrites::AfterUses) with 0 uses.
    #[error("a block cannot be written after 0 uses; give `at_once`, or at least 1 use")]
    ZeroUses,
    /// The system refused to start a thread.
    #[error("cannot start a thread for the cache")]
    Thread {
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// More destinations than blocks in the match.
    #[error("{destinations} destinations for a match of {blocks} blocks")]
    TooManyDestinations {
        /// Destination ids that were given.
        destinations: usize,
        /// Blocks of the match.
        blocks: usize,
    },
    /// A block size that does not split into equal halves for keys and values.
    #[error(
        "blocks of {block_bytes} bytes do not have as many keys as values; give an even number"
    )]
    OddBlockBytes {
        /// Bytes of a block.
        block_bytes: u64,
    },
    /// The bytes of a loaded block differ from those that were stored.
    #[error("block {key} came back with other bytes than it was stored with")]
    WrongBytes {
        /// The key of the block.
        key: BlockKey,
    },
    /// A match that another cache returned.
    #[error("the match was found in another cache; look its keys up in this one")]
    OtherCache,
    /// Fewer keys than blocks to store.
    #[error(
        "{blocks} blocks from block {first} of the chain on, and only {keys} keys; give the keys \
         of the whole chain"
    )]
    TooFewKeys {
        /// Number of keys that were given.
        keys: usize,
        /// Index of the first block to store.
        first: usize,
        /// Number of blocks to store.
        blocks: usize,
    },
    /// A block id outside the engine's layout, or outside the other layout that was given.
    #[error("engine block {block} is not one of its {blocks}")]
    EngineBlockOutOfRange {
        /// The id.
        block: usize,
        /// Number of blocks of the layout.
        blocks: u64,
    },
    /// The same engine block twice in one list.
    #[error("engine block {block} is twice in one list")]
    EngineBlockTwice {
        /// The id.
        block: usize,
    },
    /// The queue is full. No job was queued; continue without the cache.
    #[error(
        "{waiting} of {capacity} jobs wait already; compute the blocks instead, or try again later"
    )]
    Busy {
        /// Jobs in the queue.
        waiting: usize,
        /// Capacity of the queue.
        capacity: usize,
    },
    /// A lease for a [`HostBlock`](crate::tier::HostBlock) that does not cover exactly one block.
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
    /// A tier did not complete an operation in time. The cache does not use the tier until a
    /// backoff has passed.
    #[error("the {tier} tier did not {operation} within {} ms", within.as_millis())]
    Late {
        /// The tier.
        tier: TierId,
        /// The operation.
        operation: &'static str,
        /// How long the cache waited.
        within: Duration,
    },
    /// A group that the tier does not store.
    #[error("the {tier} tier has no group {group}")]
    NoSuchGroup {
        /// The tier.
        tier: TierId,
        /// The group.
        group: u32,
    },
    /// A tier broke its contract: a bug of its implementation.
    #[error("the {tier} tier {what}; this is a defect of the tier")]
    TierBroken {
        /// The tier.
        tier: TierId,
        /// What it did wrong.
        what: &'static str,
    },
    /// The cache is closed.
    #[error("the cache is closed")]
    Closed,
    /// A tier that the cache does not have.
    #[error("this cache has no {tier} tier")]
    NoSuchTier {
        /// The tier.
        tier: TierId,
    },
    /// A component panicked: a medium, a clock, or kvtile itself. The process's log has the panic
    /// message.
    #[error("{what} panicked; the operation counts as failed")]
    Panicked {
        /// The component.
        what: &'static str,
    },
    /// The sync after a clear failed, so the erasures are not durable: a crash may restore some of
    /// the blocks.
    #[error("the cleared blocks are not yet erased durably on the disk: the sync failed")]
    NotDurable,
    /// Another process, or another store of this process, holds the lock of the folder.
    #[error("{folder} is in use{}", in_use(.holder))]
    InUse {
        /// The folder.
        folder: String,
        /// The process that holds the lock, as far as it is visible.
        holder: LockHolder,
    },
    /// A store is used in a forked child of the process that opened it.
    #[error(
        "the store was opened by process {opened_by}, and this is a child of it made by fork; open a \
         folder of its own in the child"
    )]
    Forked {
        /// The process that opened it.
        opened_by: u32,
    },
    /// A folder on a file system that is not known to be local. The folder is unchanged.
    #[error(
        "{folder} is on {file_system}, which is not known to be a local file system: its locks may be \
         unknown to other machines, and two caches would write over each other's blocks. Give a \
         folder on a disk of this machine (ext4, xfs, btrfs or another local file system)"
    )]
    NotLocal {
        /// The folder, or the file.
        folder: String,
        /// The name of the file system.
        file_system: String,
    },
    /// A folder with files that do not belong to a disk tier. The folder is unchanged.
    #[error("{folder} is no disk tier and holds {found:?}; give an empty folder or a new one")]
    ForeignFolder {
        /// The folder.
        folder: String,
        /// The first foreign file name.
        found: String,
    },
    /// An inspected folder contains no disk tier.
    #[error("{folder} is no disk tier: it has no manifest")]
    NotAStore {
        /// The folder.
        folder: String,
    },
    /// A folder that already holds a disk tier, where a new or an empty one is needed. It is
    /// unchanged.
    #[error("{folder} is a disk tier already; give a new or an empty folder")]
    AlreadyAStore {
        /// The folder.
        folder: String,
    },
    /// The target of a conversion is its source, or lies inside it. Nothing was written.
    #[error(
        "{target} is {source_folder} or lies in it, and a conversion only reads that; give another folder"
    )]
    TargetInSource {
        /// The target folder.
        target: String,
        /// The source folder.
        source_folder: String,
    },
    /// The order of the stored blocks matches none of the words that kvtile tries.
    #[error(
        "the blocks of {folder} lie in none of the {tried} orders that kvtile tries; give the word \
         that the cache stored them with (`--stored-layout`)"
    )]
    StoredOrderUnknown {
        /// The folder.
        folder: String,
        /// Number of words tried.
        tried: usize,
    },
    /// The order of the stored blocks differs from the given word.
    #[error(
        "the blocks of {folder} do not lie as {word} says: {difference}; give the word that the \
         cache stored them with"
    )]
    StoredOrderDiffers {
        /// The folder.
        folder: String,
        /// The word.
        word: String,
        /// The first part that differs: `ours` is of the word, `theirs` of the folder.
        difference: Box<Difference>,
    },
    /// A disk capacity too small for all blocks of a conversion. Nothing was written.
    #[error(
        "{capacity_bytes} bytes of disk are too few for {blocks} blocks; give at least {needed_bytes}"
    )]
    BlocksDoNotFit {
        /// The capacity given.
        capacity_bytes: u64,
        /// Number of blocks.
        blocks: u64,
        /// The smallest sufficient capacity.
        needed_bytes: u64,
    },
    /// A manifest that is damaged or not readable.
    #[error(
        "the manifest of {folder} cannot be used: {problem}; its blocks may belong to another \
         model, so clear the folder (`kvtile cache clear`)"
    )]
    ManifestDamaged {
        /// The folder.
        folder: String,
        /// What is wrong with the manifest.
        problem: String,
    },
    /// A folder in the format of an older or newer version of kvtile. The folder is unchanged.
    #[error(
        "{folder} has version {found} of the format on disk, and this kvtile reads version {ours}; \
         {}", version_advice(*found, *ours)
    )]
    FolderVersion {
        /// The folder.
        folder: String,
        /// The format version of the folder.
        found: u32,
        /// The format version that this kvtile reads and writes.
        ours: u32,
    },
    /// A folder that stores several groups of layers. The folder is unchanged.
    #[error(
        "{folder} keeps {groups} groups of layers, and this kvtile opens folders of one; use a newer kvtile"
    )]
    FolderGroups {
        /// The folder.
        folder: String,
        /// Number of groups in the folder.
        groups: usize,
    },
    /// A byte range of a block that does not coincide with whole pieces.
    #[error("bytes {start} to {end} of a block are no whole pieces; its pieces end at {ends:?}")]
    NoSuchPieces {
        /// The first byte.
        start: u64,
        /// The end of the range (exclusive).
        end: u64,
        /// The offsets at which the pieces of a block end.
        ends: Arc<[u64]>,
    },
    /// Ends of pieces that do not describe a valid cut of a block.
    #[error(
        "a block cannot be cut into pieces that end at {ends:?}; give 1 to {most} ends that ascend"
    )]
    Pieces {
        /// The ends that were given, in bytes.
        ends: Arc<[u64]>,
        /// The largest number of pieces of a block.
        most: usize,
    },
    /// A folder of another identity, layout or block size. The folder is unchanged.
    #[error("{folder} belongs to another cache: {difference}; give another folder or clear it")]
    FolderDiffers {
        /// The folder.
        folder: String,
        /// The first field that differs.
        difference: Difference,
    },
    /// A capacity too small to store even one block safely.
    #[error(
        "{capacity_bytes} bytes of disk are too few for blocks of {block_bytes} bytes; give at \
         least {needed_bytes}"
    )]
    CapacityTooSmall {
        /// The capacity given.
        capacity_bytes: u64,
        /// Bytes of a block.
        block_bytes: u64,
        /// The smallest sufficient capacity.
        needed_bytes: u64,
    },
    /// A capacity for more blocks than a disk tier can address.
    #[error(
        "{capacity_bytes} bytes of disk are more than {blocks_max} blocks of {block_bytes} bytes; \
         give at most {most_bytes}"
    )]
    CapacityTooLarge {
        /// The capacity given.
        capacity_bytes: u64,
        /// Bytes of a block.
        block_bytes: u64,
        /// The largest number of blocks.
        blocks_max: u32,
        /// The largest allowed capacity.
        most_bytes: u64,
    },
    /// A block size outside the range of a slot.
    #[error("blocks of {block_bytes} bytes cannot be stored; a block has 1 byte to 1 TiB")]
    BlockBytes {
        /// Bytes of a block.
        block_bytes: u64,
    },
    /// A slot index out of range.
    #[error("slot {slot} is not one of the {slots} slots")]
    SlotOutOfRange {
        /// The slot.
        slot: u32,
        /// Number of slots.
        slots: u32,
    },
    /// A write to a slot that holds a block or has a write in flight.
    #[error("slot {slot} holds a block; erase it before something else is written there")]
    SlotOccupied {
        /// The slot.
        slot: u32,
    },
    /// A buffer whose length is not that of one block.
    #[error("{found_bytes} bytes were given for a block of {block_bytes}")]
    WrongBlockBytes {
        /// Bytes of a block.
        block_bytes: u64,
        /// Bytes of the buffer.
        found_bytes: u64,
    },
    /// No slot is durably erased, because the syncs of the erasures failed.
    #[error(
        "no erased slot is left: earlier erasures are not on the disk ({failures} syncs failed)"
    )]
    NoErasedSlot {
        /// Syncs that failed since the folder was opened.
        failures: u64,
    },
    /// A sync failed while the write of the block was in flight, so the block may be lost.
    #[error("the disk failed a sync while slot {slot} was being written; write it again")]
    SyncFailedMeanwhile {
        /// The slot.
        slot: u32,
    },
    /// A file of an open folder, or the folder itself, was removed, replaced, truncated or
    /// overwritten. What the store writes to it does not outlive the process, and earlier durable
    /// blocks are lost too.
    #[error(
        "{file} {change} while the store had it open; nothing in it outlives this process. Close \
         the cache and open it again"
    )]
    FileGone {
        /// The file, or the folder.
        file: String,
        /// What happened to it.
        change: FileChange,
    },
    /// A file of the disk tier is not a plain file. It was not opened.
    #[error(
        "{file} is {found}; a disk tier opens only plain files of its own folder. Remove it, or give \
         another folder"
    )]
    NotAPlainFile {
        /// The file.
        file: String,
        /// The kind of file that was found.
        found: FoundInstead,
    },
    /// The disk is full, or a quota or file size limit is reached.
    #[error("no room to {operation} {file}")]
    DiskFull {
        /// The operation.
        operation: &'static str,
        /// The file.
        file: String,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// A file operation failed.
    #[error("cannot {operation} {file}")]
    File {
        /// The operation.
        operation: &'static str,
        /// The file or folder.
        file: String,
        /// The system's error.
        source: Arc<io::Error>,
    },
}

/// The part of the message that names the holder of the lock and a remedy.
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

/// What happened to a file that a store has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileChange {
    /// It was removed or renamed.
    Removed,
    /// Another file took its place.
    Replaced,
    /// It was truncated.
    Cut {
        /// Its length now, in bytes.
        length_bytes: u64,
    },
    /// Foreign bytes were written into it.
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
