//! The behaviour that both queues share.

use std::{
    fs::{File, OpenOptions},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use kvtile_memory::AlignedBuffer;
use proptest::prelude::*;
use rustix::fs::OFlags;

use super::{
    CAPACITY, FileCompletion, FileIo, FileOperation, FileQueue, FileWay, IoDirection, MemorySpan,
    OperationMemory, QueueKind,
};

const FILE_BYTES: usize = 64 << 10;

/// Runs `test` on a queue of each kind.
fn on_every_queue(test: impl Fn(&mut FileQueue)) {
    let mut ring = FileQueue::new(FileWay::Best);
    if matches!(ring.0, QueueKind::Threads(_)) {
        eprintln!("no io_uring here: {:?}", FileIo::probe());
    }
    test(&mut ring);
    assert_eq!(ring.in_flight(), 0, "a test takes every completion");
    assert!(ring.is_sound());
    let mut threads = FileQueue::new(FileWay::Threads);
    assert!(matches!(threads.0, QueueKind::Threads(_)));
    test(&mut threads);
    assert_eq!(threads.in_flight(), 0, "a test takes every completion");
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn content(seed: usize) -> Vec<u8> {
    let byte = |at: usize| ((at * 31) ^ (at >> 7) ^ seed).to_le_bytes()[0];
    (0..FILE_BYTES).map(byte).collect()
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).open(path).unwrap()
}

/// Submits. The test keeps `file` and `bytes` untouched until it has the completion.
fn submit(
    queue: &mut FileQueue,
    direction: IoDirection,
    (file, offset): (&File, usize),
    bytes: &mut [u8],
    token: usize,
) {
    let operation = FileOperation {
        direction,
        fd: file.as_raw_fd(),
        offset: offset as u64,
        memory: OperationMemory::One(MemorySpan {
            address: bytes.as_mut_ptr(),
            bytes: bytes.len(),
        }),
        token: token as u64,
    };
    assert!(queue.has_room());
    // SAFETY: see above.
    unsafe { queue.submit(operation) };
}

fn next(queue: &mut FileQueue) -> FileCompletion {
    queue.next().unwrap()
}

/// A read or write of part of one of two files.
#[derive(Clone, Debug)]
struct QueueStep {
    direction: IoDirection,
    file: usize,
    start: usize,
    len: usize,
}

fn steps() -> impl Strategy<Value = Vec<QueueStep>> {
    // Slots of 512 bytes; each is used once, so that the order does not matter.
    let slots: Vec<(usize, usize)> = (0..2)
        .flat_map(|file| (0..FILE_BYTES / 512).map(move |slot| (file, slot)))
        .collect();
    let chosen = proptest::sample::subsequence(slots, 1..100).prop_shuffle();
    let ways = proptest::collection::vec((any::<bool>(), 0..512_usize, 1..=512_usize), 100);
    (chosen, ways).prop_map(|(slots, ways)| {
        let steps = slots.into_iter().zip(ways);
        let step =
            |((file, slot), (is_read, from, len)): ((usize, usize), (bool, usize, usize))| {
                let direction = if is_read {
                    IoDirection::Read
                } else {
                    IoDirection::Write
                };
                QueueStep {
                    direction,
                    file,
                    start: slot * 512 + from,
                    len: len.min(512 - from),
                }
            };
        steps.map(step).collect()
    })
}

fn random_steps(queue: &mut FileQueue, steps: &[QueueStep]) {
    let folder = folder();
    let paths = [folder.path().join("0"), folder.path().join("1")];
    let mut model = [content(1), content(2)];
    for (path, content) in paths.iter().zip(&model) {
        std::fs::write(path, content).unwrap();
    }
    let files = [open(&paths[0]), open(&paths[1])];
    let mut buffers: Vec<Vec<u8>> = steps
        .iter()
        .map(|step| content(77)[..step.len].to_vec())
        .collect();
    let mut seen = vec![0; steps.len()];
    let mut take = |queue: &mut FileQueue| {
        let FileCompletion { token, result } = next(queue);
        let index = usize::try_from(token).unwrap();
        assert_eq!(result, Ok(steps[index].len), "{:?}", steps[index]);
        seen[index] += 1;
    };
    for (index, step) in steps.iter().enumerate() {
        if !queue.has_room() {
            take(queue);
        }
        let file = (&files[step.file], step.start);
        submit(queue, step.direction, file, &mut buffers[index], index);
        if index % 5 == 0 {
            queue.flush();
        }
    }
    while queue.in_flight() > 0 {
        take(queue);
    }
    assert!(queue.next().is_none());
    assert!(seen.iter().all(|count| *count == 1), "{seen:?}");
    for (step, buffer) in steps.iter().zip(&buffers) {
        let range = step.start..step.start + step.len;
        match step.direction {
            IoDirection::Read => assert!(*buffer == model[step.file][range], "{step:?}"),
            IoDirection::Write => model[step.file][range].copy_from_slice(buffer),
        }
    }
    for (path, content) in paths.iter().zip(&model) {
        assert!(std::fs::read(path).unwrap() == *content);
    }
}

#[test]
fn every_piece_of_several_files_arrives_once_and_where_it_belongs() {
    on_every_queue(|queue| {
        let queue = std::cell::RefCell::new(queue);
        let config = kvtile_testkit::generate::config(60);
        let run = proptest::test_runner::TestRunner::new(config).run(&steps(), |steps| {
            random_steps(&mut queue.borrow_mut(), &steps);
            Ok(())
        });
        run.unwrap();
    });
}

#[test]
fn a_short_file_gives_a_short_read() {
    on_every_queue(|queue| {
        let folder = folder();
        let path = folder.path().join("file");
        std::fs::write(&path, content(3)).unwrap();
        let file = open(&path);
        file.set_len(1000).unwrap();
        let mut buffers = [vec![9; 400], vec![9; 400], vec![9; 400]];
        for (token, buffer) in buffers.iter_mut().enumerate() {
            submit(
                queue,
                IoDirection::Read,
                (&file, token * 800),
                buffer,
                token,
            );
        }
        let mut results = [None; 3];
        for _ in 0..3 {
            let FileCompletion { token, result } = next(queue);
            results[usize::try_from(token).unwrap()] = Some(result);
        }
        assert_eq!(results, [Some(Ok(400)), Some(Ok(200)), Some(Ok(0))]);
        assert_eq!(buffers[0], content(3)[..400]);
        assert_eq!(buffers[1][..200], content(3)[800..1000]);
        assert_eq!(buffers[1][200..], [9; 200]);
        assert_eq!(buffers[2], [9; 400]);
    });
}

/// A read-only file and a full device, while other pieces are in flight.
#[test]
fn an_error_is_reported_for_its_own_piece_alone() {
    on_every_queue(|queue| {
        let folder = folder();
        let path = folder.path().join("file");
        std::fs::write(&path, content(4)).unwrap();
        let (good, read_only) = (open(&path), File::open(&path).unwrap());
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut buffers: Vec<Vec<u8>> = (0..CAPACITY).map(|_| content(5)[..512].to_vec()).collect();
        for (token, buffer) in buffers.iter_mut().enumerate() {
            let file = match token % 4 {
                1 => &read_only,
                3 => &full,
                _ => &good,
            };
            submit(
                queue,
                IoDirection::Write,
                (file, token * 512),
                buffer,
                token,
            );
        }
        assert!(!queue.has_room());
        for _ in 0..CAPACITY {
            let FileCompletion { token, result } = next(queue);
            match token % 4 {
                1 => assert_eq!(result, Err(rustix::io::Errno::BADF)),
                3 => assert_eq!(result, Err(rustix::io::Errno::NOSPC)),
                _ => assert_eq!(result, Ok(512)),
            }
        }
        let mut expected = content(4);
        for token in (0..CAPACITY).filter(|token| token % 2 == 0) {
            expected[token * 512..][..512].copy_from_slice(&content(5)[..512]);
        }
        assert!(std::fs::read(&path).unwrap() == expected);
    });
}

#[test]
fn direct_transfers_that_are_not_aligned_are_refused_and_others_go_on() {
    let folder = folder();
    let path = folder.path().join("file");
    std::fs::write(&path, content(6)).unwrap();
    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap();
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(&path);
    let Ok(file) = direct else {
        eprintln!("skipped: no direct I/O in {}", folder.path().display());
        return;
    };
    on_every_queue(|queue| {
        let mut buffer = AlignedBuffer::new(16 << 10, 4096).unwrap();
        let (aligned, other) = buffer.split_at_mut(8192);
        submit(queue, IoDirection::Read, (&file, 4096), aligned, 0);
        submit(queue, IoDirection::Read, (&file, 1), &mut other[1..100], 1);
        for _ in 0..2 {
            let FileCompletion { token, result } = next(queue);
            match token {
                0 => assert_eq!(result, Ok(8192)),
                // Some filesystems fall back to the page cache.
                _ => assert!(matches!(result, Err(rustix::io::Errno::INVAL) | Ok(99))),
            }
        }
        assert_eq!(aligned, &content(6)[4096..12288]);
    });
}

/// After a queue is drained or dropped, nothing is in flight: later uses of the buffers are not
/// overwritten.
#[test]
fn draining_and_dropping_wait_for_what_is_in_flight() {
    const BYTES: usize = 1 << 20;
    let folder = folder();
    let path = folder.path().join("file");
    std::fs::write(&path, vec![7; 16 * BYTES]).unwrap();
    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap();
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(&path);
    let file = direct.unwrap_or_else(|_| File::open(&path).unwrap());
    for way in [FileWay::Best, FileWay::Threads] {
        for is_drained in [true, false] {
            let mut queue = FileQueue::new(way);
            let mut buffer = AlignedBuffer::new(16 * BYTES, 4096).unwrap();
            for (index, part) in buffer.chunks_mut(BYTES).enumerate() {
                submit(
                    &mut queue,
                    IoDirection::Read,
                    (&file, index * BYTES),
                    part,
                    index,
                );
            }
            if is_drained {
                queue.drain();
                assert_eq!(queue.in_flight(), 0);
                queue.flush();
            } else {
                // The operation may or may not have started.
                drop(queue);
            }
            assert!(buffer.iter().all(|byte| *byte == 7));
            buffer.fill(1);
            std::thread::sleep(std::time::Duration::from_millis(2));
            assert!(buffer.iter().all(|byte| *byte == 1), "a late read");
        }
    }
}

/// A queue can move to another thread, because transfers reuse queues.
#[test]
fn a_queue_moves_between_threads() {
    let folder = folder();
    let path = folder.path().join("file");
    std::fs::write(&path, content(8)).unwrap();
    let file = open(&path);
    for way in [FileWay::Best, FileWay::Threads] {
        let mut queue = FileQueue::new(way);
        for round in 0..4 {
            queue = std::thread::scope(|scope| {
                let file = &file;
                let used = scope.spawn(move || {
                    let mut buffer = vec![0; 4096];
                    let at = round * 4096;
                    submit(
                        &mut queue,
                        IoDirection::Read,
                        (file, at),
                        &mut buffer,
                        round,
                    );
                    assert_eq!(next(&mut queue).result, Ok(4096));
                    assert_eq!(buffer, content(8)[at..at + 4096]);
                    queue
                });
                used.join().unwrap()
            });
        }
    }
}
