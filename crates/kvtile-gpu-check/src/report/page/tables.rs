//! The tables of the page.

use kvtile_bench::escaped;

use super::{left, note, plain, rate_text, shaded, table, time_text};
use crate::{
    figures::{ByteCheck, CheckFigure, CopyDirection, MeasuredRoute},
    goals::{GoalRow, GoalState},
    phase::CheckPhase,
    report::{GpuCheckReport, PhaseEnd},
};

pub(super) fn goals(report: &GpuCheckReport) -> String {
    let rows: Vec<String> = report.goals.iter().map(goal).collect();
    table(
        "Goals",
        "Ratios refer to the ceilings of the same run.",
        &["", "work", "found", "goal", "by"],
        &rows,
    )
}

fn goal(goal: &GoalRow) -> String {
    let class = match goal.state {
        GoalState::Met => "met",
        GoalState::Missed => "missed",
        GoalState::NotMeasured | GoalState::Undecided => "open",
    };
    let state = goal.state.name();
    let bound = if goal.at_least { "≥" } else { "≤" };
    let found = goal.found.map_or_else(
        || "·".to_owned(),
        |found| format!("{found:.2} {}", goal.unit),
    );
    format!(
        "<td class=\"left {class}\">{state}</td>{}{}{}<td class=\"note\">{}</td>",
        left(&goal.work),
        plain(&found),
        plain(&format!("{bound} {} {}", goal.goal, goal.unit)),
        escaped(&goal.by)
    )
}

/// A row for each kind of work, a column for each way; differences below.
pub(super) fn bytes(report: &GpuCheckReport) -> String {
    let mut ways: Vec<(CopyDirection, MeasuredRoute)> = report
        .bytes
        .iter()
        .map(|check| (check.direction, check.route))
        .collect();
    ways.sort_unstable();
    ways.dedup();
    let mut works: Vec<&str> = Vec::new();
    for check in &report.bytes {
        if !works.contains(&check.work.as_str()) {
            works.push(&check.work);
        }
    }
    let rows = works.into_iter().map(|work| {
        let cell = |way: &(CopyDirection, MeasuredRoute)| {
            let mut of_work = report.bytes.iter().filter(|check| check.work == work);
            let found = of_work.find(|check| (check.direction, check.route) == *way);
            compared(found)
        };
        let cells: String = ways.iter().map(cell).collect();
        format!("{}{cells}", left(work))
    });
    let rows: Vec<String> = rows.collect();
    let titles = ways
        .iter()
        .map(|(way, route)| format!("{}<br>{}", way.name(), route.name()));
    let titles: Vec<String> = titles.collect();
    let columns: Vec<&str> = std::iter::once("")
        .chain(titles.iter().map(String::as_str))
        .collect();
    let text = "Each transfer is compared with the naive copy: every byte of the destination, which held poison, and of \
                the guards around it.";
    let mut section = table("Bytes", text, &columns, &rows);
    for check in &report.bytes {
        if let Some(wrong) = &check.wrong {
            let (way, route) = (check.direction.name(), check.route.name());
            let line = format!("{}, {way}, {route}: {wrong}", check.work);
            section.push_str(&format!("<p class=\"missed\">{}</p>\n", escaped(&line)));
        }
    }
    section
}

fn compared(check: Option<&ByteCheck>) -> String {
    let Some(check) = check else {
        return "<td class=\"none\">·</td>".to_owned();
    };
    let refused = check.refused;
    match (&check.wrong, check.compared) {
        (Some(_), _) => "<td class=\"plain missed\">wrong</td>".to_owned(),
        (None, 0) => format!("<td class=\"plain met\">{refused} refused</td>"),
        (None, equal) if refused == 0 => format!("<td class=\"plain met\">{equal} equal</td>"),
        (None, equal) => {
            format!("<td class=\"plain met\" title=\"{refused} without a plan\">{equal} equal</td>")
        }
    }
}

