//! Layout descriptors: what another process is told of a layout, as JSON, version 1.
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
//! The form is that of the block-manager tradition; `logical_fingerprint` is an optional field of
//! ours. A descriptor that comes in is hostile: [`LayoutDescriptor::from_json`] reads bounded text
//! and refuses other versions, and [`PhysicalLayout::from_descriptor`] checks everything else.

mod check;

use std::sync::Arc;

use kvtile_layout::{
    identity::Fingerprint,
    tradition::{LayoutConfig, LayoutTypeDetails},
};
use kvtile_memory::{MemoryDescriptor, StorageKind};
use serde::{Deserialize, Serialize};

use crate::{
    error::TransferError,
    physical::{NixlMetadata, PhysicalLayout, Remote},
};

/// Longest JSON text that is read, in bytes: a descriptor with the largest number of regions fits.
pub const DESCRIPTOR_BYTES_MAX: usize = 128 << 20;

/// A layout as another process is told of it. See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayoutDescriptor {
    /// Version of this form: [`LayoutDescriptor::CURRENT_VERSION`].
    pub version: u32,
    /// Counts and sizes.
    pub layout_config: LayoutConfig,
    /// Where the bytes are, seen from their owner.
    pub location: StorageKind,
    /// How a NIXL agent knows them.
    pub nixl_metadata: NixlMetadata,
    /// The regions.
    pub memory_descriptors: Vec<MemoryDescriptor>,
    /// The order.
    pub layout_type_details: LayoutTypeDetails,
    /// Fingerprint of the logical identity of the blocks, where the owner gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logical_fingerprint: Option<Fingerprint>,
}

/// Only the version, to say which one it is before anything else is looked at.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl LayoutDescriptor {
    /// The version that is written and read.
    pub const CURRENT_VERSION: u32 = 1;

    /// As JSON.
    ///
    /// # Errors
    /// None that is known: all fields have a JSON form.
    pub fn to_json(&self) -> Result<String, TransferError> {
        serde_json::to_string(self).map_err(syntax)
    }

    /// As JSON, in bytes.
    ///
    /// # Errors
    /// As for [`LayoutDescriptor::to_json`].
    pub fn to_json_bytes(&self) -> Result<Vec<u8>, TransferError> {
        serde_json::to_vec(self).map_err(syntax)
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
        let Versioned { version } = serde_json::from_slice(json).map_err(syntax)?;
        check::version(version)?;
        serde_json::from_slice(json).map_err(syntax)
    }
}

fn syntax(error: serde_json::Error) -> TransferError {
    TransferError::DescriptorSyntax {
        problem: error.to_string(),
    }
}

impl PhysicalLayout {
    /// What another process is told of this layout.
    ///
    /// # Errors
    /// [`TransferError::NoLayoutConfig`] where no config describes the layout, which can be used all
    /// the same. Remote layouts describe themselves as they came.
    pub fn to_descriptor(&self) -> Result<LayoutDescriptor, TransferError> {
        Ok(LayoutDescriptor {
            version: LayoutDescriptor::CURRENT_VERSION,
            layout_config: self.config()?.clone(),
            location: self.location(),
            nixl_metadata: self.nixl_metadata().clone(),
            memory_descriptors: self.memory_descriptors(),
            layout_type_details: self.serialization_details()?,
            logical_fingerprint: self.logical_fingerprint(),
        })
    }

    /// The layout that a descriptor describes. It is remote: local executors refuse it.
    ///
    /// # Errors
    /// A version other than 1; a configuration, order or shape that contradict each other; regions
    /// that are too few, too many, too small, misaligned, overlapping, or that wrap around the
    /// address space; a location that contradicts the memory type.
    pub fn from_descriptor(descriptor: LayoutDescriptor) -> Result<PhysicalLayout, TransferError> {
        check::version(descriptor.version)?;
        check::location(descriptor.location, &descriptor.nixl_metadata)?;
        check::ranges(&descriptor.memory_descriptors, descriptor.location)?;
        let LayoutDescriptor {
            layout_config,
            layout_type_details,
            ..
        } = descriptor;
        check::region_steps(&layout_type_details)?;
        let strided = layout_type_details.resolve(&layout_config)?;
        check::fits(&strided, &descriptor.memory_descriptors)?;
        let remote = Remote {
            config: layout_config,
            details: layout_type_details,
            strided: Arc::new(strided),
            memory: descriptor.memory_descriptors,
        };
        Ok(PhysicalLayout::remote(
            remote,
            descriptor.location,
            descriptor.nixl_metadata,
            descriptor.logical_fingerprint,
        ))
    }
}
