//! The eviction order of blocks that another program keeps, over the library's pool and policies.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use kvtile::blocks::{
    BlockKey, BlocksError, Tick,
    policy::{PolicyKind, PolicySettings},
    pool::{AllocateRequest, BlockPool, PinClaim, PinnedBlocks, PoolSettings},
};
use parking_lot::Mutex;
use pyo3::{prelude::*, types::PyList};

use crate::{
    arguments::{
        list, number,
        text::{self, TextArgument},
    },
    error::{CallFailure, python, raise},
    guard,
    keys::list_of,
    pickle,
};

/// The blocks and their order.
struct OrderState {
    pool: Arc<BlockPool>,
    /// Pins of the blocks that must not be evicted.
    held: HashMap<BlockKey, PinnedBlocks>,
}

/// Ranks blocks that another program keeps, by one of kvtile's eviction policies. It knows keys and
/// no bytes.
///
/// A block is held after ``insert``, and while its program uses it: it is not evicted then. The
/// parent of a block is the block before it in its chain; a block is evicted before its parent.
///
/// Args:
///     capacity: the most blocks, up to 2^26.
///     policy: ``"gittins"``, ``"lru"``, ``"arc"`` or ``"s3-fifo"``.
///
/// Raises:
///     SettingsError: a policy that does not exist.
///     RequestError: a capacity that no pool has.
#[pyclass(name = "EvictionOrder", module = "kvtile", frozen)]
pub(crate) struct PyEvictionOrder {
    state: Mutex<OrderState>,
    kind: PolicyKind,
    start: Instant,
}

impl OrderState {
    fn new(capacity: usize, kind: PolicyKind) -> Result<OrderState, BlocksError> {
        let settings = PoolSettings::new().blocks(capacity);
        let pool = BlockPool::new(settings, |blocks| PolicySettings::from(kind).build(blocks))?;
        Ok(OrderState {
            pool,
            held: HashMap::new(),
        })
    }

    fn insert(
        &mut self,
        key: BlockKey,
        parent: Option<BlockKey>,
        now: Tick,
    ) -> Result<(), BlocksError> {
        if self.pool.has(&key) {
            self.hold(&[key], now);
            return Ok(());
        }
        let request = AllocateRequest {
            now,
            ..AllocateRequest::default()
        };
        let room = self.pool.allocate_free(1, &request)?;
        let parent = parent.filter(|parent| self.pool.has(parent));
        let complete = room.complete(&[key], parent);
        let complete = complete.map_err(|rejected| rejected.error)?;
        let claim = PinClaim {
            now,
            ..PinClaim::default()
        };
        let registered = complete.register(&claim);
        let registered = registered.map_err(|rejected| rejected.error)?;
        self.held.insert(key, registered.blocks);
        Ok(())
    }

    fn hold(&mut self, keys: &[BlockKey], now: Tick) {
        for key in keys {
            if self.held.contains_key(key) {
                continue;
            }
            let pinned = self.pin(std::slice::from_ref(key), now);
            if !pinned.is_empty() {
                self.held.insert(*key, pinned);
            }
        }
    }

    fn pin(&self, keys: &[BlockKey], now: Tick) -> PinnedBlocks {
        let claim = PinClaim {
            now,
            ..PinClaim::default()
        };
        self.pool.pin(keys, &claim).blocks
    }

    /// Counts a use of each block, in the order of a request.
    fn touch(&self, keys: &[BlockKey], now: Tick) -> usize {
        let claim = PinClaim {
            now,
            ..PinClaim::default()
        };
        let has = |key: &BlockKey| self.pool.has(key);
        let runs = keys.chunk_by(|a, b| has(a) == has(b));
        let used = runs.filter(|run| run.first().is_some_and(has));
        let used = used.map(|run| self.pool.match_prefix(run, &claim).len());
        let used = used.sum();
        self.pool.maintain();
        used
    }

    /// Evicts exactly `count` blocks, or none.
    fn evict(&mut self, count: usize, protected: &[BlockKey], now: Tick) -> Option<Vec<BlockKey>> {
        let kept: HashSet<BlockKey> = protected.iter().copied().collect();
        let kept: Vec<BlockKey> = kept
            .into_iter()
            .filter(|key| self.pool.has(key) && !self.held.contains_key(key))
            .collect();
        let in_use = self.held.len() + kept.len();
        if self.pool.cached().saturating_sub(in_use) < count {
            return None;
        }
        let pins = self.pin(&kept, now);
        let evicted = self.pool.evict(count, now);
        let mut keys: Vec<BlockKey> = evicted.iter().map(|block| block.key).collect();
        drop(evicted);
        if keys.len() < count {
            // The others have blocks behind them that are in use. Their program keeps no chains.
            let kept: HashSet<BlockKey> = kept.iter().copied().collect();
            let order = self.pool.eviction_order(now).into_iter();
            let free = order
                .map(|entry| entry.key)
                .filter(|key| !self.held.contains_key(key) && !kept.contains(key));
            let more: Vec<BlockKey> = free.take(count - keys.len()).collect();
            self.pool.remove(&more);
            keys.extend(more);
        }
        drop(pins);
        Some(keys)
    }

