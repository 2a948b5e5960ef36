//! Random transfers between random layouts, by a seed.

use kvtile_layout::{CopyPlan, LayoutError, PlanError, StridedLayout};
use kvtile_testkit::{
    generate::{LayoutCase, TransferCase, transfers},
    naive_copy,
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngSeed, TestRunner},
};

use super::{ByteArena, ByteChecks, ManagedCopies, PlannedBytes, WAYS, managed};
use crate::{error::GpuCheckError, phases::PhaseContext};

/// Starts of both sides, in steps of the layouts' alignments.
const ODD: [(usize, usize); 4] = [(0, 0), (1, 0), (0, 0), (3, 1)];

pub(super) fn parts(context: &PhaseContext<'_>) -> usize {
    usize::try_from(context.settings.cases).unwrap_or(usize::MAX)
}

pub(super) fn run(
    context: &mut PhaseContext<'_>,
    arena: &ByteArena<'_>,
) -> Result<(), GpuCheckError> {
    let seed = context.settings.seed;
    let mut runner = TestRunner::new(Config {
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    });
    let managed = ManagedCopies::new(context.rig.device());
    let strategy = transfers();
    let mut checks = ByteChecks::new(
        "random transfers",
        &[&WAYS[..], &managed::WAYS[..]].concat(),
    );
    let mut ended = Ok(());
    for number in 0..context.settings.cases {
        if context.is_over() {
            break;
        }
        let case = strategy.new_tree(&mut runner);
        let case = case.map_err(|reason| GpuCheckError::NoCase {
            reason: reason.to_string(),
        })?;
        let case = case.current();
        ended = compare(&case, (number, seed), (arena, &managed), &mut checks);
        if ended.is_err() {
            break;
        }
        context.done += 1;
    }
    checks.finish(context);
    ended
}

fn compare(
    case: &TransferCase,
    (number, seed): (u32, u64),
    (arena, managed): (&ByteArena<'_>, &ManagedCopies),
    checks: &mut ByteChecks,
) -> Result<(), GpuCheckError> {
    let resolve =
        |case: &LayoutCase| StridedLayout::resolve(&case.word, &case.shape, case.alignment);
    let (source, destination) = (resolve(&case.src)?, resolve(&case.dst)?);
    let plan = match CopyPlan::new(&source, &destination, &case.selection.selection()) {
        Ok(plan) => plan,
        Err(LayoutError::Plan(
            PlanError::NoCommonRefinement { .. } | PlanError::TooManyPieces { .. },
        )) => {
            checks.refuse();
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let (from_units, to_units) = (case.src.reference()?, case.dst.reference()?);
    let (from, to) = (from_units.filled(1)?, to_units.filled(2)?);
    let mut expected = to.clone();
    let _bytes = naive_copy(
        &from_units,
        &from,
        &to_units,
        &mut expected,
        &case.selection,
    )?;
    let steps = usize::try_from(number).unwrap_or(0) % ODD.len();
    let (odd_source, odd_destination) = ODD.get(steps).copied().unwrap_or((0, 0));
    let bytes =
        |steps: usize, case: &LayoutCase| steps * usize::try_from(case.alignment).unwrap_or(0);
    let planned = PlannedBytes {
        plan,
        from,
        to,
        expected,
        odd: (
            bytes(odd_source, &case.src),
            bytes(odd_destination, &case.dst),
        ),
    };
    let name = || format!("transfer {number} of seed {seed}: {case:?}");
    checks.transfer(arena, &planned, |_| true, name)?;
    checks.managed(managed, (case, &planned), number.is_multiple_of(2), name)
}
