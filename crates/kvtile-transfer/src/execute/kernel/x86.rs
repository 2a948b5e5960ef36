//! AVX-512, AVX2 and SSE2: streaming stores, prefetches, and the vector operations of transposes.

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm_setzero_si128,
    _mm_sfence, _mm_storeu_si128, _mm_unpackhi_epi8, _mm_unpackhi_epi16, _mm_unpackhi_epi32,
    _mm_unpackhi_epi64, _mm_unpacklo_epi8, _mm_unpacklo_epi16, _mm_unpacklo_epi32,
    _mm_unpacklo_epi64, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256,
    _mm256_setzero_si256, _mm256_storeu_si256, _mm256_stream_si256, _mm256_unpackhi_epi8,
    _mm256_unpackhi_epi16, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi8,
    _mm256_unpacklo_epi16, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm512_castsi512_si128,
    _mm512_extracti32x4_epi32, _mm512_loadu_si512, _mm512_setzero_si512, _mm512_storeu_si512,
    _mm512_stream_si512, _mm512_unpackhi_epi8, _mm512_unpackhi_epi16, _mm512_unpackhi_epi32,
    _mm512_unpackhi_epi64, _mm512_unpacklo_epi8, _mm512_unpacklo_epi16, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};

use super::{
    CopyHop, LINE_BYTES, LoopStride, MatrixTranspose,
    vectors::{narrow_kernel, transpose_kernel},
};

/// Prefetches the line at `address`, which may be invalid.
#[inline]
pub(super) fn prefetch(address: *const u8) {
    // SAFETY: a prefetch has no effect that a program can observe, and never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}

/// Orders earlier streaming stores before later stores.
pub(super) fn fence() {
    // SAFETY: every 64-bit x86 has SSE, and a fence touches no memory.
    unsafe { _mm_sfence() };
}

/// Defines `$name`, which streams runs line by line with `$line`.
macro_rules! stream_kernel {
    ($name:ident, $features:literal, $line:path) => {
        /// # Safety
        /// As for [`super::LevelKernels::stream_runs`]; the machine has the instructions.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(hops: &[CopyHop], count: usize, bytes: usize, ahead: usize) {
            for (index, hop) in hops.iter().enumerate().take(count) {
                let CopyHop {
                    mut source,
                    mut destination,
                } = *hop;
                // After the last hop, the prefetches hit the current run, which costs nothing.
                let mut next = hops.get(index + ahead).unwrap_or(hop).source;
                let mut left = bytes;
                let past = destination.addr() % LINE_BYTES;
                if past != 0 {
                    let head = (LINE_BYTES - past).min(left);
                    prefetch(next);
                    // SAFETY: the first `head` bytes of the run.
                    unsafe { std::ptr::copy_nonoverlapping(source, destination, head) };
                    source = source.wrapping_add(head);
                    destination = destination.wrapping_add(head);
                    next = next.wrapping_add(head);
                    left -= head;
                }
                while left >= LINE_BYTES {
                    prefetch(next);
                    // SAFETY: at least a line is left on both ends, and the destination is aligned
                    // to a line.
                    unsafe { $line(source, destination) };
                    source = source.wrapping_add(LINE_BYTES);
                    destination = destination.wrapping_add(LINE_BYTES);
                    next = next.wrapping_add(LINE_BYTES);
                    left -= LINE_BYTES;
                }
                if left > 0 {
                    prefetch(next);
                    // SAFETY: the last `left` bytes of the run.
                    unsafe { std::ptr::copy_nonoverlapping(source, destination, left) };
                }
            }
        }
    };
}

stream_kernel!(stream_runs_avx512, "avx512f", stream_line_avx512);
stream_kernel!(stream_runs_avx2, "avx2", stream_line_avx2);

