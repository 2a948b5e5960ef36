//! `kvtile cache`: looks into the folder of a disk tier, checks it, exports it and clears it.

mod export;
mod report;

use std::{
    fmt,
    io::IsTerminal,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use kvtile::layout::Shown;
use kvtile::tiers::{
    TierError,
    disk::{self, Inspection, Miss, StoredBlock, medium::FolderMedium},
};

use self::report::{BadBlock, Checked, ReadBlocks, Stat, failed_json};
use crate::{
    error::CliError,
    output::{self, Screen},
};

/// What `--help` says at its end.
pub(crate) const EXAMPLES: &str = "\
A folder keeps the blocks of one model in one layout, each with its key and a checksum. It belongs
to one process at a time. stat, verify and export only read: they work beside it, in folders that may
only be read, and say that it is in use; clear is refused then.

Exit codes: 0 done and whole, 1 damaged, refused or in use, 2 a request that makes no sense.

Examples:
  kvtile cache stat /var/cache/kvtile                    what it holds, and of which model
  kvtile cache verify /var/cache/kvtile                  reads every block
  kvtile cache export /var/cache/kvtile blocks.safetensors
  kvtile cache clear /var/cache/kvtile --yes";

/// Arguments of `kvtile cache`.
#[derive(Args, Debug)]
pub struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Subcommand, Debug)]
enum CacheCommand {
    /// Tell what a folder holds: identity, blocks, bytes, age
    Stat(FolderArgs),
    /// Read every block and compare its checksum
    Verify(FolderArgs),
    /// Write all whole blocks with their keys to one file that any safetensors reader opens
    Export {
        #[command(flatten)]
        folder: FolderArgs,
        /// The new file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Remove all blocks and give their room back
    Clear {
        #[command(flatten)]
        folder: FolderArgs,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Args, Debug)]
struct FolderArgs {
    /// The folder of the disk tier
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Does what was asked of a folder.
pub(crate) fn run(args: &CacheArgs) -> Result<(), CliError> {
    match &args.command {
        CacheCommand::Stat(folder) => told(folder, stat),
        CacheCommand::Verify(folder) => told(folder, verify),
        CacheCommand::Export { folder, file } => told(folder, |folder| export(folder, file)),
        CacheCommand::Clear { folder, yes } => told(folder, |folder| clear(folder, *yes)),
    }
}

/// Says in JSON too why a folder cannot be used.
fn told(
    folder: &FolderArgs,
    run: impl FnOnce(&FolderArgs) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let done = run(folder);
    if let Err(CliError::Tier(error)) = &done
        && folder.json
    {
        output::print_json(&failed_json(&folder.dir, error))?;
    }
    done
}

fn stat(folder: &FolderArgs) -> Result<(), CliError> {
    let inspection = Inspection::open(&folder.dir)?;
    let stat = Stat::of(&folder.dir, &inspection);
    match folder.json {
        true => output::print_json(&stat),
        false => output::print(&stat.text(Screen::of_stdout())),
    }
}

fn verify(folder: &FolderArgs) -> Result<(), CliError> {
    let inspection = Inspection::open(&folder.dir)?;
    let (mut bad, mut replaced) = (Vec::new(), 0);
    read_all(&inspection, "checking blocks", |block, read| {
        if let Err(Miss::Replaced) = read {
            replaced += 1;
        } else if let Err(miss) = read {
            bad.push(BadBlock::of(&block, &miss));
        }
        Ok(())
    })?;
    let read = ReadBlocks { bad, replaced };
    let checked = Checked::of(&folder.dir, &inspection, read, None);
    finish(folder, &checked)
}

fn export(folder: &FolderArgs, file: &Path) -> Result<(), CliError> {
    let inspection = Inspection::open(&folder.dir)?;
    let exported = export::export(&inspection, file)?;
    let checked = Checked::of(
        &folder.dir,
        &inspection,
        exported.read,
        Some((file, exported.blocks)),
    );
    finish(folder, &checked)
}

fn finish(folder: &FolderArgs, checked: &Checked<'_>) -> Result<(), CliError> {
    match folder.json {
        true => output::print_json(checked)?,
        false => output::print(&checked.text(Screen::of_stdout()))?,
    }
    match checked.problem() {
        None => Ok(()),
        Some(problem) => Err(CliError::Refused {
            path: folder.dir.clone(),
            problem,
        }),
    }
}

/// Reads and verifies every block of a folder.
fn read_all(
    inspection: &Inspection,
    what: &'static str,
    mut take: impl FnMut(StoredBlock, Result<&[u8], Miss>) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let bytes = usize::try_from(inspection.manifest().block_bytes()).unwrap_or(usize::MAX);
    let mut buffer = vec![0; bytes];
    let blocks = inspection.blocks();
    let bar = output::progress(blocks.len() as u64, what);
    for (index, block) in blocks.enumerate() {
        let read = inspection.read(index, &mut buffer);
        take(block, read.map(|()| buffer.as_slice()))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

fn clear(folder: &FolderArgs, yes: bool) -> Result<(), CliError> {
    if !yes {
        confirm(&folder.dir)?;
    }
    let before = FolderMedium::new(&folder.dir);
    disk::clear(&before)?;
    match folder.json {
        true => output::print_json(&serde_json::json!({ "path": folder.dir, "cleared": true })),
        false => output::print(&format!("{} is empty\n", folder.dir.display())),
    }
}

/// Asks, where somebody is there to answer.
fn confirm(dir: &Path) -> Result<(), CliError> {
    let refused = || CliError::NotConfirmed {
        path: dir.to_owned(),
    };
    if !std::io::stdin().is_terminal() {
        return Err(refused());
    }
    let held = match Inspection::open(dir) {
        Ok(inspection) => Held(Some(inspection.blocks().len())),
        // A damaged folder is what people clear.
        Err(TierError::ManifestDamaged { .. } | TierError::NotAStore { .. }) => Held(None),
        Err(error) => return Err(error.into()),
    };
    let dir_name = dir.display().to_string();
    output::print_error(&format!("Remove {held} in {}? [y/N] ", Shown(&dir_name)));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(refused()),
    }
}

struct Held(Option<usize>);

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(blocks) => write!(f, "{blocks} blocks"),
            None => f.write_str("whatever a damaged folder holds"),
        }
    }
}
