//! Batches against the same pieces one by one, on both queues and with short and failing files.

use std::{
    fs::{self, OpenOptions},
    panic::{AssertUnwindSafe, catch_unwind},
};

use kvtile_memory::{AlignedBuffer, FileMemory, MemoryError};
use kvtile_testkit::disk::SplitMix64;

use super::{
    batch::{FileBatch, FileRead, FileWrite},
    queue::{FileIo, FileWay},
};

const FILE_BYTES: usize = 6 << 20;

const WAYS: [FileWay; 2] = [FileWay::Best, FileWay::Threads];

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn content(seed: usize, bytes: usize) -> Vec<u8> {
    let byte = |at: usize| ((at * 31) ^ (at >> 7) ^ (at >> 13) ^ (seed * 57)).to_le_bytes()[0];
    (0..bytes).map(byte).collect()
}

/// Disjoint pieces of the file in random order: small and large, aligned or not, many of them
/// adjacent.
fn pieces(numbers: &mut SplitMix64) -> Vec<(usize, usize)> {
    let grain = [1, 512, 4096, 4096, 4096][numbers.index(5)];
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < FILE_BYTES {
        let most = [2, 4, 16, 700][numbers.index(4)];
        let bytes = (grain * numbers.index(most)).min(FILE_BYTES - at);
        if numbers.once_in(2) {
            pieces.push((at, bytes));
        }
        at += bytes.max(1).next_multiple_of(grain);
        if pieces.len() == 400 || numbers.once_in(100) {
            break;
        }
    }
    for index in (1..pieces.len()).rev() {
        pieces.swap(index, numbers.index(index + 1));
    }
    pieces
}

/// The memory of each piece: one after the other at multiples of `grain`, so that some pieces are
/// also adjacent in memory.
fn places(pieces: &[(usize, usize)], grain: usize) -> (Vec<usize>, usize) {
    let mut end = 0;
    let starts = pieces.iter().map(|(_, bytes)| {
        let start = end;
        end = (start + bytes).next_multiple_of(grain);
        start
    });
    (starts.collect(), end.max(1))
}

/// Splits `buffer` into the slices from each start on.
fn split<'b>(
    mut buffer: &'b mut [u8],
    starts: &[usize],
    pieces: &[(usize, usize)],
) -> Vec<&'b mut [u8]> {
    let mut parts = Vec::new();
    let mut at = 0;
    for (start, (_, bytes)) in starts.iter().zip(pieces) {
        let (_, rest) = buffer.split_at_mut(start - at);
        let (part, rest) = rest.split_at_mut(*bytes);
        parts.push(part);
        buffer = rest;
        at = start + bytes;
    }
    parts
}

fn reads<'b>(pieces: &[(usize, usize)], parts: Vec<&'b mut [u8]>) -> Vec<FileRead<'b>> {
    let pieces = pieces.iter().zip(parts);
    pieces
        .map(|((offset, _), bytes)| FileRead {
            offset: *offset as u64,
            bytes,
        })
        .collect()
}

