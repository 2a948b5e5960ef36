//! The cache: what the library's cache does, with Python's manners.

mod events;
mod found;
mod settings;
mod stats;

pub(crate) use events::{PyEvent, PySnapshot, PySubscriber};
pub(crate) use found::PyMatch;

use std::{
    cell::Cell,
    sync::{Arc, Weak},
    time::Duration,
};

use kvtile::{
    blocks::{
        BlockKey,
        events::TierId,
        policy::Hints,
        pool::{OwnerId, TenantId},
    },
    tiers::{
        cache::{Cache, FlushReport, LoadOptions, LookupOptions, Priority, StoreOptions},
        disk::DiskTier,
    },
    transfer::LayoutHandle,
};
use parking_lot::{Mutex, MutexGuard};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    arguments::{
        flag, list, number, object,
        text::{self, Text},
        time,
    },
    completion::{Ending, PyCompletion},
    ending,
    error::{Failure, python, raise},
    guard,
    identity::PyIdentity,
    layout::{LayoutInner, PyLayout},
    pickle, record,
    report::PyFlushReport,
    transfer::manager,
};

/// Blocks in host memory start at multiples of this.
const HOST_PAGE_BYTES: u64 = 4096;

/// The cache while it is open.
type Slot = Mutex<Option<Arc<Cache>>>;

/// Caches of this process that may be open; they are closed before the interpreter ends.
static OPEN: Mutex<Vec<Weak<Slot>>> = Mutex::new(Vec::new());

/// Keeps blocks of KV in host memory and on disk, for one engine's layout.
///
/// An engine looks up the keys of a prompt, loads what is found into its blocks, computes the rest, and
/// stores that. No call waits for a copy or a disk: what cannot be queued raises BusyError, and the
/// engine computes instead. Use it in a ``with`` statement, or close it: closing brings what is only in host
/// memory to the disk tier, where there is one. A kill loses what was not synced: a sync begins at the latest
/// when 64 blocks were written, or 250 ms after the first of them, whatever else the cache does.
///
/// Args:
///     identity: what the blocks mean; blocks of anything else are never served.
///     layout: the engine's layout over its tensors.
///     host_bytes: host memory for blocks, each of which takes ``host_bytes_per_block``.
///     prefault: whether all of that memory is there when the cache opens, which takes longer then; otherwise
///         its pages come when they are first used, and storing is slower until all have come.
///     disk: folder of the disk tier; none unless said. One cache at a time may have it.
///     disk_bytes: what all files of the folder take at most.
///     disk_writes: ``"on_eviction"`` from host memory, ``"at_once"`` (in the order of stores, as fast as the disk
///         takes them), or the number of uses after which a block is written.
///     close_within: seconds that closing may take to write blocks that are only in host memory; 30 unless
///         said, and with 0 they are lost.
///     answer_within: seconds that the cache waits for each batch of the disk; 30 unless said. What comes later
///         is a miss, and the disk is left alone for a while.
///     policy, disk_policy: which block goes first: ``"gittins"``, ``"lru"``, ``"arc"`` or ``"s3-fifo"``.
///     storage_word: the order of a block in host memory and on disk, ``kvtile.STORAGE_WORD`` unless said.
///     quotas: blocks of host memory that tenants may have at most, by tenant.
///     workers: threads that move blocks; with 0 nothing moves until ``step`` is called.
///     queue_capacity: jobs that may wait.
///     recompute_tokens_per_second: how fast the engine computes KV; blocks whose loading from disk would
///         take longer count as missing.
///     event_capacity: events kept for subscribers that lag.
///
/// Raises:
///     IdentityError: a layout or a folder of another identity; ``field`` says which field differs.
///     SettingsError: settings that mean nothing, or too little room for one block.
///     FolderInUseError: another cache has the folder.
///     DiskError: a folder that cannot be used.
#[pyclass(name = "Cache", module = "kvtile", frozen, weakref)]
pub(crate) struct PyCache {
    slot: Option<Arc<Slot>>,
    layout: Option<Arc<LayoutInner>>,
}

impl PyCache {
    fn cache(&self) -> PyResult<Arc<Cache>> {
        let slot = self.slot.as_ref().map(|slot| lock(slot));
        let cache = slot.and_then(|cache| cache.as_ref().map(Arc::clone));
        cache.ok_or_else(|| python::ClosedError::new_err("the cache is closed"))
    }

