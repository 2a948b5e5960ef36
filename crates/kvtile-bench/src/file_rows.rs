//! Cells with a file on one side, through the page cache and bypassing it.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use kvtile::{
    layout::{CopyPlan, OwnedMemoryRegion, PhysicalLayout, Selection, StridedLayout},
    memory::{DirectIo, FileMemory},
    transfer::{FillPattern, LayoutHandle, TransferManager, TransferOptions},
};
use tempfile::TempDir;

use crate::{
    arena::{ArenaPacking, Arenas},
    class::CopyClass,
    contender::{BlockOrders, Contender, CopyMethod, FlatCopy, manager_with, spec_of},
    error::BenchError,
    fio::{self, FioDirection, FioJob},
    matrix::BenchCell,
    row::{BenchRow, SideMemory},
    settings::BenchSettings,
    times::{RoundTimes, seconds},
};
use kvtile_random::SplitMix64;

/// The goal: this part of the throughput of `fio`.
const GOAL: f64 = 0.9;

/// Bytes of one request of `fio`.
const FIO_PIECE_BYTES: u64 = 1 << 20;

/// Requests of `fio` in flight.
const FIO_DEPTH: u32 = 8;

/// Blocks to poison before and compare after each counted round.
const SAMPLED: usize = 4;

/// Number of rounds; results are their median.
const ROUNDS: u32 = 3;

/// A cell, the side that is a file, and how to open the file.
#[derive(Clone, Debug)]
pub(crate) struct FileCell {
    pub(crate) cell: BenchCell,
    pub(crate) direction: FioDirection,
    pub(crate) direct: bool,
}

impl FileCell {
    /// The text that filters match.
    pub(crate) fn label(&self) -> String {
        let file = self.place().title();
        let (source, destination) = (
            self.cell.pair.source.label(),
            self.cell.pair.destination.label(),
        );
        let pair = match self.direction {
            FioDirection::Read => format!("{source} ({file}) → {destination}"),
            FioDirection::Write => format!("{source} → {destination} ({file})"),
        };
        format!("{pair}  {}", self.cell.model)
    }

    fn place(&self) -> SideMemory {
        match self.direct {
            true => SideMemory::DirectFile,
            false => SideMemory::File,
        }
    }
}

/// Both sides as registered layouts.
struct FileCellLayouts {
    manager: TransferManager,
    source: LayoutHandle,
    destination: LayoutHandle,
    file: Arc<FileMemory>,
    blocks: usize,
    /// The path of the file of `fio`.
    beside: PathBuf,
    /// Removes the files when dropped.
    _folder: TempDir,
}

/// The results of a cell.
#[derive(Debug, Default)]
pub(crate) struct FileOutcome {
    pub(crate) rows: Vec<BenchRow>,
    /// A measurement that was not possible, with the reason.
    pub(crate) left_out: Option<String>,
}

/// Measures a cell.
pub(crate) fn measure(
    file_cell: &FileCell,
    settings: &BenchSettings,
    arenas: &mut Arenas,
    with_fio: bool,
) -> Result<FileOutcome, BenchError> {
    let files = match FileCellLayouts::new(file_cell, settings)? {
        Ok(files) => files,
        Err(reason) => {
            let left_out = Some(format!("{}: {reason}", file_cell.label()));
            return Ok(FileOutcome {
                left_out,
                ..FileOutcome::default()
            });
        }
    };
    let mut outcome = FileOutcome::default();
    let bytes = file_cell.cell.bytes()?;
    let size = usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut flat = FlatCopy {
        bytes: size,
        threads: 1,
    };
    let mut with_fio = with_fio && file_cell.direct;
    if with_fio {
        // Creates the file that later jobs read and overwrite.
        let first = fio::run(&files.beside(bytes, FioDirection::Write));
        outcome.left_out = first
            .err()
            .map(|error| format!("{}: {error}", file_cell.label()));
        with_fio = outcome.left_out.is_none();
    }
    let mut random = SplitMix64::new(settings.seed);
    let rounds = settings.rounds.unwrap_or(ROUNDS);
    let [mut ours, mut memcpy, mut others] = [(); 3].map(|()| RoundTimes::default());
    let mut last = None;
    for round in 0..=rounds {
        let orders = BlockOrders {
            source: random.order(files.blocks),
            destination: random.order(files.blocks),
        };
        let compared = if round == 0 { usize::MAX } else { SAMPLED };
        for turn in 0..3 {
            let (times, time) = match (round + turn) % 3 {
                0 => (&mut ours, files.round(file_cell, &orders, compared)?),
                1 => (&mut memcpy, flat.run(arenas, &orders, 1, false)?),
                _ if with_fio => {
                    let time = fio::run(&files.beside(bytes, file_cell.direction))?;
                    (&mut others, time)
                }
                _ => continue,
            };
            if round > 0 {
                times.add(time);
            }
        }
        last = Some(orders);
    }
    let plan = last
        .map(|orders| plan(&file_cell.cell, &orders))
        .transpose()?;
    let mut row = row(file_cell, plan.as_ref(), rounds, &ours, &memcpy)?;
    if with_fio {
        let fio = others.gb_per_s(bytes as f64);
        row.fio_gb_per_s = Some(fio);
        row.fio_ratio = Some(row.gb_per_s / fio);
        row.goal = Some(GOAL);
        let mut beside = row.clone();
        beside.method = CopyMethod::Fio;
        beside.gb_per_s = fio;
        beside.ratio = fio / row.memcpy_gb_per_s;
        beside.spread = others.spread();
        (beside.fio_gb_per_s, beside.fio_ratio, beside.goal) = (None, None, None);
        outcome.rows.push(beside);
    }
    outcome.rows.insert(0, row);
    Ok(outcome)
}

