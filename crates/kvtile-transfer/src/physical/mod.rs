//! Physical layouts: a layout, the memory under it, and who may use it.
//!
//! A [`PhysicalLayout`] is either local (its regions are here and the executors can move their
//! bytes) or remote (it came from a descriptor: its addresses belong to another process, and local
//! executors refuse it). It is cheap to clone; clones are the same layout.

mod builder;
mod layout_trait;
mod layouts;

use std::sync::Arc;

pub use builder::{HasConfig, HasLayout, HasMemory, NeedsConfig, PhysicalLayoutBuilder};
use kvtile_layout::{
    Shape, StridedLayout,
    identity::{Fingerprint, LayoutIdentity},
    tradition::{LayoutConfig, LayoutKind, LayoutTypeDetails},
};
use kvtile_memory::{
    MemType, MemoryDescriptor, OwnedMemoryRegion, RegionView, SharedMemory, StorageKind,
};
pub use layout_trait::Layout;
pub(crate) use layouts::Bound;
pub use layouts::{FullyContiguousLayout, LayerSeparateLayout, WordLayout};
use serde::{Deserialize, Serialize};

use crate::{error::TransferError, execute::BoundLayout};

/// How a NIXL agent knows the memory of a layout. An agent is optional: without one the name is
/// empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NixlMetadata {
    /// Name of the agent; empty where there is none.
    pub agent_name: String,
    /// Memory type.
    pub mem_type: MemType,
    /// Device ordinal, file descriptor, else 0.
    pub device_id: u64,
}

impl NixlMetadata {
    /// Metadata of an agent.
    #[must_use]
    pub fn new(agent_name: String, mem_type: MemType, device_id: u64) -> NixlMetadata {
        NixlMetadata {
            agent_name,
            mem_type,
            device_id,
        }
    }

    /// Metadata of memory of `kind` that no agent knows.
    #[must_use]
    pub fn without_agent(kind: StorageKind) -> NixlMetadata {
        NixlMetadata::new(String::new(), kind.mem_type(), kind.device_id())
    }
}

/// A layout of another process, as its descriptor tells it.
#[derive(Debug)]
pub(crate) struct Remote {
    pub(crate) config: LayoutConfig,
    pub(crate) details: LayoutTypeDetails,
    pub(crate) strided: Arc<StridedLayout>,
    pub(crate) memory: Vec<MemoryDescriptor>,
}

#[derive(Debug)]
enum Place {
    Local {
        layout: Arc<dyn Layout>,
        bound: Arc<BoundLayout>,
    },
    Remote(Box<Remote>),
}

#[derive(Debug)]
struct Inner {
    place: Place,
    location: StorageKind,
    nixl: NixlMetadata,
    logical: Option<Fingerprint>,
}

/// A layout and the memory under it. See the module.
#[derive(Clone, Debug)]
pub struct PhysicalLayout {
    inner: Arc<Inner>,
}

impl PhysicalLayout {
    /// Starts building one: [`PhysicalLayoutBuilder`].
    #[must_use]
    pub fn builder() -> PhysicalLayoutBuilder<NeedsConfig> {
        PhysicalLayoutBuilder::new()
    }

    fn local(
        layout: Arc<dyn Layout>,
        bound: Arc<BoundLayout>,
        nixl: Option<NixlMetadata>,
        logical: Option<Fingerprint>,
    ) -> PhysicalLayout {
        let location = bound.kind();
        PhysicalLayout {
            inner: Arc::new(Inner {
                place: Place::Local { layout, bound },
                location,
                nixl: nixl.unwrap_or_else(|| NixlMetadata::without_agent(location)),
                logical,
            }),
        }
    }

    pub(crate) fn remote(
        remote: Remote,
        location: StorageKind,
        nixl: NixlMetadata,
        logical: Option<Fingerprint>,
    ) -> PhysicalLayout {
        PhysicalLayout {
            inner: Arc::new(Inner {
                place: Place::Remote(Box::new(remote)),
                location,
                nixl,
                logical,
            }),
        }
    }

    /// The layout with its regions; `None` for a remote one.
    #[must_use]
    pub fn layout(&self) -> Option<&Arc<dyn Layout>> {
        match &self.inner.place {
            Place::Local { layout, .. } => Some(layout),
            Place::Remote(_) => None,
        }
    }

