//! The Python class `BlockStore`, over the library's block store.

mod group;
mod job;
mod query;
mod rows;
mod settings;

pub(crate) use group::PyStoreGroup;
pub(crate) use query::PyStoreQuery;
pub(crate) use rows::PyStoreRows;

use std::{
    collections::HashMap,
    os::fd::{AsRawFd, RawFd},
    sync::{Arc, Weak},
    time::Duration,
};

use kvtile::{
    blocks::{BlockKey, events::TierId},
    tiers::{
        EventSource,
        block_store::{BlockOutcomes, BlockStore, StoreGroup},
        cache::Completion,
    },
};
use pyo3::{
    prelude::*,
    types::{PyBytes, PyDict, PyList, PyTuple},
};
use serde_json::json;

use self::{group::groups_of, job::RowJob, rows::RowMemory};
use crate::{
    arguments::{
        list, number,
        text::{self, TextArgument},
        time,
    },
    cache::{PySnapshot, PySubscriber, stats},
    completion::{PendingOperation, PyCompletion},
    error::{CallFailure, python::ClosedError, python::RequestError},
    guard, pickle,
    report::{PyBlockOutcomes, PyStoreFlush},
    shared::SharedOpening,
    slot::{OpenSlot, OpenSlots, SlotCall},
    transfer::manager,
};

/// Stores of this process that may still be open. `close_all` closes them before the interpreter
/// ends.
static OPEN: OpenSlots<BlockStore> = OpenSlots::new();

/// Keeps blocks of memory that the caller owns on disk: the host memory of an engine, one block a
/// row.
///
/// It has no host memory for blocks of its own. A load goes from disk straight into the caller's
/// rows and is verified; a store copies the rows to bounded staging memory, ends, and is written
/// behind. No call waits for I/O, except those that say so.
///
/// Keys are bytes or text of any length, and no chain: each block is found by itself. Parents and
/// positions are hints for the eviction policy; a shared tier with several blocks in one value needs
/// them.
///
/// Use the store in a ``with`` statement, or close it. Closing writes the blocks that are not
/// written yet. A killed process loses the blocks that were not synced; a sync begins at the latest
/// when 64 blocks were written, or 250 ms after the first of them.
///
/// Args:
///     groups: a StoreGroup or a list of them. Equal keys in two groups are two blocks.
///     disk: folder of the disk tier. One store or cache at a time may use a folder.
///     disk_bytes: limit for the total size of the files in the folder; not used with ``read_only``.
///     disk_policy: eviction policy: ``"gittins"``, ``"lru"``, ``"arc"`` or ``"s3-fifo"``.
///     read_only: only read the folder, which another process of the machine may write at the same
///         time; stores fail, and the store has one group. The folder need not exist yet. Blocks are
///         found about 0.1 seconds after the writer has synced them.
///     close_within: seconds that closing may take to write blocks; default: 30.
///     answer_within: seconds after which the store stops using a disk that does not answer, for a
///         while; default: 30. A load still ends only when the disk no longer touches its rows.
///     shared: a store that other processes use too: a URL (``s3://bucket/prefix``, ``redis://host``), the
///         path of a folder, or a ``kvtile.SharedTier``; default: none. ``ask`` finds its blocks. Stores
///         write to it and to the disk, and need neither ``disk`` nor ``disk_bytes`` then.
///     shared_lifetime: seconds for which a store keeps values, where values expire; default: for
///         ever.
///     shared_bundle_blocks: blocks of one value, 1 to 64, the same for all processes; default: 1. More
///         need the parents and positions of all blocks.
///     shared_compress: whether blocks are compressed when they are written, without loss; default:
///         False. Every process reads compressed blocks.
///     shared_staging_bytes: memory for blocks that wait until their value is written; default: 256 MiB.
///     shared_within: seconds within which the store must answer and be read; default: 5.
///     staging_bytes: memory for blocks that wait to be written; default: 256 MiB, at least two
///         blocks of each group.
///     stage_within: seconds that a store waits for staging memory; default: 10.
///     workers: threads that execute loads; default: 2.
///     queue_capacity: maximum number of waiting loads, and of waiting stores; default: 4096.
///     event_capacity: events kept for subscribers that lag.
///
/// Raises:
///     IdentityError: a folder of another identity; ``field`` names the field that differs.
///     SettingsError: invalid settings, or too little room.
///     FolderInUseError: another cache or store uses the folder.
///     DiskError: a folder that cannot be used.
///     SharedTierError: a shared store that cannot be opened.
#[pyclass(name = "BlockStore", module = "kvtile", frozen, weakref)]
pub(crate) struct PyBlockStore {
    slot: Option<Arc<OpenSlot<BlockStore>>>,
    groups: HashMap<String, PyStoreGroup>,
    /// The only group, if there is one.
    only: Option<String>,
    /// Whether the shared tier stores several blocks as one value, so that it needs their chain.
    needs_chains: bool,
}

