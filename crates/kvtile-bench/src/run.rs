//! A run: measures cell after cell, each in the memory of the largest so far.

use std::time::Instant;

use crate::{
    arena::{ArenaPacking, Arenas},
    error::BenchError,
    file_rows::{self, FileCell},
    fio, first_touch, fixed_cost, flat_rows,
    lines::bytes,
    machine::MachineFacts,
    matrix::{self, BenchCell},
    memory_rows,
    report::{BenchReport, RunConditions},
    rivals::torch,
    settings::BenchSettings,
};

/// Receives the progress of a run.
pub trait BenchProgress {
    /// `done` of `total` measurements are complete, and `what` is next.
    fn next(&mut self, done: usize, total: usize, what: &str);
}

/// One measurement.
enum BenchTask {
    Cell(Box<BenchCell>),
    Flat { bytes: u64, threads: u32 },
    FixedCost((u64, u64)),
    File(Box<FileCell>),
    FirstTouch,
}

impl BenchTask {
    /// The text that filters match.
    fn label(&self) -> String {
        match self {
            BenchTask::Cell(cell) => cell.label(),
            BenchTask::Flat { bytes: n, threads } => {
                format!("flat memcpy  {}  on {threads} threads", bytes(*n))
            }
            BenchTask::FixedCost((n, _)) => format!("fixed cost  {}", bytes(*n)),
            BenchTask::File(cell) => cell.label(),
            BenchTask::FirstTouch => "first touch".to_owned(),
        }
    }

    /// Bytes of memory on each side.
    fn side_bytes(&self) -> Result<usize, BenchError> {
        let payload = |bytes| usize::try_from(bytes).unwrap_or(usize::MAX);
        match self {
            BenchTask::Cell(cell) => {
                let (source, destination) = (&cell.source, &cell.destination);
                let sides = ArenaPacking::new(source)?
                    .bytes()
                    .max(ArenaPacking::new(destination)?.bytes());
                Ok(sides.max(payload(cell.bytes()?)))
            }
            BenchTask::Flat { bytes, .. } => Ok(payload(*bytes)),
            BenchTask::File(cell) => Ok(payload(cell.cell.bytes()?)),
            BenchTask::FixedCost(_) | BenchTask::FirstTouch => Ok(0),
        }
    }
}

/// Runs the measurements of the settings.
///
/// # Errors
/// Filters without matches; pairs that do not fit their model; memory or files that are not
/// available; and a wrong copy, which is a defect.
pub fn run(
    settings: &BenchSettings,
    progress: &mut dyn BenchProgress,
) -> Result<BenchReport, BenchError> {
    let start = Instant::now();
    let machine = MachineFacts::probe();
    let tasks = tasks(settings, &machine)?;
    let mut report = BenchReport {
        how: RunConditions::of(settings),
        machine,
        rows: Vec::new(),
        first_touch: Vec::new(),
        left_out: Vec::new(),
    };
    report.left_out = left_out(&tasks);
    let with_fio = fio::is_installed();
    let mut arenas = None;
    for (done, task) in tasks.iter().enumerate() {
        progress.next(done, tasks.len(), &task.label());
        let side_bytes = task.side_bytes()?;
        match task {
            BenchTask::Cell(cell) => {
                let arenas = large_enough(&mut arenas, side_bytes, settings)?;
                report
                    .rows
                    .extend(memory_rows::measure(cell, settings, arenas)?);
            }
            BenchTask::Flat { bytes, threads } => {
                let arenas = large_enough(&mut arenas, side_bytes, settings)?;
                let row = flat_rows::measure(*bytes, *threads, settings, arenas)?;
                report.rows.push(row);
            }
            BenchTask::FixedCost(page) => report.rows.push(fixed_cost::measure(*page, settings)?),
            BenchTask::File(cell) => {
                let arenas = large_enough(&mut arenas, side_bytes, settings)?;
                let outcome = file_rows::measure(cell, settings, arenas, with_fio)?;
                report.rows.extend(outcome.rows);
                report.left_out.extend(outcome.left_out);
            }
            BenchTask::FirstTouch => {
                arenas = None;
                report.first_touch.push(first_touch::measure(settings)?);
            }
        }
    }
    drop(arenas);
    if settings.compare {
        progress.next(tasks.len(), tasks.len(), "torch");
        match torch::measure(&cells(&tasks), settings, &report.rows)? {
            Ok(rows) => report.rows.extend(rows),
            Err(reason) => report.left_out.push(reason),
        }
    }
    report.how.seconds = start.elapsed().as_secs();
    Ok(report)
}

