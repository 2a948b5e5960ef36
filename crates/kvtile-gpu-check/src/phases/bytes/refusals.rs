//! Plans that leave their regions are refused before anything is launched.

use kvtile_layout::{CopyPlan, Selection};

use crate::{
    error::GpuCheckError,
    figures::{ByteCheck, MeasuredDirection, MeasuredRoute},
    phases::{PhaseContext, plans},
    rig::{BufferPlace, PreparedCopies, RigRegion},
};

/// Parts of the phase.
pub(super) const PARTS: usize = 1;
const BYTES: usize = 4096;

pub(super) fn run(context: &mut PhaseContext<'_>) -> Result<(), GpuCheckError> {
    let rig = context.rig;
    let buffer = |place| rig.buffer(place, BYTES);
    let (from, to) = (buffer(BufferPlace::Device)?, buffer(BufferPlace::Device)?);
    let layout = plans::run_blocks(1, BYTES)?;
    let plan = CopyPlan::new(&layout, &layout, &Selection::blocks(&[0], &[0], 1)?)?;
    let whole = RigRegion::whole;
    let short = |buffer| RigRegion {
        range: 0..BYTES - 1,
        ..RigRegion::whole(buffer)
    };
    let beyond = RigRegion {
        range: 1..BYTES + 1,
        ..whole(&to)
    };
    let attempts = [
        (
            "a source that is too short",
            rig.program(&plan, &[short(&from)], &[whole(&to)]),
        ),
        (
            "a destination that is too short",
            rig.program(&plan, &[whole(&from)], &[short(&to)]),
        ),
        (
            "a destination that is absent",
            rig.program(&plan, &[whole(&from)], &[]),
        ),
        (
            "a destination outside of its buffer",
            rig.program(&plan, &[whole(&from)], &[beyond]),
        ),
        (
            "a destination that is the source",
            rig.program(&plan, &[whole(&to)], &[whole(&to)]),
        ),
    ];
    let mut accepted: Vec<&str> = Vec::new();
    let attempted = attempts.len() + 1;
    for (name, attempt) in attempts {
        match attempt {
            Ok(_) => accepted.push(name),
            Err(
                GpuCheckError::Lower(_)
                | GpuCheckError::OutsideBuffer { .. }
                | GpuCheckError::OverlappingCopies,
            ) => {}
            // Not refused for its bounds.
            Err(error) => return Err(error),
        }
    }
    match PreparedCopies::whole(&to, &from, BYTES + 1) {
        Ok(_) => accepted.push("a copy that is too long"),
        Err(GpuCheckError::OutsideBuffer { .. }) => {}
        Err(error) => return Err(error),
    }
    context.done += 1;
    context.compared(ByteCheck {
        work: "plans that leave their regions".to_owned(),
        direction: MeasuredDirection::Inside,
        route: MeasuredRoute::Kernel,
        compared: 0,
        refused: u32::try_from(attempted - accepted.len()).unwrap_or(u32::MAX),
        wrong: (!accepted.is_empty()).then(|| format!("accepted: {}", accepted.join(", "))),
    });
    Ok(())
}