/// Closes all open stores before the interpreter ends.
pub(crate) fn close_all(py: Python<'_>) -> PyResult<()> {
    if guard::check_fork().is_err() {
        return Ok(());
    }
    guard::call(py, || {
        for slot in OPEN.take() {
            drop(slot.take());
        }
    })
}

impl PyBlockStore {
    /// The events of the store, without keeping it open.
    pub(crate) fn event_source(&self, py: Python<'_>) -> PyResult<EventSource> {
        self.with(py, |store| Ok::<_, CallFailure>(store.event_source()))
    }
}

impl Drop for PyBlockStore {
    fn drop(&mut self) {
        // Takes no lock: in a forked child, a thread that does not exist there may hold it.
        guard::discard(self.slot.take());
    }
}

impl PyBlockStore {
    /// Its slot, for an observer that does not keep it open.
    pub(crate) fn observed(&self) -> Weak<OpenSlot<BlockStore>> {
        self.slot.as_ref().map(Arc::downgrade).unwrap_or_default()
    }

    /// Calls the store.
    fn with<T: Send, E: Into<CallFailure> + Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&BlockStore) -> Result<T, E> + Send,
    ) -> PyResult<T> {
        guard::check_fork()?;
        let store = self.slot.as_ref().and_then(|slot| slot.get());
        let store = store.ok_or_else(|| ClosedError::new_err("the store is closed"))?;
        guard::run(py, move || {
            let _call = SlotCall::enter();
            work(&store)
        })
    }

    /// The group of a call: by its name, or the only one.
    fn group(&self, name: Option<TextArgument>) -> PyResult<&PyStoreGroup> {
        let known = || {
            let mut names: Vec<&str> = self.groups.keys().map(String::as_str).collect();
            names.sort_unstable();
            names.join(", ")
        };
        let name = match (&name, &self.only) {
            (Some(name), _) => name.as_ref(),
            (None, Some(only)) => only,
            (None, None) => {
                let text = format!("the store has the groups {}; give group=…", known());
                return Err(RequestError::new_err(text));
            }
        };
        self.groups.get(name).ok_or_else(|| {
            RequestError::new_err(format!(
                "the store has no group {name:?}; it has {}",
                known()
            ))
        })
    }

    /// Starts a job: its completion, or its place in the queue of finished jobs.
    fn start(
        &self,
        py: Python<'_>,
        job: RowJob,
        submitted: Option<u64>,
    ) -> PyResult<Option<PyCompletion>> {
        let started = self.with(py, move |store| -> Result<_, CallFailure> {
            let RowJob {
                keys,
                rows,
                ids,
                store: options,
            } = job;
            Ok(match (submitted, options) {
                (Some(job), None) => {
                    store.submit_load(job, &keys, &rows, &ids)?;
                    None
                }
                (Some(job), Some(options)) => {
                    store.submit_store(job, &keys, &rows, &ids, &options)?;
                    None
                }
                (None, None) => Some(store.load(&keys, &rows, &ids)?),
                (None, Some(options)) => Some(store.store_with(&keys, &rows, &ids, &options)?),
            })
        })?;
        let completion = |rows: Completion<BlockOutcomes>| {
            PyCompletion::new(PendingOperation::Rows(rows), Vec::new())
        };
        Ok(started.map(completion))
    }
}