/// Defines `$name`, which copies rows of a few lines.
macro_rules! rows_kernel {
    ($name:ident, $features:literal, $load:path, $store:path) => {
        /// # Safety
        /// As for [`super::LevelKernels::copy_rows`], with runs of `lines` lines; the machine has the
        /// instructions.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(first: CopyHop, rows: LoopStride, lines: usize) {
            for row in 0..rows.extent {
                let mut source = first.source.wrapping_add(row * rows.source);
                let mut destination = first.destination.wrapping_add(row * rows.destination);
                let mut left = lines;
                // Four loads before the first store: a store that waits for its line does not delay
                // the next loads.
                while left >= 4 {
                    // SAFETY: four lines of the run of this row are left, here and below.
                    let first = unsafe { $load(source) };
                    // SAFETY: as above.
                    let second = unsafe { $load(source.wrapping_add(LINE_BYTES)) };
                    // SAFETY: as above.
                    let third = unsafe { $load(source.wrapping_add(2 * LINE_BYTES)) };
                    // SAFETY: as above.
                    let fourth = unsafe { $load(source.wrapping_add(3 * LINE_BYTES)) };
                    // SAFETY: as above.
                    unsafe { $store(destination, first) };
                    // SAFETY: as above.
                    unsafe { $store(destination.wrapping_add(LINE_BYTES), second) };
                    // SAFETY: as above.
                    unsafe { $store(destination.wrapping_add(2 * LINE_BYTES), third) };
                    // SAFETY: as above.
                    unsafe { $store(destination.wrapping_add(3 * LINE_BYTES), fourth) };
                    source = source.wrapping_add(4 * LINE_BYTES);
                    destination = destination.wrapping_add(4 * LINE_BYTES);
                    left -= 4;
                }
                for _ in 0..left {
                    // SAFETY: a line of the run of this row.
                    let line = unsafe { $load(source) };
                    // SAFETY: as above.
                    unsafe { $store(destination, line) };
                    source = source.wrapping_add(LINE_BYTES);
                    destination = destination.wrapping_add(LINE_BYTES);
                }
            }
        }
    };
}

rows_kernel!(
    copy_rows_avx512,
    "avx512f",
    load_line_avx512,
    store_line_avx512
);
rows_kernel!(copy_rows_avx2, "avx2", load_line_avx2, store_line_avx2);

/// # Safety
/// A line is readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_line_avx512(source: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_si512(source.cast()) }
}

/// # Safety
/// A line is writable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_line_avx512(destination: *mut u8, line: __m512i) {
    // SAFETY: the caller's promise.
    unsafe { _mm512_storeu_si512(destination.cast(), line) };
}

/// # Safety
/// A line is readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_line_avx2(source: *const u8) -> [__m256i; 2] {
    // SAFETY: the caller's promise.
    let low = unsafe { _mm256_loadu_si256(source.cast()) };
    // SAFETY: the caller's promise.
    let high = unsafe { _mm256_loadu_si256(source.wrapping_add(LINE_BYTES / 2).cast()) };
    [low, high]
}

/// # Safety
/// A line is writable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_line_avx2(destination: *mut u8, [low, high]: [__m256i; 2]) {
    // SAFETY: the caller's promise.
    unsafe { _mm256_storeu_si256(destination.cast(), low) };
    // SAFETY: the caller's promise.
    unsafe { _mm256_storeu_si256(destination.wrapping_add(LINE_BYTES / 2).cast(), high) };
}

/// # Safety
/// A line is readable at `source` and writable at `destination`, which is a multiple of a line.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn stream_line_avx512(source: *const u8, destination: *mut u8) {
    // SAFETY: the caller's promise.
    let line = unsafe { _mm512_loadu_si512(source.cast()) };
    // SAFETY: the caller's promise.
    unsafe { _mm512_stream_si512(destination.cast(), line) };
}

/// # Safety
/// As for [`stream_line_avx512`].
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn stream_line_avx2(source: *const u8, destination: *mut u8) {
    const HALF: usize = LINE_BYTES / 2;
    // SAFETY: the caller's promise.
    let low = unsafe { _mm256_loadu_si256(source.cast()) };
    // SAFETY: the caller's promise.
    let high = unsafe { _mm256_loadu_si256(source.wrapping_add(HALF).cast()) };
    // SAFETY: the caller's promise.
    unsafe { _mm256_stream_si256(destination.cast(), low) };
    // SAFETY: the caller's promise; half a line further is aligned to half a line.
    unsafe { _mm256_stream_si256(destination.wrapping_add(HALF).cast(), high) };
}

/// # Safety
/// 16 bytes are readable.
#[inline]
unsafe fn load_128(from: *const u8) -> __m128i {
    // SAFETY: the caller's promise.
    unsafe { _mm_loadu_si128(from.cast()) }
}

/// # Safety
/// 16 bytes are writable.
#[inline]
unsafe fn store_128(vector: __m128i, to: *mut u8, _: usize) {
    // SAFETY: the caller's promise.
    unsafe { _mm_storeu_si128(to.cast(), vector) };
}

/// # Safety
/// 32 bytes are readable.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_256(from: *const u8) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

/// # Safety
/// 16 bytes are writable for each of the two lanes, `distance` bytes apart.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_256(vector: __m256i, to: *mut u8, distance: usize) {
    let first = _mm256_castsi256_si128(vector);
    let second = _mm256_extracti128_si256::<1>(vector);
    // SAFETY: the caller's promise.
    unsafe { store_128(first, to, 0) };
    // SAFETY: the caller's promise.
    unsafe { store_128(second, to.wrapping_add(distance), 0) };
}

/// # Safety
/// 64 bytes are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load_512(from: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_si512(from.cast()) }
}

