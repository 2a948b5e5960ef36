//! Layout descriptors: how another process learns of a layout, as JSON.
//!
//! | file | what it is |
//! | --- | --- |
//! | `form` | the two forms of the text, versions 1 and 2 |
//! | `check` | what a descriptor from outside must pass |
//!
//! Version 1 is the form of the block-manager tradition, which other systems read. It is written wherever a
//! [`LayoutConfig`](kvtile_layout::tradition::LayoutConfig) describes the layout; `logical_fingerprint` is an
//! optional field of ours.
//!
//! ```json
//! {
//!   "version": 1,
//!   "layout_config": {"num_blocks": 10, "num_layers": 4, "outer_dim": 2, ...},
//!   "location": "System",
//!   "nixl_metadata": {"agent_name": "a", "mem_type": "Dram", "device_id": 0},
//!   "memory_descriptors": [{"addr": 4096, "size": 1310720}],
//!   "layout_type_details": {"FullyContiguous": {"block_format": "Operational"}}
//! }
//! ```
//!
//! Version 2 carries every layout: a shape with its planes and units, and a word or digits with the bytes of each
//! region. It is written where version 1 cannot be.
//!
//! ```json
//! {
//!   "version": 2,
//!   "shape": {"num_blocks": 10, "num_layers": 4, "page_size": 16, "planes": [...], "shard": {...}},
//!   "alignment": 64,
//!   "order": {"word": "BHLKNC"},
//!   "location": "System",
//!   "nixl_metadata": {"agent_name": "a", "mem_type": "Dram", "device_id": 0},
//!   "memory_descriptors": [{"addr": 4096, "size": 1310720}]
//! }
//! ```
//!
//! The order by digits is `{"digits": {"planes": [{"plane": "k", "region": 0, "offset": 0, "digits": [...]}],
//! "region_bytes": [1310720]}}`. Version 2 refuses fields that it does not know, because they could change what
//! the bytes mean.
//!
//! A descriptor that comes in is hostile: [`LayoutDescriptor::from_json`] reads bounded text and refuses other
//! versions, and [`PhysicalLayout::from_descriptor`] checks everything else.

mod check;
mod form;

use std::sync::Arc;

use kvtile_layout::identity::Fingerprint;
use kvtile_memory::{MemoryDescriptor, StorageKind};

use crate::{
    error::TransferError,
    physical::{DescribedLayout, NixlMetadata, PhysicalLayout, Remote},
};

/// Longest JSON text that is read, in bytes: a descriptor with the largest number of regions fits.
pub const DESCRIPTOR_BYTES_MAX: usize = 128 << 20;

/// A layout as another process learns of it. See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayoutDescriptor {
    /// What the regions hold, and in which order.
    pub layout: DescribedLayout,
    /// Where the bytes are, seen from their owner.
    pub location: StorageKind,
    /// How a NIXL agent knows them.
    pub nixl_metadata: NixlMetadata,
    /// The regions.
    pub memory_descriptors: Vec<MemoryDescriptor>,
    /// Fingerprint of the logical identity of the blocks, where the owner gave one.
    pub logical_fingerprint: Option<Fingerprint>,
}

impl LayoutDescriptor {
    /// The newest version that is written and read. All from 1 on are read.
    pub const CURRENT_VERSION: u32 = 2;

    /// The version of its text.
    #[must_use]
    pub fn version(&self) -> u32 {
        match self.layout {
            DescribedLayout::Traditional { .. } => 1,
            DescribedLayout::General { .. } => 2,
        }
    }

    /// As JSON.
    ///
    /// # Errors
    /// None that is known: all fields have a JSON form.
    pub fn to_json(&self) -> Result<String, TransferError> {
        serde_json::to_string(&form::Written::of(self)).map_err(syntax)
    }

    /// As JSON, in bytes.
    ///
    /// # Errors
    /// As for [`LayoutDescriptor::to_json`].
    pub fn to_json_bytes(&self) -> Result<Vec<u8>, TransferError> {
        serde_json::to_vec(&form::Written::of(self)).map_err(syntax)
    }

    /// From JSON.
    ///
    /// # Errors
    /// Text that is longer than [`DESCRIPTOR_BYTES_MAX`], of another version, or not a descriptor.
    pub fn from_json(json: &str) -> Result<LayoutDescriptor, TransferError> {
        LayoutDescriptor::from_json_bytes(json.as_bytes())
    }

    /// From JSON, in bytes.
    ///
    /// # Errors
    /// As for [`LayoutDescriptor::from_json`].
    pub fn from_json_bytes(json: &[u8]) -> Result<LayoutDescriptor, TransferError> {
        if json.len() > DESCRIPTOR_BYTES_MAX {
            return Err(TransferError::DescriptorTooLong {
                bytes: json.len(),
                max: DESCRIPTOR_BYTES_MAX,
            });
        }
        let form::Versioned { version } = serde_json::from_slice(json).map_err(syntax)?;
        match version {
            1 => serde_json::from_slice::<form::Version1>(json).map(LayoutDescriptor::from),
            2 => serde_json::from_slice::<form::Version2>(json).map(LayoutDescriptor::from),
            _ => {
                return Err(TransferError::DescriptorVersion {
                    version,
                    supported: LayoutDescriptor::CURRENT_VERSION,
                });
            }
        }
        .map_err(syntax)
    }
}

fn syntax(error: serde_json::Error) -> TransferError {
    TransferError::DescriptorSyntax {
        problem: error.to_string(),
    }
}

impl PhysicalLayout {
    /// How another process learns of this layout: in the form of the tradition where a config describes it, else
    /// in the general one. Remote layouts describe themselves as they came.
    #[must_use]
    pub fn to_descriptor(&self) -> LayoutDescriptor {
        LayoutDescriptor {
            layout: self.described(),
            location: self.location(),
            nixl_metadata: self.nixl_metadata().clone(),
            memory_descriptors: self.memory_descriptors(),
            logical_fingerprint: self.logical_fingerprint(),
        }
    }

    /// The layout that a descriptor describes. It is remote: local executors refuse it.
    ///
    /// # Errors
    /// A configuration, order or shape that contradict each other; planes, digits or regions that are too many;
    /// units outside their regions; regions that are too few, too many, too small, misaligned, overlapping, or
    /// that wrap around the address space; a location that contradicts the memory type.
    pub fn from_descriptor(descriptor: LayoutDescriptor) -> Result<PhysicalLayout, TransferError> {
        check::location(descriptor.location, &descriptor.nixl_metadata)?;
        check::ranges(&descriptor.memory_descriptors, descriptor.location)?;
        check::region_steps(&descriptor.layout)?;
        let strided = descriptor.layout.resolve()?;
        check::fits(&strided, &descriptor.memory_descriptors)?;
        let remote = Remote::new(
            descriptor.layout,
            Arc::new(strided),
            descriptor.memory_descriptors,
        );
        Ok(PhysicalLayout::remote(
            remote,
            descriptor.location,
            descriptor.nixl_metadata,
            descriptor.logical_fingerprint,
        ))
    }
}
