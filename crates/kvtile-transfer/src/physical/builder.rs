//! The builder of physical layouts. Each step has its own type, so that a wrong order does not
//! compile.
//!
//! ```text
//! builder() -> with_config | with_shape -> fully_contiguous | layer_separate | layout
//!           -> allocate_… | with_memory_regions | with_registered_regions -> build
//! ```

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use kvtile_device::{Device, DeviceMemory, PinnedMemory, RegisterOptions, RegisteredMemory};
use kvtile_layout::{
    LayoutError, Shape, ShapeError, StridedLayout,
    identity::Fingerprint,
    tradition::{BlockDimension, InnerShape, LayoutConfig, LayoutSpec},
};
use kvtile_memory::{
    FileMemory, OwnedMemoryRegion, Prefault, RegionView, SharedMemory, SystemMemory,
};

use super::{NixlMetadata, PhysicalLayout, view::TraditionalView};
use crate::{
    error::{BindError, TransferError},
    execute::BoundLayout,
};

/// Folder of scratch files: on a disk, not in memory.
const SCRATCH_FOLDER: &str = "/var/tmp";

/// Alignment of the regions of one allocation, in bytes.
const REGION_ALIGNMENT: u64 = 4096;

/// Alignment of every allocation of the driver, in bytes.
const DRIVER_ALIGNMENT: u64 = 256;

/// State of the builder: no configuration yet.
#[derive(Debug)]
pub struct NeedsConfig(());

/// State of the builder: it has a configuration or a shape and needs an order.
#[derive(Debug)]
pub struct HasConfig(ShapeSource);

#[derive(Debug)]
enum ShapeSource {
    Config(LayoutConfig),
    Shape { shape: Shape, alignment: u64 },
}

/// State of the builder: it has an order and needs memory.
#[derive(Debug)]
pub struct HasLayout {
    counts: ShapeSource,
    /// `build` reports a text that is not a word.
    spec: Result<LayoutSpec, LayoutError>,
}

/// State of the builder: it is ready to build.
#[derive(Debug)]
pub struct HasMemory {
    layout: HasLayout,
    memory: MemoryPlan,
}

#[derive(Debug)]
enum MemoryPlan {
    System(Prefault),
    Shared,
    SharedForReaders(Prefault),
    Disk(Option<PathBuf>),
    Pinned(Device),
    RegisteredWith(Device),
    Device(Device),
    Over(OwnedMemoryRegion),
    Regions(Vec<OwnedMemoryRegion>),
    Registered(String, Vec<OwnedMemoryRegion>),
}

/// Builds a [`PhysicalLayout`] step by step. Nothing is allocated or checked before
/// [`build`](PhysicalLayoutBuilder::build).
///
/// ```
/// use kvtile_layout::tradition::LayoutConfig;
/// use kvtile_transfer::PhysicalLayout;
///
/// let config = LayoutConfig::builder()
///     .num_blocks(4)
///     .num_layers(2)
///     .outer_dim(2)
///     .page_size(16)
///     .inner_dim(128)
///     .build()?;
/// let layout = PhysicalLayout::builder()
///     .with_config(config)
///     .fully_contiguous()
///     .allocate_system()
///     .build()?;
/// assert_eq!(layout.memory_region(1, 0, 0)?.size, 16 * 128 * 2);
/// # Ok::<(), kvtile_transfer::TransferError>(())
/// ```
///
/// Memory before the order does not compile:
///
/// ```compile_fail
/// # use kvtile_transfer::PhysicalLayout;
/// # fn wrong(config: kvtile_layout::tradition::LayoutConfig) {
/// PhysicalLayout::builder().with_config(config).allocate_system();
/// # }
/// ```
#[derive(Debug)]
pub struct PhysicalLayoutBuilder<State = NeedsConfig> {
    state: State,
    logical: Option<Fingerprint>,
}

impl<State> PhysicalLayoutBuilder<State> {
    /// Sets the fingerprint of the logical identity of the blocks. Where both layouts of a transfer
    /// have one, the manager refuses the transfer unless they are equal.
    #[must_use]
    pub fn with_logical_fingerprint(mut self, logical: Fingerprint) -> Self {
        self.logical = Some(logical);
        self
    }

    fn next<Next>(self, next: impl FnOnce(State) -> Next) -> PhysicalLayoutBuilder<Next> {
        PhysicalLayoutBuilder {
            state: next(self.state),
            logical: self.logical,
        }
    }
}

impl PhysicalLayoutBuilder<NeedsConfig> {
    pub(super) fn new() -> Self {
        PhysicalLayoutBuilder {
            state: NeedsConfig(()),
            logical: None,
        }
    }

    /// Counts as the block-manager tradition defines them.
    #[must_use]
    pub fn with_config(self, config: LayoutConfig) -> PhysicalLayoutBuilder<HasConfig> {
        self.next(|_| HasConfig(ShapeSource::Config(config)))
    }

