//! `kvtile bench blocks`: the cost of bookkeeping. `kvtile-bench` measures it.

use clap::Args;
use kvtile_bench::blocks::{self, BlocksSettings, MakeContender};
use kvtile_cli::{numbers, output};

use crate::error::ProgramError;

/// The block managers of other projects, measured in turns with kvtile's.
#[cfg(feature = "rivals")]
const RIVALS: &[MakeContender] = &kvtile_rivals::RIVALS;
#[cfg(not(feature = "rivals"))]
const RIVALS: &[MakeContender] = &[];

/// Arguments of `kvtile bench blocks`.
#[derive(Args, Debug)]
pub(super) struct BlocksArgs {
    /// Number of rounds; results are their median
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = numbers::within(1_u32, 1000))]
    rounds: u32,
    /// Blocks of each pool, rounded down to chains of 128
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = numbers::within(256_u32, 16_777_216))]
    pool: u32,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Measures, and prints the report.
pub(super) fn run(args: &BlocksArgs) -> Result<(), ProgramError> {
    let settings = BlocksSettings {
        rounds: args.rounds,
        blocks: args.pool as usize / 128 * 128,
        ..BlocksSettings::default()
    };
    let report = blocks::run(&settings, RIVALS)?;
    if args.json {
        return Ok(output::print_json(&report)?);
    }
    Ok(output::print(&report.to_string())?)
}
