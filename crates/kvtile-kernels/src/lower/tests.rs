//! Random shapes at addresses, executed by the interpreter and compared with a loop over their runs.

use std::collections::BTreeSet;

use kvtile_ptx::{PtxLaunch, PtxModule, PtxRanges};
use kvtile_random::SplitMix64;

use super::{rows, tables::TableWords, tiles};
use crate::{
    MOVE_PTX, MoveKernel, MoveParameters,
    program::MoveLaunch,
    shape::{CopyShape, DeviceLoop, LoopSide},
};

const SOURCE: u64 = 0x1_0000_0000;
const DESTINATION: u64 = 0x2_0000_0000;
const TABLES: u64 = 0x3_0000_0000;

/// Most bytes of a side.
const BYTES_MAX: u64 = 48 << 10;

/// Strides of loops that lie one in the other in a random order, and the bytes of all.
fn nested(extents: &[u64], run: u64, pad: u64, numbers: &mut SplitMix64) -> (Vec<u64>, u64) {
    let mut strides = vec![0; extents.len()];
    let mut bytes = run;
    for loop_ in numbers.order(extents.len()) {
        strides[loop_] = bytes;
        bytes *= extents[loop_];
        if numbers.once_in(6) {
            bytes += pad * [16, 4, 2, 1][numbers.index(4)];
        }
    }
    (strides, bytes)
}

/// A random shape whose destination no two runs share, with its tables and the bytes of both sides.
fn random_shape(numbers: &mut SplitMix64) -> (CopyShape, TableWords, (u64, u64)) {
    loop {
        // Transposes of words and more, so that tiles meet all their vectors.
        let is_tile = numbers.once_in(2);
        let runs: &[u64] = match is_tile {
            true => &[1, 2, 4],
            false => &[1, 2, 4, 8, 16, 32, 3, 24, 100, 1040, 33],
        };
        let run = runs[numbers.index(runs.len())];
        let few = !is_tile && numbers.once_in(3);
        let count = 1 + numbers.index(if few { 11 } else { 4 });
        let all: &[u64] = match (is_tile, few) {
            (true, _) => &[4, 8, 12, 16, 32, 64, 128],
            (false, true) => &[2, 3],
            (false, false) => &[2, 3, 4, 7, 8, 16, 24, 32, 64],
        };
        let extents: Vec<u64> = (0..count).map(|_| all[numbers.index(all.len())]).collect();
        let pad = if is_tile { 4 } else { 1 };
        let (from, from_bytes) = nested(&extents, run, pad, numbers);
        let (to, to_bytes) = nested(&extents, run, pad, numbers);
        if from_bytes.max(to_bytes) > BYTES_MAX {
            continue;
        }
        let mut tables = TableWords::default();
        let mut side = |extent: u64, stride: u64, is_table: bool| match is_table {
            // Not a stride: the last two are swapped.
            true if extent > 2 => {
                let mut differences: Vec<u64> = (0..extent).map(|i| i * stride).collect();
                let last = differences.len() - 1;
                differences.swap(last - 1, last);
                tables.side(differences)
            }
            _ => LoopSide::Stride(stride),
        };
        let mut loops = Vec::new();
        for ((&extent, &from), &to) in extents.iter().zip(&from).zip(&to) {
            let is_table = numbers.once_in(6);
            loops.push(DeviceLoop {
                extent,
                source: side(extent, from, is_table),
                destination: side(extent, to, is_table && numbers.once_in(2)),
            });
        }
        let odd = |numbers: &mut SplitMix64| pad * [0, 0, 0, 4, 2, 1][numbers.index(6)];
        let shape = CopyShape {
            source: SOURCE + odd(numbers),
            destination: DESTINATION + odd(numbers),
            run_bytes: run,
            loops,
        };
        return (shape, tables, (from_bytes + 16, to_bytes + 16));
    }
}

