//! Layouts: a word or a preset, a shape, and the tensors that hold the bytes.

mod given;

use std::sync::Arc;

use kvtile::{
    device::Device,
    layout::{
        LayoutError, LayoutSpec, PhysicalLayout, Plane, PlaneDigits, Shape, StridedLayout, Word,
        word_over_tensors,
    },
    presets::{self, RequestedLayout},
    transfer::LayoutHandle,
};
use parking_lot::{Mutex, MutexGuard};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    arguments::{
        keywords, object,
        text::{self, TextArgument},
    },
    error::{CallFailure, python, raise},
    guard, pickle,
    shape::PyShape,
    tensor::{self, ForeignTensor, TensorBacking},
    transfer::{manager, retire},
};

/// Where every element of a KV cache lies: a word of the layout language, a shape, and the memory.
///
/// The word lists the axes from slowest to fastest: ``B`` block, ``L`` layer, ``K`` plane, ``N``
/// token, ``H`` head, ``C`` content. The axes left of ``|`` enumerate tensors. So
/// ``"L|BH(kCN,vNC)"`` is one tensor per layer; it holds blocks, then heads, then K with the token
/// fastest beside V with the content fastest. ``kvtile layout WORD`` draws any word.
///
/// The word gives the order in memory, which may differ from the shape that numpy and torch show.
/// So pass tensors with their dimensions in memory order, the slowest first. A view in another
/// order has two readings and is refused: the error names both, and the permutation to apply. Sizes
/// that match the word's axes in another order are refused as well. Flat tensors and fused
/// dimensions are accepted, because an engine's shape may differ from what is in memory.
///
/// Tensors are never copied. The layout, and all objects that use it, keep them alive. Gaps between
/// their strides are not touched, and views of one storage are fine.
///
/// Args:
///     word: the layout word.
///     shape: the shape of the blocks.
///     tensors: one for each region of the word, in its order: numpy arrays, torch or jax tensors
///         on the CPU, or any object with a buffer; or tensors on one CUDA device, of torch, cupy, numba
///         and further libraries (not run on hardware). A single tensor needs no list. For a word that gives
///         each plane tensors of its own, such as ``"LK|BNHC"``, also a dict by plane: ``{"k": [...],
///         "v": [...]}``, each in the word's order. Without tensors, the layout supports planning but holds
///         nothing.
///
/// Raises:
///     LayoutError: an invalid word, or one that does not fit the shape.
///     TensorError: a tensor of another dtype, device or number of bytes, with two possible orders,
///         or with strides that break contiguous parts of the word; one whose address is not the memory
///         of a device that it states. The message names the tensor and the problem.
///     DeviceError: a tensor on a CUDA device, and no driver, or one that fails.
#[pyclass(name = "Layout", module = "kvtile", frozen)]
#[derive(Debug)]
pub(crate) struct PyLayout {
    shared: Option<Arc<PyLayoutShared>>,
}

/// The part of a layout that copies and caches share with it.
#[derive(Debug)]
pub(crate) struct PyLayoutShared {
    word: Word,
    preset: Option<String>,
    strided: StridedLayout,
    memory: Option<PhysicalLayout>,
    handle: Mutex<Option<LayoutHandle>>,
}

impl PyLayoutShared {
    /// The word as text.
    pub(crate) fn word_text(&self) -> String {
        self.word.to_string()
    }

    /// The word.
    pub(crate) fn word(&self) -> &Word {
        &self.word
    }

    /// The resolved layout.
    pub(crate) fn strided(&self) -> &StridedLayout {
        &self.strided
    }

    /// The device that has its memory, if it is memory of a device.
    pub(crate) fn device(&self) -> Option<&Device> {
        self.memory.as_ref().and_then(PhysicalLayout::device)
    }

    /// The handle in the process's transfer manager; the first use registers the layout.
    pub(crate) fn handle(&self) -> Result<LayoutHandle, CallFailure> {
        let mut handle = self.lock();
        if let Some(handle) = *handle {
            return Ok(handle);
        }
        let Some(memory) = &self.memory else {
            let text = format!(
                "the layout {} has no tensors: it supports plans, not copies",
                self.word
            );
            return Err(CallFailure::Tensor(text));
        };
        let registered = manager().register(memory.clone())?;
        *handle = Some(registered);
        Ok(registered)
    }

    fn lock(&self) -> MutexGuard<'_, Option<LayoutHandle>> {
        self.handle.lock()
    }
}

