//! Loads: all that a stop needs, or nothing that the engine may use.

use std::sync::Arc;

use kvtile_layout::broken;
use kvtile_transfer::LayoutHandle;

use super::{
    found::GroupMatch,
    operation::{GroupJob, GroupOperation},
    report::GroupLoadReport,
    shared::{GroupsShared, check_after},
};
use crate::{
    cache::{CacheOfGroup, LoadOptions},
    error::{RequestError, TierError},
};

/// The engine's blocks of one group in a load.
#[derive(Clone, Copy, Debug)]
pub struct LoadBlocks<'a> {
    /// The name of the group.
    pub group: &'a str,
    /// The destinations of the pages [`GroupMatch::needs`], in their order.
    pub blocks: &'a [usize],
    /// Tokens of the group that the engine has itself, from the first one on.
    pub have: u64,
    /// The layout of the blocks (default: the group's).
    pub layout: Option<LayoutHandle>,
}

impl<'a> LoadBlocks<'a> {
    /// Blocks of the group's layout, for an engine that has nothing of the group.
    #[must_use]
    pub fn new(group: &'a str, blocks: &'a [usize]) -> LoadBlocks<'a> {
        LoadBlocks {
            group,
            blocks,
            have: 0,
            layout: None,
        }
    }

    /// Sets [`have`](Self::have).
    #[must_use]
    pub fn have(mut self, tokens: u64) -> LoadBlocks<'a> {
        self.have = tokens;
        self
    }

    /// Sets [`layout`](Self::layout).
    #[must_use]
    pub fn layout(mut self, layout: impl Into<Option<LayoutHandle>>) -> LoadBlocks<'a> {
        self.layout = layout.into();
        self
    }
}

/// Starts a prefetch: what a stop needs, to host memory.
pub(super) fn prefetch(
    shared: &Arc<GroupsShared>,
    mut found: GroupMatch,
) -> Result<GroupOperation<GroupLoadReport>, TierError> {
    if !found.is_of(shared) {
        return Err(TierError::Request(RequestError::OtherCache));
    }
    let stop = found.stop();
    let caches = shared.opened()?;
    let of_groups = shared.facts.iter().zip(&caches).enumerate();
    let jobs = of_groups.filter_map(|(at, (facts, cache))| {
        let keys = found.keys_of(at, facts);
        let pins = found.take(at, usize::MAX)?;
        Some(GroupJob {
            group: facts.name.clone(),
            begun: cache.warm(pins, &keys),
        })
    });
    let jobs: Vec<GroupJob<_>> = jobs.collect();
    let draft = draft_names(shared);
    let report = move |groups| GroupLoadReport::of(stop, groups, &draft);
    Ok(GroupOperation::begin(jobs, None, report))
}

/// Starts a load.
pub(super) fn start(
    shared: &Arc<GroupsShared>,
    mut found: GroupMatch,
    blocks: &[LoadBlocks<'_>],
    options: &LoadOptions,
) -> Result<GroupOperation<GroupLoadReport>, TierError> {
    if !found.is_of(shared) {
        return Err(TierError::Request(RequestError::OtherCache));
    }
    let caches = shared.opened()?;
    let given = by_group(shared, blocks)?;
    check(shared, &found, &given, (&caches, options))?;
    let mut jobs: Vec<GroupJob<_>> = Vec::new();
    let groups = shared.facts.iter().enumerate().zip(given).zip(&caches);
    // Draft groups come last: if one of them is refused, everything else has begun.
    let (own, draft): (Vec<_>, Vec<_>) = groups.partition(|(((_, facts), _), _)| facts.gates());
    for (((at, facts), one), cache) in own.into_iter().chain(draft) {
        let Some(one) = one.filter(|one| !one.blocks.is_empty()) else {
            continue;
        };
        let Some(pins) = found.take(at, one.blocks.len()) else {
            // Without them the report would count pages that no job brings.
            broken(format_args!(
                "group {} needs {} pages of the stop at {} and has no pins",
                facts.name,
                one.blocks.len(),
                found.stop()
            ))
        };
        let mut of_group = options.clone().layout(one.layout);
        // An unknown layout is refused by the load itself.
        if matches!(cache.is_on_device(one.layout), Ok(false)) {
            of_group.after.clear();
        }
        let begun = cache.bring(pins, one.blocks, &of_group);
        if begun.is_err() && jobs.is_empty() && facts.gates() {
            // Nothing has begun, so the caller may use its blocks at once.
            return Err(begun
                .err()
                .unwrap_or(TierError::Request(RequestError::Closed)));
        }
        let is_refused = begun.is_err() && facts.gates();
        jobs.push(GroupJob {
            group: facts.name.clone(),
            begun,
        });
        if is_refused {
            // What began is of no use, but its copies may be in flight: the operation waits for them.
            for job in &jobs {
                if let Ok(begun) = &job.begun {
                    begun.cancel();
                }
            }
            break;
        }
    }
    let stop = found.stop();
    let draft = draft_names(shared);
    let report = move |groups| GroupLoadReport::of(stop, groups, &draft);
    Ok(GroupOperation::begin(jobs, None, report))
}

/// Refuses a load before its first job begins.
fn check(
    shared: &GroupsShared,
    found: &GroupMatch,
    given: &[Option<&LoadBlocks<'_>>],
    (caches, options): (&[CacheOfGroup], &LoadOptions),
) -> Result<(), TierError> {
    for (((at, facts), one), cache) in shared.facts.iter().enumerate().zip(given).zip(caches) {
        let pages = found.needs_of(at, facts, one.map_or(0, |one| one.have));
        let ids = one.map_or(&[][..], |one| one.blocks);
        let is_left_out = one.is_none() && !facts.gates();
        if ids.len() as u64 != pages.end - pages.start && !is_left_out {
            return Err(TierError::Request(RequestError::StopPages {
                group: facts.name.clone(),
                stop: found.stop(),
                first: pages.start,
                end: pages.end,
                blocks: ids.len(),
            }));
        }
        cache.check_blocks(&facts.name, one.and_then(|one| one.layout), ids)?;
    }
    let of_groups = given.iter().zip(caches);
    let blocks = of_groups.filter_map(|(one, cache)| {
        let one = (*one)?;
        (!one.blocks.is_empty()).then_some((cache, one.layout))
    });
    check_after(&options.after, blocks)
}

/// The groups that decide nothing.
fn draft_names(shared: &GroupsShared) -> Vec<String> {
    let draft = shared.facts.iter().filter(|facts| !facts.gates());
    draft.map(|facts| facts.name.clone()).collect()
}

/// The blocks of each group, in the order of the groups.
fn by_group<'a>(
    shared: &GroupsShared,
    blocks: &'a [LoadBlocks<'a>],
) -> Result<Vec<Option<&'a LoadBlocks<'a>>>, TierError> {
    let mut given: Vec<Option<&LoadBlocks<'a>>> = vec![None; shared.facts.len()];
    for one in blocks {
        let at = shared.at(one.group)?;
        if let Some(place) = given.get_mut(at)
            && place.replace(one).is_some()
        {
            return Err(TierError::Request(RequestError::GroupTwiceInRequest {
                group: one.group.to_owned(),
            }));
        }
    }
    Ok(given)
}
