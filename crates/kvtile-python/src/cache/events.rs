//! Events: which blocks were stored and removed, in order.

use kvtile::{
    blocks::{
        BlockKey, BlocksError, GroupId,
        events::{Event, EventKind, EventSnapshot, EventSubscriber},
    },
    tiers::EventSource,
};
use parking_lot::Mutex;
use pyo3::{
    prelude::*,
    types::{PyBytes, PyType},
};

use crate::{
    arguments::{number, object, text},
    error::{CallFailure, python::ArgumentError},
    guard,
    pickle::{self, ReducedObject},
};

/// One change in one tier, of one group of layers.
#[pyclass(name = "Event", module = "kvtile", frozen, eq)]
#[derive(Clone, PartialEq)]
pub(crate) struct PyEvent(Event);

#[pymethods]
impl PyEvent {
    /// The sequence number of the event; sequence numbers have no gaps.
    #[getter]
    fn sequence(&self) -> u64 {
        self.0.sequence
    }

    /// The tier of the change: ``"host"``, ``"disk"``, or ``"disk:parts"`` for blocks that parts of
    /// other caches cover.
    #[getter]
    fn tier(&self) -> String {
        self.0.tier.to_string()
    }

    /// The number of the group of layers. Equal keys in two groups are two blocks.
    #[getter]
    fn group(&self) -> u32 {
        self.0.group.0
    }

    /// The kind of change: ``"stored"``, ``"removed"``, or ``"cleared"`` for all blocks of the
    /// group in the tier.
    #[getter]
    fn kind(&self) -> &'static str {
        match self.0.kind {
            EventKind::Stored { .. } => "stored",
            EventKind::Removed { .. } => "removed",
            EventKind::Cleared => "cleared",
        }
    }

    /// The block's key; None where the tier was cleared.
    #[getter]
    fn key<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        match self.0.kind {
            EventKind::Stored { key, .. } | EventKind::Removed { key } => Some(bytes(py, key)),
            EventKind::Cleared => None,
        }
    }

    /// The key of the parent block in the chain, if a block was stored after another.
    #[getter]
    fn parent<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        match self.0.kind {
            EventKind::Stored { parent, .. } => parent.map(|parent| bytes(py, parent)),
            EventKind::Removed { .. } | EventKind::Cleared => None,
        }
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<ReducedObject<'py>> {
        let event = &slf.get().0;
        let (kind, key, parent) = match event.kind {
            EventKind::Stored { key, parent } => ("stored", Some(key), parent),
            EventKind::Removed { key } => ("removed", Some(key), None),
            EventKind::Cleared => ("cleared", None, None),
        };
        let text = |key: Option<BlockKey>| key.map(|key| *key.as_bytes());
        let plain = (
            event.sequence,
            event.tier.to_string(),
            event.group.0,
            kind,
            text(key),
            text(parent),
        );
        pickle::reduce(&slf.get_type(), &plain)
    }

    #[classmethod]
    fn _from_pickle(_class: &Bound<'_, PyType>, text: &str) -> PyResult<PyEvent> {
        type PickledEvent = (u64, String, u32, String, Option<[u8; 16]>, Option<[u8; 16]>);
        let (sequence, tier, group, kind, key, parent) = pickle::restore::<PickledEvent>(text)?;
        let kind = match (kind.as_str(), key.map(BlockKey::from_bytes)) {
            ("stored", Some(key)) => EventKind::Stored {
                key,
                parent: parent.map(BlockKey::from_bytes),
            },
            ("removed", Some(key)) => EventKind::Removed { key },
            ("cleared", None) => EventKind::Cleared,
            _ => {
                return Err(ArgumentError::new_err(
                    "not a pickled kvtile object: an event of no kind",
                ));
            }
        };
        let tier = text::tier_of(&tier)?;
        Ok(PyEvent(Event {
            sequence,
            group: GroupId(group),
            tier,
            kind,
        }))
    }

    fn __repr__(&self) -> String {
        let key = match self.0.kind {
            EventKind::Stored { key, .. } | EventKind::Removed { key } => format!(", key={key}"),
            EventKind::Cleared => String::new(),
        };
        format!(
            "Event(sequence={}, tier={:?}, group={}, kind={:?}{key})",
            self.sequence(),
            self.tier(),
            self.group(),
            self.kind()
        )
    }
}

