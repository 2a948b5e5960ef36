//! Makes regions from tensors: equally spaced views of one storage are one region, other tensors
//! one each.

use kvtile::layout::{OwnedMemoryRegion, TensorView};
use pyo3::prelude::*;

use super::{AddressRange, ForeignTensor, foreign::borrow};
use crate::error::{python::TensorError, raise};

/// Tensors in the library's form: the regions, and the position of each tensor in them.
#[derive(Debug)]
pub(crate) struct TensorBacking {
    pub(crate) regions: Vec<OwnedMemoryRegion>,
    pub(crate) views: Vec<TensorView>,
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
    let mut regions = Vec::new();
    let failed = |error| raise(py, error);
    match together {
        Some(whole) => {
            let read_only = tensors.iter().any(|tensor| tensor.read_only);
            let owners = tensors
                .into_iter()
                .flat_map(|tensor| tensor.owners)
                .collect();
            regions.push(borrow(whole, owners, read_only).map_err(failed)?);
        }
        None => {
            for (tensor, extent) in tensors.into_iter().zip(extents) {
                let region = borrow(extent, tensor.owners, tensor.read_only);
                regions.push(region.map_err(failed)?);
            }
        }
    }
    Ok(TensorBacking { regions, views })
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
