//! `kvtile cache`: reports on the folder of a disk tier or on the store of a shared tier, verifies and
//! clears it; exports and converts folders, and sweeps stores.

mod convert;
mod export;
mod parts;
mod report;
mod save;
mod shared;
mod sweep;

use std::{
    fmt,
    io::IsTerminal,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, Subcommand, ValueEnum};
use kvtile::layout::{LayoutError, ShownText, Word};
use kvtile::shared::folder::FolderStore;
use kvtile::tiers::{
    FolderError, TierError,
    cache::STORAGE_WORD,
    disk::{self, InspectedGroup, Inspection, SlotMiss, StoredSlot, medium::FolderMedium},
};

use self::{
    parts::PartsReport,
    report::{BadStoredBlock, CheckReport, ReadBlocks, StatReport, failed_json},
};
use crate::{
    error::CliError,
    files,
    output::{self, Screen},
};

/// The end of `--help`.
pub(crate) const EXAMPLES: &str = "\
A folder keeps the blocks of one model in one layout, each with its key and a checksum; or several
groups of blocks, each in a layout of its own. It belongs to one process at a time. stat, verify and
export only read: they work while a cache uses the folder, and in read-only folders, and report the
use. clear and convert are refused during use. export and convert are for folders of one group.

A store of shared tiers is the path of a folder, s3://BUCKET/PREFIX, gs://…, az://…,
redis://HOST:PORT/DB or unix:///SOCKET. Caches may use it during all commands. Values that are not
kvtile's are never touched.

Exit codes: 0 done and whole, 1 damaged, refused or in use, 2 a request that makes no sense.

Examples:
  kvtile cache stat /var/cache/kvtile                    its contents and its model
  kvtile cache verify /var/cache/kvtile                  reads every block
  kvtile cache export /var/cache/kvtile blocks.safetensors
  kvtile cache export /var/cache/kvtile cache.kvtile --format saved     then: kvtile inspect cache.kvtile
  kvtile cache convert /var/cache/kvtile /var/cache/kvtile-new        from an older version of kvtile
  kvtile cache clear /var/cache/kvtile --yes
  kvtile cache sweep s3://models/kv --capacity 2TB           bounds the store of a shared tier
  kvtile cache stat s3://models/kv                           its bundles, by model
  kvtile cache verify redis://127.0.0.1:6379/0 --remove      reads all, removes damaged ones";

/// Arguments of `kvtile cache`.
#[derive(Args, Debug)]
pub struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,
}

#[derive(Subcommand, Debug)]
enum CacheCommand {
    /// Show the contents of a folder or a store: identity, blocks, bytes, age
    Stat(PlaceArgs),
    /// Read every block and compare its checksum
    Verify {
        #[command(flatten)]
        place: PlaceArgs,
        /// Remove damaged values from the store of a shared tier, as a cache does that reads one
        #[arg(long)]
        remove: bool,
    },
    /// Write all whole blocks with their keys to one new file
    Export(ExportArgs),
    /// Copy all whole blocks to a new folder, from an older version or into another order
    #[command(after_help = convert::EXAMPLES)]
    Convert(convert::ConvertArgs),
    /// Show what the store of a shared tier has, and remove its oldest values
    #[command(after_help = sweep::EXAMPLES)]
    Sweep(sweep::SweepArgs),
    /// Remove all blocks and free their space
    Clear {
        #[command(flatten)]
        place: PlaceArgs,
        /// Skip the confirmation
        #[arg(long)]
        yes: bool,
    },
}

/// The form of an exported file.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ExportFormat {
    /// One byte tensor per block, named by its key, for any safetensors reader
    Safetensors,
    /// A saved cache, with the blocks' keys in the note `blocks`, for `kvtile inspect` and `kvtile::saved`
    Saved,
}

