//! Measuring one row.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use kvtile::{
    layout::{CopyPlan, LayoutSpec, PhysicalLayout, PlaneDigits, Selection, StridedLayout},
    transfer::{FillPattern, LayoutHandle, TransferManager, TransferOptions},
};
use serde::Serialize;
use tempfile::TempDir;

use super::{
    Settings,
    random::Random,
    reference::{Amount, Reference},
    rows::{End, Place, Row},
};
use crate::{error::CliError, known::Asked, shape_args::ShapeArgs};

/// Destination blocks that are poisoned before and compared after each round.
const SAMPLED: usize = 8;

/// Transfers run on one thread beside the caller's.
const THREADS: u32 = 1;

/// What a row came to.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measured {
    pub(super) source: String,
    pub(super) destination: String,
    /// Where the source lies: `memory` or `file`.
    source_place: &'static str,
    destination_place: &'static str,
    pub(super) model: String,
    pub(super) bytes: u64,
    blocks: usize,
    runs: u64,
    /// Bytes of the longest run.
    pub(super) run_bytes: u64,
    /// Bytes of the shortest run.
    pub(super) run_bytes_min: u64,
    threads: u32,
    pub(super) gb_per_s: f64,
    pub(super) memcpy_gb_per_s: f64,
    /// To one flat `memcpy` of the same bytes.
    pub(super) ratio: f64,
    /// Mean run, which the chunks of the other reference are as long as.
    chunk_bytes: u64,
    chunked_memcpy_gb_per_s: f64,
    /// To a `memcpy` in chunks.
    pub(super) chunked_ratio: f64,
}

/// Both sides of a row, registered.
struct Bench {
    manager: TransferManager,
    source: LayoutHandle,
    destination: LayoutHandle,
    blocks: usize,
    /// Holds the files; gone when dropped.
    _folder: Option<TempDir>,
}

/// The runs of a plan: how many, and bytes of the longest and the shortest.
#[derive(Clone, Copy, Default)]
struct Runs {
    count: u64,
    longest: u64,
    shortest: u64,
}

impl Runs {
    /// As many bytes in chunks as long as the mean run, or as a block where runs are longer.
    fn amount(self, blocks: usize, block_bytes: u64) -> Amount {
        let bytes = block_bytes.saturating_mul(blocks as u64);
        let mean = bytes.div_ceil(self.count.max(1)).clamp(1, block_bytes);
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Amount {
            blocks,
            block_bytes: size(block_bytes),
            chunk_bytes: size(mean),
        }
    }
}

/// Times of the rounds.
#[derive(Default)]
struct Times {
    flat: Vec<Duration>,
    chunked: Vec<Duration>,
    transfer: Vec<Duration>,
}

/// Measures `row`.
pub(super) fn measure(
    row: &Row,
    shape: &ShapeArgs,
    settings: Settings,
    (folder, reference, bar): (&Path, &mut Reference, &ProgressBar),
) -> Result<Measured, CliError> {
    let (layouts, sized) = resolve(row, shape, settings.bytes)?;
    let block_bytes = layouts.0.shape().block_bytes()?;
    let bench = Bench::new(row, &layouts, folder)?;
    let mut random = Random::new(settings.seed);
    let all: Vec<usize> = (0..bench.blocks).collect();
    let distinct = FillPattern::Distinct {
        seed: settings.seed,
    };
    bench.manager.fill(bench.source, &all, distinct)?;
    bench
        .manager
        .fill(bench.destination, &all, FillPattern::Constant(0xa5))?;

    let mut times = Times::default();
    let mut plan: Option<(Runs, Amount)> = None;
    // The first round brings memory and clock into the state of the others, and does not count.
    for round in 0..=settings.rounds {
        if round == 1 {
            times = Times::default();
        }
        let orders = (random.order(bench.blocks), random.order(bench.blocks));
        let amount = match plan {
            Some((_, amount)) => amount,
            None => {
                let runs = runs_of(&layouts, &orders)?;
                let amount = runs.amount(bench.blocks, block_bytes);
                reference.resize(amount);
                plan = Some((runs, amount));
                amount
            }
        };
        // Each takes its turn at being first, in the wake of what the last one left in the caches.
        for turn in 0..3 {
            match (round + turn) % 3 {
                0 => times.flat.push(reference.flat(amount)),
                1 => times
                    .chunked
                    .push(reference.chunked(amount, (&orders.0, &orders.1))),
                _ => times.transfer.push(bench.round(&orders, row)?),
            }
        }
        bar.inc(u64::from(round > 0));
    }
    let runs = plan.map(|(runs, _)| runs).unwrap_or_default();
    let bytes = block_bytes.saturating_mul(bench.blocks as u64);
    Ok(report(row, &sized, (bytes, bench.blocks), runs, &mut times))
}

