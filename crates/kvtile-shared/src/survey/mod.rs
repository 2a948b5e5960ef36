//! What a store has, for its operator: the bundles of each identity, whether they are whole, and the
//! removal of all of them. Caches may use the store during these calls.
//!
//! | module | contents |
//! | --- | --- |
//! | `verify` | reads every bundle and compares its checksums |

mod verify;

use std::{collections::BTreeMap, time::Duration};

use kvtile_layout::identity::Fingerprint;

pub use verify::{StoreVerification, UnfitBundle, verify};

use crate::{
    bundle::{
        ParsedBundleName, parse_announcement_name, parse_bundle_name, parse_manifest_name, root_of,
    },
    manifest::{StoreManifest, StoreManifestError},
    store::{Deadline, ListedValue, SharedStore, SharedStoreError, ValueName},
};

/// Which values of a store, and how long each of its calls may take.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SurveySettings {
    /// The prefix of the tiers that use the store (default: empty).
    pub prefix: String,
    /// The time limit of each call of the store (default: 60 s).
    pub call_within: Duration,
}

impl Default for SurveySettings {
    fn default() -> SurveySettings {
        SurveySettings {
            prefix: String::new(),
            call_within: Duration::from_secs(60),
        }
    }
}

impl SurveySettings {
    /// The default settings.
    #[must_use]
    pub fn new() -> SurveySettings {
        SurveySettings::default()
    }

    /// Sets [`prefix`](Self::prefix).
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> SurveySettings {
        self.prefix = prefix.into();
        self
    }

    /// Sets [`call_within`](Self::call_within).
    #[must_use]
    pub fn call_within(mut self, time: Duration) -> SurveySettings {
        self.call_within = time;
        self
    }
}

/// The contents of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreSurvey {
    /// The bundles by identity, block layout, part and blocks of a bundle, in this order.
    pub forms: Vec<SurveyedForm>,
    /// The manifests, by the fingerprint of their identity.
    pub manifests: BTreeMap<String, Result<StoreManifest, StoreManifestError>>,
    /// Other values below the prefix.
    pub foreign: u64,
}

/// The bundles of one form.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SurveyedForm {
    /// The fingerprint of the identity, in hexadecimal digits.
    pub identity: String,
    /// The fingerprint of the block layout.
    pub layout: String,
    /// The part of the blocks.
    pub part: String,
    /// Blocks of a bundle.
    pub bundle_blocks: u32,
    /// Number of bundles.
    pub bundles: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// The time since the last bundle was written or renewed; `None` if the store does not know.
    pub newest: Option<Duration>,
    /// The time since this happened for the first bundle.
    pub oldest: Option<Duration>,
}

impl StoreSurvey {
    /// Number of bundles of all forms.
    #[must_use]
    pub fn bundles(&self) -> u64 {
        self.forms.iter().map(|form| form.bundles).sum()
    }

    /// Bytes of these.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.forms.iter().map(|form| form.bytes).sum()
    }
}

/// Lists all values below the prefix, and reads the manifests.
///
/// # Errors
/// The first error of the store.
pub fn survey(
    store: &dyn SharedStore,
    settings: &SurveySettings,
) -> Result<StoreSurvey, SharedStoreError> {
    let mut forms: BTreeMap<(String, String, String, u32), SurveyedForm> = BTreeMap::new();
    let other = each_bundle(store, settings, |value, name| {
        let key = (
            name.identity.clone(),
            name.layout.clone(),
            name.part.clone(),
            name.blocks,
        );
        let form = forms.entry(key).or_insert_with(|| SurveyedForm {
            identity: name.identity,
            layout: name.layout,
            part: name.part,
            bundle_blocks: name.blocks,
            bundles: 0,
            bytes: 0,
            newest: None,
            oldest: None,
        });
        form.bundles += 1;
        form.bytes = form.bytes.saturating_add(value.bytes);
        if let Some(age) = value.age {
            form.newest = Some(form.newest.map_or(age, |newest| newest.min(age)));
            form.oldest = form.oldest.max(Some(age));
        }
        Ok(())
    })?;
    Ok(StoreSurvey {
        forms: forms.into_values().collect(),
        manifests: read_manifests(store, settings, &other.manifests),
        foreign: other.foreign,
    })
}

