//! Runs a test of this binary again in a child process, in another role.

use std::process::{Child, Command, Output};

const ROLE: &str = "KVTILE_TEST_ROLE";

/// The role and the argument that this process was started with; `None` in the test itself.
pub(crate) fn role() -> Option<(String, String)> {
    let value = std::env::var(ROLE).ok()?;
    let (role, argument) = value.split_once(' ')?;
    Some((role.to_owned(), argument.to_owned()))
}

/// A command that runs the test `name` of this binary again, in the given role.
pub(crate) fn command(name: &str, role: &str, argument: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ROLE, format!("{role} {argument}"));
    command
}

/// Waits and demands that the child's test ran and passed.
pub(crate) fn passes(child: Child) {
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().unwrap();
    let stdout = String::from_utf8_lossy(&stdout);
    let stderr = String::from_utf8_lossy(&stderr);
    eprint!("{stderr}");
    assert!(
        status.success() && stdout.contains("1 passed"),
        "the child failed with {status}\n{stdout}\n{stderr}"
    );
}