    /// A shape with its own planes; blocks and regions are packed without padding.
    #[must_use]
    pub fn with_shape(self, shape: Shape) -> PhysicalLayoutBuilder<HasConfig> {
        self.with_aligned_shape(shape, 1)
    }

    /// As [`with_shape`](Self::with_shape), with blocks and regions that start at multiples of `alignment` bytes.
    #[must_use]
    pub fn with_aligned_shape(
        self,
        shape: Shape,
        alignment: u64,
    ) -> PhysicalLayoutBuilder<HasConfig> {
        self.next(|_| HasConfig(ShapeSource::Shape { shape, alignment }))
    }
}

impl PhysicalLayoutBuilder<HasConfig> {
    /// One region `[num_blocks, num_layers, outer_dim, page_size, inner_dim]`.
    #[must_use]
    pub fn fully_contiguous(self) -> PhysicalLayoutBuilder<HasLayout> {
        self.layout(LayoutSpec::FullyContiguous)
    }

    /// One region a layer; `block_dim` is the position of the block axis.
    #[must_use]
    pub fn layer_separate(self, block_dim: BlockDimension) -> PhysicalLayoutBuilder<HasLayout> {
        self.layout(LayoutSpec::LayerSeparate(block_dim))
    }

    /// Any order: a text in the layout language, a [`Word`](kvtile_layout::Word) or explicit digits.
    /// [`build`](PhysicalLayoutBuilder::build) reports a text that is no word.
    #[must_use]
    pub fn layout(
        self,
        spec: impl TryInto<LayoutSpec, Error: Into<LayoutError>>,
    ) -> PhysicalLayoutBuilder<HasLayout> {
        let spec = spec.try_into().map_err(Into::into);
        self.next(|HasConfig(counts)| HasLayout { counts, spec })
    }
}

impl PhysicalLayoutBuilder<HasLayout> {
    /// System memory: one mapping for all regions, with huge pages where the kernel allows them.
    /// The first touch of a page allocates it.
    #[must_use]
    pub fn allocate_system(self) -> PhysicalLayoutBuilder<HasMemory> {
        self.allocate_system_with(Prefault::None)
    }

    /// System memory as from [`allocate_system`](Self::allocate_system); `prefault` sets when its
    /// pages are allocated.
    #[must_use]
    pub fn allocate_system_with(self, prefault: Prefault) -> PhysicalLayoutBuilder<HasMemory> {
        self.memory(MemoryPlan::System(prefault))
    }

    /// Shared memory: one sealed memfd for all regions, which
    /// [`PhysicalLayout::shared_memory`] hands to another process.
    #[must_use]
    pub fn allocate_shared(self) -> PhysicalLayoutBuilder<HasMemory> {
        self.memory(MemoryPlan::Shared)
    }

    /// Shared memory as from [`allocate_shared`](Self::allocate_shared) that only this process writes
    /// ([`create_read_only_for_others`](kvtile_memory::AllocateOptions::create_read_only_for_others)):
    /// a process that receives it binds a layout to its
    /// [`SharedReadMemory`](kvtile_memory::SharedReadMemory), and no transfer writes that layout.
    #[must_use]
    pub fn allocate_shared_for_readers(
        self,
        prefault: Prefault,
    ) -> PhysicalLayoutBuilder<HasMemory> {
        self.memory(MemoryPlan::SharedForReaders(prefault))
    }

    /// One file for all regions: a new file at `path`, which remains when the layout is dropped, or
    /// an unnamed scratch file, which is removed with the layout. An existing file is refused and
    /// left unchanged.
    #[must_use]
    pub fn allocate_disk(self, path: Option<PathBuf>) -> PhysicalLayoutBuilder<HasMemory> {
        self.memory(MemoryPlan::Disk(path))
    }

    /// Memory of this process that the driver allocates and pins, in one allocation for all regions: `device` and all
    /// other devices copy from and to it without staging memory. Large pools start faster with
    /// [`allocate_registered`](Self::allocate_registered).
    #[must_use]
    pub fn allocate_pinned(self, device: &Device) -> PhysicalLayoutBuilder<HasMemory> {
        self.memory(MemoryPlan::Pinned(device.clone()))
    }

    /// System memory that several threads touch first, registered with the driver of `device`: for large pools, which start
    /// faster so than as [`allocate_pinned`](Self::allocate_pinned).
    #[must_use]
    pub fn allocate_registered(self, device: &Device) -> PhysicalLayoutBuilder<HasMemory> {
        self.memory(MemoryPlan::RegisteredWith(device.clone()))
    }

