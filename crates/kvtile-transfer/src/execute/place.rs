//! Nests between regions and buffers, for the staging memory of files.

use kvtile_layout::{AddressStep, Location, Loop};

use super::{
    bound::BoundLayout,
    nest::{CopyManner, LocalNest, choose, is_local},
    pipeline::{CopyScratch, KernelPipeline},
};
use crate::error::{CopyError, TransferError};

/// The location of one side of a nest.
#[derive(Clone, Copy)]
pub(super) enum NestPlace<'a> {
    /// In the regions of a bound layout.
    Regions(&'a BoundLayout, Location),
    /// In a buffer: offset `from` of a region, as the plan counts it, is at `buffer`, and `bytes`
    /// bytes follow.
    Buffer {
        buffer: *mut u8,
        bytes: usize,
        from: u64,
        at: u64,
    },
}

impl NestPlace<'_> {
    /// The address of the next `bytes` bytes.
    fn pointer(self, bytes: u64) -> Result<*mut u8, TransferError> {
        match self {
            NestPlace::Regions(layout, location) => layout.pointer(location, bytes),
            NestPlace::Buffer {
                buffer,
                bytes: size,
                from,
                at,
            } => at
                .checked_sub(from)
                .filter(|offset| {
                    offset
                        .checked_add(bytes)
                        .is_some_and(|end| end <= size as u64)
                })
                .and_then(|offset| usize::try_from(offset).ok())
                .map(|offset| buffer.wrapping_add(offset))
                .ok_or(TransferError::Copy(CopyError::OutsidePlan { region: 0 })),
        }
    }

    /// The place after `step`.
    fn further(self, step: AddressStep) -> Self {
        match self {
            NestPlace::Regions(layout, location) => NestPlace::Regions(
                layout,
                Location {
                    region: location.region + step.regions,
                    offset: location.offset + step.bytes,
                },
            ),
            NestPlace::Buffer {
                buffer,
                bytes,
                from,
                at,
            } => NestPlace::Buffer {
                buffer,
                bytes,
                from,
                at: at + step.bytes,
            },
        }
    }
}

/// Splits loops into those that change regions and the nest that stays inside them.
pub(super) fn split(
    loops: &[Loop],
    run_bytes: u64,
) -> Result<(Vec<Loop>, LocalNest), TransferError> {
    let far = loops.iter().filter(|l| !is_local(l)).copied().collect();
    let mut local: Vec<Loop> = loops.iter().filter(|l| is_local(l)).copied().collect();
    let kernel = choose(&mut local, run_bytes, false, CopyManner::ordinary())?;
    Ok((far, LocalNest::new(&local, kernel)?))
}

/// Runs `far` around `local` with ordinary stores, because one side is in the cache.
///
/// # Safety
/// For the whole call nothing else writes the source units or reads or writes the destination units
/// of the nest, and no source byte is a destination byte.
///
/// # Errors
/// Places that are smaller than the span of the nest. Bytes outside them are never touched.
pub(super) unsafe fn copy_nest(
    far: &[Loop],
    local: &LocalNest,
    places: (NestPlace<'_>, NestPlace<'_>),
) -> Result<(), TransferError> {
    let mut scratch = CopyScratch::default();
    let mut pipeline = KernelPipeline::new(&local.kernel, CopyManner::ordinary(), &mut scratch)?;
    // SAFETY: passed on to the caller.
    let copied = unsafe { walk_far(far, local, places, &mut pipeline) };
    // SAFETY: the steps in the pipeline were checked; the caller guarantees the rest.
    unsafe { pipeline.drain() };
    copied
}

/// # Safety
/// As for [`copy_nest`], until the pipeline has been drained.
unsafe fn walk_far(
    far: &[Loop],
    local: &LocalNest,
    (from, to): (NestPlace<'_>, NestPlace<'_>),
    pipeline: &mut KernelPipeline<'_>,
) -> Result<(), TransferError> {
    let Some((outer, inner)) = far.split_first() else {
        let source = from.pointer(local.source_span)?;
        let destination = to.pointer(local.destination_span)?;
        // SAFETY: both pointers are valid for the spans of the nest; the caller guarantees the
        // rest.
        unsafe { local.copy(source, destination, pipeline) };
        return Ok(());
    };
    let (mut from, mut to) = (from, to);
    for _ in 0..outer.extent {
        // SAFETY: passed on to the caller.
        unsafe { walk_far(inner, local, (from, to), pipeline) }?;
        from = from.further(outer.source);
        to = to.further(outer.destination);
    }
    Ok(())
}
