//! Refreshes: they find new parts, and bring the index up to the parts.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use kvtile_blocks::BlockKey;
use kvtile_layout::Shard;
use kvtile_transfer::completion::Completer;

use super::{
    NAME, PartsShared, cover::PartRectangle, index::PARTS_MAX, part::FollowedPart,
    slice::PartSlice, staging::PartStaging,
};
use crate::{
    disk::{DiskFollower, DiskSettings, DiskThreads, FollowCondition, GROUP, PartFolderName},
    error::{SettingsError, TierError},
    medium::FolderMedium,
    tier::{BlockPieces, StoreIdentity, Tier, TierAnswer, TierContext, TierGroup},
};

/// Lookups leave a pause of this many times the length of a refresh before the next.
const PAUSE_FACTOR: u32 = 9;

/// The name of the folder of the whole model, below itself.
const WHOLE: &str = "";

/// The time after which a refused part is tried again.
const REFUSED_FOR: Duration = Duration::from_secs(10);

/// The names of the folders in `folder`; none if it does not exist.
pub(super) fn folders(folder: &Path) -> Result<Vec<String>, TierError> {
    let medium = FolderMedium::new(folder);
    let names = medium.folders();
    names.map_err(|error| TierError::file("list", folder.display().to_string(), error))
}

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

/// What refreshes know of the folder; only one refresh at a time has it.
#[derive(Default)]
pub(super) struct PartsWatch {
    /// The parts that are followed.
    known: HashSet<String>,
    /// The parts that were refused.
    refused: BTreeMap<String, RefusedPart>,
    /// By their numbers of layers and heads.
    staging: BTreeMap<(u64, u64), Arc<PartStaging>>,
    /// Whether the last listing failed: the log has only the first failure.
    is_failing: bool,
    is_full: bool,
}

/// A part that cannot be used.
struct RefusedPart {
    part: PartFolderName,
    at: Duration,
    error: TierError,
}

/// When to refresh.
#[derive(Default)]
pub(super) struct PartsPace {
    /// When the last refresh began.
    began: Option<Duration>,
    /// How long it took.
    took: Duration,
    /// Whether a refresh is queued that has not begun.
    is_queued: bool,
    is_running: bool,
    /// The questions that the next refresh answers.
    asks: Vec<PartsAsk>,
}

impl PartsPace {
    /// The opening was a refresh.
    pub(super) fn opened(&mut self, now: Duration) {
        self.began = Some(now);
    }
}

/// A question that waits for a refresh. Dropped without an answer, it ends as closed.
pub(super) struct PartsAsk {
    keys: Arc<[BlockKey]>,
    completer: Completer<TierAnswer>,
}

impl PartsAsk {
    pub(super) fn new(keys: &[BlockKey], completer: Completer<TierAnswer>) -> PartsAsk {
        PartsAsk {
            keys: keys.into(),
            completer,
        }
    }
}

impl Drop for PartsAsk {
    fn drop(&mut self) {
        self.completer.finish(TierAnswer {
            leading: 0,
            failure: Some(crate::disk::given_up(
                "a question to the parts of other ranks",
            )),
        });
    }
}

/// Queues a refresh if the index is old.
pub(super) fn refresh_if_old(shared: &Arc<PartsShared>, threads: &DiskThreads) {
    let now = shared.context.clock.now();
    {
        let mut pace = shared.pace.lock();
        let pause = pace.took.saturating_mul(PAUSE_FACTOR);
        let pause = pause.max(shared.settings.refresh_after);
        let is_fresh = |began: Duration| now.saturating_sub(began) < pause;
        if pace.is_queued || pace.is_running || pace.began.is_some_and(is_fresh) {
            return;
        }
        pace.is_queued = true;
    }
    queue(shared, threads);
}

/// Queues a refresh that answers `ask`, unless one is queued already.
pub(super) fn ask(shared: &Arc<PartsShared>, threads: &DiskThreads, ask: PartsAsk) {
    {
        let mut pace = shared.pace.lock();
        pace.asks.push(ask);
        if std::mem::replace(&mut pace.is_queued, true) {
            return;
        }
    }
    queue(shared, threads);
}

