//! Completions: every one of them ends, whoever waits and however.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::{
    any::Any,
    collections::HashSet,
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::Duration,
};

use common::in_memory;
use kvtile_layout::{RangePair, Shape, StridedLayout, Unit, Word, identity::Fingerprint};
use kvtile_memory::{FileMemory, MemoryRegion, OwnedMemoryRegion, StorageKind, SystemMemory};
use kvtile_transfer::{
    FillPattern, LayoutHandle, LeaseMode, PhysicalLayout, TransferCompletion, TransferError,
    TransferManager, TransferOptions,
};

/// 1.5 MiB a block of 6 layers: more than what runs on the caller's thread.
fn shape(blocks: u64) -> Shape {
    Shape::key_value(blocks, 6, 16, 8, 512, &Unit::raw(2).unwrap()).unwrap()
}

/// Wakes a thread that waits.
#[derive(Default)]
struct Signal {
    woken: Mutex<bool>,
    changed: Condvar,
    wakes: AtomicUsize,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, Ordering::SeqCst);
        *self.woken.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

impl Signal {
    fn wait(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.changed.wait(woken).unwrap();
        }
        *woken = false;
    }
}

/// The smallest executor there is.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let signal = Arc::new(Signal::default());
    let waker = Waker::from(Arc::clone(&signal));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => signal.wait(),
        }
    }
}

/// A file whose transfers wait until they are let go, panic when they are told to.
#[derive(Debug)]
struct Gate {
    file: FileMemory,
    open: Mutex<bool>,
    changed: Condvar,
    panics: AtomicBool,
    armed: AtomicBool,
}

impl Gate {
    fn new(folder: &std::path::Path, bytes: usize) -> Arc<Gate> {
        Arc::new(Gate {
            file: FileMemory::options().scratch(folder, bytes).unwrap(),
            open: Mutex::new(false),
            changed: Condvar::new(),
            panics: AtomicBool::new(false),
            armed: AtomicBool::new(false),
        })
    }

