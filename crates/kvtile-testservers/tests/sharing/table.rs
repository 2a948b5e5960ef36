//! Runs each suite on each server, and prints a table.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use kvtile_testservers::{kinds::InstalledServers, process::ServerError};

use crate::server::{ServerChoice, TestServer};

/// What a suite did.
pub(crate) enum SuiteOutcome {
    /// It passed; what it measured.
    Passed(String),
    /// The server has not what it tests.
    DoesNotApply,
    /// Something of this machine is missing.
    NotHere(String),
}

/// The name of a suite, and the suite. It panics if it fails.
pub(crate) type SuiteRow = (&'static str, fn(&mut TestServer) -> SuiteOutcome);

/// A suite that takes longer hangs. Load tests of `cargo x soak-sharing` take as long as its options.
const SUITE_WITHIN: Duration = Duration::from_secs(180);

/// The most that one kill of a server, or of a writer, may add, in the mean.
const KILL_WITHIN: (Duration, Duration) = (Duration::from_secs(90), Duration::from_secs(10));

/// Ends the program if a suite hangs. Its servers end with it.
struct HangGuard(mpsc::Sender<()>);

impl HangGuard {
    fn set(what: String, within: Duration) -> HangGuard {
        let (ended, wait) = mpsc::channel::<()>();
        thread::spawn(move || {
            if wait.recv_timeout(within) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("*** {what} hangs: it did not end within {within:?}");
                std::process::exit(1);
            }
        });
        HangGuard(ended)
    }

    fn clear(self) {
        drop(self.0);
    }
}

/// Runs the table; whether nothing failed.
pub(crate) fn run_table(
    servers: &InstalledServers,
    choices: &[ServerChoice],
    suites: &[SuiteRow],
    (only_servers, only_suites): &(Vec<String>, Vec<String>),
) -> bool {
    let mut lines = Vec::new();
    let (mut failures, mut passed) = (0, 0);
    for &choice in choices {
        if !only_servers.is_empty() && !only_servers.iter().any(|name| name == choice.name()) {
            continue;
        }
        let began = Instant::now();
        let mut server = match TestServer::start(servers, choice) {
            Ok(server) => server,
            Err(error @ ServerError::NotInstalled { .. }) => {
                lines.push((choice.name(), "all", format!("not available here: {error}")));
                continue;
            }
            Err(error) => {
                failures += 1;
                lines.push((choice.name(), "start", format!("FAILED: {error}")));
                continue;
            }
        };
        println!("{} runs after {:.1?}", choice.name(), began.elapsed());
        for (name, suite) in suites {
            if !only_suites.is_empty() && !only_suites.iter().any(|only| only == name) {
                continue;
            }
            let began = Instant::now();
            let guard = HangGuard::set(
                format!("{name} on {}", choice.name()),
                suite_within(&server),
            );
            let outcome = catch_unwind(AssertUnwindSafe(|| suite(&mut server)));
            guard.clear();
            let text = match outcome {
                Ok(SuiteOutcome::DoesNotApply) => continue,
                Ok(SuiteOutcome::Passed(measured)) => {
                    passed += 1;
                    format!("ok in {:.1?} {measured}", began.elapsed())
                }
                Ok(SuiteOutcome::NotHere(reason)) => format!("not available here: {reason}"),
                Err(panic) => {
                    failures += 1;
                    // It may have left the server stopped, which would fail all later suites.
                    let _ = server.process().resume();
                    format!("FAILED: {}", message(&*panic))
                }
            };
            println!("  {name}: {text}");
            lines.push((choice.name(), name, text));
        }
    }
    println!("\n{:<12} {:<18} outcome", "server", "suite");
    for (server, suite, text) in lines {
        println!("{server:<12} {suite:<18} {text}");
    }
    println!("\n{passed} passed, {failures} failed");
    failures == 0
}

fn suite_within(server: &TestServer) -> Duration {
    let kills = |kills: usize| u32::try_from(kills).unwrap();
    let servers = KILL_WITHIN.0 * kills(server.kills);
    let writers = KILL_WITHIN.1 * kills(server.writer_kills);
    SUITE_WITHIN + server.load * 4 + servers.max(writers)
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}
