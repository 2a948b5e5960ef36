//! A run: cell after cell, each in the memory of the largest.

use std::time::Instant;

use crate::{
    arena::{Arenas, Packing},
    contender::manager_with,
    error::BenchError,
    first_touch,
    machine::MachineFacts,
    matrix::{self, Cell},
    memory_rows,
    report::{How, Report},
    settings::Settings,
};

/// Who is told how far a run has come.
pub trait Progress {
    /// `done` of `total` measurements are made, and this one is next.
    fn next(&mut self, done: usize, total: usize, what: &str);
}

/// What is measured after one another.
enum Task {
    Cell(Box<Cell>),
    FirstTouch,
}

impl Task {
    fn label(&self) -> String {
        match self {
            Task::Cell(cell) => cell.label(),
            Task::FirstTouch => "first touch".to_owned(),
        }
    }
}

/// Measures what the settings ask for.
///
/// # Errors
/// Filters that leave nothing; pairs that do not fit their model; memory or files that cannot be
/// had; and a copy that arrived changed, which is a defect.
pub fn run(settings: &Settings, progress: &mut dyn Progress) -> Result<Report, BenchError> {
    let start = Instant::now();
    let machine = MachineFacts::probe();
    let tasks = tasks(settings, &machine)?;
    let mut report = Report {
        how: How {
            order: match settings.consecutive {
                true => "consecutive".to_owned(),
                false => "random".to_owned(),
            },
            seed: settings.seed,
            quick: settings.quick,
            checked: "every block after the first round of a cell, four blocks after each other, \
                      byte by byte; destinations are poisoned before"
                .to_owned(),
            seconds: 0,
        },
        machine,
        rows: Vec::new(),
        first_touch: Vec::new(),
        left_out: left_out(settings),
    };
    let mut arenas = None;
    for (done, task) in tasks.iter().enumerate() {
        progress.next(done, tasks.len(), &task.label());
        match task {
            Task::Cell(cell) => {
                let arenas = large_enough(&mut arenas, cell, settings)?;
                report
                    .rows
                    .extend(memory_rows::measure(cell, settings, arenas)?);
            }
            Task::FirstTouch => {
                arenas = None;
                report.first_touch.push(first_touch::measure(settings)?);
            }
        }
    }
    report.how.seconds = start.elapsed().as_secs();
    Ok(report)
}

fn tasks(settings: &Settings, machine: &MachineFacts) -> Result<Vec<Task>, BenchError> {
    let cells = matrix::cells(settings, machine.cache_cell_bytes())?;
    // Cells of one size follow each other in the same memory, the largest last.
    let mut sized = Vec::new();
    for cell in cells {
        sized.push((
            cell.bytes()?.next_power_of_two(),
            Task::Cell(Box::new(cell)),
        ));
    }
    sized.sort_by_key(|(bytes, _)| *bytes);
    let mut tasks: Vec<Task> = sized.into_iter().map(|(_, task)| task).collect();
    if settings.pair.is_none() {
        tasks.push(Task::FirstTouch);
    }
    let labels: Vec<String> = tasks.iter().map(Task::label).collect();
    tasks.retain(|task| settings.wants(&task.label()));
    if tasks.is_empty() {
        let mut known = labels;
        known.sort();
        known.dedup();
        return Err(BenchError::NothingLeft {
            filters: settings.filters.clone(),
            known: known.join(", "),
        });
    }
    Ok(tasks)
}

/// Threads that transfers cannot be asked to have.
fn left_out(settings: &Settings) -> Vec<String> {
    let missing = settings
        .threads
        .iter()
        .filter(|&&n| manager_with(n).is_none());
    missing
        .map(|n| format!("transfers on {n} threads: a manager cannot be asked for so many"))
        .collect()
}

/// The memory of the cells before, or new memory where that is too small.
fn large_enough<'a>(
    arenas: &'a mut Option<Arenas>,
    cell: &Cell,
    settings: &Settings,
) -> Result<&'a mut Arenas, BenchError> {
    let sides = [&cell.source, &cell.destination];
    let mut needed = usize::try_from(cell.bytes()?).unwrap_or(usize::MAX);
    for side in sides {
        needed = needed.max(Packing::new(side)?.bytes());
    }
    if arenas.as_ref().is_none_or(|arenas| arenas.bytes() < needed) {
        // The old memory is given back before the new is taken.
        *arenas = None;
        check_memory(cell, needed as u64)?;
    }
    match arenas {
        Some(arenas) => Ok(arenas),
        None => Ok(arenas.insert(Arenas::new(needed, settings.seed)?)),
    }
}

/// Both sides, and a quarter more for everybody else.
fn check_memory(cell: &Cell, side_bytes: u64) -> Result<(), BenchError> {
    let needed = side_bytes.saturating_mul(5) / 2;
    match MachineFacts::available_bytes() {
        Some(available) if needed > available => Err(BenchError::TooManyBytes {
            bytes: cell.bytes()?,
            needed,
            available,
        }),
        _ => Ok(()),
    }
}
