//! Layered loads, from a tier to the engine: the first layers of all blocks are copied while the
//! later ones are being read.
//!
//! ```text
//! tier      read 0 │ read 1 │ read 2 │ read 3          a read: some layers of every block
//! engine           │ copy 0 │ copy 1 │ copy 2 │ copy 3
//! ```
//!
//! A read covers whole pieces, so the tier verifies each read by itself. The first one has the first
//! layer alone, because the engine's step waits for it. Two reads are in flight at a time, so that the
//! device stays busy while one of them ends. Lookups find a block in host memory after its last layer
//! was read.

use std::{
    any::Any,
    collections::VecDeque,
    ops::Range,
    sync::{Arc, Weak},
    time::Duration,
};

use kvtile_blocks::{
    BlockId,
    events::TierId,
    pool::{MutableBlocks, PinnedBlocks},
};
use kvtile_layout::broken;
use kvtile_transfer::completion::Completion;

use super::{
    CacheParts,
    below::{CacheTier, name},
    bring::{self, BringStep, BroughtBlocks, WantedBlock},
    report::LoadStop,
};
use crate::tier::{BlockRead, ReadReport};

/// The smallest read in bytes; smaller ones cost more time than they save.
const CHUNK_BYTES_MIN: u64 = 4 << 20;

/// The largest number of reads of a load.
const CHUNKS_MAX: u64 = 8;

/// Reads in flight at a time.
const READS_AHEAD: usize = 2;

/// Called with the leading host blocks and the layers that were read.
pub(super) type LayersArrived<'a> = dyn FnMut(&[BlockId], &Range<u64>) -> Result<(), LoadStop> + 'a;

/// Some layers of every block of a load: the unit of reading and copying.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LayerChunk {
    pub(super) layers: Range<u64>,
    /// The bytes of these layers, relative to the start of a block.
    bytes: Range<u64>,
}

/// The chunks of a layered load of `blocks` blocks of a tier. The list is empty if the blocks are
/// read whole: the tier does not read pieces, the layers of a block are not contiguous, or the load
/// is too small for several reads.
pub(super) fn chunks(inner: &CacheParts, below: &CacheTier, blocks: usize) -> Vec<LayerChunk> {
    let pieces = &inner.pieces;
    let bytes = inner.block_bytes.saturating_mul(blocks as u64);
    let cuts = pieces.layer_cuts();
    let most = CHUNKS_MAX.min(cuts.len() as u64);
    let count = (bytes / CHUNK_BYTES_MIN).min(most);
    let count = usize::try_from(count).unwrap_or(0);
    if !below.abilities.reads_pieces || count < 2 {
        return Vec::new();
    }
    let ends = chunk_ends(&cuts, count);
    let mut before = 0;
    let mut chunks = Vec::with_capacity(ends.len());
    for end in ends {
        let which = before..end;
        let Some(layers) = pieces.layers(which.clone()) else {
            // Each cut is the end of a layer.
            broken(format_args!("{pieces:?} have no layers {which:?}"));
        };
        chunks.push(LayerChunk {
            layers,
            bytes: pieces.bytes(which),
        });
        before = end;
    }
    chunks
}

/// The ends of the chunks, in pieces: `count` about equal ones, and the first cut, because the
/// engine's step cannot begin before it has the first layer.
fn chunk_ends(cuts: &[usize], count: usize) -> Vec<usize> {
    let equal = (1..=count).map(|chunk| chunk * cuts.len() / count);
    let first = (cuts.len() / count > 1).then_some(1);
    let nth = |number: usize| cuts.get(number.checked_sub(1)?).copied();
    first.into_iter().chain(equal).filter_map(nth).collect()
}

/// One chunk with all layers.
pub(super) fn whole(inner: &CacheParts) -> Vec<LayerChunk> {
    vec![LayerChunk {
        layers: 0..inner.layers as u64,
        bytes: 0..inner.block_bytes,
    }]
}

/// A block to read: its index in the load, and its host block.
struct BlockReading {
    at: usize,
    wanted: WantedBlock,
    id: BlockId,
}

/// A read in flight.
struct ReadInFlight {
    layers: Range<u64>,
    bytes: u64,
    /// Number of leading blocks that the read covers, of those to be read.
    blocks: usize,
    read: Completion<ReadReport>,
}

/// The reads of a load.
struct LayeredReads<'a> {
    inner: &'a CacheParts,
    below: &'a CacheTier,
    reading: Vec<BlockReading>,
    chunks: VecDeque<LayerChunk>,
    under_way: VecDeque<ReadInFlight>,
    /// Keeps the host blocks from being reused while the tier holds them.
    place: Arc<dyn Any + Send + Sync>,
    /// Leading blocks of the load that arrived so far, including those that were in host memory.
    came: usize,
    stop: Option<LoadStop>,
    bytes: u64,
    elapsed: Duration,
}