fn plan(cell: &BenchCell, orders: &BlockOrders) -> Result<CopyPlan, BenchError> {
    let ids = |order: &[usize]| order.iter().map(|&id| id as u64).collect::<Vec<u64>>();
    let page_size = cell.source.shape().page_size();
    let (from, to) = (ids(&orders.source), ids(&orders.destination));
    let selection = Selection::blocks(&from, &to, page_size)?;
    Ok(CopyPlan::new(&cell.source, &cell.destination, &selection)?)
}

impl FileCellLayouts {
    fn new(
        file_cell: &FileCell,
        settings: &BenchSettings,
    ) -> Result<Result<FileCellLayouts, String>, BenchError> {
        let folder = TempDir::new_in(&settings.folder).map_err(|source| BenchError::File {
            operation: "create a folder in",
            path: settings.folder.clone(),
            source,
        })?;
        let cell = &file_cell.cell;
        let (in_file, in_memory) = match file_cell.direction {
            FioDirection::Read => (&cell.source, &cell.destination),
            FioDirection::Write => (&cell.destination, &cell.source),
        };
        let bytes = ArenaPacking::new(in_file)?.bytes();
        let options = FileMemory::options().direct_io(file_cell.direct);
        let file = Arc::new(options.create_new(folder.path().join("blocks"), bytes)?);
        if let (true, DirectIo::Unavailable { reason }) = (file_cell.direct, file.direct_io()) {
            return Ok(Err(reason));
        }
        let builder = |layout: &StridedLayout| {
            PhysicalLayout::builder()
                .with_aligned_shape(layout.shape().clone(), layout.alignment())
                .layout(spec_of(layout))
        };
        let manager = manager_with(1);
        let region: OwnedMemoryRegion = Arc::<FileMemory>::clone(&file);
        let filed = manager.register(builder(in_file).over_memory(region).build()?)?;
        let held = manager.register(builder(in_memory).allocate_system().build()?)?;
        let (source, destination) = match file_cell.direction {
            FioDirection::Read => (filed, held),
            FioDirection::Write => (held, filed),
        };
        let blocks = usize::try_from(cell.source.shape().num_blocks()).unwrap_or(usize::MAX);
        let all: Vec<usize> = (0..blocks).collect();
        let seed = settings.seed;
        manager.fill(source, &all, FillPattern::Distinct { seed })?;
        Ok(Ok(FileCellLayouts {
            manager,
            source,
            destination,
            file,
            blocks,
            beside: folder.path().join("fio"),
            _folder: folder,
        }))
    }

    /// The job of `fio` on its own file.
    fn beside(&self, bytes: u64, direction: FioDirection) -> FioJob<'_> {
        FioJob {
            path: &self.beside,
            bytes,
            piece_bytes: FIO_PIECE_BYTES,
            depth: FIO_DEPTH,
            direction,
            is_random: false,
        }
    }

    /// One transfer of all blocks; the first `compared` are poisoned before and compared after.
    fn round(
        &self,
        file_cell: &FileCell,
        orders: &BlockOrders,
        compared: usize,
    ) -> Result<Duration, BenchError> {
        let sample: Vec<usize> = orders.destination.iter().copied().take(compared).collect();
        let poison = FillPattern::Constant(0xa5);
        self.manager.fill(self.destination, &sample, poison)?;
        // Flushes the writes of earlier rounds, which do not count in this one.
        self.file.sync_data()?;
        let start = Instant::now();
        let options = TransferOptions::new();
        let (from, to) = (&orders.source, &orders.destination);
        self.manager
            .execute_transfer(self.source, from, self.destination, to, options)?
            .wait()?;
        let elapsed = start.elapsed();
        for (from, to) in orders.pairs().take(compared) {
            let expected = self.manager.block_digest(self.source, from)?;
            if self.manager.block_digest(self.destination, to)? != expected {
                return Err(BenchError::WrongCopy {
                    row: file_cell.label(),
                    method: CopyMethod::Kvtile.name(),
                    block: to as u64,
                });
            }
        }
        Ok(elapsed)
    }
}

fn row(
    file_cell: &FileCell,
    plan: Option<&CopyPlan>,
    rounds: u32,
    ours: &RoundTimes,
    memcpy: &RoundTimes,
) -> Result<BenchRow, BenchError> {
    let cell = &file_cell.cell;
    let shape = cell.source.shape();
    let bytes = cell.bytes()?;
    let (source_place, destination_place) = match file_cell.direction {
        FioDirection::Read => (file_cell.place(), SideMemory::Memory),
        FioDirection::Write => (SideMemory::Memory, file_cell.place()),
    };
    let (longest, shortest) = plan.map_or((0, 0), CopyPlan::run_bytes);
    Ok(BenchRow {
        source: cell.pair.source.label(),
        destination: cell.pair.destination.label(),
        purpose: cell.purpose,
        source_place,
        destination_place,
        part: None,
        model: cell.model.clone(),
        method: CopyMethod::Kvtile,
        class: CopyClass::File,
        bytes,
        blocks: shape.num_blocks(),
        layers: shape.num_layers(),
        page_size: shape.page_size(),
        runs: plan.map_or(0, CopyPlan::runs),
        run_bytes: longest,
        run_bytes_min: shortest,
        threads: 1,
        rounds,
        repeats: 1,
        gb_per_s: ours.gb_per_s(bytes as f64),
        memcpy_gb_per_s: memcpy.gb_per_s(bytes as f64),
        ratio: seconds(memcpy.median()) / seconds(ours.median()),
        spread: ours.spread(),
        goal: None,
        ns_per_transfer: None,
        memcpy_ns_per_transfer: None,
        fio_gb_per_s: None,
        fio_ratio: None,
    })
}
