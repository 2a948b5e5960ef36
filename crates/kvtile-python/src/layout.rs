//! Layouts: a word or a preset, a shape, and the tensors that hold the bytes.

use std::sync::Arc;

use kvtile::{
    layout::{
        LayoutError, LayoutSpec, PhysicalLayout, Plane, PlaneDigits, Shape, StridedLayout, Unit,
        Word, word_over_tensors,
    },
    presets::{self, AskedLayout},
    transfer::LayoutHandle,
};
use parking_lot::{Mutex, MutexGuard};
use pyo3::{
    prelude::*,
    types::{PyDict, PyList, PyTuple},
};

use crate::{
    arguments::{
        keywords, object,
        text::{self, Text},
    },
    error::{Failure, python, raise},
    guard, pickle,
    shape::PyShape,
    tensor::{self, Backing, Tensor},
    transfer::{manager, retire},
};

/// Where every element of a KV cache lies: a word of the layout language, a shape, and the memory.
///
/// The word says what is inside, from the slowest axis to the fastest: ``B`` block, ``L`` layer, ``K``
/// plane, ``N`` token, ``H`` head, ``C`` content; what stands left of ``|`` enumerates tensors. So
/// ``"L|BH(kCN,vNC)"`` is one tensor a layer, in it blocks, heads, then K with the token fastest beside V
/// with the content fastest. ``kvtile layout WORD`` draws any word.
///
/// The order of a word is that of memory, which is not always the shape that numpy and torch show. So a
/// tensor comes with its dimensions in the order of memory, the slowest first. A view in another order
/// can be read in two ways and is refused: the error names both, and by which dimensions to permute it.
/// Sizes that are those of the word's axes in another order are refused as well; flat tensors and fused
/// dimensions are fine, as engines' shapes are not always what is in memory.
///
/// Tensors are never copied and kept alive as long as the layout, and whatever uses it, lives. Gaps
/// that their strides leave are left, and views of one storage are fine.
///
/// Args:
///     word: the layout.
///     shape: what it holds.
///     tensors: one for each region of the word, in its order: numpy arrays, torch or jax tensors on the
///         CPU, or anything with a buffer. A single one may be given as it is. Without tensors the layout
///         can be planned with, but holds nothing.
///
/// Raises:
///     LayoutError: a word that is none, or that does not fit the shape.
///     TensorError: a tensor of another dtype, device, number of bytes, one that can be read in two
///         orders, or with strides that cut what the word keeps together; the message names the tensor
///         and what is wrong with it.
#[pyclass(name = "Layout", module = "kvtile", frozen)]
#[derive(Debug)]
pub(crate) struct PyLayout {
    shared: Option<Arc<LayoutInner>>,
}

/// What a layout and everything that uses it share.
#[derive(Debug)]
pub(crate) struct LayoutInner {
    word: Word,
    preset: Option<String>,
    strided: StridedLayout,
    memory: Option<PhysicalLayout>,
    handle: Mutex<Option<LayoutHandle>>,
}

impl LayoutInner {
    /// The word as text.
    pub(crate) fn word_text(&self) -> String {
        self.word.to_string()
    }

    /// The digits.
    pub(crate) fn strided(&self) -> &StridedLayout {
        &self.strided
    }

    /// The handle with the process's transfer manager, registered with the first use.
    pub(crate) fn handle(&self) -> Result<LayoutHandle, Failure> {
        let mut handle = self.lock();
        if let Some(handle) = *handle {
            return Ok(handle);
        }
        let Some(memory) = &self.memory else {
            let text = format!(
                "the layout {} has no tensors: it can be planned with, not copied",
                self.word
            );
            return Err(Failure::Tensor(text));
        };
        let registered = manager().register(memory.clone())?;
        *handle = Some(registered);
        Ok(registered)
    }

    fn lock(&self) -> MutexGuard<'_, Option<LayoutHandle>> {
        self.handle.lock()
    }
}

