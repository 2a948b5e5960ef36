//! The conformance suite of tiers: it checks the contract of [`kvtile_tiers::tier`] on a tier that
//! the caller opens. Each check opens the tier in a new, empty place, and panics at the first
//! violation.
#![expect(
    clippy::indexing_slicing,
    reason = "an index past the end of an answer is a violation, and checks panic on those"
)]

mod batches;
mod content;
mod groups;
mod keeping;
mod model;
mod room;

use std::{collections::HashMap, sync::Arc, time::Duration};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{EventLog, EventMirror, EventSubscriber, StoredBlock},
    pool::PinClaim,
};
use kvtile_layout::broken;
use kvtile_tiers::{
    cache::SystemClock,
    tier::{
        BlockName, BlockRead, BlockWrite, GroupId, NotWritten, ReadSuccess, Tier, TierContext,
        TierGroup, TierHold, TierMiss, WriteSuccess, content_checksum,
    },
};

use kvtile_transfer::completion::Completion;

use super::{HostMemory, ReservedBlock, content as bytes_of};

pub use groups::check_tier_groups;

/// Opens a tier in one place. After that tier was dropped, it can open it again, with its durable
/// blocks.
pub type OpenTierAt = Box<dyn Fn(&TierContext) -> Arc<dyn Tier>>;

/// Host blocks of a check: more than the capacity of any tier of the suite.
const HOST_BLOCKS: usize = 160;

/// The allowed capacities of a tier of the suite.
const ROOM: std::ops::RangeInclusive<u64> = 24..=96;

/// The time limit for a batch.
const PATIENCE: Duration = Duration::from_secs(10);

/// The group that every tier has.
const GROUP: GroupId = GroupId(0);

/// Checks a tier with `threads` threads. `new_place` creates an empty place for a tier with room
/// for 24 to 96 blocks.
///
/// # Panics
/// At the first violation of the contract. The last line of standard output names the check.
pub fn check_tier(threads: usize, new_place: &dyn Fn() -> OpenTierAt) {
    let checks = content::CHECKS
        .iter()
        .chain(room::CHECKS)
        .chain(keeping::CHECKS)
        .chain(batches::CHECKS)
        .chain(model::CHECKS);
    for (name, check) in checks {
        run_check(name, *check, TierRig::new(threads, new_place()));
    }
}

fn run_check(name: &str, check: fn(&mut TierRig), mut rig: TierRig) {
    println!("{name}");
    check(&mut rig);
    rig.check();
    for host in std::iter::once(&rig.host).chain(&rig.others) {
        let is_free = host.wait_until_free(PATIENCE);
        assert!(is_free, "{name}: host memory was not released");
    }
}

/// The name of a check, and the check.
type TierCheck = (&'static str, fn(&mut TierRig));

/// A tier with its context and host memory, and a mirror of its events.
struct TierRig {
    open: OpenTierAt,
    context: TierContext,
    host: HostMemory,
    /// Host memory of the groups after the first.
    others: Vec<HostMemory>,
    /// `None` only while the tier is being reopened.
    opened: Option<Arc<dyn Tier>>,
    subscriber: EventSubscriber,
    mirror: EventMirror,
}

/// A block to write: its name, the key of its parent, and its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ChainLink {
    name: BlockName,
    parent: Option<BlockKey>,
    position: u32,
}

/// The first `blocks` blocks of chain `number`.
fn chain(number: u8, blocks: usize) -> Vec<ChainLink> {
    chain_of(GROUP, number, blocks)
}

fn chain_of(group: GroupId, number: u8, blocks: usize) -> Vec<ChainLink> {
    let key = |position: u32| {
        let mut bytes = [number; 16];
        bytes[..4].copy_from_slice(&position.to_le_bytes());
        BlockKey::from_bytes(bytes)
    };
    let link = |(position, _): (u32, usize)| ChainLink {
        name: BlockName {
            group,
            key: key(position),
        },
        parent: position.checked_sub(1).map(key),
        position,
    };
    (0..).zip(0..blocks).map(link).collect()
}

fn keys(links: &[ChainLink]) -> Vec<BlockKey> {
    links.iter().map(|link| link.name.key).collect()
}

/// The tenant of all blocks of the suite.
const TENANT: u32 = 7;

impl TierRig {
    fn new(threads: usize, open: OpenTierAt) -> TierRig {
        let host = match HostMemory::new(HOST_BLOCKS) {
            Ok(host) => host,
            Err(error) => broken(format_args!("no host memory: {error}")),
        };
        let groups = vec![TierGroup::new("kv", host.identity().clone())];
        TierRig::with_groups((host, Vec::new()), groups, (threads, open))
    }