#[pymethods]
impl PyBlockStore {
    #[new]
    #[pyo3(signature = (groups, **settings))]
    fn new(groups: &Bound<'_, PyAny>, settings: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let py = groups.py();
        let groups = groups_of(groups)?;
        let list: Vec<StoreGroup> = groups.iter().map(|group| group.group.clone()).collect();
        let only = match list.as_slice() {
            [only] => Some(only.name.clone()),
            _ => None,
        };
        let (settings, shared) = settings::read(list, settings)?;
        let needs_chains = shared.as_ref().is_some_and(SharedOpening::needs_chains);
        let store = guard::run(py, move || -> Result<BlockStore, CallFailure> {
            let mut builder = BlockStore::builder(settings).manager(Arc::clone(manager()));
            if let Some(shared) = shared {
                let (tier, opener) = shared.open()?;
                builder = builder.tier(tier, opener);
            }
            Ok(builder.open()?)
        })?;
        Ok(PyBlockStore {
            slot: Some(OPEN.open(store)),
            groups: groups
                .into_iter()
                .map(|group| (group.group.name.clone(), group))
                .collect(),
            only,
            needs_chains,
        })
    }

    /// Registers memory as rows of a group, one block a row.
    ///
    /// Args:
    ///     memory: a Layout of the group's shape, in any order; or, for an opaque group, a writable
    ///         buffer, array or CPU tensor without gaps, of a whole number of blocks.
    ///     group: the group; default: the only one.
    ///
    /// Raises:
    ///     TensorError: memory that is not a whole number of blocks, has gaps, or is not on the CPU.
    ///     IdentityError: a layout of another identity.
    ///     RequestError: a group that the store does not have.
    #[pyo3(signature = (memory, group=None))]
    fn register(
        &self,
        memory: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = text::optional_group)] group: Option<TextArgument>,
    ) -> PyResult<PyStoreRows> {
        let group = self.group(group)?;
        let py = memory.py();
        let memory = RowMemory::of(memory, group)?;
        self.with(py, |store| memory.register(store, &group.group.name))
    }

    /// Asks the shared tier which blocks it has; ``contains`` and ``load`` know them once it has
    /// answered. The call returns at once. Without a shared tier the query is ready.
    ///
    /// Args:
    ///     keys: bytes or text of any length; with ``shared_bundle_blocks`` above 1, those of a chain from
    ///         its first block on.
    ///     group: the group; default: the only one.
    ///
    /// Returns:
    ///     A StoreQuery.
    #[pyo3(signature = (keys, group=None))]
    fn ask(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::names)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = text::optional_group)] group: Option<TextArgument>,
    ) -> PyResult<PyStoreQuery> {
        let name = &self.group(group)?.group.name;
        let answers = self.with(py, |store| store.ask(store.group_id(name)?, &keys))?;
        Ok(PyStoreQuery::new(answers))
    }

    /// Whether a load would find each block now, without I/O. The disk may evict a block before its
    /// load; of a shared tier only blocks are found that an earlier query named.
    ///
    /// Args:
    ///     keys: bytes or text of any length.
    ///     group: the group; default: the only one.
    #[pyo3(signature = (keys, group=None))]
    fn contains(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::names)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = text::optional_group)] group: Option<TextArgument>,
    ) -> PyResult<Vec<bool>> {
        let name = &self.group(group)?.group.name;
        self.with(py, |store| store.contains(store.group_id(name)?, &keys))
    }

    /// Counts a use of each block for the eviction policy. Returns how many blocks are stored.
    #[pyo3(signature = (keys, group=None))]
    fn touch(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::names)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = text::optional_group)] group: Option<TextArgument>,
    ) -> PyResult<usize> {
        let name = &self.group(group)?.group.name;
        self.with(py, |store| store.touch(store.group_id(name)?, &keys))
    }

    /// Starts loading blocks into rows. The rows must not be used before the completion.
    ///
    /// Args:
    ///     keys: bytes or text of any length.
    ///     rows: registered memory, of the group of the blocks.
    ///     ids: the row of each key.
    ///
    /// Returns:
    ///     A Completion of BlockOutcomes. It ends when no I/O touches the rows any more.
    ///
    /// Raises:
    ///     RequestError: rows of another store, lists of different lengths, or rows that do not
    ///         exist or occur twice.
    fn load(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::names)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = rows::read)] rows: Bound<'_, PyStoreRows>,
        #[pyo3(from_py_with = list::ids)] ids: Vec<usize>,
    ) -> PyResult<Option<PyCompletion>> {
        self.start(py, RowJob::load(keys, &rows, ids)?, None)
    }

    /// Starts storing rows. They must not change before the completion.
    ///
    /// Args:
    ///     keys: bytes or text of any length.
    ///     rows: registered memory, of the group of the blocks.
    ///     ids: the row of each key.
    ///     parents: the key of the block before each block in its chain, or None; the disk evicts a
    ///         block before its parent.
    ///     positions: the number of blocks before each block in its chain. A parent counts only with
    ///         a position above 0.
    ///     tenant: the tenant that owns the blocks.
    ///
    /// Returns:
    ///     A Completion of BlockOutcomes. It ends when the rows are copied; ``flush`` waits until the
    ///     blocks are durable.
    ///
    /// Raises:
    ///     RequestError: as for ``load``.
    #[pyo3(signature = (keys, rows, ids, *, parents=None, positions=None, tenant=0))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn store(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::names)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = rows::read)] rows: Bound<'_, PyStoreRows>,
        #[pyo3(from_py_with = list::ids)] ids: Vec<usize>,
        #[pyo3(from_py_with = list::parents)] parents: Option<Vec<Option<BlockKey>>>,
        #[pyo3(from_py_with = list::positions)] positions: Option<Vec<u32>>,
        #[pyo3(from_py_with = number::tenant)] tenant: u32,
    ) -> PyResult<Option<PyCompletion>> {
        let job = RowJob::load(keys, &rows, ids)?;
        let job = job.with_options((parents, positions), tenant, self.needs_chains)?;
        self.start(py, job, None)
    }

    /// As ``load``, without a completion: the end of the job is in ``take_finished``.
    ///
    /// Args:
    ///     job: the caller's number of the job.
    ///     keys, rows, ids: as for ``load``.
    fn submit_load(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = number::job)] job: u64,
        #[pyo3(from_py_with = list::names)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = rows::read)] rows: Bound<'_, PyStoreRows>,
        #[pyo3(from_py_with = list::ids)] ids: Vec<usize>,
    ) -> PyResult<()> {
        let load = RowJob::load(keys, &rows, ids)?;
        self.start(py, load, Some(job)).map(drop)
    }

    /// As ``store``, without a completion: the end of the job is in ``take_finished``.
    ///
    /// Args:
    ///     job: the caller's number of the job.
    ///     keys, rows, ids, parents, positions, tenant: as for ``store``.
    #[pyo3(signature = (job, keys, rows, ids, *, parents=None, positions=None, tenant=0))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn submit_store(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = number::job)] job: u64,
        #[pyo3(from_py_with = list::names)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = rows::read)] rows: Bound<'_, PyStoreRows>,
        #[pyo3(from_py_with = list::ids)] ids: Vec<usize>,
        #[pyo3(from_py_with = list::parents)] parents: Option<Vec<Option<BlockKey>>>,
        #[pyo3(from_py_with = list::positions)] positions: Option<Vec<u32>>,
        #[pyo3(from_py_with = number::tenant)] tenant: u32,
    ) -> PyResult<()> {
        let store = RowJob::load(keys, &rows, ids)?;
        let store = store.with_options((parents, positions), tenant, self.needs_chains)?;
        self.start(py, store, Some(job)).map(drop)
    }

    /// Takes the submitted jobs that have ended, as tuples of the job's number and its
    /// BlockOutcomes. It never blocks.
    fn take_finished<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let finished = self.with(py, |store| Ok::<_, CallFailure>(store.take_finished()))?;
        let jobs = finished
            .into_iter()
            .map(|(job, outcomes)| (job, PyBlockOutcomes::from(outcomes)));
        PyList::new(py, jobs.collect::<Vec<_>>())
    }

    /// A file descriptor that is readable while submitted jobs that have ended wait to be taken. It
    /// is valid until the store is closed; do not close it.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        self.with(py, |store| {
            Ok::<_, CallFailure>(store.finished_fd().as_raw_fd())
        })
    }

    /// Number of jobs that have not ended.
    #[getter]
    fn pending(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |store| Ok::<_, CallFailure>(store.pending()))
    }

    /// Waits until all jobs have ended, so that none touches a row. Finished jobs stay in their
    /// queue.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |store| {
            store.drain();
            Ok::<_, CallFailure>(())
        })
    }

    /// Removes blocks. Returns how many were stored.
    #[pyo3(signature = (keys, group=None))]
    fn forget(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::names)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = text::optional_group)] group: Option<TextArgument>,
    ) -> PyResult<usize> {
        let name = &self.group(group)?.group.name;
        self.with(py, |store| store.forget(store.group_id(name)?, &keys))
    }

    /// Removes all blocks that are not in use. Returns their number.
    ///
    /// Raises:
    ///     DiskError: the disk tier cannot be cleared.
    fn clear(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, BlockStore::clear)
    }

    /// Waits until all stored blocks are written and durable.
    ///
    /// Args:
    ///     within: seconds to wait for writes; default: no limit.
    ///
    /// Returns:
    ///     A StoreFlush.
    #[pyo3(signature = (within=None))]
    fn flush(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = time::within)] within: Option<Duration>,
    ) -> PyResult<PyStoreFlush> {
        let report = self.with(py, |store| Ok::<_, CallFailure>(store.flush(within)))?;
        Ok(PyStoreFlush::from(report))
    }

    /// Counters since the store was opened, and its current contents, as a dict of plain values.
    fn stats(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let stats = self.with(py, |store| {
            let stats = store.stats();
            let mut value = serde_json::to_value(&stats).unwrap_or_default();
            if let serde_json::Value::Object(fields) = &mut value {
                fields.insert("hit_ratio".to_owned(), json!(stats.hit_ratio()));
                let shared = store.tier(TierId::SHARED);
                fields.insert("shared".to_owned(), stats::of_shared(shared));
            }
            Ok::<_, CallFailure>(value)
        })?;
        stats::object(py, &stats)
    }

    /// Subscribes to the events of all tiers from now on.
    fn subscribe(&self, py: Python<'_>) -> PyResult<PySubscriber> {
        let subscriber = self.with(py, |store| Ok::<_, CallFailure>(store.subscribe()))?;
        Ok(PySubscriber::new(subscriber))
    }

    /// All stored blocks, and the first event to apply on top of them.
    fn snapshot(&self, py: Python<'_>) -> PyResult<PySnapshot> {
        let snapshot = self.with(py, |store| Ok::<_, CallFailure>(store.snapshot()))?;
        Ok(PySnapshot(snapshot))
    }

    /// The names of the groups, in their order.
    #[getter]
    fn groups(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        self.with(py, |store| {
            Ok::<_, CallFailure>(store.groups().map(str::to_owned).collect())
        })
    }

    /// Ends waiting jobs as closed, waits for running jobs, writes and syncs the stored blocks, and
    /// frees threads, staging memory and the folder. Closing twice is fine.
    ///
    /// Args:
    ///     within: seconds that the writes may take; default: ``close_within``.
    ///
    /// Returns:
    ///     A StoreFlush; None if the store was closed already, or from inside another call of the
    ///     store, at the end of which it closes.
    #[pyo3(signature = (within=None))]
    fn close(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = time::within)] within: Option<Duration>,
    ) -> PyResult<Option<PyStoreFlush>> {
        let slot = self.slot.as_ref();
        let report = guard::call(py, || {
            let store = slot.and_then(|slot| slot.take())?;
            Some(store.close(within))
        })?;
        Ok(report.map(PyStoreFlush::from))
    }

    /// Whether the store is closed.
    #[getter]
    fn closed(&self) -> bool {
        let slot = self.slot.as_ref();
        slot.is_none_or(|slot| slot.is_closed())
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py, None).map(drop)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "BlockStore",
            "it has threads and a folder; open another one with its groups",
        ))
    }

    fn __repr__(&self) -> String {
        let state = if self.closed() { "closed" } else { "open" };
        let mut names: Vec<&str> = self.groups.keys().map(String::as_str).collect();
        names.sort_unstable();
        format!("<kvtile.BlockStore of {}: {state}>", names.join(", "))
    }
}

/// The 16 bytes under which a store keeps the block of a key, as events report them.
///
/// Args:
///     key: bytes or text of any length. A key of 16 bytes stays as it is; others are hashed.
#[pyfunction]
pub(crate) fn block_key<'py>(
    py: Python<'py>,
    key: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyBytes>> {
    let key = list::name("key", key)?;
    Ok(PyBytes::new(py, key.as_bytes()))
}