impl Drop for LayoutInner {
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
    /// What it shares with those who use it.
    pub(crate) fn shared(&self) -> PyResult<Arc<LayoutInner>> {
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
        #[pyo3(from_py_with = text::word)] word: Text,
        #[pyo3(from_py_with = object::shape)] shape: Bound<'_, PyShape>,
        tensors: Option<&Bound<'_, PyAny>>,
        others: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyLayout> {
        keywords::refuse("Layout", others, &["word", "shape", "tensors"])?;
        let asked = AskedLayout::parse(&word).map_err(|error| raise(py, error))?;
        let AskedLayout::Word(word) = asked else {
            return Err(python::LayoutError::new_err(format!(
                "{:?} is the name of a known layout; give it to Layout.preset({:?}, shape=…)",
                &*word, &*word
            )));
        };
        // The name of an engine is spelled as a plane is.
        let asked = AskedLayout::Word(word.clone());
        if let Err(error @ LayoutError::Preset(_)) = asked.resolve(&shape.get().0, 1) {
            return Err(raise(py, error));
        }
        build(py, word, None, &shape, tensors)
    }

    /// The layout of an engine by name, for instance ``"vllm:LBHNC/cpu/bf16/vec"``.
    ///
    /// ``kvtile layout list`` has all of them, with how each is known. A preset is for one dtype and one
    /// instruction set: the shape's planes must have its names and dtypes.
    ///
    /// Args:
    ///     name: ``engine:layout/backend/dtype/instruction set``; dtypes may be written as torch does.
    ///     shape: what it holds.
    ///     tensors: as for Layout.
    ///
    /// Raises:
    ///     LayoutError: a name that there is not, an engine's layout whose inside nobody knows, or a shape
    ///         whose planes are not the preset's.
    ///     TensorError: as for Layout.
    #[staticmethod]
    #[pyo3(signature = (name, *, shape, tensors=None))]
    fn preset(
        py: Python<'_>,
        #[pyo3(from_py_with = text::name)] name: Text,
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

    /// The word.
    #[getter]
    fn word(&self) -> PyResult<String> {
        Ok(self.shared()?.word.to_string())
    }

    /// The name of the preset, where it was made from one.
    #[getter]
    fn preset_name(&self) -> PyResult<Option<String>> {
        Ok(self.shared()?.preset.clone())
    }

    /// What it holds.
    #[getter]
    fn shape(&self) -> PyResult<PyShape> {
        Ok(PyShape(self.shared()?.strided.shape().clone()))
    }

    /// Regions of memory: views of one storage at even distances are one.
    #[getter]
    fn num_regions(&self) -> PyResult<usize> {
        Ok(self.shared()?.strided.region_bytes().len())
    }

    /// Bytes of each region, gaps included.
    #[getter]
    fn region_bytes(&self) -> PyResult<Vec<u64>> {
        Ok(self.shared()?.strided.region_bytes().to_vec())
    }

    /// Whether it has tensors, all of which may be written.
    #[getter]
    fn is_writable(&self) -> PyResult<bool> {
        let shared = self.shared()?;
        let memory = shared.memory.as_ref();
        Ok(memory.is_some_and(|memory| memory.memory_regions().iter().all(|r| r.is_writable())))
    }

    /// The 128-bit fingerprint of where everything lies, as hexadecimal text: equal for layouts that are
    /// the same, however they were written.
    #[getter]
    fn fingerprint(&self) -> PyResult<String> {
        let shared = self.shared()?;
        let identity = kvtile::identity::LayoutIdentity::of_layout(&shared.strided);
        Ok(identity.fingerprint().to_string())
    }

    /// The word in words, with offsets and strides in bytes.
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

    /// The picture that a notebook shows: what lies where in memory.
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
    guard::check_fork()?;
    let shape = &shape.get().0;
    let (strided, memory) = match tensors {
        None => (
            StridedLayout::resolve(&word, shape, 1).map_err(|error| raise(py, error))?,
            None,
        ),
        Some(tensors) => {
            let tensors = described(shape, tensors)?;
            let Backing { regions, views } = tensor::back(py, tensors)?;
            let bytes: Vec<u64> = regions.iter().map(|region| region.size() as u64).collect();
            let memory = guard::run(py, || -> Result<_, Failure> {
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
    Ok(PyLayout {
        shared: Some(Arc::new(LayoutInner {
            word,
            preset,
            strided,
            memory,
            handle: Mutex::new(None),
        })),
    })
}

/// The tensors, whose elements are what the planes are made of.
fn described(shape: &Shape, tensors: &Bound<'_, PyAny>) -> PyResult<Vec<Tensor>> {
    // Anything else is one tensor: to go through it would take it apart.
    let list: Vec<Bound<'_, PyAny>> = match tensors.cast::<PyList>() {
        Ok(list) => list.iter().collect(),
        Err(_) => match tensors.cast::<PyTuple>() {
            Ok(tuple) => tuple.iter().collect(),
            Err(_) => vec![tensors.clone()],
        },
    };
    let mut found = Vec::with_capacity(list.len());
    for (index, object) in list.iter().enumerate() {
        let tensor = tensor::describe(index, object)?;
        check_dtype(index, &tensor.unit, shape.planes())?;
        found.push(tensor);
    }
    Ok(found)
}

/// Elements are those of the planes; bytes may also hold records, values of a byte, and planes of
/// several kinds.
fn check_dtype(index: usize, unit: &Unit, planes: &[Plane]) -> PyResult<()> {
    if planes.iter().all(|plane| plane.unit() == unit) {
        return Ok(());
    }
    let first = planes.first().map(Plane::unit);
    let mixed = planes.iter().any(|plane| Some(plane.unit()) != first);
    let is_byte = matches!(unit.codec(), "uint8" | "int8");
    let held_as_bytes = |plane: &Plane| {
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
