//! `kvtile replay --nodes`: replays a trace on nodes with private caches and a tier that they share.

mod report;

use std::{path::PathBuf, time::Instant};

use clap::{Args, ValueEnum};
use kvtile::{
    blocks::{
        policy::{PolicyKind, PolicySettings},
        pool::POOL_BLOCKS_MAX,
    },
    presets,
    tiers::replay::{
        CLUSTER_NODES_MAX, ClusterError, ClusterEvicts, ClusterRoute, ClusterSettings,
        ClusterShared, ClusterWrites, Trace, replay_cluster,
    },
};

use self::report::{ClusterReport, ClusterRun};
use crate::{error::CliError, numbers, output};

/// The options of a replay on several nodes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Nodes")]
pub(super) struct ClusterArgs {
    /// Replay on so many nodes, 1 to 1,000, without bytes; --capacity blocks are the host memory of each
    #[arg(long, value_name = "NODES", value_delimiter = ',', requires = "capacity",
          conflicts_with_all = ["disk", "html", "prometheus"],
          value_parser = numbers::within(1_u32, CLUSTER_NODES_MAX))]
    pub(super) nodes: Vec<u32>,
    /// Blocks of the disk of each node, 0 for none
    #[arg(long, value_name = "BLOCKS", requires = "nodes", default_value_t = 0,
          value_parser = numbers::within(0_u32, pool_max()))]
    disk_blocks: u32,
    /// How requests are routed to the nodes [default: round-robin]
    #[arg(
        long,
        value_name = "ROUTE",
        value_enum,
        value_delimiter = ',',
        requires = "nodes"
    )]
    route: Vec<RouteName>,
    /// Leading blocks that a node must hold to attract a request
    #[arg(long, value_name = "BLOCKS", requires = "route", default_value_t = 1,
          value_parser = numbers::within(1_u32, u32::MAX))]
    route_min: u32,
    /// Blocks of the tier that all nodes share, `unbounded`, or 0 for none [default: 0]
    #[arg(long, value_name = "BLOCKS", value_delimiter = ',', requires = "nodes", value_parser = shared)]
    shared: Vec<SharedSize>,
    /// Consecutive blocks of a chain that the shared tier keeps as one value [default: 1]
    #[arg(long, value_name = "BLOCKS", value_delimiter = ',', requires = "shared",
          value_parser = numbers::within(1_u32, 1 << 20))]
    bundle: Vec<u32>,
    /// When a node writes to the shared tier: `first`, `uses:N` or `cached-uses:N` [default: first]
    #[arg(long, value_name = "WHEN", value_delimiter = ',', requires = "shared", value_parser = writes)]
    shared_writes: Vec<ClusterWrites>,
    /// What a full shared tier evicts: the oldest value, or the one that was not used for longest
    #[arg(
        long,
        value_name = "ORDER",
        value_enum,
        default_value = "use",
        requires = "shared"
    )]
    shared_evicts: EvictsName,
    /// Take the bytes of a block from a well-known model (see `kvtile layout models`)
    #[arg(
        long,
        value_name = "NAME",
        requires = "nodes",
        conflicts_with = "block_bytes"
    )]
    model: Option<String>,
}

/// A route, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RouteName {
    /// To one node after the other
    RoundRobin,
    /// To the node that holds the longest prefix
    Prefix,
    /// To the node with the longest prefix whose queue is not too long
    PrefixLoad,
}

impl RouteName {
    fn route(self) -> ClusterRoute {
        match self {
            RouteName::RoundRobin => ClusterRoute::RoundRobin,
            RouteName::Prefix => ClusterRoute::Prefix,
            RouteName::PrefixLoad => ClusterRoute::PrefixLoad,
        }
    }

    fn name(self) -> &'static str {
        match self {
            RouteName::RoundRobin => "round-robin",
            RouteName::Prefix => "prefix",
            RouteName::PrefixLoad => "prefix-load",
        }
    }
}

/// An order of eviction, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum EvictsName {
    /// The value that was written longest ago
    Age,
    /// The value whose last read or write is longest ago
    Use,
}

/// The size of a shared tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SharedSize {
    None,
    Blocks(u64),
    Unbounded,
}

impl SharedSize {
    fn text(self) -> String {
        match self {
            SharedSize::None => "0".to_owned(),
            SharedSize::Blocks(blocks) => output::thousands(blocks),
            SharedSize::Unbounded => "unbounded".to_owned(),
        }
    }
}

/// Most blocks of a pool.
fn pool_max() -> u32 {
    u32::try_from(POOL_BLOCKS_MAX).unwrap_or(u32::MAX)
}

fn shared(text: &str) -> Result<SharedSize, String> {
    match text.trim() {
        "unbounded" => Ok(SharedSize::Unbounded),
        text => match numbers::index(text) {
            Ok(0) => Ok(SharedSize::None),
            Ok(blocks) => Ok(SharedSize::Blocks(blocks)),
            Err(_) => Err("give a number of blocks, `unbounded`, or 0 for none".to_owned()),
        },
    }
}

fn writes(text: &str) -> Result<ClusterWrites, String> {
    let problem = || "give `first`, `uses:N` or `cached-uses:N`, with N from 1".to_owned();
    let Some((when, uses)) = text.trim().split_once(':') else {
        return match text.trim() {
            "first" => Ok(ClusterWrites::First),
            _ => Err(problem()),
        };
    };
    let uses = numbers::within(1_u32, u32::MAX)(uses).map_err(|_| problem())?;
    match when {
        "uses" => Ok(ClusterWrites::AfterUses(uses)),
        "cached-uses" => Ok(ClusterWrites::AfterCachedUses(uses)),
        _ => Err(problem()),
    }
}

