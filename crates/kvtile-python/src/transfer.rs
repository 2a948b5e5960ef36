//! Copies between layouts, their order with streams of devices, and the transfer manager of this process.

use std::sync::{Arc, OnceLock};

use kvtile::{
    device::{Device, DeviceError, DeviceMark},
    layout::RangePair,
    transfer::{
        LayoutHandle, RegisterError, TransferCompletion, TransferError, TransferManager,
        TransferOptions,
    },
};
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::{
    arguments::{flag, list, object, range, stream},
    completion::{PendingOperation, PyCompletion},
    device::StreamHandle,
    error::{CallFailure, python},
    guard::{self, CallbackKind},
    layout::{PyLayout, PyLayoutShared},
    report::PyTransferReport,
    selection::{self, ids},
    tensor,
};

/// The transfer manager of this process. All layouts are registered with it, so that their leases
/// cover the same memory.
pub(crate) fn manager() -> &'static Arc<TransferManager> {
    static MANAGER: OnceLock<Arc<TransferManager>> = OnceLock::new();
    MANAGER.get_or_init(|| Arc::new(TransferManager::new()))
}

/// Layouts whose last user dropped them while a copy was in flight.
static RETIRED: Mutex<Vec<LayoutHandle>> = Mutex::new(Vec::new());

/// Unregisters a layout, and those that were still in use before.
pub(crate) fn retire(handle: LayoutHandle) {
    let mut retired = RETIRED.lock();
    retired.push(handle);
    let mut layouts = Vec::new();
    retired.retain(|&handle| match manager().unregister(handle) {
        Ok(layout) => {
            layouts.push(layout);
            false
        }
        // Still in use by a copy; the next call of `retire` tries again.
        Err(error) => matches!(
            error,
            TransferError::Register(RegisterError::LayoutInUse { .. })
        ),
    });
    drop(retired);
    // Drop the tensors outside the lock: their destructors are foreign code.
    drop(layouts);
}

/// Copies blocks from one layout to another of any order, and returns when the copy is complete.
///
/// Other Python threads run during the copy. kvtile checks all arguments before it writes.
///
/// Args:
///     src: the layout to read.
///     dst: the layout to write.
///     src_blocks: block ids of src.
///     dst_blocks: block ids of dst, as many as src_blocks; default: src_blocks.
///     layers, tokens, heads: ``(start, stop)`` for both sides, or ``((start, stop), (start,
///         stop))`` for src and dst; default: all.
///     verify: compare the destination with the source afterwards.
///     after: with a layout on a CUDA device, the stream with the work that the copy waits for: what writes the
///         source, and what still reads the destination. Its handle, or an object with ``cuda_stream`` or
///         ``__cuda_stream__``. Default: none, so that work must have ended before the call.
///
/// If the page sizes differ and ``tokens`` is None, the blocks of each side form one sequence of
/// tokens. The copy moves as many tokens as fit both lists, so 16 blocks of 16 tokens fill one of
/// 256.
///
/// Returns:
///     A TransferReport.
///
/// Raises:
///     LayoutError: planes that differ, ranges or ids that do not exist, a block that would be written
///         twice.
///     TransferError: a read-only destination, blocks that another copy uses, or a source and a
///         destination that share bytes.
///     RequestError: in the callback of a copy, where the call would wait for its own thread; a stream of no
///         device of the layouts.
///     DeviceError: the driver failed.
#[pyfunction]
#[pyo3(signature = (
    src, dst, src_blocks, dst_blocks=None, *, layers=None, tokens=None, heads=None, verify=false, after=None
))]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub(crate) fn copy_blocks(
    py: Python<'_>,
    #[pyo3(from_py_with = object::src)] src: Bound<'_, PyLayout>,
    #[pyo3(from_py_with = object::dst)] dst: Bound<'_, PyLayout>,
    #[pyo3(from_py_with = list::src_blocks)] src_blocks: Vec<usize>,
    #[pyo3(from_py_with = list::dst_blocks)] dst_blocks: Option<Vec<usize>>,
    #[pyo3(from_py_with = range::layers)] layers: Option<RangePair>,
    #[pyo3(from_py_with = range::tokens)] tokens: Option<RangePair>,
    #[pyo3(from_py_with = range::heads)] heads: Option<RangePair>,
    #[pyo3(from_py_with = flag::verify)] verify: bool,
    #[pyo3(from_py_with = stream::after)] after: Option<StreamHandle>,
) -> PyResult<PyTransferReport> {
    let asked = CopyKeywords {
        layers,
        tokens,
        heads,
        verify,
        after,
    };
    if guard::called_back() == Some(CallbackKind::Copy) {
        let text = "the callback of a copy runs on the copying thread, and copy_blocks would wait for it; use \
                    copy_blocks_async there";
        return Err(python::RequestError::new_err(text));
    }
    let (completion, layouts) = begin(&src, &dst, &src_blocks, dst_blocks.as_deref(), asked)?;
    let ended = guard::wait(py, None, |turn| completion.wait_timeout(turn));
    guard::discard((completion, layouts));
    match ended? {
        Some(result) => guard::run(py, || result).map(PyTransferReport::from),
        None => Err(python::WaitTimeoutError::new_err("the copy did not end")),
    }
}

