//! The reports on a saved cache.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use kvtile::{
    identity::{Difference, Fingerprint, Identity},
    layout::{Shape, ShownText, Word},
    saved::{BlockCheck, SavedCache},
    transfer::{CopyError, SavedError, TransferError},
};
use serde::Serialize;

use crate::{
    layout::shape_text,
    output::{Align, Screen, TextTable, bytes, thousands},
};

/// Most bad blocks in a list.
const BAD_SHOWN: usize = 8;

/// Longest note in a text report, in characters; JSON has it in full.
const NOTE_CHARACTERS_MAX: usize = 200;

/// A saved cache, as a report.
#[derive(Serialize)]
pub(super) struct InspectReport<'a> {
    path: &'a Path,
    /// `whole`, `damaged`, `refused`, or `unchecked` where the blocks were not read.
    verdict: &'static str,
    file_bytes: u64,
    identity: &'a Identity,
    identity_fingerprint: Fingerprint,
    block_layout_fingerprint: Fingerprint,
    word: &'a Word,
    long_form: String,
    shape: &'a Shape,
    alignment: u64,
    tokens: u64,
    regions: usize,
    data_bytes: u64,
    notes: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocks: Option<ChecksumReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<IdentityComparison>,
}

/// A file that could not be opened as a saved cache.
#[derive(Serialize)]
pub(super) struct FailedReport<'a> {
    path: &'a Path,
    /// `damaged`, or `not a saved cache`.
    verdict: &'static str,
    problem: String,
}

impl<'a> FailedReport<'a> {
    pub(super) fn of(path: &'a Path, error: &TransferError) -> FailedReport<'a> {
        let verdict = match error {
            TransferError::Saved(SavedError::NotASavedCache { .. }) => "not a saved cache",
            TransferError::Memory(_) | TransferError::Copy(CopyError::File { .. }) => "unreadable",
            _ => "damaged",
        };
        FailedReport {
            path,
            verdict,
            problem: error.to_string(),
        }
    }
}

/// A note, truncated where it is long.
fn shortened(note: &str) -> String {
    match note.char_indices().nth(NOTE_CHARACTERS_MAX) {
        None => note.to_owned(),
        Some((end, _)) => {
            let shown = note.get(..end).unwrap_or(note);
            format!(
                "{shown}… ({} bytes, whole with --json)",
                thousands(note.len() as u64)
            )
        }
    }
}

/// The outcome of the checksums.
#[derive(Serialize)]
pub(super) struct ChecksumReport {
    checked: usize,
    bad: Vec<BadSavedBlock>,
}

#[derive(Serialize)]
struct BadSavedBlock {
    block: usize,
    problem: String,
}

impl ChecksumReport {
    pub(super) fn of(checks: &[BlockCheck]) -> ChecksumReport {
        let bad = checks.iter().filter_map(|check| {
            let problem = check.result.as_ref().err()?.to_string();
            Some(BadSavedBlock {
                block: check.block,
                problem,
            })
        });
        ChecksumReport {
            checked: checks.len(),
            bad: bad.collect(),
        }
    }
}

/// A comparison with another identity.
#[derive(Serialize)]
pub(super) struct IdentityComparison {
    path: std::path::PathBuf,
    model: String,
    equal: bool,
    /// In a fixed order; a load fails with the first one.
    differences: Vec<DifferingField>,
}

#[derive(Serialize)]
struct DifferingField {
    field: String,
    here: String,
    there: String,
}

impl IdentityComparison {
    pub(super) fn new(
        path: &Path,
        theirs: &Identity,
        differences: Vec<Difference>,
    ) -> IdentityComparison {
        let differing = |difference: Difference| DifferingField {
            field: difference.field,
            here: difference.ours,
            there: difference.theirs,
        };
        IdentityComparison {
            path: path.to_owned(),
            model: theirs.model().to_owned(),
            equal: differences.is_empty(),
            differences: differences.into_iter().map(differing).collect(),
        }
    }
}

impl<'a> InspectReport<'a> {
    pub(super) fn of(
        path: &'a Path,
        cache: &'a SavedCache,
        blocks: Option<ChecksumReport>,
        against: Option<IdentityComparison>,
    ) -> InspectReport<'a> {
        let header = cache.header();
        let bad = blocks.as_ref().is_some_and(|blocks| !blocks.bad.is_empty());
        let differs = against.as_ref().is_some_and(|against| !against.equal);
        let verdict = match (bad, differs, &blocks) {
            (true, _, _) => "damaged",
            (false, true, _) => "refused",
            (false, false, None) => "unchecked",
            (false, false, Some(_)) => "whole",
        };
        InspectReport {
            path,
            verdict,
            file_bytes: cache.file_bytes(),
            identity: &header.identity,
            identity_fingerprint: header.identity.fingerprint(),
            block_layout_fingerprint: header.block_layout.fingerprint(),
            word: &header.word,
            long_form: header.word.long_form(),
            shape: &header.shape,
            alignment: header.alignment,
            tokens: header.tokens,
            regions: header.regions.len(),
            data_bytes: header.regions.iter().map(|region| region.bytes).sum(),
            notes: &header.notes,
            blocks,
            against,
        }
    }