impl Drop for PyLayoutShared {
    fn drop(&mut self) {
        if let Some(handle) = self.lock().take() {
            retire(handle);
        }
    }
}

impl Drop for PyLayout {
    fn drop(&mut self) {
        guard::discard(self.shared.take());
    }
}

impl PyLayout {
    /// The part that copies and caches share.
    pub(crate) fn shared(&self) -> PyResult<Arc<PyLayoutShared>> {
        let shared = self.shared.as_ref().map(Arc::clone);
        shared.ok_or_else(|| python::ClosedError::new_err("the layout is being dropped"))
    }
}

#[pymethods]
impl PyLayout {
    #[new]
    #[pyo3(
        signature = (word, *, shape, tensors=None, **others),
        text_signature = "(word, *, shape, tensors=None)"
    )]
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = text::word)] word: TextArgument,
        #[pyo3(from_py_with = object::shape)] shape: Bound<'_, PyShape>,
        tensors: Option<&Bound<'_, PyAny>>,
        others: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyLayout> {
        keywords::refuse("Layout", others, &["word", "shape", "tensors"])?;
        let asked = RequestedLayout::parse(&word).map_err(|error| raise(py, error))?;
        let RequestedLayout::Word(word) = asked else {
            return Err(python::LayoutError::new_err(format!(
                "{:?} is the name of a known layout; give it to Layout.preset({:?}, shape=…)",
                &*word, &*word
            )));
        };
        // A lower-case engine name also parses as a plane, so resolve the word for the better
        // error.
        let asked = RequestedLayout::Word(word.clone());
        if let Err(error @ LayoutError::Preset(_)) = asked.resolve(&shape.get().0, 1) {
            return Err(raise(py, error));
        }
        build(py, word, None, &shape, tensors)
    }

    /// The layout of an engine by name, for instance ``"vllm:LBHNC/cpu/bf16/vec"``.
    ///
    /// ``kvtile layout list`` shows all presets, with the source of each. A preset fixes the dtype
    /// and the instruction set: the shape's planes must have its names and dtypes.
    ///
    /// Args:
    ///     name: ``engine:layout/backend/dtype/instruction set``; dtypes may have torch's names.
    ///     shape: the shape of the blocks.
    ///     tensors: as for Layout.
    ///
    /// Raises:
    ///     LayoutError: an unknown name, an engine's layout with unknown interior, or a shape whose
    ///         planes differ from the preset's.
    ///     TensorError: as for Layout.
    #[staticmethod]
    #[pyo3(signature = (name, *, shape, tensors=None))]
    fn preset(
        py: Python<'_>,
        #[pyo3(from_py_with = text::name)] name: TextArgument,
        #[pyo3(from_py_with = object::shape)] shape: Bound<'_, PyShape>,
        tensors: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<PyLayout> {
        let preset = presets::find(&name).map_err(|error| raise(py, error))?;
        let Some(word) = preset.word() else {
            let refused = preset.resolve(&shape.get().0, 1);
            return Err(match refused {
                Err(error) => raise(py, error),
                Ok(_) => {
                    python::LayoutError::new_err(format!("{} has no word; give digits", &*name))
                }
            });
        };
        if let Some(example) = &preset.shape {
            check_planes(&preset.name, example.planes(), shape.get().0.planes())?;
        }
        build(py, word.clone(), Some(preset.name.clone()), &shape, tensors)
    }

    /// The layout word.
    #[getter]
    fn word(&self) -> PyResult<String> {
        Ok(self.shared()?.word.to_string())
    }

    /// The name of the preset, if the layout was made from one.
    #[getter]
    fn preset_name(&self) -> PyResult<Option<String>> {
        Ok(self.shared()?.preset.clone())
    }

    /// The shape of the blocks.
    #[getter]
    fn shape(&self) -> PyResult<PyShape> {
        Ok(PyShape(self.shared()?.strided.shape().clone()))
    }

    /// The number of memory regions. Equally spaced views of one storage are one region.
    #[getter]
    fn num_regions(&self) -> PyResult<usize> {
        Ok(self.shared()?.strided.region_bytes().len())
    }

    /// Bytes of each region, gaps included.
    #[getter]
    fn region_bytes(&self) -> PyResult<Vec<u64>> {
        Ok(self.shared()?.strided.region_bytes().to_vec())
    }

    /// Whether the layout has tensors and all of them are writable.
    #[getter]
    fn is_writable(&self) -> PyResult<bool> {
        let shared = self.shared()?;
        let memory = shared.memory.as_ref();
        Ok(memory.is_some_and(|memory| memory.memory_regions().iter().all(|r| r.is_writable())))
    }

    /// The 128-bit fingerprint of all positions, as hexadecimal text. Equal layouts have equal
    /// fingerprints, even if their words differ.
    #[getter]
    fn fingerprint(&self) -> PyResult<String> {
        let shared = self.shared()?;
        let identity = kvtile::identity::LayoutIdentity::of_layout(&shared.strided);
        Ok(identity.fingerprint().to_string())
    }

    /// The long form of the word, with offsets and strides in bytes.
    fn describe(&self) -> PyResult<String> {
        let shared = self.shared()?;
        Ok(format!(
            "{}: {}",
            shared.word.long_form(),
            shared.strided.describe()
        ))
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "Layout",
            "it holds the memory of its tensors; pickle its word and its shape",
        ))
    }

    /// The picture for notebooks: the memory map.
    fn _repr_html_(&self, py: Python<'_>) -> PyResult<String> {
        let shared = self.shared()?;
        guard::call(py, || {
            kvtile_cli::layout_picture(&shared.strided, &shared.word)
        })
    }

    fn __repr__(&self) -> PyResult<String> {
        let shared = self.shared()?;
        let (shape, regions) = (shared.strided.shape(), shared.strided.region_bytes().len());
        let memory = match &shared.memory {
            Some(_) => format!("{regions} region{}", if regions == 1 { "" } else { "s" }),
            None => "no tensors".to_owned(),
        };
        Ok(format!(
            "<kvtile.Layout {:?}: {} blocks of {} tokens, {} layers, {memory}>",
            shared.word.to_string(),
            shape.num_blocks(),
            shape.page_size(),
            shape.num_layers(),
        ))
    }
}

