//! The report as text.

use std::fmt::{self, Display};

use super::{GroupBenchReport, GroupBenchRow, GroupOperationKind};
use crate::lines::bytes;

impl Display for GroupBenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {} cores", self.machine.cpu, self.machine.cores)?;
        let [full, window, state] = self.stop_bytes;
        writeln!(
            f,
            "A stop at {} tokens: full {}, window {}, state {}; medians of {} rounds, in turns with a cache of one group \
             and memcpy of the same bytes",
            self.tokens,
            bytes(full),
            bytes(window),
            bytes(state),
            self.rounds
        )?;
        writeln!(
            f,
            "\n  what                 groups, us  spread  one group, us    GB/s  of one group (lowest, highest)  of memcpy \
             (lowest, highest)"
        )?;
        self.rows.iter().try_for_each(|row| line(f, row))
    }
}

fn line(f: &mut fmt::Formatter<'_>, row: &GroupBenchRow) -> fmt::Result {
    let what = match row.operation {
        GroupOperationKind::Lookup => "lookup",
        GroupOperationKind::LookupLost => "lookup, state lost",
        GroupOperationKind::Store => "store",
        GroupOperationKind::Load => "load",
    };
    let [ratio, lowest, highest] = row.of_one;
    write!(
        f,
        "  {what:20} {:10.1}  {:6.2}  {:13.1}",
        row.groups_us, row.spread, row.one_us
    )?;
    match row.gb_per_s {
        Some(rate) => write!(f, "  {rate:6.2}")?,
        None => write!(f, "        ")?,
    }
    write!(f, "  {ratio:5.2} ({lowest:.2}, {highest:.2})")?;
    if let Some([ratio, lowest, highest]) = row.of_memcpy {
        write!(f, "            {ratio:5.2} ({lowest:.2}, {highest:.2})")?;
    }
    writeln!(f)
}
