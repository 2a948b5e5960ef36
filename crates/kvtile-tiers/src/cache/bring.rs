//! Copies blocks from a tier to host memory: in batches, verified, and each block in a single
//! flight for all loads.

use std::{
    any::Any,
    sync::{Arc, Weak},
};

use kvtile_blocks::{
    BlockId, BlockKey,
    events::TierId,
    pool::{AllocateRequest, MutableBlocks, PinClaim, PinnedBlocks, TenantId},
};
use kvtile_layout::broken;
use kvtile_transfer::LeaseMode;

use super::{
    CacheParts,
    below::{CacheTier, name},
    demote,
    flights::BlockFlight,
    report::LoadStop,
};
use crate::{
    error::{RequestError, TierError},
    metrics::MissReason,
    room::chain_room,
    tier::{BlockRead, ReadReport, ReadSuccess, TierMiss, content_checksum},
};

/// A block of a tier to copy to host memory.
#[derive(Clone, Copy)]
pub(super) struct WantedBlock {
    pub(super) key: BlockKey,
    pub(super) parent: Option<BlockKey>,
    pub(super) position: u32,
    pub(super) tenant: u32,
}

/// The leading blocks of a batch, now in host memory.
#[derive(Default)]
pub(super) struct BroughtBlocks {
    /// Pins of the blocks, one guard a block.
    pub(super) blocks: Vec<PinnedBlocks>,
    /// How many of them were read; the others were already in host memory.
    pub(super) read: usize,
    /// Why the list ends before the batch.
    pub(super) stop: Option<LoadStop>,
}

/// A block of a batch: already in host memory, or to be read by this load.
pub(super) enum BringStep<'a> {
    There(PinnedBlocks),
    Read(BlockFlight<'a>),
}

/// Takes the flights of the leading blocks of one tenant, and pins those that are in host memory.
/// Returns a step for each block, and the missing blocks.
pub(super) fn board<'a>(
    inner: &'a CacheParts,
    wanted: &[WantedBlock],
) -> (Vec<BringStep<'a>>, Vec<WantedBlock>) {
    let tenant = wanted.first().map_or(0, |first| first.tenant);
    let same = wanted.iter().take_while(|block| block.tenant == tenant);
    let claim = PinClaim {
        now: inner.tick(),
        ..PinClaim::default()
    };
    let mut steps = Vec::with_capacity(wanted.len());
    let mut missing = Vec::new();
    for block in same {
        let flight = inner.flights.board(block.key);
        // Another load may have copied it while this one waited for the flight.
        let there = inner
            .host
            .pool
            .pin(std::slice::from_ref(&block.key), &claim);
        if there.blocks.is_empty() {
            missing.push(*block);
            steps.push(BringStep::Read(flight));
        } else {
            steps.push(BringStep::There(there.blocks));
        }
    }
    (steps, missing)
}

/// Allocates host blocks for the missing blocks of one tenant, or for as many as fit.
pub(super) fn host_room(inner: &CacheParts, missing: &[WantedBlock]) -> Option<MutableBlocks> {
    let first = missing.first()?;
    let request = AllocateRequest {
        tenant: TenantId(first.tenant),
        now: inner.tick(),
    };
    chain_room(missing.len(), |blocks| {
        demote::host_room(inner, blocks, &request)
    })
}

/// Copies the leading blocks of a list from a tier to host memory, as many as fit, and pins them
/// there.
///
/// Every load takes flights in the order of positions, which is the same for all loads of a block,
/// so loads cannot deadlock.
pub(super) fn bring(
    inner: &CacheParts,
    below: &CacheTier,
    wanted: &[WantedBlock],
) -> BroughtBlocks {
    let (steps, missing) = board(inner, wanted);
    let room = host_room(inner, &missing);
    let mut read = match room {
        Some(room) => read_into(inner, below, &missing, room),
        None => Vec::new(),
    }
    .into_iter();
    let mut brought = BroughtBlocks::default();
    for step in steps {
        match step {
            BringStep::There(block) => brought.blocks.push(block),
            BringStep::Read(flight) => {
                match read.next() {
                    Some(Ok(block)) => {
                        brought.blocks.push(block);
                        brought.read += 1;
                    }
                    Some(Err(stop)) => brought.stop = Some(stop),
                    None => brought.stop = Some(LoadStop::HostFull),
                }
                drop(flight);
            }
        }
        if brought.stop.is_some() {
            break;
        }
    }
    brought
}

