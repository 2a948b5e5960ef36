//! Completions of copies, loads and stores: wait for them, await them, or add a callback.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

use kvtile::{
    device::DeviceMark,
    tiers::{
        block_store::BlockOutcomes,
        cache::{Completion, LoadMarks, LoadReport, StoreReport},
        groups::{GroupLoadReport, GroupOperation, GroupStoreReport},
    },
    transfer::{EnqueuedLayer, TransferCompletion},
};
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::{
    arguments::{number, object, stream, time},
    device::StreamHandle,
    ending,
    error::{CallFailure, python},
    groups::{PyGroupLoadReport, PyGroupStoreReport},
    guard::{self, CallbackKind},
    layout::PyLayoutShared,
    pickle,
    report::{PyBlockOutcomes, PyLoadReport, PyStoreReport, PyTransferReport},
    transfer::let_wait,
};

/// The library's completion of an operation.
#[derive(Clone, Debug)]
pub(crate) enum PendingOperation {
    Copy(TransferCompletion),
    Load(Completion<LoadReport>),
    Store(Completion<StoreReport>),
    Rows(Completion<BlockOutcomes>),
    GroupLoad(GroupOperation<GroupLoadReport>),
    GroupStore(GroupOperation<GroupStoreReport>),
}

/// The report of a completed operation.
enum CompletedReport {
    Copy(PyTransferReport),
    Load(PyLoadReport),
    Store(PyStoreReport),
    Rows(PyBlockOutcomes),
    GroupLoad(PyGroupLoadReport),
    GroupStore(PyGroupStoreReport),
}

impl CompletedReport {
    fn into_object(self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(match self {
            CompletedReport::Copy(report) => Py::new(py, report)?.into_any(),
            CompletedReport::Load(report) => Py::new(py, report)?.into_any(),
            CompletedReport::Store(report) => Py::new(py, report)?.into_any(),
            CompletedReport::Rows(report) => Py::new(py, report)?.into_any(),
            CompletedReport::GroupLoad(report) => Py::new(py, report)?.into_any(),
            CompletedReport::GroupStore(report) => Py::new(py, report)?.into_any(),
        })
    }
}

impl PendingOperation {
    fn wait(&self, timeout: Duration) -> Option<Result<CompletedReport, CallFailure>> {
        match self {
            PendingOperation::Copy(copy) => copy.wait_timeout(timeout).map(|result| {
                let report = result.map_err(CallFailure::from)?;
                Ok(CompletedReport::Copy(PyTransferReport::from(report)))
            }),
            PendingOperation::Load(load) => {
                let report = load.wait_timeout(timeout)?;
                Some(Ok(CompletedReport::Load(PyLoadReport::from(report))))
            }
            PendingOperation::Store(store) => {
                let report = store.wait_timeout(timeout)?;
                Some(Ok(CompletedReport::Store(PyStoreReport::from(report))))
            }
            PendingOperation::Rows(rows) => {
                let report = rows.wait_timeout(timeout)?;
                Some(Ok(CompletedReport::Rows(PyBlockOutcomes::from(report))))
            }
            PendingOperation::GroupLoad(load) => {
                let report = PyGroupLoadReport::from(load.wait_timeout(timeout)?);
                Some(Ok(CompletedReport::GroupLoad(report)))
            }
            PendingOperation::GroupStore(store) => {
                let report = PyGroupStoreReport::from(store.wait_timeout(timeout)?);
                Some(Ok(CompletedReport::GroupStore(report)))
            }
        }
    }