    /// From now on, transfers wait.
    fn shut(&self) {
        *self.open.lock().unwrap() = false;
        self.armed.store(true, Ordering::SeqCst);
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

// SAFETY: nothing that it guarantees is its own: every method asks the file, which guarantees it,
// and `as_any` is that `FileMemory`. That `addr` takes its time, or panics, changes no answer.
unsafe impl MemoryRegion for Gate {
    fn addr(&self) -> usize {
        // The thread of the lane for files is the only one with a name like that.
        let on_worker = thread::current().name() == Some("kvtile-file");
        if self.armed.load(Ordering::SeqCst) && on_worker {
            let mut open = self.open.lock().unwrap();
            while !*open {
                open = self.changed.wait(open).unwrap();
            }
            drop(open);
            if self.panics.load(Ordering::SeqCst) {
                panic!("told to");
            }
        }
        self.file.addr()
    }

    fn size(&self) -> usize {
        self.file.size()
    }

    fn storage_kind(&self) -> StorageKind {
        self.file.storage_kind()
    }

    fn as_any(&self) -> &dyn Any {
        &self.file
    }
}

/// A manager with a file behind a gate, and memory of the same shape.
struct Gated {
    manager: TransferManager,
    gate: Arc<Gate>,
    file: LayoutHandle,
    memory: LayoutHandle,
    _folder: tempfile::TempDir,
}

fn gated(blocks: u64) -> Gated {
    gated_in(TransferManager::new(), blocks)
}

fn gated_in(manager: TransferManager, blocks: u64) -> Gated {
    let folder = common::folder();
    let bytes = usize::try_from(shape(blocks).total_bytes().unwrap()).unwrap();
    let gate = Gate::new(folder.path(), bytes);
    let file = PhysicalLayout::builder()
        .with_shape(shape(blocks), 1)
        .layout("BLKNHC".parse::<Word>().unwrap())
        .with_memory_regions(vec![Arc::clone(&gate) as OwnedMemoryRegion])
        .build()
        .unwrap();
    let file = manager.register(file).unwrap();
    let memory = manager
        .register(in_memory(&shape(blocks), "L|KBNHC"))
        .unwrap();
    let ids: Vec<usize> = (0..usize::try_from(blocks).unwrap()).collect();
    let pattern = FillPattern::Distinct { seed: 3 };
    manager.fill(memory, &ids, pattern).unwrap();
    manager.fill(file, &ids, FillPattern::Constant(1)).unwrap();
    Gated {
        manager,
        gate,
        file,
        memory,
        _folder: folder,
    }
}

impl Gated {
    fn start(&self, ids: &[usize]) -> TransferCompletion {
        let options = TransferOptions::new();
        let manager = &self.manager;
        let started = manager.execute_transfer(self.memory, ids, self.file, ids, options);
        started.unwrap()
    }
}

/// A completion resolves for every clone, on threads and in futures, whatever waker polled last.
#[test]
fn everyone_who_waits_learns_of_the_end() {
    let gated = gated(2);
    gated.gate.shut();
    let completion = gated.start(&[0, 1]);
    assert!(!completion.is_complete() && completion.try_result().is_none());
    assert!(completion.wait_timeout(Duration::from_millis(5)).is_none());
    assert!(completion.wait_timeout(Duration::ZERO).is_none());

    // Polled with one waker, then another: the last one is woken.
    let (first, last) = (Arc::new(Signal::default()), Arc::new(Signal::default()));
    let mut polled = completion.clone();
    for signal in [&first, &last] {
        let waker = Waker::from(Arc::clone(signal));
        let pending = Pin::new(&mut polled).poll(&mut Context::from_waker(&waker));
        assert!(pending.is_pending());
    }
    // Polled and dropped: nobody is woken for it.
    let gone = Arc::new(Signal::default());
    let waker = Waker::from(Arc::clone(&gone));
    let mut dropped = completion.clone();
    assert!(
        Pin::new(&mut dropped)
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
    );
    drop(dropped);

    let waiters: Vec<_> = (0..6)
        .map(|i| {
            let completion = completion.clone();
            thread::spawn(move || match i % 4 {
                0 => completion.wait().unwrap().bytes,
                1 => block_on(completion).unwrap().bytes,
                2 => {
                    let long = Duration::from_secs(3600);
                    completion.wait_timeout(long).unwrap().unwrap().bytes
                }
                _ => {
                    block_on(completion.layer(5)).unwrap();
                    completion.wait().unwrap().bytes
                }
            })
        })
        .collect();
    gated.gate.open();
    let bytes = 2 * shape(1).block_bytes().unwrap();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap(), bytes);
    }
    last.wait();
    assert_eq!(first.wakes.load(Ordering::SeqCst), 0);
    assert_eq!(gone.wakes.load(Ordering::SeqCst), 0);
    assert_eq!(block_on(polled).unwrap().bytes, bytes);
    assert_eq!(completion.layers_done(), completion.num_layers());
    assert!(matches!(
        completion.wait_layer(6),
        Err(TransferError::NoSuchLayer {
            layer: 6,
            layers: 6
        })
    ));
    assert!(block_on(completion.layer(usize::MAX)).is_err());
}

/// Pitfall 19: however many transfers wait in the queue, each of them ends, dropped or not.
#[test]
fn a_long_queue_resolves_to_the_last_and_dropping_neither_cancels_nor_panics() {
    let gated = gated(24);
    gated.gate.shut();
    let mut kept = Vec::new();
    for block in 0..24 {
        let completion = gated.start(&[block]);
        if block % 3 == 0 {
            drop(completion);
        } else {
            kept.push(completion);
        }
    }
    assert!(kept.iter().all(|completion| !completion.is_complete()));
    gated.gate.open();
    for completion in kept.into_iter().rev() {
        block_on(completion).unwrap();
    }
    let Gated {
        manager,
        file,
        memory,
        ..
    } = &gated;
    for block in 0..24 {
        assert_eq!(
            manager.block_digest(*file, block).unwrap(),
            manager.block_digest(*memory, block).unwrap()
        );
    }
}