/// Reads the leading blocks into `room`, as many as it holds, and registers them.
fn read_into(
    inner: &CacheParts,
    below: &CacheTier,
    blocks: &[WantedBlock],
    room: MutableBlocks,
) -> Vec<Result<PinnedBlocks, LoadStop>> {
    let (blocks, _) = blocks.split_at(room.len().min(blocks.len()));
    let ids = room.ids().to_vec();
    let room = Arc::new(room);
    let came = read(inner, below, blocks, &ids, &(Arc::clone(&room) as Arc<_>));
    let place: Weak<dyn Any + Send + Sync> = Arc::downgrade(&(Arc::clone(&room) as Arc<_>));
    let Ok(mut room) = Arc::try_unwrap(room) else {
        // The tier still holds the memory: it timed out, or did not drop the batch.
        below.is_late([place]);
        let stop = came.into_iter().find_map(Result::err);
        let stop = stop.unwrap_or(LoadStop::Late);
        return vec![Err(stop)];
    };
    let mut registered = Vec::with_capacity(came.len());
    for (block, came) in blocks.iter().zip(came) {
        let one = room.take(0..1);
        let block = came.and_then(|()| register(inner, block, one));
        let is_end = block.is_err();
        registered.push(block);
        if is_end {
            // No lookup would find the later blocks.
            break;
        }
    }
    registered
}

/// Registers a block that was read, so that lookups find it in host memory.
pub(super) fn register(
    inner: &CacheParts,
    wanted: &WantedBlock,
    room: MutableBlocks,
) -> Result<PinnedBlocks, LoadStop> {
    let [block] = *room.ids() else {
        broken(format_args!(
            "{} host blocks for block {}",
            room.len(),
            wanted.key
        ))
    };
    inner.host.describe(block, wanted.position, wanted.tenant);
    let complete = room.complete(std::slice::from_ref(&wanted.key), wanted.parent);
    let complete = complete.map_err(|rejected| LoadStop::Pool(rejected.error))?;
    let registered = complete.register(&PinClaim {
        now: inner.tick(),
        ..PinClaim::default()
    });
    inner.metrics.stored(TierId::HOST, 1);
    let registered = registered.map_err(|rejected| LoadStop::Pool(rejected.error))?;
    demote::anchor(inner, &registered.blocks, wanted.parent);
    Ok(registered.blocks)
}

/// Reads blocks of a tier into the host blocks `ids` and verifies them. Returns the outcomes in
/// their order. `place` keeps the host blocks from being reused while the tier holds them.
pub(super) fn read(
    inner: &CacheParts,
    below: &CacheTier,
    blocks: &[WantedBlock],
    ids: &[BlockId],
    place: &Arc<dyn Any + Send + Sync>,
) -> Vec<Result<(), LoadStop>> {
    let mut reads = Vec::with_capacity(blocks.len());
    for (block, &id) in blocks.iter().zip(ids) {
        let lent = (id, LeaseMode::Write);
        match inner.host.lend(&inner.manager, lent, Arc::clone(place)) {
            Ok(into) => reads.push(BlockRead {
                name: name(block.key),
                into,
            }),
            Err(error) => return vec![Err(stop_of(error))],
        }
    }
    let report = match below.read(reads) {
        Ok(report) => report,
        Err(error) => return vec![Err(failed(inner, below, (&error, blocks.len()), place))],
    };
    below.reads.succeeded(inner.clock.now());
    settle(inner, below, blocks, ids, &report)
}