#[derive(Args, Debug)]
struct ExportArgs {
    #[command(flatten)]
    folder: FolderArgs,
    /// The new file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The form of the file
    #[arg(long, value_enum, default_value = "safetensors")]
    format: ExportFormat,
    /// The order of the blocks in the cache, for a saved cache [default: the cache's default order]
    #[arg(long, value_name = "WORD")]
    store_layout: Option<String>,
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

/// A folder of a disk tier, or a store of shared tiers.
#[derive(Args, Debug)]
struct PlaceArgs {
    /// The folder of the disk tier, or the store of a shared tier: a folder or a URL
    #[arg(value_name = "DIR|URL")]
    place: PathBuf,
    /// The time limit of opening a store and of each of its calls
    #[arg(long, value_name = "SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u64).range(1..=3_600))]
    within: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl PlaceArgs {
    /// The store of shared tiers, unless the place is the folder of a disk tier.
    fn store(&self) -> Option<shared::StoreArgs<'_>> {
        let text = self.place.to_str()?;
        let is_folder = || !disk_manifest(&self.place) && FolderStore::is_at(&self.place);
        let is_store = text.contains("://") || is_folder();
        is_store.then_some(shared::StoreArgs {
            store: text,
            within: Duration::from_secs(self.within),
            json: self.json,
        })
    }

