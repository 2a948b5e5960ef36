//! The caller's rows: its memory, registered with a block store.

use std::sync::Arc;

use kvtile::tiers::block_store::{BlockStore, StoreRows};
use parking_lot::Mutex;
use pyo3::prelude::*;

use super::group::{OPAQUE_WORD, PyStoreGroup, opaque_shape};
use crate::{
    arguments::wrong_type,
    cache::settings::word_of_text,
    error::{
        CallFailure,
        python::{ClosedError, TensorError},
        raise,
    },
    guard, layout,
    layout::{PyLayout, PyLayoutShared},
    tensor::{self, ForeignTensor},
};

/// Memory of the caller that is registered with a BlockStore, one block a row. The store, and each
/// of its jobs, keeps the memory alive until ``release``.
#[pyclass(name = "StoreRows", module = "kvtile", frozen)]
pub(crate) struct PyStoreRows {
    rows: Mutex<Option<StoreRows>>,
    count: u64,
    group: String,
    is_direct: bool,
}

/// The memory of a call of ``register``.
pub(super) struct RowMemory(Arc<PyLayoutShared>);

impl RowMemory {
    /// The layout of `memory`: a Layout, or a buffer or tensor without gaps for an opaque group.
    pub(super) fn of(memory: &Bound<'_, PyAny>, group: &PyStoreGroup) -> PyResult<RowMemory> {
        if let Ok(layout) = memory.cast::<PyLayout>() {
            return Ok(RowMemory(layout.get().shared()?));
        }
        let py = memory.py();
        if !group.is_opaque {
            return Err(TensorError::new_err(format!(
                "the blocks of group {:?} have an order of elements: give a Layout over the memory",
                group.group.name
            )));
        }
        let bytes = group.group.shape.block_bytes();
        let block_bytes = bytes.map_err(|error| raise(py, error))?;
        let tensor = tensor::describe(0, memory)?;
        let (rows, tensor) = as_bytes(tensor, block_bytes)?;
        let shape = opaque_shape(block_bytes, rows);
        let shape = shape.map_err(|error| raise(py, CallFailure::from(error)))?;
        let word = word_of_text(py, OPAQUE_WORD)?;
        let layout = layout::build_over(py, (word, None), &shape, Some(vec![tensor]))?;
        Ok(RowMemory(layout))
    }

    /// Registers the memory with a store.
    pub(super) fn register(
        self,
        store: &BlockStore,
        group: &str,
    ) -> Result<PyStoreRows, CallFailure> {
        let handle = self.0.handle()?;
        let rows = store.register_handle(group, handle, self.0)?;
        Ok(PyStoreRows {
            count: rows.rows(),
            is_direct: rows.is_direct(),
            rows: Mutex::new(Some(rows)),
            group: group.to_owned(),
        })
    }
}

/// The tensor as rows of bytes, with their number.
fn as_bytes(tensor: ForeignTensor, block_bytes: u64) -> PyResult<(u64, ForeignTensor)> {
    let refused = |what: &str| Err(TensorError::new_err(format!("the memory {what}")));
    if tensor.is_on_device() {
        return refused(
            "is memory of a device; a block store takes host memory, and a Cache takes layouts on devices",
        );
    }
    let Some(tensor) = tensor.into_bytes() else {
        return refused("has gaps between its elements; give one contiguous buffer");
    };
    let bytes = tensor.sizes.first().copied().unwrap_or(0) as u64;
    if bytes == 0 || !bytes.is_multiple_of(block_bytes) {
        return refused(&format!(
            "has {bytes} bytes, which are no whole number of blocks of {block_bytes} bytes"
        ));
    }
    Ok((bytes / block_bytes, tensor))
}

/// The argument `rows`.
pub(super) fn read<'py>(value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyStoreRows>> {
    let rows = value.cast::<PyStoreRows>().cloned();
    rows.map_err(|_| wrong_type("rows", "the rows that BlockStore.register returns", value))
}

impl PyStoreRows {
    /// The rows, unless they were released.
    pub(super) fn rows(&self) -> PyResult<StoreRows> {
        let rows = self.rows.lock().clone();
        rows.ok_or_else(|| {
            ClosedError::new_err("the rows were released; register the memory again")
        })
    }
}

impl Drop for PyStoreRows {
    fn drop(&mut self) {
        guard::discard(self.rows.get_mut().take());
    }
}

#[pymethods]
impl PyStoreRows {
    /// The group of their blocks.
    #[getter]
    fn group(&self) -> &str {
        &self.group
    }

    /// Whether a row has the order of a stored block, so that loads go straight into it. Otherwise
    /// they go through staging memory, which permutes the bytes.
    #[getter]
    fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// Waits until no job uses the rows, and releases the memory. Releasing twice is fine.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let rows = self.rows.lock().take();
        let Some(rows) = rows else {
            return Ok(());
        };
        let layout = guard::run(py, move || rows.release())?;
        // With the GIL, the caller's objects are dropped at once.
        drop(layout);
        Ok(())
    }

    fn __len__(&self) -> PyResult<usize> {
        Ok(usize::try_from(self.count).unwrap_or(usize::MAX))
    }

    fn __repr__(&self) -> String {
        let state = match self.rows.lock().is_some() {
            true => "",
            false => ", released",
        };
        format!(
            "<kvtile.StoreRows: {} rows of group {:?}{state}>",
            self.count, self.group
        )
    }
}
