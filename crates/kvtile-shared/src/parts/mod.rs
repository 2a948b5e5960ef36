//! The parts of a model in a shared store: what ranks with other layers and heads wrote.
//!
//! ```text
//! kvt1/MODEL/parts/IDENTITY.LAYOUT.4.layers-0-32.heads-0-4    announcement: there are bundles of this part
//! kvt1/IDENTITY/LAYOUT/all/5e/KEY.4                           a bundle of it
//! ```
//!
//! A rank's bundles are under the identity of its part, which follows from the identity of the model and the rectangle of
//! layers and heads. So a reader that knows the rectangle knows all names. Before its first bundle each writer announces its
//! rectangle with a small value that is never changed; a reader lists the announcements of its model when it is opened, and
//! at intervals after that. An announcement is a hint, and its name is all of it: the reader computes the name that a part
//! with this rectangle must have in its own block order, and ignores every other one. Bundles of parts are queried
//! and verified like every bundle, and the [`PartsTier`] assembles their blocks.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kvtile_blocks::events::{EventLog, TierId, TierKind};
use kvtile_layout::{
    Shape, Shard, StridedLayout, Word,
    identity::{Fingerprint, Identity, LayoutIdentity},
};
use kvtile_tiers::{
    SettingsError, TierError,
    parts::{PartFolderName, PartSource, PartsSettings, PartsTier},
    tier::{BlockPieces, StoreIdentity, Tier, TierContext, TierGroup},
};
use parking_lot::Mutex;

use crate::{
    bundle::{announcements_of, parse_announcement_name},
    store::{Deadline, ListPage, SharedStore, SharedStoreError, StoreErrorKind, ValueName},
    tier::{SharedTier, SharedTierSettings},
};

/// The name of the tier in its cache.
const NAME: &str = "parts";

/// The most announcements, and the most pages of them, that a list reads.
const ANNOUNCEMENTS_MAX: usize = 1 << 14;

/// The most rectangles whose names are kept.
const EXPECTED_MAX: usize = 1 << 12;

/// Events of a log that nothing reads.
const NO_EVENTS: std::num::NonZeroUsize = std::num::NonZeroUsize::MIN;

/// The parts of a model in a shared store.
#[derive(Debug)]
pub struct SharedParts {
    /// It has no blocks of its own. The tiers of the parts use its threads, limits, breakers and counters.
    hub: Arc<SharedTier>,
    prefix: String,
    list_after: Duration,
    list_within: Duration,
    own: Identity,
    /// The shape of the own blocks, with the planes in their order.
    shape: Shape,
    word: Word,
    /// The name that the announcement of a rectangle must have; `None` for one that cannot be a part of this model.
    expected: Mutex<HashMap<PartFolderName, Option<ValueName>>>,
}

