//! Transposes in registers, written once for vectors of one, two and four lanes of 16 bytes.
//!
//! A lane holds `n` = 16 / element elements. The kernel loads `n` vectors from `n` rows. Then,
//! log2(n) times, it interleaves vector `i` and vector `i + n/2` into vectors `2i` and `2i + 1`.
//! Each step rotates the number (row, column) of an element by one bit. So at the end row and
//! column are swapped, independently in every lane:
//!
//! ```text
//! lane l of vector i   =   n rows of column  l * n + i   =   16 bytes of one destination row
//! ```

/// Bytes of a lane.
pub(super) const LANE_BYTES: usize = 16;

/// The starts of pieces of `length` that cover `0..total`. The last piece is moved back to end at
/// `total`. Empty if `total` is shorter than a piece.
pub(super) fn starts(total: usize, length: usize) -> impl Iterator<Item = usize> + Clone {
    let last = total.checked_sub(length);
    let count = last.map_or(0, |last| last.div_ceil(length) + 1);
    (0..count).map(move |index| (index * length).min(last.unwrap_or(0)))
}

/// Defines `$name`, which transposes a matrix of elements of `16 / $n` bytes with vectors of
/// `$lanes` lanes. It returns whether the matrix is large enough for one vector.
macro_rules! transpose_kernel {
    ($name:ident, $features:literal, $n:literal, $lanes:literal,
     $zero:path, $load:path, $low:path, $high:path, $store:path) => {
        /// # Safety
        /// As for [`super::LevelKernels::transpose`], with elements of the size of the kernel; the
        /// machine has the instructions.
        #[target_feature(enable = $features)]
        unsafe fn $name(matrix: &MatrixTranspose, hop: CopyHop) -> bool {
            const N: usize = $n;
            const ELEMENT: usize = super::vectors::LANE_BYTES / N;
            const COLUMNS: usize = N * $lanes;
            if matrix.rows < N || matrix.columns < COLUMNS {
                return false;
            }
            let rows = super::vectors::starts(matrix.rows, N);
            for column in super::vectors::starts(matrix.columns, COLUMNS) {
                for row in rows.clone() {
                    let from = row * matrix.source_stride + column * ELEMENT;
                    let mut vectors = [$zero(); N];
                    for (index, vector) in vectors.iter_mut().enumerate() {
                        let from = from + index * matrix.source_stride;
                        // SAFETY: `starts` keeps the N rows from `row` on and the COLUMNS elements
                        // from `column` on inside the matrix.
                        *vector = unsafe { $load(hop.source.wrapping_add(from)) };
                    }
                    for _ in 0..N.ilog2() {
                        let mut next = [$zero(); N];
                        let (firsts, seconds) = vectors.split_at(N / 2);
                        let pairs = firsts.iter().zip(seconds);
                        for ((a, b), out) in pairs.zip(next.as_chunks_mut::<2>().0) {
                            *out = [$low(*a, *b), $high(*a, *b)];
                        }
                        vectors = next;
                    }
                    let to = column * matrix.destination_stride + row * ELEMENT;
                    for (index, vector) in vectors.iter().enumerate() {
                        let to = to + index * matrix.destination_stride;
                        let to = hop.destination.wrapping_add(to);
                        // SAFETY: lane l is N elements from `row` on of the destination row
                        // `column + index + l * N`, which `starts` keeps inside the matrix.
                        unsafe { $store(*vector, to, N * matrix.destination_stride) };
                    }
                }
            }
            true
        }
    };
}

