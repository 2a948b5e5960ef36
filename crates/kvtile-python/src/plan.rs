//! Copy plans, computed without a copy.

use kvtile::layout::{CopyPlan, RangePair, Shape, StridedLayout, Word};
use pyo3::prelude::*;

use crate::{
    arguments::{list, object, range},
    error::CallFailure,
    guard,
    layout::{PyLayout, PyLayoutShared},
    pickle,
    selection::{self, ids},
};

/// A plan to copy blocks from one layout to another: loops, and runs of contiguous bytes.
///
/// Returned by kvtile.plan. ``print`` shows the loops.
#[pyclass(name = "Plan", module = "kvtile", frozen)]
#[derive(Debug)]
pub(crate) struct PyPlan {
    plan: CopyPlan,
    blocks: usize,
    source: PlanSide,
    destination: PlanSide,
}

/// One layout of the plan, without its tensors.
#[derive(Debug)]
struct PlanSide {
    word: Word,
    strided: StridedLayout,
}

impl PlanSide {
    fn of(layout: &PyLayoutShared) -> PlanSide {
        PlanSide {
            word: layout.word().clone(),
            strided: layout.strided().clone(),
        }
    }
}

/// Plans a copy of blocks without moving a byte. The layouts need no tensors.
///
/// Args:
///     src: the layout to read.
///     dst: the layout to write.
///     src_blocks: block ids of src; default: all blocks that both layouts have.
///     dst_blocks: block ids of dst, as many as src_blocks; default: src_blocks.
///     layers, tokens, heads: ``(start, stop)`` for both sides, or ``((start, stop), (start,
///         stop))`` for src and dst; default: all.
///
/// If the page sizes differ and ``tokens`` is None, the blocks of each side form one sequence of
/// tokens. The plan copies as many tokens as fit both lists, so 16 blocks of 16 tokens fill one of
/// 256.
///
/// Returns:
///     A Plan.
///
/// Raises:
///     LayoutError: planes that differ, ranges or ids that do not exist, a block that would be
///     written twice.
#[pyfunction]
#[pyo3(signature = (src, dst, src_blocks=None, dst_blocks=None, *, layers=None, tokens=None, heads=None))]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub(crate) fn plan(
    py: Python<'_>,
    #[pyo3(from_py_with = object::src)] src: Bound<'_, PyLayout>,
    #[pyo3(from_py_with = object::dst)] dst: Bound<'_, PyLayout>,
    #[pyo3(from_py_with = list::optional_src_blocks)] src_blocks: Option<Vec<usize>>,
    #[pyo3(from_py_with = list::dst_blocks)] dst_blocks: Option<Vec<usize>>,
    #[pyo3(from_py_with = range::layers)] layers: Option<RangePair>,
    #[pyo3(from_py_with = range::tokens)] tokens: Option<RangePair>,
    #[pyo3(from_py_with = range::heads)] heads: Option<RangePair>,
) -> PyResult<PyPlan> {
    let (src, dst) = (src.get().shared()?, dst.get().shared()?);
    guard::run(py, || -> Result<PyPlan, CallFailure> {
        let (from, to) = (src.strided(), dst.strided());
        let common = from.shape().num_blocks().min(to.shape().num_blocks());
        let (page, other) = (from.shape().page_size(), to.shape().page_size());
        let (source, destination) = match (src_blocks, dst_blocks) {
            // By default the plan copies all tokens that both layouts have.
            (None, None) if page != other && tokens.is_none() => {
                let all = |shape: &Shape| (0..shape.num_blocks()).collect::<Vec<u64>>();
                (all(from.shape()), all(to.shape()))
            }
            (source, destination) => {
                let source = source.map_or_else(|| (0..common).collect(), ids);
                let destination = destination.map_or_else(|| source.clone(), ids);
                (source, destination)
            }
        };
        let mut selection = selection::between(from, to, &source, &destination, tokens)?;
        selection.layers = layers;
        selection.heads = heads;
        Ok(PyPlan {
            plan: CopyPlan::new(from, to, &selection)?,
            blocks: selection.pairs.len(),
            source: PlanSide::of(&src),
            destination: PlanSide::of(&dst),
        })
    })
}

#[pymethods]
impl PyPlan {
    /// Payload bytes that the copy moves.
    #[getter]
    fn bytes(&self) -> u64 {
        self.plan.bytes()
    }

    /// The number of runs of contiguous bytes.
    #[getter]
    fn runs(&self) -> u64 {
        self.plan.runs()
    }

    /// Bytes of the longest run.
    #[getter]
    fn longest_run(&self) -> u64 {
        self.plan.run_bytes().0
    }

    /// Bytes of the shortest run.
    #[getter]
    fn shortest_run(&self) -> u64 {
        self.plan.run_bytes().1
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "Plan",
            "it is computed from two layouts; call plan again where it is needed",
        ))
    }

    fn __repr__(&self) -> String {
        let (from, to) = (&self.source.word, &self.destination.word);
        format!(
            "<kvtile.Plan {from} -> {to}: {}>",
            self.plan.to_string().trim_end()
        )
    }

    /// The picture for notebooks: both layouts, and a sample of the runs between them.
    fn _repr_html_(&self, py: Python<'_>) -> PyResult<String> {
        guard::call(py, || {
            let [from, to] = [&self.source, &self.destination];
            kvtile_cli::plan_picture(
                (&from.strided, &from.word),
                (&to.strided, &to.word),
                (&self.plan, self.blocks),
            )
        })
    }

    fn __str__(&self) -> String {
        self.plan.to_string()
    }
}
