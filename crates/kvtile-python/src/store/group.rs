//! The groups of a block store.

use kvtile::{
    identity::Identity,
    layout::{LayoutError, Plane, Shape, Unit},
    tiers::block_store::StoreGroup,
};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    arguments::{
        list, number, object, optional,
        text::{self, TextArgument},
        wrong_type,
    },
    cache::settings::word_of,
    error::{CallFailure, python::SettingsError, raise},
    identity::{PyIdentity, texts_of},
    shape::PyShape,
};

/// The plane of opaque blocks.
pub(super) const OPAQUE_PLANE: &str = "p";

/// The word of opaque rows: one block after the other.
pub(super) const OPAQUE_WORD: &str = "Bp";

/// A group of blocks of one size in a BlockStore, with keys and an identity of its own.
///
/// Args:
///     name: the name, unique within the store.
///     identity: the identity of the blocks; blocks of another identity are never served.
///     shape: the shape of a block; its number of blocks is not used.
///     word: the layout word of stored blocks; default: ``kvtile.STORAGE_WORD``.
///     share: the share of the disk, relative to the sum of all shares; default: as many blocks as
///         each other group without a share.
#[pyclass(name = "StoreGroup", module = "kvtile", frozen)]
#[derive(Clone, Debug)]
pub(crate) struct PyStoreGroup {
    pub(super) group: StoreGroup,
    pub(super) is_opaque: bool,
}

#[pymethods]
impl PyStoreGroup {
    #[new]
    #[pyo3(signature = (name, identity, shape, *, word=None, share=None))]
    fn new(
        #[pyo3(from_py_with = text::name)] name: TextArgument,
        #[pyo3(from_py_with = object::identity)] identity: Bound<'_, PyIdentity>,
        #[pyo3(from_py_with = object::shape)] shape: Bound<'_, PyShape>,
        word: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = optional::share)] share: Option<f64>,
    ) -> PyResult<PyStoreGroup> {
        let mut group = StoreGroup::new(name, identity.get().0.clone(), shape.get().0.clone());
        group.storage_word = word.map(word_of).transpose()?;
        group.share = share;
        let is_opaque = false;
        Ok(PyStoreGroup { group, is_opaque })
    }

    /// A group of blocks whose interior is unknown: they are moved as a whole.
    ///
    /// Args:
    ///     name: the name, unique within the store.
    ///     block_bytes: bytes of a block.
    ///     model: the model's name.
    ///     revision: identifies the weights: a commit, or a digest of the file.
    ///     extra: everything else that changes the bytes: dtype, layout, page size, ranks.
    ///     share: as for StoreGroup.
    ///
    /// Raises:
    ///     LayoutError: names that are empty or too long.
    #[staticmethod]
    #[pyo3(signature = (name, block_bytes, *, model, revision, extra=None, share=None))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn opaque(
        py: Python<'_>,
        #[pyo3(from_py_with = text::name)] name: TextArgument,
        #[pyo3(from_py_with = number::block_bytes)] block_bytes: u64,
        #[pyo3(from_py_with = text::model)] model: TextArgument,
        #[pyo3(from_py_with = text::revision)] revision: TextArgument,
        #[pyo3(from_py_with = object::extra)] extra: Option<Bound<'_, PyDict>>,
        #[pyo3(from_py_with = optional::share)] share: Option<f64>,
    ) -> PyResult<PyStoreGroup> {
        if block_bytes == 0 {
            return Err(SettingsError::new_err(
                "block_bytes is 0; give the bytes of one block",
            ));
        }
        let extra = texts_of(extra)?;
        let made = || -> Result<StoreGroup, LayoutError> {
            let shape = opaque_shape(block_bytes, 1)?;
            let mut identity = Identity::new(&model, &revision, &shape)?;
            for (field, value) in &extra {
                identity = identity.with_extra(field, value)?;
            }
            Ok(StoreGroup::new(name, identity, shape))
        };
        let mut group = made().map_err(|error| raise(py, CallFailure::from(error)))?;
        group.share = share;
        let is_opaque = true;
        Ok(PyStoreGroup { group, is_opaque })
    }

    /// The name.
    #[getter]
    fn name(&self) -> &str {
        &self.group.name
    }

    /// Bytes of one block.
    #[getter]
    fn block_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        let bytes = self.group.shape.block_bytes();
        bytes.map_err(|error| raise(py, error))
    }

    /// The identity of the blocks.
    #[getter]
    fn identity(&self) -> PyIdentity {
        PyIdentity(self.group.identity.clone())
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let bytes = self.block_bytes(py)?;
        Ok(format!(
            "<kvtile.StoreGroup {:?} of blocks of {bytes} bytes>",
            self.name()
        ))
    }
}

/// The shape of `blocks` opaque blocks.
pub(super) fn opaque_shape(block_bytes: u64, blocks: u64) -> Result<Shape, LayoutError> {
    let unit = Unit::opaque(&format!("opaque{block_bytes}"), block_bytes)?;
    let plane = Plane::new(OPAQUE_PLANE, unit)?.per_page();
    Shape::new(blocks, 1, 1, vec![plane])
}

/// A group or a list of groups.
pub(super) fn groups_of(value: &Bound<'_, PyAny>) -> PyResult<Vec<PyStoreGroup>> {
    if let Ok(group) = value.cast::<PyStoreGroup>() {
        return Ok(vec![group.get().clone()]);
    }
    let wanted = "a StoreGroup or a list of them";
    let items = list::items("groups", wanted, value)?;
    let group = |(index, item): (usize, &Bound<'_, PyAny>)| {
        let group = item.cast::<PyStoreGroup>();
        let group =
            group.map_err(|_| wrong_type(&format!("groups[{index}]"), "a StoreGroup", item))?;
        Ok(group.get().clone())
    };
    items.iter().enumerate().map(group).collect()
}
