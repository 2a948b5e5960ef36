//! Copies between layouts, and the transfer manager of this process.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvtile::transfer::{
    LayoutHandle, TransferError, TransferManager, TransferOptions, TransferReport,
};
use pyo3::prelude::*;

use crate::{
    error::{Failure, python},
    guard,
    layout::PyLayout,
    plan::Range,
};

/// All layouts of this process are registered with one manager, so that their leases are about the
/// same memory.
pub(crate) fn manager() -> &'static Arc<TransferManager> {
    static MANAGER: OnceLock<Arc<TransferManager>> = OnceLock::new();
    MANAGER.get_or_init(|| Arc::new(TransferManager::new()))
}

/// Layouts that nobody has any more while a copy was still under way.
static RETIRED: Mutex<Vec<LayoutHandle>> = Mutex::new(Vec::new());

/// Gives a layout back, and those that could not be given back before.
pub(crate) fn retire(handle: LayoutHandle) {
    let mut retired = RETIRED.lock().unwrap_or_else(PoisonError::into_inner);
    retired.push(handle);
    let mut layouts = Vec::new();
    retired.retain(|&handle| match manager().unregister(handle) {
        Ok(layout) => {
            layouts.push(layout);
            false
        }
        // In use until its copy has ended; it is tried again with the next one.
        Err(error) => matches!(error, TransferError::LayoutInUse { .. }),
    });
    drop(retired);
    // The tensors go outside the lock: that is code of others.
    drop(layouts);
}

/// What a finished copy did.
#[pyclass(name = "TransferReport", module = "kvtile", frozen)]
#[derive(Clone, Debug)]
pub(crate) struct PyTransferReport(pub(crate) TransferReport);

#[pymethods]
impl PyTransferReport {
    /// Payload bytes that were moved.
    #[getter]
    fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Runs of contiguous bytes that the plan came to.
    #[getter]
    fn runs(&self) -> u64 {
        self.0.runs
    }

    /// From the start of the copy to its end, in seconds.
    #[getter]
    fn seconds(&self) -> f64 {
        self.0.elapsed.as_secs_f64()
    }

    /// Whether the destination was compared with the source.
    #[getter]
    fn verified(&self) -> bool {
        self.0.verified
    }

    fn __repr__(&self) -> String {
        let TransferReport { bytes, runs, .. } = self.0;
        format!(
            "TransferReport(bytes={bytes}, runs={runs}, seconds={:.6})",
            self.seconds()
        )
    }
}

/// Copies blocks from one layout to another, whatever their orders, and returns when they are there.
///
/// Other Python threads run meanwhile. Nothing is written unless everything is right.
///
/// Args:
///     src: the layout to read.
///     dst: the layout to write.
///     src_blocks: block ids of src.
///     dst_blocks: block ids of dst, as many; the same as src_blocks unless said.
///     layers, tokens, heads: ``(start, stop)`` for both sides, or ``((start, stop), (start, stop))`` for
///         src and dst; all unless said.
///     verify: compare the destination with the source afterwards.
///
/// Returns:
///     A TransferReport.
///
/// Raises:
///     LayoutError: planes that differ, ranges or ids that do not exist, a block written twice.
///     TransferError: read-only tensors as destination, blocks that another copy uses, source and
///         destination that share bytes.
#[pyfunction]
#[pyo3(signature = (
    src, dst, src_blocks, dst_blocks=None, *, layers=None, tokens=None, heads=None, verify=false
))]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub(crate) fn copy_blocks(
    py: Python<'_>,
    src: &Bound<'_, PyLayout>,
    dst: &Bound<'_, PyLayout>,
    src_blocks: Vec<usize>,
    dst_blocks: Option<Vec<usize>>,
    layers: Option<Range>,
    tokens: Option<Range>,
    heads: Option<Range>,
    verify: bool,
) -> PyResult<PyTransferReport> {
    let (src, dst) = (src.get().shared()?, dst.get().shared()?);
    let options = options(layers, tokens, heads)?.verify(verify);
    let completion = guard::run(py, || -> Result<_, Failure> {
        let (from, to) = (src.handle()?, dst.handle()?);
        let destination = dst_blocks.as_ref().unwrap_or(&src_blocks);
        Ok(manager().execute_transfer(from, &src_blocks, to, destination, options)?)
    })?;
    let ended = guard::wait(py, None, |turn| completion.wait_timeout(turn));
    guard::discard(completion);
    match ended? {
        Some(result) => guard::run(py, || result).map(PyTransferReport),
        None => Err(python::WaitTimeoutError::new_err("the copy did not end")),
    }
}

/// What a copy is told beside its blocks.
fn options(
    layers: Option<Range>,
    tokens: Option<Range>,
    heads: Option<Range>,
) -> PyResult<TransferOptions> {
    let mut options = TransferOptions::new();
    if let Some(layers) = layers {
        options = options.layers(layers.pair()?);
    }
    if let Some(tokens) = tokens {
        options = options.tokens(tokens.pair()?);
    }
    if let Some(heads) = heads {
        options = options.heads(heads.pair()?);
    }
    Ok(options)
}
