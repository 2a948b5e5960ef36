//! A folder on a disk, against `fio` with as many requests in flight.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
    time::Duration,
};

use kvtile_shared::{
    folder::{FolderStore, FolderStoreSettings},
    store::ValueName,
};
use kvtile_testservers::kinds::InstalledServers;
use rustix::fs::{Advice, fadvise};
use serde::Deserialize;

use crate::{
    SharingOptions,
    clients::{name, random_bytes, read_all, write_all},
    report::{RowSubject, SharingReport},
    turns::{TurnContender, in_turns},
};

/// Calls at a time: the default of a folder.
const CLIENTS: usize = 16;

/// The sizes of values, and how many a round moves.
const SIZES: [(usize, usize); 4] = [
    (64 << 10, 512),
    (1 << 20, 128),
    (4 << 20, 48),
    (16 << 20, 16),
];

const GOAL: f64 = 0.9;

pub(crate) fn measure(
    _servers: &InstalledServers,
    options: &SharingOptions,
    report: &mut SharingReport,
) {
    if Command::new("fio").arg("--version").output().is_err() {
        return report.leave_out("folder: fio is not installed (apt-get install fio)".to_owned());
    }
    for size in SIZES {
        let folder = tempfile::tempdir_in(&options.folder).unwrap();
        writes(folder.path(), size, options.rounds, report);
        reads(folder.path(), size, options.rounds, report);
    }
}

fn open(folder: &Path, syncs: bool) -> FolderStore {
    let settings = FolderStoreSettings::new()
        .syncs(syncs)
        .in_flight_max(CLIENTS);
    FolderStore::open(folder, settings).unwrap()
}

/// Names in as many directories as there are clients.
fn names(what: &str, round: usize, count: usize) -> Vec<ValueName> {
    let of = |value| {
        name(format!(
            "{what}-{round}/{:02x}/{value:04x}",
            value % CLIENTS
        ))
    };
    (0..count).map(of).collect()
}

/// Reads of files that no cache holds.
fn reads(folder: &Path, (bytes, count): (usize, usize), rounds: usize, report: &mut SharingReport) {
    let store = open(folder, true);
    let values: Vec<Vec<u8>> = (0..8).map(|seed| random_bytes(seed, bytes)).collect();
    let names = names("read", 0, count);
    write_all(&store, &names, &values, CLIENTS);
    let files: Vec<String> = names
        .iter()
        .map(|name| folder.join(name.as_str()).display().to_string())
        .collect();
    let read = folder.join("read-0");
    let mut memories = vec![vec![0; bytes]; CLIENTS];
    let contenders = vec![
        TurnContender {
            name: "fio, direct",
            goal: None,
            round: Box::new(|_| {
                forget(&files);
                fio(&direct_reads(&read, bytes), bytes * count)
            }),
        },
        TurnContender {
            name: "fio, page cache",
            goal: None,
            round: Box::new(|_| {
                forget(&files);
                fio(&buffered_reads(&read, bytes), bytes * count)
            }),
        },
        TurnContender {
            name: "FolderStore",
            goal: Some(GOAL),
            round: Box::new(|_| {
                forget(&files);
                read_all(&store, &names, &mut memories)
            }),
        },
    ];
    let subject = subject("folder fetch", bytes, count);
    report.add(&subject, &in_turns(rounds, contenders));
}

/// Writes of new files, each of which is on the device when its call returns.
fn writes(
    folder: &Path,
    (bytes, count): (usize, usize),
    rounds: usize,
    report: &mut SharingReport,
) {
    let store = open(folder, true);
    let values: Vec<Vec<u8>> = (0..8).map(|seed| random_bytes(seed, bytes)).collect();
    let data = folder.join("fio");
    let contenders = vec![
        TurnContender {
            name: "fio, fdatasync",
            goal: None,
            round: Box::new(|_| {
                let took = fio(&synced_writes(&data, bytes, count), bytes * count);
                fs::remove_dir_all(&data).unwrap();
                took
            }),
        },
        TurnContender {
            name: "FolderStore",
            goal: Some(GOAL),
            round: Box::new(|round| {
                let names = names("write", round, count);
                let took = write_all(&store, &names, &values, CLIENTS);
                fs::remove_dir_all(folder.join(format!("write-{round}"))).unwrap();
                took
            }),
        },
    ];
    let subject = subject("folder store", bytes, count);
    report.add(&subject, &in_turns(rounds, contenders));
}

