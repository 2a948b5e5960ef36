//! Lines of a report: the rows of one pair with one model in one size, measured in turns.

use crate::{
    class::CopyClass,
    contender::CopyMethod,
    row::{BenchRow, SideMemory},
};

/// The rows of one cell.
#[derive(Clone, Debug)]
pub(crate) struct CellLine<'a> {
    pub(crate) rows: Vec<&'a BenchRow>,
}

impl<'a> CellLine<'a> {
    /// The lines of the rows, in the order in which their cells first appear.
    pub(crate) fn of(rows: impl IntoIterator<Item = &'a BenchRow>) -> Vec<CellLine<'a>> {
        let mut lines: Vec<CellLine<'a>> = Vec::new();
        for row in rows {
            let mine = lines.iter_mut().find(|line| {
                let first = line.rows.first();
                first.is_some_and(|first| same_cell(first, row))
            });
            match mine {
                Some(line) => line.rows.push(row),
                None => lines.push(CellLine { rows: vec![row] }),
            }
        }
        lines
    }

    /// The row of one method on this many threads.
    pub(crate) fn find(&self, method: CopyMethod, threads: u32) -> Option<&'a BenchRow> {
        let mut rows = self.rows.iter().copied();
        rows.find(|row| row.method == method && row.threads == threads)
    }

    /// Whether kvtile misses a goal.
    pub(crate) fn misses(&self) -> bool {
        self.rows.iter().any(|row| row.misses())
    }
}

fn same_cell(a: &BenchRow, b: &BenchRow) -> bool {
    let key = |row: &BenchRow| {
        (
            row.class,
            row.bytes,
            row.source_place,
            row.destination_place,
        )
    };
    key(a) == key(b)
        && a.model == b.model
        && a.source == b.source
        && a.destination == b.destination
        && a.page_size == b.page_size
        && a.part == b.part
}

/// `in cache`, `64 MiB`.
pub(crate) fn size(row: &BenchRow) -> String {
    match (row.class, row.source_place) {
        (CopyClass::FixedCost, _) => bytes(row.bytes),
        (_, SideMemory::Cache) => "in cache".to_owned(),
        _ => bytes(row.bytes),
    }
}

/// `64 MiB`, `96 B`, rounded to a whole number.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    // From 10 on, the number is whole: 9.5 MiB, 12 MiB.
    for (unit, shift) in UNITS {
        let in_tenths = (u128::from(count) * 10 + (1 << shift) / 2) >> shift;
        if in_tenths >= 100 {
            return format!("{} {unit}", (in_tenths + 5) / 10);
        }
        if in_tenths >= 10 {
            return match in_tenths % 10 {
                0 => format!("{} {unit}", in_tenths / 10),
                tenths => format!("{}.{tenths} {unit}", in_tenths / 10),
            };
        }
    }
    format!("{count} B")
}

/// `2 KiB`, or `2 B…4 KiB` where runs differ.
pub(crate) fn runs(row: &BenchRow) -> String {
    match (row.run_bytes_min, row.run_bytes) {
        (shortest, longest) if shortest == longest => bytes(longest),
        (shortest, longest) => format!("{}…{}", bytes(shortest), bytes(longest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let texts = [
            (96, "96 B"),
            (1024, "1 KiB"),
            (9 << 20, "9 MiB"),
            (64 << 20, "64 MiB"),
            ((64 << 20) - 3000, "64 MiB"),
            (1536, "1.5 KiB"),
            (512 << 20, "512 MiB"),
            (1 << 30, "1 GiB"),
        ];
        for (count, text) in texts {
            assert_eq!(bytes(count), text);
        }
    }
}