/// A row for each pair of layouts, with its three directions.
pub(super) fn permutes(report: &GpuCheckReport) -> String {
    let figures = || {
        let all = report.figures.iter();
        all.filter(|figure| figure.phase == CheckPhase::Permutes)
    };
    let mut works: Vec<&str> = Vec::new();
    for figure in figures() {
        if !works.contains(&figure.work.as_str()) {
            works.push(&figure.work);
        }
    }
    let rows = works.into_iter().map(|work| {
        let find = |way| {
            let mut of_work = figures();
            of_work.find(|figure| figure.work == work && figure.direction == Some(way))
        };
        let inside = find(CopyDirection::Inside);
        let cell = |figure: Option<&CheckFigure>| {
            let ratio = figure.and_then(|figure| figure.ratio);
            shaded(ratio, &figure.map_or_else(String::new, note))
        };
        let rate = inside.and_then(CheckFigure::bytes_per_second);
        let counts = inside.and_then(|figure| figure.counts);
        let counts = counts.map_or_else(Vec::new, |counts| {
            vec![
                format!("{:.1}", counts.instructions),
                format!("{:.2}, {:.2}", counts.loads, counts.stores),
                counts
                    .passes
                    .map_or_else(String::new, |passes| format!("{passes:.2}")),
            ]
        });
        let counts: String = counts.iter().map(|count| plain(count)).collect();
        format!(
            "{}{}{}{}{}{counts}",
            left(work),
            plain(&rate.map_or_else(String::new, rate_text)),
            cell(inside),
            cell(find(CopyDirection::DeviceToHost)),
            cell(find(CopyDirection::HostToDevice)),
        )
    });
    table(
        "Permutations",
        "In the device by a kernel; between host and device by a kernel and one copy. Ratios refer to the ceiling of \
         the direction. Counts are the interpreter's, for 16 bytes.",
        &[
            "work",
            "in the device",
            "ratio",
            "to host",
            "from host",
            "instructions",
            "sectors",
            "passes",
        ],
        &rows.collect::<Vec<String>>(),
    )
}

/// Figures with a line of their own.
pub(super) fn others(report: &GpuCheckReport) -> String {
    let phases = [CheckPhase::Ceilings, CheckPhase::Beside, CheckPhase::Costs];
    let figures = report.figures.iter();
    let rows = figures
        .filter(|figure| phases.contains(&figure.phase))
        .map(|figure| {
            let way = figure.direction.map_or("", CopyDirection::name);
            let route = figure.route.map_or("", |route| route.name());
            let blocks = figure
                .blocks
                .map_or_else(String::new, |blocks| blocks.to_string());
            let rate = figure
                .bytes_per_second()
                .map_or_else(String::new, rate_text);
            let ratio = figure
                .ratio
                .map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            format!(
                "{}{}{}{}{}{}{}{}{}",
                left(figure.phase.name()),
                left(&figure.work),
                left(way),
                left(route),
                plain(&blocks),
                plain(&time_text(figure.seconds.median)),
                plain(&format!("{:.0} %", 100.0 * figure.seconds.spread())),
                plain(&rate),
                plain(&ratio),
            )
        });
    table(
        "Other figures",
        "Medians; the spread is that of all rounds. The ratio of a kernel beside a transfer is its time alone over \
         its time there.",
        &[
            "phase", "work", "way", "route", "blocks", "median", "spread", "rate", "ratio",
        ],
        &rows.collect::<Vec<String>>(),
    )
}

pub(super) fn routes(report: &GpuCheckReport) -> String {
    let rows = report.routes.iter().map(|route| {
        let blocks = route
            .blocks
            .map_or_else(String::new, |blocks| blocks.to_string());
        let rate = match route.gigabytes_per_second > 0.0 {
            true => rate_text(route.gigabytes_per_second * 1e9),
            false => "no limit".to_owned(),
        };
        format!(
            "{}{}{}{}{}{}{}{}",
            left(route.direction.name()),
            left(route.route.name()),
            plain(&blocks),
            plain(&format!("{:.2} µs", route.fixed_microseconds)),
            plain(&format!("{:.1} ns", route.piece_nanoseconds)),
            plain(&rate),
            plain(&route.figures.to_string()),
            plain(&format!("{:.0} %", 100.0 * route.relative_error)),
        )
    });
    table(
        "Proposed constants of the routes",
        "Time of a transfer: the fixed part, and a part for each run, and the bytes at the rate. Fitted to the sweep; the \
         error is the root of the mean square of relative errors.",
        &[
            "way", "route", "blocks", "fixed", "a run", "rate", "figures", "error",
        ],
        &rows.collect::<Vec<String>>(),
    )
}

pub(super) fn phases(report: &GpuCheckReport) -> String {
    let rows = report.phases.iter().map(|outcome| {
        let (class, end) = match &outcome.end {
            PhaseEnd::Complete => ("met", "complete".to_owned()),
            PhaseEnd::CutShort => ("open", "cut short by its time".to_owned()),
            PhaseEnd::Failed(reason) => ("missed", format!("failed: {reason}")),
            PhaseEnd::NotStarted(reason) => ("missed", format!("not started: {reason}")),
        };
        format!(
            "{}<td class=\"left {class}\">{}</td>{}{}",
            left(outcome.phase.name()),
            escaped(&end),
            plain(&format!(
                "{:.1} of {:.0} s",
                outcome.seconds, outcome.seconds_max
            )),
            plain(&format!("{} of {}", outcome.done, outcome.planned)),
        )
    });
    let left_out = report.left_out.join("; ");
    table(
        "Phases",
        &format!("Not measured: {}.", escaped(&left_out)),
        &["phase", "", "time", "parts"],
        &rows.collect::<Vec<String>>(),
    )
}
