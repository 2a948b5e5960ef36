//! Random nests of random runs: every chosen kernel copies the right bytes and touches no others.
#![expect(clippy::cast_possible_truncation, reason = "sizes of tests are small")]

use kvtile_layout::{AddressStep, AxisSet, Loop};
use kvtile_testkit::generate::config;
use proptest::prelude::*;

use super::{
    super::{
        nest::{CopyManner, LocalNest, NestKernel, choose},
        pipeline::{CopyScratch, KernelPipeline},
    },
    guarded::{GuardedBytes, GuardedEnd},
    manners, pattern,
};

const POISON: u8 = 0xa5;

/// Maximum bytes of a case.
const BYTES_MAX: u64 = 1 << 18;

/// Extents of loops, the order in which each side nests them, and the gaps between them.
#[derive(Clone, Debug)]
struct NestCase {
    run: u64,
    extents: Vec<u64>,
    source: Vec<(usize, u64)>,
    destination: Vec<(usize, u64)>,
    phase: usize,
    aligned: bool,
    end: bool,
}

fn cases() -> impl Strategy<Value = NestCase> {
    let runs = prop::sample::select(vec![
        1u64, 2, 2, 2, 3, 4, 5, 8, 12, 16, 20, 32, 34, 48, 64, 96, 100, 128, 192, 256, 300, 1024,
        5000,
    ]);
    let extents = prop::collection::vec(1u64..40, 0..5);
    let pads = || {
        let pads = prop::sample::select(vec![0u64, 0, 0, 0, 1, 2, 16, 64, 100, 128]);
        prop::collection::vec(pads, 5)
    };
    let orders = || Just((0..5).collect::<Vec<usize>>()).prop_shuffle();
    let sides = ((orders(), pads()), (orders(), pads()));
    let rest = (0..65usize, any::<bool>(), any::<bool>());
    (runs, extents, sides, rest).prop_map(
        |(run, mut extents, (source, destination), (phase, aligned, end))| {
            let bytes = |e: &[u64]| e.iter().product::<u64>() * run;
            while bytes(&extents) > BYTES_MAX {
                extents.pop();
            }
            let side = |(order, pads): (Vec<usize>, Vec<u64>)| {
                let order = order.into_iter().filter(|i| *i < extents.len());
                order.zip(pads).collect::<Vec<_>>()
            };
            let (source, destination) = (side(source), side(destination));
            NestCase {
                run,
                extents,
                source,
                destination,
                phase,
                aligned,
                end,
            }
        },
    )
}

/// The strides of one side, innermost first in its order, and its span.
fn strides(case: &NestCase, side: &[(usize, u64)]) -> (Vec<u64>, usize) {
    let mut strides = vec![0; case.extents.len()];
    let mut size = case.run;
    for &(axis, pad) in side {
        strides[axis] = size;
        size = size * case.extents[axis] + pad;
    }
    let reach = strides.iter().zip(&case.extents);
    let span = reach.fold(case.run, |span, (s, e)| span + s * (e - 1));
    (strides, span as usize)
}

fn check(case: &NestCase, manner: CopyManner) -> NestKernel {
    let (from, source_span) = strides(case, &case.source);
    let (to, destination_span) = strides(case, &case.destination);
    let mut loops: Vec<Loop> = case
        .extents
        .iter()
        .zip(from.iter().zip(&to))
        .filter(|(extent, _)| **extent > 1)
        .map(|(&extent, (&source, &destination))| Loop {
            extent,
            source: AddressStep::bytes(source),
            destination: AddressStep::bytes(destination),
            axes: AxisSet::default(),
        })
        .collect();
    let all = loops.clone();
    let kernel = choose(&mut loops, case.run, case.aligned, manner).unwrap();
    let nest = LocalNest::new(&loops, kernel).unwrap();
    assert_eq!(nest.source_span, source_span as u64);
    assert_eq!(nest.destination_span, destination_span as u64);

    let end = if case.end {
        GuardedEnd::High
    } else {
        GuardedEnd::Low
    };
    let phase = if case.end { 0 } else { case.phase };
    let source = GuardedBytes::new(source_span, end, pattern);
    let destination = GuardedBytes::new(destination_span + phase, end, |_| POISON);
    let mut expected = vec![POISON; destination_span + phase];
    naive(&all, case.run as usize, (0, phase), &mut expected);

    let mut scratch = CopyScratch::default();
    let mut pipeline = KernelPipeline::new(&nest.kernel, manner, &mut scratch).unwrap();
    let to = destination.pointer().wrapping_add(phase);
    // SAFETY: both have exactly the spans of the nest, and nothing else refers to them.
    unsafe { nest.copy(source.pointer(), to, &mut pipeline) };
    // SAFETY: as above.
    unsafe { pipeline.drain() };
    assert!(
        destination.as_ref() == expected,
        "{manner:?} {:?}",
        nest.kernel
    );
    nest.kernel
}