/// The most manifests that a report reads.
const MANIFESTS_MAX: usize = 1000;

fn read_manifests(
    store: &dyn SharedStore,
    settings: &SurveySettings,
    manifests: &[(Fingerprint, ListedValue)],
) -> BTreeMap<String, Result<StoreManifest, StoreManifestError>> {
    let mut read = BTreeMap::new();
    for (identity, value) in manifests.iter().take(MANIFESTS_MAX) {
        let by = Deadline::within(settings.call_within);
        let manifest = match StoreManifest::read(store, (*identity, &value.name), by) {
            Ok(None) => continue,
            Ok(Some(manifest)) => manifest,
            // The report on the bundles is worth more.
            Err(error) => Err(StoreManifestError::Unreadable(error.to_string())),
        };
        read.insert(identity.to_string(), manifest);
    }
    read
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreClearing {
    /// Bundles.
    pub removed: u64,
    /// Bytes of these.
    pub removed_bytes: u64,
    /// Other values below the prefix, which stay.
    pub foreign: u64,
    /// Leftovers of writers, removed too.
    pub leftovers: u64,
}

/// Removes all bundles, manifests and announcements of parts below the prefix, and what writers left behind. Bundles that caches write during
/// the call may stay.
///
/// # Errors
/// The first error of the store. Values that were removed until then are removed.
pub fn clear(
    store: &dyn SharedStore,
    settings: &SurveySettings,
) -> Result<StoreClearing, SharedStoreError> {
    let mut names = Vec::new();
    let mut cleared = StoreClearing::default();
    let other = each_bundle(store, settings, |value, _| {
        cleared.removed += 1;
        cleared.removed_bytes = cleared.removed_bytes.saturating_add(value.bytes);
        names.push(value.name);
        Ok(())
    })?;
    cleared.foreign = other.foreign;
    let beside = other.manifests.into_iter().chain(other.announcements);
    names.extend(beside.map(|(_, value)| value.name));
    remove_all(store, settings, &names)?;
    let by = Deadline::within(settings.call_within);
    // A write of now still needs its file.
    let leftovers = store.remove_leftovers(settings.call_within, by)?;
    cleared.leftovers = leftovers as u64;
    Ok(cleared)
}

/// Removes values, in batches.
fn remove_all(
    store: &dyn SharedStore,
    settings: &SurveySettings,
    names: &[ValueName],
) -> Result<(), SharedStoreError> {
    for batch in names.chunks(store.abilities().batch_max.max(1)) {
        store.remove(batch, Deadline::within(settings.call_within))?;
    }
    Ok(())
}

/// The values below a prefix that are no bundles.
#[derive(Debug, Default)]
pub(crate) struct OtherValues {
    pub(crate) manifests: Vec<(Fingerprint, ListedValue)>,
    /// The announcements of parts, each with the identity of the part.
    pub(crate) announcements: Vec<(Fingerprint, ListedValue)>,
    /// The number of all others.
    pub(crate) foreign: u64,
}

/// Calls `take` with each bundle below the prefix; returns the other values.
pub(crate) fn each_bundle(
    store: &dyn SharedStore,
    settings: &SurveySettings,
    mut take: impl FnMut(ListedValue, ParsedBundleName) -> Result<(), SharedStoreError>,
) -> Result<OtherValues, SharedStoreError> {
    let under = root_of(&settings.prefix);
    let mut other = OtherValues::default();
    let mut after: Option<String> = None;
    loop {
        let by = Deadline::within(settings.call_within);
        let page = store.list(&under, after.as_deref(), by)?;
        for value in page.values {
            if let Some(name) = parse_bundle_name(&settings.prefix, &value.name) {
                take(value, name)?;
            } else if let Some(identity) = parse_manifest_name(&settings.prefix, &value.name) {
                other.manifests.push((identity, value));
            } else if let Some((identity, _)) =
                parse_announcement_name(&settings.prefix, &value.name)
            {
                other.announcements.push((identity, value));
            } else {
                other.foreign += 1;
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(other),
        }
    }
}