    /// A rig for several groups: `host` is memory of the first, `others` of the groups after it.
    fn with_groups(
        (host, others): (HostMemory, Vec<HostMemory>),
        groups: Vec<TierGroup>,
        (threads, open): (usize, OpenTierAt),
    ) -> TierRig {
        let context = context_of(groups, threads);
        let tier = open(&context);
        let subscriber = context.events.subscribe();
        let rig = TierRig {
            open,
            context,
            host,
            others,
            opened: Some(tier),
            subscriber,
            mirror: EventMirror::new(),
        };
        let stats = rig.tier().stats();
        assert_eq!(stats.present, 0, "the new place is not empty");
        if rig.tier().abilities().is_bounded {
            assert!(ROOM.contains(&stats.capacity), "{stats:?}");
        }
        rig
    }

    /// Drops the tier and opens it again.
    fn reopen(&mut self) {
        drop(self.opened.take());
        self.context = context_of(self.context.groups.clone(), self.context.threads);
        self.opened = Some((self.open)(&self.context));
        // Blocks that the tier finds when it is opened have no events.
        self.subscriber = self.context.events.subscribe();
        let snapshot = self.context.events.snapshot(|list| self.tier().list(list));
        self.mirror = EventMirror::from_snapshot(&snapshot);
        self.subscriber.resynchronise(&snapshot);
    }

    fn tier(&self) -> &dyn Tier {
        match &self.opened {
            Some(tier) => tier.as_ref(),
            None => broken(format_args!("the tier is being opened")),
        }
    }

    fn capacity(&self) -> usize {
        usize::try_from(self.tier().stats().capacity).unwrap_or(usize::MAX)
    }

    fn hands(&self) -> RigHandle<'_> {
        RigHandle {
            tier: self.tier(),
            host: &self.host,
            others: &self.others,
        }
    }

    /// Writes a batch, waits for it and returns the outcomes.
    fn write(&self, links: &[ChainLink]) -> Vec<Result<WriteSuccess, NotWritten>> {
        self.hands().write(links)
    }

    /// Writes blocks that must all be new.
    fn write_new(&self, links: &[ChainLink]) {
        for (outcome, link) in self.write(links).iter().zip(links) {
            assert!(
                matches!(outcome, Ok(WriteSuccess::New)),
                "{link:?}: {outcome:?}"
            );
        }
    }

    /// Reads a batch, waits for it and returns the outcomes.
    fn read(&self, links: &[ChainLink]) -> Vec<Result<(), TierMiss>> {
        self.hands().read(links)
    }

    /// Reads blocks that must all be hits.
    fn read_all(&self, links: &[ChainLink]) {
        for (outcome, link) in self.read(links).iter().zip(links) {
            assert!(outcome.is_ok(), "{link:?}: {outcome:?}");
        }
    }

    /// Reads blocks that must all be absent.
    fn read_none(&self, links: &[ChainLink]) {
        for (outcome, link) in self.read(links).iter().zip(links) {
            let is_absent = matches!(outcome, Err(TierMiss::Absent));
            assert!(is_absent, "{link:?}: {outcome:?}");
        }
    }

    fn hold(&self, links: &[ChainLink]) -> Option<Box<dyn TierHold>> {
        self.tier().hold(GROUP, &keys(links))
    }

    fn find(&self, links: &[ChainLink]) -> Option<Box<dyn TierHold>> {
        self.tier().find(GROUP, &keys(links), &PinClaim::default())
    }

    /// The number of leading blocks that the tier has; all lookups must agree on it.
    fn leading(&self, links: &[ChainLink]) -> usize {
        let of = |hold: Option<Box<dyn TierHold>>| hold.map_or(0, |hold| hold.blocks());
        let asked = ended(&self.tier().ask(GROUP, &keys(links)));
        assert!(asked.failure.is_none(), "{asked:?}");
        let held = of(self.hold(links));
        assert_eq!(asked.leading, held, "asked and held");
        assert_eq!(of(self.find(links)), held, "found and held");
        let has = |link: &&ChainLink| self.tier().has(GROUP, &link.name.key);
        assert_eq!(links.iter().take_while(has).count(), held, "has and held");
        held
    }

    /// Checks the invariants after any operation: the tier's parts are consistent, and its list,
    /// its events and its lookups agree.
    fn check(&mut self) {
        self.tier().check_integrity();
        let mut events = Vec::new();
        let polled = self.subscriber.poll(&mut events, usize::MAX);
        assert!(polled.is_ok(), "{polled:?}");
        for event in &events {
            assert_eq!(event.tier, self.tier().id(), "the tier of an event");
            assert!(self.mirror.apply(event), "events are missing");
        }
        let mut listed: Vec<StoredBlock> = Vec::new();
        self.tier().list(&mut listed);
        for block in &listed {
            assert_eq!(block.tier, self.tier().id(), "the tier of a listed block");
            let there = self.tier().has(block.group, &block.key);
            assert!(there, "{block:?} is not present");
            let hold = self.tier().hold(block.group, &[block.key]);
            let parent = hold.map(|hold| hold.parent(0));
            assert_eq!(parent, Some(block.parent), "the parent of {block:?}");
        }
        let list = listed
            .iter()
            .map(|block| ((block.group, block.key), block.parent));
        let list: HashMap<(GroupId, BlockKey), Option<BlockKey>> = list.collect();
        assert_eq!(list.len(), listed.len(), "a block is listed twice");
        let mut by_events = HashMap::new();
        for group in self.mirror.groups(self.tier().id()) {
            let blocks = self.mirror.blocks(self.tier().id(), group);
            by_events.extend(blocks.map(|(key, parent)| ((group, key), parent)));
        }
        assert_eq!(by_events, list, "events and list");
    }

    /// Evicts every block that is not in use; returns their number.
    fn clear(&self) -> usize {
        self.tier().clear(Tick(0))
    }
}