    fn wait_layer(&self, layer: usize, timeout: Duration) -> Option<Result<bool, CallFailure>> {
        match self {
            PendingOperation::Copy(copy) => match copy.wait_layer_timeout(layer, timeout) {
                Ok(None) => None,
                Ok(Some(())) => Some(Ok(true)),
                Err(error) => Some(Err(error.into())),
            },
            PendingOperation::Load(load) => {
                let end = load.wait_layer_timeout(layer, timeout)?;
                Some(Ok(end.is_ok()))
            }
            // A store has no layers: all of them are read with its end.
            PendingOperation::Store(store) => {
                let report = store.wait_timeout(timeout)?;
                Some(Ok(report.stopped.is_none()))
            }
            // Blocks arrive as a whole.
            PendingOperation::Rows(rows) => {
                let report = rows.wait_timeout(timeout)?;
                Some(Ok(report.ok() == report.blocks.len()))
            }
            // The first layers of a model may hold a state, which comes with the end.
            PendingOperation::GroupLoad(load) => {
                let report = load.wait_timeout(timeout)?;
                Some(Ok(report.tokens == report.wanted))
            }
            PendingOperation::GroupStore(store) => {
                let report = store.wait_timeout(timeout)?;
                Some(Ok(report.stopped().is_none()))
            }
        }
    }

    fn is_complete(&self) -> bool {
        match self {
            PendingOperation::Copy(copy) => copy.is_complete(),
            PendingOperation::Load(load) => load.is_complete(),
            PendingOperation::Store(store) => store.is_complete(),
            PendingOperation::Rows(rows) => rows.is_complete(),
            PendingOperation::GroupLoad(load) => load.is_complete(),
            PendingOperation::GroupStore(store) => store.is_complete(),
        }
    }

    /// Registers a waker. Returns whether the operation is complete already.
    fn poll(&mut self, waker: &Waker) -> bool {
        let context = &mut Context::from_waker(waker);
        match self {
            PendingOperation::Copy(copy) => matches!(Pin::new(copy).poll(context), Poll::Ready(_)),
            PendingOperation::Load(load) => matches!(Pin::new(load).poll(context), Poll::Ready(_)),
            PendingOperation::Store(store) => {
                matches!(Pin::new(store).poll(context), Poll::Ready(_))
            }
            PendingOperation::Rows(rows) => matches!(Pin::new(rows).poll(context), Poll::Ready(_)),
            PendingOperation::GroupLoad(load) => {
                matches!(Pin::new(load).poll(context), Poll::Ready(_))
            }
            PendingOperation::GroupStore(store) => {
                matches!(Pin::new(store).poll(context), Poll::Ready(_))
            }
        }
    }
}

/// The completion of a copy, a load or a store.
///
/// Wait for it (``wait``), await it in a coroutine, or add a callback (``add_done_callback``).
/// Awaiting returns what ``wait`` returns. Dropping a completion does not cancel the operation.
#[pyclass(name = "Completion", module = "kvtile", frozen, generic)]
pub(crate) struct PyCompletion {
    ending: Option<PendingOperation>,
    /// Clones of `ending` whose wakers call the callbacks. Dropping one would remove its waker.
    polled: Mutex<Vec<PendingOperation>>,
    /// The number of layers; `usize::MAX` if no layout is known.
    layers: usize,
    /// The layouts that the operation reads and writes.
    layouts: Option<Vec<Arc<PyLayoutShared>>>,
    /// The layers of a load to a device.
    on_device: Option<DeviceLayers>,
}

/// The marks of a load to a device, and its blocks.
#[derive(Clone, Debug)]
pub(crate) struct DeviceLayers {
    marks: LoadMarks,
    blocks: usize,
}

impl DeviceLayers {
    /// Those of a load of `blocks` blocks that has not begun, if a layout is in memory of a device.
    pub(crate) fn of_load(layouts: &[Arc<PyLayoutShared>], blocks: usize) -> Option<DeviceLayers> {
        let mut devices = layouts.iter().filter_map(|layout| layout.device());
        devices.next().map(|_| DeviceLayers {
            marks: LoadMarks::new(),
            blocks,
        })
    }

    /// The marks, for the options of the load.
    pub(crate) fn marks(&self) -> LoadMarks {
        self.marks.clone()
    }
}