    fn folder(&self) -> FolderArgs {
        FolderArgs {
            dir: self.place.clone(),
            json: self.json,
        }
    }
}

/// Whether a folder has the manifest of a disk tier.
fn disk_manifest(dir: &Path) -> bool {
    dir.join("manifest.json").exists()
}

/// Runs the command on its folder or its store.
pub(crate) fn run(args: &CacheArgs) -> Result<(), CliError> {
    match &args.command {
        CacheCommand::Stat(place) => match place.store() {
            Some(store) => shared::stat(&store),
            None => with_json_errors(&place.folder(), stat),
        },
        CacheCommand::Verify { place, remove } => match place.store() {
            Some(store) => shared::verify(&store, *remove),
            None if *remove => Err(CliError::Option {
                option: "--remove",
                value: place.place.display().to_string(),
                problem:
                    "it is for the store of a shared tier; a cache that opens the folder of a disk \
                          tier leaves out its damaged blocks"
                        .to_owned(),
            }),
            None => with_json_errors(&place.folder(), verify),
        },
        CacheCommand::Export(args) => with_json_errors(&args.folder, |folder| export(folder, args)),
        CacheCommand::Convert(args) => convert::run(args),
        CacheCommand::Sweep(args) => sweep::run(args),
        CacheCommand::Clear { place, yes } => match place.store() {
            Some(store) => shared::clear(&store, *yes),
            None => with_json_errors(&place.folder(), |folder| clear(folder, *yes)),
        },
    }
}

/// Runs a command; with `--json`, prints the error of an unusable folder as JSON too.
fn with_json_errors(
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
    let parts = parts::parts_of(&folder.dir);
    let inspection = match open(&folder.dir) {
        // The folder of a model whose ranks have a part each has no blocks of its own.
        Err(CliError::Tier(error)) if !parts.is_empty() && parts::is_no_store(&error) => {
            let stat = PartsReport::of(&folder.dir, parts);
            return match folder.json {
                true => output::print_json(&stat),
                false => output::print(&stat.text(Screen::of_stdout())),
            };
        }
        opened => opened?,
    };
    let stat = StatReport::of(&folder.dir, &inspection, parts);
    match folder.json {
        true => output::print_json(&stat),
        false => output::print(&stat.text(Screen::of_stdout())),
    }
}

fn verify(folder: &FolderArgs) -> Result<(), CliError> {
    let inspection = open(&folder.dir)?;
    let (mut bad, mut replaced) = (Vec::new(), 0);
    for group in inspection.groups() {
        read_all(group, "checking blocks", |block, read| {
            if let Err(SlotMiss::Replaced) = read {
                replaced += 1;
            } else if let Err(miss) = read {
                bad.push(BadStoredBlock::of_group(group, &block, &miss));
            }
            Ok(())
        })?;
    }
    let read = ReadBlocks { bad, replaced };
    let checked = CheckReport::of(&folder.dir, &inspection, read, None);
    finish(folder, &checked)
}

fn export(folder: &FolderArgs, args: &ExportArgs) -> Result<(), CliError> {
    let file = &args.file;
    let word = args.saved_word()?;
    let standard = files::is_standard(file);
    if standard && word.is_some() {
        return export_saved_to_standard(folder, args);
    }
    // Created before the folder is read, so that an unwritable file fails at once.
    let new = files::NewFile::create(file)?;
    let inspection = open(&folder.dir)?;
    let group = inspection.only()?;
    let exported = match &word {
        None => export::export(group, new)?,
        Some(word) => {
            drop(new);
            save::export(group, file, word)?
        }
    };
    let blocks = exported.whole.len();
    // A saved cache has at least one block.
    let written = word.is_none() || blocks > 0;
    let to = written.then_some((file.as_path(), blocks));
    let checked = CheckReport::of(&folder.dir, &inspection, exported.read, to);
    match standard {
        // The file is standard output, so only the exit code reports.
        true => checked_exit(folder, &checked)?,
        false => finish(folder, &checked)?,
    }
    match written {
        true => Ok(()),
        false => Err(CliError::Refused {
            path: folder.dir.clone(),
            problem: "there is no block to save, and a saved cache has at least one".to_owned(),
        }),
    }
}

/// Exports a saved cache to standard output, through a temporary file: its writer needs a path.
fn export_saved_to_standard(folder: &FolderArgs, args: &ExportArgs) -> Result<(), CliError> {
    let failed = |source| files::failed("write", &args.file, source);
    let place = tempfile::tempdir().map_err(failed)?;
    let file = place.path().join("export.kvtile");
    let word = args
        .saved_word()?
        .ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
    let inspection = open(&folder.dir)?;
    let exported = save::export(inspection.only()?, &file, &word)?;
    let checked = CheckReport::of(&folder.dir, &inspection, exported.read, None);
    if !exported.whole.is_empty() {
        let mut whole = std::fs::File::open(&file).map_err(failed)?;
        std::io::copy(&mut whole, &mut std::io::stdout()).map_err(failed)?;
    }
    checked_exit(folder, &checked)
}

/// Opens the folder of a disk tier; the error names what the path is instead.
fn open(dir: &Path) -> Result<Inspection, CliError> {
    output::note(|| format!("reading {}", dir.display()));
    match Inspection::open(dir) {
        Err(TierError::Folder(FolderError::NotAStore { .. })) if !is_other(dir) => {
            Err(no_tier(dir))
        }
        Err(_) if !dir.is_dir() && !dir.is_symlink() => Err(no_tier(dir)),
        other => Ok(other?),
    }
}

/// Whether a folder without a manifest contains other files.
fn is_other(dir: &Path) -> bool {
    dir.read_dir()
        .is_ok_and(|mut names| names.any(|name| name.is_ok_and(|name| name.file_name() != LOCK)))
}

/// The file that remains in a cleared folder.
const LOCK: &str = "lock";

fn no_tier(dir: &Path) -> CliError {
    let problem = match dir.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => "does not exist",
        Err(_) => "cannot be read",
        Ok(facts) if facts.is_file() => {
            "is a file, and a disk tier is a folder; for a saved cache there is `kvtile inspect FILE`"
        }
        Ok(_) => {
            "is empty: it was cleared, or no cache has been opened in it yet; the next cache that is \
             opened there makes it a disk tier"
        }
    };
    CliError::NoTier {
        path: dir.to_owned(),
        problem: problem.to_owned(),
    }
}

