//! Makes regions from tensors: equally spaced views of one storage are one region, other tensors
//! one each.

use kvtile::layout::{OwnedMemoryRegion, TensorView};
use pyo3::prelude::*;

use super::{AddressRange, ForeignTensor, device, foreign::borrow};
use crate::error::{python::TensorError, raise};

/// Tensors in the library's form: the regions, and the position of each tensor in them.
#[derive(Debug)]
pub(crate) struct TensorBacking {
    pub(crate) regions: Vec<OwnedMemoryRegion>,
    pub(crate) views: Vec<TensorView>,
}

/// Memory that becomes one region: an extent, the objects that keep it, and whether it is read-only.
pub(super) struct RegionExtent {
    pub(super) extent: AddressRange,
    pub(super) owners: Vec<Py<PyAny>>,
    pub(super) read_only: bool,
}

/// The regions under `tensors`, in their order.
pub(crate) fn back(py: Python<'_>, tensors: Vec<ForeignTensor>) -> PyResult<TensorBacking> {
    let mut extents = Vec::with_capacity(tensors.len());
    for (index, tensor) in tensors.iter().enumerate() {
        let extent = tensor.extent().ok_or_else(|| {
            let (sizes, strides) = (&tensor.sizes, &tensor.strides);
            TensorError::new_err(format!(
                "tensor {index} of sizes {sizes:?} and strides {strides:?} is empty, goes backwards, \
                 or does not fit in memory"
            ))
        })?;
        extents.push(extent);
    }
    let together = one_storage(&tensors, &extents);
    let mut views = Vec::with_capacity(tensors.len());
    for (index, (tensor, extent)) in tensors.iter().zip(&extents).enumerate() {
        let element = usize::try_from(tensor.unit.bytes()).unwrap_or(usize::MAX);
        let view = TensorView::new(&tensor.sizes, &tensor.strides, element);
        views.push(match together {
            Some(whole) => view.at(0, (extent.address - whole.address) as u64),
            None => view.at(index as u64, 0),
        });
    }
    let on_device = device::device_of(py, &tensors)?;
    let backed = owned_extents(tensors, extents, together);
    let regions = match on_device {
        Some(device) => device::import(py, &device, backed)?,
        None => {
            let each = backed.into_iter();
            let each = each.map(|one| borrow(one.extent, one.owners, one.read_only));
            let regions: Result<Vec<_>, _> = each.collect();
            regions.map_err(|error| raise(py, error))?
        }
    };
    Ok(TensorBacking { regions, views })
}

/// The memory of each region: all of it in one, or that of each tensor.
fn owned_extents(
    tensors: Vec<ForeignTensor>,
    extents: Vec<AddressRange>,
    together: Option<AddressRange>,
) -> Vec<RegionExtent> {
    let Some(whole) = together else {
        let each = tensors.into_iter().zip(extents);
        return each
            .map(|(tensor, extent)| RegionExtent {
                extent,
                owners: tensor.owners,
                read_only: tensor.read_only,
            })
            .collect();
    };
    let read_only = tensors.iter().any(|tensor| tensor.read_only);
    let owners = tensors.into_iter().flat_map(|tensor| tensor.owners);
    vec![RegionExtent {
        extent: whole,
        owners: owners.collect(),
        read_only,
    }]
}

/// The extent of several tensors in their storage, if they are equally spaced views of one storage.
fn one_storage(tensors: &[ForeignTensor], extents: &[AddressRange]) -> Option<AddressRange> {
    let storage = tensors.first()?.storage?;
    let (first, last) = (extents.first()?, extents.last()?);
    let whole = AddressRange {
        address: first.address,
        bytes: last.end().checked_sub(first.address)?,
    };
    let same = tensors.iter().all(|tensor| tensor.storage == Some(storage));
    if extents.len() < 2 || !same || !storage.contains(whole) {
        return None;
    }
    let distance = |pair: &[AddressRange]| match pair {
        [before, after] => after.address.checked_sub(before.address),
        _ => None,
    };
    let mut distances = extents.windows(2).map(distance);
    let even = distances.next()??;
    let is_even = even > 0 && distances.all(|distance| distance == Some(even));
    is_even.then_some(whole)
}