    /// Why the file must not be used, if so.
    pub(super) fn problem(&self) -> Option<String> {
        let bad = self.blocks.as_ref().map_or(0, |blocks| blocks.bad.len());
        if bad > 0 {
            return Some(format!(
                "{bad} of {} blocks are damaged; a load serves the others and counts these as \
                 misses",
                self.shape.num_blocks()
            ));
        }
        let against = self.against.as_ref()?;
        let first = against.differences.first()?;
        Some(format!(
            "refused against {}: {} differs: {} here, {} there",
            ShownText(&against.path.display().to_string()),
            ShownText(&first.field),
            ShownText(&first.here),
            ShownText(&first.there)
        ))
    }

    /// The report as text.
    pub(super) fn text(&self, screen: Screen) -> String {
        let path = self.path.display().to_string();
        let mut text = screen.bold(&ShownText(&path).to_string());
        text.push('\n');
        let mut table = TextTable::bare([Align::Left, Align::Left]);
        let mut fact = |name: &str, value: String| table.row([name.to_owned(), value]);
        fact("model", self.identity.model().to_owned());
        fact("revision", self.identity.revision().to_owned());
        fact("identity", self.identity_fingerprint.to_string());
        fact("rope", self.rope_text());
        for (key, value) in self.identity.extra() {
            fact(key, value.clone());
        }
        fact("tokens", thousands(self.tokens));
        fact("holds", shape_text(self.shape));
        fact("layout", format!("{}: {}", self.word, self.long_form));
        let data = bytes(self.data_bytes);
        fact("data", format!("{data}, aligned to {}", self.alignment));
        fact("file", bytes(self.file_bytes));
        for (key, value) in self.notes {
            fact(&format!("note {key}"), shortened(value));
        }
        fact("header", "whole: its digest holds".to_owned());
        fact("blocks", self.blocks_text());
        if let Some(against) = &self.against {
            fact("against", against.summary());
        }
        text.push_str(&table.text());
        for bad in self.blocks.iter().flat_map(|b| &b.bad).take(BAD_SHOWN) {
            let _ = writeln!(text, "    {}", ShownText(&bad.problem));
        }
        if let Some(against) = self.against.as_ref().filter(|against| !against.equal) {
            text.push('\n');
            text.push_str(&against.table());
        }
        text
    }

    fn rope_text(&self) -> String {
        match self.identity.rope() {
            None => "none".to_owned(),
            Some(rope) => format!("{}, base {}", rope.kind(), rope.base()),
        }
    }

    fn blocks_text(&self) -> String {
        match &self.blocks {
            None => format!("{}, not checked", thousands(self.shape.num_blocks())),
            Some(ChecksumReport { checked, bad }) if bad.is_empty() => {
                format!("all {} checksums hold", thousands(*checked as u64))
            }
            Some(ChecksumReport { checked, bad }) => {
                format!(
                    "{} of {} checksums fail",
                    bad.len(),
                    thousands(*checked as u64)
                )
            }
        }
    }
}

impl IdentityComparison {
    fn summary(&self) -> String {
        let path = self.path.display();
        match self.differences.first() {
            None => format!("{path}: equal, blocks of one may replace those of the other"),
            Some(first) => format!("{path}: refused, {} differs", first.field),
        }
    }

    fn table(&self) -> String {
        let columns = [
            ("field", Align::Left),
            ("here", Align::Left),
            ("there", Align::Left),
        ];
        let mut table = TextTable::new(columns);
        for differing in &self.differences {
            table.row([
                differing.field.clone(),
                differing.here.clone(),
                differing.there.clone(),
            ]);
        }
        table.text()
    }
}
