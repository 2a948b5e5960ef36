//! The errors of layouts, descriptors, transfers and saved caches.

use std::{ops::Range, path::PathBuf, sync::Arc};

use kvtile_layout::{
    LayoutError,
    identity::{Difference, Fingerprint},
};
use kvtile_memory::{MemType, MemoryError, StorageKind};
use thiserror::Error;

/// An error of binding a layout, of a descriptor, of a transfer or of a saved cache.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum TransferError {
    /// A layout, a selection or a plan was refused.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// Memory or a file failed.
    #[error(transparent)]
    Memory(Arc<MemoryError>),

    // Binding a layout to regions.
    /// The number of regions differs from the layout's.
    #[error("{given} regions for a layout of {needed}")]
    RegionCount {
        /// Regions given.
        given: usize,
        /// Regions of the layout.
        needed: usize,
    },
    /// A region is smaller than its part of the layout.
    #[error("region {region} has {have} bytes, the layout needs {need}")]
    RegionTooSmall {
        /// Index of the region.
        region: usize,
        /// Its size in bytes.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
    /// A region does not start at a multiple of the layout's alignment.
    #[error("region {region} starts at {addr:#x}, which is not a multiple of {alignment} bytes")]
    RegionMisaligned {
        /// Index of the region.
        region: usize,
        /// Its address, or its offset in a file.
        addr: u64,
        /// The alignment in bytes.
        alignment: u64,
    },
    /// Two regions of one layout share bytes.
    #[error(
        "regions {first} and {second} share bytes in {kind}; each region needs bytes of its own"
    )]
    RegionsOverlap {
        /// Index of one region.
        first: usize,
        /// Index of the other.
        second: usize,
        /// The kind of their storage.
        kind: StorageKind,
    },
    /// The regions of one layout are of different kinds.
    #[error("one layout over {first} and {second}; its regions must be of one kind")]
    MixedStorage {
        /// Kind of the first region.
        first: StorageKind,
        /// The other kind.
        second: StorageKind,
    },
    /// The CPU of this process cannot reach the memory.
    #[error("{kind} cannot be read or written by this process")]
    NotReachable {
        /// The kind.
        kind: StorageKind,
    },

    /// A region is not registered with the NIXL agent, or as another memory type than the first
    /// region.
    #[error("region {region} is not registered with agent {agent:?} like the others; register it")]
    NotRegistered {
        /// Index of the region.
        region: usize,
        /// Name of the agent.
        agent: String,
    },

    /// No layout config describes the layout. The layout is usable, but has no config, no
    /// traditional details and no [`Layout`](crate::Layout) view.
    #[error("no layout config describes this layout: {constraint}")]
    NoLayoutConfig {
        /// The constraint of a config that the layout does not meet.
        constraint: Box<LayoutError>,
    },

    // Descriptors.
    /// The text is not the JSON of a descriptor.
    #[error("not a layout descriptor: {problem}")]
    DescriptorSyntax {
        /// The parser's message.
        problem: String,
    },
    /// The descriptor has an unsupported version.
    #[error("descriptor version {version} is not supported; versions 1 to {supported} are")]
    DescriptorVersion {
        /// The version found.
        version: u32,
        /// The newest supported version; all versions from 1 on are supported.
        supported: u32,
    },
    /// The descriptor's text exceeds the length limit.
    #[error("a descriptor of {bytes} bytes; at most {max} are read")]
    DescriptorTooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A memory descriptor is empty or wraps around the address space.
    #[error("memory descriptor {index}: {size} bytes at {addr:#x} are not a valid address range")]
    DescriptorRange {
        /// Index of the memory descriptor.
        index: usize,
        /// Its address.
        addr: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// The location contradicts the NIXL memory type.
    #[error("location {location} contradicts NIXL memory type {mem_type:?}, device {device_id}")]
    DescriptorLocation {
        /// The location.
        location: StorageKind,
        /// The memory type.
        mem_type: MemType,
        /// The device id.
        device_id: u64,
    },

    // Transfers.
    /// The layout is remote and cannot be read or written. Its addresses and sizes can be computed;
    /// a transport reaches its memory.
    #[error(
        "this layout is remote (agent {agent:?}): its memory is in another process, and this one \
         cannot read or write it"
    )]
    RemoteLayout {
        /// Name of the agent that owns it.
        agent: String,
    },
    /// The handle belongs to another manager, or its layout was unregistered.
    #[error("layout handle {handle} is not registered here")]
    UnknownHandle {
        /// The handle.
        handle: String,
    },
    /// The layout has leased blocks and cannot be unregistered.
    #[error("{leases} leases are held on layout {handle}; wait for its transfers first")]
    LayoutInUse {
        /// The handle.
        handle: String,
        /// Number of leases.
        leases: usize,
    },
    /// The layout has more blocks than the ledger has memory for.
    #[error("not enough memory to track {blocks} blocks")]
    TooManyBlocks {
        /// Number of blocks.
        blocks: u64,
    },
    /// The layout is already registered.
    #[error("this layout is registered as {handle} already; use that handle")]
    AlreadyRegistered {
        /// Its handle.
        handle: String,
    },
    /// The memory belongs to a layout of another manager.
    #[error("memory at {addr:#x} belongs to a layout of another manager; register both in one")]
    ManagedElsewhere {
        /// Start of the region.
        addr: u64,
    },
    /// Source and destination hold the KV of different models.
    #[error("the source holds blocks of identity {from}, the destination of {to}")]
    LogicalDiffers {
        /// Logical fingerprint of the source.
        from: Fingerprint,
        /// Logical fingerprint of the destination.
        to: Fingerprint,
    },
    /// The same block is source and destination.
    #[error("block {block} is both read and written; copy to other blocks")]
    SameBlock {
        /// The block.
        block: u64,
    },
    /// Another lease holds the block, or some of its layers.
    #[error("block {block} of layout {handle} is {held}; wait for it before it is {wanted}")]
    BlockLeased {
        /// The handle.
        handle: String,
        /// The block.
        block: u64,
        /// `being written` or `being read`.
        held: &'static str,
        /// `read` or `written`.
        wanted: &'static str,
    },
    /// The lease does not hold the requested block.
    #[error("block {block} of layout {handle} is not part of this lease")]
    NotLeased {
        /// The handle.
        handle: String,
        /// The block.
        block: u64,
    },
    /// The lease holds the block, but not the requested layer.
    #[error(
        "layer {layer} of block {block} of layout {handle} is not part of this lease, which holds layers {layers:?}"
    )]
    LayerNotLeased {
        /// The handle.
        handle: String,
        /// The block.
        block: u64,
        /// The requested layer.
        layer: u64,
        /// The layers of the lease.
        layers: Range<u64>,
    },
    /// The lease holds only some layers, and the whole block was requested.
    #[error(
        "this lease holds layers {layers:?} of the {num_layers} of block {block} of layout {handle}, \
         and the whole block was requested"
    )]
    BlockPartlyLeased {
        /// The handle.
        handle: String,
        /// The block.
        block: u64,
        /// The layers of the lease.
        layers: Range<u64>,
        /// Layers of the layout.
        num_layers: u64,
    },
    /// A slice of shared memory was requested.
    #[error(
        "blocks in shared memory cannot be lent as slices, because another process may change \
         them; copy them to memory of this process first"
    )]
    SharedPages,
    /// A whole-block copy between pages of different sizes. A
    /// [`Selection::sequence`](kvtile_layout::Selection::sequence) copies by token position
    /// instead.
    #[error(
        "pages of {source_page_size} tokens into pages of {destination_page_size}: whole blocks are \
         copied between pages of one size; specify the tokens of each block"
    )]
    PageSizesDiffer {
        /// Tokens a block of the source.
        source_page_size: u64,
        /// Tokens a block of the destination.
        destination_page_size: u64,
    },
    /// A token range in the options of a selection. The selection's block pairs have token ranges
    /// of their own.
    #[error("a token range beside a selection: its block pairs specify the tokens; change them")]
    TokensOfSelection,
    /// Source and destination share bytes.
    #[error("source and destination share bytes at {addr:#x}; copy through other blocks")]
    Overlap {
        /// Address, or file offset, of a shared byte.
        addr: u64,
    },
    /// Both layouts lie over the same memory, and the transfer has too many runs to prove that they
    /// share no bytes.
    #[error(
        "source and destination share memory, and {runs} runs are too many to check for overlap"
    )]
    OverlapUnproved {
        /// Number of runs.
        runs: u64,
    },
    /// The memory or file is read-only.
    #[error("the destination is read-only")]
    ReadOnly,
    /// The verification after the copy found a difference.
    #[error("destination block {block} differs from its source after the copy")]
    VerifyFailed {
        /// The destination block.
        block: u64,
    },
    /// The transfer has no such layer.
    #[error("layer {layer} is not among the {layers} layers of this transfer")]
    NoSuchLayer {
        /// The requested layer, counted from the first of the transfer.
        layer: usize,
        /// Layers of the transfer.
        layers: usize,
    },
    /// A plan reaches outside the regions that it was made for. This is a defect; executors check
    /// for it nevertheless.
    #[error("a plan reaches outside region {region}; this is a defect of kvtile")]
    OutsidePlan {
        /// The region.
        region: u64,
    },
    /// A part of a transfer is missing. This is a defect; it ends the transfer and leaves its
    /// destination blocks undefined.
    #[error("{what} {index} of a transfer is missing; this is a defect of kvtile")]
    Missing {
        /// The missing part.
        what: &'static str,
        /// Its index.
        index: u64,
    },
    /// A worker thread panicked. This is a defect.
    #[error(
        "a transfer panicked; the destination blocks are undefined; this is a defect of kvtile"
    )]
    Panicked,
    /// A transfer thread could not be started.
    #[error("a transfer thread could not be started: {problem}")]
    NoThread {
        /// The system's error message.
        problem: String,
    },

    // Saved caches.
    /// The system refused an operation on a file or folder.
    #[error("cannot {operation} {path}: {source}", path = path.display())]
    File {
        /// The operation.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: Arc<std::io::Error>,
    },
    /// The file is not a saved cache.
    #[error("not a saved cache: {problem}")]
    NotASavedCache {
        /// The problem.
        problem: String,
    },
    /// The header exceeds its limit; notes, planes and regions make it long.
    #[error(
        "the header of the saved cache would have {bytes} bytes, most of them notes, and {bytes_max} are allowed; \
         give shorter notes, or save fewer blocks to a file"
    )]
    HeaderTooLong {
        /// Bytes of the header.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// More tokens than the blocks to be saved can hold.
    #[error("{tokens} tokens do not fit {blocks} blocks of {page_size} tokens")]
    TooManyTokens {
        /// Tokens that the caller specified.
        tokens: u64,
        /// Number of blocks.
        blocks: u64,
        /// Tokens a block.
        page_size: u64,
    },
    /// The contents of a saved cache are not what the writer wrote.
    #[error("the saved cache is damaged: {problem}")]
    Damaged {
        /// The problem.
        problem: String,
    },
    /// The bytes of a saved block do not match their checksum. The block is a miss and is never
    /// served.
    #[error(
        "saved block {block} fails its checksum: stored {stored:016x}, computed {computed:016x}"
    )]
    ChecksumMismatch {
        /// The block.
        block: u64,
        /// The checksum in the file.
        stored: u64,
        /// The checksum of the bytes.
        computed: u64,
    },
    /// The saved cache belongs to another model, or to another shard.
    #[error("the saved cache is for another model: {0}")]
    IdentityDiffers(Difference),
}

impl From<MemoryError> for TransferError {
    fn from(error: MemoryError) -> TransferError {
        TransferError::Memory(Arc::new(error))
    }
}
