//! A disk that takes its time.

use std::{
    io,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

use kvtile_blocks::events::Tier;
use kvtile_tiers::{
    cache::{Cache, LookupOptions},
    disk::medium::{
        FolderMedium, LockError, LockHolder, Medium, MediumFile, MediumLock, OpenFile, Standing,
    },
};

use super::common::{Engine, chain, engine_layout, with_disk};

/// Writes wait while it is closed; how many do.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Gate {
    fn set_closed(&self, closed: bool) {
        self.state.lock().unwrap().0 = closed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        let open = self.changed.wait_while(state, |(closed, _)| *closed);
        open.unwrap().1 -= 1;
    }

    /// Until somebody waits.
    fn wait_for_one(&self) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |(_, waiting)| *waiting == 0));
    }
}

/// A folder whose data files have a gate.
#[derive(Debug)]
struct GatedFolder(FolderMedium, Arc<Gate>);

#[derive(Debug)]
struct GatedFile(Box<dyn MediumFile>, Arc<Gate>);

impl Medium for GatedFolder {
    fn name(&self) -> String {
        self.0.name()
    }

    fn create(&self) -> io::Result<()> {
        self.0.create()
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.0.names()
    }

    fn length(&self, file: &str) -> io::Result<Option<u64>> {
        self.0.length(file)
    }

    fn read(&self, file: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        self.0.read(file, bytes_max)
    }

    fn write(&self, file: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.write(file, bytes)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, file: &str) -> io::Result<()> {
        self.0.remove(file)
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.0.sync_folder()
    }

    fn standing(&self) -> io::Result<Standing> {
        self.0.standing()
    }

    fn lock(&self, file: &str) -> Result<Box<dyn MediumLock>, LockError> {
        self.0.lock(file)
    }

    fn holder(&self, file: &str) -> io::Result<Option<LockHolder>> {
        self.0.holder(file)
    }

    fn open(&self, file: &str, how: &OpenFile) -> io::Result<Box<dyn MediumFile>> {
        let file = self.0.open(file, how)?;
        Ok(Box::new(GatedFile(file, Arc::clone(&self.1))))
    }
}

impl MediumFile for GatedFile {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(offset, buffer)
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.1.pass();
        self.0.write_all_at(offset, bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn standing(&self) -> io::Result<Standing> {
        self.0.standing()
    }

    fn is_direct(&self) -> bool {
        self.0.is_direct()
    }
}

#[test]
fn a_flush_waits_for_what_another_thread_is_bringing_to_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new(Gate::default());
    let medium = GatedFolder(FolderMedium::new(folder.path()), Arc::clone(&gate));
    let builder = Cache::builder(with_disk(8, folder.path(), 4 << 20)).medium(Arc::new(medium));
    let cache = builder.open(engine_layout()).unwrap();
    let keys = chain(1, 4);
    assert_eq!(Engine::new(&cache).store(&keys, 0), 4);
    thread::scope(|scope| {
        gate.set_closed(true);
        scope.spawn(|| assert_eq!(cache.evict(Tier::Host, 4).unwrap(), 4));
        // The blocks have left host memory and are not on disk yet.
        gate.wait_for_one();
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(100));
            gate.set_closed(false);
        });
        let flushed = cache.flush();
        assert!(flushed.durable && flushed.failed == 0, "{flushed:?}");
        let found = cache.lookup(&keys, &LookupOptions::default());
        assert_eq!(found.blocks_in(Tier::Disk), 4);
    });
    cache.check_integrity();
}
