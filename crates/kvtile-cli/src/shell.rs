//! The command line in shells and manuals: completions, manual pages, quoting.

use std::ffi::OsString;

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::{error::CliError, output};

/// Arguments of `kvtile completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

/// Arguments of `kvtile man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// The command of the page, for instance `cache stat` [default: the program]
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

/// The end of `--help` of completions.
pub(crate) const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  kvtile completions bash > ~/.local/share/bash-completion/completions/kvtile
  kvtile completions zsh > ~/.zfunc/_kvtile                  with ~/.zfunc in fpath
  kvtile completions fish > ~/.config/fish/completions/kvtile.fish";

/// The end of `--help` of the manual.
pub(crate) const MAN_EXAMPLES: &str = "\
Examples:
  kvtile man | man -l -                                      read it
  kvtile man cache stat | man -l -
  kvtile man -o ~/.local/share/man/man1/kvtile.1             install it";

/// Writes the completion script of `program` for a shell.
pub(crate) fn completions(args: &CompletionsArgs, mut program: Command) -> Result<(), CliError> {
    let mut script = Vec::new();
    let name = program.get_name().to_owned();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    output::print_script(&String::from_utf8_lossy(&script))
}

/// Writes a manual page as roff.
pub(crate) fn man(args: &ManArgs, mut program: Command) -> Result<(), CliError> {
    program.build();
    let mut command = &program;
    for name in &args.command {
        let known = || command.get_subcommands().filter(|c| !c.is_hide_set());
        command = known().find(|c| c.get_name() == name).ok_or_else(|| {
            let names: Vec<&str> = known().map(Command::get_name).collect();
            CliError::Option {
                option: "COMMAND",
                value: args.command.join(" "),
                problem: format!("no such command; there are {}", names.join(", ")),
            }
        })?;
    }
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    output::print_script(&String::from_utf8_lossy(&page))
}

/// Makes the command and all its subcommands parse `-1` as a value, so that the error gives the
/// limits of the value instead of an unknown option.
pub(crate) fn with_negative_numbers(command: Command) -> Command {
    let names: Vec<String> = command
        .get_subcommands()
        .map(|below| below.get_name().to_owned())
        .collect();
    let command = names.into_iter().fold(command, |command, name| {
        command.mut_subcommand(name, with_negative_numbers)
    });
    command.allow_negative_numbers(true)
}

/// The user's command with `word` corrected to `meant`.
pub(crate) fn corrected(arguments: &[OsString], word: &str, meant: &str) -> String {
    let given = arguments.iter().map(|argument| argument.to_string_lossy());
    let words = given.enumerate().map(|(index, given)| match given.trim() {
        _ if index == 0 => "kvtile".to_owned(),
        given if given == word => quoted(meant),
        given => quoted(given),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// An argument, quoted for a shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@,+%".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_repeated_as_a_shell_takes_them() {
        let given = [
            "/usr/bin/kvtile",
            "plan",
            "l|kbnhc",
            "BHLKNC",
            "--svg",
            "it's",
        ];
        let given: Vec<OsString> = given.iter().map(OsString::from).collect();
        assert_eq!(
            corrected(&given, "l|kbnhc", "L|KBNHC"),
            "kvtile plan 'L|KBNHC' BHLKNC --svg 'it'\\''s'"
        );
    }
}