    pub(crate) fn bound(&self) -> Result<&Arc<BoundLayout>, TransferError> {
        match &self.inner.place {
            Place::Local { bound, .. } => Ok(bound),
            Place::Remote(_) => Err(self.remote_error()),
        }
    }

    fn remote_error(&self) -> TransferError {
        TransferError::RemoteLayout {
            agent: self.inner.nixl.agent_name.clone(),
        }
    }

    /// Whether it belongs to another process.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(self.inner.place, Place::Remote(_))
    }

    /// The digits.
    #[must_use]
    pub fn strided(&self) -> &StridedLayout {
        match &self.inner.place {
            Place::Local { layout, .. } => layout.strided(),
            Place::Remote(remote) => &remote.strided,
        }
    }

    /// The shape.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        self.strided().shape()
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &LayoutConfig {
        match &self.inner.place {
            Place::Local { layout, .. } => layout.config(),
            Place::Remote(remote) => &remote.config,
        }
    }

    /// What a descriptor says about the order.
    #[must_use]
    pub fn serialization_details(&self) -> LayoutTypeDetails {
        match &self.inner.place {
            Place::Local { layout, .. } => layout.serialization_details(),
            Place::Remote(remote) => remote.details.clone(),
        }
    }

    /// The family.
    #[must_use]
    pub fn kind(&self) -> LayoutKind {
        self.serialization_details().kind()
    }

    /// Where the bytes are.
    #[must_use]
    pub fn location(&self) -> StorageKind {
        self.inner.location
    }

    /// How a NIXL agent knows the memory.
    #[must_use]
    pub fn nixl_metadata(&self) -> &NixlMetadata {
        &self.inner.nixl
    }

    /// Fingerprint of the logical identity of what the blocks hold, where one was given.
    #[must_use]
    pub fn logical_fingerprint(&self) -> Option<Fingerprint> {
        self.inner.logical
    }

    /// Fingerprint of the digits.
    #[must_use]
    pub fn layout_fingerprint(&self) -> Fingerprint {
        LayoutIdentity::of_layout(self.strided()).fingerprint()
    }

    /// The regions; empty for a remote layout.
    #[must_use]
    pub fn memory_regions(&self) -> &[OwnedMemoryRegion] {
        self.layout().map_or(&[], |layout| layout.memory_regions())
    }

    /// The shared memory under the regions, where the layout was built with
    /// [`allocate_shared`](PhysicalLayoutBuilder::allocate_shared) or over received shared memory:
    /// hand it to another process with [`SharedMemory::send`]. Where regions lie in several, the
    /// first.
    #[must_use]
    pub fn shared_memory(&self) -> Option<&SharedMemory> {
        self.memory_regions().iter().find_map(|region| {
            let region = region.as_any();
            let region = match region.downcast_ref::<RegionView>() {
                Some(view) => view.parent().as_any(),
                None => region,
            };
            region.downcast_ref()
        })
    }

    /// Address and size of every region, remote ones included.
    #[must_use]
    pub fn memory_descriptors(&self) -> Vec<MemoryDescriptor> {
        match &self.inner.place {
            Place::Local { layout, .. } => layout
                .memory_regions()
                .iter()
                .map(|region| MemoryDescriptor {
                    addr: region.addr(),
                    size: region.size(),
                })
                .collect(),
            Place::Remote(remote) => remote.memory.clone(),
        }
    }

    /// Address and size of the bytes of one block, layer and plane: [`Layout::memory_region`].
    ///
    /// # Errors
    /// An index out of range; bytes that are not contiguous; a remote layout.
    pub fn memory_region(
        &self,
        block_id: usize,
        layer_id: usize,
        outer_id: usize,
    ) -> Result<MemoryDescriptor, TransferError> {
        match &self.inner.place {
            Place::Local { layout, .. } => layout.memory_region(block_id, layer_id, outer_id),
            Place::Remote(_) => Err(self.remote_error()),
        }
    }

    /// Whether both are the same layout over the same memory, as clones are.
    #[must_use]
    pub fn is_same(&self, other: &PhysicalLayout) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}
