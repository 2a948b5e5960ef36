//! `kvtile layout`: explains layouts, lists the known ones, and shows the groups of a model.

mod facts;
mod groups;
mod list;
mod words;

use std::path::PathBuf;

use clap::Args;
use kvtile::{
    layout::{StridedLayout, Word},
    presets::RequestedLayout,
};

pub(crate) use self::{
    facts::{LayoutFacts, PresetFacts},
    words::shape_text,
};
use crate::{
    draw::{self, NestingNode},
    error::CliError,
    files::OutputFile,
    known, numbers,
    output::{self, Screen},
    shape_args::ShapeArgs,
};

/// The end of `--help`.
pub(crate) const EXAMPLES: &str = "\
The language:
  A word names the axes from slowest to fastest: B block, L layer, K plane (K and V), N token,
  H head, C content. Axes multiply, parentheses add, a number is a modulus:
    BLKNHC           one region, token by token inside a block
    L|KBNHC          axes left of the bar enumerate regions: one per layer
    L|BH(kCN,vNC)    K and V lie side by side each in its own order
    BLKHCNC8         tiles: the 8 fastest elements of the content innermost
    L|B@4096HNKC     the stride of a block is rounded up to 4096 bytes (=4096 would fix it)
    L|BN(c,r)C       planes of other names, given by --plane or by a model

Examples:
  kvtile layout 'L|BH(kCN,vNC)'
  kvtile layout 'L|KBNHC' --model llama-3.1-8b --tp 2
  kvtile layout 'L|BNKC' --plane c:bf16:C=512 --plane r:bf16:C=64
  kvtile layout BHLKNC --svg order.svg
  kvtile layout list vllm
  kvtile layout models
  kvtile layout groups model.json --tokens 32768 --svg groups.svg

The file of a model with groups is the JSON of its identity. The Python package writes it:
  python3 -c 'import kvtile; print(kvtile.ModelIdentity.from_hf_config(\"config.json\", page_size=16).to_json())'";

/// Arguments of `kvtile layout`.
#[derive(Args, Debug)]
pub struct LayoutArgs {
    /// Layout words such as BLKNHC, or names of known layouts; or `list [NAME]` for the known
    /// layouts, `models [NAME]` for the known models, `groups FILE` for the groups of a model
    #[arg(value_name = "WORD", required = true)]
    words: Vec<String>,
    #[command(flatten)]
    shape: ShapeArgs,
    /// Tokens of the hit whose needs `groups` shows [default: 32768]
    #[arg(long, value_name = "TOKENS", value_parser = numbers::within(1_u64, 1 << 40))]
    tokens: Option<u64>,
    /// Write the picture of the layout to a file
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// Explains layouts, or lists known ones.
pub(crate) fn run(args: &LayoutArgs) -> Result<(), CliError> {
    if let (Some(tokens), false) = (
        args.tokens,
        args.words.first().is_some_and(|word| word == "groups"),
    ) {
        return Err(CliError::Option {
            option: "--tokens",
            value: tokens.to_string(),
            problem: "a layout has no hits; give it with `kvtile layout groups FILE`".to_owned(),
        });
    }
    match args.words.split_first() {
        Some((first, filters)) if first == "list" => {
            check_list(args, first)?;
            list::layouts(filters, args.json)
        }
        Some((first, filters)) if first == "models" => {
            check_list(args, first)?;
            list::models(filters, args.json)
        }
        Some((first, files)) if first == "groups" => {
            check_shape(args, first)?;
            groups::run(args, files)
        }
        _ => explain(args),
    }
}

/// A picture of a layout as SVG. `word` is the user's word for it, since a layout over tensors has
/// explicit strides.
#[must_use]
pub fn layout_picture(layout: &StridedLayout, word: &Word) -> String {
    let node = NestingNode::of(layout);
    let facts = LayoutFacts::of(layout, None).called(word);
    draw::layout_svg(&facts.side(&node))
}

/// Refuses options of the shape, which groups have themselves.
fn check_shape(args: &LayoutArgs, what: &str) -> Result<(), CliError> {
    if !args.shape.is_given() {
        return Ok(());
    }
    Err(CliError::Option {
        option: "options of the shape beside",
        value: what.to_owned(),
        problem: "the model's file has the shapes of its groups".to_owned(),
    })
}

/// Refuses options of a layout, which a list would ignore.
fn check_list(args: &LayoutArgs, what: &str) -> Result<(), CliError> {
    let option = match (&args.svg, args.shape.is_given()) {
        (Some(_), _) => "--svg beside",
        (None, true) => "options of the shape beside",
        (None, false) => return Ok(()),
    };
    Err(CliError::Option {
        option,
        value: what.to_owned(),
        problem: "a list has no shape and no picture; give a word or the name of a layout"
            .to_owned(),
    })
}

fn explain(args: &LayoutArgs) -> Result<(), CliError> {
    if let (Some(path), true) = (&args.svg, args.words.len() > 1) {
        return Err(CliError::Option {
            option: "--svg",
            value: path.display().to_string(),
            problem: "a file holds one picture; give one word".to_owned(),
        });
    }
    let mut svg = OutputFile::open_some(args.svg.as_ref())?;
    let standard = svg.as_ref().is_some_and(OutputFile::is_standard);
    let screen = Screen::of_stdout();
    let mut text = String::new();
    let mut reports = Vec::new();
    for word in &args.words {
        let asked = RequestedLayout::parse(word)?;
        let layout = known::resolve(&asked, &args.shape)?;
        let facts = LayoutFacts::of(&layout, PresetFacts::asked(&asked));
        let node = NestingNode::of(&layout);
        if let Some(file) = svg.take() {
            file.finish(&draw::layout_svg(&facts.side(&node)))?;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&facts.text(&node, screen));
        reports.push(facts);
    }
    if standard {
        return Ok(());
    }
    if args.json {
        return match reports.as_slice() {
            [only] => output::print_json(only),
            all => output::print_json(&all),
        };
    }
    if let (Some(path), false) = (&args.svg, output::is_quiet()) {
        text.push_str(&format!("\nThe picture is in {}.\n", path.display()));
    }
    output::print(&text)
}
