//! Regions over tensors of a device. The driver confirms what the tensors state about their memory.

use kvtile::{
    device::{Device, DeviceError},
    layout::OwnedMemoryRegion,
};
use pyo3::prelude::*;

use super::{ForeignTensor, TensorPlace, foreign, memory::RegionExtent};
use crate::{device, error::CallFailure, guard};

/// What a tensor states about its memory.
#[derive(Clone, Copy)]
struct DeviceClaim {
    index: usize,
    address: usize,
    element_bytes: u64,
    ordinal: Option<u32>,
    stream: Option<usize>,
}

/// The device of all tensors; `None` if all are in host memory. Waits for the streams that tensors name.
pub(super) fn device_of(py: Python<'_>, tensors: &[ForeignTensor]) -> PyResult<Option<Device>> {
    let mut claims = Vec::with_capacity(tensors.len());
    let mut on_host = None;
    for (index, tensor) in tensors.iter().enumerate() {
        match tensor.place {
            TensorPlace::Host => on_host = Some(index),
            TensorPlace::Device { ordinal, stream } => claims.push(DeviceClaim {
                index,
                address: tensor.address,
                element_bytes: tensor.unit.bytes(),
                ordinal,
                stream,
            }),
        }
    }
    let Some(first) = claims.first() else {
        return Ok(None);
    };
    if let Some(host) = on_host {
        let text = format!(
            "tensor {} is in memory of a device and tensor {host} in host memory; a layout has one kind of memory",
            first.index
        );
        return Err(CallFailure::Tensor(text).into_exception(py));
    }
    guard::run(py, || use_device(&claims)).map(Some)
}

fn use_device(claims: &[DeviceClaim]) -> Result<Device, CallFailure> {
    let mut common: Option<(usize, Device)> = None;
    for claim in claims {
        let ordinal = claim.check()?;
        let device = match &common {
            Some((_, device)) if device.ordinal() == ordinal => device.clone(),
            Some((index, device)) => {
                return Err(CallFailure::Tensor(format!(
                    "tensor {index} is on device {} and tensor {} on device {ordinal}; a layout is on one device",
                    device.ordinal(),
                    claim.index
                )));
            }
            None => device::device(ordinal)?,
        };
        if let Some(stream) = claim.stream {
            foreign::mark_behind(&device, stream)?.wait()?;
        }
        common.get_or_insert((claim.index, device));
    }
    match common {
        Some((_, device)) => Ok(device),
        None => Err(CallFailure::Tensor("there are no tensors".to_owned())),
    }
}

impl DeviceClaim {
    /// The ordinal of its device, after the checks that need no size.
    fn check(&self) -> Result<u32, CallFailure> {
        let (index, address) = (self.index, self.address);
        let refused = |what: String| Err(CallFailure::Tensor(format!("tensor {index}: {what}")));
        if address == 0 {
            return refused("its address is null".to_owned());
        }
        let bytes = self.element_bytes;
        if !(address as u64).is_multiple_of(bytes.max(1)) {
            return refused(format!(
                "its address {address:#x} is not a multiple of the {bytes} bytes of an element"
            ));
        }
        let driver = device::driver()?;
        match (self.ordinal, driver.device_of(address as u64)?) {
            (None, Some(ordinal)) => Ok(ordinal),
            (Some(named), Some(found)) if named == found => Ok(named),
            (Some(named), Some(found)) => refused(format!(
                "it states to be on device {named}, and its address {address:#x} is memory of device {found}"
            )),
            (_, None) => refused(format!(
                "its address {address:#x} is not memory of a device: the driver does not know it, or it is host memory"
            )),
        }
    }
}

/// Makes the regions, in order.
pub(super) fn import(
    py: Python<'_>,
    device: &Device,
    extents: Vec<RegionExtent>,
) -> PyResult<Vec<OwnedMemoryRegion>> {
    guard::run(py, || {
        let mut regions = Vec::with_capacity(extents.len());
        for (index, one) in extents.into_iter().enumerate() {
            let region = foreign::import(device, one.extent, one.owners, one.read_only);
            regions.push(region.map_err(|error| refused(index, error))?);
        }
        Ok::<_, CallFailure>(regions)
    })
}

fn refused(index: usize, error: DeviceError) -> CallFailure {
    match error {
        DeviceError::NotDeviceMemory { .. } => {
            CallFailure::Tensor(format!("tensor {index}: {error}"))
        }
        error => error.into(),
    }
}