/// Starts the copy of copy_blocks and returns at once.
///
/// Small copies between host memories are complete on return. Source and destination must not change
/// before the completion.
///
/// Args:
///     src, dst, src_blocks, dst_blocks, layers, tokens, heads, verify, after: as for copy_blocks.
///
/// Returns:
///     A Completion of a TransferReport.
///
/// Raises:
///     LayoutError, TransferError: as for copy_blocks, before anything is written.
#[pyfunction]
#[pyo3(signature = (
    src, dst, src_blocks, dst_blocks=None, *, layers=None, tokens=None, heads=None, verify=false, after=None
))]
#[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
pub(crate) fn copy_blocks_async(
    #[pyo3(from_py_with = object::src)] src: Bound<'_, PyLayout>,
    #[pyo3(from_py_with = object::dst)] dst: Bound<'_, PyLayout>,
    #[pyo3(from_py_with = list::src_blocks)] src_blocks: Vec<usize>,
    #[pyo3(from_py_with = list::dst_blocks)] dst_blocks: Option<Vec<usize>>,
    #[pyo3(from_py_with = range::layers)] layers: Option<RangePair>,
    #[pyo3(from_py_with = range::tokens)] tokens: Option<RangePair>,
    #[pyo3(from_py_with = range::heads)] heads: Option<RangePair>,
    #[pyo3(from_py_with = flag::verify)] verify: bool,
    #[pyo3(from_py_with = stream::after)] after: Option<StreamHandle>,
) -> PyResult<PyCompletion> {
    let asked = CopyKeywords {
        layers,
        tokens,
        heads,
        verify,
        after,
    };
    let (completion, layouts) = begin(&src, &dst, &src_blocks, dst_blocks.as_deref(), asked)?;
    Ok(PyCompletion::new(
        PendingOperation::Copy(completion),
        layouts,
    ))
}

/// The options of a copy.
struct CopyKeywords {
    layers: Option<RangePair>,
    tokens: Option<RangePair>,
    heads: Option<RangePair>,
    verify: bool,
    after: Option<StreamHandle>,
}

impl CopyKeywords {
    fn options(self) -> TransferOptions {
        let mut options = TransferOptions::new().verify(self.verify);
        if let Some(layers) = self.layers {
            options = options.layers(layers);
        }
        if let Some(tokens) = self.tokens {
            options = options.tokens(tokens);
        }
        if let Some(heads) = self.heads {
            options = options.heads(heads);
        }
        options
    }
}

/// A copy in flight, and the layouts that it uses.
type CopyInFlight = (TransferCompletion, Vec<Arc<PyLayoutShared>>);

