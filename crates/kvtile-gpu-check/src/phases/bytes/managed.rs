//! The same transfers by kvtile's own transfer manager, whose lanes choose routes, queues and staging memory.
//!
//! ```text
//! device ◄─load── images of the host, unpermuted
//! source ─the transfer─► destination, one or both of the device
//! destination ─store─► an image of the host that held poison
//! ```

use std::sync::Arc;

use kvtile_device::{Device, RegisterOptions, RegisteredMemory};
use kvtile_layout::tradition::LayoutSpec;
use kvtile_memory::{OwnedMemoryRegion, SystemMemory};
use kvtile_testkit::{
    Image, NaiveSelection,
    generate::{LayoutCase, TransferCase},
};
use kvtile_transfer::{LayoutHandle, PhysicalLayout, TransferManager, TransferOptions};

use crate::{
    error::GpuCheckError,
    figures::{MeasuredDirection, MeasuredRoute},
};

/// Every direction.
pub(super) const WAYS: [(MeasuredDirection, MeasuredRoute); 3] = [
    (MeasuredDirection::Inside, MeasuredRoute::Manager),
    (MeasuredDirection::HostToDevice, MeasuredRoute::Manager),
    (MeasuredDirection::DeviceToHost, MeasuredRoute::Manager),
];

/// A transfer manager over a device.
pub(super) struct ManagedCopies {
    device: Device,
    manager: TransferManager,
}

/// Memory of the host under a layout.
struct HostImage {
    memory: Vec<Arc<SystemMemory>>,
}

impl HostImage {
    fn new(image: &Image) -> Result<HostImage, GpuCheckError> {
        let region = |bytes: &Vec<u8>| {
            let mut memory = SystemMemory::options()
                .huge_pages(false)
                .allocate(bytes.len())?;
            memory.as_mut_slice().copy_from_slice(bytes);
            Ok(Arc::new(memory))
        };
        let memory = image.iter().map(region);
        Ok(HostImage {
            memory: memory.collect::<Result<_, GpuCheckError>>()?,
        })
    }

    /// The regions for a layout; pinned ones are registered with the device.
    fn regions(
        &self,
        device: &Device,
        is_pinned: bool,
    ) -> Result<Vec<OwnedMemoryRegion>, GpuCheckError> {
        let region = |memory: &Arc<SystemMemory>| -> Result<OwnedMemoryRegion, GpuCheckError> {
            let memory: OwnedMemoryRegion = Arc::<SystemMemory>::clone(memory);
            if !is_pinned {
                return Ok(memory);
            }
            let options = RegisterOptions::default();
            Ok(Arc::new(RegisteredMemory::register(
                device, memory, options,
            )?))
        };
        self.memory.iter().map(region).collect()
    }

    /// The bytes, after no layout refers to them any more.
    fn into_image(self) -> Result<Image, GpuCheckError> {
        let region = |memory: Arc<SystemMemory>| {
            let mut memory = Arc::into_inner(memory).ok_or(GpuCheckError::StillInUse)?;
            Ok(memory.as_mut_slice().to_vec())
        };
        self.memory.into_iter().map(region).collect()
    }
}

impl ManagedCopies {
    pub(super) fn new(device: &Device) -> ManagedCopies {
        ManagedCopies {
            device: device.clone(),
            manager: TransferManager::new(),
        }
    }

    /// Executes a transfer and returns the bytes of the destination.
    pub(super) fn transfer(
        &self,
        case: &TransferCase,
        (from, to): (&Image, &Image),
        direction: MeasuredDirection,
        is_pinned: bool,
    ) -> Result<Image, GpuCheckError> {
        let (source, destination) = (HostImage::new(from)?, HostImage::new(to)?);
        let mut used = Vec::new();
        let host_source = self.host(&case.src, &source, is_pinned, &mut used)?;
        let host_destination = self.host(&case.dst, &destination, is_pinned, &mut used)?;
        let source_at = match direction {
            MeasuredDirection::HostToDevice => host_source,
            _ => self.on_device(&case.src, host_source, &mut used)?,
        };
        let destination_at = match direction {
            MeasuredDirection::DeviceToHost => host_destination,
            _ => self.on_device(&case.dst, host_destination, &mut used)?,
        };
        self.copy(source_at, destination_at, &case.selection)?;
        if direction != MeasuredDirection::DeviceToHost {
            let everything = NaiveSelection::everything(&case.dst.shape);
            self.copy(destination_at, host_destination, &everything)?;
        }
        for handle in used {
            drop(self.manager.unregister(handle)?);
        }
        destination.into_image()
    }

    fn host(
        &self,
        case: &LayoutCase,
        image: &HostImage,
        is_pinned: bool,
        used: &mut Vec<LayoutHandle>,
    ) -> Result<LayoutHandle, GpuCheckError> {
        let regions = image.regions(&self.device, is_pinned)?;
        let layout = PhysicalLayout::builder()
            .with_aligned_shape(case.shape.clone(), case.alignment)
            .layout(LayoutSpec::Word(case.word.clone()))
            .with_memory_regions(regions)
            .build()?;
        let handle = self.manager.register(layout)?;
        used.push(handle);
        Ok(handle)
    }

    /// The same layout in memory of the device, with the units of the host's.
    fn on_device(
        &self,
        case: &LayoutCase,
        host: LayoutHandle,
        used: &mut Vec<LayoutHandle>,
    ) -> Result<LayoutHandle, GpuCheckError> {
        let layout = PhysicalLayout::builder()
            .with_aligned_shape(case.shape.clone(), case.alignment)
            .layout(LayoutSpec::Word(case.word.clone()))
            .allocate_device(&self.device)
            .build()?;
        let handle = self.manager.register(layout)?;
        used.push(handle);
        self.copy(host, handle, &NaiveSelection::everything(&case.shape))?;
        Ok(handle)
    }

    fn copy(
        &self,
        from: LayoutHandle,
        to: LayoutHandle,
        selection: &NaiveSelection,
    ) -> Result<(), GpuCheckError> {
        let options = TransferOptions::new();
        let selection = selection.selection();
        let started = self
            .manager
            .execute_selection(from, to, selection, options)?;
        let _report = started.wait()?;
        Ok(())
    }
}
