//! The conformance suite of tiers: what the contract of [`kvtile_tiers::tier`] says, checked on a tier that the
//! caller opens. Each check gets a place of its own, and stops with a panic at the first sentence that does not
//! hold.
#![expect(
    clippy::indexing_slicing,
    reason = "a check that goes past the end of an answer has found a fault and panics as all checks do"
)]

mod batches;
mod content;
mod keeping;
mod model;
mod room;

use std::{collections::HashMap, sync::Arc, time::Duration};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{EventLog, Mirror, StoredBlock, Subscriber},
    pool::Claim,
};
use kvtile_layout::broken;
use kvtile_tiers::{
    cache::SystemClock,
    tier::{
        BlockName, BlockRead, BlockWrite, Came, GroupId, Hold, NotWritten, Tier, TierContext,
        TierMiss, Wrote, content_checksum,
    },
};

use kvtile_transfer::completion::Completion;

use super::{HostMemory, ReservedBlock, content as bytes_of};

/// Opens a tier in one place; again once the tier before was dropped, and then with what outlived that one.
pub type OpenTierAt = Box<dyn Fn(&TierContext) -> Arc<dyn Tier>>;

/// Host blocks of a check: more than a tier of the suite has room for.
const HOST_BLOCKS: usize = 160;

/// Most blocks that a tier of the suite may have room for, and fewest.
const ROOM: std::ops::RangeInclusive<u64> = 24..=96;

/// How long a batch may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// The group that every tier has.
const GROUP: GroupId = GroupId(0);

/// Checks a tier with so many threads. `new_place` makes an empty place for a tier with room for 24 to 96 blocks.
///
/// # Panics
/// At the first sentence of the contract that does not hold. What was checked last is on the standard output.
pub fn check_tier(threads: usize, new_place: &dyn Fn() -> OpenTierAt) {
    let checks = content::CHECKS
        .iter()
        .chain(room::CHECKS)
        .chain(keeping::CHECKS)
        .chain(batches::CHECKS)
        .chain(model::CHECKS);
    for (name, check) in checks {
        println!("{name}");
        let mut rig = Rig::new(threads, new_place());
        check(&mut rig);
        rig.check();
        assert!(
            rig.host.wait_until_free(PATIENCE),
            "{name}: host memory was not given back"
        );
    }
}

/// A check and what it says.
type Check = (&'static str, fn(&mut Rig));

/// A tier with what it needs, and what its events have said.
struct Rig {
    open: OpenTierAt,
    context: TierContext,
    host: HostMemory,
    /// None only while it is opened again.
    opened: Option<Arc<dyn Tier>>,
    subscriber: Subscriber,
    mirror: Mirror,
}

/// A block to write: its key, the one before it, and how many are before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Link {
    name: BlockName,
    parent: Option<BlockKey>,
    position: u32,
}

/// The blocks of a chain.
fn chain(number: u8, blocks: usize) -> Vec<Link> {
    chain_of(GROUP, number, blocks)
}

fn chain_of(group: GroupId, number: u8, blocks: usize) -> Vec<Link> {
    let key = |position: u32| {
        let mut bytes = [number; 16];
        bytes[..4].copy_from_slice(&position.to_le_bytes());
        BlockKey::from_bytes(bytes)
    };
    let link = |(position, _): (u32, usize)| Link {
        name: BlockName {
            group,
            key: key(position),
        },
        parent: position.checked_sub(1).map(key),
        position,
    };
    (0..).zip(0..blocks).map(link).collect()
}

fn keys(links: &[Link]) -> Vec<BlockKey> {
    links.iter().map(|link| link.name.key).collect()
}

/// The tenant of all blocks of the suite.
const TENANT: u32 = 7;

impl Rig {
    fn new(threads: usize, open: OpenTierAt) -> Rig {
        let host = match HostMemory::new(HOST_BLOCKS) {
            Ok(host) => host,
            Err(error) => broken(format_args!("no host memory: {error}")),
        };
        let context = context_of(&host, threads);
        let tier = open(&context);
        let subscriber = context.events.subscribe();
        let rig = Rig {
            open,
            context,
            host,
            opened: Some(tier),
            subscriber,
            mirror: Mirror::new(),
        };
        let stats = rig.tier().stats();
        assert_eq!(stats.present, 0, "a new place is not empty");
        if rig.tier().abilities().is_bounded {
            assert!(ROOM.contains(&stats.capacity), "{stats:?}");
        }
        rig
    }

    /// The tier is dropped and opened again.
    fn reopen(&mut self) {
        drop(self.opened.take());
        self.context = context_of(&self.host, self.context.threads);
        self.opened = Some((self.open)(&self.context));
        // What it found when it was opened has no events.
        self.subscriber = self.context.events.subscribe();
        let snapshot = self.context.events.snapshot(|list| self.tier().list(list));
        self.mirror = Mirror::from_snapshot(&snapshot);
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

    fn hands(&self) -> Hands<'_> {
        Hands {
            tier: self.tier(),
            host: &self.host,
        }
    }

    /// Writes a batch and waits for it: the outcomes.
    fn write(&self, links: &[Link]) -> Vec<Result<Wrote, NotWritten>> {
        self.hands().write(links)
    }

    /// Writes blocks that must all be new.
    fn write_new(&self, links: &[Link]) {
        for (outcome, link) in self.write(links).iter().zip(links) {
            assert!(matches!(outcome, Ok(Wrote::New)), "{link:?}: {outcome:?}");
        }
    }

