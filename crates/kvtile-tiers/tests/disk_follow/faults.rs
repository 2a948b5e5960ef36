//! File systems that fail: at each call once, from each call on, and at random.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, SystemTime},
};

use kvtile_testkit::disk::{DiskFaults, SimulatedDisk, SplitMix64};
use kvtile_tiers::{
    cache::Clock,
    disk::{
        DiskFollower, DiskTier,
        medium::{
            FileRead, FolderMedium, LockError, LockHolder, Medium, MediumFile, MediumLock,
            MediumReadLanded, NameStanding, OpenFile,
        },
    },
    tier::{Tier, TierContext, TierMiss},
};

use crate::common::{DISK_BYTES, FolderReader, FollowRig, GROUP, chain, ended, keys};

/// Which calls fail.
#[derive(Clone, Debug)]
struct FailingCalls {
    /// Calls that succeed from now on.
    left: Arc<AtomicI64>,
    /// Whether all calls after them fail, or only one.
    forever: bool,
}

impl FailingCalls {
    fn pass(&self) -> io::Result<()> {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        match left == 0 || (left < 0 && self.forever) {
            true => Err(io::Error::other("input/output error")),
            false => Ok(()),
        }
    }
}

/// The time of a file's last write.
#[derive(Clone, Copy, Debug)]
enum FileTimes {
    Exact,
    /// In whole seconds.
    Seconds,
    /// Always the same.
    Stopped,
}

/// A folder that can only be read, and whose calls fail.
#[derive(Debug)]
struct FailingFolder(FolderMedium, FailingCalls, FileTimes);

#[derive(Debug)]
struct FailingFile(Box<dyn MediumFile>, FailingCalls, FileTimes);

fn refused() -> io::Error {
    panic!("a follower writes to its folder")
}

impl Medium for FailingFolder {
    fn name(&self) -> String {
        self.0.name()
    }

    fn create(&self) -> io::Result<()> {
        Err(refused())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.1.pass()?;
        self.0.names()
    }

    fn length(&self, file: &str) -> io::Result<Option<u64>> {
        self.1.pass()?;
        self.0.length(file)
    }

    fn read(&self, file: &str, bytes_max: u64) -> io::Result<Vec<u8>> {
        self.1.pass()?;
        self.0.read(file, bytes_max)
    }

    fn write(&self, _file: &str, _bytes: &[u8]) -> io::Result<()> {
        Err(refused())
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Err(refused())
    }

    fn remove(&self, _file: &str) -> io::Result<()> {
        Err(refused())
    }

    fn sync_folder(&self) -> io::Result<()> {
        Err(refused())
    }

    fn standing(&self) -> io::Result<NameStanding> {
        self.1.pass()?;
        self.0.standing()
    }

    fn reopen(&self) {
        self.0.reopen();
    }

    fn lock(&self, _file: &str) -> Result<Box<dyn MediumLock>, LockError> {
        Err(refused().into())
    }

    fn lock_to_read(&self, _file: &str) -> Result<Box<dyn MediumLock>, LockError> {
        Err(refused().into())
    }

    fn holder(&self, file: &str) -> io::Result<Option<LockHolder>> {
        self.1.pass()?;
        self.0.holder(file)
    }

    fn open(&self, file: &str, how: &OpenFile) -> io::Result<Box<dyn MediumFile>> {
        self.1.pass()?;
        assert!(!how.writable && !how.preallocate, "{how:?}");
        let file = self.0.open(file, how)?;
        Ok(Box::new(FailingFile(file, self.1.clone(), self.2)))
    }
}

impl MediumFile for FailingFile {
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.1.pass()?;
        self.0.read_exact_at(offset, buffer)
    }

    fn write_all_at(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Err(refused())
    }

    fn read_many(&self, reads: &mut [FileRead<'_>], landed: &mut MediumReadLanded<'_>) {
        self.0.read_many(reads, &mut |read, bytes| {
            landed(read, self.1.pass().and(bytes));
        });
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(refused())
    }

    fn standing(&self) -> io::Result<NameStanding> {
        self.1.pass()?;
        self.0.standing()
    }

    fn modified(&self) -> io::Result<Option<SystemTime>> {
        self.1.pass()?;
        let start = SystemTime::UNIX_EPOCH;
        let seconds = |at: SystemTime| {
            let since = at.duration_since(start).unwrap();
            start + Duration::from_secs(since.as_secs())
        };
        Ok(match self.2 {
            FileTimes::Exact => self.0.modified()?,
            FileTimes::Seconds => self.0.modified()?.map(seconds),
            FileTimes::Stopped => Some(start),
        })
    }

    fn is_direct(&self) -> bool {
        self.0.is_direct()
    }
}

