//! Direct and buffered transfers of one file against a vector as the model.
#![expect(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "common/folder.rs"]
mod folder;

use folder::folder;
use kvtile_memory::{AlignedBuffer, DirectIo, FileMemory};
use proptest::prelude::*;
use rustix::io::{Errno, ReadWriteFlags};
use std::io::IoSliceMut;

const FILE_BYTES_MAX: usize = 70_000;

#[derive(Debug, Clone)]
enum FileStep {
    Write(TransferRange, u8),
    Read(TransferRange),
    Sync,
    /// Closes and reopens the file, with or without direct I/O.
    Reopen(bool),
}

/// A range of the file, and the offset of its bytes in an aligned buffer.
#[derive(Debug, Clone)]
struct TransferRange {
    offset: usize,
    len: usize,
    address: usize,
}

impl TransferRange {
    /// Clamped to a file of `size` bytes.
    fn within(&self, size: usize) -> (usize, usize) {
        let offset = self.offset.min(size);
        (offset, self.len.min(size - offset))
    }
}

fn ranges() -> impl Strategy<Value = TransferRange> {
    // Near multiples of common alignments, and anywhere.
    let position = || {
        prop_oneof![
            (0..18_usize, 0..3_usize)
                .prop_map(|(page, past)| (page * 4096 + past).saturating_sub(1)),
            (0..18_usize).prop_map(|page| page * 4096),
            (0..140_usize).prop_map(|sector| sector * 512),
            0..FILE_BYTES_MAX,
        ]
    };
    let address = prop_oneof![3 => Just(0_usize), 1 => Just(512), 1 => 0..4096_usize];
    (position(), position(), address, any::<bool>()).prop_map(|(offset, len, address, fit)| {
        TransferRange {
            offset,
            len,
            // If address and offset are congruent modulo the alignment, the middle is direct.
            address: if fit { offset % 4096 } else { address },
        }
    })
}

fn steps() -> impl Strategy<Value = Vec<FileStep>> {
    let step = prop_oneof![
        5 => (ranges(), any::<u8>()).prop_map(|(range, seed)| FileStep::Write(range, seed)),
        5 => ranges().prop_map(FileStep::Read),
        1 => Just(FileStep::Sync),
        1 => any::<bool>().prop_map(FileStep::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

fn run(size: usize, steps: &[FileStep]) {
    let folder = folder();
    let path = folder.path().join("file");
    let options = |direct| FileMemory::options().direct_io(direct);
    let mut file = options(true).create_new(&path, size).unwrap();
    let mut model = vec![0_u8; size];
    let mut buffer = AlignedBuffer::new(FILE_BYTES_MAX + 2 * 4096, 4096).unwrap();
    for step in steps {
        match step {
            FileStep::Write(range, seed) => {
                let (offset, len) = range.within(size);
                let bytes = &mut buffer[range.address..range.address + len];
                for (index, byte) in bytes.iter_mut().enumerate() {
                    *byte = (index ^ index >> 8) as u8 ^ seed;
                }
                file.write_all_at(offset as u64, bytes).unwrap();
                model[offset..offset + len].copy_from_slice(bytes);
            }
            FileStep::Read(range) => {
                let (offset, len) = range.within(size);
                buffer.fill(0xA5);
                let bytes = &mut buffer[range.address..range.address + len];
                file.read_exact_at(offset as u64, bytes).unwrap();
                assert!(bytes == &model[offset..offset + len], "{range:?}");
                let around = buffer[..range.address]
                    .iter()
                    .chain(&buffer[range.address + len..]);
                assert!(around.clone().all(|byte| *byte == 0xA5), "{range:?}");
            }
            FileStep::Sync => file.sync_data().unwrap(),
            FileStep::Reopen(direct) => file = options(*direct).open(&path, size).unwrap(),
        }
    }
    assert!(
        !matches!(file.direct_io(), DirectIo::Unavailable { reason } if reason.contains("refused")),
        "an aligned transfer was refused"
    );
    file.sync_data().unwrap();
    drop(file);
    assert!(std::fs::read(&path).unwrap() == model);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(20),
        ..ProptestConfig::default()
    })]

    #[test]
    fn odd_offsets_lengths_and_addresses_agree_with_a_vector(
        size in 1..FILE_BYTES_MAX,
        steps in steps(),
    ) {
        run(size, &steps);
    }
}