    /// Reads a batch and waits for it: the outcomes.
    fn read(&self, links: &[Link]) -> Vec<Result<(), TierMiss>> {
        self.hands().read(links)
    }

    /// Reads blocks that must all come.
    fn read_all(&self, links: &[Link]) {
        for (outcome, link) in self.read(links).iter().zip(links) {
            assert!(outcome.is_ok(), "{link:?}: {outcome:?}");
        }
    }

    /// Reads blocks of which none may come.
    fn read_none(&self, links: &[Link]) {
        for (outcome, link) in self.read(links).iter().zip(links) {
            let is_absent = matches!(outcome, Err(TierMiss::Absent));
            assert!(is_absent, "{link:?}: {outcome:?}");
        }
    }

    fn hold(&self, links: &[Link]) -> Option<Box<dyn Hold>> {
        self.tier().hold(GROUP, &keys(links))
    }

    fn find(&self, links: &[Link]) -> Option<Box<dyn Hold>> {
        self.tier().find(GROUP, &keys(links), &Claim::default())
    }

    /// Leading blocks that the tier has, by all of its answers.
    fn leading(&self, links: &[Link]) -> usize {
        let of = |hold: Option<Box<dyn Hold>>| hold.map_or(0, |hold| hold.blocks());
        let asked = ended(&self.tier().ask(GROUP, &keys(links)));
        assert!(asked.failure.is_none(), "{asked:?}");
        let held = of(self.hold(links));
        assert_eq!(asked.leading, held, "asked and held");
        assert_eq!(of(self.find(links)), held, "found and held");
        let has = |link: &&Link| self.tier().has(GROUP, &link.name.key);
        assert_eq!(links.iter().take_while(has).count(), held, "has and held");
        held
    }

    /// What does not change with what a check did: the tier's parts fit each other, its list, its events and
    /// its answers agree, and the blocks that left and those that are there are those that came.
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
            assert!(there, "{block:?} is not there");
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

    /// Gives up everything that is not in use.
    fn clear(&self) -> usize {
        self.tier().clear(Tick(0))
    }
}

/// What threads that share a tier have of a rig.
#[derive(Clone, Copy)]
struct Hands<'a> {
    tier: &'a dyn Tier,
    host: &'a HostMemory,
}

impl Hands<'_> {
    fn writes(&self, links: &[Link]) -> (Vec<ReservedBlock>, Vec<BlockWrite>) {
        let write = |link: &Link| {
            let (reserved, from) = self.host.filled(&link.name);
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

    fn reads(&self, links: &[Link]) -> (Vec<ReservedBlock>, Vec<BlockRead>) {
        let read = |link: &Link| {
            let (reserved, into) = self.host.empty();
            let name = link.name;
            (reserved, BlockRead { name, into })
        };
        links.iter().map(read).unzip()
    }

    /// Writes a batch and waits for it. There is one outcome for each block, and the tier has let go of the host
    /// memory by then.
    fn write(&self, links: &[Link]) -> Vec<Result<Wrote, NotWritten>> {
        let (reserved, blocks) = self.writes(links);
        let report = ended(&self.tier.write(blocks));
        let let_go = reserved.iter().all(ReservedBlock::is_let_go);
        assert!(
            let_go,
            "a batch of writes ended before its memory was let go of"
        );
        assert_eq!(report.blocks.len(), links.len(), "outcomes of writes");
        report.blocks.to_vec()
    }

    /// The same for reads. What came is what was written, and has its checksum where the tier does not verify.
    fn read(&self, links: &[Link]) -> Vec<Result<(), TierMiss>> {
        let (reserved, blocks) = self.reads(links);
        let report = ended(&self.tier.read(blocks));
        let let_go = reserved.iter().all(ReservedBlock::is_let_go);
        assert!(
            let_go,
            "a batch of reads ended before its memory was let go of"
        );
        assert_eq!(report.blocks.len(), links.len(), "outcomes of reads");
        let verifies = self.tier.abilities().verifies;
        let ended = report.blocks.iter().zip(links).zip(&reserved);
        let right = |((outcome, link), reserved): ((&Result<Came, TierMiss>, &Link), _)| {
            let came = outcome.clone()?;
            let found = self.host.bytes(reserved);
            let written = bytes_of(&link.name, self.host.block_bytes());
            assert_eq!(found, written, "{link:?}");
            let checksum = content_checksum(&link.name.key, link.position, &found);
            match came.checksum {
                Some(came) => assert_eq!(came, checksum, "the checksum of {link:?}"),
                None => assert!(verifies, "{link:?} came without its checksum"),
            }
            Ok(())
        };
        ended.map(right).collect()
    }
}

/// The end of a batch.
fn ended<T: Clone>(completion: &Completion<T>) -> T {
    match completion.wait_timeout(PATIENCE) {
        Some(end) => end,
        None => broken(format_args!("a batch did not end within {PATIENCE:?}")),
    }
}

fn context_of(host: &HostMemory, threads: usize) -> TierContext {
    let capacity = std::num::NonZeroUsize::MIN.saturating_add(1 << 16);
    let events = match EventLog::new(capacity) {
        Ok(events) => events,
        Err(error) => broken(format_args!("no event log: {error}")),
    };
    TierContext {
        identity: host.identity().clone(),
        events: Arc::new(events),
        clock: Arc::new(SystemClock::default()),
        threads,
    }
}