/// Copies the leading blocks of a list from a tier to host memory, as many as fit, and pins them
/// there. Whenever some layers of the leading blocks have arrived, it calls `arrived` with these
/// blocks and layers. An error of `arrived` ends the load before its first block.
pub(super) fn bring(
    inner: &CacheParts,
    below: &CacheTier,
    (wanted, chunks): (&[WantedBlock], Vec<LayerChunk>),
    arrived: &mut LayersArrived<'_>,
) -> BroughtBlocks {
    let (steps, missing) = bring::board(inner, wanted);
    let room = bring::host_room(inner, &missing);
    let (ids, reading) = places(&steps, &missing, room.as_ref());
    let full = (ids.len() < steps.len()).then_some(LoadStop::HostFull);
    let Some(room) = room.filter(|_| !reading.is_empty()) else {
        // All available blocks are already in host memory.
        let layers = 0..inner.layers as u64;
        let stop = match ids.is_empty() {
            true => full,
            false => arrived(&ids, &layers).err().or(full),
        };
        let came = match &stop {
            None | Some(LoadStop::HostFull) => ids.len(),
            Some(_) => 0,
        };
        return brought(steps, came, Vec::new(), stop);
    };
    let room = Arc::new(room);
    let mut reads = LayeredReads {
        inner,
        below,
        reading,
        chunks: chunks.into(),
        under_way: VecDeque::new(),
        place: Arc::clone(&room) as Arc<_>,
        came: ids.len(),
        stop: full,
        bytes: 0,
        elapsed: Duration::ZERO,
    };
    reads.run(&ids, arrived);
    let (registered, came, stop) = reads.end(room);
    brought(steps, came, registered, stop)
}

/// The host blocks of the leading steps, as many as fit, and those of them that must be read.
fn places(
    steps: &[BringStep<'_>],
    missing: &[WantedBlock],
    room: Option<&MutableBlocks>,
) -> (Vec<BlockId>, Vec<BlockReading>) {
    let mut free = missing
        .iter()
        .zip(room.map_or(&[][..], |room| room.ids()))
        .map(|(wanted, id)| (*wanted, *id));
    let (mut ids, mut reading) = (Vec::with_capacity(steps.len()), Vec::new());
    for (at, step) in steps.iter().enumerate() {
        match step {
            BringStep::There(block) => ids.extend(block.ids()),
            BringStep::Read(_) => {
                let Some((wanted, id)) = free.next() else {
                    break;
                };
                ids.push(id);
                reading.push(BlockReading { at, wanted, id });
            }
        }
    }
    (ids, reading)
}

impl LayeredReads<'_> {
    /// Reads all chunks. On return no read is in flight, unless it timed out, and each of the
    /// leading blocks that arrived has all of its layers.
    fn run(&mut self, ids: &[BlockId], arrived: &mut LayersArrived<'_>) {
        let layers = self.inner.layers as u64;
        let mut delivered = 0;
        while self.under_way.len() < READS_AHEAD && self.begin() {}
        while let Some(read) = self.under_way.pop_front() {
            self.take(&read);
            if matches!(self.stop, Some(LoadStop::Late)) {
                // The other reads wait for the same tier, and it keeps their memory.
                self.under_way.drain(..).for_each(|read| read.read.cancel());
                break;
            }
            self.begin();
            self.deliver(ids, &read.layers, arrived);
            delivered = read.layers.end;
        }
        if delivered < layers {
            // Some layers were not read, so only blocks that were already in host memory count.
            let first = self.reading.first().map_or(0, |reading| reading.at);
            self.came = self.came.min(first);
            assert!(
                self.stop.is_some(),
                "{delivered} of {layers} layers were read, and nothing stopped the load"
            );
            self.deliver(ids, &(delivered..layers), arrived);
        }
    }

    /// Passes layers of the leading blocks to `arrived`.
    fn deliver(&mut self, ids: &[BlockId], layers: &Range<u64>, arrived: &mut LayersArrived<'_>) {
        let (leading, _) = ids.split_at(self.came.min(ids.len()));
        if leading.is_empty() {
            return;
        }
        if let Err(stop) = arrived(leading, layers) {
            (self.came, self.stop) = (0, Some(stop));
        }
    }

    /// Starts the next read, for the blocks that arrived so far. Returns whether it started one.
    fn begin(&mut self) -> bool {
        let came = self.came;
        let blocks = self.reading.partition_point(|reading| reading.at < came);
        if blocks == 0 {
            return false;
        }
        let Some(chunk) = self.chunks.pop_front() else {
            return false;
        };
        let mut batch = Vec::with_capacity(blocks);
        for reading in self.reading.iter().take(blocks) {
            let part = (reading.id, chunk.layers.clone(), chunk.bytes.start);
            let host = &self.inner.host;
            match host.lend_layers(&self.inner.manager, part, Arc::clone(&self.place)) {
                Ok(into) => batch.push(BlockRead {
                    name: name(reading.wanted.key),
                    into,
                }),
                Err(error) => {
                    let at = reading.at;
                    self.ends_at(at, bring::stop_of(error));
                    // The chunk is still to be read, for fewer blocks.
                    self.chunks.push_front(chunk);
                    return false;
                }
            }
        }
        self.under_way.push_back(ReadInFlight {
            layers: chunk.layers,
            bytes: chunk.bytes.end - chunk.bytes.start,
            blocks,
            read: self.below.tier.read(batch),
        });
        true
    }

    /// Waits for a read, and records its outcomes.
    fn take(&mut self, read: &ReadInFlight) {
        let (inner, below) = (self.inner, self.below);
        let report = match below.end_read(&read.read, read.blocks) {
            Ok(report) => report,
            Err(error) => {
                let stop = bring::failed(inner, below, (&error, read.blocks), &self.place);
                let first = self.reading.first().map_or(0, |reading| reading.at);
                self.ends_at(first, stop);
                return;
            }
        };
        below.reads.succeeded(inner.clock.now());
        self.elapsed += report.elapsed;
        let mut stops = Vec::new();
        for (reading, outcome) in self.reading.iter().zip(report.blocks.iter()) {
            match outcome {
                Ok(_) => self.bytes += read.bytes,
                // An earlier read already counted this block as missed.
                Err(_) if reading.at >= self.came => {}
                Err(miss) => stops.push((reading.at, bring::lost(inner, below, miss))),
            }
        }
        for (at, stop) in stops {
            self.ends_at(at, stop);
        }
    }

    /// Ends the load before the block at index `at`.
    fn ends_at(&mut self, at: usize, stop: LoadStop) {
        if at < self.came {
            (self.came, self.stop) = (at, Some(stop));
        }
    }

    /// Registers the blocks that arrived with all of their layers. Returns these, the number of
    /// leading blocks of the load that arrived, and why it ended early.
    fn end(self, room: Arc<MutableBlocks>) -> (Vec<PinnedBlocks>, usize, Option<LoadStop>) {
        let LayeredReads {
            inner,
            below,
            reading,
            place,
            mut came,
            mut stop,
            bytes,
            elapsed,
            ..
        } = self;
        let first = reading.first().map_or(0, |reading| reading.at);
        let late: Weak<dyn Any + Send + Sync> = Arc::downgrade(&place);
        drop(place);
        let Ok(mut room) = Arc::try_unwrap(room) else {
            // The tier still holds the memory: it timed out, or did not drop the batch.
            below.is_late([late]);
            return (Vec::new(), first.min(came), stop.or(Some(LoadStop::Late)));
        };
        let mut registered = Vec::with_capacity(reading.len());
        for reading in reading.iter().filter(|reading| reading.at < came) {
            match bring::register(inner, &reading.wanted, room.take(0..1)) {
                Ok(block) => registered.push(block),
                Err(why) => {
                    // No lookup would find the later blocks.
                    (came, stop) = (reading.at, Some(why));
                    break;
                }
            }
        }
        let read = registered.len() as u64;
        if bytes > 0 {
            inner.moved((below.id, TierId::HOST), read, bytes, elapsed);
            inner.metrics.checked(below.id, read, 0);
        }
        (registered, came, stop)
    }
}

