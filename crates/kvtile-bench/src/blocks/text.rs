//! The report as text.

use std::fmt::{self, Display};

use super::{BlocksReport, managers};

impl Display for BlocksReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} cores", self.machine.cpu, self.machine.cores)?;
        writeln!(
            f,
            "\nKeys from tokens, one thread, medians of {} rounds",
            self.rounds
        )?;
        writeln!(
            f,
            "  profile  page     ns/block  10^6 tokens/s    goal  spread"
        )?;
        for row in &self.hashing {
            let missed = row.goal.is_some_and(|goal| row.million_tokens_per_s < goal);
            writeln!(
                f,
                "  {:7}  {:4}  {:11.1}  {:12.0}{}  {:>6}  {:6.2}",
                row.profile,
                row.page_size,
                row.ns_per_block,
                row.million_tokens_per_s,
                mark(missed),
                goal(row.goal),
                row.spread
            )?;
        }
        writeln!(
            f,
            "\nPool of {} blocks in chains of 128, one thread",
            self.blocks
        )?;
        writeln!(
            f,
            "  policy   operation                     ns/block    goal  spread"
        )?;
        for row in &self.operations {
            let missed = row.goal_ns.is_some_and(|goal| row.ns_per_block > goal);
            writeln!(
                f,
                "  {:7}  {:26}  {:9.1}{}  {:>6}  {:6.2}",
                row.policy.to_string(),
                row.operation,
                row.ns_per_block,
                mark(missed),
                goal(row.goal_ns),
                row.spread
            )?;
        }
        writeln!(
            f,
            "\nMatch inactive and release on two threads, throughput over one thread"
        )?;
        writeln!(
            f,
            "  policy   one thread, ns/block  one pool (goal 1.5)  two pools"
        )?;
        for row in &self.threads {
            writeln!(
                f,
                "  {:7}  {:20.1}  {:18.2}{}  {:9.2}",
                row.policy.to_string(),
                row.one_thread_ns_per_block,
                row.one_pool_gain,
                mark(row.one_pool_gain < 1.5),
                row.two_pools_gain
            )?;
        }
        managers::write(self, f)
    }
}

/// The mark of a missed goal.
fn mark(missed: bool) -> char {
    if missed { '!' } else { ' ' }
}

fn goal(goal: Option<f64>) -> String {
    goal.map_or_else(String::new, |goal| format!("{goal:.0}"))
}
