//! The arguments of `kvtile bench`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use kvtile::presets::RequestedLayout;
use kvtile_bench::{
    BenchSettings,
    matrix::{BenchModel, LayoutPair, PairLayout},
};
use kvtile_cli::{error::CliError, numbers, shape_args::ShapeArgs};

use super::{blocks::BlocksArgs, disk::DiskArgs, groups::GroupBenchArgs};

/// The end of `--help`.
pub(crate) const EXAMPLES: &str = "\
GB/s are payload bytes over time, each byte counted once, in 10^9. Every ratio is to one flat memcpy
of the same bytes on one thread, measured in turns with the copy; a missed goal has a `!`.
docs/benchmarks/README.md describes the measurement and the goal of each class.

Examples:
  kvtile bench --quick                                  less than a minute
  kvtile bench --json > results.json                    the whole matrix, some minutes
  kvtile bench --from results.json --html page.html     results as a page with a heat map
  kvtile bench --filter 'L|KBNHC' --filter '64 MiB' --compare
  kvtile bench 'L|KBNHC' BHLKNC --bytes 1GiB --rounds 9 --threads 1
  kvtile bench vllm:LBHNC/cpu/bf16/vec BLKNHC --model qwen3-8b
  kvtile bench --folder /mnt/nvme --filter file --json
  kvtile bench blocks                                   keys and pools, nanoseconds a block
  kvtile bench disk --folder /mnt/nvme                  the disk tier against fio, three minutes";

/// Default model for a pair that the user gives without a shape.
const MODEL: &str = "llama-3.1-8b";

/// Arguments of `kvtile bench`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    other: Option<OtherBench>,
    /// Source layout, in place of the matrix
    #[arg(value_name = "SOURCE", requires = "destination")]
    source: Option<String>,
    /// Destination layout
    #[arg(value_name = "DESTINATION")]
    destination: Option<String>,
    /// Bytes to move in each row, for instance 64MiB,1GiB; comma-separated, or repeat the option
    /// [default: in cache, 64MiB, 512MiB for the first model]
    #[arg(long, value_name = "BYTES", value_delimiter = ',', value_parser = numbers::parse_bytes)]
    bytes: Vec<u64>,
    /// Threads that copy; comma-separated, or repeat the option [default: 1,2]
    #[arg(long, value_name = "N", value_delimiter = ',',
          value_parser = numbers::within(1_u32, 1024))]
    threads: Vec<u32>,
    /// Number of rounds; results are their median [default: 3 to 7, as time allows]
    #[arg(long, value_name = "N", value_parser = numbers::within(1_u32, 1000))]
    rounds: Option<u32>,
    /// Less than a minute: fewer pairs, models and bytes
    #[arg(long)]
    quick: bool,
    /// Only rows that contain this text, commas included; repeat it for rows that contain all texts
    #[arg(long, value_name = "TEXT")]
    filter: Vec<String>,
    /// Measure alternatives too: loops of memcpy, ndarray, torch where it is installed
    #[arg(long)]
    compare: bool,
    /// Copy blocks in the order of their numbers instead of a random one
    #[arg(long)]
    consecutive: bool,
    /// Folder for the temporary files of file rows [default: /var/tmp]
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
    /// Seed of block orders and contents
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = numbers::index)]
    seed: u64,
    #[command(flatten)]
    shape: ShapeArgs,
    /// Show the JSON results of an earlier run instead of measuring
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    from: Option<PathBuf>,
    /// Write a page with a heat map
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// The other benchmarks.
#[derive(Subcommand, Debug)]
pub(super) enum OtherBench {
    /// Block keys and the operations of block pools, in nanoseconds per block
    Blocks(BlocksArgs),
    /// The slot store of the disk tier against fio with the same piece size, in turns
    Disk(DiskArgs),
    /// A cache over groups of layers against a cache of one group and memcpy, in turns
    Groups(GroupBenchArgs),
}

impl BenchArgs {
    /// The other benchmark to run in place of copies.
    pub(super) fn other(&self) -> Option<&OtherBench> {
        self.other.as_ref()
    }

    /// The stored results to show.
    pub(super) fn stored(&self) -> Option<&Path> {
        self.from.as_deref()
    }

    /// The path of the page, if requested.
    pub(super) fn page(&self) -> Option<&Path> {
        self.html.as_deref()
    }

    /// Whether `--json` is set.
    pub(super) fn json(&self) -> bool {
        self.json
    }

    /// The settings of the measurement.
    pub(super) fn settings(&self) -> Result<BenchSettings, CliError> {
        let defaults = BenchSettings::default();
        let pair = self.pair()?;
        let model = self.model(pair.as_ref())?;
        Ok(BenchSettings {
            models: model.into_iter().collect(),
            pair: pair.map(|(source, destination)| LayoutPair {
                source: order(source),
                destination: order(destination),
            }),
            alignment: self.shape.alignment,
            bytes: self.bytes.clone(),
            threads: match self.threads.as_slice() {
                [] => defaults.threads,
                given => given.to_vec(),
            },
            rounds: self.rounds,
            seed: self.seed,
            consecutive: self.consecutive,
            filters: self.filter.clone(),
            quick: self.quick,
            compare: self.compare,
            folder: self.folder.clone().unwrap_or(defaults.folder),
        })
    }

    fn pair(&self) -> Result<Option<(RequestedLayout, RequestedLayout)>, CliError> {
        match self.source.as_deref().zip(self.destination.as_deref()) {
            Some((source, destination)) => Ok(Some((
                RequestedLayout::parse(source)?,
                RequestedLayout::parse(destination)?,
            ))),
            None => Ok(None),
        }
    }

    /// The model of the options; `None` where they give none and the matrix uses its own.
    fn model(
        &self,
        pair: Option<&(RequestedLayout, RequestedLayout)>,
    ) -> Result<Option<BenchModel>, CliError> {
        let mut options = self.shape.clone();
        let free = options.planes.is_empty()
            && options.heads.is_none()
            && options.head_size.is_none()
            && options.model.is_none();
        let example = pair.and_then(|(source, _)| source.example());
        let described = options.layers.is_some()
            || options.page_size.is_some()
            || options.dtype.is_some()
            || options.tp.is_some();
        if pair.is_none() && free && !described {
            return Ok(None);
        }
        if free && example.is_none() {
            options.model = Some(MODEL.to_owned());
        }
        let mut name = options.title();
        if let Some(dtype) = &options.dtype {
            name.push(' ');
            name.push_str(dtype);
        }
        let shape = options.shape(example)?;
        Ok(Some(BenchModel { name, shape }))
    }
}

fn order(asked: RequestedLayout) -> PairLayout {
    match asked {
        RequestedLayout::Word(word) => PairLayout::Word(word),
        RequestedLayout::Known(preset) => PairLayout::Known(preset),
    }
}