    /// The engine's layout, and the other one where there is one.
    fn layouts(&self, other: Option<&Bound<'_, PyLayout>>) -> PyResult<Vec<Arc<LayoutInner>>> {
        let other = other.map(|layout| layout.get().shared()).transpose()?;
        Ok(self.layout.iter().map(Arc::clone).chain(other).collect())
    }

    /// Calls the cache.
    fn with<T: Send, E: Into<Failure> + Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Cache) -> Result<T, E> + Send,
    ) -> PyResult<T> {
        guard::check_fork()?;
        let cache = self.cache()?;
        guard::run(py, move || {
            let _call = Call::enter();
            work(&cache)
        })
    }
}

/// How long closing waits before it looks again whether the calls of other threads have ended.
const CALLS_INTERVAL: Duration = Duration::from_millis(1);

thread_local! {
    /// Calls of caches that this thread is in: what the library logs may call back into Python.
    static IN_CALLS: Cell<usize> = const { Cell::new(0) };
}

/// A call of a cache, until it is dropped.
struct Call;

impl Call {
    fn enter() -> Call {
        IN_CALLS.set(IN_CALLS.get() + 1);
        Call
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        IN_CALLS.set(IN_CALLS.get() - 1);
    }
}

impl Drop for PyCache {
    fn drop(&mut self) {
        // Without a lock: in the child of a fork, a thread that is not there may have it.
        guard::discard((self.slot.take(), self.layout.take()));
    }
}

/// Closes what is still open, before the interpreter ends, and keeps other threads away from then on.
pub(crate) fn close_all(py: Python<'_>) -> PyResult<()> {
    if guard::check_fork().is_err() {
        return Ok(());
    }
    guard::call(py, || {
        let open = std::mem::take(&mut *OPEN.lock());
        for slot in open.iter().filter_map(Weak::upgrade) {
            close(&slot);
        }
        record::close_all();
    })?;
    ending::begin(py);
    Ok(())
}

/// Closes a cache, once the calls of other threads have ended; nothing where it is closed already, or
/// where this very thread is inside a call of the cache, which closes it when it ends.
fn close(slot: &Slot) -> Option<(bool, FlushReport)> {
    let mut cache = lock(slot).take()?;
    loop {
        match Arc::try_unwrap(cache) {
            Ok(cache) => {
                let has_disk = cache.pool_stats(TierId::DISK).is_some();
                return Some((has_disk, cache.close()));
            }
            Err(_) if IN_CALLS.get() > 0 => return None,
            Err(shared) => cache = shared,
        }
        std::thread::sleep(CALLS_INTERVAL);
    }
}

fn lock(slot: &Slot) -> MutexGuard<'_, Option<Arc<Cache>>> {
    slot.lock()
}

#[pymethods]
impl PyCache {
    #[new]
    #[pyo3(signature = (identity, layout, **settings))]
    fn new(
        #[pyo3(from_py_with = object::identity)] identity: Bound<'_, PyIdentity>,
        #[pyo3(from_py_with = object::engine)] layout: Bound<'_, PyLayout>,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyCache> {
        let py = identity.py();
        let layout = layout.get().shared()?;
        let settings = settings::read(identity.get().0.clone(), settings)?;
        let engine = Arc::clone(&layout);
        let cache = guard::run(py, move || -> Result<Cache, Failure> {
            let handle = engine.handle()?;
            Ok(Cache::builder(settings).open_registered(Arc::clone(manager()), handle)?)
        })?;
        let slot: Arc<Slot> = Arc::new(Mutex::new(Some(Arc::new(cache))));
        let mut open = OPEN.lock();
        open.retain(|slot| slot.strong_count() > 0);
        open.push(Arc::downgrade(&slot));
        drop(open);
        Ok(PyCache {
            slot: Some(slot),
            layout: Some(layout),
        })
    }

