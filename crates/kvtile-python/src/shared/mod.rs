//! The shared tier of a cache: its keywords, and stores that Python implements.

mod python_store;

use std::{sync::Arc, time::Duration};

use kvtile::shared::{
    store::{Deadline, SharedStore, SharedStoreError},
    tier::{SharedTier, SharedTierSettings},
};
use kvtile::{
    blocks::events::TierId,
    tiers::{
        TierError,
        cache::{CacheBuilder, TierWrites},
        tier::{Tier, TierSettings},
    },
};
use pyo3::prelude::*;

use crate::error::python::SettingsError;

pub(crate) use python_store::PythonStore;

/// How long opening a store may take, if the settings do not say it.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// The keywords of the shared tier, which may come in any order.
#[derive(Default)]
pub(crate) struct SharedKeywords {
    pub(crate) store: Option<SharedSource>,
    pub(crate) lifetime: Option<Duration>,
    pub(crate) bundle_blocks: Option<u32>,
    pub(crate) staging_bytes: Option<u64>,
    pub(crate) within: Option<Duration>,
}

/// Where the store comes from.
pub(crate) enum SharedSource {
    /// A URL, or the path of a folder.
    Url(String),
    /// An object of Python.
    Object(PythonStore),
}

/// A shared tier to open.
pub(crate) struct SharedOpening {
    source: SharedSource,
    settings: SharedTierSettings,
    within: Option<Duration>,
}

impl SharedKeywords {
    /// The tier, if there is one.
    pub(crate) fn opening(self) -> PyResult<Option<SharedOpening>> {
        let says_nothing = self.lifetime.is_none()
            && self.bundle_blocks.is_none()
            && self.staging_bytes.is_none()
            && self.within.is_none();
        let Some(source) = self.store else {
            return match says_nothing {
                true => Ok(None),
                false => Err(SettingsError::new_err(
                    "shared_lifetime, shared_bundle_blocks, shared_staging_bytes and shared_within have no effect \
                     without shared, the store",
                )),
            };
        };
        let mut settings = SharedTierSettings::new()
            .lifetime(self.lifetime)
            .bundle_blocks(self.bundle_blocks);
        settings.staging_bytes = self.staging_bytes.unwrap_or(settings.staging_bytes);
        settings.read_within = self.within.unwrap_or(settings.read_within);
        Ok(Some(SharedOpening {
            source,
            settings,
            within: self.within,
        }))
    }
}

impl SharedOpening {
    /// Opens the store, and adds the tier to a cache that is being built. Called without the GIL.
    pub(crate) fn add_to(self, builder: CacheBuilder) -> Result<CacheBuilder, TierError> {
        let by = Deadline::within(self.within.unwrap_or(OPEN_WITHIN).max(OPEN_WITHIN));
        let store = self.source.open(by).map_err(TierError::outside)?;
        let tier = TierSettings::default().writes(TierWrites::AtOnce);
        let tier = tier.answer_within(self.settings.read_within.max(self.settings.write_within));
        let settings = self.settings;
        Ok(builder.tier(tier, move |context| {
            let tier = SharedTier::open(TierId::SHARED, store, settings, context)?;
            Ok(tier as Arc<dyn Tier>)
        }))
    }
}

impl SharedSource {
    fn open(self, by: Deadline) -> Result<Arc<dyn SharedStore>, SharedStoreError> {
        match self {
            SharedSource::Url(text) => kvtile_shared_open::open_store(&text, by),
            SharedSource::Object(store) => Ok(Arc::new(store)),
        }
    }
}
