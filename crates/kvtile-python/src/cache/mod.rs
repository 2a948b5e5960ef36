//! The Python class `Cache`, over the library's cache.

mod close;
mod events;
mod found;
mod seek;
pub(crate) mod settings;
pub(crate) mod stats;

use close::close;
pub(crate) use close::close_all;
pub(crate) use events::{PyEvent, PySnapshot, PySubscriber};
pub(crate) use found::PyMatch;
pub(crate) use seek::PySeek;
use settings::{hints, priority_of};

use std::{sync::Arc, time::Duration};

use kvtile::{
    blocks::{
        BlockKey,
        pool::{OwnerId, TenantId},
    },
    tiers::{
        cache::{Cache, LoadOptions, LookupOptions, StoreOptions},
        disk::DiskTier,
        parts::PartsTier,
    },
    transfer::LayoutHandle,
};
use pyo3::{prelude::*, types::PyDict};

use crate::{
    arguments::{
        flag, list, number, object, stream,
        text::{self, TextArgument},
        time,
    },
    completion::{DeviceLayers, PendingOperation, PyCompletion},
    device::StreamHandle,
    error::{CallFailure, python, raise},
    guard,
    identity::PyIdentity,
    layout::{PyLayout, PyLayoutShared},
    pickle,
    report::PyFlushReport,
    slot::{OpenSlot, OpenSlots, SlotCall},
    transfer::marks_behind,
};

/// Alignment of blocks in host memory, in bytes.
const HOST_PAGE_BYTES: u64 = 4096;

/// Caches of this process that may still be open. `close_all` closes them before the interpreter
/// ends.
static OPEN: OpenSlots<Cache> = OpenSlots::new();

/// Keeps blocks of KV in host memory and on disk, for one engine's layout.
///
/// An engine looks up the keys of a prompt, loads the hits into its blocks, computes the other
/// blocks, and stores them. No call waits for a copy or a disk. When the queue is full, a call
/// raises BusyError and the engine computes instead.
///
/// Use the cache in a ``with`` statement, or close it. Closing writes blocks that are only in host
/// memory to the disk tier, if there is one. A killed process loses the blocks that were not
/// synced. A sync begins at the latest when 64 blocks were written, or 250 ms after the first of
/// them, regardless of other work.
///
/// Args:
///     identity: the identity of the blocks; blocks of another identity are never served.
///     layout: the engine's layout over its tensors.
///     host_bytes: host memory for blocks, each of which takes ``host_bytes_per_block``.
///     prefault: fault in all host memory when the cache opens, which then takes longer. Otherwise
///         the first use of each page faults it in, and storing is slower until all pages are
///         resident.
///     disk: folder of the disk tier; default: no disk tier. One cache at a time may write a folder.
///         A cache whose identity is a part of a model writes a folder of its own in it, such as
///         ``layers-0-32.heads-0-4``. Blocks that parts of other caches cover are found too, in the
///         tier ``"disk:parts"``.
///     disk_bytes: limit for the total size of the files in the folder.
///     disk_writes: ``"on_eviction"`` from host memory, ``"at_once"`` (in the order of stores, as
///         fast as the disk takes them), or the number of uses after which a block is written.
///     close_within: seconds that closing may take to write blocks that are only in host memory;
///         default: 30. With 0 these blocks are lost.
///     answer_within: seconds that the cache waits for each disk batch; default: 30. A later answer
///         is a miss, and the cache does not use the disk for a while.
///     shared: a store that other caches use too: a URL (``s3://bucket/prefix``, ``redis://host``), the
///         path of a folder, or a ``kvtile.SharedTier``; default: none. ``seek`` finds its blocks.
///     shared_lifetime: seconds for which a store keeps values, where values expire; default: for
///         ever.
///     shared_bundle_blocks: blocks of one value, 1 to 64, the same for all caches of the store;
///         default: as many as the store reads well, 8 MiB for a bucket.
///     shared_compress: whether blocks are compressed when they are written, without loss; default:
///         False. Every cache reads compressed blocks.
///     shared_staging_bytes: memory for blocks that wait until their bundle is whole and written;
///         default: 256 MiB.
///     shared_within: seconds within which the store must answer and be read; default: 5.
///     connect: the socket of a node daemon (``kvtile serve``), which then has host memory and all
///         tiers; default: none, this process has them. Of the other settings only the next two,
///         ``workers``, ``queue_capacity`` and ``recompute_tokens_per_second`` go with it.
///     connect_staging_bytes: memory that blocks pass on their way to the daemon; default: 64 MiB.
///     connect_within: seconds within which the daemon must answer a lookup; default: 1. After it
///         nothing is found until the daemon answers again.
///     policy, disk_policy: eviction policy: ``"gittins"``, ``"lru"``, ``"arc"`` or ``"s3-fifo"``.
///     storage_word: the layout word of a block in host memory and on disk; default:
///         ``kvtile.STORAGE_WORD``.
///     quotas: limits of blocks of host memory, by tenant.
///     workers: worker threads that move blocks; with 0, blocks move only in calls of ``step``.
///     queue_capacity: maximum number of queued jobs.
///     recompute_tokens_per_second: how fast the engine computes KV. Blocks that take longer to
///         load from disk than to compute count as missing.
///     event_capacity: events kept for subscribers that lag.
///
/// Raises:
///     IdentityError: a layout or a folder of another identity; ``field`` names the field that
///         differs.
///     SettingsError: invalid settings, or too little room for one block.
///     FolderInUseError: another cache uses the folder.
///     DiskError: a folder that cannot be used.
///     DaemonError: no daemon answers at the socket, or it refuses the identity.
#[pyclass(name = "Cache", module = "kvtile", frozen, weakref)]
pub(crate) struct PyCache {
    slot: Option<Arc<OpenSlot<Cache>>>,
    layout: Option<Arc<PyLayoutShared>>,
}

