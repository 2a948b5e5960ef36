//! Shared stores on real servers: each suite on each server, and a table of what ran.
//!
//! `cargo x test-sharing` installs the servers and runs this. Without them nothing is tested here, and
//! the program prints that.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod basics;
mod damage;
mod folders;
mod kills;
mod line;
mod redis;
mod refusals;
mod rules;
mod server;
mod stops;
mod sweeps;
mod table;
mod tiers;
mod values;

use std::{env, ffi::OsString, process::ExitCode};

use kvtile_testservers::kinds::{ACCESS_KEY, InstalledServers, SECRET_KEY};

use self::{
    server::ServerChoice,
    table::{SuiteRow, run_table},
};

/// All suites, in the order of the table.
const SUITES: &[SuiteRow] = &[
    ("store", basics::check),
    ("rules of stores", rules::check),
    ("tiers above", rules::check_above),
    ("tier", tiers::check),
    ("refusals", refusals::check),
    ("stopped server", stops::check),
    ("killed server", kills::check_server),
    ("killed, with a log", kills::check_durable_server),
    ("killed writer", kills::check_writer),
    ("damaged values", damage::check),
    ("delays and cuts", line::check),
    ("sweeps", sweeps::check),
    ("limits of Redis", redis::check),
    ("folders", folders::check),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    // Parts of suites that need a process of their own.
    match arguments.first().map(String::as_str) {
        Some("--write-until-killed") => return kills::write_until_killed(&arguments[1]),
        Some("--open") => return refusals::open(&arguments[1]),
        _ => {}
    }
    let Some(environment) = env::var_os("KVTILE_SERVERS") else {
        println!("real servers: not tested here; `cargo x test-sharing` installs and tests them");
        return ExitCode::SUCCESS;
    };
    if env::var("AWS_ACCESS_KEY_ID").is_ok_and(|key| key == ACCESS_KEY) {
        return run(environment, &arguments);
    }
    // The clients read their credentials from the environment of the process.
    let mut again = std::process::Command::new(env::current_exe().unwrap());
    again
        .args(&arguments)
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
    match again.status().unwrap().success() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn run(environment: OsString, arguments: &[String]) -> ExitCode {
    let mut selected = (Vec::new(), Vec::new());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let value = words.next().cloned();
        match (word.as_str(), value) {
            ("--server", Some(name)) => selected.0.push(name),
            ("--suite", Some(name)) => selected.1.push(name),
            _ => {
                eprintln!("{word}: the options are --server NAME and --suite NAME");
                return ExitCode::FAILURE;
            }
        }
    }
    let servers = InstalledServers {
        environment: environment.into(),
        path: env::var_os("PATH").unwrap_or_default(),
    };
    match run_table(&servers, ServerChoice::ALL, SUITES, &selected) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