/// Both layouts with as many blocks as the bytes come to, and the options that give them.
fn resolve(
    row: &Row,
    shape: &ShapeArgs,
    bytes: u64,
) -> Result<((StridedLayout, StridedLayout), ShapeArgs), CliError> {
    let from = Asked::parse(&row.source.layout)?;
    let to = Asked::parse(&row.destination.layout)?;
    let mut sized = shape.clone();
    let block_bytes = from.resolve(&sized)?.shape().block_bytes()?;
    if sized.blocks.is_none() {
        sized.blocks = Some((bytes / block_bytes.max(1)).max(1));
    }
    let source = from.resolve(&sized)?;
    // What the source is made for holds for the destination as well.
    let destination = to.resolve_like(&sized, source.shape())?;
    Ok(((source, destination), sized))
}

/// The runs of a transfer in these orders.
fn runs_of(
    (source, destination): &(StridedLayout, StridedLayout),
    (from, to): &(Vec<usize>, Vec<usize>),
) -> Result<Runs, CliError> {
    let ids = |order: &[usize]| order.iter().map(|&id| id as u64).collect::<Vec<u64>>();
    let selection = Selection::blocks(&ids(from), &ids(to), source.shape().page_size())?;
    let plan = CopyPlan::new(source, destination, &selection)?;
    let (longest, shortest) = plan.run_bytes();
    Ok(Runs {
        count: plan.runs(),
        longest,
        shortest,
    })
}

impl Bench {
    fn new(
        row: &Row,
        (source, destination): &(StridedLayout, StridedLayout),
        folder: &Path,
    ) -> Result<Bench, CliError> {
        let files = [&row.source, &row.destination];
        let folder = match files.iter().any(|end| end.place == Place::File) {
            false => None,
            true => Some(TempDir::new_in(folder).map_err(|source| CliError::File {
                operation: "create a folder in",
                path: folder.to_owned(),
                source,
            })?),
        };
        let build = |end: &End, layout: &StridedLayout, name: &str| {
            let builder = PhysicalLayout::builder()
                .with_shape(layout.shape().clone(), layout.alignment())
                .layout(spec_of(layout));
            match (end.place, &folder) {
                (Place::File, Some(folder)) => builder
                    .allocate_disk(Some(folder.path().join(name)))
                    .build(),
                _ => builder.allocate_system().build(),
            }
        };
        let manager = TransferManager::new();
        let from = manager.register(build(&row.source, source, "source")?)?;
        let to = manager.register(build(&row.destination, destination, "destination")?)?;
        let blocks = usize::try_from(source.shape().num_blocks()).unwrap_or(usize::MAX);
        Ok(Bench {
            manager,
            source: from,
            destination: to,
            blocks,
            _folder: folder,
        })
    }

    /// One transfer of all blocks, with a sample of them poisoned before and compared after.
    fn round(
        &self,
        (from, to): &(Vec<usize>, Vec<usize>),
        row: &Row,
    ) -> Result<Duration, CliError> {
        let sampled: Vec<usize> = to.iter().copied().take(SAMPLED).collect();
        let poison = FillPattern::Constant(0xa5);
        self.manager.fill(self.destination, &sampled, poison)?;
        let start = Instant::now();
        let options = TransferOptions::new();
        self.manager
            .execute_transfer(self.source, from, self.destination, to, options)?
            .wait()?;
        let elapsed = start.elapsed();
        for (&source, &destination) in from.iter().zip(to).take(SAMPLED) {
            let expected = self.manager.block_digest(self.source, source)?;
            if self.manager.block_digest(self.destination, destination)? != expected {
                return Err(CliError::WrongCopy {
                    row: row.label(),
                    block: destination,
                });
            }
        }
        Ok(elapsed)
    }
}

/// The spec that gives the layout again.
fn spec_of(layout: &StridedLayout) -> LayoutSpec {
    if let Some(word) = layout.word() {
        return LayoutSpec::Word(word.clone());
    }
    let planes = layout.planes().map(|(plane, piece)| PlaneDigits {
        plane: plane.name().to_string(),
        region: piece.region(),
        offset: piece.offset(),
        digits: piece.digits().to_vec(),
    });
    LayoutSpec::Digits {
        planes: planes.collect(),
        region_bytes: layout.region_bytes().to_vec(),
    }
}

fn report(
    row: &Row,
    shape: &ShapeArgs,
    (bytes, blocks): (u64, usize),
    runs: Runs,
    times: &mut Times,
) -> Measured {
    let speed = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        bytes as f64 / median.as_secs_f64().max(f64::MIN_POSITIVE) / 1e9
    };
    let (flat, chunked) = (speed(&mut times.flat), speed(&mut times.chunked));
    let transfer = speed(&mut times.transfer);
    Measured {
        source: row.source.label(),
        destination: row.destination.label(),
        source_place: row.source.place.name(),
        destination_place: row.destination.place.name(),
        model: shape.title(),
        bytes,
        blocks,
        runs: runs.count,
        run_bytes: runs.longest,
        run_bytes_min: runs.shortest,
        threads: THREADS,
        gb_per_s: transfer,
        memcpy_gb_per_s: flat,
        ratio: transfer / flat,
        chunk_bytes: bytes / runs.count.max(1),
        chunked_memcpy_gb_per_s: chunked,
        chunked_ratio: transfer / chunked,
    }
}
