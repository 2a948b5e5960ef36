//! The tensors of a layout: one for each region of its word, in a list or by plane.

use std::collections::BTreeMap;

use kvtile::layout::{Plane, PlanePiece, Shape, StridedLayout, Unit, Word};
use pyo3::{
    prelude::*,
    types::{PyDict, PyList, PyTuple},
};

use crate::{
    arguments::text,
    error::{python, raise},
    tensor::{self, ForeignTensor},
};

/// Describes the tensors in the order of the word's regions, and checks their dtypes against the planes of each region.
pub(crate) fn described(
    word: &Word,
    shape: &Shape,
    tensors: &Bound<'_, PyAny>,
) -> PyResult<Vec<ForeignTensor>> {
    let dense = StridedLayout::resolve(word, shape, 1);
    let dense = dense.map_err(|error| raise(tensors.py(), error))?;
    let mut planes: BTreeMap<u64, Vec<&Plane>> = BTreeMap::new();
    for (plane, piece) in dense.planes() {
        for region in regions_of(piece) {
            planes.entry(region).or_default().push(plane);
        }
    }
    let list = match tensors.cast::<PyDict>() {
        Ok(by_plane) => in_order(word, by_plane, &planes)?,
        Err(_) => items(tensors),
    };
    let mut found = Vec::with_capacity(list.len());
    for (index, object) in list.iter().enumerate() {
        let tensor = tensor::describe(index, object)?;
        // A wrong number of tensors is refused where the layout is made.
        if let Some(planes) = planes.get(&(index as u64)) {
            check_dtype(index, &tensor.unit, planes)?;
        }
        found.push(tensor);
    }
    Ok(found)
}

/// The tensors of a list or a tuple, or the only one. Iterating over another object would split it.
fn items<'py>(tensors: &Bound<'py, PyAny>) -> Vec<Bound<'py, PyAny>> {
    if let Ok(list) = tensors.cast::<PyList>() {
        return list.iter().collect();
    }
    match tensors.cast::<PyTuple>() {
        Ok(tuple) => tuple.iter().collect(),
        Err(_) => vec![tensors.clone()],
    }
}

/// The regions that a plane occupies, in ascending order.
fn regions_of(piece: &PlanePiece) -> Vec<u64> {
    let steps = piece.digits().iter().filter(|digit| !digit.step.is_local());
    let mut regions = steps.fold(vec![piece.region()], |regions, digit| {
        let along = |region| (0..digit.extent).map(move |i| region + i * digit.step.regions);
        regions.into_iter().flat_map(along).collect()
    });
    regions.sort_unstable();
    regions
}

/// The tensors of a dict by plane, in the order of the word's regions.
fn in_order<'py>(
    word: &Word,
    by_plane: &Bound<'py, PyDict>,
    planes: &BTreeMap<u64, Vec<&Plane>>,
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let mut of_regions: Vec<&str> = Vec::with_capacity(planes.len());
    let mut needed: BTreeMap<&str, usize> = BTreeMap::new();
    for planes in planes.values() {
        let [plane] = planes.as_slice() else {
            let names: Vec<&str> = planes.iter().map(|plane| plane.name().as_str()).collect();
            return Err(python::TensorError::new_err(format!(
                "the planes {} share tensors in {word}; give tensors as a list",
                names.join(", ")
            )));
        };
        let name = plane.name().as_str();
        of_regions.push(name);
        *needed.entry(name).or_default() += 1;
    }
    let mut given = BTreeMap::new();
    for (name, tensors) in by_plane {
        let name = text::read("the name of a plane in tensors", &name)?;
        let items = items(&tensors);
        let count = needed.get(&*name).copied().unwrap_or(0);
        if items.len() != count {
            let name: String = name.chars().take(64).collect();
            return Err(python::TensorError::new_err(format!(
                "tensors[{name:?}] has {}, and the plane has {count} in {word}",
                items.len()
            )));
        }
        given.insert(name.to_string(), items.into_iter());
    }
    let each = of_regions.into_iter().map(|name| {
        let next = given.get_mut(name).and_then(Iterator::next);
        next.ok_or_else(|| {
            python::TensorError::new_err(format!(
                "tensors has no plane {name}; the word {word} has tensors of it"
            ))
        })
    });
    each.collect()
}

/// Checks that the elements match the planes. Byte tensors may also hold records, one-byte values,
/// and planes of several dtypes.
fn check_dtype(index: usize, unit: &Unit, planes: &[&Plane]) -> PyResult<()> {
    if planes.iter().all(|plane| plane.unit() == unit) {
        return Ok(());
    }
    let first = planes.first().map(|plane| plane.unit());
    let mixed = planes.iter().any(|plane| Some(plane.unit()) != first);
    let is_byte = matches!(unit.codec(), "uint8" | "int8");
    let held_as_bytes = |plane: &&Plane| {
        let unit = plane.unit();
        unit.is_opaque()
            || unit.values() != 1
            || unit.bytes() == 1
            || Unit::named(unit.codec()).as_ref() != Some(unit)
    };
    if is_byte && (mixed || planes.iter().all(held_as_bytes)) {
        return Ok(());
    }
    let planes: Vec<String> = planes
        .iter()
        .map(|plane| format!("{} is {}", plane.name(), plane.unit().codec()))
        .collect();
    Err(python::TensorError::new_err(format!(
        "tensor {index} has dtype {}, but plane {}",
        unit.codec(),
        planes.join(", plane ")
    )))
}