impl SharedParts {
    /// The opener of a [`PartsTier`] over the parts that other ranks wrote to a store, for `CacheBuilder::tier`. The cache
    /// has another tier for its own part, [`SharedTier::opener`] with the same store and settings, in front of it.
    /// `shape` and `word` are those of the cache's stored blocks.
    ///
    /// The cache must write nothing to the tier (`TierWrites::Never`), and have one group.
    pub fn opener(
        store: Arc<dyn SharedStore>,
        settings: SharedTierSettings,
        (shape, word): (Shape, Word),
    ) -> impl FnOnce(&TierContext) -> Result<Arc<dyn Tier>, TierError> + Send + 'static {
        move |context| {
            let own = match context.groups.as_slice() {
                [group] => group.identity.logical.clone(),
                groups => return Err(not_one_group(groups)),
            };
            let apart = TierContext {
                groups: Vec::new(),
                events: Arc::new(EventLog::new(NO_EVENTS)?),
                ..context.clone()
            };
            let source = SharedParts {
                prefix: settings.prefix.clone(),
                list_after: settings.list_parts_after,
                list_within: settings.read_within,
                hub: SharedTier::open(tier_id()?, store, settings, &apart)?,
                own,
                shape: shape.with_num_blocks(1)?,
                word: word.clone(),
                expected: Mutex::default(),
            };
            let settings = PartsSettings::new(Arc::new(source), shape, word);
            Ok(Arc::new(PartsTier::open(settings, context)?) as Arc<dyn Tier>)
        }
    }

    /// Whether a cache of the blocks of `own` needs a tier for the parts of other ranks: a rank does, and a cache with the
    /// whole model if there are other parts now. A store that cannot list has none.
    #[must_use]
    pub fn are_needed(
        store: &dyn SharedStore,
        settings: &SharedTierSettings,
        own: &Identity,
    ) -> bool {
        let shard = own.shard();
        let is_rank = shard != Shard::whole(shard.total_layers, shard.total_heads);
        let part = PartFolderName::of(&shard);
        let of = (settings.prefix.as_str(), own.model_fingerprint());
        let by = Deadline::within(settings.read_within);
        let mut is_other = false;
        match each_announced(store, of, by, |_, other| is_other |= other != part) {
            Ok(()) => is_rank || is_other,
            Err(error) => {
                let name = store.name();
                log::info!("the parts that other ranks wrote to {name} are not found: {error}");
                is_rank && error.kind() == StoreErrorKind::Transient
            }
        }
    }

    /// The identity of the blocks of a part; `None` if it cannot be a part of this model.
    fn identity_of(&self, part: &PartFolderName) -> Option<StoreIdentity> {
        let own = self.own.shard();
        let shard = part.shard(own.total_layers, own.total_heads)?;
        let logical = self.own.of_shard(shard).ok()?;
        let shape = self.shape.of_shard(shard).ok()?;
        let layout = StridedLayout::resolve(&self.word, &shape, 1).ok()?;
        Some(StoreIdentity {
            logical,
            block_layout: LayoutIdentity::of_block(&layout),
            pieces: BlockPieces::of_layout(&layout).ok()?,
        })
    }

    /// The name that the announcement of a part has.
    fn expected(&self, part: &PartFolderName) -> Option<ValueName> {
        let mut expected = self.expected.lock();
        if let Some(known) = expected.get(part) {
            return known.clone();
        }
        let name = self.identity_of(part).and_then(|identity| {
            let group = TierGroup::new(NAME, identity).has_part_readers(true);
            self.hub.announcement_of(&group)
        });
        if expected.len() >= EXPECTED_MAX {
            expected.clear();
        }
        expected.insert(*part, name.clone());
        name
    }
}

fn not_one_group(groups: &[TierGroup]) -> TierError {
    TierError::Settings(SettingsError::PartsGroups {
        groups: groups.len(),
    })
}

fn tier_id() -> Result<TierId, TierError> {
    Ok(TierId::new(TierKind::Shared, NAME)?)
}

/// Calls `take` with the announcements of the parts of a model. It reads a bounded number, within one time limit.
fn each_announced(
    store: &dyn SharedStore,
    (prefix, model): (&str, Fingerprint),
    by: Deadline,
    mut take: impl FnMut(ValueName, PartFolderName),
) -> Result<(), SharedStoreError> {
    let under = announcements_of(prefix, model);
    let (mut after, mut listed, mut pages) = (None::<String>, 0, 0);
    loop {
        let ListPage { values, next } = store.list(&under, after.as_deref(), by)?;
        listed += values.len();
        pages += 1;
        for value in values {
            if let Some((_, part)) = parse_announcement_name(prefix, &value.name) {
                take(value.name, part);
            }
        }
        match next {
            Some(next) if listed.max(pages) < ANNOUNCEMENTS_MAX => after = Some(next),
            Some(_) => {
                log::warn!(
                    "{} has more than {ANNOUNCEMENTS_MAX} announcements of parts below {under}; the others are not read",
                    store.name()
                );
                return Ok(());
            }
            None => return Ok(()),
        }
    }
}

impl PartSource for SharedParts {
    fn tier(&self) -> Result<TierId, TierError> {
        tier_id()
    }

    fn place(&self) -> String {
        self.hub.status().store
    }

    fn list(&self) -> Result<Vec<PartFolderName>, TierError> {
        let own = PartFolderName::of(&self.own.shard());
        let mut parts = Vec::new();
        let by = Deadline::within(self.list_within);
        let of = (self.prefix.as_str(), self.own.model_fingerprint());
        self.hub.list_with(|store| {
            each_announced(store, of, by, |name, part| {
                if part != own && self.expected(&part).as_ref() == Some(&name) {
                    parts.push(part);
                }
            })
        })?;
        Ok(parts)
    }

    fn list_after(&self) -> Duration {
        self.list_after
    }

    fn refresh_after(&self) -> Duration {
        self.list_after
    }

    /// A shared tier knows only the bundles that were queried.
    fn needs_keys(&self) -> bool {
        true
    }

    fn open(
        &self,
        _part: &PartFolderName,
        context: &TierContext,
    ) -> Result<Arc<dyn Tier>, TierError> {
        let [group] = context.groups.as_slice() else {
            return Err(not_one_group(&context.groups));
        };
        Ok(Arc::new(self.hub.reader(group, &context.events)?))
    }
}