#[test]
fn a_batch_equals_its_pieces_one_by_one() {
    for seed in 0..60 {
        let mut numbers = SplitMix64::new(seed);
        let folder = folder();
        let path = folder.path().join("file");
        fs::write(&path, content(1, FILE_BYTES)).unwrap();
        let direct = numbers.once_in(2);
        let options = FileMemory::options().direct_io(direct);
        let file = options.open(&path, FILE_BYTES).unwrap();
        let batch = FileBatch::new(WAYS[numbers.index(2)]);
        let mut model = content(1, FILE_BYTES);
        for turn in 0..4 {
            let pieces = pieces(&mut numbers);
            let (starts, bytes) = places(&pieces, [1, 4096][numbers.index(2)]);
            let mut buffer = AlignedBuffer::new(bytes, 4096).unwrap();
            let mut seen = vec![0; pieces.len()];
            if turn % 2 == 0 {
                buffer.copy_from_slice(&content(turn + 2, bytes));
                let write = |((offset, len), start): (&(usize, usize), &usize)| FileWrite {
                    offset: *offset as u64,
                    bytes: &buffer[*start..start + len],
                };
                let writes: Vec<_> = pieces.iter().zip(&starts).map(write).collect();
                batch.write(&file, &writes, &mut |index, outcome| {
                    outcome.unwrap();
                    seen[index] += 1;
                });
                for write in &writes {
                    let at = usize::try_from(write.offset).unwrap();
                    model[at..at + write.bytes.len()].copy_from_slice(write.bytes);
                }
            } else {
                let mut reads = reads(&pieces, split(&mut buffer, &starts, &pieces));
                batch.read(&file, &mut reads, &mut |index, outcome| {
                    let (offset, bytes) = pieces[index];
                    assert!(outcome.unwrap() == &model[offset..offset + bytes]);
                    seen[index] += 1;
                });
                for read in &reads {
                    let at = usize::try_from(read.offset).unwrap();
                    assert!(
                        *read.bytes == model[at..at + read.bytes.len()],
                        "seed {seed}"
                    );
                }
            }
            assert!(
                seen.iter().all(|count| *count == 1),
                "seed {seed}: {seen:?}"
            );
        }
        drop(file);
        assert!(fs::read(&path).unwrap() == model, "seed {seed}");
    }
}

/// A batch of 40 MiB has segments of 2.5 MiB: the pieces have one to three, with and without a rest.
#[test]
fn long_pieces_of_a_large_batch_arrive_whole() {
    const MIB: usize = 1 << 20;
    let sizes = [
        6 * MIB,
        6 * MIB + 8192,
        5 * MIB,
        5 * MIB - 3,
        8 * MIB,
        7 * MIB + 1,
        3 * MIB,
    ];
    let all: usize = sizes.iter().sum();
    let bytes = content(5, all + 9);
    for (way, direct) in [
        (FileWay::Best, true),
        (FileWay::Threads, true),
        (FileWay::Best, false),
    ] {
        let folder = folder();
        let path = folder.path().join("file");
        fs::write(&path, vec![0; all]).unwrap();
        let file = FileMemory::options()
            .direct_io(direct)
            .open(&path, all)
            .unwrap();
        let batch = FileBatch::new(way);
        let mut content = AlignedBuffer::new(all, 4096).unwrap();
        content.copy_from_slice(&bytes[9..]);
        let mut writes = Vec::new();
        let mut at = 0;
        for size in sizes {
            writes.push(FileWrite {
                offset: at as u64,
                bytes: &content[at..at + size],
            });
            at += size;
        }
        writes.reverse();
        let mut seen = vec![0; sizes.len()];
        batch.write(&file, &writes, &mut |index, outcome| {
            outcome.unwrap();
            seen[index] += 1;
        });
        assert_eq!(seen, [1; 7]);
        assert!(
            fs::read(&path).unwrap() == bytes[9..],
            "{way:?}, direct {direct}"
        );
        let mut arrived = AlignedBuffer::new(all, 4096).unwrap();
        let mut rest = &mut *arrived;
        let mut reads = Vec::new();
        let mut offset = 0;
        for size in sizes {
            let (piece, after) = rest.split_at_mut(size);
            reads.push(FileRead {
                offset,
                bytes: piece,
            });
            offset += size as u64;
            rest = after;
        }
        batch.read(&file, &mut reads, &mut |index, outcome| {
            let start: usize = sizes[..index].iter().sum();
            assert!(outcome.unwrap() == &content[start..start + sizes[index]]);
            seen[index] += 1;
        });
        assert_eq!(seen, [2; 7]);
        assert!(*arrived == *content, "{way:?}, direct {direct}");
    }
}

