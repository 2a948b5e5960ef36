//! The directory of the blocks of other caches, for schedulers.

use std::{num::NonZeroU64, time::Duration};

use kvtile::{
    BlockKey, TierId,
    layout::GroupPresence,
    tiers::{DIRECTORY_TIERS_MAX, TierDirectory},
};
use parking_lot::{Mutex, MutexGuard};
use pyo3::{
    prelude::*,
    types::{PyBytes, PyString},
};

use crate::{
    arguments::{
        list,
        text::{self, TextArgument},
        wrong_type,
    },
    error::python::RequestError,
    guard, keys,
    model::PyModelGroup,
    pickle,
};

/// Which tiers of a cache have which blocks, from its events. The scheduler of an engine keeps one for each worker.
///
/// It may lag behind the cache: a load of a block that it lists may fail, and a block that it does not list is a miss.
///
/// Args:
///     tiers: the names of the tiers, the fastest first.
///
/// Raises:
///     RequestError: a name that is no tier, a name twice, or more than 32.
#[pyclass(name = "TierDirectory", module = "kvtile", frozen)]
#[derive(Debug)]
pub(crate) struct PyTierDirectory(Mutex<TierDirectory>);

/// A change of a tier.
enum TierChange {
    Stored(TierId, BlockKey),
    Removed(TierId, BlockKey),
    Cleared(TierId),
}

impl PyTierDirectory {
    fn lock(&self) -> MutexGuard<'_, TierDirectory> {
        self.0.lock()
    }

    fn check(&self, tier: TierId) -> PyResult<TierId> {
        let known = self.lock().tiers().to_vec();
        if known.contains(&tier) {
            return Ok(tier);
        }
        let known: Vec<String> = known.iter().map(TierId::to_string).collect();
        Err(RequestError::new_err(format!(
            "the directory has no tier {tier}; it has {}",
            known.join(", ")
        )))
    }

    fn change(&self, change: &Bound<'_, PyAny>) -> PyResult<TierChange> {
        let expected = "a tuple of kind, tier, key and parent";
        let parts = change.extract::<(
            Bound<'_, PyAny>,
            Bound<'_, PyAny>,
            Bound<'_, PyAny>,
            Bound<'_, PyAny>,
        )>();
        let (kind, tier, key, _) = parts.map_err(|_| wrong_type("changes", expected, change))?;
        let kind = text::read("kind", &kind)?;
        let tier = self.check(text::tier_of(&text::read("tier", &tier)?)?)?;
        let key = || {
            let bytes = key.cast::<PyBytes>();
            let bytes = bytes.map_err(|_| wrong_type("key", "bytes", &key))?;
            Ok::<_, PyErr>(BlockKey::from_opaque(bytes.as_bytes()))
        };
        match &*kind {
            "stored" => Ok(TierChange::Stored(tier, key()?)),
            "removed" => Ok(TierChange::Removed(tier, key()?)),
            "cleared" => Ok(TierChange::Cleared(tier)),
            other => Err(RequestError::new_err(format!(
                "a change is \"stored\", \"removed\" or \"cleared\", not {other:?}"
            ))),
        }
    }
}

#[pymethods]
impl PyTierDirectory {
    #[new]
    #[pyo3(signature = (tiers=None), text_signature = "(tiers=('host', 'disk'))")]
    fn new(tiers: Option<Bound<'_, PyAny>>) -> PyResult<PyTierDirectory> {
        let mut ids = Vec::new();
        match tiers {
            None => ids.extend([TierId::HOST, TierId::DISK]),
            Some(tiers) if tiers.is_instance_of::<PyString>() => {
                return Err(wrong_type("tiers", "a list of names", &tiers));
            }
            Some(tiers) => {
                let items = tiers.try_iter();
                let items = items.map_err(|_| wrong_type("tiers", "a list of names", &tiers))?;
                for item in items {
                    let tier = text::tier_of(&text::read("tiers", &item?)?)?;
                    if ids.contains(&tier) {
                        return Err(RequestError::new_err(format!("tiers has {tier} twice")));
                    }
                    ids.push(tier);
                }
            }
        }
        if ids.len() > DIRECTORY_TIERS_MAX {
            return Err(RequestError::new_err(format!(
                "{} tiers; give at most {DIRECTORY_TIERS_MAX}",
                ids.len()
            )));
        }
        Ok(PyTierDirectory(Mutex::new(TierDirectory::new(&ids))))
    }

    /// Applies changes in their order.
    ///
    /// Args:
    ///     changes: tuples of the kind (``"stored"``, ``"removed"`` or ``"cleared"``), the tier, the key and the
    ///         parent of a block, as the attributes of an ``Event``; ``"cleared"`` ignores the key.
    ///
    /// Raises:
    ///     RequestError: another kind, or a tier that the directory does not have. No change is applied then.
    fn apply(&self, changes: &Bound<'_, PyAny>) -> PyResult<()> {
        let items = changes.try_iter();
        let items = items.map_err(|_| wrong_type("changes", "a list of changes", changes))?;
        let parsed: Vec<TierChange> = items
            .map(|item| self.change(&item?))
            .collect::<PyResult<_>>()?;
        let mut directory = self.lock();
        for change in parsed {
            match change {
                TierChange::Stored(tier, key) => directory.stored(tier, key),
                TierChange::Removed(tier, key) => directory.removed(tier, &key),
                TierChange::Cleared(tier) => directory.cleared(tier),
            }
        }
        Ok(())
    }