    /// Finds the longest stored prefix of ``keys``, in any tier, and pins it. It does no I/O.
    ///
    /// Args:
    ///     keys: the chain from its first block on, as TokenHasher makes it; an engine's own block
    ///         hashes of any length may be given too, as long as they are given everywhere.
    ///     owner: who looks; reports of pins name it.
    ///     hold: seconds within which the match should be used or released; ``overdue`` names others.
    ///     priority: how much longer than others the blocks should be kept; each step doubles their worth.
    ///     lifetime: seconds after which the blocks leave first, to about a second; None for no end. The
    ///         longest that any of their users gave counts.
    ///     output_tokens: tokens that were generated for the request, 0 while that is unknown.
    ///     partial_tail: whether the last key is of a block that is not full.
    ///
    /// Returns:
    ///     A Match: load it or release it, as it pins its blocks.
    #[pyo3(signature = (
        keys, *, owner=0, hold=None, priority=0, lifetime=None, output_tokens=0, partial_tail=false
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn lookup(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::keys)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = number::owner)] owner: u64,
        #[pyo3(from_py_with = time::hold)] hold: Option<Duration>,
        #[pyo3(from_py_with = number::priority)] priority: i8,
        #[pyo3(from_py_with = time::lifetime)] lifetime: Option<Duration>,
        #[pyo3(from_py_with = number::output_tokens)] output_tokens: u32,
        #[pyo3(from_py_with = flag::partial_tail)] partial_tail: bool,
    ) -> PyResult<PyMatch> {
        let options = LookupOptions::new()
            .owner(OwnerId(owner))
            .hold(hold)
            .hints(hints(priority, output_tokens, partial_tail))
            .lifetime(lifetime);
        let found = self.with(py, |cache| {
            Ok::<_, Failure>(cache.lookup_with(&keys, &options))
        })?;
        Ok(PyMatch::new(found))
    }

    /// Starts loading a match into blocks of the engine, as many leading ones as there are ids.
    ///
    /// The match is used up, also where this raises.
    ///
    /// Args:
    ///     found: the Match.
    ///     blocks: where its blocks go, ids of the engine's layout.
    ///     priority: ``"background"``, ``"low"``, ``"normal"`` or ``"urgent"``.
    ///     within: seconds; parts that have not begun by then do not begin.
    ///     layout: another layout to load into, of the same identity, instead of the engine's.
    ///
    /// Returns:
    ///     A Completion that ends with a LoadReport.
    ///
    /// Raises:
    ///     BusyError: no place in the queue: compute the blocks instead.
    ///     RequestError: more ids than blocks, ids that do not exist or come twice.
    #[pyo3(
        signature = (
            found, blocks, *, priority=Text::Borrowed("normal"), within=None, layout=None
        ),
        text_signature = "($self, found, blocks, *, priority='normal', within=None, layout=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn load(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = object::found)] found: Bound<'_, PyMatch>,
        #[pyo3(from_py_with = list::blocks)] blocks: Vec<usize>,
        #[pyo3(from_py_with = text::priority)] priority: Text,
        #[pyo3(from_py_with = time::within)] within: Option<Duration>,
        #[pyo3(from_py_with = object::layout)] layout: Option<Bound<'_, PyLayout>>,
    ) -> PyResult<PyCompletion> {
        let options = LoadOptions::new()
            .priority(priority_of(&priority)?)
            .within(within);
        let found = found.get().take()?;
        let layouts = self.layouts(layout.as_ref())?;
        let other = layout.and_then(|_| layouts.last().map(Arc::clone));
        let load = self.with(py, move |cache| -> Result<_, Failure> {
            let options = options.layout(handle_of(other)?);
            Ok(cache.load_with(found, &blocks, &options)?)
        })?;
        Ok(PyCompletion::new(Ending::Load(load), layouts))
    }

    /// Starts storing blocks of the engine. Until the end they must keep what they hold.
    ///
    /// Args:
    ///     keys: the chain from its first block on, at least up to the last one stored.
    ///     blocks: ids of the engine's layout; block ``i`` is that of ``keys[first + i]``.
    ///     first: where in the chain the first of them stands.
    ///     tenant: whose they are.
    ///     priority: ``"background"``, ``"low"``, ``"normal"`` or ``"urgent"``.
    ///     within: seconds; if it has not begun by then, it does not begin.
    ///     keep: how much longer than others the blocks should be kept; each step doubles their worth.
    ///     lifetime: seconds after which the blocks leave first, to about a second; None for no end. The
    ///         longest that any of their users gave counts.
    ///     output_tokens: tokens that were generated for the request, 0 while that is unknown.
    ///     partial_tail: whether the last block is not full.
    ///     layout: another layout that has the blocks, of the same identity, instead of the engine's.
    ///
    /// Returns:
    ///     A Completion that ends with a StoreReport.
    ///
    /// Raises:
    ///     BusyError: no place in the queue: go on without storing them.
    ///     RequestError: fewer keys than blocks, ids that do not exist or come twice.
    #[pyo3(
        signature = (
            keys, blocks, *, first=0, tenant=0, priority=Text::Borrowed("low"), within=None, keep=0,
            lifetime=None, output_tokens=0, partial_tail=false, layout=None
        ),
        text_signature = "($self, keys, blocks, *, first=0, tenant=0, priority='low', within=None, \
                          keep=0, lifetime=None, output_tokens=0, partial_tail=False, layout=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn store(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::keys)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = list::blocks)] blocks: Vec<usize>,
        #[pyo3(from_py_with = number::first)] first: usize,
        #[pyo3(from_py_with = number::tenant)] tenant: u32,
        #[pyo3(from_py_with = text::priority)] priority: Text,
        #[pyo3(from_py_with = time::within)] within: Option<Duration>,
        #[pyo3(from_py_with = number::keep)] keep: i8,
        #[pyo3(from_py_with = time::lifetime)] lifetime: Option<Duration>,
        #[pyo3(from_py_with = number::output_tokens)] output_tokens: u32,
        #[pyo3(from_py_with = flag::partial_tail)] partial_tail: bool,
        #[pyo3(from_py_with = object::layout)] layout: Option<Bound<'_, PyLayout>>,
    ) -> PyResult<PyCompletion> {
        let options = StoreOptions::new()
            .first(first)
            .tenant(TenantId(tenant))
            .priority(priority_of(&priority)?)
            .within(within)
            .hints(hints(keep, output_tokens, partial_tail))
            .lifetime(lifetime);
        let layouts = self.layouts(layout.as_ref())?;
        let other = layout.and_then(|_| layouts.last().map(Arc::clone));
        let store = self.with(py, move |cache| -> Result<_, Failure> {
            let options = options.layout(handle_of(other)?);
            Ok(cache.store_with(&keys, &blocks, &options)?)
        })?;
        Ok(PyCompletion::new(Ending::Store(store), layouts))
    }

    /// Starts bringing the leading blocks of ``keys`` that are on disk to host memory.
    ///
    /// Returns:
    ///     A Completion that ends with a LoadReport.
    ///
    /// Raises:
    ///     BusyError: no place in the queue.
    fn prefetch(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::keys)] keys: Vec<BlockKey>,
    ) -> PyResult<PyCompletion> {
        let load = self.with(py, |cache| cache.prefetch(&keys))?;
        Ok(PyCompletion::new(Ending::Load(load), self.layouts(None)?))
    }

    /// Evicts up to ``blocks`` blocks of ``tier`` (``"host"`` or ``"disk"``), those least worth keeping
    /// first, and returns how many have gone. It does the I/O of that itself.
    ///
    /// Raises:
    ///     RequestError: a tier that the cache does not have.
    fn evict(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = text::tier)] tier: Text,
        #[pyo3(from_py_with = number::blocks)] blocks: usize,
    ) -> PyResult<usize> {
        let tier = text::tier_of(&tier)?;
        self.with(py, |cache| cache.evict(tier, blocks))
    }

    /// Makes all blocks of all tiers impossible to find, and returns how many. Those in use stay where
    /// they are until they are let go.
    ///
    /// Raises:
    ///     DiskError: a disk that cannot be brought to forget.
    fn clear(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, Cache::clear)
    }

    /// Brings everything to the disk that is only in host memory, as far as the disk has room, and waits until it
    /// is durable. Where not all of it has room, the blocks go there that are worth most.
    ///
    /// Returns:
    ///     A FlushReport; ``durable`` says whether all blocks that were in host memory outlive a crash now. Without a
    ///     disk nothing does, and ``no_tier`` says so.
    fn flush(&self, py: Python<'_>) -> PyResult<PyFlushReport> {
        let report = self.with(py, |cache| Ok::<_, Failure>(cache.flush()))?;
        Ok(PyFlushReport::from(report))
    }

    /// What was counted since the cache was opened, and what it holds, as a dict of plain values.
    fn stats(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let stats = self.with(py, |cache| Ok::<_, Failure>(stats::of_cache(cache)))?;
        stats::object(py, &stats)
    }

    /// What the pool of ``tier`` (``"host"`` or ``"disk"``) counted and holds, as a dict.
    ///
    /// Raises:
    ///     RequestError: a tier that the cache does not have.
    fn pool_stats(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = text::tier)] tier: Text,
    ) -> PyResult<Py<PyAny>> {
        let name = text::tier_of(&tier)?;
        let stats = self.with(py, |cache| Ok::<_, Failure>(cache.pool_stats(name)))?;
        let stats = stats.ok_or_else(|| {
            python::RequestError::new_err(format!("this cache has no {name} tier"))
        })?;
        stats::object(py, &stats::of_pool(&stats))
    }

    /// Matches that were held for longer than their owners said: dicts of owner, blocks and milliseconds.
    fn overdue(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let pins = self.with(py, |cache| Ok::<_, Failure>(cache.overdue()))?;
        stats::object(py, &stats::of_pins(&pins))
    }

    /// Bytes a second at which the disk has given blocks lately; None while it has given none.
    #[getter]
    fn disk_bytes_per_second(&self, py: Python<'_>) -> PyResult<Option<f64>> {
        self.with(py, |cache| {
            Ok::<_, Failure>(cache.disk().and_then(DiskTier::bytes_per_second))
        })
    }

    /// Bytes of host memory that one block takes: whole pages of 4,096 bytes.
    #[getter]
    fn host_bytes_per_block(&self, py: Python<'_>) -> PyResult<u64> {
        let layout = self.layout.as_ref().map(|layout| layout.strided().shape());
        let layout = layout.ok_or_else(|| python::ClosedError::new_err("the cache is closed"))?;
        let bytes = layout.block_bytes().map_err(|error| raise(py, error))?;
        Ok(bytes.next_multiple_of(HOST_PAGE_BYTES))
    }

    /// Events of all tiers from now on.
    fn subscribe(&self, py: Python<'_>) -> PyResult<PySubscriber> {
        let subscriber = self.with(py, |cache| Ok::<_, Failure>(cache.subscribe()))?;
        Ok(PySubscriber::new(subscriber))
    }

    /// All stored blocks, and from which event on that is true.
    fn snapshot(&self, py: Python<'_>) -> PyResult<PySnapshot> {
        let snapshot = self.with(py, |cache| Ok::<_, Failure>(cache.snapshot()))?;
        Ok(PySnapshot(snapshot))
    }

    /// Does one job that waits, on this thread; False where none does. For caches without workers.
    fn step(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |cache| Ok::<_, Failure>(cache.step()))
    }

    /// Brings what is only in host memory to the disk tier, where there is one, within ``close_within`` seconds
    /// and the time of one sync, and gives everything back: threads, host memory, the folder. What has not
    /// begun ends as closed, and matches have no blocks any more. Closing twice is fine.
    ///
    /// It waits for calls of other threads to end. From a callback it gives everything back when the callback
    /// returns.
    ///
    /// Returns:
    ///     A FlushReport of what became of the blocks in host memory; None without a disk tier, where the cache
    ///     was closed already, or from inside another call of the cache, at whose end it closes.
    fn close(&self, py: Python<'_>) -> PyResult<Option<PyFlushReport>> {
        let slot = self.slot.as_ref();
        let closed = guard::call(py, || slot.and_then(|slot| close(slot)))?;
        let report = closed.filter(|(has_disk, _)| *has_disk);
        Ok(report.map(|(_, report)| PyFlushReport::from(report)))
    }

    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        let slot = self.slot.as_ref();
        slot.is_none_or(|slot| lock(slot).is_none())
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _exception: &Bound<'_, pyo3::types::PyTuple>,
    ) -> PyResult<()> {
        self.close(py).map(drop)
    }

    /// The numbers that a notebook shows.
    fn _repr_html_(&self, py: Python<'_>) -> PyResult<String> {
        let title = self.__repr__();
        match self.closed() {
            true => Ok(stats::html(&title, &serde_json::Value::Null)),
            false => self.with(py, |cache| {
                Ok::<_, Failure>(stats::html(&title, &stats::of_cache(cache)))
            }),
        }
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "Cache",
            "it has memory and threads; open another one with its identity and a layout",
        ))
    }

    fn __repr__(&self) -> String {
        let state = if self.closed() { "closed" } else { "open" };
        let word = self.layout.as_ref().map(|layout| layout.word_text());
        format!("<kvtile.Cache for {}: {state}>", word.unwrap_or_default())
    }
}

fn handle_of(layout: Option<Arc<LayoutInner>>) -> Result<Option<LayoutHandle>, Failure> {
    layout.map(|layout| layout.handle()).transpose()
}

fn hints(priority: i8, output_tokens: u32, partial_tail: bool) -> Hints {
    let mut hints = Hints::default();
    hints.priority = priority;
    hints.output_tokens = output_tokens;
    hints.partial_tail = partial_tail;
    hints
}

fn priority_of(name: &str) -> PyResult<Priority> {
    match name {
        "background" => Ok(Priority::Background),
        "low" => Ok(Priority::Low),
        "normal" => Ok(Priority::Normal),
        "urgent" => Ok(Priority::Urgent),
        other => Err(python::RequestError::new_err(format!(
            "there is no priority {other:?}; there are background, low, normal and urgent"
        ))),
    }
}