fn writes_text(writes: ClusterWrites) -> String {
    match writes {
        ClusterWrites::AfterUses(uses) => format!("uses:{uses}"),
        ClusterWrites::AfterCachedUses(uses) => format!("cached-uses:{uses}"),
        _ => "first".to_owned(),
    }
}

/// What the command's other options give a replay on nodes.
pub(super) struct ClusterInput<'a> {
    pub(super) path: &'a PathBuf,
    pub(super) policies: &'a [PolicyKind],
    pub(super) capacities: &'a [u32],
    pub(super) block_bytes: Option<u64>,
    pub(super) prefill_rate: u32,
    pub(super) json: bool,
}

/// One combination of the options that take lists.
struct ClusterCase {
    settings: ClusterSettings,
    route: RouteName,
    shared: SharedSize,
}

/// Replays the trace with each combination of the options and prints the report.
pub(super) fn run(
    trace: &Trace,
    args: &ClusterArgs,
    input: &ClusterInput<'_>,
) -> Result<(), CliError> {
    let block_bytes = match &args.model {
        Some(name) => Some(model_block_bytes(name, trace.page_size())?),
        None => input.block_bytes,
    };
    let cases = cases(args, input);
    let requests = trace.requests().len() as u64;
    let bar = output::progress(requests * cases.len() as u64, "replaying");
    let mut report = ClusterReport::new(trace, input, args.disk_blocks, block_bytes);
    for case in &cases {
        let start = Instant::now();
        let mut shown = 0;
        let mut progress = |done| {
            // Drawing the bar costs more than a request.
            if done - shown >= 256 || done == requests {
                bar.inc(done - shown);
                shown = done;
            }
        };
        let totals = replay_cluster(trace, &case.settings, &mut progress).map_err(refused)?;
        let seconds = start.elapsed().as_secs_f64();
        report
            .runs
            .push(ClusterRun::new(case, &totals, block_bytes, seconds));
    }
    bar.finish_and_clear();
    match input.json {
        true => output::print_json(&report),
        false => output::print(&report.text()),
    }
}

/// The error of a replay on nodes.
fn refused(error: ClusterError) -> CliError {
    match error {
        ClusterError::SharedTooSmall {
            capacity_blocks, ..
        } => CliError::Option {
            option: "--shared",
            value: capacity_blocks.to_string(),
            problem: error.to_string(),
        },
        ClusterError::Tier(error) => CliError::Tier(error),
        error => CliError::Option {
            option: "--nodes",
            value: String::new(),
            problem: error.to_string(),
        },
    }
}

/// Bytes of a block of so many tokens of a model.
fn model_block_bytes(name: &str, page_size: u32) -> Result<u64, CliError> {
    let model = presets::find_model(name)?;
    let shape = model.shape(1, u64::from(page_size), 1, 0, &model.unit()?)?;
    Ok(shape.block_bytes()?)
}

/// The values of an option, or its default.
fn or<T: Clone>(values: &[T], default: T) -> Vec<T> {
    match values {
        [] => vec![default],
        values => values.to_vec(),
    }
}

/// All combinations, those that differ in the number of nodes side by side.
fn cases(args: &ClusterArgs, input: &ClusterInput<'_>) -> Vec<ClusterCase> {
    let mut settings = Vec::new();
    for &policy in input.policies {
        for &capacity in input.capacities {
            for route in or(&args.route, RouteName::RoundRobin) {
                let settings_of = |nodes: &u32| ClusterSettings {
                    disk_blocks: args.disk_blocks,
                    policy: PolicySettings::from(policy),
                    route: route.route(),
                    route_blocks_min: args.route_min,
                    tokens_per_second: input.prefill_rate,
                    ..ClusterSettings::new(*nodes, capacity)
                };
                settings.extend(shared_tiers(args).into_iter().flat_map(|(size, shared)| {
                    args.nodes.iter().map(settings_of).map(move |settings| {
                        let settings = ClusterSettings { shared, ..settings };
                        ClusterCase {
                            settings,
                            route,
                            shared: size,
                        }
                    })
                }));
            }
        }
    }
    settings
}

/// All combinations of the options of the shared tier.
fn shared_tiers(args: &ClusterArgs) -> Vec<(SharedSize, Option<ClusterShared>)> {
    let mut tiers = Vec::new();
    for size in or(&args.shared, SharedSize::None) {
        let capacity_blocks = match size {
            SharedSize::None => {
                tiers.push((size, None));
                continue;
            }
            SharedSize::Blocks(blocks) => Some(blocks),
            SharedSize::Unbounded => None,
        };
        for bundle_blocks in or(&args.bundle, 1) {
            for writes in or(&args.shared_writes, ClusterWrites::First) {
                let shared = ClusterShared {
                    capacity_blocks,
                    bundle_blocks,
                    writes,
                    evicts: match args.shared_evicts {
                        EvictsName::Age => ClusterEvicts::Age,
                        EvictsName::Use => ClusterEvicts::Use,
                    },
                };
                tiers.push((size, Some(shared)));
            }
        }
    }
    tiers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_of_writes_are_read_as_they_are_printed() {
        for text in ["0", "7", "unbounded"] {
            assert_eq!(shared(text).unwrap().text(), text);
        }
        for text in ["first", "uses:2", "cached-uses:3"] {
            assert_eq!(writes_text(writes(text).unwrap()), text);
        }
        for text in ["", "-1", "many", "1.5"] {
            assert!(shared(text).unwrap_err().contains("unbounded"), "{text}");
        }
        for text in ["", "uses", "uses:0", "uses:x", "used:2", "first:1"] {
            assert!(writes(text).unwrap_err().contains("uses:N"), "{text}");
        }
    }
}
