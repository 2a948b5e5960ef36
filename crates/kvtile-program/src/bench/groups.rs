//! `kvtile bench groups`: lookups, stores and loads over groups. `kvtile-bench` measures them.

use clap::Args;
use kvtile_bench::groups::{self, GroupBenchSettings, PAGE_TOKENS};
use kvtile_cli::{numbers, output};

use crate::error::ProgramError;

/// Arguments of `kvtile bench groups`.
#[derive(Args, Debug)]
pub(super) struct GroupBenchArgs {
    /// Tokens of a prompt, a multiple of 16
    #[arg(long, value_name = "N", default_value = "8192", value_parser = parse_tokens)]
    tokens: u64,
    /// Bytes of the state at a stop
    #[arg(long, value_name = "BYTES", default_value = "32MiB", value_parser = parse_state)]
    state: u64,
    /// Number of rounds; results are their median
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = numbers::within(1_u32, 1000))]
    rounds: u32,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Measures, and prints the report.
pub(super) fn run(args: &GroupBenchArgs) -> Result<(), ProgramError> {
    let settings = GroupBenchSettings {
        tokens: args.tokens,
        state_bytes: args.state,
        rounds: args.rounds,
    };
    let report = groups::run(&settings)?;
    if args.json {
        return Ok(output::print_json(&report)?);
    }
    Ok(output::print(&report.to_string())?)
}

fn parse_tokens(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(tokens) if tokens > 0 && tokens <= 1 << 20 && tokens.is_multiple_of(PAGE_TOKENS) => {
            Ok(tokens)
        }
        _ => Err(format!("not a multiple of {PAGE_TOKENS} up to {}", 1 << 20)),
    }
}

fn parse_state(text: &str) -> Result<u64, String> {
    match numbers::parse_bytes(text)? {
        bytes if (2..=4 << 30).contains(&bytes) && bytes.is_multiple_of(2) => Ok(bytes),
        bytes => Err(format!(
            "{bytes} is not an even number from 2 bytes to 4 GiB"
        )),
    }
}
