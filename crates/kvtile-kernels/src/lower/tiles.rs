//! Tiles: transposes of elements of 1, 2 or 4 bytes through shared memory.
//!
//! ```text
//!            columns, dense in the source           shared memory, in words of four bytes
//!          ┌─────────────────────────────┐          row r starts at r * pitch + (r / rows of a store) * skew
//!   rows,  │ loads: vectors along a row  │
//!   dense  │                             │          A warp stores from two neighbouring groups of rows and 16
//!   in the │ stores: vectors along       │          neighbouring words: with the skew, these are in 32 banks.
//!   dest.  │ columns                     │
//!          └─────────────────────────────┘
//! ```

use super::{rows::small, tables::TableWords};
use crate::{
    error::LowerError,
    kernel::{MoveKernel, TILES_THREADS, VectorBytes},
    parameters::{LOOPS_MAX, MoveParameters, TileParameters, division},
    program::MoveLaunch,
    shape::{CopyShape, DeviceLoop},
};

/// Most bytes along a column and along a row of a tile.
const SIDE_BYTES_MAX: u64 = 256;

/// Most bytes of the elements of a tile.
const TILE_BYTES_MAX: u64 = 16 << 10;

/// Words of shared memory for a tile, as in `move.cu`.
const TILE_WORDS: u64 = 4096 + 1024;

/// Fewest threads of a block: as many as tiles whose places they decode at once.
const THREADS_MIN: u64 = 32;

/// Bytes of a word of shared memory.
const WORD_BYTES: u64 = 4;

/// The launch of a shape that is a transpose; `None` if it is none, or if its sides are aligned to less than a word.
pub(super) fn launch(
    shape: &CopyShape,
    tables: &mut TableWords,
) -> Result<Option<MoveLaunch>, LowerError> {
    let Some(kernel) = kernel_of(shape.run_bytes) else {
        return Ok(None);
    };
    let Some(mut tile) = TileShape::of(shape, tables) else {
        return Ok(None);
    };
    tables.fuse(&mut tile.loops, 0, LOOPS_MAX)?;
    Ok(Some(tile.launch(shape, kernel)))
}

fn kernel_of(element: u64) -> Option<MoveKernel> {
    match element {
        4 => Some(MoveKernel::Tiles4),
        2 => Some(MoveKernel::Tiles2),
        1 => Some(MoveKernel::Tiles1),
        _ => None,
    }
}

/// A matrix and the loops around it.
struct TileShape {
    rows: u64,
    columns: u64,
    source_stride: u64,
    destination_stride: u64,
    load: VectorBytes,
    store: VectorBytes,
    loops: Vec<DeviceLoop>,
}

impl TileShape {
    fn of(shape: &CopyShape, tables: &TableWords) -> Option<TileShape> {
        let element = shape.run_bytes;
        let mut loops = shape.loops.clone();
        let dense_source = |l: &DeviceLoop| l.both().is_some_and(|(source, _)| source == element);
        let dense_destination = |l: &DeviceLoop| {
            l.both()
                .is_some_and(|(_, destination)| destination == element)
        };
        let along_columns = loops.iter().position(dense_source)?;
        let columns = loops.remove(along_columns);
        let along_rows = loops.iter().position(dense_destination)?;
        let rows = loops.remove(along_rows);
        let (source_stride, _) = rows.both()?;
        let (_, destination_stride) = columns.both()?;
        // What the vectors of a side have to divide.
        let source = loops.iter().fold(shape.source | source_stride, |bits, l| {
            bits | tables.bits(l, l.source)
        });
        let start = shape.destination | destination_stride;
        let destination = loops
            .iter()
            .fold(start, |bits, l| bits | tables.bits(l, l.destination));
        let (row_count, store) = side(rows.extent, element, SIDE_BYTES_MAX, destination)?;
        let room = TILE_BYTES_MAX / (row_count * element);
        let (column_count, load) = side(columns.extent, element, SIDE_BYTES_MAX.min(room), source)?;
        let (_, outer_rows) = rows.cut(row_count)?;
        let (_, outer_columns) = columns.cut(column_count)?;
        let outer = [outer_rows, outer_columns]
            .into_iter()
            .filter(|l| l.extent > 1);
        let loops = outer.chain(loops).collect();
        Some(TileShape {
            rows: row_count,
            columns: column_count,
            source_stride,
            destination_stride,
            load,
            store,
            loops,
        })
    }

    fn launch(self, shape: &CopyShape, kernel: MoveKernel) -> MoveLaunch {
        let element = shape.run_bytes;
        let words = self.columns * element / WORD_BYTES;
        let (load, store) = (u64::from(self.load.bytes()), u64::from(self.store.bytes()));
        let loads = self.columns * element / load;
        let stores = self.rows * element / store;
        let store_rows = store / element;
        let pitch = words;
        let skew = skew(store_rows * pitch, words);
        let skew = match self.rows * pitch + stores * skew <= TILE_WORDS {
            true => skew,
            false => 0,
        };
        let tiles = self
            .loops
            .iter()
            .fold(1u64, |tiles, l| tiles.saturating_mul(l.extent));
        let (load_magic, load_shift) = division(small(loads));
        let (words_magic, words_shift) = division(small(words));
        let parameters = TileParameters {
            source: shape.source,
            destination: shape.destination,
            source_stride: self.source_stride,
            destination_stride: self.destination_stride,
            tiles: small(tiles),
            rows: small(self.rows),
            words: small(words),
            pitch: small(pitch),
            skew: small(skew),
            load_bytes: self.load.bytes(),
            store_bytes: self.store.bytes(),
            loads: small(loads),
            load_magic,
            load_shift,
            stores: small(stores),
            words_magic,
            words_shift,
            store_rows_log2: store_rows.trailing_zeros(),
            ..TileParameters::default()
        };
        let busy = (self.rows * loads).div_ceil(2).max(stores * words);
        MoveLaunch {
            kernel,
            threads: small(
                busy.next_power_of_two()
                    .clamp(THREADS_MIN, u64::from(TILES_THREADS)),
            ),
            blocks_max: small(tiles),
            bytes: shape.bytes(),
            parameters: MoveParameters::Tile(parameters),
            loops: self.loops,
        }
    }
}

/// The elements of a side of a tile, a divisor of `extent` with the widest vectors and then the most bytes, and the
/// vectors; `None` if these would be less than a word.
fn side(extent: u64, element: u64, bytes_max: u64, aligned: u64) -> Option<(u64, VectorBytes)> {
    let divisors = (1..=bytes_max / element).filter(|&count| extent.is_multiple_of(count));
    let vectors = divisors.map(|count| (VectorBytes::dividing(aligned | (count * element)), count));
    let (vector, count) = vectors.max()?;
    (vector >= VectorBytes::Four).then_some((count, vector))
}

/// Words that put the rows of neighbouring stores into other banks than the first ones: `apart` words are between
/// them without it, and a warp reads up to 16 neighbouring words of each.
fn skew(apart: u64, words: u64) -> u64 {
    let wanted = match words {
        16.. => 16,
        _ => 1 << words.ilog2(),
    };
    (32 + wanted - apart % 32) % 32
}
