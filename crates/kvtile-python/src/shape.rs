//! Planes and shapes as Python gives them.

use std::collections::BTreeMap;

use kvtile::layout::{Axis, AxisRange, Plane, Shape, Shard, Unit};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    dtype::unit_of,
    error::{python::LayoutError, raise},
};

/// One component of a block with its own dtype and axes: ``k``, ``v``, a latent, scales.
///
/// Args:
///     name: lower-case letters, as the layout word has it.
///     dtype: a name or the dtype of numpy, torch or ml_dtypes; for records give ``codec`` names such as
///         ``"q8_0"``, or any name together with ``unit_bytes``.
///     unit_bytes: bytes of one unit, for a dtype that kvtile does not know.
///     opaque: whether nobody knows the inside of a unit; it is then copied whole or not at all.
///     per_page: one entry a block and layer, not one a token.
///     axes: extents in units, for instance ``H=8, C=128``; other capital letters are axes of your own.
///
/// Raises:
///     LayoutError: a name, dtype or axis that makes no sense.
#[pyclass(name = "Plane", module = "kvtile", frozen, eq, hash)]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PyPlane(pub(crate) Plane);

#[pymethods]
impl PyPlane {
    #[new]
    #[pyo3(signature = (name, dtype, *, unit_bytes=None, opaque=false, per_page=false, **axes))]
    fn new(
        name: &str,
        dtype: &Bound<'_, PyAny>,
        unit_bytes: Option<u64>,
        opaque: bool,
        per_page: bool,
        axes: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyPlane> {
        let py = dtype.py();
        let unit = unit(dtype, unit_bytes, opaque)?;
        let mut plane = Plane::new(name, unit).map_err(|error| raise(py, error))?;
        for (axis, extent) in axes.into_iter().flatten() {
            let letter: String = axis.extract()?;
            let mut letters = letter.chars();
            let (Some(axis), None) = (letters.next().and_then(Axis::new), letters.next()) else {
                return Err(LayoutError::new_err(format!(
                    "{letter:?} is no axis of plane {name}; axes are single capital letters, such as H and C"
                )));
            };
            plane = plane.extent(axis, extent.extract()?);
        }
        if per_page {
            plane = plane.per_page();
        }
        Ok(PyPlane(plane))
    }

    /// The name.
    #[getter]
    fn name(&self) -> &str {
        self.0.name().as_str()
    }

    /// The name of the encoding, for instance ``"bf16"``.
    #[getter]
    fn codec(&self) -> &str {
        self.0.unit().codec()
    }

    /// Extents in units, by axis.
    #[getter]
    fn axes(&self) -> BTreeMap<String, u64> {
        let extents = self.0.extents().iter();
        extents
            .map(|(axis, extent)| (axis.to_string(), *extent))
            .collect()
    }

    /// Bytes of one unit.
    #[getter]
    fn unit_bytes(&self) -> u64 {
        self.0.unit().bytes()
    }

    fn __repr__(&self) -> String {
        let extents = self.0.extents().iter();
        let extents: String = extents
            .map(|(axis, extent)| format!(", {axis}={extent}"))
            .collect();
        format!("Plane({:?}, {:?}{extents})", self.name(), self.codec())
    }
}

fn unit(dtype: &Bound<'_, PyAny>, bytes: Option<u64>, opaque: bool) -> PyResult<Unit> {
    let py = dtype.py();
    match (bytes, opaque) {
        (None, false) => unit_of(dtype),
        (None, true) => Err(LayoutError::new_err("an opaque plane needs unit_bytes")),
        (Some(bytes), true) => {
            let codec: String = dtype.extract()?;
            Unit::opaque(&codec, bytes).map_err(|error| raise(py, error))
        }
        (Some(bytes), false) => {
            let codec: String = dtype.extract()?;
            Unit::new(&codec, bytes, 1).map_err(|error| raise(py, error))
        }
    }
}

/// What a layout holds: how many blocks, layers, tokens a block, and which planes, in no order.
///
/// Args:
///     num_blocks: blocks.
///     num_layers: layers held here.
///     page_size: tokens a block (vLLM calls it block_size).
///     num_heads: KV heads held here; with ``head_size`` and ``dtype`` it makes the planes k and v.
///     head_size: elements of one head of one token.
///     dtype: of k and v, a name or the dtype of numpy, torch or ml_dtypes.
///     planes: the planes, instead of the three before.
///     first_layer, total_layers, first_head, total_heads: which part of the whole model this is, for
///         pipeline and tensor parallelism; the whole model unless said.
///
/// Raises:
///     LayoutError: counts of zero, sizes beyond 2**63 bytes, planes that contradict each other.
#[pyclass(name = "Shape", module = "kvtile", frozen, eq, hash)]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PyShape(pub(crate) Shape);

/// The part of a model, as keywords.
#[derive(Default)]
struct Part {
    first_layer: u64,
    total_layers: Option<u64>,
    first_head: u64,
    total_heads: Option<u64>,
}

#[pymethods]
impl PyShape {
    #[new]
    #[pyo3(signature = (
        *, num_blocks, num_layers, page_size, num_heads=None, head_size=None, dtype=None, planes=None,
        first_layer=0, total_layers=None, first_head=0, total_heads=None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        py: Python<'_>,
        num_blocks: u64,
        num_layers: u64,
        page_size: u64,
        num_heads: Option<u64>,
        head_size: Option<u64>,
        dtype: Option<&Bound<'_, PyAny>>,
        planes: Option<Vec<Bound<'_, PyPlane>>>,
        first_layer: u64,
        total_layers: Option<u64>,
        first_head: u64,
        total_heads: Option<u64>,
    ) -> PyResult<PyShape> {
        let shape = match (planes, num_heads, head_size, dtype) {
            (Some(planes), None, None, None) => {
                let planes = planes.iter().map(|plane| plane.get().0.clone()).collect();
                Shape::new(num_blocks, num_layers, page_size, planes)
            }
            (None, Some(heads), Some(size), Some(dtype)) => {
                let unit = unit_of(dtype)?;
                Shape::key_value(num_blocks, num_layers, page_size, heads, size, &unit)
            }
            _ => {
                return Err(LayoutError::new_err(
                    "a shape needs num_heads, head_size and dtype, or planes instead of them",
                ));
            }
        };
        let part = Part {
            first_layer,
            total_layers,
            first_head,
            total_heads,
        };
        let shape = shape.and_then(|shape| {
            let shard = part.shard(&shape);
            shape.with_shard(shard)
        });
        shape.map(PyShape).map_err(|error| raise(py, error))
    }

