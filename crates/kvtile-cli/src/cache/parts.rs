//! The parts of a model's folder: what each rank writes, also with earlier numbers of ranks. The
//! capacity of the folder bounds none of them, and that of a part bounds its own part.

use std::path::Path;

use kvtile::{
    layout::ShownText,
    tiers::{
        FolderError, TierError,
        disk::{Inspection, PartFolderName},
    },
};
use serde::Serialize;

use super::report::{UsageReport, age, path_text, seconds_since};
use crate::{
    error::with_causes,
    output::{Align, Screen, TextTable, bytes, thousands},
};

/// A part.
#[derive(Serialize)]
pub(super) struct PartStat {
    name: String,
    #[serde(flatten)]
    state: PartState,
}

/// What was found out about a part.
#[derive(Serialize)]
#[serde(untagged)]
enum PartState {
    Read(PartFacts),
    /// It cannot be read.
    Failed {
        problem: String,
    },
}

/// What a part has.
#[derive(Serialize)]
struct PartFacts {
    blocks: usize,
    files_bytes: u64,
    age_seconds: u64,
    #[serde(flatten)]
    usage: UsageReport,
}

impl PartStat {
    fn of(path: &Path, name: String) -> PartStat {
        let state = match Inspection::open(&path.join(&name)) {
            Ok(part) => PartState::Read(PartFacts::of(&part)),
            Err(error) => PartState::Failed {
                // In one line, for the table.
                problem: with_causes(error.to_string(), &error).replace("\n  because: ", ": "),
            },
        };
        PartStat { name, state }
    }
}

impl PartFacts {
    fn of(part: &Inspection) -> PartFacts {
        PartFacts {
            blocks: part.groups().iter().map(|group| group.blocks().len()).sum(),
            files_bytes: part.files_bytes(),
            age_seconds: seconds_since(part.manifest().created().unix_seconds),
            usage: UsageReport::of(part),
        }
    }
}

/// The parts in a folder, by their names.
pub(super) fn parts_of(path: &Path) -> Vec<PartStat> {
    let Ok(entries) = path.read_dir() else {
        // The reading of the folder itself reports it.
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter(|name| PartFolderName::parse(name).is_some())
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|name| PartStat::of(path, name))
        .collect()
}

/// The parts as a table.
pub(super) fn parts_text(parts: &[PartStat]) -> String {
    let mut table = TextTable::new([
        ("part", Align::Left),
        ("blocks", Align::Right),
        ("files", Align::Right),
        ("made", Align::Left),
        ("used", Align::Left),
    ]);
    for part in parts {
        let [blocks, files, made, used] = match &part.state {
            PartState::Read(facts) => [
                thousands(facts.blocks as u64),
                bytes(facts.files_bytes),
                format!("{} ago", age(facts.age_seconds)),
                facts.usage.text().to_owned(),
            ],
            PartState::Failed { problem } => {
                let unknown = || "?".to_owned();
                [
                    unknown(),
                    unknown(),
                    unknown(),
                    ShownText(problem).to_string(),
                ]
            }
        };
        table.row([part.name.clone(), blocks, files, made, used]);
    }
    table.text()
}

/// The report on a folder that has parts and no blocks of its own.
#[derive(Serialize)]
pub(super) struct PartsReport<'a> {
    path: &'a Path,
    files_bytes: u64,
    parts: Vec<PartStat>,
}

impl<'a> PartsReport<'a> {
    pub(super) fn of(path: &'a Path, parts: Vec<PartStat>) -> PartsReport<'a> {
        let each = parts.iter().filter_map(|part| match &part.state {
            PartState::Read(facts) => Some(facts),
            PartState::Failed { .. } => None,
        });
        PartsReport {
            path,
            files_bytes: each.map(|facts| facts.files_bytes).sum(),
            parts,
        }
    }

    /// The report as text.
    pub(super) fn text(&self, screen: Screen) -> String {
        let mut text = path_text(screen, self.path);
        text.push('\n');
        let mut table = TextTable::bare([Align::Left, Align::Left]);
        table.row(["parts".to_owned(), thousands(self.parts.len() as u64)]);
        table.row(["files".to_owned(), bytes(self.files_bytes)]);
        text.push_str(&table.text());
        text.push_str(&parts_text(&self.parts));
        text
    }
}

/// Whether an error is that the folder itself is no disk tier.
pub(super) fn is_no_store(error: &TierError) -> bool {
    matches!(error, TierError::Folder(FolderError::NotAStore { .. }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn parts_are_listed_by_name_and_other_folders_are_not() {
        let folder = tempfile::tempdir().unwrap();
        assert!(parts_of(folder.path()).is_empty());
        assert!(parts_of(&folder.path().join("missing")).is_empty());
        for name in [
            "layers-0-2.heads-4-8",
            "layers-0-2.heads-0-4",
            "layers-0-2.heads-00-4",
            "rank-0-of-2",
        ] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let report = PartsReport::of(folder.path(), parts_of(folder.path()));
        let names: Vec<&str> = report.parts.iter().map(|part| part.name.as_str()).collect();
        assert_eq!(names, ["layers-0-2.heads-0-4", "layers-0-2.heads-4-8"]);
        // A part that is no disk tier has its problem in the list, which goes on after it.
        let text = report.text(Screen {
            columns: 80,
            colours: false,
        });
        assert_eq!(text.matches("no disk tier").count(), 2, "{text}");
    }
}
