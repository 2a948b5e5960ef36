//! The two JSON forms of a descriptor. This module knows only the names and places of fields.

use kvtile_layout::{
    Shape,
    identity::Fingerprint,
    tradition::{LayoutConfig, LayoutTypeDetails},
};
use kvtile_memory::{MemoryDescriptor, StorageKind};
use serde::{Deserialize, Serialize};

use super::LayoutDescriptor;
use crate::physical::{DescribedLayout, DescribedOrder, NixlMetadata};

/// The version alone. The reader parses it first to choose the form.
#[derive(Deserialize)]
pub(super) struct VersionField {
    pub(super) version: u32,
}

/// The form of the block-manager tradition. Unknown fields are ignored.
#[derive(Deserialize)]
pub(super) struct Version1Form {
    layout_config: LayoutConfig,
    location: StorageKind,
    nixl_metadata: NixlMetadata,
    memory_descriptors: Vec<MemoryDescriptor>,
    layout_type_details: LayoutTypeDetails,
    #[serde(default)]
    logical_fingerprint: Option<Fingerprint>,
}

/// The general form. Unknown fields are an error.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Version2Form {
    #[serde(rename = "version")]
    _version: u32,
    shape: Shape,
    alignment: u64,
    order: DescribedOrder,
    location: StorageKind,
    nixl_metadata: NixlMetadata,
    memory_descriptors: Vec<MemoryDescriptor>,
    #[serde(default)]
    logical_fingerprint: Option<Fingerprint>,
}

impl From<Version1Form> for LayoutDescriptor {
    fn from(read: Version1Form) -> LayoutDescriptor {
        LayoutDescriptor {
            layout: DescribedLayout::Traditional {
                config: read.layout_config,
                details: read.layout_type_details,
            },
            location: read.location,
            nixl_metadata: read.nixl_metadata,
            memory_descriptors: read.memory_descriptors,
            logical_fingerprint: read.logical_fingerprint,
        }
    }
}

impl From<Version2Form> for LayoutDescriptor {
    fn from(read: Version2Form) -> LayoutDescriptor {
        LayoutDescriptor {
            layout: DescribedLayout::General {
                shape: read.shape,
                alignment: read.alignment,
                order: read.order,
            },
            location: read.location,
            nixl_metadata: read.nixl_metadata,
            memory_descriptors: read.memory_descriptors,
            logical_fingerprint: read.logical_fingerprint,
        }
    }
}

/// A descriptor to be serialised, in either version.
#[derive(Serialize)]
pub(super) struct WrittenDescriptor<'a> {
    version: u32,
    #[serde(flatten)]
    counts: WrittenCounts<'a>,
    location: StorageKind,
    nixl_metadata: &'a NixlMetadata,
    memory_descriptors: &'a [MemoryDescriptor],
    #[serde(flatten)]
    order: WrittenOrder<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logical_fingerprint: Option<Fingerprint>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum WrittenCounts<'a> {
    Traditional { layout_config: &'a LayoutConfig },
    General { shape: &'a Shape, alignment: u64 },
}

#[derive(Serialize)]
#[serde(untagged)]
enum WrittenOrder<'a> {
    Traditional {
        layout_type_details: &'a LayoutTypeDetails,
    },
    General {
        order: &'a DescribedOrder,
    },
}

impl<'a> WrittenDescriptor<'a> {
    pub(super) fn of(descriptor: &'a LayoutDescriptor) -> WrittenDescriptor<'a> {
        let (counts, order) = match &descriptor.layout {
            DescribedLayout::Traditional { config, details } => (
                WrittenCounts::Traditional {
                    layout_config: config,
                },
                WrittenOrder::Traditional {
                    layout_type_details: details,
                },
            ),
            DescribedLayout::General {
                shape,
                alignment,
                order,
            } => (
                WrittenCounts::General {
                    shape,
                    alignment: *alignment,
                },
                WrittenOrder::General { order },
            ),
        };
        WrittenDescriptor {
            version: descriptor.version(),
            counts,
            location: descriptor.location,
            nixl_metadata: &descriptor.nixl_metadata,
            memory_descriptors: &descriptor.memory_descriptors,
            order,
            logical_fingerprint: descriptor.logical_fingerprint,
        }
    }
}