fn begin(
    src: &Bound<'_, PyLayout>,
    dst: &Bound<'_, PyLayout>,
    src_blocks: &[usize],
    dst_blocks: Option<&[usize]>,
    asked: CopyKeywords,
) -> PyResult<CopyInFlight> {
    let py = src.py();
    let (src, dst) = (src.get().shared()?, dst.get().shared()?);
    let (in_pages, after) = (asked.tokens.is_some(), asked.after);
    let options = asked.options();
    let completion = guard::run(py, || -> Result<_, CallFailure> {
        let layouts = [Arc::clone(&src), Arc::clone(&dst)];
        let marks = marks_behind(after, &layouts)?.into_iter();
        let options = marks.fold(options, TransferOptions::after);
        let (from, to) = (src.handle()?, dst.handle()?);
        let destination = dst_blocks.unwrap_or(src_blocks);
        let (here, there) = (src.strided(), dst.strided());
        if here.shape().page_size() != there.shape().page_size() && !in_pages {
            let (source, destination) = (ids(src_blocks.to_vec()), ids(destination.to_vec()));
            let selection = selection::between(here, there, &source, &destination, None)?;
            return Ok(manager().execute_selection(from, to, selection, options)?);
        }
        Ok(manager().execute_transfer(from, src_blocks, to, destination, options)?)
    })?;
    Ok((completion, vec![src, dst]))
}

/// Marks behind all that is in a stream now: on the device that has it, or for a default stream on each device of the layouts.
/// None without a stream.
pub(crate) fn marks_behind(
    stream: Option<StreamHandle>,
    layouts: &[Arc<PyLayoutShared>],
) -> Result<Vec<DeviceMark>, CallFailure> {
    let Some(stream) = stream else {
        return Ok(Vec::new());
    };
    let mut marks = Vec::new();
    for device in devices_of(layouts)? {
        match tensor::mark_behind(&device, stream.0) {
            Ok(mark) => marks.push(mark),
            Err(DeviceError::ForeignStream { .. }) if marks.is_empty() => {}
            Err(error) => return Err(error.into()),
        }
        if !stream.is_default() && !marks.is_empty() {
            return Ok(marks);
        }
    }
    match marks.is_empty() {
        true => Err(foreign(stream, layouts)),
        false => Ok(marks),
    }
}

/// Lets what is enqueued in a stream from now on wait for marks.
pub(crate) fn let_wait(
    stream: StreamHandle,
    layouts: &[Arc<PyLayoutShared>],
    marks: &[DeviceMark],
) -> Result<(), CallFailure> {
    let mut has_waited = false;
    for device in devices_of(layouts)? {
        let waited: Result<(), DeviceError> = marks
            .iter()
            .try_for_each(|mark| tensor::let_wait(&device, stream.0, mark));
        match waited {
            Ok(()) => has_waited = true,
            Err(DeviceError::ForeignStream { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match has_waited {
        true => Ok(()),
        false => Err(foreign(stream, layouts)),
    }
}

/// The devices of the layouts, at least one.
fn devices_of(layouts: &[Arc<PyLayoutShared>]) -> Result<Vec<Device>, CallFailure> {
    let mut devices: Vec<Device> = Vec::new();
    for device in layouts.iter().filter_map(|layout| layout.device()) {
        if !devices.iter().any(|known| known.is_same(device)) {
            devices.push(device.clone());
        }
    }
    if devices.is_empty() {
        return Err(CallFailure::Request(
            "a stream is given, and no layout of the call is in memory of a device; leave it out"
                .to_owned(),
        ));
    }
    Ok(devices)
}

fn foreign(stream: StreamHandle, layouts: &[Arc<PyLayoutShared>]) -> CallFailure {
    let devices = layouts.iter().filter_map(|layout| layout.device());
    let ordinals: Vec<String> = devices.map(|device| device.ordinal().to_string()).collect();
    CallFailure::Request(format!(
        "the stream {:#x} is not one of device {}, where the layout is",
        stream.0,
        ordinals.join(" or ")
    ))
}
