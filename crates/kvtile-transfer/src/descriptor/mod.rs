//! Layout descriptors: JSON that describes a layout to another process.
//!
//! | file | what it is |
//! | --- | --- |
//! | `form` | the JSON forms of versions 1 and 2 |
//! | `check` | the checks on an incoming descriptor |
//!
//! Version 1 is the form of the block-manager tradition, which other systems read. It is used
//! wherever a [`LayoutConfig`](kvtile_layout::tradition::LayoutConfig) describes the layout. kvtile
//! adds the optional field `logical_fingerprint`.
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
//! Version 2 carries every layout: a shape with its planes and units, and a word or digits with the
//! bytes of each region. It is used where version 1 cannot describe the layout.
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
//! An order by digits is the object
//! `{"planes": [{"plane": "k", "region": 0, "offset": 0, "digits": [...]}], "region_bytes": [1310720]}`
//! under the key `digits`. Version 2 refuses unknown fields, because they could change the meaning
//! of the bytes.
//!
//! An incoming descriptor is untrusted. [`LayoutDescriptor::from_json`] limits the length of the
//! text and refuses other versions; [`PhysicalLayout::from_descriptor`] checks everything else.

mod check;
mod form;

use std::sync::Arc;

use kvtile_layout::identity::Fingerprint;
use kvtile_memory::{MemoryDescriptor, StorageKind};

use crate::{
    error::{DescriptorError, TransferError},
    physical::{DescribedLayout, NixlMetadata, PhysicalLayout, RemoteDescription},
};

/// Longest JSON text that is parsed, in bytes. A descriptor with the maximum number of regions
/// fits.
pub const DESCRIPTOR_BYTES_MAX: usize = 128 << 20;

/// The description of a layout for another process. See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayoutDescriptor {
    /// The contents of the regions and their order.
    pub layout: DescribedLayout,
    /// The kind of the memory, from the owner's point of view.
    pub location: StorageKind,
    /// The NIXL metadata of the memory.
    pub nixl_metadata: NixlMetadata,
    /// The regions.
    pub memory_descriptors: Vec<MemoryDescriptor>,
    /// Fingerprint of the logical identity of the blocks, where the owner set one.
    pub logical_fingerprint: Option<Fingerprint>,
}

impl LayoutDescriptor {
    /// The newest version that is written and read. All versions from 1 on are read.
    pub const CURRENT_VERSION: u32 = 2;

    /// The version of its JSON form.
    #[must_use]
    pub fn version(&self) -> u32 {
        match self.layout {
            DescribedLayout::Traditional { .. } => 1,
            DescribedLayout::General { .. } => 2,
        }
    }

    /// Serialises to JSON.
    ///
    /// # Errors
    /// None is known: every field has a JSON form.
    pub fn to_json(&self) -> Result<String, TransferError> {
        serde_json::to_string(&form::WrittenDescriptor::of(self)).map_err(syntax)
    }

    /// Serialises to JSON bytes.
    ///
    /// # Errors
    /// As for [`LayoutDescriptor::to_json`].
    pub fn to_json_bytes(&self) -> Result<Vec<u8>, TransferError> {
        serde_json::to_vec(&form::WrittenDescriptor::of(self)).map_err(syntax)
    }

    /// Parses JSON.
    ///
    /// # Errors
    /// Text that is longer than [`DESCRIPTOR_BYTES_MAX`], of another version, or not a descriptor.
    pub fn from_json(json: &str) -> Result<LayoutDescriptor, TransferError> {
        LayoutDescriptor::from_json_bytes(json.as_bytes())
    }

    /// Parses JSON bytes.
    ///
    /// # Errors
    /// As for [`LayoutDescriptor::from_json`].
    pub fn from_json_bytes(json: &[u8]) -> Result<LayoutDescriptor, TransferError> {
        if json.len() > DESCRIPTOR_BYTES_MAX {
            return Err(TransferError::Descriptor(
                DescriptorError::DescriptorTooLong {
                    bytes: json.len(),
                    max: DESCRIPTOR_BYTES_MAX,
                },
            ));
        }
        let form::VersionField { version } = serde_json::from_slice(json).map_err(syntax)?;
        match version {
            1 => serde_json::from_slice::<form::Version1Form>(json).map(LayoutDescriptor::from),
            2 => serde_json::from_slice::<form::Version2Form>(json).map(LayoutDescriptor::from),
            _ => {
                return Err(TransferError::Descriptor(
                    DescriptorError::DescriptorVersion {
                        version,
                        supported: LayoutDescriptor::CURRENT_VERSION,
                    },
                ));
            }
        }
        .map_err(syntax)
    }
}

fn syntax(error: serde_json::Error) -> TransferError {
    TransferError::Descriptor(DescriptorError::DescriptorSyntax {
        problem: error.to_string(),
    })
}

impl PhysicalLayout {
    /// Describes this layout for another process: in the traditional form where a config describes
    /// it, else in the general form. A remote layout keeps the form it was received in.
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

    /// Makes the layout that a descriptor describes. It is remote: local executors refuse it.
    ///
    /// # Errors
    /// A configuration, order or shape that contradict each other; too many planes, digits or
    /// regions; units outside their regions; regions that are too few, too many, too small,
    /// misaligned, overlapping, or that wrap around the address space; a location that contradicts
    /// the memory type.
    pub fn from_descriptor(descriptor: LayoutDescriptor) -> Result<PhysicalLayout, TransferError> {
        check::location(descriptor.location, &descriptor.nixl_metadata)?;
        check::ranges(&descriptor.memory_descriptors, descriptor.location)?;
        check::region_steps(&descriptor.layout)?;
        let strided = descriptor.layout.resolve()?;
        check::fits(&strided, &descriptor.memory_descriptors)?;
        let remote = RemoteDescription::new(
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
