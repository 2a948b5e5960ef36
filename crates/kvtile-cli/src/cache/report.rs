//! The reports on a folder.

use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use kvtile::{
    identity::{Fingerprint, Identity},
    layout::ShownText,
    tiers::{
        ConvertError, FolderError, MismatchError, TierError,
        disk::{FolderUsage, InspectedGroup, Inspection, SlotMiss, StoredSlot},
    },
};
use serde::Serialize;

use super::parts::{PartStat, parts_text};
use crate::output::{Align, Screen, TextTable, bytes, thousands};

/// Most bad blocks in a list.
const BAD_SHOWN: usize = 8;

/// The place of a record, in JSON a number; with its group where the folder has several.
#[derive(Clone, Serialize)]
#[serde(untagged)]
pub(super) enum RecordPlace {
    /// A slot of the only group.
    Slot(u32),
    /// A slot of a named group.
    OfGroup {
        /// The name of the group.
        group: String,
        /// The slot.
        slot: u32,
    },
}

impl RecordPlace {
    fn of(group: &InspectedGroup, slot: u32) -> RecordPlace {
        match group.manifest().name() {
            None => RecordPlace::Slot(slot),
            Some(name) => RecordPlace::OfGroup {
                group: name.to_owned(),
                slot,
            },
        }
    }
}

impl fmt::Display for RecordPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordPlace::Slot(slot) => write!(f, "slot {slot}"),
            RecordPlace::OfGroup { group, slot } => {
                write!(f, "slot {slot} of group {}", ShownText(group))
            }
        }
    }
}

/// Lists the first blocks and records that are bad.
pub(super) fn push_bad(
    text: &mut String,
    bad: &[BadStoredBlock],
    (torn, unreadable): (&[RecordPlace], &[RecordPlace]),
) {
    for bad in bad.iter().take(BAD_SHOWN) {
        let _ = writeln!(text, "    {bad}");
    }
    for slot in torn.iter().take(BAD_SHOWN) {
        let _ = writeln!(text, "    {slot}: its record is torn");
    }
    for slot in unreadable.iter().take(BAD_SHOWN) {
        let _ = writeln!(text, "    {slot}: its record cannot be read");
    }
}

/// The contents of a folder.
#[derive(Serialize)]
pub(super) struct StatReport<'a> {
    path: &'a Path,
    /// The facts of the only group.
    #[serde(flatten)]
    only: Option<GroupStat<'a>>,
    /// The groups, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<NamedGroupStat<'a>>,
    files_bytes: u64,
    capacity_bytes: u64,
    created_unix_seconds: u64,
    age_seconds: u64,
    created_by: &'a str,
    #[serde(flatten)]
    usage: UsageReport,
    /// The parts of ranks, in folders below.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<PartStat>,
}

/// The contents of one of several groups.
#[derive(Serialize)]
struct NamedGroupStat<'a> {
    name: &'a str,
    #[serde(flatten)]
    stat: GroupStat<'a>,
    files_bytes: u64,
}

/// The contents of a group.
#[derive(Serialize)]
struct GroupStat<'a> {
    identity: &'a Identity,
    identity_fingerprint: Fingerprint,
    block_layout_fingerprint: Fingerprint,
    block_bytes: u64,
    slot_bytes: u64,
    blocks: usize,
    blocks_max: u32,
    torn: usize,
    unreadable: usize,
    tenants: usize,
    longest_chain: u32,
}