/// A queue that is full makes whoever comes wait, and loses nothing: not when it is full, and not
/// when its manager is dropped.
#[test]
fn a_full_queue_waits_and_loses_nothing() {
    for capacity in [0, 1, 3] {
        let manager = TransferManager::builder().queue_capacity(capacity).build();
        let gated = gated_in(manager, 8);
        gated.gate.shut();
        let started = AtomicUsize::new(0);
        let completions = thread::scope(|scope| {
            let starter = scope.spawn(|| {
                let start = |block| {
                    let completion = gated.start(&[block]);
                    started.fetch_add(1, Ordering::SeqCst);
                    completion
                };
                (0..8).map(start).collect::<Vec<_>>()
            });
            // One is under way, and as many as there is room for wait.
            let room = 1 + capacity;
            while started.load(Ordering::SeqCst) < room {
                thread::yield_now();
            }
            thread::sleep(Duration::from_millis(30));
            assert_eq!(started.load(Ordering::SeqCst), room);
            assert!(!starter.is_finished());
            // Small transfers between memories do not go through the queue.
            let small = Shape::key_value(2, 1, 4, 1, 8, &Unit::raw(2).unwrap()).unwrap();
            let [a, b] = ["BLKNHC", "L|KBNHC"].map(|word| {
                let layout = in_memory(&small, word);
                gated.manager.register(layout).unwrap()
            });
            let options = TransferOptions::new();
            let done = gated.manager.execute_transfer(a, &[0], b, &[1], options);
            assert!(done.unwrap().is_complete());
            gated.gate.open();
            starter.join().unwrap()
        });
        let Gated {
            manager,
            file,
            memory,
            ..
        } = gated;
        for completion in &completions {
            assert!(block_on(completion.clone()).is_ok());
        }
        for block in 0..8 {
            let digests = [file, memory].map(|h| manager.block_digest(h, block).unwrap());
            assert_eq!(digests[0], digests[1]);
        }
    }
}

/// One who is woken on the manager's thread may start a transfer there, however full the queue is.
#[test]
fn a_waker_that_starts_a_transfer_does_not_wait_for_itself() {
    struct Starter {
        gated: Gated,
        started: Mutex<Vec<TransferCompletion>>,
    }
    impl Wake for Starter {
        fn wake(self: Arc<Self>) {
            let ids = [2, 3, 4];
            let started = ids.map(|block| self.gated.start(&[block]));
            self.started.lock().unwrap().extend(started);
        }
    }
    let manager = TransferManager::builder().queue_capacity(1).build();
    let starter = Arc::new(Starter {
        gated: gated_in(manager, 5),
        started: Mutex::default(),
    });
    starter.gated.gate.shut();
    let mut first = starter.gated.start(&[0]);
    let second = starter.gated.start(&[1]);
    let waker = Waker::from(Arc::clone(&starter));
    let pending = Pin::new(&mut first).poll(&mut Context::from_waker(&waker));
    assert!(pending.is_pending());
    drop(waker);
    starter.gated.gate.open();
    second.wait().unwrap();
    let started = std::mem::take(&mut *starter.started.lock().unwrap());
    assert_eq!(started.len(), 3);
    for completion in started {
        completion.wait().unwrap();
    }
}

/// Pitfall 20: a block in flight is neither read nor written by anybody else, and is free when the
/// completion says so.
#[test]
fn blocks_in_flight_are_refused_until_the_completion() {
    let gated = gated(3);
    let Gated {
        manager,
        file,
        memory,
        ..
    } = &gated;
    gated.gate.shut();
    let completion = gated.start(&[0, 1]);
    let lease = |handle: LayoutHandle, block, mode| manager.lease(handle, &[block], mode).map(drop);
    for block in [0, 1] {
        let reused = lease(*memory, block, LeaseMode::Write).unwrap_err();
        assert!(
            matches!(&reused, TransferError::BlockLeased { block: b, .. } if *b == block as u64),
            "{reused}"
        );
        lease(*memory, block, LeaseMode::Read).unwrap();
        lease(*file, block, LeaseMode::Read).unwrap_err();
        lease(*file, block, LeaseMode::Write).unwrap_err();
    }
    lease(*memory, 2, LeaseMode::Write).unwrap();
    lease(*file, 2, LeaseMode::Write).unwrap();
    let overlapping = [
        (*memory, 2, *file, 1),
        (*file, 1, *memory, 2),
        (*file, 2, *memory, 0),
    ];
    for (from, source, to, target) in overlapping {
        let options = TransferOptions::new();
        let refused = manager.execute_transfer(from, &[source], to, &[target], options);
        assert!(matches!(refused, Err(TransferError::BlockLeased { .. })));
    }
    assert!(matches!(
        manager.unregister(*memory),
        Err(TransferError::LayoutInUse { leases: 1, .. })
    ));
    let fill = manager.fill(*memory, &[2, 1], FillPattern::Constant(0));
    assert!(matches!(
        fill,
        Err(TransferError::BlockLeased { block: 1, .. })
    ));
    gated.gate.open();
    completion.wait().unwrap();
    for handle in [*memory, *file] {
        lease(handle, 0, LeaseMode::Write).unwrap();
    }
    manager.unregister(*memory).unwrap();
}

