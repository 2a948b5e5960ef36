//! Settings that a cache or a tier cannot have.

use std::sync::Arc;

use kvtile_blocks::events::TierId;
use thiserror::Error;

/// Settings that a cache or a tier cannot have.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum SettingsError {
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
    /// A storage order in which a block is not one contiguous range.
    #[error(
        "blocks are stored in one piece each, and in {layout} they are not; give a word that \
         begins with B"
    )]
    StorageNotContiguous {
        /// The layout.
        layout: String,
    },
    /// Staging memory too small for one block of each group.
    #[error(
        "{staging_bytes} bytes of staging memory do not hold one block of each group; give at least {needed_bytes}"
    )]
    ConnectStagingTooSmall {
        /// The setting.
        staging_bytes: u64,
        /// Bytes of one block.
        needed_bytes: u64,
    },
    /// An order of stored pages for a daemon, which has its own.
    #[error(
        "group {group} has an order of stored pages; a daemon stores pages in its own order, so leave the order out"
    )]
    ConnectStorageWord {
        /// The group.
        group: String,
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
    /// A part of another model.
    #[error("the part {part} is not inside a model of {layers} layers and {heads} heads")]
    PartOutside {
        /// The name of the part.
        part: String,
        /// Layers of the model.
        layers: u64,
        /// Heads of the model.
        heads: u64,
    },
    /// A part whose bytes would have to be cut by heads, in an order that is not known.
    #[error(
        "the part has the heads {theirs} and this cache has {ours}, and the order of plane {plane} is \
         not known, so its blocks cannot be cut: read it with the number of ranks that wrote it"
    )]
    OpaquePart {
        /// The opaque plane.
        plane: String,
        /// Heads of this cache.
        ours: String,
        /// Heads of the part.
        theirs: String,
    },
    /// The path of the disk tier's folder is empty.
    #[error("the path of the disk tier's folder is empty; give the path of a folder")]
    NoFolder,
    /// [`TierWrites::AfterUses`](crate::tier::TierWrites::AfterUses) with 0 uses.
    #[error("a block cannot be written after 0 uses; give `at_once`, or at least 1 use")]
    ZeroUses,
    /// Two tiers of one cache with the same name.
    #[error("two tiers are named {tier}; give each of them a name of its own")]
    TierTwice {
        /// The name.
        tier: TierId,
    },
    /// A tier that reads pieces of blocks and verifies no reads: the cache has no checksum of a piece.
    #[error(
        "the {tier} tier reads pieces of blocks and does not verify them, so nothing would; its abilities need \
         `verifies` with `reads_pieces`"
    )]
    PiecesNotVerified {
        /// The tier.
        tier: TierId,
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
    /// A capacity in which a group has no room for the two slots that it needs.
    #[error(
        "{capacity_bytes} bytes of disk leave too little for group {group} with blocks of \
         {block_bytes} bytes; give at least {needed_bytes}, or the group a larger share"
    )]
    GroupTooSmall {
        /// The name of the group.
        group: String,
        /// Bytes of a block of the group.
        block_bytes: u64,
        /// The capacity given.
        capacity_bytes: u64,
        /// The smallest sufficient capacity with these shares.
        needed_bytes: u64,
    },
    /// A capacity for more blocks, of all groups together, than a disk tier can address.
    #[error(
        "{capacity_bytes} bytes of disk are more than {blocks_max} blocks of all groups together; \
         most are of group {group} with {block_bytes} bytes each; give at most {most_bytes}, or the \
         group a smaller share"
    )]
    GroupTooLarge {
        /// The name of the group with the most blocks.
        group: String,
        /// Bytes of a block of the group.
        block_bytes: u64,
        /// The capacity given.
        capacity_bytes: u64,
        /// The largest number of blocks of all groups together.
        blocks_max: u32,
        /// The largest allowed capacity with these shares.
        most_bytes: u64,
    },
    /// A number of groups that no disk tier can have.
    #[error("a disk tier cannot keep {groups} groups; give 1 to {most}")]
    GroupCount {
        /// The number of groups.
        groups: usize,
        /// The largest number of groups.
        most: usize,
    },
    /// A name that no group can have.
    #[error("{name:?} is no name of a group; give 1 to 64 visible ASCII characters")]
    GroupName {
        /// The name, or its beginning.
        name: String,
    },
    /// Two groups with the same name.
    #[error("two groups are named {name}; give each of them a name of its own")]
    GroupTwice {
        /// The name.
        name: String,
    },
    /// A share that does not divide the capacity.
    #[error("the share of group {group} is {share}; give a number of 0.000001 to 1000000, or none")]
    GroupShare {
        /// The name of the group.
        group: String,
        /// The share.
        share: f64,
    },
    /// A cache over groups whose groups are all of a draft model.
    #[error(
        "all {groups} groups are of a draft model, which never decides what a hit is; give the groups of the model"
    )]
    GroupsOfDraft {
        /// Number of groups.
        groups: usize,
    },
    /// Pages of groups without a common multiple that fits in 64 bits.
    #[error(
        "group {group} has pages of {page} tokens, and no stop is a multiple of the pages of all groups"
    )]
    GroupPages {
        /// The name of the group.
        group: String,
        /// Tokens of a page.
        page: u64,
    },
    /// Host memory too small for one stop of a cache over groups.
    #[error(
        "{host_bytes} bytes of host memory do not hold the pages of one stop; give at least {needed_bytes}"
    )]
    GroupHostTooSmall {
        /// Bytes that were given.
        host_bytes: u64,
        /// Bytes that are needed.
        needed_bytes: u64,
    },
    /// Another number of layouts than groups.
    #[error("{layouts} layouts for {groups} groups; give one for each group, in their order")]
    GroupLayouts {
        /// Number of layouts.
        layouts: usize,
        /// Number of groups.
        groups: usize,
    },
    /// A block size outside the range of a slot.
    #[error("blocks of {block_bytes} bytes cannot be stored; a block has 1 byte to 1 TiB")]
    BlockBytes {
        /// Bytes of a block.
        block_bytes: u64,
    },
    /// A block size that does not split into equal halves for keys and values.
    #[error(
        "blocks of {block_bytes} bytes do not have as many keys as values; give an even number"
    )]
    OddBlockBytes {
        /// Bytes of a block.
        block_bytes: u64,
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
    /// A block store without a tier.
    #[error("a block store has no memory of its own for blocks; give it a disk or another tier")]
    NoTier,
    /// A tier of a block store that does not verify the blocks it reads.
    #[error(
        "the {tier} tier does not verify blocks, and a block store does not serve unverified ones; \
         use it below a cache"
    )]
    TierDoesNotVerify {
        /// The tier.
        tier: TierId,
    },
    /// A block store with writes after uses.
    #[error(
        "a block store writes each block once, right after its store; give `at_once` or leave `writes` out"
    )]
    StoreWrites,
    /// A tier over the parts of other ranks with another number of groups than one.
    #[error(
        "a tier over the parts of other ranks reads one group of blocks, and {groups} groups are requested"
    )]
    PartsGroups {
        /// The number of groups.
        groups: usize,
    },
    /// Staging memory too small for two blocks of each group.
    #[error(
        "{staging_bytes} bytes of staging memory do not hold two blocks of each group; give at least {needed_bytes}"
    )]
    StagingTooSmall {
        /// Bytes that were given.
        staging_bytes: u64,
        /// Bytes that are needed.
        needed_bytes: u64,
    },
}
