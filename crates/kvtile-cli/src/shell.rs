//! The command line as shells and manuals see it: completions, pages of the manual, quoted commands.

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
    /// The command whose page is wanted, for instance `cache stat` [default: that of the program]
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,
}

/// What `--help` says of completions at its end.
pub(crate) const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  kvtile completions bash > ~/.local/share/bash-completion/completions/kvtile
  kvtile completions zsh > ~/.zfunc/_kvtile                  with ~/.zfunc in fpath
  kvtile completions fish > ~/.config/fish/completions/kvtile.fish";

/// What `--help` says of the manual at its end.
pub(crate) const MAN_EXAMPLES: &str = "\
Examples:
  kvtile man | man -l -                                      read it
  kvtile man cache stat | man -l -
  kvtile man -o ~/.local/share/man/man1/kvtile.1             install it";

/// Writes the script that completes the commands of `program` in a shell.
pub(crate) fn completions(args: &CompletionsArgs, mut program: Command) -> Result<(), CliError> {
    let mut script = Vec::new();
    let name = program.get_name().to_owned();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    output::print_script(&String::from_utf8_lossy(&script))
}

/// Writes a page of the manual as roff.
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

/// The command and all below it, with `-1` taken for a value, which is refused with its limits, and not for
/// an option that there is not.
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

/// The command that was given, with `word` as it was meant.
pub(crate) fn corrected(arguments: &[OsString], word: &str, meant: &str) -> String {
    let given = arguments.iter().map(|argument| argument.to_string_lossy());
    let words = given.enumerate().map(|(index, given)| match given.trim() {
        _ if index == 0 => "kvtile".to_owned(),
        given if given == word => quoted(meant),
        given => quoted(given),
    });
    words.collect::<Vec<_>>().join(" ")
}

/// An argument as shells take it.
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
