//! `kvtile bench disk`: the slot store of the disk tier against `fio`. The measuring itself is
//! `kvtile-bench`'s.

use std::path::PathBuf;

use clap::Args;
use kvtile_bench::disk::{self, DiskBenchSettings};
use kvtile_cli::{numbers, output};

use crate::error::ProgramError;

/// What slots are aligned to.
const PAGE_BYTES: u64 = 4096;

/// Arguments of `kvtile bench disk`.
#[derive(Args, Debug)]
pub(super) struct DiskArgs {
    /// Folder on the disk to measure; files are made in a folder of their own there, and removed
    #[arg(long, value_name = "FOLDER", default_value = "/var/tmp")]
    folder: PathBuf,
    /// Bytes of a block, with commas between them or the option several times; multiples of 4096 [default:
    /// 8KiB,64KiB,512KiB,4MiB]
    #[arg(long, value_name = "BYTES", value_delimiter = ',', value_parser = parse_block)]
    block: Vec<u64>,
    /// Bytes that are written and read in each round, at least one block; as much memory is used twice
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = numbers::parse_bytes)]
    bytes: u64,
    /// Rounds of which the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = numbers::within(1_u32, 1000))]
    rounds: u32,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Measures and shows it.
pub(super) fn run(args: &DiskArgs) -> Result<(), ProgramError> {
    let defaults = DiskBenchSettings::default();
    let settings = DiskBenchSettings {
        folder: args.folder.clone(),
        block_bytes: match args.block.as_slice() {
            [] => defaults.block_bytes,
            given => given.to_vec(),
        },
        bytes: args.bytes,
        rounds: args.rounds,
    };
    let report = disk::run(&settings)?;
    if args.json {
        return Ok(output::print_json(&report)?);
    }
    Ok(output::print(&report.to_string())?)
}

fn parse_block(text: &str) -> Result<u64, String> {
    match numbers::parse_bytes(text)? {
        bytes if bytes.is_multiple_of(PAGE_BYTES) => Ok(bytes),
        bytes => Err(format!("{bytes} is no multiple of {PAGE_BYTES}")),
    }
}
