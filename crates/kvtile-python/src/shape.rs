//! The Python classes `Plane` and `Shape`.

use std::collections::BTreeMap;

use kvtile::layout::{Axis, AxisRange, Plane, Shape, Shard, Unit};
use pyo3::{
    prelude::*,
    types::{PyDict, PyType},
};

use crate::{
    arguments::{
        ArgumentRefusal, flag, keywords, number,
        number::whole,
        object, optional,
        text::{self, TextArgument},
    },
    dtype::unit_of,
    ending,
    error::{python::LayoutError, raise},
    pickle::{self, ReducedObject},
};

/// One component of a block with its own dtype and axes: ``k``, ``v``, a latent, scales.
///
/// Args:
///     name: lower-case letters, as in the layout word.
///     dtype: a name or the dtype of numpy, torch or ml_dtypes. For records, a ``codec`` name such
///         as ``"q8_0"``, or any name together with ``unit_bytes``.
///     unit_bytes: bytes of one unit, for a dtype that kvtile does not know.
///     opaque: whether the interior of a unit is unknown. Such a plane is copied as a whole or not
///         at all.
///     per_page: one entry per block and layer, not one per token.
///     every: one entry for this many consecutive tokens, as for compressed KV or scales that tokens share.
///     axes: extents in units, for instance ``H=8, C=128``; other capital letters are axes of your
///         own.
///
/// Raises:
///     LayoutError: an invalid name, dtype or axis.
#[pyclass(name = "Plane", module = "kvtile", frozen, eq, hash)]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PyPlane(pub(crate) Plane);

#[pymethods]
impl PyPlane {
    #[new]
    #[pyo3(signature = (name, dtype, *, unit_bytes=None, opaque=false, per_page=false, every=None, **axes))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        #[pyo3(from_py_with = text::name)] name: TextArgument,
        dtype: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = optional::unit_bytes)] unit_bytes: Option<u64>,
        #[pyo3(from_py_with = flag::opaque)] opaque: bool,
        #[pyo3(from_py_with = flag::per_page)] per_page: bool,
        #[pyo3(from_py_with = optional::every)] every: Option<u64>,
        axes: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyPlane> {
        let py = dtype.py();
        let unit = unit(dtype, unit_bytes, opaque)?;
        let mut plane = Plane::new(&name, unit).map_err(|error| raise(py, error))?;
        for (axis, extent) in axes.into_iter().flatten() {
            let letter = text::read("the name of an axis", &axis)?;
            let mut letters = letter.chars();
            let (Some(axis), None) = (letters.next().and_then(Axis::new), letters.next()) else {
                return Err(LayoutError::new_err(format!(
                    "{letter:?} is not an axis of plane {name}; axes are single capital letters, such as H and C"
                )));
            };
            let limits = (0, i128::from(i64::MAX));
            plane = plane.extent(
                axis,
                whole(&letter, &extent, limits, ArgumentRefusal::Layout)?,
            );
        }
        plane = match (per_page, every) {
            (false, None) => plane,
            (false, Some(tokens)) => plane.every(tokens),
            (true, None) => plane.per_page(),
            (true, Some(tokens)) => {
                return Err(LayoutError::new_err(format!(
                    "plane {name} has per_page=True and every={tokens}; give one of them"
                )));
            }
        };
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

    /// Tokens of an entry: 1 for a plane per token, None for one per page.
    #[getter]
    fn tokens(&self) -> Option<u64> {
        self.0.per().tokens()
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

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<ReducedObject<'py>> {
        pickle::reduce(&slf.get_type(), &slf.get().0)
    }

    #[classmethod]
    fn _from_pickle(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        pickle::restore(text).map(Self)
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
            let codec = text::read("dtype", dtype)?;
            Unit::opaque(&codec, bytes).map_err(|error| raise(py, error))
        }
        (Some(bytes), false) => {
            let codec = text::read("dtype", dtype)?;
            Unit::new(&codec, bytes, 1).map_err(|error| raise(py, error))
        }
    }
}

/// The contents of a layout: the numbers of blocks and layers, the page size, and the planes, in no
/// order.
///
/// Args:
///     num_blocks: number of blocks.
///     num_layers: number of layers of this shard.
///     page_size: tokens per block (vLLM calls it block_size).
///     num_heads: KV heads of this shard; with ``head_size`` and ``dtype`` it defines the planes k
///         and v.
///     head_size: elements of one head of one token.
///     dtype: dtype of k and v, a name or the dtype of numpy, torch or ml_dtypes.
///     planes: the planes, instead of the three arguments before.
///     first_layer, total_layers, first_head, total_heads: the position of this shard in the whole
///         model, for pipeline and tensor parallelism; default: the whole model.
///     replica: the number of this rank among those with the same layers and heads, where tensor
///         parallelism has more ranks than heads. It is no part of an identity.
///
/// Raises:
///     LayoutError: counts of zero, sizes beyond 2**63 bytes, planes that contradict each other.
#[pyclass(name = "Shape", module = "kvtile", frozen, eq, hash)]
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PyShape(pub(crate) Shape);

/// The keywords of a shape.
const KEYWORDS: [&str; 12] = [
    "num_blocks",
    "num_layers",
    "page_size",
    "num_heads",
    "head_size",
    "dtype",
    "planes",
    "first_layer",
    "total_layers",
    "first_head",
    "total_heads",
    "replica",
];