/// The parts of a [`TierRig`] that threads share.
#[derive(Clone, Copy)]
struct RigHandle<'a> {
    tier: &'a dyn Tier,
    host: &'a HostMemory,
    others: &'a [HostMemory],
}

impl RigHandle<'_> {
    /// Host memory for blocks of a group; that of the first for a group without any.
    fn host_of(&self, group: GroupId) -> &HostMemory {
        let other = usize::try_from(group.0)
            .ok()
            .and_then(|group| group.checked_sub(1));
        other
            .and_then(|other| self.others.get(other))
            .unwrap_or(self.host)
    }

    fn writes(&self, links: &[ChainLink]) -> (Vec<ReservedBlock>, Vec<BlockWrite>) {
        let write = |link: &ChainLink| {
            let (reserved, from) = self.host_of(link.name.group).filled(&link.name);
            let write = BlockWrite {
                name: link.name,
                parent: link.parent,
                position: link.position,
                tenant: TENANT,
                from,
            };
            (reserved, write)
        };
        links.iter().map(write).unzip()
    }

    fn reads(&self, links: &[ChainLink]) -> (Vec<ReservedBlock>, Vec<BlockRead>) {
        let read = |link: &ChainLink| {
            let (reserved, into) = self.host_of(link.name.group).empty();
            let name = link.name;
            (reserved, BlockRead { name, into })
        };
        links.iter().map(read).unzip()
    }

    /// Writes a batch and waits for it. Checks that there is one outcome per block, and that the
    /// tier has released the host memory.
    fn write(&self, links: &[ChainLink]) -> Vec<Result<WriteSuccess, NotWritten>> {
        let (reserved, blocks) = self.writes(links);
        let report = ended(&self.tier.write(blocks));
        let let_go = reserved.iter().all(ReservedBlock::is_let_go);
        assert!(
            let_go,
            "a batch of writes completed before it released its memory"
        );
        assert_eq!(report.blocks.len(), links.len(), "outcomes of writes");
        report.blocks.to_vec()
    }

    /// Reads a batch likewise. Checks the bytes of each hit, and its checksum unless the tier
    /// verifies.
    fn read(&self, links: &[ChainLink]) -> Vec<Result<(), TierMiss>> {
        let (reserved, blocks) = self.reads(links);
        let report = ended(&self.tier.read(blocks));
        let let_go = reserved.iter().all(ReservedBlock::is_let_go);
        assert!(
            let_go,
            "a batch of reads completed before it released its memory"
        );
        assert_eq!(report.blocks.len(), links.len(), "outcomes of reads");
        let verifies = self.tier.abilities().verifies;
        let ended = report.blocks.iter().zip(links).zip(&reserved);
        let right =
            |((outcome, link), reserved): ((&Result<ReadSuccess, TierMiss>, &ChainLink), _)| {
                let came = outcome.clone()?;
                let host = self.host_of(link.name.group);
                let found = host.bytes(reserved);
                let written = bytes_of(&link.name, host.block_bytes());
                assert_eq!(found, written, "{link:?}");
                let checksum = content_checksum(&link.name.key, link.position, &found);
                match came.checksum {
                    Some(came) => assert_eq!(came, checksum, "the checksum of {link:?}"),
                    None => assert!(verifies, "{link:?} was read without its checksum"),
                }
                Ok(())
            };
        ended.map(right).collect()
    }
}

/// Waits for the completion of a batch.
fn ended<T: Clone>(completion: &Completion<T>) -> T {
    match completion.wait_timeout(PATIENCE) {
        Some(end) => end,
        None => broken(format_args!("a batch did not complete within {PATIENCE:?}")),
    }
}

fn context_of(groups: Vec<TierGroup>, threads: usize) -> TierContext {
    let capacity = std::num::NonZeroUsize::MIN.saturating_add(1 << 16);
    let events = match EventLog::new(capacity) {
        Ok(events) => events,
        Err(error) => broken(format_args!("no event log: {error}")),
    };
    TierContext {
        groups,
        events: Arc::new(events),
        clock: Arc::new(SystemClock::default()),
        threads,
    }
}
