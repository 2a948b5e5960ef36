//! Transposes: choice of the vector width, and the edges of a matrix.
//!
//! ```text
//! source        row r: columns adjacent elements, rows source_stride bytes apart
//! destination   row c: rows    adjacent elements, rows destination_stride bytes apart
//! ```

use super::{CopyHop, SimdLevel};

/// A matrix of small elements that is written transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct MatrixTranspose {
    /// Bytes of an element: 1, 2, 4, 8 or 16.
    pub(in super::super) element: usize,
    /// Rows of the source.
    pub(in super::super) rows: usize,
    /// Elements of a source row, and rows of the destination.
    pub(in super::super) columns: usize,
    /// Bytes from one row of the source to the next.
    pub(in super::super) source_stride: usize,
    /// Bytes from one row of the destination to the next.
    pub(in super::super) destination_stride: usize,
}

impl MatrixTranspose {
    /// Whether elements of `bytes` bytes can be transposed.
    pub(in super::super) fn takes(bytes: u64) -> bool {
        matches!(bytes, 1 | 2 | 4 | 8 | 16)
    }

    /// Bytes of the matrix.
    pub(in super::super) fn bytes(&self) -> usize {
        self.element * self.rows * self.columns
    }

    /// Bytes of a row of the source.
    pub(in super::super) fn source_row_bytes(&self) -> usize {
        self.element * self.columns
    }

    /// Bytes of a row of the destination.
    pub(in super::super) fn destination_row_bytes(&self) -> usize {
        self.element * self.rows
    }

    /// Bytes from the first to the last one, in the source and in the destination.
    pub(in super::super) fn spans(&self) -> (usize, usize) {
        (
            self.source_row_bytes() + (self.rows - 1) * self.source_stride,
            self.destination_row_bytes() + (self.columns - 1) * self.destination_stride,
        )
    }

    /// The same matrix with adjacent destination rows.
    pub(in super::super) fn dense(&self) -> MatrixTranspose {
        MatrixTranspose {
            destination_stride: self.destination_row_bytes(),
            ..*self
        }
    }
}

/// Transposes `matrix` with the instructions of `level`.
///
/// # Safety
/// As for [`super::LevelKernels::transpose`]; the machine has `level`.
pub(super) unsafe fn transpose(level: SimdLevel, matrix: &MatrixTranspose, hop: CopyHop) {
    // SAFETY: passed on to the caller.
    if unsafe { transpose_vectors(level, matrix, hop) } {
        return;
    }
    match matrix.element {
        // SAFETY: passed on to the caller, with elements of the size of the array, in all of
        // these.
        1 => unsafe { elements::<[u8; 1]>(matrix, hop) },
        // SAFETY: as above.
        2 => unsafe { elements::<[u8; 2]>(matrix, hop) },
        // SAFETY: as above.
        4 => unsafe { elements::<[u8; 4]>(matrix, hop) },
        // SAFETY: as above.
        8 => unsafe { elements::<[u8; 8]>(matrix, hop) },
        // SAFETY: as above.
        _ => unsafe { elements::<[u8; 16]>(matrix, hop) },
    }
}

/// Transposes `matrix` in registers, if it is large enough for one vector. Returns whether it did.
///
/// # Safety
/// As for [`transpose`].
#[cfg(target_arch = "x86_64")]
unsafe fn transpose_vectors(level: SimdLevel, matrix: &MatrixTranspose, hop: CopyHop) -> bool {
    // The widest vectors that a row of the source fills. Matrices of bytes use half of that width:
    // 16 vectors of 64 bytes and their results do not fit the registers.
    let lanes = matrix.source_row_bytes() / super::vectors::LANE_BYTES;
    let elements = super::vectors::LANE_BYTES / matrix.element;
    if matrix.rows < elements || lanes == 0 {
        // SAFETY: every 64-bit x86 has SSE2; the rest is passed on.
        return level != SimdLevel::Portable
            && unsafe { super::x86::transpose_narrow(matrix, hop) };
    }
    match level {
        // SAFETY: the machine has the level, in all of these; the rest is passed on.
        SimdLevel::Avx512 if lanes >= 4 && matrix.element > 1 => unsafe {
            super::x86::transpose_avx512(matrix, hop)
        },
        // SAFETY: as above.
        SimdLevel::Avx512 | SimdLevel::Avx2 if lanes >= 2 => unsafe {
            super::x86::transpose_avx2(matrix, hop)
        },
        // SAFETY: as above.
        SimdLevel::Avx512 | SimdLevel::Avx2 => unsafe { super::x86::transpose_sse2(matrix, hop) },
        _ => false,
    }
}

/// As above.
///
/// # Safety
/// As for [`transpose`].
#[cfg(target_arch = "aarch64")]
unsafe fn transpose_vectors(level: SimdLevel, matrix: &MatrixTranspose, hop: CopyHop) -> bool {
    if level != SimdLevel::Neon {
        return false;
    }
    // SAFETY: every 64-bit ARM has NEON; the rest is passed on.
    let done = unsafe { super::arm::transpose_neon(matrix, hop) };
    // SAFETY: as above.
    done || unsafe { super::arm::transpose_narrow(matrix, hop) }
}

/// # Safety
/// It does nothing.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn transpose_vectors(_: SimdLevel, _: &MatrixTranspose, _: CopyHop) -> bool {
    false
}

/// Side of a square of elements that is copied at a time, so that a line is used completely while
/// it is in the cache.
const SQUARE: usize = 16;

/// # Safety
/// As for [`transpose`], with elements of the size of `T`.
unsafe fn elements<T: Copy>(matrix: &MatrixTranspose, hop: CopyHop) {
    let size = size_of::<T>();
    for row_start in (0..matrix.rows).step_by(SQUARE) {
        let row_end = (row_start + SQUARE).min(matrix.rows);
        for column_start in (0..matrix.columns).step_by(SQUARE) {
            let column_end = (column_start + SQUARE).min(matrix.columns);
            for column in column_start..column_end {
                let to = hop
                    .destination
                    .wrapping_add(column * matrix.destination_stride);
                for row in row_start..row_end {
                    let from = row * matrix.source_stride + column * size;
                    let (from, to) = (hop.source.wrapping_add(from), to.wrapping_add(row * size));
                    // SAFETY: row and column are inside the matrix, so these are elements of its
                    // ends.
                    unsafe { move_element::<T>(from, to) };
                }
            }
        }
    }
}

/// # Safety
/// Both pointers are valid for one `T`, with any alignment.
#[inline]
unsafe fn move_element<T: Copy>(from: *const u8, to: *mut u8) {
    // SAFETY: the caller's promise; byte arrays have no invalid values and no alignment.
    let element = unsafe { from.cast::<T>().read_unaligned() };
    // SAFETY: as above.
    unsafe { to.cast::<T>().write_unaligned(element) };
}