#[test]
fn pieces_past_the_end_of_the_region_or_of_the_file_fail_alone() {
    for way in WAYS {
        for direct in [false, true] {
            let folder = folder();
            let path = folder.path().join("file");
            fs::write(&path, content(3, 64 << 10)).unwrap();
            let options = FileMemory::options().direct_io(direct);
            let file = options.open(&path, 64 << 10).unwrap();
            let cut = OpenOptions::new().write(true).open(&path).unwrap();
            cut.set_len(40 << 10).unwrap();
            let mut buffer = AlignedBuffer::new(17 * 4096, 4096).unwrap();
            // All are adjacent, so that good and bad pieces share one operation.
            let mut reads: Vec<FileRead<'_>> = (0..17)
                .zip(buffer.chunks_mut(4096))
                .map(|(index, bytes)| FileRead {
                    offset: index * 4096,
                    bytes,
                })
                .collect();
            let mut failed = Vec::new();
            FileBatch::new(way).read(&file, &mut reads, &mut |index, outcome| match outcome {
                Ok(bytes) => assert!(bytes == &content(3, 64 << 10)[index * 4096..][..4096]),
                Err(error) => failed.push((index, error)),
            });
            failed.sort_by_key(|(index, _)| *index);
            let indices: Vec<usize> = failed.iter().map(|(index, _)| *index).collect();
            assert_eq!(indices, [10, 11, 12, 13, 14, 15, 16]);
            for (index, error) in failed {
                match index {
                    16 => assert!(matches!(error, MemoryError::OutOfBounds { .. }), "{error}"),
                    _ => assert!(
                        matches!(error, MemoryError::UnexpectedEnd { .. }),
                        "{error}"
                    ),
                }
            }
        }
    }
}

#[test]
fn a_file_that_is_read_only_refuses_every_write() {
    let folder = folder();
    let path = folder.path().join("file");
    fs::write(&path, content(3, 8192)).unwrap();
    for direct in [false, true] {
        let options = FileMemory::options().read_only(true).direct_io(direct);
        let file = options.open(&path, 8192).unwrap();
        let buffer = AlignedBuffer::new(4096, 4096).unwrap();
        let write = |offset| FileWrite {
            offset,
            bytes: &buffer,
        };
        let mut refused = 0;
        FileBatch::default().write(&file, &[write(0), write(4096)], &mut |_, outcome| {
            assert!(matches!(outcome, Err(MemoryError::ReadOnly { .. })));
            refused += 1;
        });
        assert_eq!(refused, 2);
    }
    assert!(fs::read(&path).unwrap() == content(3, 8192));
}

/// After a panic of the callback, the caller owns the buffers again.
#[test]
fn nothing_is_in_flight_after_a_panic_of_the_callback() {
    const BYTES: usize = 16 << 20;
    let folder = folder();
    let path = folder.path().join("file");
    fs::write(&path, vec![7; BYTES]).unwrap();
    let options = FileMemory::options().direct_io(true);
    let file = options.open(&path, BYTES).unwrap();
    for way in WAYS {
        let mut buffer = AlignedBuffer::new(BYTES, 4096).unwrap();
        let mut reads: Vec<FileRead<'_>> = (0..)
            .zip(buffer.chunks_mut(2 << 20))
            .map(|(index, bytes)| FileRead {
                offset: index * (2 << 20),
                bytes,
            })
            .collect();
        let read = catch_unwind(AssertUnwindSafe(|| {
            FileBatch::new(way).read(&file, &mut reads, &mut |_, _| panic!("the callback"));
        }));
        assert!(read.is_err());
        drop(reads);
        buffer.fill(1);
        std::thread::sleep(std::time::Duration::from_millis(5));
        assert!(buffer.iter().all(|byte| *byte == 1), "a late read");
    }
}

#[test]
fn a_batch_reports_its_io_method() {
    let threads = FileBatch::new(FileWay::Threads).io();
    assert!(matches!(threads, FileIo::Threads { .. }));
    assert_eq!(FileBatch::default().io(), FileIo::probe());
}
