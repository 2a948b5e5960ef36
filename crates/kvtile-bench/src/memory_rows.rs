//! Cells of the matrix: copies blocks from memory to memory with every contender in turn.
//!
//! ```text
//! uncounted round   each contender: poison the destination, copy, compare every block
//! counted rounds    fresh orders; each contender, a different one first each time:
//!                   poison the destination, copy (timed), compare a sample of the blocks
//! ```

use std::time::Duration;

use kvtile::layout::{CopyPlan, Selection};

use crate::{
    arena::{ArenaPacking, Arenas},
    class::CopyClass,
    contender::{BlockOrders, CellSides, Contender, CopyLoop, CopyMethod, FlatCopy, Transfers},
    error::BenchError,
    matrix::BenchCell,
    rivals::arrays::ArrayAssign,
    row::{BenchRow, SideMemory},
    settings::BenchSettings,
    times::RoundTimes,
    walk::BlockWalk,
};
use kvtile_random::SplitMix64;

/// Blocks to compare after each counted round.
const SAMPLED: usize = 4;

/// Shortest round; shorter copies are repeated.
const ROUND_TIME: Duration = Duration::from_millis(2);

/// Most transfers in a round.
const REPEATS_MAX: u32 = 20_000;

/// The common fields of the rows of a cell.
struct CellContext<'a> {
    cell: &'a BenchCell,
    orders: BlockOrders,
    class: CopyClass,
    runs: u64,
    run_bytes: (u64, u64),
    repeats: u32,
}

/// Measures a cell.
pub(crate) fn measure(
    cell: &BenchCell,
    settings: &BenchSettings,
    arenas: &mut Arenas,
) -> Result<Vec<BenchRow>, BenchError> {
    let sides = CellSides {
        source: (cell.source.clone(), ArenaPacking::new(&cell.source)?),
        destination: (
            cell.destination.clone(),
            ArenaPacking::new(&cell.destination)?,
        ),
        heads: cell.heads,
    };
    let walk = BlockWalk::new(
        (&sides.source.0, &sides.source.1),
        (&sides.destination.0, &sides.destination.1),
        cell.heads,
    );
    let bytes = usize::try_from(cell.bytes()?).unwrap_or(usize::MAX);
    let mut contenders: Vec<Box<dyn Contender + '_>> =
        vec![Box::new(FlatCopy { bytes, threads: 1 })];
    // In the cache, handing parts to other threads takes longer than the copy.
    for &threads in settings
        .threads
        .iter()
        .filter(|&&n| n == 1 || !cell.in_cache)
    {
        contenders.push(Box::new(Transfers::new(&sides, threads)));
    }
    if settings.compare {
        contenders.push(Box::new(CopyLoop { walk: &walk }));
        if let Some(arrays) = ArrayAssign::new(&sides) {
            contenders.push(Box::new(arrays));
        }
    }
    let mut random = SplitMix64::new(settings.seed);
    let mut round = ContenderRound {
        walk: &walk,
        label: cell.label(),
        poisoned: bytes.max(sides.destination.1.bytes()),
    };
    let mut common = CellContext::new(cell, orders(settings, &mut random, cell))?;
    let rounds = warm_up(&mut contenders, arenas, &mut common, &mut round, settings)?;
    let mut times = vec![RoundTimes::default(); contenders.len()];
    for number in 0..rounds as usize {
        common.orders = orders(settings, &mut random, cell);
        for turn in 0..contenders.len() {
            let turn = (turn + number) % contenders.len();
            if let (Some(contender), Some(times)) = (contenders.get_mut(turn), times.get_mut(turn))
            {
                times.add(round.run(contender.as_mut(), arenas, &common, SAMPLED)?);
            }
        }
    }
    let Some(flat) = times.first() else {
        return Ok(Vec::new());
    };
    let measured = contenders.iter().zip(&times).skip(1);
    measured
        .map(|(contender, times)| common.row(contender.as_ref(), times, flat, rounds))
        .collect()
}

/// The block orders of a round.
fn orders(settings: &BenchSettings, random: &mut SplitMix64, cell: &BenchCell) -> BlockOrders {
    let blocks = usize::try_from(cell.source.shape().num_blocks()).unwrap_or(usize::MAX);
    if settings.consecutive {
        let all: Vec<usize> = (0..blocks).collect();
        return BlockOrders {
            source: all.clone(),
            destination: all,
        };
    }
    BlockOrders {
        source: random.order(blocks),
        destination: random.order(blocks),
    }
}

/// The uncounted round: warms up memory and clock, compares every block, and finds the repetitions
/// of a short copy and the number of rounds that the time allows.
fn warm_up(
    contenders: &mut [Box<dyn Contender + '_>],
    arenas: &mut Arenas,
    common: &mut CellContext<'_>,
    round: &mut ContenderRound<'_>,
    settings: &BenchSettings,
) -> Result<u32, BenchError> {
    let mut copying = Duration::ZERO;
    for (number, contender) in contenders.iter_mut().enumerate() {
        let mut elapsed = round.run(contender.as_mut(), arenas, common, usize::MAX)?;
        if number == 0 && elapsed < ROUND_TIME {
            // The very first copy is slower than later ones: measure it again.
            elapsed = round.run(contender.as_mut(), arenas, common, 0)?;
            let repeats = ROUND_TIME.as_secs_f64() / crate::times::seconds(elapsed);
            let fits = |n: &u32| f64::from(*n) <= repeats;
            common.repeats = (0..15).map(|n| 1 << n).filter(fits).max().unwrap_or(1);
            common.repeats = common.repeats.min(REPEATS_MAX);
        }
        copying += elapsed;
    }
    Ok(settings.rounds(copying * common.repeats))
}

/// The state of the turn of a contender.
struct ContenderRound<'a> {
    walk: &'a BlockWalk,
    label: String,
    poisoned: usize,
}