impl<'a> GroupStat<'a> {
    fn of(group: &'a InspectedGroup) -> GroupStat<'a> {
        let manifest = group.manifest();
        let tenants: BTreeSet<u32> = group.blocks().map(|block| block.tenant).collect();
        let last = group.blocks().map(|block| block.position).max();
        GroupStat {
            identity: manifest.identity(),
            identity_fingerprint: manifest.identity().fingerprint(),
            block_layout_fingerprint: manifest.block_layout().fingerprint(),
            block_bytes: manifest.block_bytes(),
            slot_bytes: manifest.slot_bytes(),
            blocks: group.blocks().len(),
            blocks_max: manifest.blocks_max(),
            torn: group.torn().len(),
            unreadable: group.unreadable().len(),
            tenants: tenants.len(),
            longest_chain: last.map_or(0, |last| last.saturating_add(1)),
        }
    }

    /// `5 of 63 (7.9 %)`.
    fn fill(&self) -> String {
        format!(
            "{} of {} ({:.1} %)",
            thousands(self.blocks as u64),
            thousands(u64::from(self.blocks_max)),
            100.0 * self.blocks as f64 / f64::from(self.blocks_max.max(1)),
        )
    }

    /// Adds the facts of the only group of a folder.
    fn push_facts(&self, fact: &mut impl FnMut(&str, String)) {
        fact("model", self.identity.model().to_owned());
        fact("revision", self.identity.revision().to_owned());
        fact("identity", self.identity_fingerprint.to_string());
        fact("block layout", self.block_layout_fingerprint.to_string());
        fact("blocks", self.fill());
        fact("block", bytes(self.block_bytes));
        fact("tenants", thousands(self.tenants as u64));
        fact("longest chain", thousands(u64::from(self.longest_chain)));
    }
}

/// Whether a cache uses the folder.
#[derive(Serialize)]
pub(super) struct UsageReport {
    /// Null where it is unknown.
    in_use: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    used_by_process: Option<u32>,
    #[serde(skip)]
    text: String,
}

impl UsageReport {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn of(inspection: &Inspection) -> UsageReport {
        let (in_use, used_by_process, text) = match inspection.usage() {
            FolderUsage::Unused => (Some(false), None, "by no process".to_owned()),
            FolderUsage::Used(holder) => {
                let text = match (holder.pid, &holder.program) {
                    (Some(pid), Some(program)) => format!("by process {pid} ({program})"),
                    (Some(pid), None) => format!("by process {pid}"),
                    (None, _) => "by a process that is not visible from here".to_owned(),
                };
                (Some(true), holder.pid, text)
            }
            FolderUsage::Unknown(error) => (None, None, format!("unknown: {error}")),
            _ => (None, None, "unknown".to_owned()),
        };
        UsageReport {
            in_use,
            used_by_process,
            text,
        }
    }
}

impl<'a> StatReport<'a> {
    pub(super) fn of(
        path: &'a Path,
        inspection: &'a Inspection,
        parts: Vec<PartStat>,
    ) -> StatReport<'a> {
        let manifest = inspection.manifest();
        let created = manifest.created();
        let named = |group: &'a InspectedGroup| {
            Some(NamedGroupStat {
                name: group.manifest().name()?,
                stat: GroupStat::of(group),
                files_bytes: group.files_bytes(),
            })
        };
        StatReport {
            path,
            only: inspection.only().ok().map(GroupStat::of),
            groups: inspection.groups().iter().filter_map(named).collect(),
            files_bytes: inspection.files_bytes(),
            capacity_bytes: manifest.capacity_bytes(),
            created_unix_seconds: created.unix_seconds,
            age_seconds: seconds_since(created.unix_seconds),
            created_by: &created.kvtile,
            usage: UsageReport::of(inspection),
            parts,
        }
    }

    /// The report as text.
    pub(super) fn text(&self, screen: Screen) -> String {
        let mut text = path_text(screen, self.path);
        text.push('\n');
        let mut table = TextTable::bare([Align::Left, Align::Left]);
        let mut fact = |name: &str, value: String| table.row([name.to_owned(), value]);
        let named = self.groups.iter().map(|group| &group.stat);
        let stats: Vec<&GroupStat<'_>> = self.only.iter().chain(named).collect();
        if let Some(only) = &self.only {
            only.push_facts(&mut fact);
        }
        fact("files", bytes(self.files_bytes));
        fact("capacity", bytes(self.capacity_bytes));
        fact(
            "made",
            format!(
                "{} ago by kvtile {}",
                age(self.age_seconds),
                self.created_by
            ),
        );
        let torn: usize = stats.iter().map(|stat| stat.torn).sum();
        let unreadable: usize = stats.iter().map(|stat| stat.unreadable).sum();
        if torn + unreadable > 0 {
            fact("records", format!("{torn} torn, {unreadable} unreadable"));
        }
        fact("used", self.usage.text.clone());
        text.push_str(&table.text());
        if !self.groups.is_empty() {
            text.push_str(&self.groups_text());
        }
        if !self.parts.is_empty() {
            text.push_str(&parts_text(&self.parts));
        }
        text
    }

    /// The groups as a table.
    fn groups_text(&self) -> String {
        let mut table = TextTable::new([
            ("group", Align::Left),
            ("blocks", Align::Left),
            ("block", Align::Right),
            ("files", Align::Right),
            ("model", Align::Left),
            ("identity", Align::Left),
        ]);
        for group in &self.groups {
            let stat = &group.stat;
            table.row([
                group.name.to_owned(),
                stat.fill(),
                bytes(stat.block_bytes),
                bytes(group.files_bytes),
                stat.identity.model().to_owned(),
                stat.identity_fingerprint.to_string(),
            ]);
        }
        table.text()
    }
}

