//! Options of every command for the duration of its run: verbosity and result file.

use std::{path::PathBuf, time::Instant};

use clap::Args;

use crate::{error::CliError, files::OutputFile, output};

/// Options of every command.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "All commands")]
pub struct OutputArgs {
    /// Write the result to a file; - is standard output
    #[arg(long, short, global = true, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Hide progress and the reports of commands that only check: the exit code has the result
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Report on standard error which files are read and written, and how long the command took
    #[arg(long, short, global = true)]
    verbose: bool,
}

/// The settings of one run, restored when it ends.
pub(crate) struct RunSettings {
    start: Instant,
    file: Option<OutputFile>,
}

impl RunSettings {
    /// Applies the options and opens the result file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn of(args: &OutputArgs) -> Result<RunSettings, CliError> {
        let file = OutputFile::open_some(args.output.as_ref())?;
        let file = file.filter(|file| !file.is_standard());
        output::begin(args.quiet, args.verbose, file.is_some());
        Ok(RunSettings {
            start: Instant::now(),
            file,
        })
    }

    /// Writes the result, if any, to its file. A command that failed before it had a result leaves
    /// the file unchanged.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn finish(mut self) -> Result<(), CliError> {
        let text = output::take_result().filter(|text| !text.is_empty());
        if let (Some(file), Some(text)) = (self.file.take(), text) {
            file.finish(&text)?;
        }
        output::note(|| format!("took {:.3} s", self.start.elapsed().as_secs_f64()));
        Ok(())
    }
}

impl Drop for RunSettings {
    fn drop(&mut self) {
        output::begin(false, false, false);
    }
}
