//! Copies between layouts against plain copies of the same bytes in the same chunks, in turns.
//!
//! `cargo run --release -p kvtile-transfer --example copy_rates [MiB]`

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use kvtile_layout::{CopyPlan, Selection, Shape, Unit, Word};
use kvtile_memory::SystemMemory;
use kvtile_transfer::{
    FillPattern, LayoutHandle, PhysicalLayout, TransferManager, TransferOptions,
};

type Failure = Box<dyn std::error::Error>;

/// Turns of each measurement; the fastest counts.
const TURNS: usize = 7;

fn main() -> Result<(), Failure> {
    let mebibytes: u64 = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => 512,
    };
    // 32 KiB a block, layer and plane; 2 MiB a block.
    let shape = Shape::key_value((mebibytes / 2).max(2), 32, 16, 8, 128, &Unit::raw(2)?)?;
    for (from, to) in [
        ("BLKNHC", "BLKNHC"),
        ("L|KBNHC", "L|KBNHC"),
        ("L|KBNHC", "BLKNHC"),
        ("BLKNHC", "L|KBNHC"),
        ("L|KBNHC", "BHLKNC"),
        ("L|BKNHC", "L|BH(kCN,vNC)"),
    ] {
        measure(&shape, from, to)?;
    }
    plan_cost()
}

fn layout(shape: &Shape, word: &str) -> Result<PhysicalLayout, Failure> {
    let builder = PhysicalLayout::builder().with_shape(shape.clone(), 4096);
    Ok(builder
        .layout(word.parse::<Word>()?)
        .allocate_system()
        .build()?)
}

/// Every block to another place, neighbours apart.
fn turned(blocks: u64) -> Vec<usize> {
    let half = blocks.div_ceil(2);
    let turned = (0..blocks).map(|b| if b % 2 == 0 { b / 2 } else { half + b / 2 });
    turned.filter_map(|b| usize::try_from(b).ok()).collect()
}

fn measure(shape: &Shape, from: &str, to: &str) -> Result<(), Failure> {
    let manager = TransferManager::new();
    let blocks: Vec<usize> = (0..usize::try_from(shape.num_blocks())?).collect();
    let targets = turned(shape.num_blocks());
    let register = |word| -> Result<LayoutHandle, Failure> {
        let handle = manager.register(layout(shape, word)?)?;
        manager.fill(handle, &blocks, FillPattern::Distinct { seed: 1 })?;
        Ok(handle)
    };
    let (source, destination) = (register(from)?, register(to)?);
    let copy = || -> Result<(Duration, u64, u64), Failure> {
        let start = Instant::now();
        let options = TransferOptions::new();
        let done = manager.execute_transfer(source, &blocks, destination, &targets, options)?;
        let report = done.wait()?;
        Ok((start.elapsed(), report.bytes, report.runs))
    };
    let (_, bytes, runs) = copy()?;
    let chunk = usize::try_from(bytes / runs)?.max(4096);
    let mut plain = Plain::new(usize::try_from(bytes)?, chunk)?;
    let pieces = pieces(
        &manager.layout(source)?,
        &manager.layout(destination)?,
        &targets,
    )?;
    plain.turn();
    let (mut ours, mut theirs, mut same) = (Duration::MAX, Duration::MAX, Duration::MAX);
    for _ in 0..TURNS {
        theirs = theirs.min(plain.turn());
        ours = ours.min(copy()?.0);
        same = same.min(plain.pieces(&pieces));
    }
    let rate = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
    println!(
        "{from:>10} -> {to:<14} runs of {:>7} B {:5.2} GB/s; plain copies of {chunk:>7} B \
         {:5.2} GB/s, ratio {:.2}; plain copies of the same pieces {:5.2} GB/s, ratio {:.2}",
        bytes / runs,
        rate(ours),
        rate(theirs),
        theirs.as_secs_f64() / ours.as_secs_f64(),
        rate(same),
        same.as_secs_f64() / ours.as_secs_f64(),
    );
    Ok(())
}

