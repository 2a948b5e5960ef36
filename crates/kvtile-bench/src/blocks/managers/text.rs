//! The table of managers.

use std::fmt::{self, Formatter};

use super::ManagerRatio;
use crate::blocks::BlocksReport;

/// Writes the table and the reason for missing rivals.
pub(in crate::blocks) fn write(report: &BlocksReport, f: &mut Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "\nBlock managers in turns, {} blocks in chains of 128, medians of {} rounds, ratios within a round",
        report.blocks, report.rounds
    )?;
    writeln!(
        f,
        "  operation                   manager                     ns/block  spread     times gittins, spread         times lru, spread"
    )?;
    for row in &report.managers {
        let of = |policy| row.over.iter().find(|ratio| ratio.policy == policy);
        writeln!(
            f,
            "  {:26}  {:26}  {:8.1}  {:6.2}  {:>24}  {:>24}",
            row.operation,
            format!("{} {}", row.manager, row.order),
            row.ns_per_block,
            row.spread,
            ratio(of("gittins")),
            ratio(of("lru")),
        )?;
    }
    match report.managers_left_out {
        Some(why) => writeln!(f, "  {why}"),
        None => Ok(()),
    }
}

fn ratio(ratio: Option<&ManagerRatio>) -> String {
    let Some(ratio) = ratio else {
        return String::new();
    };
    let mark = if ratio.met { ' ' } else { '!' };
    let goal = ratio.goal.map(|goal| format!("(goal {goal})"));
    format!(
        "{} {:.2}{mark} {:.2}",
        goal.unwrap_or_default(),
        ratio.ratio,
        ratio.spread
    )
}
