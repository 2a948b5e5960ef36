//! What can go wrong between a layout and its memory.

use std::{ops::Range, path::PathBuf, sync::Arc};

use kvtile_layout::{
    LayoutError,
    identity::{Difference, Fingerprint},
};
use kvtile_memory::{MemType, MemoryError, StorageKind};
use thiserror::Error;

/// Why a layout was not bound, a descriptor not taken, a transfer not done or a file not served.
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
    /// As many regions are needed as the layout has.
    #[error("{given} regions for a layout of {needed}")]
    RegionCount {
        /// Regions given.
        given: usize,
        /// Regions of the layout.
        needed: usize,
    },
    /// A region that cannot hold its part of the layout.
    #[error("region {region} has {have} bytes, the layout needs {need}")]
    RegionTooSmall {
        /// Index of the region.
        region: usize,
        /// Its size in bytes.
        have: u64,
        /// Bytes needed.
        need: u64,
    },
    /// A region that does not start at a multiple of the layout's alignment.
    #[error("region {region} starts at {addr:#x}, which is no multiple of {alignment} bytes")]
    RegionMisaligned {
        /// Index of the region.
        region: usize,
        /// Its address, or its offset in a file.
        addr: u64,
        /// The alignment in bytes.
        alignment: u64,
    },
    /// Two regions of one layout that share bytes.
    #[error(
        "regions {first} and {second} share bytes in {kind}; each region is a place of its own"
    )]
    RegionsOverlap {
        /// Index of a region.
        first: usize,
        /// Index of another.
        second: usize,
        /// Where they are.
        kind: StorageKind,
    },
    /// Regions of different kinds in one layout.
    #[error("one layout over {first} and {second}; its regions must be of one kind")]
    MixedStorage {
        /// Kind of the first region.
        first: StorageKind,
        /// The other kind.
        second: StorageKind,
    },
    /// Memory that the CPU of this process cannot reach.
    #[error("{kind} cannot be read or written by this process")]
    NotReachable {
        /// The kind.
        kind: StorageKind,
    },

    /// A region that the NIXL agent does not know, or knows as other memory than the first.
    #[error("region {region} is not registered with agent {agent:?} like the others; register it")]
    NotRegistered {
        /// Index of the region.
        region: usize,
        /// Name of the agent.
        agent: String,
    },

    /// A layout that no layout config describes: it can be used, and it has no config, no details of the tradition
    /// and no [`Layout`](crate::Layout) view.
    #[error("no layout config describes this layout: {constraint}")]
    NoLayoutConfig {
        /// The constraint of a config that the layout does not meet.
        constraint: Box<LayoutError>,
    },

    // Descriptors.
    /// Text that is not the JSON of a descriptor.
    #[error("not a layout descriptor: {problem}")]
    DescriptorSyntax {
        /// What the parser said.
        problem: String,
    },
    /// A descriptor of another version.
    #[error("descriptor version {version} is not understood; versions up to {supported} are")]
    DescriptorVersion {
        /// The version found.
        version: u32,
        /// The newest version understood; all from 1 on are.
        supported: u32,
    },
    /// A descriptor that is too long to be one.
    #[error("a descriptor of {bytes} bytes; at most {max} are read")]
    DescriptorTooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// A memory descriptor that wraps around the address space, or is empty.
    #[error("memory descriptor {index}: {size} bytes at {addr:#x} are no range of addresses")]
    DescriptorRange {
        /// Index of the memory descriptor.
        index: usize,
        /// Its address.
        addr: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// A location that contradicts the memory type that NIXL was told.
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
    /// A remote layout whose bytes were to be read or written. Its addresses and sizes can be
    /// computed; reaching them is the work of a transport.
    #[error(
        "this layout is remote (agent {agent:?}): its memory is in another process, and this one \
         cannot read or write it"
    )]
    RemoteLayout {
        /// Name of the agent that owns it.
        agent: String,
    },
    /// A handle of another manager, or of a layout that was unregistered.
    #[error("layout handle {handle} is not registered here")]
    UnknownHandle {
        /// The handle.
        handle: String,
    },
    /// A layout that cannot be unregistered while its blocks are leased.
    #[error("{leases} leases are held on layout {handle}; wait for its transfers first")]
    LayoutInUse {
        /// The handle.
        handle: String,
        /// Number of leases.
        leases: usize,
    },
    /// A layout with more blocks than can be kept account of.
    #[error("no memory to keep account of {blocks} blocks")]
    TooManyBlocks {
        /// Number of blocks.
        blocks: u64,
    },
    /// A layout that is registered already.
    #[error("this layout is registered as {handle} already; use that handle")]
    AlreadyRegistered {
        /// Its handle.
        handle: String,
    },
    /// Memory under the leases of another manager.
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
    /// The same block as source and destination.
    #[error("block {block} is both read and written; copy to other blocks")]
    SameBlock {
        /// The block.
        block: u64,
    },
    /// A block that another lease holds, or some of whose layers it does.
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
    /// A block whose bytes were asked for without a lease on it.
    #[error("block {block} of layout {handle} is not part of this lease")]
    NotLeased {
        /// The handle.
        handle: String,
        /// The block.
        block: u64,
    },
    /// A layer whose bytes were asked for under a lease that holds other layers of the block.
    #[error(
        "layer {layer} of block {block} of layout {handle} is not part of this lease, which holds layers {layers:?}"
    )]
    LayerNotLeased {
        /// The handle.
        handle: String,
        /// The block.
        block: u64,
        /// The layer asked for.
        layer: u64,
        /// The layers of the lease.
        layers: Range<u64>,
    },
    /// All bytes of a block that were asked for under a lease that holds some of its layers.
    #[error(
        "this lease holds layers {layers:?} of the {num_layers} of block {block} of layout {handle}, \
         and the whole block was asked for"
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
    /// Bytes of shared memory that were asked for as a slice.
    #[error(
        "blocks in shared memory cannot be lent as slices, because another process may change \
         them; copy them to memory of this process first"
    )]
    SharedPages,
    /// Whole blocks between pages of different sizes. A
    /// [`Selection::sequence`](kvtile_layout::Selection::sequence) goes through both.
    #[error(
        "pages of {source_page_size} tokens into pages of {destination_page_size}: whole blocks are \
         copied between pages of one size; say which tokens of each block"
    )]
    PageSizesDiffer {
        /// Tokens a block of the source.
        source_page_size: u64,
        /// Tokens a block of the destination.
        destination_page_size: u64,
    },
    /// A token range beside a selection, whose block pairs have their own.
    #[error("a token range beside a selection: its block pairs say which tokens; change them")]
    TokensOfSelection,
    /// Source and destination that share bytes.
    #[error("source and destination share bytes at {addr:#x}; copy through other blocks")]
    Overlap {
        /// Address, or file offset, of a shared byte.
        addr: u64,
    },
    /// Layouts over the same memory whose transfer has too many pieces to prove apart.
    #[error("source and destination share memory, and {runs} runs are too many to prove apart")]
    OverlapUnproved {
        /// Number of runs.
        runs: u64,
    },
    /// Memory or a file that may not be written.
    #[error("the destination is read-only")]
    ReadOnly,
    /// The copy was verified and is not equal.
    #[error("destination block {block} differs from its source after the copy")]
    VerifyFailed {
        /// The destination block.
        block: u64,
    },
    /// A layer that the transfer does not have.
    #[error("layer {layer} is not among the {layers} layers of this transfer")]
    NoSuchLayer {
        /// The layer asked for, counted from the first of the transfer.
        layer: usize,
        /// Layers of the transfer.
        layers: usize,
    },
    /// A plan reached outside the regions it was made for. Never happens; checked all the same.
    #[error("a plan reaches outside region {region}; this is a defect of kvtile")]
    OutsidePlan {
        /// The region.
        region: u64,
    },
    /// Something is not where a transfer put it. Never happens; it ends the transfer, whose destination
    /// blocks are undefined then.
    #[error("{what} {index} of a transfer is missing; this is a defect of kvtile")]
    Missing {
        /// What is missing.
        what: &'static str,
        /// Its number.
        index: u64,
    },
    /// The worker panicked. Never happens; reported all the same.
    #[error(
        "a transfer panicked; the destination blocks are undefined; this is a defect of kvtile"
    )]
    Panicked,
    /// The transfer threads could not be started.
    #[error("a transfer thread could not be started: {problem}")]
    NoThread {
        /// What the system said.
        problem: String,
    },

    // Saved caches.
    /// A file or folder that the system would not handle.
    #[error("cannot {operation} {path}: {source}", path = path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: Arc<std::io::Error>,
    },
    /// A file that is not a saved cache.
    #[error("not a saved cache: {problem}")]
    NotASavedCache {
        /// What is wrong.
        problem: String,
    },
    /// Notes, planes and regions that make a longer header than a saved cache may have.
    #[error(
        "the header of the saved cache would have {bytes} bytes, most of them notes, and {bytes_max} are allowed; \
         give shorter notes, or save fewer blocks to a file"
    )]
    HeaderTooLong {
        /// Bytes of the header.
        bytes: u64,
        /// The most that it may have.
        bytes_max: u64,
    },
    /// More tokens than the blocks hold that are to be saved.
    #[error("{tokens} tokens do not fit {blocks} blocks of {page_size} tokens")]
    TooManyTokens {
        /// Tokens that the blocks are said to hold.
        tokens: u64,
        /// Number of blocks.
        blocks: u64,
        /// Tokens a block.
        page_size: u64,
    },
    /// A saved cache whose contents are not what was written.
    #[error("the saved cache is damaged: {problem}")]
    Damaged {
        /// What is wrong.
        problem: String,
    },
    /// A saved block whose bytes are not those that were saved. It is a miss, never served.
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
    /// A saved cache of another model, or of another part of it.
    #[error("the saved cache is for another model: {0}")]
    IdentityDiffers(Difference),
}

impl From<MemoryError> for TransferError {
    fn from(error: MemoryError) -> TransferError {
        TransferError::Memory(Arc::new(error))
    }
}