impl PyCompletion {
    pub(crate) fn new(ending: PendingOperation, layouts: Vec<Arc<PyLayoutShared>>) -> PyCompletion {
        let held = layouts
            .iter()
            .map(|layout| layout.strided().shape().num_layers());
        PyCompletion {
            layers: held.max().map_or(usize::MAX, |layers| {
                usize::try_from(layers).unwrap_or(usize::MAX)
            }),
            ending: Some(ending),
            polled: Mutex::new(Vec::new()),
            layouts: Some(layouts),
            on_device: None,
        }
    }

    /// With the layers of a load to a device.
    pub(crate) fn with_layers(mut self, on_device: Option<DeviceLayers>) -> PyCompletion {
        self.on_device = on_device;
        self
    }

    /// Marks behind a layer, once it is enqueued on a device; none for a layer that arrives on the host. `None` on timeout.
    fn enqueued(
        &self,
        ending: &PendingOperation,
        layer: usize,
        timeout: Duration,
    ) -> Option<Result<Option<Vec<DeviceMark>>, CallFailure>> {
        match (ending, &self.on_device) {
            (PendingOperation::Copy(copy), _) => {
                let enqueued = copy.wait_enqueued_timeout(layer, timeout).transpose()?;
                Some(
                    enqueued
                        .map_err(CallFailure::from)
                        .map(|enqueued| match enqueued {
                            EnqueuedLayer::Behind(mark) => Some(vec![mark]),
                            EnqueuedLayer::Arrived => None,
                        }),
                )
            }
            (PendingOperation::Load(_), Some(layers)) => {
                let enqueued = layers.marks.wait_timeout(layer, layers.blocks, timeout);
                // The report of a load has the errors of its copies.
                Some(Ok(enqueued.transpose()?.unwrap_or(None)))
            }
            _ => Some(Ok(None)),
        }
    }

    fn check_layer(&self, layer: usize) -> PyResult<()> {
        if layer < self.layers {
            return Ok(());
        }
        Err(python::RequestError::new_err(format!(
            "layer is {layer}, and there are {} layers, counted from 0",
            self.layers
        )))
    }

    fn ending(&self) -> PyResult<&PendingOperation> {
        let ending = self.ending.as_ref();
        ending.ok_or_else(|| python::ClosedError::new_err("the completion is being dropped"))
    }

    /// Refuses to wait without a timeout on a thread that may have to complete the operation
    /// itself.
    fn check_wait(&self, py: Python<'_>, timeout: Option<Duration>) -> PyResult<()> {
        if timeout.is_some() || guard::called_back().is_none() || self.done(py)? {
            return Ok(());
        }
        Err(python::RequestError::new_err(
            "a callback runs on a thread of kvtile, which would wait for itself; give a timeout, add a \
             callback, or wait on a thread of your own",
        ))
    }
}

impl Drop for PyCompletion {
    fn drop(&mut self) {
        let polled = self.polled.get_mut();
        let polled = std::mem::take(polled);
        let kept = (self.layouts.take(), self.on_device.take());
        guard::discard((self.ending.take(), polled, kept));
    }
}