impl ContenderRound<'_> {
    /// Poisons, copies and compares. Returns the time of one repetition of the copy.
    fn run(
        &mut self,
        contender: &mut dyn Contender,
        arenas: &mut Arenas,
        common: &CellContext<'_>,
        compared: usize,
    ) -> Result<Duration, BenchError> {
        arenas.poison(self.poisoned)?;
        let warm = common.repeats > 1;
        let elapsed = contender.run(arenas, &common.orders, common.repeats, warm)?;
        if contender.method() != CopyMethod::Memcpy {
            let (source, destination) = arenas.slices()?;
            let mut blocks = common.orders.pairs().take(compared);
            let wrong = blocks.find(|&pair| !self.walk.is_equal(pair, source, destination));
            if let Some((_, block)) = wrong {
                return Err(BenchError::WrongCopy {
                    row: self.label.clone(),
                    method: contender.method().name(),
                    block: block as u64,
                });
            }
        }
        Ok(elapsed / common.repeats)
    }
}

impl<'a> CellContext<'a> {
    fn new(cell: &'a BenchCell, orders: BlockOrders) -> Result<CellContext<'a>, BenchError> {
        let ids = |order: &[usize]| order.iter().map(|&id| id as u64).collect::<Vec<u64>>();
        let page_size = cell.source.shape().page_size();
        let pairs = (ids(&orders.source), ids(&orders.destination));
        let mut selection = Selection::blocks(&pairs.0, &pairs.1, page_size)?;
        selection.heads = cell.heads;
        let plan = CopyPlan::new(&cell.source, &cell.destination, &selection)?;
        Ok(CellContext {
            cell,
            orders,
            class: CopyClass::of(&plan),
            runs: plan.runs(),
            run_bytes: plan.run_bytes(),
            repeats: 1,
        })
    }

    fn row(
        &self,
        contender: &dyn Contender,
        times: &RoundTimes,
        flat: &RoundTimes,
        rounds: u32,
    ) -> Result<BenchRow, BenchError> {
        let cell = self.cell;
        let shape = cell.source.shape();
        let bytes = cell.bytes()?;
        let (gb_per_s, memcpy) = (times.gb_per_s(bytes as f64), flat.gb_per_s(bytes as f64));
        let place = if cell.in_cache {
            SideMemory::Cache
        } else {
            SideMemory::Memory
        };
        let goal = self
            .class
            .goal(self.run_bytes.1, contender.threads(), cell.in_cache);
        Ok(BenchRow {
            source: cell.pair.source.label(),
            destination: cell.pair.destination.label(),
            purpose: cell.purpose,
            source_place: place,
            destination_place: place,
            part: cell.part(),
            model: cell.model.clone(),
            method: contender.method(),
            class: self.class,
            bytes,
            blocks: shape.num_blocks(),
            layers: shape.num_layers(),
            page_size: shape.page_size(),
            runs: self.runs,
            run_bytes: self.run_bytes.0,
            run_bytes_min: self.run_bytes.1,
            threads: contender.threads(),
            rounds,
            repeats: self.repeats,
            gb_per_s,
            memcpy_gb_per_s: memcpy,
            ratio: gb_per_s / memcpy,
            spread: times.spread(),
            goal,
            ns_per_transfer: None,
            memcpy_ns_per_transfer: None,
            fio_gb_per_s: None,
            fio_ratio: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix;

    /// Leaves one byte of one block unchanged.
    struct CarelessCopy(FlatCopy);

    impl Contender for CarelessCopy {
        fn method(&self) -> CopyMethod {
            CopyMethod::Kvtile
        }

        fn run(
            &mut self,
            arenas: &mut Arenas,
            orders: &BlockOrders,
            repeats: u32,
            warm: bool,
        ) -> Result<Duration, BenchError> {
            let elapsed = self.0.run(arenas, orders, repeats, warm)?;
            let (_, destination) = arenas.slices()?;
            destination[0] ^= 1;
            Ok(elapsed)
        }
    }

    #[test]
    fn one_wrong_byte_ends_the_run() {
        let settings = BenchSettings {
            bytes: vec![1 << 20],
            consecutive: true,
            ..BenchSettings::default()
        };
        let cells = matrix::cells(&settings, 1 << 20).unwrap();
        let cell = cells
            .iter()
            .find(|cell| cell.pair.label() == "BLKNHC → BLKNHC")
            .unwrap();
        let packing = ArenaPacking::new(&cell.source).unwrap();
        let side = (&cell.source, &packing);
        let walk = BlockWalk::new(side, side, None);
        let bytes = packing.bytes();
        let mut arenas = Arenas::new(bytes, 1).unwrap();
        let orders = orders(&settings, &mut SplitMix64::new(1), cell);
        let common = CellContext::new(cell, orders).unwrap();
        let mut round = ContenderRound {
            walk: &walk,
            label: cell.label(),
            poisoned: bytes,
        };
        let flat = || FlatCopy { bytes, threads: 1 };
        round
            .run(&mut flat(), &mut arenas, &common, usize::MAX)
            .unwrap();
        let mut careless = CarelessCopy(flat());
        let error = round
            .run(&mut careless, &mut arenas, &common, usize::MAX)
            .unwrap_err();
        assert!(
            matches!(error, BenchError::WrongCopy { block: 0, .. }),
            "{error}"
        );
    }
}
