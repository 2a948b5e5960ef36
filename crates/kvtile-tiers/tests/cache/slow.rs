//! A disk whose writes block.

use std::{sync::Arc, thread, time::Duration};

use kvtile_blocks::events::TierId;
use parking_lot::{Condvar, Mutex};

use super::{
    common::{TestEngine, chain, engine_layout, with_disk},
    hooked::{HookedFolder, HookedOperation},
    keeper,
};

/// A gate for writes: whether it is closed, and the number of writes that wait at it.
#[derive(Debug, Default)]
struct WriteGate {
    state: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl WriteGate {
    fn set_closed(&self, closed: bool) {
        self.state.lock().0 = closed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock();
        state.1 += 1;
        self.changed.notify_all();
        self.changed.wait_while(&mut state, |(closed, _)| *closed);
        state.1 -= 1;
    }

    /// Waits until a write waits at the gate.
    fn wait_for_one(&self) {
        let mut state = self.state.lock();
        self.changed
            .wait_while(&mut state, |(_, waiting)| *waiting == 0);
    }
}

#[test]
fn a_flush_waits_for_what_another_thread_is_bringing_to_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let gate = Arc::new(WriteGate::default());
    let hook = Arc::clone(&gate);
    let medium = HookedFolder::new(folder.path(), move |operation| {
        if operation == HookedOperation::Write {
            hook.pass();
        }
    });
    let builder = keeper::builder(with_disk(8, folder.path(), 4 << 20)).medium(Arc::new(medium));
    let cache = builder.open(engine_layout()).unwrap();
    let keys = chain(1, 4);
    assert_eq!(TestEngine::new(&cache).store(&keys, 0), 4);
    thread::scope(|scope| {
        gate.set_closed(true);
        scope.spawn(|| assert_eq!(cache.evict(TierId::HOST, 4).unwrap(), 4));
        // The blocks have left host memory and are not on disk yet.
        gate.wait_for_one();
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(100));
            gate.set_closed(false);
        });
        let flushed = cache.flush();
        assert!(flushed.durable && flushed.failed == 0, "{flushed:?}");
        let found = cache.lookup(&keys);
        assert_eq!(found.blocks_in(TierId::DISK), 4);
    });
    cache.check_integrity();
}