#[pymethods]
impl PyCompletion {
    /// Waits for the completion. Other Python threads run during the wait, and Ctrl-C ends it.
    ///
    /// Args:
    ///     timeout: seconds; default: no timeout.
    ///
    /// Returns:
    ///     A TransferReport, LoadReport, StoreReport, BlockOutcomes, GroupLoadReport or GroupStoreReport.
    ///
    /// Raises:
    ///     WaitTimeoutError: the timeout expired; the operation continues.
    ///     RequestError: the layer does not exist, or a callback waits without a timeout for an
    ///         operation in flight.
    ///     TransferError: a copy failed. Loads and stores do not raise: see their reports.
    #[pyo3(signature = (timeout=None))]
    fn wait(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = time::timeout)] timeout: Option<Duration>,
    ) -> PyResult<Py<PyAny>> {
        let ending = self.ending()?;
        self.check_wait(py, timeout)?;
        match guard::wait(py, timeout, |turn| ending.wait(turn))? {
            Some(Ok(outcome)) => outcome.into_object(py),
            Some(Err(failure)) => Err(failure.into_exception(py)),
            None => Err(too_late(timeout)),
        }
    }

    /// Waits until a layer is complete at the destination, as an engine does before it attends to
    /// that layer.
    ///
    /// Args:
    ///     layer: index, counted from the first layer that is copied or loaded.
    ///     timeout: seconds; default: no timeout.
    ///
    /// Returns:
    ///     True if the layer is complete, False if the operation ended without it (``wait`` reports why). Jobs of a
    ///     BlockStore have one layer: False if any block was left out.
    ///
    /// Raises:
    ///     WaitTimeoutError: the timeout expired.
    ///     RequestError: the layer does not exist, or a callback waits without a timeout for an
    ///         operation in flight.
    ///     TransferError: the copy failed.
    #[pyo3(signature = (layer, timeout=None))]
    fn wait_layer(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = number::layer)] layer: usize,
        #[pyo3(from_py_with = time::timeout)] timeout: Option<Duration>,
    ) -> PyResult<bool> {
        let ending = self.ending()?;
        self.check_layer(layer)?;
        self.check_wait(py, timeout)?;
        match guard::wait(py, timeout, |turn| ending.wait_layer(layer, turn))? {
            Some(Ok(there)) => Ok(there),
            Some(Err(failure)) => Err(failure.into_exception(py)),
            None => Err(too_late(timeout)),
        }
    }

    /// Lets the work that is enqueued in a stream of a CUDA device from now on wait for a layer, as an engine does
    /// before it enqueues the attention of that layer.
    ///
    /// The call returns when the layer is enqueued, before it has arrived. Where no device executes the last step, it
    /// returns when the layer has arrived: operations without a device, stores, copies that are verified, loads of
    /// groups and of a connected cache.
    ///
    /// Args:
    ///     stream: its handle, or an object with ``cuda_stream`` or ``__cuda_stream__``; None where work of the host
    ///         waits, as for layouts in host memory.
    ///     layer: index, counted from the first layer that is copied or loaded.
    ///     timeout: seconds; default: no timeout.
    ///
    /// Returns:
    ///     True if the layer comes, False if a load ended without it (``wait`` reports why). If the device fails
    ///     after that, ``wait`` reports it, and the layer's bytes are undefined.
    ///
    /// Raises:
    ///     WaitTimeoutError: the timeout expired.
    ///     RequestError: the layer does not exist, the stream is of no device of the layouts, or a callback waits
    ///         without a timeout for an operation in flight.
    ///     TransferError: the copy failed.
    ///     DeviceError: the driver failed.
    #[pyo3(signature = (stream, layer, timeout=None))]
    fn wait_layer_on(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = stream::stream)] stream: Option<StreamHandle>,
        #[pyo3(from_py_with = number::layer)] layer: usize,
        #[pyo3(from_py_with = time::timeout)] timeout: Option<Duration>,
    ) -> PyResult<bool> {
        let ending = self.ending()?;
        self.check_layer(layer)?;
        self.check_wait(py, timeout)?;
        let Some(stream) = stream else {
            return self.wait_layer(py, layer, timeout);
        };
        let start = Instant::now();
        let marks = guard::wait(py, timeout, |turn| self.enqueued(ending, layer, turn))?;
        let Some(marks) = marks else {
            return Err(too_late(timeout));
        };
        let marks = marks.map_err(|failure| failure.into_exception(py))?;
        let Some(marks) = marks else {
            let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
            return self.wait_layer(py, layer, left);
        };
        let layouts = self.layouts.as_deref().unwrap_or_default();
        guard::run(py, || let_wait(stream, layouts, &marks))?;
        Ok(true)
    }

    /// Whether the operation is complete.
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        let ending = self.ending()?;
        guard::call(py, || ending.is_complete())
    }

    /// Cancels a load or a store: parts that have not begun do not begin. Copies cannot be
    /// cancelled. After the completion, kvtile does not touch the tensors any more.
    ///
    /// Returns:
    ///     Whether this kind of operation can be cancelled.
    fn cancel(&self, py: Python<'_>) -> PyResult<bool> {
        let ending = self.ending()?;
        guard::call(py, || match ending {
            PendingOperation::Copy(_) => false,
            PendingOperation::Load(load) => {
                load.cancel();
                true
            }
            PendingOperation::Store(store) => {
                store.cancel();
                true
            }
            PendingOperation::Rows(rows) => {
                rows.cancel();
                true
            }
            PendingOperation::GroupLoad(load) => {
                load.cancel();
                true
            }
            PendingOperation::GroupStore(store) => {
                store.cancel();
                true
            }
        })
    }

    /// Calls ``callback(completion)`` on completion, on a thread of kvtile, or at once if the
    /// operation is complete.
    ///
    /// The callback may call all of kvtile, with two exceptions that would wait for their own
    /// thread and are refused. It must not wait without a timeout for an operation in flight. The
    /// callback of a copy must not call copy_blocks. An exception in the callback is printed and
    /// ignored.
    fn add_done_callback(
        slf: &Bound<'_, Self>,
        #[pyo3(from_py_with = object::callback)] callback: Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = slf.py();
        let callback = callback.unbind();
        let bell = Arc::new(CallbackWaker {
            callback: Mutex::new(Some((callback, slf.clone().unbind()))),
            ended: match slf.get().ending()? {
                PendingOperation::Copy(_) => CallbackKind::Copy,
                PendingOperation::Load(_)
                | PendingOperation::Store(_)
                | PendingOperation::Rows(_)
                | PendingOperation::GroupLoad(_)
                | PendingOperation::GroupStore(_) => CallbackKind::Job,
            },
        });
        let this = slf.get();
        let mut ending = this.ending()?.clone();
        let waker = Waker::from(Arc::clone(&bell));
        let (ended, ending) = guard::call(py, move || {
            let ended = ending.poll(&waker);
            (ended, ending)
        })?;
        if ended {
            guard::discard(ending);
            ending::run_python(py, || bell.ring(py));
        } else {
            let mut polled = this.polled.lock();
            polled.push(ending);
        }
        Ok(())
    }

    fn __await__(slf: &Bound<'_, Self>) -> PyResult<Py<PyAny>> {
        let module = ending::import(slf.py(), "kvtile._await")?;
        let iterate = module.getattr("iterate")?;
        Ok(ending::run_python(slf.py(), || iterate.call1((slf,)))?.unbind())
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "Completion",
            "it waits for an operation of this process; pickle the report that wait returns",
        ))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let what = match self.ending()? {
            PendingOperation::Copy(_) => "copy",
            PendingOperation::Load(_) => "load",
            PendingOperation::Store(_) => "store",
            PendingOperation::Rows(_) => "job of rows",
            PendingOperation::GroupLoad(_) => "load",
            PendingOperation::GroupStore(_) => "store",
        };
        let state = if self.done(py)? { "ended" } else { "under way" };
        Ok(format!("<kvtile.Completion of a {what}: {state}>"))
    }
}

/// A waker that calls a Python callback once.
struct CallbackWaker {
    callback: Mutex<Option<(Py<PyAny>, Py<PyCompletion>)>>,
    ended: CallbackKind,
}

impl CallbackWaker {
    fn ring(&self, py: Python<'_>) {
        let mut waiting = self.callback.lock();
        let callback = waiting.take();
        drop(waiting);
        if let Some((callback, completion)) = callback
            && let Err(error) = callback.call1(py, (completion,))
        {
            error.write_unraisable(py, None);
        }
    }
}

impl Wake for CallbackWaker {
    fn wake(self: Arc<Self>) {
        // After interpreter shutdown the callback is skipped.
        guard::call_back(self.ended, || {
            ending::attach(|py| self.ring(py));
        });
    }
}

fn too_late(timeout: Option<Duration>) -> PyErr {
    let seconds = timeout.unwrap_or_default().as_secs_f64();
    python::WaitTimeoutError::new_err(format!("the end did not come within {seconds} seconds"))
}