/// Source, destination and length of every run, with the regions one after the other.
fn pieces(
    from: &PhysicalLayout,
    to: &PhysicalLayout,
    targets: &[usize],
) -> Result<Vec<(usize, usize, usize)>, Failure> {
    let targets: Vec<u64> = targets.iter().map(|&b| b as u64).collect();
    let blocks: Vec<u64> = (0..targets.len() as u64).collect();
    let selection = Selection::blocks(&blocks, &targets, from.shape().page_size())?;
    let plan = CopyPlan::new(from.strided(), to.strided(), &selection)?;
    let place = |layout: &PhysicalLayout, at: kvtile_layout::Location| {
        let region = usize::try_from(at.region).unwrap_or(usize::MAX);
        let before: u64 = layout.strided().region_bytes().iter().take(region).sum();
        usize::try_from(before + at.offset).unwrap_or(usize::MAX)
    };
    let mut pieces = Vec::new();
    plan.for_each_run(|source, destination, bytes| {
        let bytes = usize::try_from(bytes).unwrap_or(0);
        pieces.push((place(from, source), place(to, destination), bytes));
    });
    Ok(pieces)
}

/// `copy_from_slice` in chunks, to every other chunk first.
struct Plain {
    source: SystemMemory,
    destination: SystemMemory,
    chunk: usize,
}

impl Plain {
    fn new(bytes: usize, chunk: usize) -> Result<Plain, Failure> {
        let mut plain = Plain {
            source: SystemMemory::allocate(bytes)?,
            destination: SystemMemory::allocate(bytes)?,
            chunk,
        };
        plain.source.as_mut_slice().fill(1);
        plain.destination.as_mut_slice().fill(2);
        Ok(plain)
    }

    fn pieces(&mut self, pieces: &[(usize, usize, usize)]) -> Duration {
        let start = Instant::now();
        let source = &*self.source.as_mut_slice();
        let destination = self.destination.as_mut_slice();
        for &(from, to, bytes) in pieces {
            let from = source.get(from..from + bytes);
            let to = destination.get_mut(to..to + bytes);
            if let (Some(from), Some(to)) = (from, to) {
                to.copy_from_slice(from);
            }
        }
        black_box(self.destination.as_mut_slice());
        start.elapsed()
    }

    fn turn(&mut self) -> Duration {
        let start = Instant::now();
        let (chunk, source) = (self.chunk, &*self.source.as_mut_slice());
        let chunks = source.len().div_ceil(chunk) as u64;
        let destination = self.destination.as_mut_slice();
        for (piece, target) in source.chunks(chunk).zip(turned(chunks)) {
            let Some(rest) = destination.get_mut(target * chunk..) else {
                continue;
            };
            if let Some(target) = rest.get_mut(..piece.len()) {
                target.copy_from_slice(piece);
            }
        }
        black_box(self.destination.as_mut_slice());
        start.elapsed()
    }
}

/// What it costs to plan 10,000 blocks.
fn plan_cost() -> Result<(), Failure> {
    let blocks = 10_000u64;
    let shape = Shape::key_value(blocks, 32, 16, 8, 128, &Unit::raw(2)?)?;
    let resolve = |word: &str| -> Result<_, Failure> {
        Ok(kvtile_layout::StridedLayout::resolve(
            &word.parse()?,
            &shape,
            1,
        )?)
    };
    let (from, to) = (resolve("L|KBNHC")?, resolve("BHLKNC")?);
    let ids: Vec<u64> = (0..blocks).collect();
    let spread: Vec<u64> = ids.iter().map(|b| (b * 7919) % blocks).collect();
    for (name, source) in [("in a row", &ids), ("spread", &spread)] {
        let selection = Selection::blocks(source, &ids, 16)?;
        let mut best = Duration::MAX;
        for _ in 0..20 {
            let start = Instant::now();
            black_box(CopyPlan::new(&from, &to, &selection)?);
            best = best.min(start.elapsed());
        }
        println!("planning 10,000 blocks {name}: {best:?}");
    }
    Ok(())
}
