//! Publishing the events of a cache or a block store for routers.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use kvtile::{BlockKey, tiers::EventSource};
use kvtile_events_publish::{
    EventHashes, EventPublisher, EventPublisherSettings, EventPublisherStats, PublishError,
    UnknownTokens,
};
use parking_lot::Mutex;
use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};

use crate::{
    arguments::{
        list, number, optional,
        text::{self, TextArgument},
        time, wrong_type,
    },
    cache::PyCache,
    error::python::{ClosedError, PublishError as PythonPublishError, RequestError, SettingsError},
    guard, pickle,
    store::PyBlockStore,
};

/// Publishers that are open, for the end of the process.
static OPEN: Mutex<Vec<Weak<PublisherSlot>>> = Mutex::new(Vec::new());

/// How long leaving a `with` block waits for subscribers.
const EXIT_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct PublisherSlot(Mutex<Option<Arc<EventPublisher>>>);

impl PublisherSlot {
    /// Closes the publisher once no other call uses it. True also where it is closed already.
    fn close(&self, within: Duration) -> bool {
        let Some(mut shared) = self.0.lock().take() else {
            return true;
        };
        loop {
            match Arc::try_unwrap(shared) {
                Ok(publisher) => return publisher.close(within),
                Err(used) => shared = used,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Ends all publishers of this process; in the child of a fork it does nothing.
pub(crate) fn close_all(py: Python<'_>) -> PyResult<()> {
    if guard::check_fork().is_err() {
        return Ok(());
    }
    guard::call(py, || {
        let open = std::mem::take(&mut *OPEN.lock());
        for slot in open.iter().filter_map(Weak::upgrade) {
            slot.close(Duration::ZERO);
        }
    })
}

/// Publishes which blocks a cache or a block store has, in the format of vLLM's KV events, for routers and
/// ``kvtile events record``.
///
/// It begins with ``AllBlocksCleared`` and the blocks that are stored, and keeps neither the cache nor the store open.
/// Use it in a ``with`` statement, or close it.
///
/// Args:
///     source: an open Cache or BlockStore.
///     endpoint: where subscribers connect: ``tcp://HOST:PORT`` or ``tcp://*:PORT``; port 0 is any free one.
///     replay: where past batches can be requested, as ``endpoint``; default: nowhere.
///     topic: the topic of messages, such as ``kv@POD@MODEL``.
///     rank: the data-parallel rank of batches.
///     hashes: ``"numbers"`` of 64 bits from the end of the keys, or ``"bytes"``, the keys of 16 bytes.
///     unknown_tokens: ``"publish"`` blocks without token ids, or ``"leave_out"``.
///     token_blocks: blocks whose token ids are kept until the blocks are stored.
///
/// Raises:
///     ClosedError: a closed cache or store.
///     SettingsError: unknown ``hashes`` or ``unknown_tokens``.
///     PublishError: an endpoint of another form, or one that cannot be bound.
#[pyclass(name = "EventPublisher", module = "kvtile", frozen)]
#[derive(Debug)]
pub(crate) struct PyEventPublisher {
    slot: Option<Arc<PublisherSlot>>,
    endpoint: String,
    replay_endpoint: Option<String>,
}

impl PyEventPublisher {
    /// Calls the publisher without the GIL.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&EventPublisher) -> T + Send,
    ) -> PyResult<T> {
        guard::check_fork()?;
        let publisher = self.slot.as_ref().and_then(|slot| {
            let open = slot.0.lock();
            open.as_ref().map(Arc::clone)
        });
        let publisher = publisher.ok_or_else(|| ClosedError::new_err("the publisher is closed"))?;
        guard::call(py, move || work(&publisher))
    }

    fn close_within(&self, py: Python<'_>, within: Duration) -> PyResult<bool> {
        let Some(slot) = &self.slot else {
            return Ok(true);
        };
        guard::call(py, || slot.close(within))
    }
}

impl Drop for PyEventPublisher {
    fn drop(&mut self) {
        guard::discard(self.slot.take());
    }
}

#[pymethods]
impl PyEventPublisher {
    #[new]
    #[pyo3(
        signature = (
            source, endpoint, *, replay=None, topic=TextArgument::Borrowed(""), rank=None,
            hashes=TextArgument::Borrowed("numbers"), unknown_tokens=TextArgument::Borrowed("publish"),
            token_blocks=65_536
        ),
        text_signature = "(source, endpoint, *, replay=None, topic='', rank=None, hashes='numbers', \
                          unknown_tokens='publish', token_blocks=65536)"
    )]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn new(
        py: Python<'_>,
        source: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = text::endpoint)] endpoint: TextArgument,
        #[pyo3(from_py_with = text::replay)] replay: Option<TextArgument>,
        #[pyo3(from_py_with = text::topic)] topic: TextArgument,
        #[pyo3(from_py_with = optional::rank)] rank: Option<u64>,
        #[pyo3(from_py_with = text::hashes)] hashes: TextArgument,
        #[pyo3(from_py_with = text::unknown_tokens)] unknown_tokens: TextArgument,
        #[pyo3(from_py_with = number::token_blocks)] token_blocks: usize,
    ) -> PyResult<PyEventPublisher> {
        let source = source_of(source)?;
        let mut settings = EventPublisherSettings::new(&endpoint)
            .topic(&topic)
            .hashes(match &*hashes {
                "numbers" => EventHashes::Numbers,
                "bytes" => EventHashes::Bytes,
                other => return Err(unknown("hashes", other, "numbers", "bytes")),
            })
            .unknown_tokens(match &*unknown_tokens {
                "publish" => UnknownTokens::Publish,
                "leave_out" => UnknownTokens::LeaveOut,
                other => return Err(unknown("unknown_tokens", other, "publish", "leave_out")),
            })
            .token_blocks(token_blocks);
        settings.sockets.replay_endpoint = replay.map(TextArgument::into_owned);
        settings.rank = rank;
        let started = guard::call(py, move || EventPublisher::start(source, &settings))?;
        let publisher = started.map_err(|error| refused(&error))?;
        let replay = publisher.replay_address();
        let made = PyEventPublisher {
            endpoint: format!("tcp://{}", publisher.address()),
            replay_endpoint: replay.map(|at| format!("tcp://{at}")),
            slot: Some(Arc::new(PublisherSlot(Mutex::new(Some(Arc::new(
                publisher,
            )))))),
        };
        let mut open = OPEN.lock();
        open.retain(|slot| slot.strong_count() > 0);
        open.extend(made.slot.as_ref().map(Arc::downgrade));
        Ok(made)
    }

    /// Gives the token ids of a chain of blocks, before they are stored: routers that hash token ids need them.
    ///
    /// Args:
    ///     keys: the keys of all full blocks of ``tokens``, from the first one on.
    ///     tokens: the token ids; those of an incomplete last block are ignored.
    ///
    /// Returns:
    ///     How many blocks have their tokens.
    ///
    /// Raises:
    ///     RequestError: ``tokens`` are not those of ``keys``, by their number.
    ///     ClosedError: after ``close``.
    fn give_tokens(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::keys)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = list::tokens)] tokens: Vec<u32>,
    ) -> PyResult<usize> {
        let given = self.with(py, |publisher| publisher.give_tokens(&keys, &tokens))?;
        given.map_err(|error| RequestError::new_err(error.to_string()))
    }

    /// Publishes all blocks once more, for subscribers that came late. It does not wait.
    ///
    /// Raises:
    ///     ClosedError: after ``close``.
    fn publish_again(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, EventPublisher::publish_again)
    }

    /// Waits until what the cache has reported before this call is published.
    ///
    /// Args:
    ///     timeout: seconds to wait; None for any time.
    ///
    /// Returns:
    ///     Whether it is published.
    ///
    /// Raises:
    ///     ClosedError: after ``close``.
    #[pyo3(signature = (timeout=None))]
    fn catch_up(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = time::timeout)] timeout: Option<Duration>,
    ) -> PyResult<bool> {
        guard::check_fork()?;
        let caught = guard::wait(py, timeout, |turn| {
            let publisher = self.slot.as_ref()?.0.lock().as_ref().map(Arc::clone);
            match publisher {
                Some(publisher) => publisher.catch_up(turn).then_some(true),
                None => Some(false),
            }
        })?;
        Ok(caught.unwrap_or(false))
    }

    /// The counters: ``batches``, ``stored_blocks``, ``removed_blocks``, ``clears``, ``without_tokens``,
    /// ``left_out``, ``gaps`` of the cache's log, ``blocks`` that are published now, ``subscribers`` now, and
    /// ``dropped_messages`` of slow subscribers.
    ///
    /// Raises:
    ///     ClosedError: after ``close``.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats: EventPublisherStats = self.with(py, EventPublisher::stats)?;
        let counters = PyDict::new(py);
        for (name, count) in [
            ("batches", stats.batches),
            ("stored_blocks", stats.stored_blocks),
            ("removed_blocks", stats.removed_blocks),
            ("clears", stats.clears),
            ("without_tokens", stats.without_tokens),
            ("left_out", stats.left_out),
            ("gaps", stats.gaps),
            ("blocks", stats.blocks),
            ("subscribers", stats.subscribers),
            ("dropped_messages", stats.dropped_messages),
        ] {
            counters.set_item(name, count)?;
        }
        Ok(counters)
    }

    /// Publishes the rest and ``AllBlocksCleared``, waits until subscribers have it, and closes the sockets. Closing
    /// twice is fine.
    ///
    /// Args:
    ///     within: seconds to wait for subscribers; default: 5.
    ///
    /// Returns:
    ///     Whether all messages were written.
    #[pyo3(signature = (within=None))]
    fn close(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = time::within)] within: Option<Duration>,
    ) -> PyResult<bool> {
        self.close_within(py, within.unwrap_or(EXIT_WITHIN))
    }

    /// The address of subscribers, with the port that was bound.
    #[getter]
    fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The address of replays; None without them.
    #[getter]
    fn replay_endpoint(&self) -> Option<&str> {
        self.replay_endpoint.as_deref()
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close_within(py, EXIT_WITHIN).map(drop)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "EventPublisher",
            "it has sockets and a thread; make one in each process",
        ))
    }

    fn __repr__(&self) -> String {
        let slot = self.slot.as_ref();
        let is_open = slot.is_some_and(|slot| slot.0.lock().is_some());
        let state = if is_open { "" } else { ", closed" };
        format!("<kvtile.EventPublisher on {}{state}>", self.endpoint)
    }
}

fn source_of(source: &Bound<'_, PyAny>) -> PyResult<EventSource> {
    if let Ok(cache) = source.cast::<PyCache>() {
        return cache.get().event_source(source.py());
    }
    if let Ok(store) = source.cast::<PyBlockStore>() {
        return store.get().event_source(source.py());
    }
    Err(wrong_type("source", "a Cache or a BlockStore", source))
}

fn unknown(name: &str, given: &str, one: &str, other: &str) -> PyErr {
    SettingsError::new_err(format!("{name} is {given:?}; give {one:?} or {other:?}"))
}

fn refused(error: &PublishError) -> PyErr {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    PythonPublishError::new_err(text)
}
