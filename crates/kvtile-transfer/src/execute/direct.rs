//! Runs with ordinary stores, straight from the nests of the plan: nothing is set up, nothing is
//! allocated, so that a small copy costs little beside its bytes.

use kvtile_layout::{CopyPlan, Location, Loop, Nest, PlanClass};

use super::{
    bound::BoundLayout,
    kernel::{Hop, Kernels, LINE_BYTES, Stride},
    nest::{Manner, is_local},
};
use crate::error::TransferError;

/// Whether the runs of `nest` are copied as they are.
pub(super) fn is_plain(nest: &Nest, manner: Manner) -> bool {
    !manner.streams() && nest.run_bytes >= LINE_BYTES as u64
}

/// Copies the runs of `nest` for all pairs of `class`.
///
/// # Safety
/// As for [`super::copy::copy_plan`], for the units of this nest.
pub(super) unsafe fn copy(
    plan: &CopyPlan,
    (class, nest): (&PlanClass, &Nest),
    sides: (&BoundLayout, &BoundLayout),
    kernels: Kernels,
) -> Result<(), TransferError> {
    let walk = Walk {
        sides,
        kernels,
        run: size(nest.run_bytes)?,
    };
    for pair in &class.pairs {
        // SAFETY: passed on to the caller.
        unsafe { walk.regions(&nest.loops, plan.start(nest, pair)) }?;
    }
    Ok(())
}

fn size(bytes: u64) -> Result<usize, TransferError> {
    usize::try_from(bytes).map_err(|_| TransferError::OutsidePlan { region: 0 })
}

struct Walk<'p> {
    sides: (&'p BoundLayout, &'p BoundLayout),
    kernels: Kernels,
    run: usize,
}

impl Walk<'_> {
    /// Walks the loops until those that are left stay in one region on both sides.
    ///
    /// # Safety
    /// As for [`copy`], for the loops from here on.
    unsafe fn regions(
        &self,
        loops: &[Loop],
        (from, to): (Location, Location),
    ) -> Result<(), TransferError> {
        if !loops.iter().all(is_local) {
            let Some((outer, inner)) = loops.split_first() else {
                return Ok(());
            };
            let (mut from, mut to) = (from, to);
            for _ in 0..outer.extent {
                // SAFETY: passed on to the caller.
                unsafe { self.regions(inner, (from, to)) }?;
                from.region += outer.source.regions;
                from.offset += outer.source.bytes;
                to.region += outer.destination.regions;
                to.offset += outer.destination.bytes;
            }
            return Ok(());
        }
        let span = |step: fn(&Loop) -> u64| {
            let reach = loops.iter().map(|l| (l.extent - 1) * step(l));
            reach.sum::<u64>() + self.run as u64
        };
        let source = self.sides.0.pointer(from, span(|l| l.source.bytes))?;
        let destination = self.sides.1.pointer(to, span(|l| l.destination.bytes))?;
        let first = Hop {
            source,
            destination,
        };
        // SAFETY: both pointers reach as far as the loops go; the rest is the caller's promise.
        unsafe { self.rows(loops, first) }
    }

    /// # Safety
    /// As for [`copy`], for the loops from here on, all of which stay inside the regions.
    unsafe fn rows(&self, loops: &[Loop], first: Hop) -> Result<(), TransferError> {
        let stride = |l: &Loop| -> Result<Stride, TransferError> {
            Ok(Stride {
                extent: size(l.extent)?,
                source: size(l.source.bytes)?,
                destination: size(l.destination.bytes)?,
            })
        };
        let (outer, inner) = match loops {
            [] => (None, Stride::ONCE),
            [last] => (None, stride(last)?),
            [outer, ..] => (Some(stride(outer)?), Stride::ONCE),
        };
        let Some(outer) = outer else {
            // SAFETY: passed on to the caller.
            unsafe { self.kernels.copy_rows(first, inner, self.run) };
            return Ok(());
        };
        for i in 0..outer.extent {
            let first = Hop {
                source: first.source.wrapping_add(i * outer.source),
                destination: first.destination.wrapping_add(i * outer.destination),
            };
            // SAFETY: passed on to the caller.
            unsafe { self.rows(loops.get(1..).unwrap_or_default(), first) }?;
        }
        Ok(())
    }
}
