//! PyTorch, where it is installed: `index_select` and `permute().contiguous()`, in a separate
//! process with its own memory, against its own flat copy.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Stdio},
};

use kvtile::layout::{Axis, StridedLayout};
use serde::{Deserialize, Serialize};

use crate::{
    contender::CopyMethod, error::BenchError, lines::CellLine, matrix::BenchCell, row::BenchRow,
    settings::BenchSettings,
};

const SCRIPT: &str = include_str!("../../python/torch_rival.py");

const NOT_INSTALLED: &str = "torch: python3 cannot import it (pip install torch)";

/// Rounds of each job.
const ROUNDS: u32 = 3;

/// Both sides of a cell as axes, slowest first.
#[derive(Debug, Serialize)]
struct TorchJob {
    source: String,
    source_regions: String,
    destination: String,
    destination_regions: String,
    extents: BTreeMap<char, u64>,
    unit_bytes: u64,
    bytes: u64,
    rounds: u32,
    repeats: u32,
    seed: u64,
    consecutive: bool,
}

#[derive(Debug, Deserialize)]
struct TorchFigures {
    right: bool,
    seconds: f64,
    flat_seconds: f64,
    spread: f64,
}

/// Measures all cells whose layouts are permutations of axes; returns a reason where torch is not
/// installed.
pub(crate) fn measure(
    cells: &[&BenchCell],
    settings: &BenchSettings,
    rows: &[BenchRow],
) -> Result<Result<Vec<BenchRow>, String>, BenchError> {
    let with_torch = Command::new("python3")
        .args(["-c", "import torch"])
        .stderr(Stdio::null())
        .status();
    if !with_torch.is_ok_and(|status| status.success()) {
        return Ok(Err(NOT_INSTALLED.to_owned()));
    }
    let lines = CellLine::of(rows);
    let mut asked: Vec<(TorchJob, &BenchRow)> = Vec::new();
    for cell in cells {
        let line = lines.iter().find_map(|line| {
            let row = line.find(CopyMethod::Kvtile, 1)?;
            let mine = row.source == cell.pair.source.label()
                && row.destination == cell.pair.destination.label()
                && row.model == cell.model
                && row.part.is_none()
                && cell.bytes().is_ok_and(|bytes| bytes == row.bytes)
                && row.class != crate::class::CopyClass::File;
            mine.then_some(row)
        });
        asked.extend(line.and_then(|row| Some((job(cell, row, settings)?, row))));
    }
    let jobs: Vec<&TorchJob> = asked.iter().map(|(job, _)| job).collect();
    let figures = run(&jobs)?;
    let measured = asked.iter().zip(figures);
    Ok(Ok(measured
        .map(|((_, row), figures)| figures.row(row))
        .collect::<Result<_, _>>()?))
}

fn run(jobs: &[&TorchJob]) -> Result<Vec<TorchFigures>, BenchError> {
    let failed = |problem: String| BenchError::Program {
        program: "torch",
        problem,
    };
    let mut child = Command::new("python3")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let json = serde_json::to_vec(jobs)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(&json)
            .map_err(|error| failed(error.to_string()))?;
    }
    let output = child
        .wait_with_output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let last = errors.lines().last().unwrap_or("no reason given");
        return Err(failed(format!(
            "the script ended with {}: {last}",
            output.status
        )));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The job of a cell; `None` where a layout is more than an order of axes.
fn job(cell: &BenchCell, row: &BenchRow, settings: &BenchSettings) -> Option<TorchJob> {
    let (source_regions, source) = axes(&cell.source)?;
    let (destination_regions, destination) = axes(&cell.destination)?;
    let shape = cell.source.shape();
    let first = shape.planes().first()?;
    let alike = shape
        .planes()
        .iter()
        .all(|plane| plane.unit() == first.unit() && plane.extents() == first.extents());
    if cell.heads.is_some() || !alike || !matches!(first.unit().bytes(), 1 | 2 | 4 | 8) {
        return None;
    }
    let mut extents = BTreeMap::new();
    for axis in [Axis::B, Axis::L, Axis::N, Axis::H, Axis::C] {
        extents.insert(axis.letter(), shape.extent(first, axis));
    }
    extents.insert('K', shape.planes().len() as u64);
    Some(TorchJob {
        source,
        source_regions,
        destination,
        destination_regions,
        extents,
        unit_bytes: first.unit().bytes(),
        bytes: row.bytes,
        rounds: settings.rounds.unwrap_or(ROUNDS),
        repeats: row.repeats.min(100),
        seed: settings.seed,
        consecutive: settings.consecutive,
    })
}

/// The axes that enumerate regions, and all axes, where a word is an order of all six.
fn axes(layout: &StridedLayout) -> Option<(String, String)> {
    let word = layout.word()?.to_string();
    let (regions, rest) = word.split_once('|').unwrap_or(("", &word));
    let all = format!("{regions}{rest}");
    let mut sorted: Vec<char> = all.chars().collect();
    sorted.sort_unstable();
    (sorted == ['B', 'C', 'H', 'K', 'L', 'N'] && !regions.contains('B'))
        .then(|| (regions.to_owned(), all.clone()))
}

impl TorchFigures {
    /// The row that belongs to kvtile's row.
    fn row(&self, beside: &BenchRow) -> Result<BenchRow, BenchError> {
        if !self.right {
            return Err(BenchError::WrongCopy {
                row: beside.pair(),
                method: CopyMethod::Torch.name(),
                block: 0,
            });
        }
        let speed = |seconds: f64| beside.bytes as f64 / seconds.max(1e-9) / 1e9;
        let mut row = beside.clone();
        row.method = CopyMethod::Torch;
        row.gb_per_s = speed(self.seconds);
        row.memcpy_gb_per_s = speed(self.flat_seconds);
        row.ratio = row.gb_per_s / row.memcpy_gb_per_s;
        row.spread = self.spread;
        Ok(row)
    }
}
