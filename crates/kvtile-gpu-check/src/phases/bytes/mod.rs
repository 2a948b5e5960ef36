//! Transfers compared with the naive copy, byte for byte: random ones, and every known layout.

mod arena;
mod known;
mod managed;
mod random;
mod refusals;

use kvtile_layout::CopyPlan;
use kvtile_testkit::{Image, generate::TransferCase};

use self::{arena::ByteArena, managed::ManagedCopies};
use super::PhaseContext;
use crate::{
    error::GpuCheckError,
    figures::{ByteCheck, MeasuredDirection, MeasuredRoute},
};

/// Every direction with its routes.
const WAYS: [(MeasuredDirection, MeasuredRoute); 9] = [
    (MeasuredDirection::Inside, MeasuredRoute::Kernel),
    (MeasuredDirection::Inside, MeasuredRoute::Batch),
    (MeasuredDirection::HostToDevice, MeasuredRoute::Kernel),
    (MeasuredDirection::HostToDevice, MeasuredRoute::Staged),
    (MeasuredDirection::HostToDevice, MeasuredRoute::Batch),
    (MeasuredDirection::HostToDevice, MeasuredRoute::BatchAny),
    (MeasuredDirection::DeviceToHost, MeasuredRoute::Kernel),
    (MeasuredDirection::DeviceToHost, MeasuredRoute::Staged),
    (MeasuredDirection::DeviceToHost, MeasuredRoute::Batch),
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
    fn new(work: &str, ways: &[(MeasuredDirection, MeasuredRoute)]) -> ByteChecks {
        let check = |&(direction, route): &(MeasuredDirection, MeasuredRoute)| ByteCheck {
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
        admits: impl Fn(MeasuredDirection) -> bool,
        name: impl Fn() -> String,
    ) -> Result<(), GpuCheckError> {
        let checks = self.checks.iter_mut();
        let tried = checks.filter(|check| {
            check.route != MeasuredRoute::Manager
                && admits(check.direction)
                && check.wrong.is_none()
        });
        for check in tried {
            let found = arena.transfer(planned, check.direction, check.route)?;
            check.compared += 1;
            check.wrong = found.map(|difference| format!("{difference}; {}", name()));
        }
        Ok(())
    }

    /// Executes a transfer in every direction by the manager, and compares.
    fn managed(
        &mut self,
        copies: &ManagedCopies,
        (case, planned): (&TransferCase, &PlannedBytes),
        is_pinned: bool,
        name: impl Fn() -> String,
    ) -> Result<(), GpuCheckError> {
        let checks = self.checks.iter_mut();
        let tried =
            checks.filter(|check| check.route == MeasuredRoute::Manager && check.wrong.is_none());
        for check in tried {
            let images = (&planned.from, &planned.to);
            let found = copies.transfer(case, images, check.direction, is_pinned)?;
            check.compared += 1;
            let difference = arena::difference(&planned.expected, &found);
            check.wrong = difference.map(|difference| format!("{difference}; {}", name()));
        }
        // All directions are compared.
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