/// Follows a changing folder while the calls fail. Returns false once none of them did.
fn follow_failing(number: i64, forever: bool) -> bool {
    let rig = FollowRig::new(0);
    let blocks = chain(1, 12);
    let others = chain(2, 20);
    let writer = rig.writer();
    writer.store(&blocks);
    let calls = FailingCalls {
        left: Arc::new(AtomicI64::new(number)),
        forever,
    };
    let folder = FolderMedium::new(rig.path());
    let medium = FailingFolder(folder, calls.clone(), FileTimes::Exact);
    let ask = |reader: &FolderReader<'_>| {
        let answer = ended(&reader.tier.ask(GROUP, &keys(&blocks)));
        reader.tier.check_integrity();
        answer
    };
    if let Ok(reader) = rig.follower_on(Arc::new(medium)) {
        reader.read(&blocks);
        ask(&reader);
        writer.forget(&blocks[7..]);
        writer.store(&others);
        for _ in 0..2 {
            reader.read(&blocks);
            reader.read(&others);
            ask(&reader);
        }
        let has_failed = calls.left.load(Ordering::SeqCst) < 0;
        // The file system works again.
        calls.left.store(i64::MAX, Ordering::SeqCst);
        let answer = ask(&reader);
        assert!(answer.failure.is_none(), "call {number}: {answer:?}");
        assert!(answer.leading <= 7, "call {number}: {answer:?}");
        for outcome in reader.read(&blocks[7..]) {
            assert!(matches!(outcome, Err(TierMiss::Absent)), "{outcome:?}");
        }
        // A block whose read failed is not offered until its record changes; the others are.
        let listed = reader.list();
        for block in blocks[..7].iter().chain(&others) {
            let there = listed.contains(&(block.key, block.parent));
            assert_eq!(
                reader.read(&[*block])[0].is_ok(),
                there,
                "call {number}: {block:?}"
            );
            assert!(there || has_failed, "call {number}: {block:?}");
        }
        writer.forget(&blocks[..7]);
        writer.store(&blocks[..7]);
        assert_eq!(ask(&reader).leading, 7, "call {number}");
        reader.read_all(&blocks[..7]);
        return has_failed;
    }
    true
}

#[test]
fn a_call_that_fails_costs_misses_only() {
    for forever in [false, true] {
        let mut number = 0;
        while follow_failing(number, forever) {
            number += 1;
        }
        println!("{number} calls failed, forever: {forever}");
        assert!(number > 50, "{number} calls");
    }
}

/// Writer and follower on a simulated disk with faults at random; the writer's faults tear records,
/// fail syncs and kill it.
#[test]
fn a_disk_with_faults_serves_no_wrong_byte() {
    let mut hits = 0;
    for seed in 0..300 {
        let mut numbers = SplitMix64::new(seed);
        let rig = FollowRig::new(0);
        let disk = SimulatedDisk::new(seed);
        let medium: Arc<dyn Medium> = Arc::new(disk.clone());
        let open = || {
            DiskTier::open_on(
                Arc::clone(&medium),
                &rig.settings(DISK_BYTES),
                &rig.context(),
            )
        };
        let mut writer = open().ok();
        let reader = rig.follower_on(Arc::clone(&medium)).unwrap();
        for _ in 0..40 {
            disk.set_faults(DiskFaults {
                read: [0, 30][numbers.index(2)],
                write: [0, 10][numbers.index(2)],
                full: [0, 20][numbers.index(2)],
                sync: [0, 6][numbers.index(2)],
            });
            let blocks = chain(
                numbers.below(4),
                1 + u32::try_from(numbers.below(12)).unwrap(),
            );
            match (&writer, numbers.below(8)) {
                (Some(tier), 0..=2) => {
                    let written = rig.writes(&blocks);
                    ended(&tier.write(written));
                }
                (Some(tier), 3 | 4) => drop(ended(&tier.sync())),
                (Some(tier), 5) => drop(tier.forget(GROUP, &keys(&blocks[blocks.len() / 2..]))),
                (None, _) => writer = open().ok(),
                (_, 6) => {
                    writer = None;
                    match numbers.index(3) {
                        0 => disk.crash(),
                        1 => disk.kill(),
                        _ => drop(disk.flip(["slots", "records"][numbers.index(2)])),
                    }
                }
                _ => {}
            }
            if numbers.once_in(2) {
                ended(&reader.tier.ask(GROUP, &keys(&blocks)));
            }
            // Compares every byte.
            hits += reader
                .read(&blocks)
                .iter()
                .filter(|outcome| outcome.is_ok())
                .count();
            reader.tier.check_integrity();
        }
    }
    println!("{hits} blocks read");
    assert!(hits > 1000, "{hits}");
}

fn with_times(rig: &FollowRig, times: FileTimes) -> Arc<dyn Medium> {
    let calls = FailingCalls {
        left: Arc::new(AtomicI64::new(i64::MAX)),
        forever: false,
    };
    Arc::new(FailingFolder(FolderMedium::new(rig.path()), calls, times))
}

/// Several writes within one tick of the clock of the file system.
#[test]
fn writes_that_do_not_change_the_time_of_the_file_are_seen() {
    let rig = FollowRig::new(0);
    let writer = rig.writer();
    let reader = rig
        .follower_on(with_times(&rig, FileTimes::Seconds))
        .unwrap();
    let blocks = chain(1, 30);
    for (at, block) in blocks.iter().enumerate() {
        writer.store(std::slice::from_ref(block));
        assert_eq!(reader.fresh(&blocks), at + 1);
    }
}

/// A clock that a test advances.
#[derive(Default)]
struct FollowClock(AtomicI64);

impl Clock for FollowClock {
    fn now(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::SeqCst).unsigned_abs())
    }
}

/// A write that was stalled between the time of the file and its bytes.
#[test]
fn a_write_without_a_time_is_seen_after_a_while() {
    let rig = FollowRig::new(0);
    let writer = rig.writer();
    let clock = Arc::new(FollowClock::default());
    let context = TierContext {
        clock: Arc::clone(&clock) as Arc<dyn Clock>,
        ..rig.context()
    };
    let medium = with_times(&rig, FileTimes::Stopped);
    let tier = DiskFollower::open_on(medium, &rig.settings(DISK_BYTES), &context).unwrap();
    let reader = FolderReader::new(tier, &rig.host);
    let blocks = chain(1, 3);
    writer.store(&blocks);
    assert_eq!(
        reader.fresh(&blocks),
        0,
        "the time of the file spares a comparison"
    );
    clock.0.store(6, Ordering::SeqCst);
    assert_eq!(reader.fresh(&blocks), 3);
}
