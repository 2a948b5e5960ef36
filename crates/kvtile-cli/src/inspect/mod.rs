//! `kvtile inspect`: the contents of a saved cache, its checksums, and whether it may be used.

mod report;

use std::path::{Path, PathBuf};

use clap::Args;
use kvtile::{
    identity::{BlockIdentity, Identity},
    saved::SavedCache,
    transfer::{SavedError, TransferError},
};

use self::report::{ChecksumReport, FailedReport, IdentityComparison, InspectReport};
use crate::{
    error::CliError,
    files::{self, WholeFile},
    output::{self, Screen},
};

/// Longest identity file, in bytes.
const IDENTITY_BYTES_MAX: u64 = 16 << 20;

/// The end of `--help`.
pub(crate) const EXAMPLES: &str = "\
A saved cache carries the identity of its bytes: model, revision, planes, page size, layers and
heads, rotary embedding. A load requires all of them to be equal, and serves only blocks whose
checksums match.

Exit codes: 0 whole (and equal, with --against), 1 damaged, refused or no saved cache.

Examples:
  kvtile inspect cache.kvtile
  kvtile inspect cache.kvtile --no-blocks                header and tables only, at once
  kvtile inspect cache.kvtile --against other.kvtile     may one replace the other?
  kvtile inspect cache.kvtile --json | jq .identity > identity.json
  kvtile inspect cache.kvtile --against identity.json";

/// Arguments of `kvtile inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The saved cache
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Compare identities with another saved cache, or with an identity as JSON, and name the
    /// differences
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Skip the blocks: check only the header and the tables
    #[arg(long)]
    no_blocks: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Inspects a saved cache.
pub(crate) fn run(args: &InspectArgs) -> Result<(), CliError> {
    if args.file.is_dir() {
        return Err(CliError::NoTier {
            path: args.file.clone(),
            problem:
                "is a folder, and a saved cache is a file; for the folder of a disk tier there is \
                      `kvtile cache stat DIR`"
                    .to_owned(),
        });
    }
    let file = WholeFile::of(&args.file)?;
    let cache = match SavedCache::inspect(file.path()) {
        Ok(cache) => cache,
        Err(error) => {
            if args.json {
                output::print_json(&FailedReport::of(&args.file, &error))?;
            }
            return Err(error.into());
        }
    };
    let against = args.against.as_deref().map(|path| compare(&cache, path));
    let against = against.transpose()?;
    let blocks = match args.no_blocks {
        true => None,
        false => Some(check(&cache)?),
    };
    let report = InspectReport::of(&args.file, &cache, blocks, against);
    if args.json {
        output::print_json(&report)?;
    } else {
        output::print_check(&report.text(Screen::of_stdout()))?;
    }
    match report.problem() {
        None => Ok(()),
        Some(problem) => Err(CliError::Refused {
            path: args.file.clone(),
            problem,
        }),
    }
}

fn check(cache: &SavedCache) -> Result<ChecksumReport, CliError> {
    let bar = output::progress(cache.num_blocks() as u64, "checking blocks");
    let checks = cache.check_blocks(|done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    Ok(ChecksumReport::of(&checks))
}

fn compare(cache: &SavedCache, path: &Path) -> Result<IdentityComparison, CliError> {
    let theirs = identity_of(path)?;
    let differences = cache.header().identity.differences(&theirs);
    Ok(IdentityComparison::new(path, &theirs, differences))
}

/// The identity of a saved cache, or one from a JSON file.
fn identity_of(path: &Path) -> Result<Identity, CliError> {
    let file = WholeFile::of(path)?;
    match SavedCache::inspect(file.path()) {
        Ok(cache) => return Ok(cache.header().identity.clone()),
        Err(TransferError::Saved(SavedError::NotASavedCache { .. })) => {}
        Err(error) => return Err(error.into()),
    }
    let text = files::read(file.path(), IDENTITY_BYTES_MAX)?;
    let whole: Result<BlockIdentity, _> = serde_json::from_str(&text);
    if let Ok(identity) = whole {
        return Ok(identity.logical);
    }
    serde_json::from_str(&text).map_err(|source| CliError::NotAnIdentity {
        path: path.to_owned(),
        source,
    })
}