/// Copies run by run.
fn copy(shape: &CopyShape, tables: &TableWords, from: &[u8], to: &mut [u8]) {
    let mut places = vec![(shape.source - SOURCE, shape.destination - DESTINATION)];
    for l in &shape.loops {
        let steps = (0..l.extent).map(|i| {
            (
                tables.difference(l.source, i),
                tables.difference(l.destination, i),
            )
        });
        let steps: Vec<(u64, u64)> = steps.collect();
        let further =
            |&(from, to): &(u64, u64)| steps.iter().map(move |step| (from + step.0, to + step.1));
        places = places.iter().flat_map(further).collect();
    }
    let range = |start: u64| {
        usize::try_from(start).unwrap()..usize::try_from(start + shape.run_bytes).unwrap()
    };
    for (source, destination) in places {
        to[range(destination)].copy_from_slice(&from[range(source)]);
    }
}

fn run(launch: &MoveLaunch, kernels: &PtxModule, memory: &mut PtxRanges, blocks: u32) {
    let parameters = launch.parameters(TABLES);
    let launch = PtxLaunch {
        kernel: launch.kernel().name(),
        blocks: launch.blocks(blocks),
        threads: launch.threads(),
        shared_bytes: 0,
        parameters: parameters.as_bytes(),
        instructions_max: 1 << 28,
    };
    kernels.launch(&launch, memory).unwrap();
}

/// The kernel of a launch, with the bytes of its loads and stores.
fn variant(launch: &MoveLaunch) -> (&'static str, u32, u32) {
    match (launch.kernel, launch.parameters) {
        (kernel, MoveParameters::Tile(tile)) => (kernel.name(), tile.load_bytes, tile.store_bytes),
        (kernel @ MoveKernel::Rows(width), _) => (kernel.name(), width.bytes(), width.bytes()),
        (kernel, MoveParameters::Rows(_)) => (kernel.name(), 0, 0),
    }
}

#[test]
fn launches_of_random_shapes_copy_run_by_run() {
    let kernels = PtxModule::parse(MOVE_PTX).unwrap();
    let mut numbers = SplitMix64::new(3);
    let mut seen = BTreeSet::new();
    let mut fused = 0;
    for case in 0..500 {
        let (shape, mut tables, (from_bytes, to_bytes)) = random_shape(&mut numbers);
        let mut from = vec![0; usize::try_from(from_bytes).unwrap()];
        numbers.fill(&mut from);
        let to = vec![0xee; usize::try_from(to_bytes).unwrap()];
        let mut expected = to.clone();
        copy(&shape, &tables, &from, &mut expected);
        let launches = match tiles::launch(&shape, &mut tables).unwrap() {
            Some(launch) => vec![launch],
            None => rows::launches(&shape, &mut tables).unwrap(),
        };
        fused += u32::from(shape.loops.len() > 8);
        let words = tables.into_words();
        let words = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let memory = PtxRanges::new()
            .readable(SOURCE, from)
            .writable(DESTINATION, to);
        let mut memory = memory.readable(TABLES, words);
        for launch in &launches {
            seen.insert(variant(launch));
            run(launch, &kernels, &mut memory, 1 + u32::from(case % 2 == 0));
        }
        let moved: u64 = launches.iter().map(MoveLaunch::bytes).sum();
        assert_eq!(moved, shape.bytes());
        assert_eq!(
            memory.written_bytes(),
            shape.bytes(),
            "case {case}: {shape:?}"
        );
        assert_eq!(memory.written_twice(), None, "case {case}: {shape:?}");
        assert!(
            memory.bytes(DESTINATION) == Some(&expected),
            "case {case}: {shape:?}"
        );
    }
    // Five rows kernels, and three tiles kernels with most of their nine pairs of vectors.
    assert!(seen.len() >= 5 + 3 * 7, "{seen:?}");
    assert!(fused >= 10, "{fused} shapes of more than eight loops");
}
