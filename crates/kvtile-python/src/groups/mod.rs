//! The Python class `GroupCache`, over the library's cache over groups.

mod blocks;
mod found;
mod report;
mod seek;
mod settings;

pub(crate) use found::PyGroupMatch;
pub(crate) use report::{PyGroupLoadReport, PyGroupStoreReport};
pub(crate) use seek::PyGroupSeek;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kvtile::{
    blocks::{
        BlockKey,
        events::TierId,
        pool::{OwnerId, TenantId},
    },
    tiers::{
        cache::LoadOptions,
        groups::{GroupCache, GroupStoreOptions, StopOptions},
    },
    transfer::LayoutHandle,
};
use pyo3::{
    prelude::*,
    types::{PyDict, PyTuple},
};
use serde_json::{Value, json};

use self::blocks::{GroupLayouts, HaveTokens, LoadIds, StoreIds};
use crate::{
    arguments::{
        list, number, object, stream,
        text::{self, TextArgument},
        time,
    },
    cache::{
        PySnapshot, PySubscriber,
        settings::{hints, priority_of},
        stats,
    },
    completion::{PendingOperation, PyCompletion},
    device::StreamHandle,
    error::{CallFailure, python::ClosedError},
    guard,
    keys::PyTokenHasher,
    layout::PyLayoutShared,
    model::PyModelIdentity,
    pickle,
    report::PyFlushReport,
    slot::{OpenSlot, OpenSlots, SlotCall},
    transfer::marks_behind,
};

/// Caches over groups of this process that may still be open. `close_all` closes them before the
/// interpreter ends.
static OPEN: OpenSlots<GroupCache> = OpenSlots::new();

/// Keeps the KV and the states of models whose layers do not all attend to all tokens: windows, chunks,
/// recurrent states.
///
/// A group is a set of layers with one rule, which says what a request that resumes at a position needs
/// of them. A stop is a position at which every group has that. ``lookup`` finds the longest stop,
/// ``load`` brings all that it needs or reports 0 tokens, ``store`` keeps what chosen stops need.
///
/// Use the cache in a ``with`` statement, or close it. Durability is that of ``kvtile.Cache``.
///
/// Args:
///     model: the model with its groups, each with a rule and a page size: ``"full"`` (all tokens before
///         the stop), ``"window"`` (the last tokens that a token attends to, itself included),
///         ``"chunk"`` (the tokens of the chunk that the stop is in) or ``"stop"`` (one record for the
///         state at the stop). A group of a draft model is kept beside the model's groups: a stop and a load
///         need nothing of it.
///     layouts: the engine's layout of groups, by name. Of a group without one, each load and store
///         gives the layout of its blocks.
///     host_bytes: host memory, over all groups; default: 1 GiB.
///     shares: how groups divide host memory and the disk, relative to each other. Groups without a share
///         count 1 on average and divide that by the bytes of a request of 8,192 tokens with two stops.
///     storage_words: layout words of stored pages, by group; default: ``kvtile.STORAGE_WORD``.
///     prefault, disk, disk_bytes, disk_writes, disk_policy, close_within, answer_within, policy: as for
///         ``kvtile.Cache``. All groups are in one folder.
///     workers, queue_capacity: as for ``kvtile.Cache``, for each group.
///     recompute_tokens_per_second: how fast the engine computes; a stop that takes longer to load is left
///         out; default: unknown.
///     shared, shared_lifetime, shared_bundle_blocks, shared_compress, shared_staging_bytes, shared_within:
///         as for ``kvtile.Cache``. A value has ``shared_bundle_blocks`` pages of a group with the rule full
///         and one page of another group; the staging memory must hold the largest value.
///     event_capacity: events kept for subscribers that lag.
///     connect, connect_staging_bytes, connect_within: as for ``kvtile.Cache``. Memory that pages pass on their way
///         to the daemon is 64 MiB by default, and has room for two pages of each group.
///
/// Raises:
///     IdentityError: a layout or a folder of another identity; ``field`` names the field that differs.
///     ArgumentError: a group that the model does not have.
///     SettingsError: invalid settings, or too little room for one stop.
///     FolderInUseError: another cache uses the folder.
///     DiskError: a folder that cannot be used.
#[pyclass(name = "GroupCache", module = "kvtile", frozen, weakref)]
pub(crate) struct PyGroupCache {
    slot: Option<Arc<OpenSlot<GroupCache>>>,
    layouts: Option<Vec<Arc<PyLayoutShared>>>,
    group_count: usize,
}