impl ExportArgs {
    /// The order of the stored blocks, for the saved form.
    fn saved_word(&self) -> Result<Option<Word>, CliError> {
        match (self.format, &self.store_layout) {
            (ExportFormat::Safetensors, None) => Ok(None),
            (ExportFormat::Safetensors, Some(word)) => Err(CliError::Option {
                option: save::STORE_LAYOUT,
                value: word.clone(),
                problem: "it needs --format saved; safetensors keeps the stored order".to_owned(),
            }),
            (ExportFormat::Saved, word) => {
                let word = word.as_deref().unwrap_or(STORAGE_WORD);
                Ok(Some(Word::parse(word).map_err(LayoutError::from)?))
            }
        }
    }
}

fn finish(folder: &FolderArgs, checked: &CheckReport<'_>) -> Result<(), CliError> {
    match folder.json {
        true => output::print_json(checked)?,
        false => output::print_check(&checked.text(Screen::of_stdout()))?,
    }
    checked_exit(folder, checked)
}

fn checked_exit(folder: &FolderArgs, checked: &CheckReport<'_>) -> Result<(), CliError> {
    match checked.problem() {
        None => Ok(()),
        Some(problem) => Err(CliError::Refused {
            path: folder.dir.clone(),
            problem,
        }),
    }
}

/// Reads and verifies every block of a group.
fn read_all(
    group: &InspectedGroup,
    what: &'static str,
    mut take: impl FnMut(StoredSlot, Result<&[u8], SlotMiss>) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let bytes = usize::try_from(group.manifest().block_bytes()).unwrap_or(usize::MAX);
    let mut buffer = vec![0; bytes];
    let blocks = group.blocks();
    let bar = output::progress(blocks.len() as u64, what);
    for (index, block) in blocks.enumerate() {
        let read = group.read(index, &mut buffer);
        take(block, read.map(|()| buffer.as_slice()))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

fn clear(folder: &FolderArgs, yes: bool) -> Result<(), CliError> {
    if !yes && !dir_is_empty(&folder.dir)? {
        confirm(&folder.dir)?;
    }
    if !dir_is_empty(&folder.dir)? {
        let before = FolderMedium::new(&folder.dir);
        disk::clear(&before)?;
    }
    match folder.json {
        true => output::print_json(&serde_json::json!({ "path": folder.dir, "cleared": true })),
        false => output::print_check(&format!("{} is empty\n", folder.dir.display())),
    }
}

/// Whether there is nothing to clear; an error where the folder does not exist.
fn dir_is_empty(dir: &Path) -> Result<bool, CliError> {
    match dir.is_dir() {
        true => Ok(dir.read_dir().is_ok() && !is_other(dir)),
        false => Err(no_tier(dir)),
    }
}

/// Prompts for confirmation; without a terminal, it refuses.
fn confirm(dir: &Path) -> Result<(), CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(not_confirmed(dir));
    }
    let held = match Inspection::open(dir) {
        Ok(inspection) => {
            let groups = inspection.groups().iter();
            HeldBlocks(Some(groups.map(|group| group.blocks().len()).sum()))
        }
        // Clearing a damaged folder is a common case.
        Err(TierError::Folder(
            FolderError::ManifestDamaged { .. } | FolderError::NotAStore { .. },
        )) => HeldBlocks(None),
        Err(error) => return Err(error.into()),
    };
    prompt(dir, &held.to_string())
}

fn not_confirmed(place: &Path) -> CliError {
    CliError::NotConfirmed {
        path: place.to_owned(),
    }
}

/// Prompts for the removal of `held` from a place.
fn prompt(place: &Path, held: &str) -> Result<(), CliError> {
    let name = place.display().to_string();
    output::print_error(&format!("Remove {held} in {}? [y/N] ", ShownText(&name)));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(not_confirmed(place)),
    }
}

struct HeldBlocks(Option<usize>);

impl fmt::Display for HeldBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(blocks) => write!(f, "{blocks} blocks"),
            None => f.write_str("the contents of a damaged folder"),
        }
    }
}