/// Defines `$name`, which transposes matrices with 2, 4 or 8 rows or columns of elements of
/// `16 / $n` bytes, fewer than a lane has elements. It returns whether it supports the matrix.
///
/// It loads `WIDE` vectors that hold `$n` rows of few columns, or few rows of `$n` columns, one
/// after the other. Each step interleaves vector `i` with vector `i + WIDE / 2`. That rotates the
/// position of every element by one bit, here across all vectors, until row and column are swapped.
macro_rules! narrow_kernel {
    ($name:ident, $features:literal, $n:literal,
     $zero:path, $load:path, $low:path, $high:path, $store:path) => {
        /// # Safety
        /// As for [`super::LevelKernels::transpose`], with elements of the size of the kernel; the
        /// machine has the instructions.
        #[target_feature(enable = $features)]
        unsafe fn $name(matrix: &MatrixTranspose, hop: CopyHop) -> bool {
            const N: usize = $n;
            const ELEMENT: usize = super::vectors::LANE_BYTES / N;

            /// # Safety
            /// `WIDE` vectors are readable from `source` on, `from` bytes apart, and writable
            /// from `destination` on, `to` bytes apart.
            #[target_feature(enable = $features)]
            #[inline]
            unsafe fn rotate<const WIDE: usize, const BITS: u32>(
                (source, from): (*const u8, usize),
                (destination, to): (*mut u8, usize),
            ) {
                let mut vectors = [$zero(); WIDE];
                for (index, vector) in vectors.iter_mut().enumerate() {
                    // SAFETY: the caller's promise.
                    *vector = unsafe { $load(source.wrapping_add(index * from)) };
                }
                for _ in 0..BITS {
                    let mut next = [$zero(); WIDE];
                    let (firsts, seconds) = vectors.split_at(WIDE / 2);
                    let pairs = firsts.iter().zip(seconds);
                    for ((a, b), out) in pairs.zip(next.as_chunks_mut::<2>().0) {
                        *out = [$low(*a, *b), $high(*a, *b)];
                    }
                    vectors = next;
                }
                for (index, vector) in vectors.iter().enumerate() {
                    // SAFETY: the caller's promise.
                    unsafe { $store(*vector, destination.wrapping_add(index * to), 0) };
                }
            }

            const LANE: usize = super::vectors::LANE_BYTES;
            const N_BITS: u32 = N.ilog2();
            let dense_source = matrix.source_stride == matrix.source_row_bytes();
            let dense_destination = matrix.destination_stride == matrix.destination_row_bytes();
            let (wide, by_rows) = match (matrix.rows, matrix.columns) {
                (rows, 2 | 4 | 8) if matrix.columns < N && rows >= N && dense_source => {
                    (matrix.columns, true)
                }
                (2 | 4 | 8, columns) if matrix.rows < N && columns >= N && dense_destination => {
                    (matrix.rows, false)
                }
                _ => return false,
            };
            let length = if by_rows { matrix.rows } else { matrix.columns };
            for start in super::vectors::starts(length, N) {
                // N rows of `wide` elements are `wide` consecutive lanes, and become N elements of
                // `wide` destination rows; or N columns of `wide` rows become `wide` lanes.
                let (from, to) = if by_rows {
                    let from = hop.source.wrapping_add(start * matrix.source_stride);
                    let to = hop.destination.wrapping_add(start * ELEMENT);
                    ((from, LANE), (to, matrix.destination_stride))
                } else {
                    let from = hop.source.wrapping_add(start * ELEMENT);
                    let to = start * matrix.destination_stride;
                    let to = hop.destination.wrapping_add(to);
                    ((from, matrix.source_stride), (to, LANE))
                };
                match (wide, by_rows) {
                    // SAFETY: `starts` keeps N rows or columns from `start` on inside the matrix,
                    // and the dense side makes them consecutive lanes.
                    (2, true) => unsafe { rotate::<2, N_BITS>(from, to) },
                    // SAFETY: as above.
                    (4, true) => unsafe { rotate::<4, N_BITS>(from, to) },
                    // SAFETY: as above.
                    (_, true) => unsafe { rotate::<8, N_BITS>(from, to) },
                    // SAFETY: as above.
                    (2, false) => unsafe { rotate::<2, 1>(from, to) },
                    // SAFETY: as above.
                    (4, false) => unsafe { rotate::<4, 2>(from, to) },
                    // SAFETY: as above.
                    (_, false) => unsafe { rotate::<8, 3>(from, to) },
                }
            }
            true
        }
    };
}

pub(super) use {narrow_kernel, transpose_kernel};

#[cfg(test)]
mod tests {
    use super::starts;

    #[test]
    fn pieces_cover_everything_and_stay_inside() {
        for length in 1..9 {
            for total in 0..40 {
                let mut covered = vec![false; total];
                for start in starts(total, length) {
                    assert!(start + length <= total);
                    covered[start..start + length].fill(true);
                }
                assert_eq!(covered.iter().all(|c| *c), total >= length || total == 0);
            }
        }
    }
}
