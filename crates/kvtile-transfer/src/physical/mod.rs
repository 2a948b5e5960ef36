//! Physical layouts: a layout and the memory under it.
//!
//! A [`PhysicalLayout`] is local or remote. A local layout has its regions in this process, and the
//! executors can move its bytes. A remote layout comes from a descriptor: its addresses belong to
//! another process, can be computed, and the executors refuse them. A clone is cheap and is the
//! same layout.
//!
//! A local layout consists of digits and regions. Its config, descriptor details and the trait
//! [`Layout`] are a view (`view`), which exists where the block-manager tradition can describe the
//! layout.

mod builder;
mod described;
mod layer_bytes;
mod layout_trait;
mod layouts;
mod view;

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

pub use builder::{HasConfig, HasLayout, HasMemory, NeedsConfig, PhysicalLayoutBuilder};
pub(crate) use described::RemoteDescription;
pub use described::{DescribedLayout, DescribedOrder};
use kvtile_device::Device;
use kvtile_layout::{
    LayoutError, RegionSpan, ResolveError, Shape, StridedLayout,
    identity::{Fingerprint, LayoutIdentity},
    tradition::{LayoutConfig, LayoutKind, LayoutTypeDetails},
};
use kvtile_memory::{
    MemType, MemoryDescriptor, OwnedMemoryRegion, RegionView, SharedMemory, SharedReadMemory,
    StorageKind,
};
use layer_bytes::LayerBytes;
pub use layout_trait::Layout;
use layout_trait::memory_of_span;
use layouts::ConfiguredLayout;
pub use layouts::{FullyContiguousLayout, LayerSeparateLayout, WordLayout};
use serde::{Deserialize, Serialize};
use view::TraditionalView;

use crate::{
    error::{RegisterError, TransferError},
    execute::BoundLayout,
};

/// NIXL metadata of the memory of a layout. An agent is optional; without one the name is empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NixlMetadata {
    /// Name of the agent; empty without an agent.
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

    /// Metadata of memory of `kind` without an agent.
    #[must_use]
    pub fn without_agent(kind: StorageKind) -> NixlMetadata {
        NixlMetadata::new(String::new(), kind.mem_type(), kind.device_id())
    }
}

#[derive(Debug)]
enum LayoutPlace {
    Local {
        bound: Arc<BoundLayout>,
        view: Box<TraditionalView>,
    },
    Remote(Box<RemoteDescription>),
}

#[derive(Debug)]
struct PhysicalLayoutInner {
    place: LayoutPlace,
    location: StorageKind,
    nixl: NixlMetadata,
    logical: Option<Fingerprint>,
    /// Computed on first use.
    layer_bytes: OnceLock<Option<LayerBytes>>,
}

/// A layout and the memory under it. See the module.
#[derive(Clone, Debug)]
pub struct PhysicalLayout {
    inner: Arc<PhysicalLayoutInner>,
}

impl PhysicalLayout {
    /// Starts a [`PhysicalLayoutBuilder`].
    #[must_use]
    pub fn builder() -> PhysicalLayoutBuilder<NeedsConfig> {
        PhysicalLayoutBuilder::new()
    }

    fn local(
        bound: Arc<BoundLayout>,
        view: TraditionalView,
        nixl: Option<NixlMetadata>,
        logical: Option<Fingerprint>,
    ) -> PhysicalLayout {
        let location = bound.kind();
        PhysicalLayout {
            inner: Arc::new(PhysicalLayoutInner {
                place: LayoutPlace::Local {
                    bound,
                    view: Box::new(view),
                },
                location,
                nixl: nixl.unwrap_or_else(|| NixlMetadata::without_agent(location)),
                logical,
                layer_bytes: OnceLock::new(),
            }),
        }
    }

    pub(crate) fn remote(
        remote: RemoteDescription,
        location: StorageKind,
        nixl: NixlMetadata,
        logical: Option<Fingerprint>,
    ) -> PhysicalLayout {
        PhysicalLayout {
            inner: Arc::new(PhysicalLayoutInner {
                place: LayoutPlace::Remote(Box::new(remote)),
                location,
                nixl,
                logical,
                layer_bytes: OnceLock::new(),
            }),
        }
    }

