//! The goals of the device code, and what a run found for each.

use serde::{Deserialize, Serialize};

use crate::{
    figures::{CheckFigure, MeasuredDirection, MeasuredRoute},
    phase::CheckPhase,
    routes,
};

/// Names of work in figures, by which goals find them.
pub(crate) mod work {
    pub(crate) const ONE_COPY: &str = "one copy";
    pub(crate) const BOTH_WAYS: &str = "both directions at once";
    pub(crate) const ROWS: &str = "a kernel that copies rows";
    pub(crate) const LAUNCH: &str = "a launch, to its end";
    pub(crate) const LAUNCH_CALL: &str = "the call of a launch";
    pub(crate) const EVENT: &str = "an event, recorded and awaited";
    pub(crate) const COMPILE: &str =
        "the kernels loaded again, compiled or from the driver's cache";
    pub(crate) const FIRST_COMPILE: &str =
        "the kernels loaded first, compiled or from the driver's cache, and two queues made";
    pub(crate) const RUNS: &str = "runs";
    pub(crate) const PERMUTE_ROWS: &str = "rows";
    pub(crate) const PERMUTE_TILES: &str = "tiles of 8 elements";
    pub(crate) const PERMUTE_ELEMENTS: &str = "transpose";
    pub(crate) const ENQUEUE: &str = "enqueueing the blocks of a prefix";
    pub(crate) const WHOLE_BY_LAYERS: &str = "all layers, layer by layer";
    pub(crate) const FIRST_LAYER: &str = "the first of these layers";
    pub(crate) const REGISTER: &str = "system memory, touched in parallel and registered";
    pub(crate) const ALLOCATE: &str = "pinned memory of the driver";
    pub(crate) const TOUCH: &str = "writing that memory again, in one thread";
}

/// Whether a goal is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoalState {
    /// Reached.
    Met,
    /// Not reached.
    Missed,
    /// The run has no figure for it.
    NotMeasured,
    /// The figure is of a stand-in, so it decides nothing.
    Undecided,
}

/// One goal and what the run found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoalRow {
    /// The work.
    pub work: String,
    /// The goal.
    pub goal: f64,
    /// Whether the figure has to be at least the goal, and not at most.
    pub at_least: bool,
    /// The unit of goal and figure; empty for ratios.
    pub unit: String,
    /// The figure.
    pub found: Option<f64>,
    /// Whether it is reached.
    pub state: GoalState,
    /// Which measurement decided, or why there is none.
    pub by: String,
}

/// A figure for a goal, and where it comes from.
struct GoalFigure {
    value: f64,
    by: String,
}

impl GoalRow {
    fn at_least(work: &str, goal: f64, found: Option<GoalFigure>) -> GoalRow {
        GoalRow::new(work, goal, true, found)
    }

    fn at_most(work: &str, goal: f64, unit: &str, found: Option<GoalFigure>) -> GoalRow {
        GoalRow {
            unit: unit.to_owned(),
            ..GoalRow::new(work, goal, false, found)
        }
    }

    fn new(work: &str, goal: f64, at_least: bool, found: Option<GoalFigure>) -> GoalRow {
        let is_met = |value: f64| match at_least {
            true => value >= goal,
            false => value <= goal,
        };
        let state = match &found {
            None => GoalState::NotMeasured,
            Some(found) if is_met(found.value) => GoalState::Met,
            Some(_) => GoalState::Missed,
        };
        GoalRow {
            work: work.to_owned(),
            goal,
            at_least,
            unit: String::new(),
            found: found.as_ref().map(|found| found.value),
            state,
            by: found.map_or_else(|| "no measurement in this run".to_owned(), |found| found.by),
        }
    }

    fn because(self, reason: &str) -> GoalRow {
        GoalRow {
            by: reason.to_owned(),
            ..self
        }
    }
}

impl GoalState {
    /// The state in words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            GoalState::Met => "met",
            GoalState::Missed => "missed",
            GoalState::NotMeasured => "not measured",
            GoalState::Undecided => "undecided",
        }
    }
}

/// All goals, for a device of a compute capability.
pub(crate) fn goals(figures: &[CheckFigure], capability: &str) -> Vec<GoalRow> {
    let mut goals = transfer_goals(figures, few_blocks(capability));
    goals.extend(inside_goals(figures));
    goals.extend(cost_goals(figures));
    goals
}