fn build(
    py: Python<'_>,
    word: Word,
    preset: Option<String>,
    shape: &Bound<'_, PyShape>,
    tensors: Option<&Bound<'_, PyAny>>,
) -> PyResult<PyLayout> {
    let shape = &shape.get().0;
    let tensors = tensors
        .map(|tensors| given::described(&word, shape, tensors))
        .transpose()?;
    let shared = build_over(py, (word, preset), shape, tensors)?;
    Ok(PyLayout {
        shared: Some(shared),
    })
}

/// The layout of a word over described tensors.
pub(crate) fn build_over(
    py: Python<'_>,
    (word, preset): (Word, Option<String>),
    shape: &Shape,
    tensors: Option<Vec<ForeignTensor>>,
) -> PyResult<Arc<PyLayoutShared>> {
    guard::check_fork()?;
    let (strided, memory) = match tensors {
        None => (
            StridedLayout::resolve(&word, shape, 1).map_err(|error| raise(py, error))?,
            None,
        ),
        Some(tensors) => {
            let TensorBacking { regions, views } = tensor::back(py, tensors)?;
            let bytes: Vec<u64> = regions.iter().map(|region| region.size() as u64).collect();
            let memory = guard::run(py, || -> Result<_, CallFailure> {
                let strided = word_over_tensors(&word, shape, &views, &bytes, 1)?;
                let builder = PhysicalLayout::builder().with_shape(shape.clone());
                let layout = builder
                    .layout(digits_of(&strided))
                    .with_memory_regions(regions);
                Ok((strided, layout.build()?))
            });
            let (strided, memory) = memory?;
            (strided, Some(memory))
        }
    };
    Ok(Arc::new(PyLayoutShared {
        word,
        preset,
        strided,
        memory,
        handle: Mutex::new(None),
    }))
}

fn check_planes(name: &str, wanted: &[Plane], given: &[Plane]) -> PyResult<()> {
    let key = |plane: &Plane| format!("{} {}", plane.name(), plane.unit().codec());
    let mut wanted: Vec<String> = wanted.iter().map(key).collect();
    let mut given: Vec<String> = given.iter().map(key).collect();
    wanted.sort();
    given.sort();
    if wanted == given {
        return Ok(());
    }
    Err(python::LayoutError::new_err(format!(
        "{name} has the planes {}, the shape has {}",
        wanted.join(", "),
        given.join(", ")
    )))
}

fn digits_of(layout: &StridedLayout) -> LayoutSpec {
    let planes = layout.planes().map(|(plane, piece)| PlaneDigits {
        plane: plane.name().to_string(),
        region: piece.region(),
        offset: piece.offset(),
        digits: piece.digits().to_vec(),
    });
    LayoutSpec::Digits {
        planes: planes.collect(),
        region_bytes: layout.region_bytes().to_vec(),
    }
}