/// Seconds from a time since the start of 1970 to now.
pub(super) fn seconds_since(unix_seconds: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
        .saturating_sub(unix_seconds)
}

pub(super) fn path_text(screen: Screen, path: &Path) -> String {
    screen.bold(&ShownText(&path.display().to_string()).to_string())
}

/// `3 days`: a coarse age for people.
pub(super) fn age(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7200 => (seconds / 60, "minute"),
        7200..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

/// An unusable block.
#[derive(Serialize)]
pub(super) struct BadStoredBlock {
    key: String,
    /// Where the folder has several groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    slot: u32,
    problem: String,
}

impl fmt::Display for BadStoredBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let problem = ShownText(&self.problem);
        write!(f, "{} in slot {}", self.key, self.slot)?;
        if let Some(group) = &self.group {
            write!(f, " of group {}", ShownText(group))?;
        }
        write!(f, ": {problem}")
    }
}

impl BadStoredBlock {
    pub(super) fn of(block: &StoredSlot, miss: &SlotMiss) -> BadStoredBlock {
        BadStoredBlock {
            key: block.key.to_string(),
            group: None,
            slot: block.slot,
            problem: miss.to_string(),
        }
    }

    /// The block of a group, which is named if the folder has several.
    pub(super) fn of_group(
        group: &InspectedGroup,
        block: &StoredSlot,
        miss: &SlotMiss,
    ) -> BadStoredBlock {
        BadStoredBlock {
            group: group.manifest().name().map(str::to_owned),
            ..BadStoredBlock::of(block, miss)
        }
    }
}

/// The outcome of reading every block.
#[derive(Default)]
pub(super) struct ReadBlocks {
    pub(super) bad: Vec<BadStoredBlock>,
    /// Blocks that the cache using the folder replaced or erased during the read.
    pub(super) replaced: usize,
}

/// The outcome of reading every block, and where they were exported to.
#[derive(Serialize)]
pub(super) struct CheckReport<'a> {
    path: &'a Path,
    /// `whole` or `damaged`.
    verdict: &'static str,
    checked: usize,
    bad: Vec<BadStoredBlock>,
    /// Blocks that were replaced or erased during the read, which is no damage.
    replaced: usize,
    torn: Vec<RecordPlace>,
    unreadable: Vec<RecordPlace>,
    #[serde(flatten)]
    usage: UsageReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    exported: Option<ExportedTo<'a>>,
}

#[derive(Serialize)]
struct ExportedTo<'a> {
    file: &'a Path,
    blocks: usize,
}