    fn remove(&mut self, keys: &[BlockKey]) -> usize {
        let removed = self.pool.remove(keys).blocks;
        for key in keys {
            self.held.remove(key);
        }
        removed
    }
}

impl PyEvictionOrder {
    fn now(&self) -> Tick {
        Tick(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Calls the order, without the GIL.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        work: impl FnOnce(&mut OrderState, Tick) -> Result<T, CallFailure> + Send,
    ) -> PyResult<T> {
        let now = self.now();
        guard::run(py, || work(&mut self.state.lock(), now))
    }
}

#[pymethods]
impl PyEvictionOrder {
    #[new]
    #[pyo3(
        signature = (capacity, policy=TextArgument::Borrowed("gittins")),
        text_signature = "(capacity, policy='gittins')"
    )]
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = number::capacity)] capacity: usize,
        #[pyo3(from_py_with = text::policy)] policy: TextArgument,
    ) -> PyResult<PyEvictionOrder> {
        let kind = policy.parse::<PolicyKind>();
        let kind = kind.map_err(|error| python::SettingsError::new_err(error.to_string()))?;
        let state = OrderState::new(capacity, kind);
        let state = state.map_err(|error| raise(py, CallFailure::from(error)))?;
        Ok(PyEvictionOrder {
            state: Mutex::new(state),
            kind,
            start: Instant::now(),
        })
    }

    /// Adds a block, held. A block that is there is held.
    ///
    /// Args:
    ///     key: bytes or text of any length.
    ///     parent: the key of the block before it in its chain, or None.
    ///
    /// Raises:
    ///     RequestError: there are as many blocks as the capacity.
    #[pyo3(signature = (key, parent=None))]
    fn insert(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::one_name)] key: BlockKey,
        #[pyo3(from_py_with = list::optional_name)] parent: Option<BlockKey>,
    ) -> PyResult<()> {
        self.with(py, |order, now| Ok(order.insert(key, parent, now)?))
    }

    /// Holds blocks: they are not evicted until they are released. Blocks that are not there are
    /// ignored.
    fn hold(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::names)] keys: Vec<BlockKey>,
    ) -> PyResult<()> {
        self.with(py, |order, now| {
            order.hold(&keys, now);
            Ok(())
        })
    }

    /// Releases blocks that were held.
    fn release(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::names)] keys: Vec<BlockKey>,
    ) -> PyResult<()> {
        self.with(py, |order, _| {
            for key in &keys {
                order.held.remove(key);
            }
            Ok(())
        })
    }

    /// Counts a use of each block: the blocks of one request, in its order. Returns how many of them
    /// are there.
    fn touch(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::names)] keys: Vec<BlockKey>,
    ) -> PyResult<usize> {
        self.with(py, |order, now| Ok(order.touch(&keys, now)))
    }

    /// Removes blocks, held or not. Returns how many were there.
    fn remove(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = list::names)] keys: Vec<BlockKey>,
    ) -> PyResult<usize> {
        self.with(py, |order, _| Ok(order.remove(&keys)))
    }

    /// Evicts exactly ``count`` blocks, the least valuable first; or none, if fewer are neither held
    /// nor protected. A block is evicted after the blocks behind it, unless these are in use.
    ///
    /// Returns:
    ///     The keys of 16 bytes (``kvtile.block_key``), or None.
    #[pyo3(signature = (count, protected=None))]
    fn evict<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = number::count)] count: usize,
        #[pyo3(from_py_with = list::optional_names)] protected: Option<Vec<BlockKey>>,
    ) -> PyResult<Option<Bound<'py, PyList>>> {
        let protected = protected.unwrap_or_default();
        let evicted = self.with(py, |order, now| Ok(order.evict(count, &protected, now)))?;
        evicted.map(|keys| list_of(py, &keys)).transpose()
    }

    /// Removes all blocks, and forgets what the policy has learned.
    fn clear(&self, py: Python<'_>) -> PyResult<()> {
        let kind = self.kind;
        self.with(py, |order, _| {
            *order = OrderState::new(order.pool.blocks(), kind)?;
            Ok(())
        })
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        self.with(py, |order, _| Ok(order.pool.cached()))
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "EvictionOrder",
            "it has learned from the uses of this process; make another one",
        ))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let blocks = self.__len__(py)?;
        Ok(format!(
            "<kvtile.EvictionOrder by {} of {blocks} blocks>",
            self.kind
        ))
    }
}