fn cells(tasks: &[BenchTask]) -> Vec<&BenchCell> {
    let cells = tasks.iter().filter_map(|task| match task {
        BenchTask::Cell(cell) => Some(cell.as_ref()),
        _ => None,
    });
    cells.collect()
}

fn tasks(settings: &BenchSettings, machine: &MachineFacts) -> Result<Vec<BenchTask>, BenchError> {
    let cells = matrix::cells(settings, machine.cache_cell_bytes())?;
    let mut tasks: Vec<BenchTask> = cells
        .into_iter()
        .map(|cell| BenchTask::Cell(Box::new(cell)))
        .collect();
    if settings.pair.is_none() {
        for bytes in matrix::flat_bytes(settings) {
            let threads = settings.threads.iter().filter(|&&threads| threads > 1);
            tasks.extend(threads.map(|&threads| BenchTask::Flat { bytes, threads }));
        }
    }
    // Cells of one size follow each other in the same memory, the largest last.
    tasks.sort_by_cached_key(|task| task.side_bytes().map(usize::next_power_of_two).unwrap_or(0));
    if settings.pair.is_none() {
        tasks.extend(fixed_cost::PAGES.map(BenchTask::FixedCost));
    }
    let files = matrix::file_cells(settings)?;
    tasks.extend(
        files
            .into_iter()
            .map(|cell| BenchTask::File(Box::new(cell))),
    );
    if settings.pair.is_none() {
        tasks.push(BenchTask::FirstTouch);
    }
    let mut known: Vec<String> = tasks.iter().map(BenchTask::label).collect();
    tasks.retain(|task| settings.wants(&task.label()));
    if tasks.is_empty() {
        known.dedup();
        return Err(BenchError::NothingLeft {
            filters: settings.filters.clone(),
            known: known.join(", "),
        });
    }
    Ok(tasks)
}

/// Requested measurements that are not possible here.
fn left_out(tasks: &[BenchTask]) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut files = tasks.iter().filter_map(|task| match task {
        BenchTask::File(cell) => Some(cell.direct),
        _ => None,
    });
    if files.any(|direct| direct) && !fio::is_installed() {
        reasons.push(fio::NOT_INSTALLED.to_owned());
    }
    reasons
}

/// The memory of earlier tasks, or new memory where that is too small.
fn large_enough<'a>(
    arenas: &'a mut Option<Arenas>,
    side_bytes: usize,
    settings: &BenchSettings,
) -> Result<&'a mut Arenas, BenchError> {
    if arenas
        .as_ref()
        .is_none_or(|arenas| arenas.bytes() < side_bytes)
    {
        // Frees the old memory before it allocates the new.
        *arenas = None;
        check_memory(side_bytes as u64)?;
    }
    match arenas {
        Some(arenas) => Ok(arenas),
        None => Ok(arenas.insert(Arenas::new(side_bytes, settings.seed)?)),
    }
}

/// Checks the memory for both sides, with a quarter more for other processes.
fn check_memory(side_bytes: u64) -> Result<(), BenchError> {
    let needed = side_bytes.saturating_mul(5) / 2;
    match MachineFacts::available_bytes() {
        Some(available) if needed > available => Err(BenchError::TooManyBytes {
            bytes: side_bytes,
            needed,
            available,
        }),
        _ => Ok(()),
    }
}
