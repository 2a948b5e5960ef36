//! NEON: the vector operations of transposes.

use std::arch::aarch64::{
    uint8x16_t, vdupq_n_u8, vld1q_u8, vreinterpretq_u8_u16, vreinterpretq_u8_u32,
    vreinterpretq_u8_u64, vreinterpretq_u16_u8, vreinterpretq_u32_u8, vreinterpretq_u64_u8,
    vst1q_u8, vzip1q_u8, vzip1q_u16, vzip1q_u32, vzip1q_u64, vzip2q_u8, vzip2q_u16, vzip2q_u32,
    vzip2q_u64,
};

use super::{
    Hop, Transpose,
    vectors::{narrow_kernel, transpose_kernel},
};

#[inline]
#[target_feature(enable = "neon")]
fn zero() -> uint8x16_t {
    vdupq_n_u8(0)
}

/// # Safety
/// 16 bytes are readable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load(from: *const u8) -> uint8x16_t {
    // SAFETY: the caller's promise.
    unsafe { vld1q_u8(from) }
}

/// # Safety
/// 16 bytes are writable.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store(vector: uint8x16_t, to: *mut u8, _: usize) {
    // SAFETY: the caller's promise.
    unsafe { vst1q_u8(to, vector) };
}

/// Defines the low and the high interleaving of elements of one size.
macro_rules! interleavings {
    ($low:ident, $high:ident, $zip1:path, $zip2:path, $from:path, $to:path) => {
        #[inline]
        #[target_feature(enable = "neon")]
        fn $low(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
            $to($zip1($from(a), $from(b)))
        }

        #[inline]
        #[target_feature(enable = "neon")]
        fn $high(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
            $to($zip2($from(a), $from(b)))
        }
    };
}

interleavings!(
    low_2,
    high_2,
    vzip1q_u16,
    vzip2q_u16,
    vreinterpretq_u16_u8,
    vreinterpretq_u8_u16
);
interleavings!(
    low_4,
    high_4,
    vzip1q_u32,
    vzip2q_u32,
    vreinterpretq_u32_u8,
    vreinterpretq_u8_u32
);
interleavings!(
    low_8,
    high_8,
    vzip1q_u64,
    vzip2q_u64,
    vreinterpretq_u64_u8,
    vreinterpretq_u8_u64
);

transpose_kernel!(
    bytes_1, "neon", 16, 1, zero, load, vzip1q_u8, vzip2q_u8, store
);
transpose_kernel!(bytes_2, "neon", 8, 1, zero, load, low_2, high_2, store);
transpose_kernel!(bytes_4, "neon", 4, 1, zero, load, low_4, high_4, store);
transpose_kernel!(bytes_8, "neon", 2, 1, zero, load, low_8, high_8, store);

narrow_kernel!(
    narrow_1, "neon", 16, zero, load, vzip1q_u8, vzip2q_u8, store
);
narrow_kernel!(narrow_2, "neon", 8, zero, load, low_2, high_2, store);
narrow_kernel!(narrow_4, "neon", 4, zero, load, low_4, high_4, store);

/// Returns whether it transposed the matrix. It supports matrices with few rows or few columns that
/// are dense on that side.
///
/// # Safety
/// As for [`super::LevelKernels::transpose`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn transpose_narrow(matrix: &Transpose, hop: Hop) -> bool {
    match matrix.element {
        // SAFETY: passed on to the caller, in all of these.
        1 => unsafe { narrow_1(matrix, hop) },
        // SAFETY: as above.
        2 => unsafe { narrow_2(matrix, hop) },
        // SAFETY: as above.
        4 => unsafe { narrow_4(matrix, hop) },
        _ => false,
    }
}

/// Returns whether it transposed the matrix. It supports matrices that are large enough for one
/// vector.
///
/// # Safety
/// As for [`super::LevelKernels::transpose`].
#[target_feature(enable = "neon")]
pub(super) unsafe fn transpose_neon(matrix: &Transpose, hop: Hop) -> bool {
    match matrix.element {
        // SAFETY: passed on to the caller, in all of these.
        1 => unsafe { bytes_1(matrix, hop) },
        // SAFETY: as above.
        2 => unsafe { bytes_2(matrix, hop) },
        // SAFETY: as above.
        4 => unsafe { bytes_4(matrix, hop) },
        // SAFETY: as above.
        8 => unsafe { bytes_8(matrix, hop) },
        _ => false,
    }
}
