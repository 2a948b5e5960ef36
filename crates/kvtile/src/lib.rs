//! KV cache blocks of language models, in any layout and any memory, moved at the speed of the
//! memory.
//!
//! This crate is the one that users depend on; it has no code of its own, only names:
//!
//! | module | what it is |
//! | --- | --- |
//! | [`layout`] | units, shapes, the layout language, plans, the layouts of the block-manager tradition, descriptors |
//! | [`identity`] | what must be equal before stored bytes may be used |
//! | [`memory`] | who owns the bytes: system, shared, files, borrowed |
//! | [`transfer`] | leases and transfers between registered layouts |
//! | [`saved`] | caches in files |
//! | [`blocks`] | keys of blocks, token sequences, pools, eviction policies, events |
//! | [`tiers`] | the cache over host memory and disk, its metrics, and replays of traces |
//! | [`presets`] | layouts of real engines and shapes of well-known models |
//!
//! ```
//! use kvtile::{
//!     layout::{PhysicalLayout, Shape, Unit, Word},
//!     transfer::{FillPattern, TransferManager, TransferOptions},
//! };
//!
//! // 8 blocks of 16 tokens, 4 layers, 2 KV heads of 64 bf16 values.
//! let shape = Shape::key_value(8, 4, 16, 2, 64, &Unit::new("bf16", 2, 1)?)?;
//! let build = |word: &str| -> Result<PhysicalLayout, Box<dyn std::error::Error>> {
//!     let builder = PhysicalLayout::builder().with_shape(shape.clone(), 1);
//!     Ok(builder.layout(word.parse::<Word>()?).allocate_system().build()?)
//! };
//! let manager = TransferManager::new();
//! let engine = manager.register(build("L|BH(kCN,vNC)")?)?; // as vLLM's CPU backend has it
//! let host = manager.register(build("BHLKNC")?)?; // block by block, head by head
//! manager.fill(engine, &[0, 1], FillPattern::Distinct { seed: 7 })?;
//! manager.execute_transfer(engine, &[0, 1], host, &[5, 6], TransferOptions::new())?.wait()?;
//! assert_eq!(manager.block_digest(engine, 1)?, manager.block_digest(host, 6)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use kvtile_blocks as blocks;
pub use kvtile_layout::{identity, presets};
pub use kvtile_memory as memory;
pub use kvtile_tiers as tiers;
pub use kvtile_transfer::saved;

/// Layouts: what they are, and what binds them to memory.
pub mod layout {
    pub use kvtile_layout::{tensor::*, tradition::*, *};
    pub use kvtile_memory::{MemoryDescriptor, MemoryRegion, OwnedMemoryRegion, StorageKind};
    pub use kvtile_transfer::{
        DescribedLayout, DescribedOrder, FullyContiguousLayout, LayerSeparateLayout, Layout,
        LayoutDescriptor, NixlMetadata, PhysicalLayout, PhysicalLayoutBuilder, WordLayout,
    };
}

/// Transfers: registered layouts, leases on their blocks, and completions.
pub mod transfer {
    pub use kvtile_transfer::{
        BlockLease, FileIo, FillPattern, LayoutHandle, LeaseMode, TransferCompletion,
        TransferError, TransferManager, TransferManagerBuilder, TransferOptions, TransferReport,
        completion::{Completer, Completion},
    };
}

/// The example of the README, as a test.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
