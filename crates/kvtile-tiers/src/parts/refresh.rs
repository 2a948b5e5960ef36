//! Refreshes: they find new parts, and bring the index up to the parts.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use kvtile_blocks::{BlockKey, GroupId};
use kvtile_layout::Shard;

use super::{
    PartsShared, cover::PartRectangle, index::PARTS_MAX, part::FollowedPart, slice::PartSlice,
    staging::PartStaging,
};
use crate::{
    clock::Clock,
    disk::{FollowCondition, GROUP, PartFolderName, RefreshPace, RefreshedIndex},
    error::{SettingsError, TierError},
    tier::{BlockPieces, StoreIdentity, TierContext, TierGroup},
};

/// The time after which a refused part is tried again.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// A part of the model, as the last refresh found it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PartStatus {
    /// Its layers and heads.
    pub part: PartFolderName,
    /// Blocks that it has.
    pub blocks: u64,
    /// Whether it is followed, and why not. A part that never was is [`FollowCondition::Unusable`] or
    /// [`FollowCondition::Differs`].
    pub condition: FollowCondition,
}

/// What refreshes know of the place of the parts; only one refresh at a time has it.
#[derive(Default)]
pub(super) struct PartsWatch {
    /// The parts that are followed.
    known: HashSet<String>,
    /// The parts that were refused.
    refused: BTreeMap<String, RefusedPart>,
    /// By their numbers of layers and heads.
    staging: BTreeMap<(u64, u64), Arc<PartStaging>>,
    /// When the parts were listed.
    listed: Option<Duration>,
    /// Whether the last listing failed: the log has only the first failure.
    is_failing: bool,
    is_full: bool,
    /// When the bytes of the parts were last counted.
    pub(super) looked_at: Option<Duration>,
    /// Old parts whose room without blocks was returned to the disk.
    pub(super) released: HashSet<PartFolderName>,
}

/// A part that cannot be used.
struct RefusedPart {
    part: PartFolderName,
    at: Duration,
    error: TierError,
}

impl RefreshedIndex for PartsShared {
    const WHAT: &'static str = "a refresh of the parts of other ranks";

    fn pace(&self) -> &RefreshPace {
        &self.pace
    }

    fn clock(&self) -> &dyn Clock {
        &*self.context.clock
    }

    fn refresh_after(&self) -> Duration {
        self.settings.source.refresh_after()
    }

    fn refresh(&self, asked: &[&[BlockKey]]) -> Result<(), TierError> {
        self.refresh_parts(asked)
    }

    fn leading(&self, _group: GroupId, keys: &[BlockKey]) -> usize {
        self.hold(keys).map_or(0, |hold| hold.blocks())
    }
}

impl PartsShared {
    /// Finds new parts, queries all of them for the keys of the queries, and brings the index up to them. Fails with the
    /// first failure; the index is then that of an earlier refresh, or of a part of this one.
    pub(super) fn refresh_parts(&self, asked: &[&[BlockKey]]) -> Result<(), TierError> {
        let mut watch = self.watch.lock();
        let found = self.find_parts(&mut watch);
        if let Err(error) = &found
            && !watch.is_failing
        {
            log::warn!("the {} tier cannot look for parts: {error}", self.id);
        }
        watch.is_failing = found.is_err();
        let mut failure = found.err();
        let parts = self.state.read().parts.clone();
        let without_keys: &[&[BlockKey]] = &[&[]];
        let queries = match self.settings.source.needs_keys() {
            true => asked,
            false => without_keys,
        };
        let each = parts.iter().flat_map(|part| {
            let of_part = |keys: &&[BlockKey]| part.tier.ask(GROUP, keys);
            queries.iter().map(of_part).collect::<Vec<_>>()
        });
        // All of them begin before the first one is waited for. A tier without threads has ended its own already.
        let answers: Vec<_> = each.collect();
        for answer in answers {
            let answer = answer.wait();
            failure = failure.or(answer.failure);
        }
        self.absorb();
        self.bound_old_parts(&mut watch);
        failure.map_or(Ok(()), Err)
    }

    /// The status of all parts.
    pub(super) fn status(&self) -> Vec<PartStatus> {
        let watch = self.watch.lock();
        let refused = watch.refused.values().map(|refused| PartStatus {
            part: refused.part,
            blocks: 0,
            condition: FollowCondition::Unusable {
                error: refused.error.clone(),
            },
        });
        let refused: Vec<PartStatus> = refused.collect();
        let state = self.state.read();
        let followed = state.parts.iter().map(|part| PartStatus {
            part: part.part,
            blocks: part.tier.stats().present,
            condition: part.condition(),
        });
        followed.chain(refused).collect()
    }