    /// Memory of `device`, in one allocation for all regions. Its bytes are undefined until they are written.
    #[must_use]
    pub fn allocate_device(self, device: &Device) -> PhysicalLayoutBuilder<HasMemory> {
        self.memory(MemoryPlan::Device(device.clone()))
    }

    /// One region of the caller for all regions of the layout. They lie one after the other at page
    /// boundaries, as in the `allocate_…` steps. Use it for received shared memory, memory with
    /// special options, or an existing file.
    #[must_use]
    pub fn over_memory(self, memory: OwnedMemoryRegion) -> PhysicalLayoutBuilder<HasMemory> {
        self.memory(MemoryPlan::Over(memory))
    }

    /// Regions that the caller owns, in the order of the layout.
    #[must_use]
    pub fn with_memory_regions(
        self,
        regions: Vec<OwnedMemoryRegion>,
    ) -> PhysicalLayoutBuilder<HasMemory> {
        self.memory(MemoryPlan::Regions(regions))
    }

    /// Regions that are registered with the NIXL agent `agent_name`. Each must have a NIXL
    /// descriptor.
    #[must_use]
    pub fn with_registered_regions(
        self,
        agent_name: &str,
        regions: Vec<OwnedMemoryRegion>,
    ) -> PhysicalLayoutBuilder<HasMemory> {
        self.memory(MemoryPlan::Registered(agent_name.to_owned(), regions))
    }

    fn memory(self, memory: MemoryPlan) -> PhysicalLayoutBuilder<HasMemory> {
        self.next(|layout| HasMemory { layout, memory })
    }
}

impl PhysicalLayoutBuilder<HasMemory> {
    /// Resolves the order, allocates the memory, and binds the layout to it. Every order that
    /// resolves can be bound; no [`LayoutConfig`] needs to describe the shape.
    ///
    /// # Errors
    /// An order that does not fit the shape; a failed allocation or file creation; regions that are
    /// too few, too small, misaligned, overlapping, of several kinds, or without a NIXL descriptor
    /// where registered ones are required. On an error no memory stays allocated and no file
    /// remains.
    pub fn build(self) -> Result<PhysicalLayout, TransferError> {
        let HasMemory { layout, memory } = self.state;
        let HasLayout { counts, spec } = layout;
        let spec = spec?;
        let strided = counts.resolve(&spec)?;
        let (regions, nixl) = memory.regions(&strided)?;
        let bound = BoundLayout::new(Arc::new(strided), regions)?;
        Ok(PhysicalLayout::local(
            Arc::new(bound),
            counts.into_view(spec),
            nixl,
            self.logical,
        ))
    }
}

impl ShapeSource {
    fn resolve(&self, spec: &LayoutSpec) -> Result<StridedLayout, TransferError> {
        let strided = match self {
            ShapeSource::Config(config) => {
                let (shape, inner) = (spec.shape(config)?, config.inner_shape());
                spec.resolve(&shape, inner, config.alignment() as u64)?
            }
            ShapeSource::Shape { shape, alignment } => {
                spec.resolve(shape, InnerShape::Unknown, *alignment)?
            }
        };
        Ok(strided)
    }

    fn into_view(self, spec: LayoutSpec) -> TraditionalView {
        let config = match self {
            ShapeSource::Config(config) => Some(config),
            ShapeSource::Shape { .. } => None,
        };
        TraditionalView::new(spec, config)
    }
}

impl MemoryPlan {
    fn regions(
        self,
        layout: &StridedLayout,
    ) -> Result<(Vec<OwnedMemoryRegion>, Option<NixlMetadata>), TransferError> {
        let packing = RegionPacking::new(layout)?;
        let memory: OwnedMemoryRegion = match self {
            MemoryPlan::Regions(regions) => return Ok((regions, None)),
            MemoryPlan::Registered(agent, regions) => {
                let nixl = registered(agent, &regions)?;
                return Ok((regions, Some(nixl)));
            }
            MemoryPlan::System(prefault) => {
                let options = SystemMemory::options().prefault(prefault);
                let regions = packing.allocate(layout.alignment(), REGION_ALIGNMENT, |bytes| {
                    Ok(Arc::new(options.allocate(bytes)?))
                })?;
                return Ok((regions, None));
            }
            MemoryPlan::Pinned(device) => {
                let regions = packing.allocate(layout.alignment(), DRIVER_ALIGNMENT, |bytes| {
                    Ok(Arc::new(PinnedMemory::allocate(&device, bytes)?))
                })?;
                return Ok((regions, None));
            }
            MemoryPlan::RegisteredWith(device) => {
                let regions = packing.allocate(layout.alignment(), REGION_ALIGNMENT, |bytes| {
                    let options = RegisterOptions::default();
                    let memory = RegisteredMemory::allocate(&device, bytes, options, |_| {})?;
                    Ok(Arc::new(memory))
                })?;
                return Ok((regions, None));
            }
            MemoryPlan::Device(device) => {
                let regions = packing.allocate(layout.alignment(), DRIVER_ALIGNMENT, |bytes| {
                    Ok(Arc::new(DeviceMemory::allocate(&device, bytes)?))
                })?;
                return Ok((regions, None));
            }
            MemoryPlan::Shared => Arc::new(SharedMemory::create(packing.bytes)?),
            MemoryPlan::SharedForReaders(prefault) => {
                let options = SharedMemory::options().prefault(prefault);
                Arc::new(options.create_read_only_for_others(packing.bytes)?)
            }
            MemoryPlan::Disk(Some(path)) => {
                Arc::new(FileMemory::options().create_new(&path, packing.bytes)?)
            }
            MemoryPlan::Disk(None) => {
                let folder = Path::new(SCRATCH_FOLDER);
                Arc::new(FileMemory::options().scratch(folder, packing.bytes)?)
            }
            MemoryPlan::Over(memory) => memory,
        };
        Ok((packing.views(&memory, 0)?, None))
    }
}