impl PyGroupCache {
    /// The layouts of the engine, and those of a call.
    fn layouts(&self, of_call: GroupLayouts) -> Vec<Arc<PyLayoutShared>> {
        let of_call = of_call.into_iter().map(|(_, layout)| layout);
        let engine = self.layouts.iter().flatten().map(Arc::clone);
        engine.chain(of_call).collect()
    }

    /// Calls the cache.
    fn with<T: Send, E: Into<CallFailure> + Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&GroupCache) -> Result<T, E> + Send,
    ) -> PyResult<T> {
        guard::check_fork()?;
        let cache = self.slot.as_ref().and_then(|slot| slot.get());
        let cache = cache.ok_or_else(|| ClosedError::new_err("the cache is closed"))?;
        guard::run(py, move || {
            let _call = SlotCall::enter();
            work(&cache)
        })
    }
}

impl Drop for PyGroupCache {
    fn drop(&mut self) {
        // Takes no lock: in a forked child, a thread that does not exist there may hold it.
        guard::discard((self.slot.take(), self.layouts.take()));
    }
}

/// Closes all open caches over groups before the interpreter ends.
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

/// The options of a lookup: the most tokens of the stop and the owner of its pins, how long they last, and how long the
/// pages are worth keeping.
fn stop_options(
    (at_most, owner): (Option<u64>, u64),
    hold: Option<Duration>,
    (priority, lifetime): (i8, Option<Duration>),
) -> StopOptions {
    StopOptions::new()
        .at_most(at_most)
        .owner(OwnerId(owner))
        .hold(hold)
        .hints(hints(priority, 0, false))
        .lifetime(lifetime)
}

#[pymethods]
impl PyGroupCache {
    #[new]
    #[pyo3(signature = (model, layouts=Vec::new(), **settings), text_signature = "(model, layouts=None, **settings)")]
    fn new(
        #[pyo3(from_py_with = object::model)] model: Bound<'_, PyModelIdentity>,
        #[pyo3(from_py_with = blocks::layouts)] layouts: GroupLayouts,
        settings: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<PyGroupCache> {
        let py = model.py();
        let opening = settings::read(&model.get().0, layouts, settings)?;
        let (place, layouts) = (opening.place, opening.layouts);
        let engines = layouts.clone();
        let cache = guard::run(py, move || -> Result<GroupCache, CallFailure> {
            let handle = |engine: &Arc<PyLayoutShared>| engine.handle();
            let handles = engines.iter();
            let handles = handles.map(|engine| engine.as_ref().map(handle).transpose());
            let handles: Vec<Option<LayoutHandle>> = handles.collect::<Result<_, _>>()?;
            Ok(place.open(&handles)?)
        })?;
        Ok(PyGroupCache {
            slot: Some(OPEN.open(cache)),
            group_count: layouts.len(),
            layouts: Some(layouts.into_iter().flatten().collect()),
        })
    }

    /// Tokens of one key of a chain: the greatest common divisor of the pages of all groups.
    #[getter]
    fn unit(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |cache| Ok::<_, CallFailure>(cache.unit()))
    }

    /// Tokens between two possible stops: the least common multiple of the pages of the model's own groups.
    #[getter]
    fn stop_unit(&self, py: Python<'_>) -> PyResult<u64> {
        self.with(py, |cache| Ok::<_, CallFailure>(cache.stop_unit()))
    }