    /// Begins to follow the parts that are not followed yet.
    fn find_parts(&self, watch: &mut PartsWatch) -> Result<(), TierError> {
        let source = &self.settings.source;
        let own = PartFolderName::of(&self.layout.shape().shard());
        let now = self.context.clock.now();
        let is_fresh = |at: Duration| now.saturating_sub(at) < source.list_after();
        if watch.listed.is_some_and(is_fresh) {
            return Ok(());
        }
        watch.listed = Some(now);
        for part in source.list()? {
            let name = part.to_string();
            let now = self.context.clock.now();
            let refused = watch.refused.get(&name);
            let waits = refused.is_some_and(|it| now.saturating_sub(it.at) < REFUSED_FOR);
            if part == own || waits || watch.known.contains(&name) {
                continue;
            }
            if watch.known.len() == PARTS_MAX {
                if !std::mem::replace(&mut watch.is_full, true) {
                    let place = source.place();
                    log::warn!("{place} has more than {PARTS_MAX} parts; the others are not read");
                }
                return Ok(());
            }
            self.begin_part(watch, (&name, part));
        }
        Ok(())
    }

    /// Begins to follow a part, or records why it is not.
    fn begin_part(&self, watch: &mut PartsWatch, (name, part): (&str, PartFolderName)) {
        match self.open_part(watch, part) {
            Ok(None) => drop(watch.refused.remove(name)),
            Ok(Some(opened)) => {
                watch.refused.remove(name);
                watch.known.insert(name.to_owned());
                self.change(|state| state.add(Arc::new(opened)));
            }
            Err(error) => {
                let at = self.context.clock.now();
                let before = watch.refused.get(name);
                if before.is_none_or(|before| before.error.to_string() != error.to_string()) {
                    log::warn!("the {} tier leaves out the part {part}: {error}", self.id);
                }
                let refused = RefusedPart { part, at, error };
                watch.refused.insert(name.to_owned(), refused);
            }
        }
    }

    /// Opens a part; `None` if it has none of the own layers and heads.
    fn open_part(
        &self,
        watch: &mut PartsWatch,
        part: PartFolderName,
    ) -> Result<Option<FollowedPart>, TierError> {
        let own = self.layout.shape().shard();
        let Some(shard) = part.shard(own.total_layers, own.total_heads) else {
            return Err(TierError::Settings(SettingsError::PartOutside {
                part: part.to_string(),
                layers: own.total_layers,
                heads: own.total_heads,
            }));
        };
        let rectangle = PartRectangle::of(&shard);
        if !rectangle.touches(&PartRectangle::of(&own)) {
            return Ok(None);
        }
        self.check_not_opaque(&shard, &own)?;
        let (staging, identity) = self.staging_of(watch, &shard)?;
        let slice = PartSlice::between((&staging.layout, &shard), (&self.layout, &own));
        let Some(slice) = slice? else {
            return Ok(None);
        };
        let events = FollowedPart::log()?;
        let group = TierGroup::new(self.group.name.clone(), identity).has_part_readers(true);
        let context = TierContext {
            groups: vec![group.clone()],
            events: Arc::clone(&events),
            clock: Arc::clone(&self.context.clock),
            // The threads of this tier make the calls.
            threads: 0,
        };
        Ok(Some(FollowedPart {
            part,
            group,
            rectangle,
            tier: self.settings.source.open(&part, &context)?,
            slice,
            staging,
            events,
        }))
    }

    /// Refuses a part with other heads if bytes of unknown order would have to be cut.
    fn check_not_opaque(&self, part: &Shard, own: &Shard) -> Result<(), TierError> {
        let mut planes = self.layout.shape().planes().iter();
        match planes.find(|plane| plane.unit().is_opaque()) {
            Some(plane) if part.heads != own.heads => {
                Err(TierError::Settings(SettingsError::OpaquePart {
                    plane: plane.name().to_string(),
                    ours: own.heads.to_string(),
                    theirs: part.heads.to_string(),
                }))
            }
            _ => Ok(()),
        }
    }

    /// The staging memory and the identity of a part's blocks.
    fn staging_of(
        &self,
        watch: &mut PartsWatch,
        shard: &Shard,
    ) -> Result<(Arc<PartStaging>, StoreIdentity), TierError> {
        let logical = self.group.identity.logical.of_shard(*shard)?;
        let size = (shard.layers.count, shard.heads.count);
        let staging = match watch.staging.get(&size) {
            Some(staging) => Arc::clone(staging),
            None => {
                let shape = self.layout.shape().of_shard(*shard)?;
                let of = (&shape, &logical);
                let memory = (&self.settings.word, self.settings.staging_bytes);
                let made = Arc::new(PartStaging::new(&self.manager, of, memory)?);
                watch.staging.insert(size, Arc::clone(&made));
                made
            }
        };
        let pieces: BlockPieces = staging.pieces.clone();
        let block_layout = staging.block_layout.clone();
        let identity = StoreIdentity {
            logical,
            block_layout,
            pieces,
        };
        Ok((staging, identity))
    }
}
