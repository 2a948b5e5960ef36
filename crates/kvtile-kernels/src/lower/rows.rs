//! Rows: groups of lanes that walk along runs of vectors.
//!
//! A group of lanes takes one run at a time, four in flight. Runs shorter than a sector of 32 bytes fill it together:
//! neighbouring lanes take runs that are neighbours in the destination, then such that are in the source.

use super::tables::TableWords;
use crate::{
    error::LowerError,
    kernel::{MoveKernel, ROWS_THREADS, VectorBytes},
    parameters::{LOOPS_MAX, MoveParameters, RowsParameters, division},
    program::MoveLaunch,
    shape::{CopyShape, DeviceLoop},
};

/// Lanes of a warp: most vectors of a run.
const LANES: u64 = 32;

/// Bytes of a sector of global memory.
const SECTOR_BYTES: u64 = 32;

/// Most runs that a group walks along before it decodes its place again.
const WALK_MAX: u64 = 16;

/// The launches of a shape: one, or two if its runs have a rest after equal pieces.
pub(super) fn launches(
    shape: &CopyShape,
    tables: &mut TableWords,
) -> Result<Vec<MoveLaunch>, LowerError> {
    let width = width(shape, tables);
    let bytes = u64::from(width.bytes());
    let vectors = shape.run_bytes / bytes;
    if vectors <= LANES {
        return Ok(vec![launch(shape.clone(), width, tables)?]);
    }
    let divisor = (LANES / 2..=LANES)
        .rev()
        .find(|&piece| vectors.is_multiple_of(piece));
    let piece = divisor.unwrap_or(LANES);
    let mut main = shape.further(0, piece * bytes);
    main.loops.insert(
        0,
        DeviceLoop::strides(vectors / piece, piece * bytes, piece * bytes),
    );
    let mut found = vec![launch(main, width, tables)?];
    let rest = vectors % piece * bytes;
    if rest > 0 {
        found.push(launch(
            shape.further(shape.run_bytes - rest, rest),
            width,
            tables,
        )?);
    }
    Ok(found)
}

/// The widest vector that every place of the shape is aligned to.
fn width(shape: &CopyShape, tables: &TableWords) -> VectorBytes {
    let steps = shape
        .loops
        .iter()
        .map(|l| tables.bits(l, l.source) | tables.bits(l, l.destination));
    let bits = steps.fold(
        shape.source | shape.destination | shape.run_bytes,
        |all, bits| all | bits,
    );
    VectorBytes::dividing(bits)
}

/// The launch of a shape with runs of at most [`LANES`] vectors.
fn launch(
    mut shape: CopyShape,
    width: VectorBytes,
    tables: &mut TableWords,
) -> Result<MoveLaunch, LowerError> {
    let bytes = shape.bytes();
    let lanes = lane_loops(&mut shape);
    let walked = take_walked(&mut shape.loops);
    let mut loops = vec![walked];
    loops.extend(lanes);
    loops.append(&mut shape.loops);
    tables.fuse(&mut loops, 1, LOOPS_MAX)?;
    let chunks = walked.extent.div_ceil(WALK_MAX);
    let items = loops
        .iter()
        .skip(1)
        .fold(chunks, |items, l| items.saturating_mul(l.extent));
    let vectors = shape.run_bytes / u64::from(width.bytes());
    let group_log2 = vectors.next_power_of_two().trailing_zeros();
    let (chunks_magic, chunks_shift) = division(small(chunks));
    let parameters = RowsParameters {
        source: shape.source,
        destination: shape.destination,
        items: small(items),
        vectors: small(vectors),
        group_log2,
        walk: small(walked.extent.div_ceil(chunks)),
        chunks: small(chunks),
        chunks_magic,
        chunks_shift,
        ..RowsParameters::default()
    };
    Ok(MoveLaunch {
        kernel: MoveKernel::Rows(width),
        threads: ROWS_THREADS,
        blocks_max: small(items.div_ceil(u64::from(ROWS_THREADS >> group_log2))),
        bytes,
        parameters: MoveParameters::Rows(parameters),
        loops,
    })
}

/// A number that [`CopyShape::split`] has bounded.
pub(super) fn small(number: u64) -> u32 {
    match u32::try_from(number) {
        Ok(small) if small < 1 << 31 => small,
        _ => kvtile_layout::broken(format_args!(
            "{number} items of a launch whose plan was split"
        )),
    }
}

/// Takes loops out of the shape with which neighbouring lanes fill sectors: of the destination first, as partly
/// written sectors cost most.
fn lane_loops(shape: &mut CopyShape) -> Vec<DeviceLoop> {
    let together = SECTOR_BYTES.div_ceil(shape.run_bytes).next_power_of_two();
    let mut lanes = Vec::new();
    if together < 2 {
        return lanes;
    }
    for dense in [|l: &DeviceLoop| l.destination, |l: &DeviceLoop| l.source] {
        let is_dense =
            |l: &DeviceLoop| l.both().is_some() && dense(l).stride() == Some(shape.run_bytes);
        let Some(position) = shape.loops.iter().position(is_dense) else {
            continue;
        };
        let Some(l) = shape.loops.get_mut(position) else {
            continue;
        };
        if let Some((inner, outer)) = l.cut(together).filter(|(_, outer)| outer.extent > 1) {
            *l = outer;
            lanes.push(inner);
        } else if l.extent <= LANES {
            lanes.push(shape.loops.remove(position));
        }
    }
    lanes
}

/// Takes the loop that groups walk along: the innermost one with strides that is long enough, or the
/// longest; one of a single iteration where none has strides.
fn take_walked(loops: &mut Vec<DeviceLoop>) -> DeviceLoop {
    let strided = || (0..).zip(&*loops).filter(|(_, l)| l.both().is_some());
    let found = strided().find(|(_, l)| l.extent >= WALK_MAX);
    let found = found.or_else(|| strided().max_by_key(|(_, l)| l.extent));
    match found.map(|(position, _)| position) {
        Some(position) => loops.remove(position),
        None => DeviceLoop::strides(1, 0, 0),
    }
}
