//! Runs one command of the project.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Why a command of the project failed.
#[derive(Debug)]
pub(crate) enum StepFailure {
    /// A command exited with an error.
    Step(String),
    /// A command could not start, or its output is unusable.
    Tool(String),
    /// The rules that are broken.
    Rules(Vec<String>),
}

impl fmt::Display for StepFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StepFailure::Step(command) => write!(f, "failed: {command}"),
            StepFailure::Tool(problem) => write!(f, "{problem}"),
            StepFailure::Rules(broken) => {
                write!(f, "{} rules are broken:", broken.len())?;
                broken.iter().try_for_each(|rule| write!(f, "\n  {rule}"))
            }
        }
    }
}

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or(here.clone(), PathBuf::from)
}

/// Prints a command of a built program and runs it.
pub(crate) fn run_program(program: &Path, arguments: &[&str]) -> Result<(), StepFailure> {
    let text = format!("{} {}", program.display(), arguments.join(" "));
    println!("$ {text}");
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(StepFailure::Step(text)),
        Err(error) => Err(StepFailure::Tool(format!("cannot start {text}: {error}"))),
    }
}

/// One `cargo` command.
pub(crate) struct CargoStep {
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
}

impl CargoStep {
    pub(crate) fn cargo<'a>(arguments: impl IntoIterator<Item = &'a str>) -> CargoStep {
        CargoStep {
            arguments: arguments.into_iter().map(str::to_owned).collect(),
            variables: Vec::new(),
        }
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl ToString) -> CargoStep {
        self.variables.push((name, value.to_string()));
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new("cargo");
        command.args(&self.arguments).current_dir(root());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        // The cargo that runs this program sets these; they would override a `+toolchain`.
        command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
        command
    }

    /// Prints the command and runs it.
    pub(crate) fn run(self) -> Result<(), StepFailure> {
        let text = format!("cargo {}", self.arguments.join(" "));
        println!("$ {text}");
        let status = self
            .command()
            .status()
            .map_err(|error| StepFailure::Tool(format!("cannot start {text}: {error}")))?;
        if status.success() {
            return Ok(());
        }
        Err(StepFailure::Step(text))
    }

    /// Whether the command runs and succeeds, without output.
    pub(crate) fn succeeds(self) -> bool {
        let mut command = self.command();
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// The standard output of the command.
    pub(crate) fn output(self) -> Result<Vec<u8>, StepFailure> {
        let text = format!("cargo {}", self.arguments.join(" "));
        let output = self
            .command()
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| StepFailure::Tool(format!("cannot start {text}: {error}")))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(StepFailure::Step(text))
    }
}