/// A transfer that panics tells all who wait, frees its blocks, and the next one runs.
#[test]
fn a_panic_reaches_all_waiters_and_spares_the_next_transfer() {
    let gated = gated(4);
    gated.gate.shut();
    gated.gate.panics.store(true, Ordering::SeqCst);
    let completion = gated.start(&[0, 1]);
    let waiters: Vec<_> = (0..3)
        .map(|i| {
            let completion = completion.clone();
            thread::spawn(move || match i {
                0 => completion.wait().map(|_| ()),
                1 => block_on(completion).map(|_| ()),
                _ => completion.wait_layer(0),
            })
        })
        .collect();
    gated.gate.open();
    for waiter in waiters {
        let result = waiter.join().unwrap();
        assert!(matches!(result, Err(TransferError::Panicked)), "{result:?}");
    }
    gated.gate.panics.store(false, Ordering::SeqCst);
    gated.start(&[0, 1]).wait().unwrap();
}

struct PanickingWaker;

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        panic!("a waker of somebody else");
    }
}

/// Somebody else's waker that panics costs nobody their completion.
#[test]
fn a_waker_that_panics_keeps_nobody_from_being_woken() {
    let gated = gated(2);
    gated.gate.shut();
    let (first, second) = (gated.start(&[0]), gated.start(&[1]));
    let mut polled = first.clone();
    let waker = Waker::from(Arc::new(PanickingWaker));
    let pending = Pin::new(&mut polled).poll(&mut Context::from_waker(&waker));
    assert!(pending.is_pending());
    let others: Vec<_> = [first, second]
        .into_iter()
        .map(|completion| thread::spawn(move || block_on(completion)))
        .collect();
    gated.gate.open();
    for other in others {
        other.join().unwrap().unwrap();
    }
}

/// Dropping the manager waits for what is under way.
#[test]
fn dropping_the_manager_finishes_its_transfers() {
    let gated = gated(3);
    gated.gate.shut();
    let completions: Vec<_> = (0..3).map(|block| gated.start(&[block])).collect();
    let Gated {
        manager,
        gate,
        _folder,
        ..
    } = gated;
    let dropped = thread::spawn(move || drop(manager));
    gate.open();
    dropped.join().unwrap();
    for completion in completions {
        assert!(completion.try_result().unwrap().is_ok());
    }
}

/// A device error in the middle: a file that somebody cuts while it is read.
#[test]
fn an_error_of_the_device_reaches_all_waiters() {
    let folder = common::folder();
    let path = folder.path().join("cache");
    let file = PhysicalLayout::builder()
        .with_shape(shape(2), 1)
        .layout("BLKNHC".parse::<Word>().unwrap())
        .allocate_disk(Some(path.clone()))
        .build()
        .unwrap();
    let manager = TransferManager::new();
    let file = manager.register(file).unwrap();
    let memory = manager.register(in_memory(&shape(2), "L|KBNHC")).unwrap();
    let cut = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    cut.set_len(4096).unwrap();
    let done = manager.execute_transfer(file, &[0, 1], memory, &[0, 1], TransferOptions::new());
    let completion = done.unwrap();
    let clone = completion.clone();
    for result in [completion.wait(), block_on(clone)] {
        assert!(
            matches!(result, Err(TransferError::Memory(_))),
            "{result:?}"
        );
    }
    assert!(completion.wait_layer(5).is_err());
    manager.lease(memory, &[0, 1], LeaseMode::Write).unwrap();
}

/// What `wait_layer(n)` promises, seen from another thread that has the engine's own view of the
/// memory: all bytes of layer n are there, while later layers may still be on their way.
#[test]
fn a_layer_that_is_done_is_at_its_destination() {
    let shape = shape(6);
    let word: Word = "L|KBNHC".parse().unwrap();
    let strided = StridedLayout::resolve(&word, &shape, 1).unwrap();
    let regions: Vec<OwnedMemoryRegion> = strided
        .region_bytes()
        .iter()
        .map(|&bytes| {
            let bytes = usize::try_from(bytes).unwrap();
            Arc::new(SystemMemory::allocate(bytes).unwrap()) as OwnedMemoryRegion
        })
        .collect();
    let engine = PhysicalLayout::builder()
        .with_shape(shape.clone(), 1)
        .layout(word)
        .with_memory_regions(regions.clone())
        .build()
        .unwrap();
    let manager = TransferManager::new();
    let engine = manager.register(engine).unwrap();
    let host = manager.register(in_memory(&shape, "L|KBNHC")).unwrap();
    let ids: Vec<usize> = (0..6).collect();
    for round in 0..20 {
        let pattern = FillPattern::Distinct { seed: round };
        manager.fill(host, &ids, pattern).unwrap();
        let options = TransferOptions::new().layer_by_layer(true);
        let layers = RangePair::same(1, 5);
        let options = options.layers(layers);
        let done = manager
            .execute_transfer(host, &ids, engine, &ids, options)
            .unwrap();
        assert_eq!(done.num_layers(), 5);
        for layer in 0..5 {
            done.wait_layer(layer).unwrap();
            assert!(done.layers_done() > layer);
            let region = regions.get(layer + 1).unwrap();
            let pointer = std::ptr::with_exposed_provenance::<u8>(region.addr());
            // SAFETY: the region lives, and a layer that is done is not written any more.
            let found = unsafe { std::slice::from_raw_parts(pointer, region.size()) }.to_vec();
            let lease = manager.lease(host, &ids, LeaseMode::Read).unwrap();
            let expected = lease_region(&manager, host, &lease, layer + 1);
            assert!(found == expected, "layer {layer} of round {round}");
        }
        done.wait().unwrap();
    }
}