/// # Safety
/// 16 bytes are writable for each of the four lanes, `distance` bytes apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn store_512(vector: __m512i, to: *mut u8, distance: usize) {
    let lanes = [
        _mm512_castsi512_si128(vector),
        _mm512_extracti32x4_epi32::<1>(vector),
        _mm512_extracti32x4_epi32::<2>(vector),
        _mm512_extracti32x4_epi32::<3>(vector),
    ];
    for (index, lane) in lanes.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { store_128(lane, to.wrapping_add(index * distance), 0) };
    }
}

/// Defines the kernels of one vector width for all element sizes, and `$name`, which selects one.
macro_rules! transposes {
    ($name:ident, $features:literal, $lanes:literal, $zero:path, $load:path, $store:path,
     $low1:path, $high1:path, $low2:path, $high2:path,
     $low4:path, $high4:path, $low8:path, $high8:path) => {
        /// Returns whether it transposed the matrix. It supports matrices that are large enough for
        /// one vector.
        ///
        /// # Safety
        /// As for [`super::LevelKernels::transpose`]; the machine has the instructions.
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(matrix: &MatrixTranspose, hop: CopyHop) -> bool {
            transpose_kernel!(
                bytes_1, $features, 16, $lanes, $zero, $load, $low1, $high1, $store
            );
            transpose_kernel!(
                bytes_2, $features, 8, $lanes, $zero, $load, $low2, $high2, $store
            );
            transpose_kernel!(
                bytes_4, $features, 4, $lanes, $zero, $load, $low4, $high4, $store
            );
            transpose_kernel!(
                bytes_8, $features, 2, $lanes, $zero, $load, $low8, $high8, $store
            );
            // One element per lane: nothing is interleaved.
            transpose_kernel!(
                bytes_16, $features, 1, $lanes, $zero, $load, $low8, $high8, $store
            );
            match matrix.element {
                // SAFETY: passed on to the caller, in all of these.
                1 => unsafe { bytes_1(matrix, hop) },
                // SAFETY: as above.
                2 => unsafe { bytes_2(matrix, hop) },
                // SAFETY: as above.
                4 => unsafe { bytes_4(matrix, hop) },
                // SAFETY: as above.
                8 => unsafe { bytes_8(matrix, hop) },
                // SAFETY: as above.
                _ => unsafe { bytes_16(matrix, hop) },
            }
        }
    };
}

transposes!(
    transpose_sse2,
    "sse2",
    1,
    _mm_setzero_si128,
    load_128,
    store_128,
    _mm_unpacklo_epi8,
    _mm_unpackhi_epi8,
    _mm_unpacklo_epi16,
    _mm_unpackhi_epi16,
    _mm_unpacklo_epi32,
    _mm_unpackhi_epi32,
    _mm_unpacklo_epi64,
    _mm_unpackhi_epi64
);
transposes!(
    transpose_avx2,
    "avx2",
    2,
    _mm256_setzero_si256,
    load_256,
    store_256,
    _mm256_unpacklo_epi8,
    _mm256_unpackhi_epi8,
    _mm256_unpacklo_epi16,
    _mm256_unpackhi_epi16,
    _mm256_unpacklo_epi32,
    _mm256_unpackhi_epi32,
    _mm256_unpacklo_epi64,
    _mm256_unpackhi_epi64
);
transposes!(
    transpose_avx512,
    "avx512f,avx512bw",
    4,
    _mm512_setzero_si512,
    load_512,
    store_512,
    _mm512_unpacklo_epi8,
    _mm512_unpackhi_epi8,
    _mm512_unpacklo_epi16,
    _mm512_unpackhi_epi16,
    _mm512_unpacklo_epi32,
    _mm512_unpackhi_epi32,
    _mm512_unpacklo_epi64,
    _mm512_unpackhi_epi64
);

narrow_kernel!(
    narrow_1,
    "sse2",
    16,
    _mm_setzero_si128,
    load_128,
    _mm_unpacklo_epi8,
    _mm_unpackhi_epi8,
    store_128
);
narrow_kernel!(
    narrow_2,
    "sse2",
    8,
    _mm_setzero_si128,
    load_128,
    _mm_unpacklo_epi16,
    _mm_unpackhi_epi16,
    store_128
);
narrow_kernel!(
    narrow_4,
    "sse2",
    4,
    _mm_setzero_si128,
    load_128,
    _mm_unpacklo_epi32,
    _mm_unpackhi_epi32,
    store_128
);

/// Returns whether it transposed the matrix. It supports matrices with few rows or few columns that
/// are dense on that side.
///
/// # Safety
/// As for [`super::LevelKernels::transpose`].
#[target_feature(enable = "sse2")]
pub(super) unsafe fn transpose_narrow(matrix: &MatrixTranspose, hop: CopyHop) -> bool {
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