impl super::PyCache {
    /// The events of the cache, without keeping it open.
    pub(crate) fn event_source(&self, py: Python<'_>) -> PyResult<EventSource> {
        self.with(py, |cache| Ok::<_, CallFailure>(cache.event_source()))
    }
}

fn bytes(py: Python<'_>, key: BlockKey) -> Bound<'_, PyBytes> {
    PyBytes::new(py, key.as_bytes())
}

/// Reads the events of a cache. A slow subscriber never blocks the cache.
#[pyclass(name = "Subscriber", module = "kvtile", frozen)]
#[derive(Debug)]
pub(crate) struct PySubscriber(Mutex<EventSubscriber>);

impl PySubscriber {
    pub(crate) fn new(subscriber: EventSubscriber) -> PySubscriber {
        PySubscriber(Mutex::new(subscriber))
    }
}

#[pymethods]
impl PySubscriber {
    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "Subscriber",
            "it holds a position in the events of its cache; subscribe again",
        ))
    }

    /// Up to ``count`` further events, each once and in order; empty if there are none.
    ///
    /// Raises:
    ///     LaggedError: events were overwritten before this subscriber read them. Raised once for
    ///         each gap. Take a snapshot of the cache to learn what is stored.
    #[pyo3(signature = (count=1024))]
    fn poll(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = number::count)] count: usize,
    ) -> PyResult<Vec<PyEvent>> {
        guard::run(py, || -> Result<Vec<PyEvent>, BlocksError> {
            let mut events = Vec::new();
            let mut subscriber = self.0.lock();
            subscriber.poll(&mut events, count)?;
            Ok(events.into_iter().map(PyEvent).collect())
        })
    }

    /// Continues at the first event to apply on top of a snapshot of the same cache.
    fn resynchronise(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = object::snapshot)] snapshot: Bound<'_, PySnapshot>,
    ) -> PyResult<()> {
        let snapshot = snapshot.get();
        guard::call(py, || {
            let mut subscriber = self.0.lock();
            subscriber.resynchronise(&snapshot.0);
        })
    }

    /// The sequence number of the next event to read.
    #[getter]
    fn next_sequence(&self, py: Python<'_>) -> PyResult<u64> {
        guard::call(py, || self.0.lock().next_sequence())
    }
}

/// All stored blocks, and the range of events to apply on top of them.
#[pyclass(name = "Snapshot", module = "kvtile", frozen)]
#[derive(Debug)]
pub(crate) struct PySnapshot(pub(crate) EventSnapshot);

/// A stored block: its tier, the number of its group, its key, and its parent's key.
type SnapshotBlock<'py> = (
    String,
    u32,
    Bound<'py, PyBytes>,
    Option<Bound<'py, PyBytes>>,
);

#[pymethods]
impl PySnapshot {
    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "Snapshot",
            "it belongs to its cache; pickle its blocks",
        ))
    }

    /// The first event to apply on top of the blocks.
    #[getter]
    fn first_event(&self) -> u64 {
        self.0.from
    }

    /// The snapshot is exact once all events below this one are applied.
    #[getter]
    fn exact_from(&self) -> u64 {
        self.0.until
    }

    /// The blocks: ``(tier, group, key, parent)``.
    #[getter]
    fn blocks<'py>(&self, py: Python<'py>) -> Vec<SnapshotBlock<'py>> {
        let blocks = self.0.blocks.iter();
        blocks
            .map(|block| {
                let parent = block.parent.map(|parent| bytes(py, parent));
                let (tier, group) = (block.tier.to_string(), block.group.0);
                (tier, group, bytes(py, block.key), parent)
            })
            .collect()
    }

    fn __len__(&self) -> usize {
        self.0.blocks.len()
    }
}
