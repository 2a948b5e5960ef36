//! Stores: the pages that chosen stops need, those of the spine last.

use std::{
    ops::Range,
    sync::{Arc, Weak},
    time::Duration,
};

use kvtile_blocks::{BlockKey, policy::EvictionHints, pool::TenantId};
use kvtile_layout::GroupRule;
use kvtile_transfer::{DeviceMark, LayoutHandle};

use super::{
    operation::{GroupJob, GroupOperation},
    report::GroupStoreReport,
    shared::{GroupFacts, GroupsShared, check_after},
    stops,
};
use crate::{
    cache::{CacheOfGroup, Priority, StoreOptions, StoreReport},
    error::{RequestError, TierError},
};

/// The engine's blocks of one group in a store.
#[derive(Clone, Copy, Debug)]
pub struct StoreBlocks<'a> {
    /// The name of the group.
    pub group: &'a str,
    /// The number of the page in `blocks[0]`: `blocks[i]` holds page `first + i` of the group.
    pub first: u64,
    /// The blocks.
    pub blocks: &'a [usize],
    /// The layout of the blocks (default: the group's).
    pub layout: Option<LayoutHandle>,
}

impl<'a> StoreBlocks<'a> {
    /// Blocks of the group's layout from page `first` on.
    #[must_use]
    pub fn new(group: &'a str, first: u64, blocks: &'a [usize]) -> StoreBlocks<'a> {
        StoreBlocks {
            group,
            first,
            blocks,
            layout: None,
        }
    }

    /// Sets [`layout`](Self::layout).
    #[must_use]
    pub fn layout(mut self, layout: impl Into<Option<LayoutHandle>>) -> StoreBlocks<'a> {
        self.layout = layout.into();
        self
    }
}

/// Options of [`GroupCache::store_with`](super::GroupCache::store_with).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GroupStoreOptions {
    /// The stops to store, in tokens. Of groups without [`GroupRule::Full`] only the pages that one of
    /// them needs are stored.
    pub stops: Vec<u64>,
    /// The tenant of the pages.
    pub tenant: TenantId,
    /// The priority in the queues (default [`Priority::Low`]).
    pub priority: Priority,
    /// The deadline, from now (default: none). What has not begun by then does not begin.
    pub within: Option<Duration>,
    /// Hints for the eviction policies.
    pub hints: EvictionHints,
    /// How long the pages are worth keeping, as
    /// [`LookupOptions::lifetime`](crate::cache::LookupOptions::lifetime).
    pub lifetime: Option<Duration>,
    /// The work of devices that comes before the store, such as what writes the pages (default: none). The groups whose
    /// blocks are in memory of a device wait for it, and at least one must be.
    pub after: Vec<DeviceMark>,
}

impl Default for GroupStoreOptions {
    fn default() -> Self {
        GroupStoreOptions {
            stops: Vec::new(),
            tenant: TenantId::default(),
            priority: Priority::Low,
            within: None,
            hints: EvictionHints::default(),
            lifetime: None,
            after: Vec::new(),
        }
    }
}

impl GroupStoreOptions {
    /// The defaults: no stop.
    #[must_use]
    pub fn new() -> GroupStoreOptions {
        GroupStoreOptions::default()
    }

    /// Adds a stop.
    #[must_use]
    pub fn stop(mut self, tokens: u64) -> GroupStoreOptions {
        self.stops.push(tokens);
        self
    }

    /// Adds stops.
    #[must_use]
    pub fn stops(mut self, tokens: impl IntoIterator<Item = u64>) -> GroupStoreOptions {
        self.stops.extend(tokens);
        self
    }

    /// Sets [`tenant`](Self::tenant).
    #[must_use]
    pub fn tenant(mut self, tenant: TenantId) -> GroupStoreOptions {
        self.tenant = tenant;
        self
    }

    /// Sets [`priority`](Self::priority).
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> GroupStoreOptions {
        self.priority = priority;
        self
    }

    /// Sets [`within`](Self::within).
    #[must_use]
    pub fn within(mut self, time: impl Into<Option<Duration>>) -> GroupStoreOptions {
        self.within = time.into();
        self
    }

