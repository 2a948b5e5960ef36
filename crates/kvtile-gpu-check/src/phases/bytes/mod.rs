//! Transfers compared with the naive copy, byte for byte: random ones, and every known layout.

mod arena;
mod known;
mod random;
mod refusals;

use kvtile_layout::CopyPlan;
use kvtile_testkit::Image;

use self::arena::ByteArena;
use super::PhaseContext;
use crate::{
    error::GpuCheckError,
    figures::{ByteCheck, CopyDirection, MeasuredRoute},
};

/// Every direction with its routes.
const WAYS: [(CopyDirection, MeasuredRoute); 9] = [
    (CopyDirection::Inside, MeasuredRoute::Kernel),
    (CopyDirection::Inside, MeasuredRoute::Batch),
    (CopyDirection::HostToDevice, MeasuredRoute::Kernel),
    (CopyDirection::HostToDevice, MeasuredRoute::Staged),
    (CopyDirection::HostToDevice, MeasuredRoute::Batch),
    (CopyDirection::HostToDevice, MeasuredRoute::BatchAny),
    (CopyDirection::DeviceToHost, MeasuredRoute::Kernel),
    (CopyDirection::DeviceToHost, MeasuredRoute::Staged),
    (CopyDirection::DeviceToHost, MeasuredRoute::Batch),
];

pub(super) fn run(context: &mut PhaseContext<'_>) -> Result<(), GpuCheckError> {
    context.planned = refusals::PARTS + known::parts(context)? + random::parts(context);
    refusals::run(context)?;
    let arena = ByteArena::new(context)?;
    known::run(context, &arena)?;
    random::run(context, &arena)
}

/// A plan with its images and what the naive copy makes of them.
struct PlannedBytes {
    plan: CopyPlan,
    from: Image,
    to: Image,
    expected: Image,
    /// Offsets of the first regions, which may be aligned no better than the layouts need.
    odd: (usize, usize),
}

/// The comparisons of one kind of work, by direction and route.
struct ByteChecks {
    checks: Vec<ByteCheck>,
}

impl ByteChecks {
    fn new(work: &str, ways: &[(CopyDirection, MeasuredRoute)]) -> ByteChecks {
        let check = |&(direction, route): &(CopyDirection, MeasuredRoute)| ByteCheck {
            work: work.to_owned(),
            direction,
            route,
            compared: 0,
            refused: 0,
            wrong: None,
        };
        ByteChecks {
            checks: ways.iter().map(check).collect(),
        }
    }

    /// Executes a transfer in every direction of `admits`, by each of its routes, and compares. After a first
    /// difference a route is not tried again.
    fn transfer(
        &mut self,
        arena: &ByteArena<'_>,
        planned: &PlannedBytes,
        admits: impl Fn(CopyDirection) -> bool,
        name: impl Fn() -> String,
    ) -> Result<(), GpuCheckError> {
        let checks = self.checks.iter_mut();
        for check in checks.filter(|check| admits(check.direction) && check.wrong.is_none()) {
            let found = arena.transfer(planned, check.direction, check.route)?;
            check.compared += 1;
            check.wrong = found.map(|difference| format!("{difference}; {}", name()));
        }
        Ok(())
    }

    fn refuse(&mut self) {
        for check in &mut self.checks {
            check.refused += 1;
        }
    }

    /// Hands the comparisons to the report, those before an error too.
    fn finish(self, context: &mut PhaseContext<'_>) {
        for check in self.checks {
            context.compared(check);
        }
    }
}
