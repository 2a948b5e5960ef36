//! `kvtile cache convert`: copies a folder to a new one.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use clap::Args;
use kvtile::{
    layout::{LayoutError, ShownText, Word},
    tiers::{
        cache::STORAGE_WORD,
        disk::{self, ConversionReport, ConvertProgress, ConvertSettings},
    },
};
use serde::Serialize;

use super::report::{BadStoredBlock, RecordPlace, failed_json, push_bad};
use crate::{
    error::CliError,
    numbers,
    output::{self, Screen, bytes, thousands},
};

/// The end of `--help`.
pub(super) const EXAMPLES: &str = "\
The command reads FROM and holds its lock, so no cache can open it during the conversion.
Blocks keep their keys, parents, positions and tenants. Blocks that fail their checksum are
left out and named; those after them in their chain stay. A folder of several groups is refused.

The command writes the manifest of TO last, and on an error removes what it made. An
interrupted conversion leaves a folder that is no disk tier: run the command again, or remove
the folder.

Exit codes: 0 every block is copied, 1 damaged blocks are left out, or nothing is made, 2 a
request that makes no sense.

Examples:
  kvtile cache convert /var/cache/kvtile /var/cache/kvtile-new            from an older kvtile
  kvtile cache convert old new --layout BLKNHC                            in another order";

#[derive(Args, Debug)]
pub(super) struct ConvertArgs {
    /// The folder of a disk tier, of this version of the format or an older one
    #[arg(value_name = "FROM")]
    from: PathBuf,
    /// The new folder; it is made, or is empty
    #[arg(value_name = "TO")]
    to: PathBuf,
    /// The order of the blocks in the new folder
    #[arg(long, value_name = "WORD", default_value = STORAGE_WORD)]
    layout: String,
    /// The order in which the cache stored the blocks [default: the usual one that fits]
    #[arg(long, value_name = "WORD")]
    stored_layout: Option<String>,
    /// Bytes that the files of the new folder may take, for instance 20GiB [default: as before,
    /// plus the overhead of the new format]
    #[arg(long, value_name = "BYTES", value_parser = numbers::parse_bytes)]
    capacity: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The result of the conversion, as JSON.
#[derive(Serialize)]
struct ConvertReport<'a> {
    from: &'a Path,
    to: &'a Path,
    /// `whole` or `damaged`.
    verdict: &'static str,
    from_version: u32,
    stored_layout: String,
    layout: String,
    blocks: usize,
    bytes: u64,
    bad: Vec<BadStoredBlock>,
    duplicates: usize,
    torn: &'a [u32],
    unreadable: &'a [u32],
    /// Why the lock of the first folder was not taken, if so.
    not_locked: Option<String>,
    capacity_bytes: u64,
    blocks_max: u32,
}

pub(super) fn run(args: &ConvertArgs) -> Result<(), CliError> {
    let settings = ConvertSettings::new()
        .layout(parse(&args.layout)?)
        .stored_layout(args.stored_layout.as_deref().map(parse).transpose()?)
        .capacity_bytes(args.capacity);
    let bar = output::progress(0, "copying blocks");
    let mut progress = |ConvertProgress { blocks, of, .. }| {
        bar.set_length(of as u64);
        bar.set_position(blocks as u64);
    };
    let converted = disk::convert(&args.from, &args.to, &settings, &mut progress);
    bar.finish_and_clear();
    if let Err(error) = &converted
        && args.json
    {
        output::print_json(&failed_json(&args.from, error))?;
    }
    let converted = converted?;
    let report = ConvertReport::of(args, &converted);
    match args.json {
        true => output::print_json(&report)?,
        false => output::print(&report.text(Screen::of_stdout()))?,
    }
    match converted.is_whole() {
        true => Ok(()),
        false => Err(CliError::Refused {
            path: args.from.clone(),
            problem: format!(
                "{} blocks are bad, {} records torn, {} unreadable; the others are copied",
                converted.left_out.len(),
                converted.torn.len(),
                converted.unreadable.len()
            ),
        }),
    }
}

fn parse(word: &str) -> Result<Word, CliError> {
    Ok(Word::parse(word).map_err(LayoutError::from)?)
}

impl<'a> ConvertReport<'a> {
    fn of(args: &'a ConvertArgs, converted: &'a ConversionReport) -> ConvertReport<'a> {
        let bad = converted.left_out.iter();
        ConvertReport {
            from: &args.from,
            to: &args.to,
            verdict: if converted.is_whole() {
                "whole"
            } else {
                "damaged"
            },
            from_version: converted.from_version,
            stored_layout: converted.stored_layout.to_string(),
            layout: converted.layout.to_string(),
            blocks: converted.blocks,
            bytes: converted.bytes,
            bad: bad
                .map(|bad| BadStoredBlock::of(&bad.block, &bad.reason))
                .collect(),
            duplicates: converted.duplicates,
            torn: &converted.torn,
            unreadable: &converted.unreadable,
            not_locked: converted.not_locked.as_ref().map(ToString::to_string),
            capacity_bytes: converted.capacity_bytes,
            blocks_max: converted.blocks_max,
        }
    }

    /// The report as text.
    fn text(&self, screen: Screen) -> String {
        let mut text = screen.bold(&ShownText(&self.to.display().to_string()).to_string());
        let _ = writeln!(
            text,
            "\n  {} blocks, {}, from version {}, {} to {}",
            thousands(self.blocks as u64),
            bytes(self.bytes),
            self.from_version,
            self.stored_layout,
            self.layout
        );
        let _ = writeln!(
            text,
            "  room for {} blocks in {}; a cache opened with less room drops blocks",
            thousands(u64::from(self.blocks_max)),
            bytes(self.capacity_bytes)
        );
        if self.duplicates > 0 {
            let duplicates = thousands(self.duplicates as u64);
            let _ = writeln!(text, "  {duplicates} older copies of blocks are left out");
        }
        if let Some(reason) = &self.not_locked {
            let reason = ShownText(reason);
            let _ = writeln!(
                text,
                "  the folder could not be locked ({reason}); a cache may have written there"
            );
        }
        let places = |slots: &[u32]| -> Vec<RecordPlace> {
            slots.iter().copied().map(RecordPlace::Slot).collect()
        };
        let (torn, unreadable) = (places(self.torn), places(self.unreadable));
        push_bad(&mut text, &self.bad, (&torn, &unreadable));
        text
    }
}