/// The bytes of one region of a leased layout.
fn lease_region(
    manager: &TransferManager,
    handle: LayoutHandle,
    lease: &kvtile_transfer::BlockLease,
    region: usize,
) -> Vec<u8> {
    assert_eq!(lease.mode(), LeaseMode::Read);
    let layout = manager.layout(handle).unwrap();
    let region = layout.memory_regions().get(region).unwrap();
    let pointer = std::ptr::with_exposed_provenance::<u8>(region.addr());
    // SAFETY: the region lives, and the lease on all blocks keeps writers away.
    unsafe { std::slice::from_raw_parts(pointer, region.size()) }.to_vec()
}

/// Threads that copy, lease and fill at once: every refusal is a lease, and every block that was
/// copied holds one pattern from its first to its last byte.
#[test]
fn threads_on_one_manager_never_see_a_mixture() {
    let shape = Shape::key_value(8, 2, 16, 4, 256, &Unit::raw(2).unwrap()).unwrap();
    let manager = Arc::new(TransferManager::new());
    let words = ["L|KBNHC", "BHLKNC", "BLKNHC"];
    let handles = words.map(|word| manager.register(in_memory(&shape, word)).unwrap());
    for handle in handles {
        let ids: Vec<usize> = (0..8).collect();
        manager
            .fill(handle, &ids, FillPattern::Constant(0))
            .unwrap();
    }
    let known: HashSet<Fingerprint> = (0..=250)
        .map(|byte| {
            let [handle, ..] = handles;
            manager
                .fill(handle, &[0], FillPattern::Constant(byte))
                .unwrap();
            manager.block_digest(handle, 0).unwrap()
        })
        .collect();
    let copied = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 0..4u64 {
            let (manager, copied, known) = (&manager, &copied, &known);
            scope.spawn(move || {
                wander((manager, known, copied), handles, seed);
            });
        }
    });
    assert!(copied.load(Ordering::Relaxed) > 50);
    for handle in handles {
        manager.unregister(handle).unwrap();
    }
}

/// One thread of the test above: 300 random steps.
fn wander(
    (manager, known, copied): (&TransferManager, &HashSet<Fingerprint>, &AtomicUsize),
    handles: [LayoutHandle; 3],
    seed: u64,
) {
    let mut state = seed;
    let mut below = move |count: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(seed + 1);
        usize::try_from(state >> 33).unwrap() % count
    };
    for step in 0..300u64 {
        let (from, to) = (
            *handles.get(below(3)).unwrap(),
            *handles.get(below(3)).unwrap(),
        );
        let (a, b) = (below(8), below(8));
        let byte = u8::try_from((step * 4 + seed) % 251).unwrap();
        let refused = match below(3) {
            0 => manager.fill(to, &[b], FillPattern::Constant(byte)).err(),
            1 => match manager.block_digest(to, b) {
                Ok(digest) => {
                    assert!(known.contains(&digest), "a mixture in block {b}");
                    None
                }
                Err(error) => Some(error),
            },
            _ => {
                let options = TransferOptions::new().verify(true);
                match manager.execute_transfer(from, &[a], to, &[b], options) {
                    Ok(done) => {
                        block_on(done).unwrap();
                        copied.fetch_add(1, Ordering::Relaxed);
                        None
                    }
                    Err(error) => Some(error),
                }
            }
        };
        let lease = |e: &TransferError| {
            matches!(
                e,
                TransferError::BlockLeased { .. } | TransferError::SameBlock { .. }
            )
        };
        assert!(refused.as_ref().is_none_or(lease), "{refused:?}");
    }
}
