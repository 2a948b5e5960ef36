//! The report on one plan.

use std::fmt::Write as _;

use kvtile::layout::{AddressStep, CopyPlan, Loop, Nest};
use serde::Serialize;

use crate::{
    draw::{self, NestingNode, SampledRun},
    layout::LayoutFacts,
    output::{Align, Screen, TextTable, bytes, count, thousands},
};

/// A plan and both of its sides.
pub(super) struct PlanFacts<'a> {
    pub(super) source: LayoutFacts,
    pub(super) destination: LayoutFacts,
    /// Block pairs selected.
    pub(super) blocks: usize,
    pub(super) plan: &'a CopyPlan,
}

/// The plan as a report.
#[derive(Serialize)]
pub(super) struct PlanReport<'a> {
    source: &'a LayoutFacts,
    destination: &'a LayoutFacts,
    block_pairs: usize,
    bytes: u64,
    runs: u64,
    run_bytes: RunBytes,
    classes: Vec<ClassReport>,
}

/// The longest and the shortest run.
#[derive(Serialize)]
struct RunBytes {
    longest: u64,
    shortest: u64,
}

/// A class of block pairs.
#[derive(Serialize)]
struct ClassReport {
    pairs: usize,
    blocks_per_pair: u64,
    nests: Vec<NestReport>,
}

#[derive(Serialize)]
struct NestReport {
    loops: Vec<LoopReport>,
    run_bytes: u64,
    run_axes: String,
    runs: u64,
}

#[derive(Serialize)]
struct LoopReport {
    axes: String,
    extent: u64,
    source: AddressStep,
    destination: AddressStep,
}

impl PlanFacts<'_> {
    pub(super) fn report(&self) -> PlanReport<'_> {
        let (longest, shortest) = self.plan.run_bytes();
        let classes = self.plan.classes().iter().map(|class| ClassReport {
            pairs: class.pairs.len(),
            blocks_per_pair: class.blocks_per_pair,
            nests: class.nests.iter().map(nest_report).collect(),
        });
        PlanReport {
            source: &self.source,
            destination: &self.destination,
            block_pairs: self.blocks,
            bytes: self.plan.bytes(),
            runs: self.plan.runs(),
            run_bytes: RunBytes { longest, shortest },
            classes: classes.collect(),
        }
    }

    /// A summary of the plan in a line or two.
    pub(super) fn notes(&self) -> Vec<String> {
        let (longest, shortest) = self.plan.run_bytes();
        let runs = match self.plan.runs() {
            1 => "1 run".to_owned(),
            runs => format!("{} runs", thousands(runs)),
        };
        let lengths = if longest == shortest {
            format!("of {}", count(longest))
        } else {
            format!("of {} to {}", count(shortest), count(longest))
        };
        let pairs = match self.blocks {
            1 => "one block pair".to_owned(),
            pairs => format!("{} block pairs", thousands(pairs as u64)),
        };
        vec![format!(
            "{} in {runs} {lengths}, for {pairs}",
            bytes(self.plan.bytes())
        )]
    }

    /// The report as text.
    pub(super) fn text(
        &self,
        (source, destination): (&NestingNode, &NestingNode),
        samples: &[SampledRun],
        screen: Screen,
    ) -> String {
        let mut text = format!("{}\n", screen.bold("Plan"));
        for note in self.notes() {
            let _ = writeln!(text, "  {note}");
        }
        let (longest, shortest) = self.plan.run_bytes();
        let _ = writeln!(text, "  {}", judgement(longest, shortest));
        for class in self.plan.classes() {
            let pairs = thousands(class.pairs.len() as u64);
            let _ = match class.blocks_per_pair {
                1 if class.pairs.len() == 1 => writeln!(text, "\n  for one block pair"),
                1 => writeln!(text, "\n  for each of {pairs} block pairs"),
                blocks if class.pairs.len() == 1 => {
                    writeln!(text, "\n  for {blocks} block pairs at once")
                }
                blocks => writeln!(
                    text,
                    "\n  for each of {pairs} series of {blocks} block pairs"
                ),
            };
            for nest in class.nests.iter() {
                text.push_str(&nest_text(nest));
            }
        }
        if samples.len() > 1 {
            let _ = writeln!(
                text,
                "\n{} {}",
                screen.bold("Some runs, in the order of each memory"),
                screen.dim("(·· other bytes between)")
            );
            text.push_str(&draw::strips(samples, screen));
        }
        for (side, facts, node) in [
            ("Source", &self.source, source),
            ("Destination", &self.destination, destination),
        ] {
            let _ = write!(text, "\n{}  ", screen.bold(side));
            text.push_str(&facts.heading(screen));
            text.push_str(&draw::picture(node, screen));
        }
        text
    }
}

/// The cost of runs of these lengths.
fn judgement(longest: u64, shortest: u64) -> &'static str {
    match (shortest, longest) {
        (4096.., _) => "long runs: memory speed",
        (256.., _) => "medium runs: some overhead per run",
        (17.., _) => "short runs: the overhead per run is a large part of the time",
        (_, 0..=16) => "runs as short as single units: a transpose",
        _ => "some runs as short as single units: a transpose in part",
    }
}

fn nest_text(nest: &Nest) -> String {
    let mut table = TextTable::new([
        ("", Align::Left),
        ("times", Align::Right),
        ("source step", Align::Right),
        ("destination step", Align::Right),
    ]);
    for (depth, each) in nest.loops.iter().enumerate() {
        table.row([
            format!("  {}{}", "  ".repeat(depth), each.axes),
            thousands(each.extent),
            step_text(each.source),
            step_text(each.destination),
        ]);
    }
    let indent = "  ".repeat(nest.loops.len() + 1);
    let axes = match nest.run_axes.iter().next() {
        Some(_) => format!(" ({})", nest.run_axes),
        None => String::new(),
    };
    let run = format!("{indent}copy {} in a row{axes}", bytes(nest.run_bytes));
    if nest.loops.is_empty() {
        return format!("  {run}\n");
    }
    format!("{}  {run}\n", table.text())
}

fn step_text(step: AddressStep) -> String {
    match (step.regions, step.bytes) {
        (0, bytes) => count(bytes),
        (1, 0) => "1 region".to_owned(),
        (regions, 0) => format!("{} regions", thousands(regions)),
        (regions, bytes) => format!("{} regions + {}", thousands(regions), count(bytes)),
    }
}

fn nest_report(nest: &Nest) -> NestReport {
    let of = |each: &Loop| LoopReport {
        axes: each.axes.to_string(),
        extent: each.extent,
        source: each.source,
        destination: each.destination,
    };
    NestReport {
        loops: nest.loops.iter().map(of).collect(),
        run_bytes: nest.run_bytes,
        run_axes: nest.run_axes.to_string(),
        runs: nest.runs(),
    }
}