/// Counts a batch that failed or timed out. The tier may still hold the host memory that `place`
/// keeps.
pub(super) fn failed(
    inner: &CacheParts,
    below: &CacheTier,
    (error, blocks): (&TierError, usize),
    place: &Arc<dyn Any + Send + Sync>,
) -> LoadStop {
    inner.metrics.move_failed(below.id, TierId::HOST);
    below.is_late([Arc::downgrade(place)]);
    below.reads.failed(inner.clock.now(), error);
    let (reason, stop) = match error {
        TierError::Request(RequestError::Late { .. }) => (MissReason::Late, LoadStop::Late),
        _ => (MissReason::ReadFailed, LoadStop::Lost),
    };
    inner.metrics.lost(reason, blocks as u64);
    stop
}

/// Counts the outcomes of a batch, and verifies the blocks that the tier does not verify.
fn settle(
    inner: &CacheParts,
    below: &CacheTier,
    blocks: &[WantedBlock],
    ids: &[BlockId],
    report: &ReadReport,
) -> Vec<Result<(), LoadStop>> {
    let ended = blocks.iter().zip(ids).zip(report.blocks.iter());
    let verified = ended.map(|((block, &id), outcome)| match outcome {
        Ok(came) => verify(inner, below, block, id, *came),
        Err(miss) => Err(miss.clone()),
    });
    let verified: Vec<Result<(), TierMiss>> = verified.collect();
    let came = verified.iter().filter(|block| block.is_ok()).count() as u64;
    if came > 0 {
        let route = (below.id, TierId::HOST);
        inner.moved(route, came, came * inner.block_bytes, report.elapsed);
        inner.metrics.checked(below.id, came, 0);
    }
    let lost = |miss| lost(inner, below, &miss);
    verified
        .into_iter()
        .map(|block| block.map_err(lost))
        .collect()
}

/// Compares a block that the tier did not verify with the checksum that was written with it. A
/// mismatch removes the block from the tier.
fn verify(
    inner: &CacheParts,
    below: &CacheTier,
    wanted: &WantedBlock,
    id: BlockId,
    came: ReadSuccess,
) -> Result<(), TierMiss> {
    if below.abilities.verifies {
        return Ok(());
    }
    let damaged = |what: &str| {
        below.tier.forget(super::below::GROUP, &[wanted.key]);
        below.spill.touched(inner.clock.now());
        Err(TierMiss::Damaged {
            what: what.to_owned(),
        })
    };
    let Some(checksum) = came.checksum else {
        return damaged("it came without its checksum");
    };
    let place: Arc<dyn Any + Send + Sync> = Arc::new(());
    let lent = inner
        .host
        .lend(&inner.manager, (id, LeaseMode::Read), place);
    let lent = lent.map_err(TierMiss::Failed)?;
    let bytes = lent
        .bytes()
        .map_err(|error| TierMiss::Failed(error.into()))?;
    match content_checksum(&wanted.key, wanted.position, bytes) == checksum {
        true => Ok(()),
        false => damaged("it fails its checksum"),
    }
}

/// Counts a block that was not read, and maps the miss to a stop reason.
pub(super) fn lost(inner: &CacheParts, below: &CacheTier, miss: &TierMiss) -> LoadStop {
    inner.metrics.move_failed(below.id, TierId::HOST);
    match miss {
        TierMiss::Absent => {
            inner.metrics.lost(MissReason::Evicted, 1);
            return LoadStop::Evicted;
        }
        TierMiss::Damaged { .. } => {
            inner.metrics.checked(below.id, 1, 1);
            inner.metrics.lost(MissReason::Checksum, 1);
        }
        TierMiss::Failed(error) => {
            inner.metrics.lost(MissReason::ReadFailed, 1);
            below.spill.touched(inner.clock.now());
            return match error {
                TierError::Request(RequestError::Panicked { .. }) => LoadStop::Panicked,
                TierError::Request(RequestError::Closed) => LoadStop::Closed,
                _ => LoadStop::Lost,
            };
        }
    }
    below.spill.touched(inner.clock.now());
    LoadStop::Lost
}

pub(super) fn stop_of(error: TierError) -> LoadStop {
    match error {
        TierError::Transfer(error) => LoadStop::Transfer(error),
        _ => LoadStop::Lost,
    }
}
