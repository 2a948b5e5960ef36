//! KV cache blocks of language models, in any layout and any memory, moved at the speed of the memory.
//!
//! This crate re-exports the public names of the workspace; it has no code. What most programs use is at the
//! root:
//!
//! ```
//! use kvtile::{Cache, CacheSettings, Identity, PhysicalLayout, Shape, TokenHasher};
//!
//! // An engine's KV: 32 blocks of 16 tokens, 4 layers, 2 KV heads of 64 bf16 values, as vLLM's CPU backend has it.
//! let shape = Shape::key_value(32, 4, 16, 2, 64, "bf16")?;
//! let engine = PhysicalLayout::builder()
//!     .with_shape(shape.clone())
//!     .layout("L|BH(kCN,vNC)")
//!     .allocate_system()
//!     .build()?;
//! let identity = Identity::new("a-model", "main", &shape)?;
//! let keys = TokenHasher::new(&identity)?.keys(&(0..40).collect::<Vec<u32>>()); // two full blocks
//!
//! let cache = Cache::open(CacheSettings::new(identity).host_bytes(16 << 20), engine)?;
//! cache.store(&keys, &[3, 7])?.wait();
//! let found = cache.lookup(&keys); // pinned until it is loaded
//! assert_eq!(cache.load(found, &[20, 21])?.wait().blocks, 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The modules have the rest:
//!
//! | module | contents |
//! | --- | --- |
//! | [`layout`] | units, shapes, the layout language, plans, physical layouts, the traditional layouts, descriptors |
//! | [`identity`] | what must be equal before stored bytes may be used |
//! | [`memory`] | the owners of bytes: system, shared, file, borrowed |
//! | [`transfer`] | leases and transfers between registered layouts |
//! | [`saved`] | caches in files |
//! | [`device`] | the CUDA driver, queues, memory that devices reach; not run on hardware |
//! | [`blocks`] | block keys, token sequences, pools, eviction policies, events |
//! | [`tiers`] | the cache over host memory and tiers, the tier contract, metrics, replays of traces |
//! | [`shared`] | a tier that many caches share: its stores, settings, sweeps |
//! | [`presets`] | layouts of real engines and shapes of well-known models |
//!
//! Settings and options follow one pattern: `new` or `default` makes a value that works, a method named after each
//! field changes it, and the fields are public to read.

pub use kvtile_blocks as blocks;
pub use kvtile_device as device;
pub use kvtile_layout::{identity, presets};
pub use kvtile_memory as memory;
pub use kvtile_shared as shared;
pub use kvtile_tiers as tiers;
pub use kvtile_transfer::saved;

pub use kvtile_blocks::{
    BlockKey, BlocksError,
    events::{EventKind, TierId},
    key::ExtraKeys,
    policy::{EvictionHints, PolicyKind},
    pool::TenantId,
    sequence::TokenSequence,
};
pub use kvtile_layout::{
    CopyPlan, CopyPlanner, LayoutError, Plane, Selection, Shape, Shard, StridedLayout, Unit, Word,
    identity::{Fingerprint, Identity, Rope},
    tradition::{LayoutConfig, LayoutSpec},
};
pub use kvtile_memory::{
    BorrowedMemory, MemoryError, SharedMemory, SharedReadMemory, SystemMemory,
};
pub use kvtile_tiers::{
    HasherOptions, TierError, TokenHasher,
    block_store::{
        BlockOutcome, BlockOutcomes, BlockStore, BlockStoreSettings, RowStoreOptions, StoreFlush,
        StoreGroup, StoreRows,
    },
    cache::{
        Cache, CacheBuilder, CacheSettings, ConnectSettings, DiskSettings, FlushReport,
        LoadOptions, LoadReport, LookupOptions, Match, Priority, StoreOptions, StoreReport,
    },
    groups::{CacheGroup, ConnectGroups, GroupCache, GroupCacheSettings, GroupConnectSettings},
};
pub use kvtile_transfer::{
    FillPattern, Layout, LayoutDescriptor, LayoutHandle, PhysicalLayout, TransferError,
    TransferManager, TransferOptions, TransferReport, completion::Completion,
};

/// Layouts: the language, plans, and physical layouts, which bind a layout to memory.
pub mod layout {
    pub use kvtile_layout::{tensor::*, tradition::*, *};
    pub use kvtile_memory::{MemoryDescriptor, MemoryRegion, OwnedMemoryRegion, StorageKind};
    pub use kvtile_transfer::{
        DESCRIPTOR_BYTES_MAX, DescribedLayout, DescribedOrder, FullyContiguousLayout, HasConfig,
        HasLayout, HasMemory, LayerSeparateLayout, Layout, LayoutDescriptor, NeedsConfig,
        NixlMetadata, PhysicalLayout, PhysicalLayoutBuilder, WordLayout,
    };
}

/// Transfers: registered layouts, leases on their blocks, and completions.
pub mod transfer {
    pub use kvtile_transfer::{
        BindError, BlockLease, CopyError, DescriptorError, DeviceRoute, EnqueuedLayer, FileBatch,
        FileIo, FileRead, FileWay, FileWrite, FillPattern, LayoutHandle, LeaseError, LeaseMode,
        RegisterError, SavedError, TransferCompletion, TransferError, TransferManager,
        TransferManagerBuilder, TransferOptions, TransferReport, completion::*,
    };
}

/// The example of the README, as a test.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

/// The example of the page on shared tiers, as a test.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/shared.md")]
struct SharedPage;