impl<'a> CheckReport<'a> {
    pub(super) fn of(
        path: &'a Path,
        inspection: &'a Inspection,
        read: ReadBlocks,
        exported: Option<(&'a Path, usize)>,
    ) -> CheckReport<'a> {
        let places = |slots: fn(&InspectedGroup) -> &[u32]| -> Vec<RecordPlace> {
            let groups = inspection.groups().iter();
            let of_group = |group| {
                let place = move |slot: &u32| RecordPlace::of(group, *slot);
                slots(group).iter().map(place)
            };
            groups.flat_map(of_group).collect()
        };
        let torn = places(InspectedGroup::torn);
        let unreadable = places(InspectedGroup::unreadable);
        let blocks = inspection.groups().iter().map(|group| group.blocks().len());
        let ReadBlocks { bad, replaced } = read;
        let whole = bad.is_empty() && torn.is_empty() && unreadable.is_empty();
        CheckReport {
            path,
            verdict: if whole { "whole" } else { "damaged" },
            checked: blocks.sum(),
            bad,
            replaced,
            torn,
            unreadable,
            usage: UsageReport::of(inspection),
            exported: exported.map(|(file, blocks)| ExportedTo { file, blocks }),
        }
    }

    /// Why some blocks are unusable, if so.
    pub(super) fn problem(&self) -> Option<String> {
        if self.verdict == "whole" {
            return None;
        }
        Some(format!(
            "{} of {} blocks are bad, {} records torn, {} unreadable; a cache serves the others \
             and counts these as misses",
            self.bad.len(),
            self.checked,
            self.torn.len(),
            self.unreadable.len()
        ))
    }

    /// The report as text.
    pub(super) fn text(&self, screen: Screen) -> String {
        let mut text = path_text(screen, self.path);
        let whole = self.checked - self.bad.len() - self.replaced;
        let _ = writeln!(
            text,
            "\n  {} of {} blocks are whole",
            thousands(whole as u64),
            thousands(self.checked as u64)
        );
        if self.usage.in_use != Some(false) {
            let used = ShownText(&self.usage.text);
            let _ = writeln!(
                text,
                "  used {used}; blocks that it writes now may be missing here"
            );
        }
        if self.replaced > 0 {
            let replaced = thousands(self.replaced as u64);
            let _ = writeln!(text, "  {replaced} were replaced during the read");
        }
        push_bad(&mut text, &self.bad, (&self.torn, &self.unreadable));
        if let Some(ExportedTo { file, blocks }) = &self.exported {
            let _ = writeln!(
                text,
                "  {} blocks are in {}",
                thousands(*blocks as u64),
                ShownText(&file.display().to_string())
            );
        }
        text
    }
}

/// An unusable folder, as JSON.
pub(super) fn failed_json(path: &Path, error: &TierError) -> impl Serialize {
    let verdict = match error {
        TierError::Folder(FolderError::NotAStore { .. }) => "not a disk tier",
        TierError::Folder(FolderError::InUse { .. }) => "in use",
        TierError::Folder(FolderError::NotLocal { .. })
        | TierError::Folder(FolderError::NotAPlainFile { .. }) => "refused",
        TierError::Folder(FolderError::ManifestDamaged { .. }) => "damaged",
        TierError::Mismatch(MismatchError::FolderDiffers { .. })
        | TierError::Folder(FolderError::FolderGroups { .. })
        | TierError::Folder(FolderError::ForeignFolder { .. })
        | TierError::Folder(FolderError::FolderVersion { .. })
        | TierError::Convert(ConvertError::AlreadyAStore { .. })
        | TierError::Convert(ConvertError::TargetInSource { .. })
        | TierError::Convert(ConvertError::StoredOrderUnknown { .. })
        | TierError::Convert(ConvertError::StoredOrderDiffers { .. })
        | TierError::Convert(ConvertError::BlocksDoNotFit { .. }) => "refused",
        _ => "unreadable",
    };
    serde_json::json!({ "path": path, "verdict": verdict, "problem": error.to_string() })
}
