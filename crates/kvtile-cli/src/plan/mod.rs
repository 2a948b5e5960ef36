//! `kvtile plan`: how to copy blocks from one layout to another.

mod facts;
mod select;

use std::path::PathBuf;

use clap::Args;
use kvtile::{
    layout::{CopyPlan, StridedLayout, Word},
    presets::RequestedLayout,
};

use self::facts::PlanFacts;
use crate::{
    draw::{self, NestingNode},
    error::CliError,
    files::OutputFile,
    known,
    layout::{LayoutFacts, PresetFacts},
    numbers,
    output::{self, Screen},
    ranges::{IndexList, IndexRange},
    shape_args::{ShapeArgs, SideOverride},
};

/// The end of `--help`.
pub(crate) const EXAMPLES: &str = "\
Arithmetic gives the plan before a byte moves: bytes that are contiguous on both sides become one
run, the others a small nest of loops. Longer runs are faster; equal layouts have one run per block
or fewer.

Examples:
  kvtile plan 'L|KBNHC' BHLKNC
  kvtile plan 'L|BH(kCN,vNC)' 'L|BKNHC' --model llama-3.1-8b
  kvtile plan BHLKNC BHLKNC --source-tp 2 --source-rank 1        half of the heads into all
  kvtile plan BLKNHC BLKNHC --destination-page-size 256          16 pages of 16 fill one of 256
  kvtile plan 'L|KBNHC' BHLKNC --source-blocks 7,3,12-15 --destination-blocks 0-5
  kvtile plan 'L|KBNHC' KBNLHC --layer-range 0..8 --json
  kvtile plan 'L|KBNHC' BHLKNC --svg plan.svg";

/// Arguments of `kvtile plan`.
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// Source layout: a word, or the name of a known layout
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Destination layout
    #[arg(value_name = "DESTINATION")]
    destination: String,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    sides: SideArgs,
    #[command(flatten)]
    shape: ShapeArgs,
    /// Write a picture of both sides and of the runs to a file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// The options of the selection.
#[derive(Args, Debug)]
#[command(next_help_heading = "Selection")]
pub(crate) struct SelectionArgs {
    /// Source blocks, for instance 3,7,12-15 [default: the first 8]
    #[arg(long, value_name = "LIST")]
    source_blocks: Option<IndexList>,
    /// Destination blocks, one for each source block [default: the first 8]
    #[arg(long, value_name = "LIST")]
    destination_blocks: Option<IndexList>,
    /// Only these layers, on both sides, for instance 0..8
    #[arg(long, value_name = "RANGE")]
    layer_range: Option<IndexRange>,
    /// Only these tokens of every block, on both sides
    #[arg(long, value_name = "RANGE")]
    token_range: Option<IndexRange>,
    /// Heads of the source, by its own numbers
    #[arg(long, value_name = "RANGE")]
    source_heads: Option<IndexRange>,
    /// Heads of the destination, by its own numbers
    #[arg(long, value_name = "RANGE")]
    destination_heads: Option<IndexRange>,
}

/// The options in which the sides differ.
#[derive(Args, Debug)]
#[command(next_help_heading = "Sides that differ")]
pub(crate) struct SideArgs {
    /// Tokens per block of the source
    #[arg(long, value_name = "N", value_parser = numbers::count)]
    source_page_size: Option<u64>,
    /// Tokens per block of the destination
    #[arg(long, value_name = "N", value_parser = numbers::count)]
    destination_page_size: Option<u64>,
    /// Tensor-parallel size of the source
    #[arg(long, value_name = "N", value_parser = numbers::count)]
    source_tp: Option<u64>,
    /// Tensor-parallel rank of the source
    #[arg(long, value_name = "N", value_parser = numbers::index)]
    source_rank: Option<u64>,
    /// Tensor-parallel size of the destination
    #[arg(long, value_name = "N", value_parser = numbers::count)]
    destination_tp: Option<u64>,
    /// Tensor-parallel rank of the destination
    #[arg(long, value_name = "N", value_parser = numbers::index)]
    destination_rank: Option<u64>,
}