    /// The groups in their order: a dict with the number, the rule, the page size, the pages in host
    /// memory of each, and whether it is of a draft model.
    #[getter]
    fn groups(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let groups = self.with(py, |cache| {
            let groups = cache.groups().iter().map(|facts| {
                let host = cache.tier_stats(&facts.name, TierId::HOST);
                let value = json!({
                    "number": facts.id.0,
                    "rule": settings::text_of(facts.rule),
                    "page_size": facts.page_size.get(),
                    "host_pages": host.map_or(0, |stats| stats.capacity),
                    "draft": !facts.gates(),
                });
                (facts.name.clone(), value)
            });
            Ok::<_, CallFailure>(Value::Object(groups.collect()))
        })?;
        stats::object(py, &groups)
    }

    /// Makes the keys of chains for this cache, one for each ``unit`` of tokens, as ``TokenHasher(model)`` does.
    ///
    /// Args:
    ///     salt: isolates tenants: a lookup finds only pages of the same salt.
    #[pyo3(
        signature = (*, salt=TextArgument::Borrowed("")),
        text_signature = "($self, *, salt='')"
    )]
    fn hasher(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = text::salt)] salt: TextArgument,
    ) -> PyResult<PyTokenHasher> {
        let (chain, unit) = self.with(py, |cache| {
            Ok::<_, CallFailure>((cache.chain_identity(), cache.unit()))
        })?;
        PyTokenHasher::of_chain(&chain, unit, &salt)
    }

    /// Finds the longest stop of a chain, and pins what it needs. It does no I/O.
    ///
    /// Args:
    ///     keys: the chain from its first key, as the hasher makes it. An engine's own hashes work too, one
    ///         for each ``unit`` of tokens.
    ///     at_most: the most tokens of the stop; default: those of the chain.
    ///     owner: a number that reports of pins show.
    ///     hold: seconds within which the match should be loaded or released.
    ///     priority: how much longer to keep the pages than pages without a priority; each step doubles their value.
    ///     lifetime: seconds after which the pages are evicted first; None for no limit.
    ///
    /// Returns:
    ///     A GroupMatch. It pins pages, so load it or release it.
    #[pyo3(signature = (keys, *, at_most=None, owner=0, hold=None, priority=0, lifetime=None))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn lookup(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::keys)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = crate::arguments::optional::at_most)] at_most: Option<u64>,
        #[pyo3(from_py_with = number::owner)] owner: u64,
        #[pyo3(from_py_with = time::hold)] hold: Option<Duration>,
        #[pyo3(from_py_with = number::priority)] priority: i8,
        #[pyo3(from_py_with = time::lifetime)] lifetime: Option<Duration>,
    ) -> PyResult<PyGroupMatch> {
        let options = stop_options((at_most, owner), hold, (priority, lifetime));
        let found = self.with(py, |cache| {
            Ok::<_, CallFailure>(cache.lookup_with(&keys, &options))
        })?;
        Ok(PyGroupMatch::new(found))
    }

    /// Like ``lookup``, but first asks the shared tier for stops. The call returns at once.
    ///
    /// Args:
    ///     keys: the chain from its first key.
    ///     within: seconds to wait for the answers; after that the match has the pages of the other tiers.
    ///     at_most, owner, hold, priority, lifetime: as for ``lookup``.
    ///
    /// Returns:
    ///     A GroupSeek. Its match pins pages, so load it or release it.
    #[pyo3(signature = (keys, within, *, at_most=None, owner=0, hold=None, priority=0, lifetime=None))]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn seek(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::keys)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = time::seek_within)] within: Duration,
        #[pyo3(from_py_with = crate::arguments::optional::at_most)] at_most: Option<u64>,
        #[pyo3(from_py_with = number::owner)] owner: u64,
        #[pyo3(from_py_with = time::hold)] hold: Option<Duration>,
        #[pyo3(from_py_with = number::priority)] priority: i8,
        #[pyo3(from_py_with = time::lifetime)] lifetime: Option<Duration>,
    ) -> PyResult<PyGroupSeek> {
        let options = stop_options((at_most, owner), hold, (priority, lifetime));
        let seek = self.with(py, |cache| {
            Ok::<_, CallFailure>(cache.seek_with(&keys, within, &options))
        })?;
        Ok(PyGroupSeek::new(seek))
    }

    /// Starts loading what the stop of a match needs. The call consumes the match, even if it raises.
    ///
    /// Args:
    ///     found: the GroupMatch.
    ///     blocks: the destination blocks of each group by its name: one for each page of
    ///         ``found.needs(group, have)``, in their order. Groups of which nothing is needed, and those of a
    ///         draft model, may be left out.
    ///     have: tokens that the engine has itself, by group; default: none.
    ///     layouts: other layouts of the same identities to load into, by group, instead of the engine's.
    ///     priority: ``"background"``, ``"low"``, ``"normal"`` or ``"urgent"``.
    ///     within: deadline in seconds; parts that have not begun by then do not begin.
    ///     after: with layouts on a CUDA device, the stream with the work that still reads or writes the blocks;
    ///         the groups on the device are loaded behind it. As for copy_blocks.
    ///
    /// Returns:
    ///     A Completion of a GroupLoadReport.
    ///
    /// Raises:
    ///     BusyError: a queue is full; compute instead.
    ///     IdentityError: a layout of another identity.
    ///     RequestError: a match of another cache, an unknown group, another number of blocks than pages, a
    ///         group without a layout, ids that do not exist or occur twice, or a stream of no device of the
    ///         layouts.
    #[pyo3(
        signature = (
            found, blocks, *, have=None, layouts=Vec::new(), priority=TextArgument::Borrowed("normal"), within=None,
            after=None
        ),
        text_signature = "($self, found, blocks, *, have=None, layouts=None, priority='normal', within=None, \
                          after=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn load(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = object::group_match)] found: Bound<'_, PyGroupMatch>,
        #[pyo3(from_py_with = blocks::load)] blocks: LoadIds,
        #[pyo3(from_py_with = blocks::have)] have: Option<HaveTokens>,
        #[pyo3(from_py_with = blocks::layouts)] layouts: GroupLayouts,
        #[pyo3(from_py_with = text::priority)] priority: TextArgument,
        #[pyo3(from_py_with = time::within)] within: Option<Duration>,
        #[pyo3(from_py_with = stream::after)] after: Option<StreamHandle>,
    ) -> PyResult<PyCompletion> {
        let options = LoadOptions::new()
            .priority(priority_of(&priority)?)
            .within(within);
        let (found, have) = (found.get().take()?, have.unwrap_or_default());
        let groups = blocks::names(&blocks);
        blocks::check_groups("have", have.iter().map(|(group, _)| group), &groups)?;
        blocks::check_groups("layouts", layouts.iter().map(|(group, _)| group), &groups)?;
        let handles = layouts.clone();
        let layouts = self.layouts(layouts);
        let load = self.with(py, |cache| -> Result<_, CallFailure> {
            let given = blocks::of_load(&blocks, &have, &blocks::handles(&handles)?);
            let marks = marks_behind(after, &layouts)?.into_iter();
            let options = marks.fold(options, LoadOptions::after);
            Ok(cache.load_with(found, &given, &options)?)
        })?;
        Ok(PyCompletion::new(
            PendingOperation::GroupLoad(load),
            layouts,
        ))
    }

    /// Starts bringing what the stop of a match needs to host memory, with the lowest priority, so that a later
    /// load does not wait for the disk or the shared tier. The call consumes the match, even if it raises.
    ///
    /// Args:
    ///     found: the GroupMatch.
    ///
    /// Returns:
    ///     A Completion of a GroupLoadReport, with the tokens of the stop if all of it is in host memory then. A
    ///     group whose queue was full is an outcome in it.
    ///
    /// Raises:
    ///     RequestError: a match of another cache.
    fn prefetch(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = object::group_match)] found: Bound<'_, PyGroupMatch>,
    ) -> PyResult<PyCompletion> {
        let found = found.get().take()?;
        let load = self.with(py, |cache| cache.prefetch(found))?;
        Ok(PyCompletion::new(
            PendingOperation::GroupLoad(load),
            self.layouts(Vec::new()),
        ))
    }

    /// Starts storing pages of the engine. Their contents must not change before the completion.
    ///
    /// Args:
    ///     keys: the chain from its first key, at least up to the last stored page.
    ///     blocks: the blocks of each group by its name: ids, or a pair of ids and the number of the first
    ///         one's page. ``ids[i]`` holds page ``first + i``, which has the tokens from
    ///         ``(first + i) * page_size`` on.
    ///     stop: the position in tokens at which requests may resume, several of them, or None. Of groups
    ///         without the rule ``"full"`` only the pages that one of them needs are stored, so these need a
    ///         stop. Pages of groups with the rule full are stored as given.
    ///     layouts: other layouts of the same identities that hold the blocks, by group, instead of the engine's.
    ///     tenant: the tenant that owns the pages.
    ///     priority: ``"background"``, ``"low"``, ``"normal"`` or ``"urgent"``.
    ///     within: deadline in seconds; what has not begun by then does not begin.
    ///     keep: how much longer to keep the pages than pages without a priority; each step doubles their value.
    ///     lifetime: seconds after which the pages are evicted first; None for no limit.
    ///     after: with layouts on a CUDA device, the stream with the work that writes the blocks; the groups on
    ///         the device are stored behind it. As for copy_blocks.
    ///
    /// Returns:
    ///     A Completion of a GroupStoreReport.
    ///
    /// Raises:
    ///     IdentityError: a layout of another identity.
    ///     RequestError: an unknown group, a stop that no lookup could find, pages that need a stop without
    ///         one, a group without a layout, too few keys, ids that do not exist or occur twice, or a stream of
    ///         no device of the layouts.
    #[pyo3(
        signature = (
            keys, blocks, *, stop=None, layouts=Vec::new(), tenant=0, priority=TextArgument::Borrowed("low"),
            within=None, keep=0, lifetime=None, after=None
        ),
        text_signature = "($self, keys, blocks, *, stop=None, layouts=None, tenant=0, priority='low', within=None, \
                          keep=0, lifetime=None, after=None)"
    )]
    #[expect(clippy::too_many_arguments, reason = "they are keywords in Python")]
    fn store(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::keys)] keys: Vec<BlockKey>,
        #[pyo3(from_py_with = blocks::store)] blocks: StoreIds,
        #[pyo3(from_py_with = blocks::stops)] stop: Option<Vec<u64>>,
        #[pyo3(from_py_with = blocks::layouts)] layouts: GroupLayouts,
        #[pyo3(from_py_with = number::tenant)] tenant: u32,
        #[pyo3(from_py_with = text::priority)] priority: TextArgument,
        #[pyo3(from_py_with = time::within)] within: Option<Duration>,
        #[pyo3(from_py_with = number::keep)] keep: i8,
        #[pyo3(from_py_with = time::lifetime)] lifetime: Option<Duration>,
        #[pyo3(from_py_with = stream::after)] after: Option<StreamHandle>,
    ) -> PyResult<PyCompletion> {
        let options = GroupStoreOptions::new()
            .stops(stop.unwrap_or_default())
            .tenant(TenantId(tenant))
            .priority(priority_of(&priority)?)
            .within(within)
            .hints(hints(keep, 0, false))
            .lifetime(lifetime);
        let groups = blocks::names(&blocks);
        blocks::check_groups("layouts", layouts.iter().map(|(group, _)| group), &groups)?;
        let handles = layouts.clone();
        let layouts = self.layouts(layouts);
        let store = self.with(py, |cache| -> Result<_, CallFailure> {
            let given = blocks::of_store(&blocks, &blocks::handles(&handles)?);
            let marks = marks_behind(after, &layouts)?.into_iter();
            let options = marks.fold(options, GroupStoreOptions::after);
            Ok(cache.store_with(&keys, &given, &options)?)
        })?;
        Ok(PyCompletion::new(
            PendingOperation::GroupStore(store),
            layouts,
        ))
    }

    /// Evicts up to ``blocks`` pages of ``group`` from ``tier`` (``"host"`` or ``"disk"``), the least
    /// valuable first. Returns how many it evicted. The calling thread does the I/O.
    ///
    /// Raises:
    ///     RequestError: a tier or a group that the cache does not have.
    #[pyo3(signature = (tier, blocks, *, group))]
    fn evict(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = text::tier)] tier: TextArgument,
        #[pyo3(from_py_with = number::blocks)] blocks: usize,
        #[pyo3(from_py_with = text::group)] group: TextArgument,
    ) -> PyResult<usize> {
        let tier = text::tier_of(&tier)?;
        self.with(py, |cache| cache.evict(&group, tier, blocks))
    }

    /// Removes all pages of all groups. Returns their number.
    ///
    /// Raises:
    ///     DiskError: the disk tier cannot be cleared.
    fn clear(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, GroupCache::clear)
    }

    /// Writes all pages that are only in host memory to the disk, as far as it has room, and waits until
    /// they are durable.
    ///
    /// Returns:
    ///     The FlushReport of each group, by name.
    fn flush(&self, py: Python<'_>) -> PyResult<BTreeMap<String, PyFlushReport>> {
        let reports = self.with(py, |cache| Ok::<_, CallFailure>(cache.flush()))?;
        Ok(reports_of(reports))
    }

    /// Counters since the cache was opened, as a dict of plain values: lookups, hits, the tokens of the
    /// stops found, the counters of the shared tier, and those of each group as ``Cache.stats`` has them.
    fn stats(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let stats = self.with(py, |cache| {
            let stats = cache.stats();
            let groups = stats.groups.iter().map(|(name, stats)| {
                (
                    name.clone(),
                    serde_json::to_value(stats).unwrap_or_default(),
                )
            });
            Ok::<_, CallFailure>(json!({
                "lookups": stats.lookups,
                "hits": stats.hits,
                "found_tokens": stats.found_tokens,
                "shared": stats::of_shared(cache.tier(TierId::SHARED)),
                "groups": Value::Object(groups.collect()),
            }))
        })?;
        stats::object(py, &stats)
    }

    /// Subscribes to the events of all groups and tiers from now on.
    fn subscribe(&self, py: Python<'_>) -> PyResult<PySubscriber> {
        let subscriber = self.with(py, |cache| Ok::<_, CallFailure>(cache.subscribe()))?;
        Ok(PySubscriber::new(subscriber))
    }

    /// All stored pages, and the first event to apply on top of them.
    fn snapshot(&self, py: Python<'_>) -> PyResult<PySnapshot> {
        let snapshot = self.with(py, |cache| Ok::<_, CallFailure>(cache.snapshot()))?;
        Ok(PySnapshot(snapshot))
    }

    /// Runs one queued job on this thread; False if the queues are empty. For caches without workers.
    fn step(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |cache| Ok::<_, CallFailure>(cache.step()))
    }

    /// Writes pages that are only in host memory to the disk tier, if there is one, and frees threads,
    /// memory and the folder. Closing twice is fine.
    ///
    /// Returns:
    ///     The FlushReport of each group, by name; empty if the cache was closed already.
    fn close(&self, py: Python<'_>) -> PyResult<BTreeMap<String, PyFlushReport>> {
        let slot = self.slot.as_ref();
        let closed = guard::call(py, || {
            let cache = slot.and_then(|slot| slot.take());
            cache.map(GroupCache::close)
        })?;
        Ok(reports_of(closed.unwrap_or_default()))
    }

    /// Whether calls reach the pages: True in process. With ``connect`` False while the daemon is away or does
    /// not answer; lookups then find nothing.
    #[getter]
    fn connected(&self, py: Python<'_>) -> PyResult<bool> {
        self.with(py, |cache| Ok::<_, CallFailure>(cache.is_connected()))
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
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.close(py).map(drop)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "GroupCache",
            "it has memory and threads; open another one with its model and layouts",
        ))
    }

    fn __repr__(&self) -> String {
        let state = if self.closed() { "closed" } else { "open" };
        let groups = self.group_count;
        format!("<kvtile.GroupCache of {groups} groups: {state}>")
    }
}

fn reports_of(
    reports: Vec<(String, kvtile::tiers::cache::FlushReport)>,
) -> BTreeMap<String, PyFlushReport> {
    let reports = reports.into_iter();
    reports
        .map(|(name, report)| (name, PyFlushReport::from(report)))
        .collect()
}