fn queue(shared: &Arc<PartsShared>, threads: &DiskThreads) {
    let shared = Arc::clone(shared);
    threads.run(move || {
        let mut turn = PartsTurn::begin(&shared);
        let failure = shared.refresh();
        turn.answer(failure);
    });
}

/// A refresh that runs, with the questions that it answers.
struct PartsTurn<'a> {
    shared: &'a PartsShared,
    began: Duration,
    asks: Vec<PartsAsk>,
}

impl PartsTurn<'_> {
    fn begin(shared: &PartsShared) -> PartsTurn<'_> {
        let began = shared.context.clock.now();
        let mut pace = shared.pace.lock();
        pace.is_queued = false;
        pace.is_running = true;
        pace.began = Some(began);
        let asks = std::mem::take(&mut pace.asks);
        drop(pace);
        PartsTurn {
            shared,
            began,
            asks,
        }
    }

    fn answer(&mut self, failure: Option<TierError>) {
        for ask in std::mem::take(&mut self.asks) {
            ask.completer.finish(TierAnswer {
                leading: self.shared.leading(&ask.keys),
                failure: failure.clone(),
            });
        }
    }
}

impl Drop for PartsTurn<'_> {
    fn drop(&mut self) {
        let took = self.shared.context.clock.now().saturating_sub(self.began);
        let mut pace = self.shared.pace.lock();
        pace.is_running = false;
        pace.took = took;
    }
}

impl PartsShared {
    /// Finds new parts and brings the index up to all of them. Returns the first failure; the index is
    /// then that of an earlier refresh, or of a part of this one.
    pub(super) fn refresh(&self) -> Option<TierError> {
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
        for part in &parts {
            // The follower has no threads: it refreshes itself within the call.
            let answer = part.follower.ask(GROUP, &[]).wait();
            failure = failure.or(answer.failure);
        }
        self.absorb();
        failure
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
            blocks: part.follower.stats().present,
            condition: part.follower.condition(),
        });
        followed.chain(refused).collect()
    }

    /// Begins to follow the parts that are not followed yet.
    fn find_parts(&self, watch: &mut PartsWatch) -> Result<(), TierError> {
        let own = self.layout.shape().shard();
        let whole = Shard::whole(own.total_layers, own.total_heads);
        let mut there = vec![(WHOLE.to_owned(), PartFolderName::of(&whole))];
        let names = folders(&self.settings.folder)?;
        there.extend(names.into_iter().filter_map(|name| {
            let part = PartFolderName::parse(&name)?;
            Some((name, part))
        }));
        for (name, part) in there {
            let now = self.context.clock.now();
            let refused = watch.refused.get(&name);
            let waits = refused.is_some_and(|it| now.saturating_sub(it.at) < REFUSED_FOR);
            if part == PartFolderName::of(&own) || waits || watch.known.contains(&name) {
                continue;
            }
            if watch.known.len() == PARTS_MAX {
                if !std::mem::replace(&mut watch.is_full, true) {
                    let folder = self.settings.folder.display();
                    log::warn!("{folder} has more than {PARTS_MAX} parts; the others are not read");
                }
                return Ok(());
            }
            self.begin_part(watch, (&name, part));
        }
        Ok(())
    }

    /// Begins to follow a part, or records why it is not.
    fn begin_part(&self, watch: &mut PartsWatch, (name, part): (&str, PartFolderName)) {
        match self.open_part(watch, (name, part)) {
            Ok(None) => {}
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
        (name, part): (&str, PartFolderName),
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
        let context = TierContext {
            groups: vec![TierGroup::new(self.group.name.clone(), identity)],
            events: Arc::clone(&events),
            clock: Arc::clone(&self.context.clock),
            threads: 0,
        };
        let folder = match name {
            WHOLE => self.settings.folder.clone(),
            name => self.settings.folder.join(name),
        };
        let settings = DiskSettings::new(folder, 0)
            .name(NAME.to_owned())
            .refresh_after(self.settings.refresh_after);
        Ok(Some(FollowedPart {
            part,
            rectangle,
            follower: DiskFollower::open(&settings, &context)?,
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
                let made = Arc::new(PartStaging::new(&self.manager, of, &self.settings.word)?);
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