/// Copies byte by byte, by the strides alone.
fn naive(loops: &[Loop], run: usize, (from, to): (usize, usize), expected: &mut [u8]) {
    let Some((outer, inner)) = loops.split_first() else {
        for byte in 0..run {
            expected[to + byte] = pattern(from + byte);
        }
        return;
    };
    for i in 0..outer.extent {
        let from = from + (i * outer.source.bytes) as usize;
        let to = to + (i * outer.destination.bytes) as usize;
        naive(inner, run, (from, to), expected);
    }
}

#[test]
fn a_nest_moves_its_runs_and_no_other_byte() {
    let mut runner = proptest::test_runner::TestRunner::new(config(600));
    let kinds = std::cell::RefCell::new([0u32; 4]);
    runner
        .run(&cases(), |case| {
            for manner in manners() {
                let kind = match check(&case, manner) {
                    NestKernel::Run(_) => 0,
                    NestKernel::Transpose(_) => 1,
                    NestKernel::Gather(_) => 2,
                    NestKernel::Tile(_) => 3,
                };
                kinds.borrow_mut()[kind] += 1;
            }
            Ok(())
        })
        .unwrap();
    let kinds = kinds.into_inner();
    // Tiles are rare among random nests; they have a test of their own.
    assert!(kinds.iter().take(3).all(|n| *n > 50), "{kinds:?}");
    eprintln!("runs, transposes, gathers, tiles: {kinds:?}");
}

/// Converts both halves of an engine's tiles, `NCN16C2` and `CNC16N2`, to token-major order and
/// back.
#[test]
fn nested_tiles_are_staged_together() {
    let mut tiles = 0;
    for (extents, source, destination) in [
        // C16, N2, C/16, N/2: dense in the order of the tiles on one side, of tokens on the other.
        (vec![16, 2, 8, 8], [1, 0, 3, 2], [0, 2, 1, 3]),
        (vec![16, 2, 8, 8], [0, 2, 1, 3], [1, 0, 3, 2]),
        // C2, N16, C/2, one byte each.
        (vec![2, 16, 64], [0, 1, 2, 9], [0, 2, 1, 9]),
        (vec![4, 8, 32], [1, 0, 2, 9], [0, 2, 1, 9]),
        (vec![8, 4, 32], [0, 2, 1, 9], [1, 0, 2, 9]),
    ] {
        for run in [1, 2, 4, 8] {
            let side = |order: [usize; 4]| {
                let order = order.into_iter().filter(|axis| *axis < extents.len());
                order.map(|axis| (axis, 0)).collect::<Vec<_>>()
            };
            let case = NestCase {
                run,
                extents: extents.clone(),
                source: side(source),
                destination: side(destination),
                phase: 0,
                aligned: true,
                end: true,
            };
            for manner in manners() {
                tiles += usize::from(matches!(check(&case, manner), NestKernel::Tile(_)));
            }
        }
    }
    assert!(tiles >= 10, "{tiles}");
}

/// Matrices that are staged in pieces, and one that cannot be split.
#[test]
fn large_matrices_are_cut_and_arrive_whole() {
    for (rows, columns, run) in [
        (512, 16, 2),
        (128, 256, 2),
        (128, 257, 2),
        (4096, 8, 1),
        (16, 4096, 4),
        (131, 509, 1),
    ] {
        let case = NestCase {
            run,
            extents: vec![rows, columns],
            source: vec![(1, 0), (0, 0)],
            destination: vec![(0, 0), (1, 0)],
            phase: 0,
            aligned: true,
            end: true,
        };
        for manner in manners() {
            let kernel = check(&case, manner);
            assert!(matches!(kernel, NestKernel::Transpose(_)), "{kernel:?}");
        }
    }
}