/// Plans and shows the plan.
pub(crate) fn run(args: &PlanArgs) -> Result<(), CliError> {
    let (from, to) = (
        RequestedLayout::parse(&args.source)?,
        RequestedLayout::parse(&args.destination)?,
    );
    let sides = &args.sides;
    check_ranks(sides, &args.shape)?;
    let svg = OutputFile::open_some(args.svg.as_ref())?;
    let source = known::resolve(
        &from,
        &args.shape.with(SideOverride {
            page_size: sides.source_page_size,
            tp: sides.source_tp,
            rank: sides.source_rank,
        }),
    )?;
    let destination = known::resolve(
        &to,
        &args.shape.with(SideOverride {
            page_size: sides.destination_page_size,
            tp: sides.destination_tp,
            rank: sides.destination_rank,
        }),
    )?;
    let selection = select::selection(&args.selection, source.shape(), destination.shape())?;
    let plan = CopyPlan::new(&source, &destination, &selection)?;
    let samples = draw::sample(&plan);
    let facts = PlanFacts {
        source: LayoutFacts::of(&source, PresetFacts::asked(&from)),
        destination: LayoutFacts::of(&destination, PresetFacts::asked(&to)),
        blocks: selection.pairs.len(),
        plan: &plan,
    };
    let nodes = (NestingNode::of(&source), NestingNode::of(&destination));
    let standard = svg.as_ref().is_some_and(OutputFile::is_standard);
    if let Some(file) = svg {
        file.finish(&drawing(&facts, (&nodes.0, &nodes.1), &samples))?;
    }
    if standard {
        return Ok(());
    }
    if args.json {
        return output::print_json(&facts.report());
    }
    let mut text = facts.text((&nodes.0, &nodes.1), &samples, Screen::of_stdout());
    if let (Some(path), false) = (&args.svg, output::is_quiet()) {
        text.push_str(&format!("\nThe picture is in {}.\n", path.display()));
    }
    output::print(&text)
}

/// Refuses a rank without a tensor-parallel size.
fn check_ranks(sides: &SideArgs, shape: &ShapeArgs) -> Result<(), CliError> {
    let ranks = [
        (
            "--source-rank",
            sides.source_rank,
            sides.source_tp,
            "--source-tp",
        ),
        (
            "--destination-rank",
            sides.destination_rank,
            sides.destination_tp,
            "--destination-tp",
        ),
    ];
    for (option, rank, tp, needed) in ranks {
        if let (Some(rank), None, None) = (rank, tp, shape.tp) {
            return Err(CliError::Option {
                option,
                value: rank.to_string(),
                problem: format!(
                    "of how many ranks? Give {needed} N too, or --tp N for both sides"
                ),
            });
        }
    }
    Ok(())
}

/// A picture of a plan for `blocks` blocks as SVG: both layouts, each with its word, and a sample of the runs between
/// them.
#[must_use]
pub fn plan_picture(
    (source, source_word): (&StridedLayout, &Word),
    (destination, destination_word): (&StridedLayout, &Word),
    (plan, blocks): (&CopyPlan, usize),
) -> String {
    let facts = PlanFacts {
        source: LayoutFacts::of(source, None).called(source_word),
        destination: LayoutFacts::of(destination, None).called(destination_word),
        blocks,
        plan,
    };
    let nodes = (NestingNode::of(source), NestingNode::of(destination));
    drawing(&facts, (&nodes.0, &nodes.1), &draw::sample(plan))
}

fn drawing(
    facts: &PlanFacts<'_>,
    nodes: (&NestingNode, &NestingNode),
    samples: &[draw::SampledRun],
) -> String {
    draw::plan_svg(
        &facts.source.side(nodes.0).titled("Source"),
        &facts.destination.side(nodes.1).titled("Destination"),
        (&facts.notes(), samples),
    )
}