    /// Sets [`hints`](Self::hints).
    #[must_use]
    pub fn hints(mut self, hints: EvictionHints) -> GroupStoreOptions {
        self.hints = hints;
        self
    }

    /// Sets [`lifetime`](Self::lifetime).
    #[must_use]
    pub fn lifetime(mut self, time: impl Into<Option<Duration>>) -> GroupStoreOptions {
        self.lifetime = time.into();
        self
    }

    /// Adds to [`after`](Self::after).
    #[must_use]
    pub fn after(mut self, mark: DeviceMark) -> GroupStoreOptions {
        self.after.push(mark);
        self
    }

    fn of_group(&self, on_device: bool) -> StoreOptions {
        let options = StoreOptions::new()
            .tenant(self.tenant)
            .priority(self.priority)
            .within(self.within)
            .hints(self.hints)
            .lifetime(self.lifetime);
        let after = self.after.iter().filter(|_| on_device).cloned();
        after.fold(options, StoreOptions::after)
    }
}

/// One store of a group's cache.
struct PlannedStore {
    at: usize,
    name: String,
    keys: Vec<BlockKey>,
    blocks: Vec<usize>,
    options: StoreOptions,
}

impl PlannedStore {
    fn begin(&self, cache: &CacheOfGroup) -> GroupJob<StoreReport> {
        GroupJob {
            group: self.name.clone(),
            begun: cache.keep(&self.keys, &self.blocks, &self.options),
        }
    }
}

/// The stores of a request.
#[derive(Default)]
struct StorePlan {
    /// Of groups whose pages hang on the spine.
    others: Vec<PlannedStore>,
    spine: Vec<PlannedStore>,
    unreachable: usize,
}

