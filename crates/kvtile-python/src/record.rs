//! Recording the requests of an engine as a trace.

use std::{
    path::PathBuf,
    sync::{Arc, Weak},
    time::{Duration, UNIX_EPOCH},
};

use kvtile::{
    BlockKey,
    tiers::replay::{RecordError, RecordOptions, RecordReport, RecordedRequest, TraceRecorder},
};
use parking_lot::Mutex;
use pyo3::prelude::*;

use crate::{
    arguments::{list, number, time, wrong_type},
    error::python::{ClosedError, DiskError, FolderInUseError, RequestError, SettingsError},
    guard,
};

/// Recorders that are open, for the end of the process.
static OPEN: Mutex<Vec<Weak<RecorderSlot>>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct RecorderSlot {
    recorder: Mutex<Option<TraceRecorder>>,
    /// What it came to, once it is closed.
    ended: Mutex<RecordReport>,
}

impl RecorderSlot {
    fn close(&self) {
        let recorder = self.recorder.lock().take();
        if let Some(recorder) = recorder {
            let report = recorder.finish();
            *self.ended.lock() = report;
        }
    }

    fn report(&self) -> RecordReport {
        match &*self.recorder.lock() {
            Some(recorder) => recorder.report(),
            None => self.ended.lock().clone(),
        }
    }
}

/// Ends all recorders of this process; in the child of a fork it does nothing.
pub(crate) fn close_all(py: Python<'_>) -> PyResult<()> {
    if guard::check_fork().is_err() {
        return Ok(());
    }
    guard::call(py, || {
        let open = std::mem::take(&mut *OPEN.lock());
        for slot in open.iter().filter_map(Weak::upgrade) {
            slot.close();
        }
    })
}

/// Writes the requests of a running engine as a trace, which ``kvtile replay`` reads: a line of JSON for each
/// request, with its time, its lengths in tokens, and an id for each block of the prompt. The ids are made of the keys
/// of the blocks; the trace holds no tokens.
///
/// Recording never waits for the disk. Requests that find no place in its queue are dropped and counted. A trace of an
/// earlier run is continued.
///
/// Args:
///     path: the file.
///     page_size: tokens of a block.
///     bytes_max: bytes that the file may have; later requests are dropped.
///
/// Raises:
///     SettingsError: a page size of 0, or a file that holds something else.
///     FolderInUseError: another recorder writes to the file.
///     DiskError: a file that cannot be opened.
#[pyclass(name = "TraceRecorder", module = "kvtile", frozen)]
#[derive(Debug)]
pub(crate) struct PyTraceRecorder {
    slot: Option<Arc<RecorderSlot>>,
    path: PathBuf,
}

impl PyTraceRecorder {
    fn slot(&self) -> PyResult<&Arc<RecorderSlot>> {
        let closed = || ClosedError::new_err("the recorder is closed");
        self.slot.as_ref().ok_or_else(closed)
    }
}

#[pymethods]
impl PyTraceRecorder {
    #[new]
    #[pyo3(
        signature = (path, page_size, *, bytes_max=1_u64 << 30),
        text_signature = "(path, page_size, *, bytes_max=1073741824)"
    )]
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = path_of)] path: PathBuf,
        #[pyo3(from_py_with = number::page_size)] page_size: u64,
        #[pyo3(from_py_with = number::bytes_max)] bytes_max: u64,
    ) -> PyResult<PyTraceRecorder> {
        let page_size = u32::try_from(page_size).map_err(|_| {
            SettingsError::new_err(format!("page_size is {page_size}; give 1 to {}", u32::MAX))
        })?;
        let options = RecordOptions::new().bytes_max(bytes_max);
        let opened = guard::call(py, || TraceRecorder::open(&path, page_size, &options))?;
        let slot = Arc::new(RecorderSlot {
            recorder: Mutex::new(Some(opened.map_err(|error| refused(&error))?)),
            ended: Mutex::new(RecordReport::default()),
        });
        let mut open = OPEN.lock();
        open.retain(|slot| slot.strong_count() > 0);
        open.push(Arc::downgrade(&slot));
        Ok(PyTraceRecorder {
            slot: Some(slot),
            path,
        })
    }

    /// Records a request. It never waits for the disk.
    ///
    /// Args:
    ///     keys: the keys of the full blocks of the prompt, from the first one on.
    ///     input_tokens: tokens of the prompt; those after the keys are the block that is not full.
    ///     output_tokens: tokens that were generated.
    ///     arrived: when the request arrived, as ``time.time()``; None for now.
    ///
    /// Raises:
    ///     ClosedError: after ``close``.
    #[pyo3(signature = (keys, input_tokens, output_tokens=0, *, arrived=None))]
    fn record(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::keys)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = number::input_tokens)] input_tokens: u32,
        #[pyo3(from_py_with = number::output_tokens)] output_tokens: u32,
        #[pyo3(from_py_with = time::arrived)] arrived: Option<Duration>,
    ) -> PyResult<()> {
        let slot = self.slot()?;
        let arrived = match arrived.map(|since| UNIX_EPOCH.checked_add(since)) {
            Some(None) => return Err(RequestError::new_err("arrived is after all times")),
            Some(time) => time,
            None => None,
        };
        let is_open = guard::call(py, || {
            let recorder = slot.recorder.lock();
            if let Some(recorder) = &*recorder {
                recorder.record(&RecordedRequest {
                    arrived,
                    keys: &keys,
                    input_tokens,
                    output_tokens,
                });
            }
            recorder.is_some()
        })?;
        match is_open {
            true => Ok(()),
            false => Err(ClosedError::new_err("the recorder is closed")),
        }
    }

    /// Writes the requests that wait for the disk, and ends.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let slot = self.slot()?;
        guard::call(py, || slot.close())
    }

    /// Requests in the file, without those of earlier runs.
    #[getter]
    fn recorded(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.report(py)?.recorded)
    }

    /// Requests that were dropped: the disk was too slow, the file is full, or writing failed.
    #[getter]
    fn dropped(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.report(py)?.dropped)
    }

    /// Bytes of the file.
    #[getter]
    fn bytes(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(self.report(py)?.bytes)
    }

    /// The error that ended the writing; None where there was none.
    #[getter]
    fn error(&self, py: Python<'_>) -> PyResult<Option<String>> {
        Ok(self.report(py)?.error)
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close(py)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(crate::pickle::refused(
            "TraceRecorder",
            "it holds a file and a thread; make one in each process, each with its own file",
        ))
    }

    fn __repr__(&self) -> String {
        format!("<kvtile.TraceRecorder of {}>", self.path.display())
    }
}

impl PyTraceRecorder {
    fn report(&self, py: Python<'_>) -> PyResult<RecordReport> {
        let slot = self.slot()?;
        guard::call(py, || slot.report())
    }
}

impl Drop for PyTraceRecorder {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            guard::discard(slot);
        }
    }
}

fn path_of(value: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    let path = value.extract::<PathBuf>();
    path.map_err(|_| wrong_type("path", "the path of a file", value))
}

fn refused(error: &RecordError) -> PyErr {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    match error {
        RecordError::InUse { .. } => FolderInUseError::new_err(text),
        RecordError::PageSize | RecordError::NotATrace { .. } => SettingsError::new_err(text),
        _ => DiskError::new_err(text),
    }
}