/// Whether the page cache holds the byte at `offset`; `None` if the kernel does not report it. The
/// probe may bring the page in, so each page is probed once.
fn cached(file: &FileMemory, offset: u64) -> Option<bool> {
    let mut byte = [0];
    let buffers = &mut [IoSliceMut::new(&mut byte)];
    match rustix::io::preadv2(file, buffers, offset, ReadWriteFlags::NOWAIT) {
        Ok(_) => Some(true),
        Err(Errno::AGAIN) => Some(false),
        Err(errno) => {
            eprintln!("the page cache is not checked: {errno}");
            None
        }
    }
}

#[test]
fn aligned_middles_pass_by_the_page_cache_and_edges_do_not() {
    const MIB: usize = 1 << 20;
    let folder = folder();
    let options = FileMemory::options().direct_io(true);
    let file = options.scratch(folder.path(), 2 * MIB).unwrap();
    let DirectIo::Active { align } = file.direct_io() else {
        eprintln!("skipped: {:?}", file.direct_io());
        return;
    };
    let mut buffer = AlignedBuffer::new(MIB + 2 * align, align).unwrap();
    buffer.fill(3);
    // From 1 byte before a multiple of the alignment to 1 byte after one.
    let len = MIB + 2;
    let start = align - 1;
    let bytes = &mut buffer[align - 1..align - 1 + len];
    file.write_all_at(start as u64, bytes).unwrap();
    let middle = (start + 1 + MIB / 2) as u64;
    let Some(in_cache) = cached(&file, middle) else {
        return;
    };
    assert!(!in_cache, "the middle was written directly");
    assert_eq!(cached(&file, start as u64), Some(true));
    assert_eq!(cached(&file, (start + len - 1) as u64), Some(true));

    bytes.fill(0);
    file.read_exact_at(start as u64, bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 3));
    let other = (start + 1 + MIB / 4) as u64;
    assert_eq!(cached(&file, other), Some(false), "it was read directly");

    // A misaligned address makes the whole transfer buffered.
    file.read_exact_at((start + 1) as u64, &mut buffer[1..=MIB / 2])
        .unwrap();
    assert_eq!(cached(&file, (start + 1 + MIB / 8) as u64), Some(true));
}

/// Concurrent direct and buffered transfers of disjoint ranges share pages.
#[test]
fn threads_on_disjoint_ranges_do_not_disturb_each_other() {
    const THREADS: usize = 4;
    const PART: usize = 3 * 4096 + 1234;
    const SIZE: usize = PART * THREADS * 8;
    let folder = folder();
    let path = folder.path().join("file");
    let options = FileMemory::options().direct_io(true);
    let file = options.create_new(&path, SIZE).unwrap();
    let value = |index: usize, round: usize| (index / PART * 31 + index + round) as u8;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let file = &file;
            scope.spawn(move || {
                let mut buffer = AlignedBuffer::new(PART + 4096, 4096).unwrap();
                for round in 0..20 {
                    for part in (thread..SIZE / PART).step_by(THREADS) {
                        let start = part * PART;
                        // The address is congruent to the offset, so that whole pages are direct.
                        let bytes = &mut buffer[start % 4096..start % 4096 + PART];
                        for (index, byte) in bytes.iter_mut().enumerate() {
                            *byte = value(start + index, round);
                        }
                        file.write_all_at(start as u64, bytes).unwrap();
                        bytes.fill(0);
                        file.read_exact_at(start as u64, bytes).unwrap();
                        for (index, byte) in bytes.iter().enumerate() {
                            assert_eq!(*byte, value(start + index, round), "{index} of {part}");
                        }
                    }
                }
            });
        }
    });
    file.sync_data().unwrap();
    let expected: Vec<u8> = (0..SIZE).map(|index| value(index, 19)).collect();
    assert!(std::fs::read(&path).unwrap() == expected);
}