/// Between host and device.
fn transfer_goals(figures: &[CheckFigure], few: u32) -> Vec<GoalRow> {
    let ways = [
        MeasuredDirection::HostToDevice,
        MeasuredDirection::DeviceToHost,
    ];
    let runs = |from, to| worst_run(figures, &ways, (from, to), |_| true);
    let few_title =
        format!("runs of 1 to 24 KiB, host → device, by at most {few} blocks of a kernel");
    let load = [MeasuredDirection::HostToDevice];
    let by_few = worst_run(figures, &load, (1 << 10, 24 << 10), |figure| {
        figure.route == Some(MeasuredRoute::Kernel) && figure.blocks.is_some_and(|b| b <= few)
    });
    let staged = |class| worst_permute(figures, class, &ways);
    let both = figure(figures, work::BOTH_WAYS);
    let both =
        both.and_then(|figure| by_ratio(figure, "the sum of their rates, of the faster ceiling"));
    let at_least = GoalRow::at_least;
    vec![
        at_least(
            "runs of 64 KiB or more, both ways",
            0.95,
            runs(64 << 10, u64::MAX),
        ),
        at_least(
            "runs of 28 to 64 KiB, both ways",
            0.90,
            runs(28 << 10, (64 << 10) - 1),
        ),
        at_least(&few_title, 0.90, by_few),
        at_least(
            "rows of 256 bytes, NHD ↔ HND, staged, both ways",
            0.90,
            staged(work::PERMUTE_ROWS),
        ),
        at_least(
            "transposes of 2 bytes, staged, both ways",
            0.85,
            staged(work::PERMUTE_ELEMENTS),
        ),
        at_least("both directions at once, of one", 1.6, both),
    ]
}

/// Inside the device.
fn inside_goals(figures: &[CheckFigure]) -> Vec<GoalRow> {
    let inside = |class| worst_permute(figures, class, &[MeasuredDirection::Inside]);
    let at_least = GoalRow::at_least;
    vec![
        at_least(
            "rows of 256 bytes in the device",
            0.90,
            inside(work::PERMUTE_ROWS),
        ),
        at_least(
            "tiles of 8 elements in the device",
            0.85,
            inside(work::PERMUTE_TILES),
        ),
        at_least(
            "transposes of 2 bytes in the device",
            0.70,
            inside(work::PERMUTE_ELEMENTS),
        ),
    ]
}

/// Costs for the caller and for the device's other work.
fn cost_goals(figures: &[CheckFigure]) -> Vec<GoalRow> {
    let regret = routes::regret(figures).map(|regret| GoalFigure {
        value: regret.largest,
        by: regret.at,
    });
    let at_most = GoalRow::at_most;
    vec![
        at_most(
            "cost for a model that computes beside a transfer",
            0.05,
            "",
            None,
        )
        .because("needs a model's matrix products, which this program does not have"),
        at_most(
            "enqueueing 64 blocks of 32 layers, fewer where the device has little free memory",
            20.0,
            "µs",
            enqueue(figures),
        ),
        at_most(
            "first of 32 layers, fewer where the device has little free memory, beyond its share of the whole",
            60.0,
            "µs",
            first_layer(figures),
        ),
        at_most(
            "registering touched memory, against pinned memory of the driver",
            0.4,
            "",
            register(figures),
        ),
        at_most(
            "route by the proposed constants, against the best route",
            1.1,
            "",
            regret,
        ),
    ]
}

/// Blocks with which a kernel has to keep up with the link: four from Hopper on, eight before.
fn few_blocks(capability: &str) -> u32 {
    let major = capability.split('.').next();
    match major.and_then(|major| major.parse::<u32>().ok()) {
        Some(0..9) => 8,
        _ => 4,
    }
}

fn figure<'f>(figures: &'f [CheckFigure], work: &str) -> Option<&'f CheckFigure> {
    figures.iter().find(|figure| figure.work == work)
}

fn by_ratio(figure: &CheckFigure, by: &str) -> Option<GoalFigure> {
    Some(GoalFigure {
        value: figure.ratio?,
        by: by.to_owned(),
    })
}

/// A figure in words.
fn described(figure: &CheckFigure) -> String {
    let mut parts = Vec::new();
    parts.extend(figure.direction.map(|way| way.name().to_owned()));
    if let (Some(run), Some(pieces)) = (figure.run_bytes, figure.pieces) {
        parts.push(format!("{pieces} runs of {run} bytes"));
    }
    parts.extend(figure.route.map(|route| route.name().to_owned()));
    parts.extend(figure.blocks.map(|blocks| format!("{blocks} blocks")));
    parts.join(", ")
}