    /// The shape of a model's KV, or of the part that one rank holds, from its Hugging Face config.
    ///
    /// Args:
    ///     config: a ``PretrainedConfig``, or the ``config.json`` as a dict.
    ///     page_size: tokens a block.
    ///     num_blocks: blocks; 1 unless said.
    ///     dtype: of the KV; the config's dtype unless said.
    ///     tp_rank, tp_size: which heads are held here, under tensor parallelism.
    ///     layers: ``(start, stop)`` of the layers held here, under pipeline parallelism; all unless said.
    ///     text_only: as for Identity.from_hf_config.
    ///
    /// Raises:
    ///     IdentityError: as for Identity.from_hf_config.
    #[staticmethod]
    #[pyo3(signature = (config, *, page_size, **settings))]
    fn from_hf_config(
        config: &Bound<'_, PyAny>,
        page_size: u64,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let helper = config.py().import("kvtile._hf")?.getattr("shape_of")?;
        Ok(helper.call((config, page_size), settings)?.unbind())
    }

    /// Blocks.
    #[getter]
    fn num_blocks(&self) -> u64 {
        self.0.num_blocks()
    }

    /// Layers held here.
    #[getter]
    fn num_layers(&self) -> u64 {
        self.0.num_layers()
    }

    /// Tokens a block.
    #[getter]
    fn page_size(&self) -> u64 {
        self.0.page_size()
    }

    /// KV heads held here; 1 where no plane has heads.
    #[getter]
    fn num_heads(&self) -> u64 {
        self.0.num_heads()
    }

    /// The planes.
    #[getter]
    fn planes(&self) -> Vec<PyPlane> {
        self.0.planes().iter().cloned().map(PyPlane).collect()
    }

    /// Payload bytes of one block: all layers and planes, without padding.
    #[getter]
    fn block_bytes(&self, py: Python<'_>) -> PyResult<u64> {
        self.0.block_bytes().map_err(|error| raise(py, error))
    }

    /// The same shape with another number of blocks.
    fn with_num_blocks(&self, py: Python<'_>, num_blocks: u64) -> PyResult<PyShape> {
        let shape = self.0.with_num_blocks(num_blocks);
        shape.map(PyShape).map_err(|error| raise(py, error))
    }

    fn __repr__(&self) -> String {
        let planes: Vec<String> = self.planes().iter().map(PyPlane::__repr__).collect();
        format!(
            "Shape(num_blocks={}, num_layers={}, page_size={}, planes=[{}])",
            self.num_blocks(),
            self.num_layers(),
            self.page_size(),
            planes.join(", ")
        )
    }
}

impl Part {
    fn shard(&self, shape: &Shape) -> Shard {
        let (layers, heads) = (shape.num_layers(), shape.num_heads());
        Shard {
            layers: AxisRange::new(self.first_layer, layers),
            total_layers: self.total_layers.unwrap_or(layers),
            heads: AxisRange::new(self.first_head, heads),
            total_heads: self.total_heads.unwrap_or(heads),
            replica: 0,
        }
    }
}
