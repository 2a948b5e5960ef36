//! Transposes of every small size, and runs of every small length and alignment.

use super::{
    super::kernel::{CopyHop, LevelKernels, MatrixTranspose, SimdLevel},
    guarded::{GuardedBytes, GuardedEnd},
    pattern,
};

const POISON: u8 = 0xa5;

/// Transposes with `level` between guard pages and compares element by element.
fn check_transpose(level: SimdLevel, matrix: MatrixTranspose, end: GuardedEnd) {
    let source_bytes = matrix.source_row_bytes() + (matrix.rows - 1) * matrix.source_stride;
    let destination_bytes =
        matrix.destination_row_bytes() + (matrix.columns - 1) * matrix.destination_stride;
    let source = GuardedBytes::new(source_bytes, end, pattern);
    let destination = GuardedBytes::new(destination_bytes, end, |_| POISON);
    let mut expected = vec![POISON; destination_bytes];
    for row in 0..matrix.rows {
        for column in 0..matrix.columns {
            let from = row * matrix.source_stride + column * matrix.element;
            let to = column * matrix.destination_stride + row * matrix.element;
            for byte in 0..matrix.element {
                expected[to + byte] = pattern(from + byte);
            }
        }
    }
    let hop = CopyHop {
        source: source.pointer(),
        destination: destination.pointer(),
    };
    // SAFETY: both have exactly the spans of the matrix, and nothing else refers to them.
    unsafe { LevelKernels::new(level).transpose(&matrix, hop) };
    assert!(
        destination.as_ref() == expected,
        "{level:?} {end:?} {matrix:?}"
    );
}

#[test]
fn every_level_transposes_every_element_at_every_size_and_no_byte_beyond() {
    for level in SimdLevel::available() {
        for element in [1, 2, 4, 8, 16] {
            let sizes: Vec<usize> = (1..=20).chain([24, 31, 32, 33, 47, 64, 65, 100]).collect();
            for &rows in &sizes {
                for &columns in &sizes {
                    let (pad, end) = match (rows + columns) % 3 {
                        0 => (0, GuardedEnd::High),
                        1 => (element, GuardedEnd::Low),
                        _ => (3, GuardedEnd::High),
                    };
                    let matrix = MatrixTranspose {
                        element,
                        rows,
                        columns,
                        source_stride: columns * element + pad,
                        destination_stride: rows * element + 2 * pad,
                    };
                    check_transpose(level, matrix, end);
                }
            }
        }
    }
}

#[test]
fn runs_of_every_length_and_phase_are_streamed_and_no_byte_beyond() {
    for level in SimdLevel::available() {
        for bytes in (1..=70).chain([127, 128, 129, 191, 200, 256, 257, 1000, 4097]) {
            for phase in [0, 1, 2, 31, 32, 48, 63, 64] {
                for end in [GuardedEnd::Low, GuardedEnd::High] {
                    let source = GuardedBytes::new(bytes, end, pattern);
                    let destination = GuardedBytes::new(bytes + phase, end, |_| POISON);
                    let hops = [CopyHop {
                        source: source.pointer(),
                        destination: destination.pointer().wrapping_add(phase),
                    }];
                    let kernels = LevelKernels::new(level);
                    // SAFETY: both ends have `bytes` bytes, and nothing else refers to them.
                    unsafe { kernels.stream_runs(&hops, 1, bytes, 1) };
                    kernels.fence();
                    let (before, run) = destination.as_ref().split_at(phase);
                    assert!(before.iter().all(|b| *b == POISON), "{level:?} {bytes}");
                    assert!(run == source.as_ref(), "{level:?} {bytes} {phase} {end:?}");
                }
            }
        }
    }
}

#[test]
fn hops_after_the_count_are_only_prefetched() {
    for level in SimdLevel::available() {
        let source = GuardedBytes::new(1024, GuardedEnd::High, pattern);
        let destination = GuardedBytes::new(1024, GuardedEnd::High, |_| POISON);
        let hops: Vec<CopyHop> = (0..4)
            .map(|i| CopyHop {
                source: source.pointer().wrapping_add(i * 256),
                destination: destination.pointer().wrapping_add((3 - i) * 256),
            })
            .collect();
        let kernels = LevelKernels::new(level);
        // SAFETY: every hop has 256 bytes at both ends, and nothing else refers to them.
        unsafe { kernels.stream_runs(&hops, 3, 256, 2) };
        kernels.fence();
        let found = destination.as_ref();
        let expected = source.as_ref();
        assert!(found[..256].iter().all(|b| *b == POISON), "{level:?}");
        for i in 1..4 {
            let run = &expected[(3 - i) * 256..][..256];
            assert_eq!(&found[i * 256..][..256], run, "{level:?}");
        }
    }
}