/// The lowest ratio among all directions and sizes of runs in a range, of the best route for each size; all directions have
/// to be there. Of each size, the largest number of runs counts: the fixed cost of few is another goal's.
fn worst_run(
    figures: &[CheckFigure],
    ways: &[MeasuredDirection],
    (from, to): (u64, u64),
    admits: impl Fn(&CheckFigure) -> bool,
) -> Option<GoalFigure> {
    let sweep = || {
        let all = figures.iter();
        all.filter(|figure| figure.phase == CheckPhase::Sweep)
    };
    let mut best: Vec<&CheckFigure> = Vec::new();
    for &way in ways {
        let before = best.len();
        let of_way = || sweep().filter(move |figure| figure.direction == Some(way));
        let mut runs: Vec<u64> = of_way().filter_map(|figure| figure.run_bytes).collect();
        runs.sort_unstable();
        runs.dedup();
        for run in runs.into_iter().filter(|run| (from..=to).contains(run)) {
            let of_run = || of_way().filter(|figure| figure.run_bytes == Some(run));
            let most = of_run().filter_map(|figure| figure.pieces).max();
            let cells = of_run().filter(|figure| figure.pieces == most && admits(figure));
            best.extend(cells.max_by(|a, b| ratio(a).total_cmp(&ratio(b))));
        }
        if best.len() == before {
            return None;
        }
    }
    let worst = best
        .into_iter()
        .min_by(|a, b| ratio(a).total_cmp(&ratio(b)))?;
    by_ratio(worst, &format!("lowest of all sizes: {}", described(worst)))
}

fn ratio(figure: &CheckFigure) -> f64 {
    figure.ratio.unwrap_or(0.0)
}

/// The lowest ratio of a class of permutations; all directions have to be there.
fn worst_permute(
    figures: &[CheckFigure],
    class: &str,
    ways: &[MeasuredDirection],
) -> Option<GoalFigure> {
    let mut worst: Option<&CheckFigure> = None;
    for &way in ways {
        let lowest = figures
            .iter()
            .filter(|figure| figure.phase == CheckPhase::Permutes && figure.direction == Some(way))
            .filter(|figure| figure.work.split(':').next() == Some(class))
            .min_by(|a, b| ratio(a).total_cmp(&ratio(b)))?;
        if worst.is_none_or(|worst| ratio(lowest) < ratio(worst)) {
            worst = Some(lowest);
        }
    }
    let worst = worst?;
    by_ratio(worst, &format!("{}, {}", worst.work, described(worst)))
}

fn enqueue(figures: &[CheckFigure]) -> Option<GoalFigure> {
    let calls = figures.iter();
    let calls = calls.filter(|figure| figure.work == work::ENQUEUE);
    let least = calls.min_by(|a, b| a.seconds.median.total_cmp(&b.seconds.median))?;
    Some(GoalFigure {
        value: least.seconds.median * 1e6,
        by: format!("the call alone, {}", described(least)),
    })
}

fn first_layer(figures: &[CheckFigure]) -> Option<GoalFigure> {
    let first = figure(figures, work::FIRST_LAYER)?;
    let whole = figure(figures, work::WHOLE_BY_LAYERS)?;
    let share = first.bytes as f64 / whole.bytes.max(1) as f64;
    let beyond = first.seconds.median - share * whole.seconds.median;
    Some(GoalFigure {
        value: beyond * 1e6,
        by: described(first),
    })
}

