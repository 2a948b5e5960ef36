//! Several threads write, read, erase and sync one store.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::common::{content, held, key, room_for, usual, verify, write};
use kvtile_testkit::disk::SplitMix64;
use kvtile_tiers::disk::{SlotMiss, SlotStore};

const ROUNDS: u64 = 150;
const THREADS: u64 = 3;
const SLOTS: u32 = 8;

/// Pitfall 20: a place that is reused is never read as its old block.
#[test]
fn threads_that_write_read_erase_and_sync_never_see_wrong_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let identity = usual();
    let settings = room_for(THREADS * u64::from(SLOTS) + 1, &identity);
    let (store, _) = SlotStore::create_or_open(folder.path(), &settings, &identity).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (store, identity) = (&store, &identity);
                scope.spawn(move || {
                    let first = u32::try_from(thread).unwrap() * SLOTS;
                    let mut numbers = SplitMix64::new(thread);
                    for round in 0..ROUNDS {
                        let slot = first + u32::try_from(numbers.below(u64::from(SLOTS))).unwrap();
                        let number = thread * ROUNDS + round;
                        store.erase(&[slot]).unwrap();
                        let bytes = content(number, identity);
                        let written = store.write(&[write(slot, number, &bytes)]);
                        assert!(written.failed.is_empty(), "{:?}", written.failed);
                        let mut read = vec![0; bytes.len()];
                        store.read(slot, &key(number), &mut read).unwrap();
                        assert!(read == bytes);
                        if numbers.once_in(4) {
                            assert!(store.sync().failure.is_none());
                            assert!(store.is_durable(written.ticket));
                        }
                    }
                })
            })
            .collect();
        // Reads what the writers write and erase.
        let reader = scope.spawn(|| {
            let mut numbers = SplitMix64::new(99);
            let mut read = content(0, &identity);
            while !done.load(Ordering::Acquire) {
                let slot = u32::try_from(numbers.below(THREADS * u64::from(SLOTS))).unwrap();
                let Some(number) = held(&store, slot, 0..THREADS * ROUNDS) else {
                    continue;
                };
                match store.read(slot, &key(number), &mut read) {
                    Ok(()) => {
                        assert!(read == content(number, &identity), "block {number}");
                    }
                    Err(SlotMiss::Empty | SlotMiss::WrongKey | SlotMiss::Replaced) => {}
                    Err(miss) => panic!("slot {slot}: {miss}"),
                }
            }
        });
        // The reader ends even if a writer fails.
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Release);
        ended.into_iter().for_each(|ended| ended.unwrap());
        reader.join().unwrap();
    });
    assert!(store.sync().failure.is_none());
    store.check_integrity();
    let used = usize::try_from(store.stats().used).unwrap();
    assert_eq!(
        verify(&store, THREADS * ROUNDS)
            .iter()
            .filter(|(_, read)| read.is_ok())
            .count(),
        used
    );
    drop(store);
    let (_, recovered) = SlotStore::create_or_open(folder.path(), &settings, &identity).unwrap();
    assert_eq!(recovered.entries.len(), used);
}