impl PyCache {
    fn cache(&self) -> PyResult<Arc<Cache>> {
        let cache = self.slot.as_ref().and_then(|slot| slot.get());
        cache.ok_or_else(|| python::ClosedError::new_err("the cache is closed"))
    }

    /// The engine's layout, and `other` if there is one.
    fn layouts(&self, other: Option<&Bound<'_, PyLayout>>) -> PyResult<Vec<Arc<PyLayoutShared>>> {
        let other = other.map(|layout| layout.get().shared()).transpose()?;
        Ok(self.layout.iter().map(Arc::clone).chain(other).collect())
    }

    /// Calls the cache.
    fn with<T: Send, E: Into<CallFailure> + Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&Cache) -> Result<T, E> + Send,
    ) -> PyResult<T> {
        guard::check_fork()?;
        let cache = self.cache()?;
        guard::run(py, move || {
            let _call = SlotCall::enter();
            work(&cache)
        })
    }
}

impl Drop for PyCache {
    fn drop(&mut self) {
        // Takes no lock: in a forked child, a thread that does not exist there may hold it.
        guard::discard((self.slot.take(), self.layout.take()));
    }
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
        let opening = settings::read(identity.get().0.clone(), settings)?;
        let engine = Arc::clone(&layout);
        let cache = guard::run(py, move || -> Result<Cache, CallFailure> {
            Ok(opening.open(engine.handle()?)?)
        })?;
        Ok(PyCache {
            slot: Some(OPEN.open(cache)),
            layout: Some(layout),
        })
    }

    /// Finds the longest stored prefix of ``keys``, in any tier, and pins it. It does no I/O.
    ///
    /// Args:
    ///     keys: the chain from its first block, as TokenHasher makes it. An engine's own block
    ///         hashes of any length work too, if all calls use them.
    ///     owner: a number that reports of pins show.
    ///     hold: seconds within which the match should be loaded or released; ``overdue`` lists the
    ///         matches that exceed it.
    ///     priority: how much longer to keep the blocks than blocks without a priority; each step doubles their value.
    ///     lifetime: seconds after which the blocks are evicted first, accurate to about a second;
    ///         None for no limit. The longest lifetime of all users of a block counts, and no limit
    ///         is the longest.
    ///     output_tokens: tokens generated for the request; 0 if unknown.
    ///     partial_tail: whether the last key belongs to a block that is not full.
    ///
    /// Returns:
    ///     A Match. It pins its blocks, so load it or release it.
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
            Ok::<_, CallFailure>(cache.lookup_with(&keys, &options))
        })?;
        Ok(PyMatch::new(found))
    }

    /// Like ``lookup``, but first queries the shared tier for the blocks that it has. The call returns at once.
    ///
    /// Args:
    ///     keys: the chain from its first block.
    ///     within: seconds to wait for the answer; after that the match has the blocks of the other
    ///         tiers.
    ///     owner, hold, priority, lifetime, output_tokens, partial_tail: as for ``lookup``.
    ///
    /// Returns:
    ///     A Seek. Its match pins blocks, so load it or release it.
    #[pyo3(signature = (
        keys, within, *, owner=0, hold=None, priority=0, lifetime=None, output_tokens=0, partial_tail=false
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn seek(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::keys)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = time::seek_within)] within: Duration,
        #[pyo3(from_py_with = number::owner)] owner: u64,
        #[pyo3(from_py_with = time::hold)] hold: Option<Duration>,
        #[pyo3(from_py_with = number::priority)] priority: i8,
        #[pyo3(from_py_with = time::lifetime)] lifetime: Option<Duration>,
        #[pyo3(from_py_with = number::output_tokens)] output_tokens: u32,
        #[pyo3(from_py_with = flag::partial_tail)] partial_tail: bool,
    ) -> PyResult<PySeek> {
        let options = LookupOptions::new()
            .owner(OwnerId(owner))
            .hold(hold)
            .hints(hints(priority, output_tokens, partial_tail))
            .lifetime(lifetime);
        let seek = self.with(py, |cache| {
            Ok::<_, CallFailure>(cache.seek_with(&keys, within, &options))
        })?;
        Ok(PySeek::new(seek))
    }

    /// Starts loading a match into blocks of the engine: as many leading blocks as there are ids.
    ///
    /// The call consumes the match, even if it raises.
    ///
    /// Args:
    ///     found: the Match.
    ///     blocks: the destination blocks, ids of the engine's layout.
    ///     priority: ``"background"``, ``"low"``, ``"normal"`` or ``"urgent"``.
    ///     within: deadline in seconds; parts that have not begun by then do not begin, and a load
    ///         by layers ends before its next layers.
    ///     layout: another layout of the same identity to load into, instead of the engine's.
    ///     after: with a layout on a CUDA device, the stream with the work that still reads or writes the blocks;
    ///         the load writes them behind it. As for copy_blocks.
    ///
    /// Returns:
    ///     A Completion of a LoadReport.
    ///
    /// Raises:
    ///     BusyError: the queue is full; compute the blocks instead.
    ///     RequestError: a match of another cache, more ids than blocks, ids that do not exist or occur
    ///         twice, or a stream of no device of the layout.
    #[pyo3(
        signature = (
            found, blocks, *, priority=TextArgument::Borrowed("normal"), within=None, layout=None, after=None
        ),
        text_signature = "($self, found, blocks, *, priority='normal', within=None, layout=None, after=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn load(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = object::found)] found: Bound<'_, PyMatch>,
        #[pyo3(from_py_with = list::blocks)] blocks: Vec<usize>,
        #[pyo3(from_py_with = text::priority)] priority: TextArgument,
        #[pyo3(from_py_with = time::within)] within: Option<Duration>,
        #[pyo3(from_py_with = object::layout)] layout: Option<Bound<'_, PyLayout>>,
        #[pyo3(from_py_with = stream::after)] after: Option<StreamHandle>,
    ) -> PyResult<PyCompletion> {
        let options = LoadOptions::new()
            .priority(priority_of(&priority)?)
            .within(within);
        let found = found.get().take()?;
        let layouts = self.layouts(layout.as_ref())?;
        let other = layout.and_then(|_| layouts.last().map(Arc::clone));
        let target: Vec<_> = layouts.last().map(Arc::clone).into_iter().collect();
        let on_device = DeviceLayers::of_load(&target, blocks.len());
        let options = options.marks(on_device.as_ref().map(DeviceLayers::marks));
        let load = self.with(py, move |cache| -> Result<_, CallFailure> {
            let marks = marks_behind(after, &target)?.into_iter();
            let options = marks.fold(options.layout(handle_of(other)?), LoadOptions::after);
            Ok(cache.load_with(found, &blocks, &options)?)
        })?;
        let completion = PyCompletion::new(PendingOperation::Load(load), layouts);
        Ok(completion.with_layers(on_device))
    }

    /// Starts storing blocks of the engine. Their contents must not change before the completion.
    ///
    /// Args:
    ///     keys: the chain from its first block, at least up to the last stored block.
    ///     blocks: ids of the engine's layout; block ``i`` has the key ``keys[first + i]``.
    ///     first: index in the chain of the first stored block.
    ///     tenant: the tenant that owns the blocks.
    ///     priority: ``"background"``, ``"low"``, ``"normal"`` or ``"urgent"``.
    ///     within: deadline in seconds; a store that has not begun by then does not begin.
    ///     keep: how much longer to keep the blocks than blocks without a priority; each step doubles their value.
    ///     lifetime: seconds after which the blocks are evicted first, accurate to about a second;
    ///         None for no limit. The longest lifetime of all users of a block counts, and no limit
    ///         is the longest.
    ///     output_tokens: tokens generated for the request; 0 if unknown.
    ///     partial_tail: whether the last block is not full.
    ///     layout: another layout of the same identity that holds the blocks, instead of the
    ///         engine's.
    ///     after: with a layout on a CUDA device, the stream with the work that writes the blocks; the store
    ///         reads them behind it. As for copy_blocks.
    ///
    /// Returns:
    ///     A Completion of a StoreReport.
    ///
    /// Raises:
    ///     BusyError: the queue is full; continue without storing the blocks.
    ///     RequestError: fewer keys than blocks, ids that do not exist or occur twice, or a stream of no device of
    ///         the layout.
    #[pyo3(
        signature = (
            keys, blocks, *, first=0, tenant=0, priority=TextArgument::Borrowed("low"), within=None, keep=0,
            lifetime=None, output_tokens=0, partial_tail=false, layout=None, after=None
        ),
        text_signature = "($self, keys, blocks, *, first=0, tenant=0, priority='low', within=None, \
                          keep=0, lifetime=None, output_tokens=0, partial_tail=False, layout=None, \
                          after=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn store(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::keys)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = list::blocks)] blocks: Vec<usize>,
        #[pyo3(from_py_with = number::first)] first: usize,
        #[pyo3(from_py_with = number::tenant)] tenant: u32,
        #[pyo3(from_py_with = text::priority)] priority: TextArgument,
        #[pyo3(from_py_with = time::within)] within: Option<Duration>,
        #[pyo3(from_py_with = number::keep)] keep: i8,
        #[pyo3(from_py_with = time::lifetime)] lifetime: Option<Duration>,
        #[pyo3(from_py_with = number::output_tokens)] output_tokens: u32,
        #[pyo3(from_py_with = flag::partial_tail)] partial_tail: bool,
        #[pyo3(from_py_with = object::layout)] layout: Option<Bound<'_, PyLayout>>,
        #[pyo3(from_py_with = stream::after)] after: Option<StreamHandle>,
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
        let source: Vec<_> = layouts.last().map(Arc::clone).into_iter().collect();
        let store = self.with(py, move |cache| -> Result<_, CallFailure> {
            let marks = marks_behind(after, &source)?.into_iter();
            let options = marks.fold(options.layout(handle_of(other)?), StoreOptions::after);
            Ok(cache.store_with(&keys, &blocks, &options)?)
        })?;
        Ok(PyCompletion::new(PendingOperation::Store(store), layouts))
    }

    /// Starts promoting the leading blocks of ``keys`` from disk to host memory.
    ///
    /// Returns:
    ///     A Completion of a LoadReport.
    ///
    /// Raises:
    ///     BusyError: the queue is full.
    fn prefetch(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::keys)] keys: Vec<BlockKey>,
    ) -> PyResult<PyCompletion> {
        let load = self.with(py, |cache| cache.prefetch(&keys))?;
        Ok(PyCompletion::new(
            PendingOperation::Load(load),
            self.layouts(None)?,
        ))
    }

    /// Evicts up to ``blocks`` blocks of ``tier`` (``"host"`` or ``"disk"``), the least valuable
    /// first. Returns how many it evicted. The calling thread does the I/O.
    ///
    /// Raises:
    ///     RequestError: a tier that the cache does not have.
    fn evict(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = text::tier)] tier: TextArgument,
        #[pyo3(from_py_with = number::blocks)] blocks: usize,
    ) -> PyResult<usize> {
        let tier = text::tier_of(&tier)?;
        self.with(py, |cache| cache.evict(tier, blocks))
    }

    /// Removes the keys of all blocks from all tiers, so that no lookup finds them. Returns their
    /// number. Blocks in use keep their memory until they are released. Blocks of a shared store, and
    /// of other ranks, stay there: this cache finds no more of those that it knew.
    ///
    /// Raises:
    ///     DiskError: the disk tier cannot be cleared.
    fn clear(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, Cache::clear)
    }

    /// Writes all blocks that are only in host memory to the disk, as far as it has room, and waits
    /// until they are durable. If the room does not suffice, the most valuable blocks are written.
    ///
    /// Returns:
    ///     A FlushReport; ``durable`` is True if all blocks that were in host memory now survive a
    ///     crash. Without a disk no block does, and ``no_tier`` counts them.
    fn flush(&self, py: Python<'_>) -> PyResult<PyFlushReport> {
        let report = self.with(py, |cache| Ok::<_, CallFailure>(cache.flush()))?;
        Ok(PyFlushReport::from(report))
    }

    /// Counters since the cache was opened, and its current contents, as a dict of plain values.
    fn stats(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let stats = self.with(py, |cache| Ok::<_, CallFailure>(stats::of_cache(cache)))?;
        stats::object(py, &stats)
    }

    /// Counters and contents of the pool of ``tier`` (``"host"`` or ``"disk"``), as a dict.
    ///
    /// Raises:
    ///     RequestError: a tier that the cache does not have.
    fn pool_stats(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = text::tier)] tier: TextArgument,
    ) -> PyResult<Py<PyAny>> {
        let name = text::tier_of(&tier)?;
        let stats = self.with(py, |cache| Ok::<_, CallFailure>(cache.pool_stats(name)))?;
        let stats = stats.ok_or_else(|| {
            python::RequestError::new_err(format!("this cache has no {name} tier"))
        })?;
        stats::object(py, &stats::of_pool(&stats))
    }

    /// Seconds that reading so many blocks of a tier below host memory takes, as earlier reads went; None for host
    /// memory, before the first read, and while a daemon does not answer.
    fn read_seconds(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = text::tier)] tier: TextArgument,
        #[pyo3(from_py_with = number::blocks)] blocks: usize,
    ) -> PyResult<Option<f64>> {
        let name = text::tier_of(&tier)?;
        let time = self.with(py, |cache| {
            Ok::<_, CallFailure>(cache.estimate(name, blocks))
        })?;
        Ok(time.map(|time| time.as_secs_f64()))
    }

    /// Matches held past their ``hold`` time: dicts of owner, blocks and milliseconds.
    fn overdue(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let pins = self.with(py, |cache| Ok::<_, CallFailure>(cache.overdue()))?;
        stats::object(py, &stats::of_pins(&pins))
    }

    /// Recent read throughput of the disk in bytes per second; None before the first read, and with
    /// ``connect``, where the daemon has the disk.
    #[getter]
    fn disk_bytes_per_second(&self, py: Python<'_>) -> PyResult<Option<f64>> {
        self.with(py, |cache| {
            let own = cache.disk().and_then(DiskTier::bytes_per_second);
            let parts = || cache.parts().and_then(PartsTier::bytes_per_second);
            Ok::<_, CallFailure>(own.or_else(parts))
        })
    }

    /// Bytes of host memory that one block takes, in whole pages of 4,096 bytes.
    #[getter]
    fn host_bytes_per_block(&self, py: Python<'_>) -> PyResult<u64> {
        let layout = self.layout.as_ref().map(|layout| layout.strided().shape());
        let layout = layout.ok_or_else(|| python::ClosedError::new_err("the cache is closed"))?;
        let bytes = layout.block_bytes().map_err(|error| raise(py, error))?;
        Ok(bytes.next_multiple_of(HOST_PAGE_BYTES))
    }

    /// Subscribes to the events of all tiers from now on.
    fn subscribe(&self, py: Python<'_>) -> PyResult<PySubscriber> {
        let subscriber = self.with(py, |cache| Ok::<_, CallFailure>(cache.subscribe()))?;
        Ok(PySubscriber::new(subscriber))
    }

    /// All stored blocks, and the first event to apply on top of them.
    fn snapshot(&self, py: Python<'_>) -> PyResult<PySnapshot> {
        let snapshot = self.with(py, |cache| Ok::<_, CallFailure>(cache.snapshot()))?;
        Ok(PySnapshot(snapshot))
    }

    /// Whether calls reach the tiers: True in process. With ``connect`` False while the daemon is away or
    /// does not answer; nothing is found then, and nothing is stored.
    #[getter]
    fn connected(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |cache| Ok::<_, CallFailure>(cache.is_connected()))
    }

    /// Runs one queued job on this thread; False if the queue is empty. For caches without workers.
    fn step(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |cache| Ok::<_, CallFailure>(cache.step()))
    }

    /// Writes blocks that are only in host memory to the disk tier, if there is one, within
    /// ``close_within`` seconds and the time of one sync. Then frees threads, host memory and the
    /// folder. Queued jobs complete as closed, and matches lose their blocks. Closing twice is
    /// fine.
    ///
    /// The call waits for calls of other threads to end. From a callback, the cache closes when the
    /// callback returns.
    ///
    /// Returns:
    ///     A FlushReport of the blocks in host memory. None without a durable tier (a disk, or a shared store
    ///     that keeps what it has), if the cache was closed already, or from inside another call of the
    ///     cache, at the end of which it closes.
    fn close(&self, py: Python<'_>) -> PyResult<Option<PyFlushReport>> {
        let slot = self.slot.as_ref();
        let closed = guard::call(py, || slot.and_then(|slot| close(slot)))?;
        let report = closed.filter(|(is_durable, _)| *is_durable);
        Ok(report.map(|(_, report)| PyFlushReport::from(report)))
    }

    /// Whether the cache is closed.
    #[getter]
    fn closed(&self) -> bool {
        let slot = self.slot.as_ref();
        slot.is_none_or(|slot| slot.is_closed())
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

    /// The statistics as a table for notebooks.
    fn _repr_html_(&self, py: Python<'_>) -> PyResult<String> {
        let title = self.__repr__();
        match self.closed() {
            true => Ok(stats::html(&title, &serde_json::Value::Null)),
            false => self.with(py, |cache| {
                Ok::<_, CallFailure>(stats::html(&title, &stats::of_cache(cache)))
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

fn handle_of(layout: Option<Arc<PyLayoutShared>>) -> Result<Option<LayoutHandle>, CallFailure> {
    layout.map(|layout| layout.handle()).transpose()
}
