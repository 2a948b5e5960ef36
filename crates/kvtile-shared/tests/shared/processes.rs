//! Several processes over one folder. A test starts this program again for the other ones.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use kvtile_shared::{
    folder::{FolderStore, FolderStoreSettings},
    store::{Deadline, SharedStore, ValueName},
    sweep::{SweepSettings, sweep},
};
use kvtile_testkit::shared::SharedTierRig;

use crate::caches::{cache, keys, load, wait_for};

/// Set if this program is another process of a test: the folder.
const FOLDER: &str = "KVTILE_TEST_SHARED_FOLDER";

/// What the other process does.
const ROLE: &str = "KVTILE_TEST_SHARED_ROLE";

fn open(folder: &Path) -> Arc<dyn SharedStore> {
    let settings = FolderStoreSettings::new().syncs(false);
    Arc::new(FolderStore::open(folder, settings).unwrap())
}

fn start(folder: &Path, role: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::other_process", "--nocapture"])
        .env(FOLDER, folder)
        .env(ROLE, role)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The work of the other processes; nothing in the process of the tests.
#[test]
fn other_process() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let store = open(Path::new(&folder));
    match std::env::var(ROLE).as_deref() {
        Ok("store") => {
            let first = cache(Arc::clone(&store), "L|BH(kCN,vNC)", 4);
            let from: Vec<usize> = (0..16).collect();
            assert_eq!(first.store(&keys(1, 16), &from).unwrap().wait().stored, 16);
            wait_for(&store, 4);
        }
        Ok("write") => {
            // Until it is killed.
            for number in 0_u64.. {
                let bytes = [value(number % 50)];
                let parts = [bytes[0].as_slice()];
                let by = Deadline::within(Duration::from_secs(9));
                store.write(&name(number % 50), &parts, None, by).unwrap();
                store.remove(&[name((number + 25) % 50)], by).unwrap();
            }
        }
        other => panic!("{other:?}"),
    }
}

fn name(number: u64) -> ValueName {
    ValueName::new(format!("kvt1/{:02x}/{number}", number % 7)).unwrap()
}

fn value(number: u64) -> Vec<u8> {
    (0..100_000_u64)
        .map(|at| (at * 31 + number).to_le_bytes()[0])
        .collect()
}

#[test]
fn a_cache_loads_what_another_process_stored() {
    let folder = tempfile::tempdir().unwrap();
    let status = start(folder.path(), "store").wait().unwrap();
    assert!(status.success(), "{status}");
    let second = cache(open(folder.path()), "BLKNHC", 4);
    assert_eq!(load(&second, &keys(1, 16), 0), 16);
}

#[test]
fn killed_writers_leave_whole_values_and_files_that_a_sweep_removes() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut whole = 0;
    for round in 0..12_u64 {
        let mut writers: Vec<Child> = (0..2).map(|_| start(folder.path(), "write")).collect();
        std::thread::sleep(Duration::from_millis(60 + round * 7));
        for writer in &mut writers {
            writer.kill().unwrap();
            writer.wait().unwrap();
        }
        let by = Deadline::within(Duration::from_secs(20));
        for number in 0..50 {
            let mut sink = WholeBytes::default();
            if store.read(&name(number), &mut sink, by).unwrap() {
                assert!(sink.bytes == value(number), "a torn value {number}");
                whole += 1;
            }
            let parts = [value(number)];
            let parts = [parts[0].as_slice()];
            store.write(&name(number), &parts, None, by).unwrap();
            store.remove(&[name(number)], by).unwrap();
        }
    }
    assert!(whole > 0, "the writers wrote nothing");
    let settings = SweepSettings::new(None).leftovers_after(Duration::ZERO);
    sweep(&*store, &settings).unwrap();
    let left = std::fs::read_dir(folder.path().join(".kvtile-new")).unwrap();
    assert_eq!(left.count(), 0);
    assert_eq!(SharedTierRig::names(&*store).len(), 0);
}

#[derive(Default)]
struct WholeBytes {
    bytes: Vec<u8>,
    space: Vec<u8>,
}

impl kvtile_shared::store::ValueSink for WholeBytes {
    fn space(&mut self) -> &mut [u8] {
        self.space.resize(1 << 16, 0);
        &mut self.space
    }

    fn filled(&mut self, bytes: usize) -> kvtile_shared::store::SinkState {
        self.bytes.extend(&self.space[..bytes]);
        kvtile_shared::store::SinkState::Open
    }
}