fn subject(what: &'static str, value_bytes: usize, values: usize) -> RowSubject {
    RowSubject {
        what,
        value_bytes,
        values,
        clients: CLIENTS,
    }
}

/// Drops the files from the page cache.
fn forget(files: &[String]) {
    for file in files {
        let file = File::open(file).unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

/// The value files of the store, whole values with direct I/O, [`CLIENTS`] at a time.
fn direct_reads(folder: &Path, bytes: usize) -> Vec<String> {
    vec![
        "--direct=1".to_owned(),
        "--ioengine=io_uring".to_owned(),
        format!("--iodepth={CLIENTS}"),
        "--rw=read".to_owned(),
        format!("--bs={bytes}"),
        "--file_service_type=sequential".to_owned(),
        format!("--opendir={}", folder.display()),
        "--name=values".to_owned(),
    ]
}

/// The same files through the page cache, by [`CLIENTS`] threads with a part each.
fn buffered_reads(folder: &Path, bytes: usize) -> Vec<String> {
    let mut words = vec![
        "--ioengine=psync".to_owned(),
        "--thread".to_owned(),
        "--group_reporting".to_owned(),
        "--rw=read".to_owned(),
        format!("--bs={bytes}"),
        "--file_service_type=sequential".to_owned(),
    ];
    for client in 0..CLIENTS {
        words.push(format!("--name=values-{client}"));
        words.push(format!("--opendir={}/{client:02x}", folder.display()));
    }
    words
}

/// As many new files, written by [`CLIENTS`] threads with a sync after each value.
fn synced_writes(folder: &Path, bytes: usize, count: usize) -> Vec<String> {
    fs::create_dir_all(folder).unwrap();
    let files = count / CLIENTS;
    vec![
        "--ioengine=psync".to_owned(),
        "--thread".to_owned(),
        "--group_reporting".to_owned(),
        "--rw=write".to_owned(),
        "--fallocate=none".to_owned(),
        "--create_on_open=1".to_owned(),
        "--fdatasync=1".to_owned(),
        // The option before syncs a write before the next one.
        "--end_fsync=1".to_owned(),
        "--file_service_type=sequential".to_owned(),
        format!("--bs={bytes}"),
        format!("--filesize={bytes}"),
        format!("--nrfiles={files}"),
        format!("--size={}", bytes * files),
        format!("--numjobs={CLIENTS}"),
        format!("--directory={}", folder.display()),
        "--name=values".to_owned(),
    ]
}

#[derive(Deserialize)]
struct FioAnswer {
    jobs: Vec<FioJobSums>,
}

#[derive(Deserialize)]
struct FioJobSums {
    error: i64,
    read: FioJobSum,
    write: FioJobSum,
}

#[derive(Deserialize)]
struct FioJobSum {
    io_bytes: u64,
    bw_bytes: u64,
}

/// Runs `fio` and returns the time for `bytes` bytes, from the rate that it reports.
fn fio(words: &[String], bytes: usize) -> Duration {
    let output = Command::new("fio")
        .args(["--output-format=json", "--randrepeat=0"])
        .args(words)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let object = text.find('{').map(|start| &text[start..]);
    let report = object.and_then(|object| serde_json::from_str::<FioAnswer>(object).ok());
    let Some(FioAnswer { jobs }) = report.filter(|_| output.status.success()) else {
        panic!("fio: {text}{}", String::from_utf8_lossy(&output.stderr));
    };
    assert!(jobs.iter().all(|job| job.error == 0), "{text}");
    let sums = || jobs.iter().flat_map(|job| [&job.read, &job.write]);
    let moved: u64 = sums().map(|sum| sum.io_bytes).sum();
    let rate: u64 = sums().map(|sum| sum.bw_bytes).sum();
    assert_eq!(moved, bytes as u64, "bytes that fio moved: {text}");
    Duration::from_secs_f64(bytes as f64 / rate as f64)
}
