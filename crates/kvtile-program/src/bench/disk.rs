//! `kvtile bench disk`: the slot store of the disk tier against `fio`. `kvtile-bench` measures it.

use std::path::PathBuf;

use clap::Args;
use kvtile_bench::disk::{self, DiskBenchSettings};
use kvtile_cli::{numbers, output};

use crate::error::ProgramError;

/// Alignment of slots.
const PAGE_BYTES: u64 = 4096;

/// Arguments of `kvtile bench disk`.
#[derive(Args, Debug)]
pub(super) struct DiskArgs {
    /// Folder on the disk to measure; temporary files go into a subfolder
    #[arg(long, value_name = "FOLDER", default_value = "/var/tmp")]
    folder: PathBuf,
    /// Bytes per block; comma-separated, or repeat the option; multiples of 4096 [default:
    /// 8KiB,64KiB,512KiB,4MiB]
    #[arg(long, value_name = "BYTES", value_delimiter = ',', value_parser = parse_block)]
    block: Vec<u64>,
    /// Bytes to write and read in each round, at least one block; the benchmark uses twice as much
    /// memory
    #[arg(long, value_name = "BYTES", default_value = "256MiB", value_parser = numbers::parse_bytes)]
    bytes: u64,
    /// Number of rounds; results are their median
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = numbers::within(1_u32, 1000))]
    rounds: u32,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Measures, and prints the report.
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
        bytes => Err(format!("{bytes} is not a multiple of {PAGE_BYTES}")),
    }
}