/// Starts a store.
pub(super) fn start(
    shared: &Arc<GroupsShared>,
    chain: &[BlockKey],
    blocks: &[StoreBlocks<'_>],
    options: &GroupStoreOptions,
) -> Result<GroupOperation<GroupStoreReport>, TierError> {
    let caches = shared.opened()?;
    check_stops(shared, chain, &options.stops)?;
    let mut plan = StorePlan::default();
    let mut seen = vec![false; shared.facts.len()];
    for one in blocks {
        let at = shared.at(one.group)?;
        if let Some(is_seen) = seen.get_mut(at)
            && std::mem::replace(is_seen, true)
        {
            return Err(TierError::Request(RequestError::GroupTwiceInRequest {
                group: one.group.to_owned(),
            }));
        }
        if let Some(cache) = caches.get(at) {
            cache.check_blocks(one.group, one.layout, one.blocks)?;
            plan.add(shared.facts(at), (at, cache), (chain, one), options)?;
        }
    }
    let given = blocks.iter().filter(|one| !one.blocks.is_empty());
    let given = given.filter_map(|one| Some((caches.get(shared.at(one.group).ok()?)?, one.layout)));
    check_after(&options.after, given)?;
    let StorePlan {
        others,
        spine,
        unreachable,
    } = plan;
    stops::store_begins(shared, chain, &options.stops);
    let cache = |of: &PlannedStore| caches.get(of.at);
    let begun = others.iter().filter_map(|of| Some(of.begin(cache(of)?)));
    let begun: Vec<GroupJob<StoreReport>> = begun.collect();
    let open = Arc::downgrade(shared);
    let spine = move || begin_spine(&open, &spine);
    let ended = (
        Arc::downgrade(shared),
        Arc::<[BlockKey]>::from(chain),
        options.stops.clone(),
    );
    let report = move |groups: Vec<_>| {
        if let Some(shared) = ended.0.upgrade() {
            stops::store_ended(&shared, &ended.1, &ended.2);
        }
        report_of(groups, unreachable)
    };
    Ok(GroupOperation::begin(begun, Some(Box::new(spine)), report))
}

fn begin_spine(shared: &Weak<GroupsShared>, spine: &[PlannedStore]) -> Vec<GroupJob<StoreReport>> {
    let caches = shared.upgrade().and_then(|shared| shared.opened().ok());
    let begin = |of: &PlannedStore| {
        let cache = caches.as_ref().and_then(|caches| caches.get(of.at));
        match cache {
            Some(cache) => of.begin(cache),
            None => GroupJob {
                group: of.name.clone(),
                begun: Err(TierError::Request(RequestError::Closed)),
            },
        }
    };
    spine.iter().map(begin).collect()
}

fn report_of(
    groups: Vec<super::report::GroupOutcome<StoreReport>>,
    unreachable: usize,
) -> GroupStoreReport {
    let reports = groups.iter().filter_map(|of| of.outcome.as_ref().ok());
    let elapsed = reports.map(|report| report.elapsed).max();
    GroupStoreReport {
        elapsed: elapsed.unwrap_or_default(),
        unreachable,
        groups,
    }
}

/// Refuses stops that no lookup of the chain could find.
fn check_stops(shared: &GroupsShared, chain: &[BlockKey], stops: &[u64]) -> Result<(), TierError> {
    let tokens = (chain.len() as u64).saturating_mul(shared.unit.get());
    let is_good =
        |stop: u64| stop > 0 && stop <= tokens && stop.is_multiple_of(shared.stop_unit.get());
    match stops.iter().find(|stop| !is_good(**stop)) {
        None => Ok(()),
        Some(&stop) => Err(TierError::Request(RequestError::NoStop {
            stop,
            unit: shared.stop_unit.get(),
            tokens,
        })),
    }
}

impl StorePlan {
    fn add(
        &mut self,
        facts: &GroupFacts,
        (at, cache): (usize, &CacheOfGroup),
        (chain, one): (&[BlockKey], &StoreBlocks<'_>),
        options: &GroupStoreOptions,
    ) -> Result<(), TierError> {
        let end = one.first.saturating_add(one.blocks.len() as u64);
        let too_few = || {
            TierError::Request(RequestError::TooFewKeys {
                keys: chain.len(),
                first: usize::try_from(one.first).unwrap_or(usize::MAX),
                blocks: one.blocks.len(),
            })
        };
        let on_device = cache.is_on_device(one.layout)?;
        let options_of_group = options.of_group(on_device).layout(one.layout);
        let name = facts.name.clone();
        if facts.rule == GroupRule::Full {
            let keys = facts.keys(chain, 0..end).ok_or_else(too_few)?;
            let first = usize::try_from(one.first).unwrap_or(usize::MAX);
            self.spine.push(PlannedStore {
                at,
                name,
                keys,
                blocks: one.blocks.to_vec(),
                options: options_of_group.first(first),
            });
            return Ok(());
        }
        if options.stops.is_empty() && !one.blocks.is_empty() {
            return Err(TierError::Request(RequestError::NoStopGiven {
                group: name,
            }));
        }
        let needs: Vec<Range<u64>> = options
            .stops
            .iter()
            .map(|stop| facts.needs(*stop))
            .collect();
        let given = facts.keys(chain, one.first..end).ok_or_else(too_few)?;
        let (mut keys, mut blocks) = (Vec::new(), Vec::new());
        for ((page, key), &block) in (one.first..end).zip(given).zip(one.blocks) {
            if needs.iter().any(|needs| needs.contains(&page)) {
                keys.push(key);
                blocks.push(block);
            } else {
                self.unreachable += 1;
            }
        }
        // Pages without parents: those that are stored need no copy, wherever they are in the list.
        let is_stored: Vec<bool> = keys.iter().map(|key| cache.is_stored(key)).collect();
        let absent = |at: &usize| is_stored.get(*at) == Some(&false);
        let order: Vec<usize> = (0..keys.len()).collect();
        let (first, last): (Vec<usize>, Vec<usize>) = order.into_iter().partition(|at| !absent(at));
        let order: Vec<usize> = first.into_iter().chain(last).collect();
        self.others.push(PlannedStore {
            at,
            name,
            keys: order
                .iter()
                .filter_map(|at| keys.get(*at))
                .copied()
                .collect(),
            blocks: order
                .iter()
                .filter_map(|at| blocks.get(*at))
                .copied()
                .collect(),
            options: options_of_group,
        });
        Ok(())
    }
}