/// The shard, as keywords.
#[derive(Default)]
struct ShardKeywords {
    first_layer: u64,
    total_layers: Option<u64>,
    first_head: u64,
    total_heads: Option<u64>,
    replica: u32,
}

#[pymethods]
impl PyShape {
    #[new]
    #[pyo3(
        signature = (
            *, num_blocks, num_layers, page_size, num_heads=None, head_size=None, dtype=None, planes=None,
            first_layer=0, total_layers=None, first_head=0, total_heads=None, replica=0,
            **others
        ),
        text_signature = "(*, num_blocks, num_layers, page_size, num_heads=None, head_size=None, \
                          dtype=None, planes=None, first_layer=0, total_layers=None, first_head=0, \
                          total_heads=None, replica=0)"
    )]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = number::num_blocks)] num_blocks: u64,
        #[pyo3(from_py_with = number::num_layers)] num_layers: u64,
        #[pyo3(from_py_with = number::page_size)] page_size: u64,
        #[pyo3(from_py_with = optional::num_heads)] num_heads: Option<u64>,
        #[pyo3(from_py_with = optional::head_size)] head_size: Option<u64>,
        dtype: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = object::planes)] planes: Option<Vec<Bound<'_, PyPlane>>>,
        #[pyo3(from_py_with = number::first_layer)] first_layer: u64,
        #[pyo3(from_py_with = optional::total_layers)] total_layers: Option<u64>,
        #[pyo3(from_py_with = number::first_head)] first_head: u64,
        #[pyo3(from_py_with = optional::total_heads)] total_heads: Option<u64>,
        #[pyo3(from_py_with = number::replica)] replica: u32,
        others: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyShape> {
        keywords::refuse("Shape", others, &KEYWORDS)?;
        let has_planes = planes.is_some();
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
                let given = [
                    ("num_heads", num_heads.is_some()),
                    ("head_size", head_size.is_some()),
                    ("dtype", dtype.is_some()),
                ];
                let list = |wanted: bool| {
                    let names = given.iter().filter(|(_, is)| *is == wanted);
                    names.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
                };
                let problem = match has_planes {
                    true => format!("given: planes, {}", list(true)),
                    false => format!("missing: {}", list(false)),
                };
                return Err(LayoutError::new_err(format!(
                    "a shape needs num_heads, head_size and dtype, or planes instead of them; {problem}"
                )));
            }
        };
        let part = ShardKeywords {
            first_layer,
            total_layers,
            first_head,
            total_heads,
            replica,
        };
        let shape = shape.and_then(|shape| {
            let shard = part.shard(&shape);
            shape.with_shard(shard)
        });
        shape.map(PyShape).map_err(|error| raise(py, error))
    }

    /// Derives the shape of a model's KV, or of one rank's shard, from its Hugging Face config.
    ///
    /// Args:
    ///     config: a ``PretrainedConfig``, the ``config.json`` as a dict, or the path of that file or of its
    ///         folder.
    ///     page_size: tokens per block.
    ///     num_blocks: number of blocks; default: 1.
    ///     dtype: dtype of the KV; default: the config's dtype.
    ///     tp_rank, tp_size: rank and size of tensor parallelism; they select the heads of this
    ///         rank.
    ///     layers: ``(start, stop)`` of this rank's layers under pipeline parallelism; default: all
    ///         layers.
    ///     text_only: as for Identity.from_hf_config.
    ///
    /// Raises:
    ///     IdentityError: as for Identity.from_hf_config.
    #[staticmethod]
    #[pyo3(signature = (config, *, page_size, **settings))]
    fn from_hf_config(
        config: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = number::page_size)] page_size: u64,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let helper = ending::import(config.py(), "kvtile._hf")?.getattr("shape_of")?;
        let call = || helper.call((config, page_size), settings);
        Ok(ending::run_python(config.py(), call)?.unbind())
    }

    /// The number of blocks.
    #[getter]
    fn num_blocks(&self) -> u64 {
        self.0.num_blocks()
    }

    /// The number of layers of this shard.
    #[getter]
    fn num_layers(&self) -> u64 {
        self.0.num_layers()
    }

    /// Tokens per block.
    #[getter]
    fn page_size(&self) -> u64 {
        self.0.page_size()
    }

    /// KV heads of this shard; 1 if no plane has heads.
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
    fn with_num_blocks(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = number::num_blocks)] num_blocks: u64,
    ) -> PyResult<PyShape> {
        let shape = self.0.with_num_blocks(num_blocks);
        shape.map(PyShape).map_err(|error| raise(py, error))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<ReducedObject<'py>> {
        pickle::reduce(&slf.get_type(), &slf.get().0)
    }

    #[classmethod]
    fn _from_pickle(_class: &Bound<'_, PyType>, text: &str) -> PyResult<Self> {
        pickle::restore(text).map(Self)
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

impl ShardKeywords {
    fn shard(&self, shape: &Shape) -> Shard {
        let (layers, heads) = (shape.num_layers(), shape.num_heads());
        Shard {
            layers: AxisRange::new(self.first_layer, layers),
            total_layers: self.total_layers.unwrap_or(layers),
            heads: AxisRange::new(self.first_head, heads),
            total_heads: self.total_heads.unwrap_or(heads),
            replica: self.replica,
        }
    }
}
