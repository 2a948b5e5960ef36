//! The fixed cost of a transfer: one block of one layer, from the call to its completion.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use kvtile::{
    layout::{LayoutError, PhysicalLayout, RangePair, Shape, Unit, Word},
    memory::SystemMemory,
    transfer::{FillPattern, LayoutHandle, TransferManager, TransferOptions},
};

use crate::{
    class::CopyClass,
    contender::{CopyMethod, manager_with},
    error::BenchError,
    matrix::PairPurpose,
    row::{BenchRow, SideMemory},
    settings::BenchSettings,
    times::{RoundTimes, seconds},
};
use kvtile_random::SplitMix64;

/// Bytes of one layer of a block, keys and values together, and the size of a head that results in
/// them.
pub(crate) const PAGES: [(u64, u64); 2] = [(512, 8), (32 << 10, 512)];

/// The layouts: an engine's, and one of blocks.
const SOURCE: &str = "L|KBNHC";
const DESTINATION: &str = "BLKNHC";

const BLOCKS: usize = 32;
const LAYERS: u64 = 4;
const PAGE_SIZE: u64 = 16;

/// Transfers in a round.
const REPEATS: u32 = 4096;

/// Number of rounds; results are their median.
const ROUNDS: u32 = 5;

/// Two layouts of one manager.
struct TransferPair {
    manager: TransferManager,
    source: LayoutHandle,
    destination: LayoutHandle,
}

/// Measures pages of `bytes`, with heads of `head_size` elements.
pub(crate) fn measure(
    (bytes, head_size): (u64, u64),
    settings: &BenchSettings,
) -> Result<BenchRow, BenchError> {
    let pair = TransferPair::new(head_size, settings.seed)?;
    let page = usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut source = SystemMemory::allocate(page * BLOCKS)?;
    let mut destination = SystemMemory::allocate(page * BLOCKS)?;
    SplitMix64::new(settings.seed).fill(source.as_mut_slice());
    let source = &*source.as_mut_slice();
    let destination = destination.as_mut_slice();
    let mut random = SplitMix64::new(settings.seed);
    let rounds = settings.rounds.unwrap_or(ROUNDS);
    let (mut ours, mut flat) = (RoundTimes::default(), RoundTimes::default());
    for round in 0..=rounds {
        let orders = (random.order(BLOCKS), random.order(BLOCKS));
        for turn in 0..2 {
            let (times, time) = match (round + turn) % 2 {
                0 => (&mut ours, pair.round(&orders)?),
                _ => (&mut flat, copies(page, &orders, source, destination)),
            };
            // The first round fills the caches and does not count.
            if round > 0 {
                times.add(time / REPEATS);
            }
        }
    }
    let nanoseconds = |times: &RoundTimes| seconds(times.median()) * 1e9;
    let runs = 2;
    Ok(BenchRow {
        source: SOURCE.to_owned(),
        destination: DESTINATION.to_owned(),
        purpose: PairPurpose::Extra,
        source_place: SideMemory::Cache,
        destination_place: SideMemory::Cache,
        part: None,
        model: "one block of one layer".to_owned(),
        method: CopyMethod::Kvtile,
        class: CopyClass::FixedCost,
        bytes,
        blocks: 1,
        layers: 1,
        page_size: PAGE_SIZE,
        runs,
        run_bytes: bytes / runs,
        run_bytes_min: bytes / runs,
        threads: 1,
        rounds,
        repeats: REPEATS,
        gb_per_s: ours.gb_per_s(bytes as f64),
        memcpy_gb_per_s: flat.gb_per_s(bytes as f64),
        ratio: nanoseconds(&flat) / nanoseconds(&ours),
        spread: ours.spread(),
        goal: None,
        ns_per_transfer: Some(nanoseconds(&ours)),
        memcpy_ns_per_transfer: Some(nanoseconds(&flat)),
        fio_gb_per_s: None,
        fio_ratio: None,
    })
}

impl TransferPair {
    fn new(head_size: u64, seed: u64) -> Result<TransferPair, BenchError> {
        let unit = Unit::raw(2)?;
        let shape = Shape::key_value(BLOCKS as u64, LAYERS, PAGE_SIZE, 1, head_size, &unit)?;
        let manager = manager_with(1);
        let register = |word: &str| -> Result<LayoutHandle, BenchError> {
            let word = Word::parse(word).map_err(LayoutError::from)?;
            let builder = PhysicalLayout::builder().with_shape(shape.clone());
            Ok(manager.register(builder.layout(word).allocate_system().build()?)?)
        };
        let (source, destination) = (register(SOURCE)?, register(DESTINATION)?);
        let all: Vec<usize> = (0..BLOCKS).collect();
        manager.fill(source, &all, FillPattern::Distinct { seed })?;
        manager.fill(destination, &all, FillPattern::Constant(0xa5))?;
        Ok(TransferPair {
            manager,
            source,
            destination,
        })
    }

    /// Transfers every layer of every block in turn, and then compares all blocks.
    fn round(&self, (from, to): &(Vec<usize>, Vec<usize>)) -> Result<Duration, BenchError> {
        let all: Vec<usize> = (0..BLOCKS).collect();
        let poison = FillPattern::Constant(0xa5);
        self.manager.fill(self.destination, &all, poison)?;
        let pairs = || from.iter().zip(to).cycle();
        let start = Instant::now();
        for (number, (from, to)) in (0..REPEATS).zip(pairs()) {
            // All blocks of one layer, then of the next.
            let layer = u64::from(number) / BLOCKS as u64 % LAYERS;
            let options = TransferOptions::new().layers(RangePair::same(layer, 1));
            let (source, destination) = ([*from], [*to]);
            self.manager
                .execute_transfer(
                    self.source,
                    &source,
                    self.destination,
                    &destination,
                    options,
                )?
                .wait()?;
        }
        let elapsed = start.elapsed();
        for (&from, &to) in from.iter().zip(to) {
            let expected = self.manager.block_digest(self.source, from)?;
            if self.manager.block_digest(self.destination, to)? != expected {
                return Err(BenchError::WrongCopy {
                    row: "fixed cost".to_owned(),
                    method: CopyMethod::Kvtile.name(),
                    block: to as u64,
                });
            }
        }
        Ok(elapsed)
    }
}

/// The same number of copies of the same number of bytes.
fn copies(
    page: usize,
    (from, to): &(Vec<usize>, Vec<usize>),
    source: &[u8],
    destination: &mut [u8],
) -> Duration {
    let start = Instant::now();
    for (_, (from, to)) in (0..REPEATS).zip(from.iter().zip(to).cycle()) {
        let from = source.get(from * page..(from + 1) * page);
        let to = destination.get_mut(to * page..(to + 1) * page);
        if let (Some(from), Some(to)) = (from, to) {
            to.copy_from_slice(black_box(from));
            black_box(to);
        }
    }
    start.elapsed()
}
