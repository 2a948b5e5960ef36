//! Runs one test of this binary in a second process, in another role.

use std::process::{Child, Command, Output, Stdio};

const ROLE: &str = "KVTILE_TEST_ROLE";

/// The role and the argument of this process; `None` in the parent.
pub(crate) fn role() -> Option<(String, String)> {
    let value = std::env::var(ROLE).ok()?;
    let (role, argument) = value.split_once(' ')?;
    Some((role.to_owned(), argument.to_owned()))
}

/// Runs the test `name` of this binary in another process, in the given role.
pub(crate) fn spawn(name: &str, role: &str, argument: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(ROLE, format!("{role} {argument}"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for the child and asserts that its test ran and passed.
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
