//! Sweeps: they keep a store below a capacity. Tiers remove no values for room.
//!
//! Several sweeps at once, or one that ends in the middle, do no harm: a removed value is a miss.
//! Between two sweeps a store exceeds its capacity by at most what is written in that time.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use crate::{
    store::{Deadline, SharedStore, SharedStoreError, ValueName},
    survey::{SurveySettings, each_bundle},
};

/// Settings of a sweep.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SweepSettings {
    /// The prefix of the tiers that use the store (default: empty).
    pub prefix: String,
    /// The size above which the sweep removes values; `None` removes none for their size.
    pub capacity_bytes: Option<u64>,
    /// The share of the capacity that the sweep leaves, from 0 to 1 (default 0.9). It removes the
    /// values first that were written or renewed longest ago.
    pub low_mark: f64,
    /// The age at which a value is removed regardless of the size; `None` for no such age (default).
    pub age_max: Option<Duration>,
    /// The age at which what dead writers left behind is removed (default: an hour).
    pub leftovers_after: Duration,
    /// The time limit of each call of the store (default: 60 s).
    pub call_within: Duration,
}

impl SweepSettings {
    /// A sweep down to a capacity, or one that only counts and removes leftovers.
    #[must_use]
    pub fn new(capacity_bytes: impl Into<Option<u64>>) -> SweepSettings {
        SweepSettings {
            prefix: String::new(),
            capacity_bytes: capacity_bytes.into(),
            low_mark: 0.9,
            age_max: None,
            leftovers_after: Duration::from_hours(1),
            call_within: Duration::from_secs(60),
        }
    }

    /// Sets [`prefix`](Self::prefix).
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> SweepSettings {
        self.prefix = prefix.into();
        self
    }

    /// Sets [`low_mark`](Self::low_mark).
    #[must_use]
    pub fn low_mark(mut self, share: f64) -> SweepSettings {
        self.low_mark = share;
        self
    }

    /// Sets [`age_max`](Self::age_max).
    #[must_use]
    pub fn age_max(mut self, age: impl Into<Option<Duration>>) -> SweepSettings {
        self.age_max = age.into();
        self
    }

    /// Sets [`leftovers_after`](Self::leftovers_after).
    #[must_use]
    pub fn leftovers_after(mut self, age: Duration) -> SweepSettings {
        self.leftovers_after = age;
        self
    }

    /// Sets [`call_within`](Self::call_within).
    #[must_use]
    pub fn call_within(mut self, time: Duration) -> SweepSettings {
        self.call_within = time;
        self
    }
}

/// What a sweep found and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SweepReport {
    /// Bundles found.
    pub bundles: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Bundles removed.
    pub removed: u64,
    /// Bytes of these.
    pub removed_bytes: u64,
    /// Other values below the prefix, which a sweep leaves alone.
    pub foreign: u64,
    /// Leftovers of dead writers, and manifests and announcements of parts without bundles, that were removed.
    pub leftovers: u64,
}

/// A bundle that a sweep found.
struct SweptBundle {
    age: Duration,
    bytes: u64,
    /// The fingerprint of its identity.
    identity: String,
    name: ValueName,
}

/// Lists all bundles below a prefix, and removes the oldest ones if they exceed a capacity, and old manifests and
/// announcements of identities without bundles. It holds
/// the names of all of them in memory, some 200 bytes each.
///
/// # Errors
/// The first error of the store. Values that were removed until then are removed.
pub fn sweep(
    store: &dyn SharedStore,
    settings: &SweepSettings,
) -> Result<SweepReport, SharedStoreError> {
    let begun = Instant::now();
    let by = || Deadline::within(settings.call_within);
    let mut report = SweepReport::default();
    let leftovers = store.remove_leftovers(settings.leftovers_after, by())?;
    report.leftovers = leftovers as u64;
    let mut found: Vec<SweptBundle> = Vec::new();
    let listing = SurveySettings::new().prefix(settings.prefix.as_str());
    let listing = listing.call_within(settings.call_within);
    let other = each_bundle(store, &listing, |value, name| {
        found.push(SweptBundle {
            // That of the beginning: all ages of one moment, however long the listing takes.
            age: value
                .age
                .unwrap_or_default()
                .saturating_sub(begun.elapsed()),
            bytes: value.bytes,
            identity: name.identity,
            name: value.name,
        });
        Ok(())
    })?;
    report.foreign = other.foreign;
    // Servers may list a value twice whose place changes during the listing.
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found.dedup_by(|a, b| a.name == b.name);
    report.bundles = found.len() as u64;
    let sizes = found.iter().map(|one| one.bytes);
    report.bytes = sizes.fold(0, u64::saturating_add);
    let (removed, kept) = too_many(settings, found, report.bytes);
    let kept: HashSet<String> = kept.into_iter().map(|one| one.identity).collect();
    // A new manifest may be one whose first bundle is being written.
    let is_old = |age: Option<Duration>| age.is_some_and(|age| age >= settings.leftovers_after);
    let beside = other.manifests.into_iter().chain(other.announcements);
    let unused = beside
        .filter(|(identity, value)| is_old(value.age) && !kept.contains(&identity.to_string()));
    let beside: Vec<ValueName> = unused.map(|(_, value)| value.name).collect();
    for batch in removed.chunks(store.abilities().batch_max.max(1)) {
        let names: Vec<ValueName> = batch.iter().map(|one| one.name.clone()).collect();
        store.remove(&names, by())?;
        report.removed += batch.len() as u64;
        report.removed_bytes += batch.iter().map(|one| one.bytes).sum::<u64>();
    }
    for batch in beside.chunks(store.abilities().batch_max.max(1)) {
        store.remove(batch, by())?;
        report.leftovers += batch.len() as u64;
    }
    Ok(report)
}

/// The bundles to remove, the oldest first, and the others.
fn too_many(
    settings: &SweepSettings,
    mut found: Vec<SweptBundle>,
    bytes: u64,
) -> (Vec<SweptBundle>, Vec<SweptBundle>) {
    found.sort_by(|a, b| b.age.cmp(&a.age).then_with(|| a.name.cmp(&b.name)));
    let is_full = settings
        .capacity_bytes
        .is_some_and(|capacity| bytes > capacity);
    let target = match settings.capacity_bytes {
        Some(capacity) if is_full => capacity as f64 * settings.low_mark.clamp(0.0, 1.0),
        _ => f64::INFINITY,
    };
    let mut left = bytes;
    let mut removed = 0;
    for one in &found {
        let is_old = settings.age_max.is_some_and(|age| one.age >= age);
        if left as f64 <= target && !is_old {
            break;
        }
        left = left.saturating_sub(one.bytes);
        removed += 1;
    }
    let kept = found.split_off(removed);
    (found, kept)
}