/// Assembles the leading blocks that arrived, in order.
fn brought(
    steps: Vec<BringStep<'_>>,
    came: usize,
    registered: Vec<PinnedBlocks>,
    stop: Option<LoadStop>,
) -> BroughtBlocks {
    let read = registered.len();
    let mut registered = registered.into_iter();
    let mut blocks = Vec::with_capacity(came);
    for step in steps.into_iter().take(came) {
        match step {
            BringStep::There(block) => blocks.push(block),
            BringStep::Read(flight) => {
                match registered.next() {
                    Some(block) => blocks.push(block),
                    None => broken(format_args!(
                        "a block of {came} that came is not registered"
                    )),
                }
                drop(flight);
            }
        }
    }
    BroughtBlocks { blocks, read, stop }
}

#[cfg(test)]
mod tests {
    use super::chunk_ends;

    #[test]
    fn the_first_layer_is_a_chunk_of_its_own_and_the_others_are_equal() {
        let each: Vec<usize> = (1..=30).collect();
        assert_eq!(
            chunk_ends(&each, 8),
            [1, 3, 7, 11, 15, 18, 22, 26, 30],
            "30 layers of one piece"
        );
        assert_eq!(
            chunk_ends(&[3, 6, 9, 12], 2),
            [3, 6, 12],
            "three pieces a layer"
        );
        assert_eq!(chunk_ends(&[2, 4], 2), [2, 4], "each chunk is a layer");
        assert_eq!(chunk_ends(&[8, 16, 24], 3), [8, 16, 24]);
    }

    #[test]
    fn chunks_end_at_cuts_and_cover_all_pieces() {
        for layers in 2..70 {
            let cuts: Vec<usize> = (1..=layers).map(|layer| layer * 5).collect();
            for count in 2..=layers.min(8) {
                let ends = chunk_ends(&cuts, count);
                assert!(ends.is_sorted_by(|one, next| one < next), "{ends:?}");
                assert!(ends.iter().all(|end| cuts.contains(end)), "{ends:?}");
                assert_eq!(ends.first(), cuts.first());
                assert_eq!(ends.last(), cuts.last());
                assert!(ends.len() <= count + 1);
            }
        }
    }
}