fn register(figures: &[CheckFigure]) -> Option<GoalFigure> {
    let register = figure(figures, work::REGISTER)?;
    let allocate = figure(figures, work::ALLOCATE)?;
    // The allocation writes the memory once more, which the driver's function alone would not.
    let touch = figure(figures, work::TOUCH)?;
    let alone = allocate.seconds.median - touch.seconds.median;
    (alone > 0.0).then(|| GoalFigure {
        value: register.seconds.median / alone,
        by: format!(
            "{} bytes; the allocation without the writing of its bytes",
            register.bytes
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::RoundSpread;

    fn of(phase: CheckPhase, work: &str, seconds: f64) -> CheckFigure {
        CheckFigure::of(phase, work, RoundSpread::of(vec![seconds], 1))
    }

    /// A cell of the sweep with a ratio, of 64 MiB.
    fn cell(way: MeasuredDirection, run: u64, blocks: Option<u32>, ratio: f64) -> CheckFigure {
        let route = match blocks {
            Some(_) => MeasuredRoute::Kernel,
            None => MeasuredRoute::Batch,
        };
        CheckFigure {
            run_bytes: Some(run),
            pieces: Some((64 << 20) / run),
            blocks,
            ratio: Some(ratio),
            ..of(CheckPhase::Sweep, work::RUNS, 0.001).moved(64 << 20, way, route)
        }
    }

    fn state(figures: &[CheckFigure], capability: &str, work: &str) -> (GoalState, Option<f64>) {
        let goals = goals(figures, capability);
        let mut found = goals.iter().filter(|goal| goal.work.contains(work));
        let goal = found.next().unwrap();
        assert!(found.next().is_none(), "{work}");
        (goal.state, goal.found)
    }

    #[test]
    fn no_figures_decide_nothing() {
        for goal in goals(&[], "9.0") {
            assert_eq!(
                (goal.state, goal.found),
                (GoalState::NotMeasured, None),
                "{goal:?}"
            );
        }
    }

    #[test]
    fn the_best_route_of_each_size_counts_and_the_worst_size_decides() {
        use MeasuredDirection::{DeviceToHost, HostToDevice};
        let mut figures = vec![
            cell(HostToDevice, 64 << 10, None, 0.97),
            cell(HostToDevice, 64 << 10, Some(4), 0.5),
            cell(DeviceToHost, 128 << 10, None, 0.96),
            cell(HostToDevice, 32 << 10, None, 0.1),
            cell(DeviceToHost, 32 << 10, None, 0.5),
        ];
        let large = "runs of 64 KiB";
        assert_eq!(state(&figures, "9.0", large), (GoalState::Met, Some(0.96)));
        assert_eq!(
            state(&figures, "9.0", "28 to 64 KiB"),
            (GoalState::Missed, Some(0.1))
        );
        // Fewer runs of a size do not decide.
        figures.push(CheckFigure {
            pieces: Some(16),
            ..cell(DeviceToHost, 128 << 10, None, 0.2)
        });
        assert_eq!(state(&figures, "9.0", large), (GoalState::Met, Some(0.96)));
        figures.push(cell(DeviceToHost, 1 << 20, None, 0.9));
        assert_eq!(
            state(&figures, "9.0", large),
            (GoalState::Missed, Some(0.9))
        );
    }

    #[test]
    fn older_devices_may_use_more_blocks() {
        let figures = [cell(MeasuredDirection::HostToDevice, 4096, Some(8), 0.93)];
        let title = "1 to 24 KiB";
        assert_eq!(state(&figures, "8.0", title), (GoalState::Met, Some(0.93)));
        assert_eq!(
            state(&figures, "9.0", title),
            (GoalState::NotMeasured, None)
        );
    }

    #[test]
    fn permutations_need_every_direction() {
        let permute = |way, ratio| CheckFigure {
            ratio: Some(ratio),
            ..of(CheckPhase::Permutes, "rows: A → B, 2 bytes", 0.001).moved(
                1,
                way,
                MeasuredRoute::Staged,
            )
        };
        let mut figures = vec![permute(MeasuredDirection::HostToDevice, 0.95)];
        let title = "NHD ↔ HND";
        assert_eq!(
            state(&figures, "9.0", title),
            (GoalState::NotMeasured, None)
        );
        figures.push(permute(MeasuredDirection::DeviceToHost, 0.91));
        assert_eq!(state(&figures, "9.0", title), (GoalState::Met, Some(0.91)));
    }

    #[test]
    fn costs_are_in_the_units_of_their_goals() {
        let costs = CheckPhase::Costs;
        let whole = CheckFigure {
            bytes: 3200,
            ..of(costs, work::WHOLE_BY_LAYERS, 0.0032)
        };
        let first = CheckFigure {
            bytes: 100,
            ..of(costs, work::FIRST_LAYER, 0.000_150)
        };
        let mut figures = vec![
            whole,
            first,
            of(costs, work::ENQUEUE, 0.000_050),
            of(costs, work::ENQUEUE, 0.000_015),
            of(costs, work::REGISTER, 1.0),
            of(costs, work::ALLOCATE, 4.0),
            of(costs, work::TOUCH, 2.0),
        ];
        let close = |(state, found): (GoalState, Option<f64>), expected: f64| {
            assert!((found.unwrap() - expected).abs() < 1e-9, "{found:?}");
            state
        };
        assert_eq!(
            close(state(&figures, "9.0", "first of"), 50.0),
            GoalState::Met
        );
        assert_eq!(
            close(state(&figures, "9.0", "enqueueing"), 15.0),
            GoalState::Met
        );
        assert_eq!(
            close(state(&figures, "9.0", "registering"), 0.5),
            GoalState::Missed
        );
        // An allocation that is no slower than the writing of its bytes decides nothing.
        figures.retain(|figure| figure.work != work::ALLOCATE);
        figures.push(of(costs, work::ALLOCATE, 1.5));
        assert_eq!(
            state(&figures, "9.0", "registering"),
            (GoalState::NotMeasured, None)
        );
    }
}