    /// Removes all blocks of all tiers.
    fn clear(&self) {
        self.lock().clear();
    }

    /// The fastest tier of each leading block.
    ///
    /// Args:
    ///     keys: a chain from its first block on.
    ///
    /// Returns:
    ///     The names of tiers, up to the first block that no tier has.
    fn leading(&self, #[pyo3(from_py_with = list::keys)] keys: Vec<BlockKey>) -> Vec<String> {
        let tiers = self.lock().leading(&keys);
        tiers.iter().map(TierId::to_string).collect()
    }

    /// The keys of a tier's blocks, in no order, as 16 bytes each.
    ///
    /// Raises:
    ///     RequestError: a tier that the directory does not have.
    fn blocks<'py>(
        &self,
        py: Python<'py>,
        #[pyo3(from_py_with = text::tier)] tier: TextArgument,
    ) -> PyResult<Bound<'py, pyo3::types::PyList>> {
        let tier = self.check(text::tier_of(&tier)?)?;
        let found: Vec<BlockKey> = self.lock().blocks(tier).copied().collect();
        keys::list_of(py, &found)
    }

    fn __len__(&self) -> usize {
        self.lock().len()
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(pickle::refused(
            "TierDirectory",
            "send the changes that it is made of",
        ))
    }

    fn __repr__(&self) -> String {
        let directory = self.lock();
        let tiers: Vec<String> = directory.tiers().iter().map(TierId::to_string).collect();
        format!(
            "<kvtile.TierDirectory of {}: {} blocks>",
            tiers.join(", "),
            directory.len()
        )
    }
}

/// Whether reading KV from a tier takes no longer than computing it.
#[pyfunction]
pub(crate) fn reading_pays(
    py: Python<'_>,
    seconds: f64,
    tokens: u64,
    tokens_per_second: f64,
) -> PyResult<bool> {
    let reading = Duration::try_from_secs_f64(seconds);
    let reading = reading.map_err(|error| RequestError::new_err(format!("seconds: {error}")))?;
    guard::call(py, || {
        kvtile::tiers::reading_pays(reading, tokens, tokens_per_second)
    })
}

/// A group of a model, and the directory of its pages.
struct ListedGroup<'py> {
    group: Bound<'py, PyModelGroup>,
    directory: Bound<'py, PyTierDirectory>,
}

impl<'py> ListedGroup<'py> {
    fn read(item: &Bound<'py, PyAny>) -> PyResult<ListedGroup<'py>> {
        let parts = item.extract::<(Bound<'py, PyModelGroup>, Bound<'py, PyTierDirectory>)>();
        let expected = "pairs of a ModelGroup and a TierDirectory";
        let (group, directory) = parts.map_err(|_| wrong_type("groups", expected, item))?;
        Ok(ListedGroup { group, directory })
    }

    fn page_size(&self) -> PyResult<NonZeroU64> {
        let tokens = self.group.get().0.shape().page_size();
        NonZeroU64::new(tokens).ok_or_else(|| RequestError::new_err("a page of 0 tokens"))
    }

    /// Whether a tier has a page: its key is the one at its end.
    fn has(&self, page: u64, size: NonZeroU64, (keys, unit): (&[BlockKey], NonZeroU64)) -> bool {
        let end = page
            .checked_add(1)
            .and_then(|end| end.checked_mul(size.get()));
        let at = end.and_then(|end| usize::try_from(end / unit).ok()?.checked_sub(1));
        let key = at.and_then(|at| keys.get(at));
        key.is_some_and(|key| self.directory.get().lock().fastest(key).is_some())
    }
}

/// The stops of a chain that the directories of all groups have, the longest first, as `GroupMatch.stops`.
#[pyfunction]
pub(crate) fn usable_stops(
    groups: &Bound<'_, PyAny>,
    #[pyo3(from_py_with = list::keys)] keys: Vec<BlockKey>,
    unit: NonZeroU64,
    at_most: u64,
) -> PyResult<Vec<u64>> {
    let items = groups.try_iter()?;
    let groups: Vec<ListedGroup<'_>> = items
        .map(|item| ListedGroup::read(&item?))
        .collect::<PyResult<_>>()?;
    let chain = (keys.as_slice(), unit);
    let mut has: Vec<Box<dyn Fn(u64) -> bool + '_>> = Vec::with_capacity(groups.len());
    let mut pages = Vec::with_capacity(groups.len());
    for group in &groups {
        let size = group.page_size()?;
        pages.push(size);
        has.push(Box::new(move |page| group.has(page, size, chain)));
    }
    let of_groups = groups.iter().zip(&pages).zip(&has);
    let presences: Vec<GroupPresence<'_>> = of_groups
        .map(|((group, page), has)| GroupPresence {
            rule: group.group.get().0.rule(),
            page: *page,
            has,
        })
        .collect();
    let most = at_most.min((keys.len() as u64).saturating_mul(unit.get()));
    Ok(kvtile::layout::usable_stops(&presences, most, unit).collect())
}
