//! What is measured.

use crate::error::CliError;

/// Where one side lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Memory,
    File,
}

impl Place {
    pub(super) fn name(self) -> &'static str {
        match self {
            Place::Memory => "memory",
            Place::File => "file",
        }
    }
}

/// One side of a row.
#[derive(Clone, Debug)]
pub(super) struct End {
    /// A word, or the name of a known layout.
    pub(super) layout: String,
    pub(super) place: Place,
}

impl End {
    fn new(layout: &str, place: Place) -> End {
        End {
            layout: layout.to_owned(),
            place,
        }
    }

    /// `BHLKNC`, `BHLKNC in a file`.
    pub(super) fn label(&self) -> String {
        match self.place {
            Place::Memory => self.layout.clone(),
            Place::File => format!("{} (file)", self.layout),
        }
    }
}

/// One row.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) source: End,
    pub(super) destination: End,
}

impl Row {
    pub(super) fn label(&self) -> String {
        format!("{} → {}", self.source.label(), self.destination.label())
    }
}

/// The usual pairs: equal layouts, layer-separate to contiguous, other orders inside, and the
/// interior of vLLM's CPU backend.
const MEMORY: [(&str, &str); 8] = [
    ("BLKNHC", "BLKNHC"),
    ("L|KBNHC", "L|KBNHC"),
    ("L|KBNHC", "BLKNHC"),
    ("L|BKNHC", "BLKNHC"),
    ("L|BKNHC", "BLKHNC"),
    ("L|KBNHC", "BHLKNC"),
    ("L|BH(kCN,vNC)", "L|BH(kCN,vNC)"),
    ("L|BH(kCN,vNC)", "BHLKNC"),
];

/// The same with a file on one side.
const FILES: [(&str, &str); 2] = [("L|BKNHC", "BHLKNC"), ("BHLKNC", "BHLKNC")];

/// The rows asked for: one pair, or the usual ones, as far as they match the filter.
pub(super) fn rows(pair: Option<(&str, &str)>, filter: Option<&str>) -> Result<Vec<Row>, CliError> {
    let row = |source: &str, from: Place, destination: &str, to: Place| Row {
        source: End::new(source, from),
        destination: End::new(destination, to),
    };
    let (memory, files) = match &pair {
        Some(pair) => (std::slice::from_ref(pair), std::slice::from_ref(pair)),
        None => (MEMORY.as_slice(), FILES.as_slice()),
    };
    let mut rows: Vec<Row> = memory
        .iter()
        .map(|(from, to)| row(from, Place::Memory, to, Place::Memory))
        .collect();
    for (outside, stored) in files {
        rows.push(row(outside, Place::Memory, stored, Place::File));
        rows.push(row(stored, Place::File, outside, Place::Memory));
    }
    let all: Vec<String> = rows.iter().map(Row::label).collect();
    rows.retain(|row| filter.is_none_or(|filter| row.label().contains(filter)));
    if rows.is_empty() {
        return Err(CliError::NothingLeft {
            filter: filter.unwrap_or_default().to_owned(),
            known: all.join(", "),
        });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_keeps_rows_and_refuses_to_keep_none() {
        let files = rows(None, Some("file")).unwrap();
        assert_eq!(files.len(), 4);
        let error = rows(None, Some("tape")).unwrap_err().to_string();
        assert!(error.contains("BLKNHC → BLKNHC"), "{error}");
        assert_eq!(rows(Some(("BLKNHC", "BHLKNC")), None).unwrap().len(), 3);
    }
}