/// The NIXL metadata that all regions of an agent share.
fn registered(agent: String, regions: &[OwnedMemoryRegion]) -> Result<NixlMetadata, TransferError> {
    let mut shared = None;
    for (index, region) in regions.iter().enumerate() {
        let Some(descriptor) = region.nixl_descriptor() else {
            return Err(TransferError::Bind(BindError::NotRegistered {
                region: index,
                agent,
            }));
        };
        let metadata = (descriptor.mem_type, descriptor.device_id);
        if *shared.get_or_insert(metadata) != metadata {
            return Err(TransferError::Bind(BindError::NotRegistered {
                region: index,
                agent,
            }));
        }
    }
    match shared {
        Some((mem_type, device_id)) => Ok(NixlMetadata::new(agent, mem_type, device_id)),
        None => Err(TransferError::Bind(BindError::RegionCount {
            given: 0,
            needed: 1,
        })),
    }
}

/// The offsets of a layout's regions in one allocation. They lie one after the other, each at a
/// multiple of the layout's alignment and of the page size.
struct RegionPacking {
    bytes: usize,
    regions: Vec<(usize, usize)>,
}

impl RegionPacking {
    fn new(layout: &StridedLayout) -> Result<RegionPacking, TransferError> {
        let alignment = layout.alignment().max(REGION_ALIGNMENT);
        let mut end = 0u64;
        let mut regions = Vec::new();
        for &bytes in layout.region_bytes() {
            let place = end
                .checked_next_multiple_of(alignment)
                .and_then(|start| Some((start, start.checked_add(bytes)?)));
            let too_large =
                TransferError::Layout(kvtile_layout::LayoutError::Shape(ShapeError::TooLarge {
                    what: "bytes of all regions",
                }));
            let Some((start, next)) = place else {
                return Err(too_large);
            };
            let (Ok(start), Ok(bytes)) = (usize::try_from(start), usize::try_from(bytes)) else {
                return Err(too_large);
            };
            regions.push((start, bytes));
            end = next;
        }
        let bytes = usize::try_from(end).unwrap_or(usize::MAX);
        Ok(RegionPacking { bytes, regions })
    }

    /// The regions in newly allocated memory that starts at a multiple of `start_alignment`. For a larger alignment, the
    /// first region starts inside the memory.
    fn allocate(
        &self,
        alignment: u64,
        start_alignment: u64,
        allocate: impl FnOnce(usize) -> Result<OwnedMemoryRegion, TransferError>,
    ) -> Result<Vec<OwnedMemoryRegion>, TransferError> {
        let slack = if alignment > start_alignment {
            alignment
        } else {
            0
        };
        let slack = usize::try_from(slack).unwrap_or(usize::MAX);
        let memory = allocate(self.bytes.saturating_add(slack))?;
        let past = memory.addr().checked_rem(slack).unwrap_or(0);
        let shift = if past == 0 { 0 } else { slack - past };
        self.views(&memory, shift)
    }

    /// The regions in `memory`; the first one starts at offset `shift`.
    fn views(
        &self,
        memory: &OwnedMemoryRegion,
        shift: usize,
    ) -> Result<Vec<OwnedMemoryRegion>, TransferError> {
        if memory.size() < self.bytes.saturating_add(shift) {
            return Err(TransferError::Bind(BindError::RegionTooSmall {
                region: 0,
                have: memory.size() as u64,
                need: self.bytes as u64,
            }));
        }
        let mut views: Vec<OwnedMemoryRegion> = Vec::with_capacity(self.regions.len());
        for &(offset, bytes) in &self.regions {
            views.push(Arc::new(RegionView::new(
                Arc::clone(memory),
                shift + offset,
                bytes,
            )?));
        }
        Ok(views)
    }
}
