//! The parameters of kernels, as `cuda/move.cu` has them. Both sides assert the sizes.

use zerocopy::{Immutable, IntoBytes};

/// Most loops of a launch.
pub const LOOPS_MAX: usize = 8;

/// One side of a loop: index `i` adds `table[i]`, or `i * stride` where there is no table. Sums wrap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct SideParameters {
    /// Bytes from one iteration to the next.
    pub stride: u64,
    /// The address of the table; 0 where there is none.
    pub table: u64,
}

/// A loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct LoopParameters {
    /// Iterations.
    pub extent: u32,
    /// With `shift`, the division by the extent.
    pub magic: u32,
    /// With `magic`, the division by the extent.
    pub shift: u32,
    pad: u32,
    /// The source's side.
    pub source: SideParameters,
    /// The destination's side.
    pub destination: SideParameters,
}

impl LoopParameters {
    /// A loop of `extent` iterations.
    pub(crate) fn new(
        extent: u32,
        source: SideParameters,
        destination: SideParameters,
    ) -> LoopParameters {
        let (magic, shift) = division(extent);
        LoopParameters {
            extent,
            magic,
            shift,
            pad: 0,
            source,
            destination,
        }
    }
}

/// Runs of vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct RowsParameters {
    /// The address of the first run in the source.
    pub source: u64,
    /// The address of the first run in the destination.
    pub destination: u64,
    /// Items: chunks of loop 0 times the iterations of all other loops.
    pub items: u32,
    /// Number of loops.
    pub loops: u32,
    /// Vectors of a run, at most the lanes of a group.
    pub vectors: u32,
    /// The logarithm of the lanes of a group.
    pub group_log2: u32,
    /// Most iterations of loop 0 in an item.
    pub walk: u32,
    /// Chunks of loop 0.
    pub chunks: u32,
    /// With `chunks_shift`, the division by the chunks.
    pub chunks_magic: u32,
    /// With `chunks_magic`, the division by the chunks.
    pub chunks_shift: u32,
    /// The loops, innermost first. Loop 0 has no table.
    pub loop_: [LoopParameters; LOOPS_MAX],
}

/// Matrices of elements: dense along columns in the source, along rows in the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct TileParameters {
    /// The address of the first tile in the source.
    pub source: u64,
    /// The address of the first tile in the destination.
    pub destination: u64,
    /// Bytes between rows of the source.
    pub source_stride: u64,
    /// Bytes between columns of the destination.
    pub destination_stride: u64,
    /// Tiles: the iterations of all loops.
    pub tiles: u32,
    /// Number of loops.
    pub loops: u32,
    /// Rows of a tile.
    pub rows: u32,
    /// Words of four bytes of a row.
    pub words: u32,
    /// Words between rows in shared memory.
    pub pitch: u32,
    /// Further words between the groups of rows that one store covers.
    pub skew: u32,
    /// Bytes of a load.
    pub load_bytes: u32,
    /// Bytes of a store.
    pub store_bytes: u32,
    /// Loads of a row.
    pub loads: u32,
    /// With `load_shift`, the division by the loads.
    pub load_magic: u32,
    /// With `load_magic`, the division by the loads.
    pub load_shift: u32,
    /// Stores of a column.
    pub stores: u32,
    /// With `words_shift`, the division by the words.
    pub words_magic: u32,
    /// With `words_magic`, the division by the words.
    pub words_shift: u32,
    /// The logarithm of the rows that one store covers.
    pub store_rows_log2: u32,
    pub(crate) pad: u32,
    /// The loops, innermost first.
    pub loop_: [LoopParameters; LOOPS_MAX],
}

const _: () = assert!(size_of::<SideParameters>() == 16 && size_of::<LoopParameters>() == 48);
const _: () = assert!(size_of::<RowsParameters>() == 432 && size_of::<TileParameters>() == 480);

/// The parameters of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveParameters {
    /// Of a `rows` kernel.
    Rows(RowsParameters),
    /// Of a `tiles` kernel.
    Tile(TileParameters),
}

impl MoveParameters {
    /// The bytes that the kernel takes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            MoveParameters::Rows(rows) => rows.as_bytes(),
            MoveParameters::Tile(tile) => tile.as_bytes(),
        }
    }

    pub(crate) fn set_loops(&mut self, loops: &[LoopParameters]) {
        let (slots, count) = match self {
            MoveParameters::Rows(rows) => (&mut rows.loop_, &mut rows.loops),
            MoveParameters::Tile(tile) => (&mut tile.loop_, &mut tile.loops),
        };
        for (slot, given) in slots.iter_mut().zip(loops) {
            *slot = *given;
        }
        *count = u32::try_from(loops.len()).unwrap_or(u32::MAX);
    }
}

/// `magic` and `shift` with `n / divisor == (n * magic >> 32) >> shift` for all `n` below 2^31. A magic of 0 stands
/// for the divisor 1.
///
/// Granlund, Montgomery: Division by invariant integers using multiplication, PLDI 1994.
pub(crate) fn division(divisor: u32) -> (u32, u32) {
    if divisor < 2 {
        return (0, 0);
    }
    let log = u32::BITS - (divisor - 1).leading_zeros();
    let magic = (1u128 << (31 + log)) / u128::from(divisor) + 1;
    // 2^(log - 1) < divisor, so the quotient is below 2^32.
    (u32::try_from(magic).unwrap_or(u32::MAX), log - 1)
}

#[cfg(test)]
mod tests {
    use kvtile_random::SplitMix64;

    use super::*;

    #[test]
    fn divisions_by_magic_numbers_are_divisions() {
        let divide = |n: u32, divisor: u32| {
            let (magic, shift) = division(divisor);
            match magic {
                0 => n,
                _ => u32::try_from((u64::from(n) * u64::from(magic)) >> 32).unwrap() >> shift,
            }
        };
        let mut numbers = SplitMix64::new(5);
        let mut random = |bits: u64| {
            u32::try_from(numbers.below(1 << (1 + numbers.clone().below(bits)))).unwrap()
        };
        let last = (1u32 << 31) - 1;
        for _ in 0..20_000 {
            let divisor = random(30).max(1);
            let multiple = last / divisor * divisor;
            for n in [
                0,
                1,
                divisor - 1,
                divisor,
                random(30),
                multiple - 1,
                multiple,
                last,
            ] {
                assert_eq!(divide(n, divisor), n / divisor, "{n} / {divisor}");
            }
        }
        assert_eq!(divide(last, last), 1);
        assert_eq!(divide(last - 1, last), 0);
    }
}