    /// The layout with its regions, as the block-manager tradition defines it. Computed on first
    /// use.
    ///
    /// # Errors
    /// [`crate::DescriptorError::NoLayoutConfig`], with the violated constraint, where no [`LayoutConfig`]
    /// describes the layout; a remote layout, whose regions belong to another process.
    pub fn layout(&self) -> Result<&Arc<dyn Layout>, TransferError> {
        match &self.inner.place {
            LayoutPlace::Local { bound, view } => view.get(bound),
            LayoutPlace::Remote(_) => Err(self.remote_error()),
        }
    }

    pub(crate) fn bound(&self) -> Result<&Arc<BoundLayout>, TransferError> {
        match &self.inner.place {
            LayoutPlace::Local { bound, .. } => Ok(bound),
            LayoutPlace::Remote(_) => Err(self.remote_error()),
        }
    }

    /// The device that has its memory; none for other memory, and for remote layouts.
    #[must_use]
    pub fn device(&self) -> Option<&Device> {
        self.bound().ok().and_then(|bound| bound.device())
    }

    fn remote_error(&self) -> TransferError {
        TransferError::Register(RegisterError::RemoteLayout {
            agent: self.inner.nixl.agent_name.clone(),
        })
    }

    /// Whether the layout belongs to another process.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(self.inner.place, LayoutPlace::Remote(_))
    }

    /// The strided layout.
    #[must_use]
    pub fn strided(&self) -> &StridedLayout {
        match &self.inner.place {
            LayoutPlace::Local { bound, .. } => bound.layout(),
            LayoutPlace::Remote(remote) => &remote.strided,
        }
    }

    /// The shape.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        self.strided().shape()
    }

    /// The configuration, if one describes the layout.
    ///
    /// # Errors
    /// [`crate::DescriptorError::NoLayoutConfig`], with the constraint of a config that the layout violates.
    pub fn config(&self) -> Result<&LayoutConfig, TransferError> {
        match &self.inner.place {
            LayoutPlace::Local { bound, view } => Ok(view.get(bound)?.config()),
            LayoutPlace::Remote(remote) => Ok(remote.traditional()?.0),
        }
    }

    /// The order, as a traditional descriptor describes it.
    ///
    /// # Errors
    /// As for [`PhysicalLayout::config`].
    pub fn serialization_details(&self) -> Result<LayoutTypeDetails, TransferError> {
        match &self.inner.place {
            LayoutPlace::Local { bound, view } => Ok(view.get(bound)?.serialization_details()),
            LayoutPlace::Remote(remote) => Ok(remote.traditional()?.1.clone()),
        }
    }

    /// The description for a descriptor: in the traditional form where a config describes the
    /// layout. A remote layout keeps the description it was received with.
    pub(crate) fn described(&self) -> DescribedLayout {
        let (bound, view) = match &self.inner.place {
            LayoutPlace::Local { bound, view } => (bound, view),
            LayoutPlace::Remote(remote) => return remote.described.clone(),
        };
        match view.get(bound) {
            Ok(layout) => DescribedLayout::Traditional {
                config: layout.config().clone(),
                details: layout.serialization_details(),
            },
            Err(_) => DescribedLayout::general(bound.layout()),
        }
    }

    /// The layout family; [`LayoutKind::Strided`] where no config describes the layout.
    #[must_use]
    pub fn kind(&self) -> LayoutKind {
        let details = self.serialization_details();
        details.map_or(LayoutKind::Strided, |details| details.kind())
    }

    /// The kind of the memory.
    #[must_use]
    pub fn location(&self) -> StorageKind {
        self.inner.location
    }

    /// The NIXL metadata of the memory.
    #[must_use]
    pub fn nixl_metadata(&self) -> &NixlMetadata {
        &self.inner.nixl
    }

    /// Fingerprint of the logical identity of the blocks, if one was set.
    #[must_use]
    pub fn logical_fingerprint(&self) -> Option<Fingerprint> {
        self.inner.logical
    }

    /// Fingerprint of the order of the bytes.
    #[must_use]
    pub fn layout_fingerprint(&self) -> Fingerprint {
        LayoutIdentity::of_layout(self.strided()).fingerprint()
    }

    /// The regions; empty for a remote layout.
    #[must_use]
    pub fn memory_regions(&self) -> &[OwnedMemoryRegion] {
        match &self.inner.place {
            LayoutPlace::Local { bound, .. } => bound.regions(),
            LayoutPlace::Remote(_) => &[],
        }
    }

    /// The shared memory under the regions, where the layout was built with
    /// [`allocate_shared`](PhysicalLayoutBuilder::allocate_shared) or over received shared memory.
    /// [`SharedMemory::send`] sends it to another process. Where the regions lie in several shared
    /// memories, this is the first.
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

    /// Whether another process may change bytes of the layout.
    pub(crate) fn is_written_by_others(&self) -> bool {
        self.memory_regions().iter().any(|region| {
            let region = region.as_any();
            let region = match region.downcast_ref::<RegionView>() {
                Some(view) => view.parent().as_any(),
                None => region,
            };
            let shared = region.downcast_ref::<SharedMemory>();
            shared.is_some_and(|memory| !memory.is_only_written_here())
                || region.is::<SharedReadMemory>()
        })
    }

    /// Address and size of every region, remote ones included.
    #[must_use]
    pub fn memory_descriptors(&self) -> Vec<MemoryDescriptor> {
        match &self.inner.place {
            LayoutPlace::Local { bound, .. } => bound
                .regions()
                .iter()
                .map(|region| MemoryDescriptor {
                    addr: region.addr(),
                    size: region.size(),
                })
                .collect(),
            LayoutPlace::Remote(remote) => remote.memory.clone(),
        }
    }

    /// Address and size of the bytes of one block, layer and plane: an address of this process, or
    /// an offset in a file. For a remote layout it is the address or offset that its owner uses,
    /// which a transport to that process needs.
    ///
    /// # Errors
    /// An index out of range; bytes that are not contiguous.
    pub fn memory_region(
        &self,
        block_id: usize,
        layer_id: usize,
        outer_id: usize,
    ) -> Result<MemoryDescriptor, TransferError> {
        let (block, layer) = (block_id as u64, layer_id as u64);
        let span = self.strided().plane_span(block, layer, outer_id)?;
        let region = usize::try_from(span.start.region).ok();
        let base = region.and_then(|region| match &self.inner.place {
            LayoutPlace::Local { bound, .. } => bound.regions().get(region).map(|r| r.addr()),
            LayoutPlace::Remote(remote) => remote.memory.get(region).map(|r| r.addr),
        });
        memory_of_span(span, base)
    }

    /// The byte ranges of all layers inside a block, all planes included, relative to the start of
    /// the block. They are the same for every block, and computed on first use.
    ///
    /// `None` where blocks are not contiguous, where a layer is not one range of the block, or
    /// where the order of planes differs between blocks.
    #[must_use]
    pub fn layer_ranges(&self) -> Option<&[Range<u64>]> {
        self.layer_bytes().map(LayerBytes::ranges)
    }

    /// The bytes of some layers of a block, in layer order. Block and layers must be in range.
    ///
    /// # Errors
    /// A layout in which these bytes are not contiguous or not in layer order.
    pub(crate) fn layers_span(
        &self,
        block: u64,
        layers: &Range<u64>,
    ) -> Result<RegionSpan, TransferError> {
        let bytes = self.layer_bytes();
        let span = bytes.and_then(|bytes| bytes.span(block, layers));
        span.ok_or_else(|| {
            TransferError::Layout(LayoutError::Resolve(ResolveError::NotContiguous {
                what: format!("layers {layers:?} of one block, in this order,"),
                layout: self.strided().describe(),
            }))
        })
    }

    fn layer_bytes(&self) -> Option<&LayerBytes> {
        let bytes = &self.inner.layer_bytes;
        bytes
            .get_or_init(|| LayerBytes::of(self.strided()))
            .as_ref()
    }

    /// Whether both are the same layout over the same memory. Clones are.
    #[must_use]
    pub fn is_same(&self, other: &PhysicalLayout) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}
