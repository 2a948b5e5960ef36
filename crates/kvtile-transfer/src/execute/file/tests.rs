//! Transfers of files within such small limits that many rounds overlap, on both queues.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    sync::Arc,
};

use kvtile_layout::{
    CopyPlan, LayoutError, PlanError, Selection, Shape, StridedLayout, Unit, Word,
};
use kvtile_memory::{FileMemory, MemoryError, OwnedMemoryRegion, RegionView, SystemMemory};
use kvtile_testkit::{
    Image,
    generate::{LayoutCase, TransferCase, config, transfers},
    naive_copy, poison_byte,
};
use proptest::prelude::*;

use super::{
    copy_plan_within,
    limits::FileLimits,
    pipeline::FilePipeline,
    queue::FileWay,
    staging::{FileWorker, StagingMemory},
    tiling::{FileSides, NestTiling},
};
use crate::{error::TransferError, execute::bound::BoundLayout};

/// The storage of one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SideStorage {
    Memory,
    File { direct: bool },
}

/// The bytes under a side, which are read back after the layout is dropped.
enum SideStore {
    Memory(Vec<Arc<SystemMemory>>),
    File(PathBuf, Vec<(usize, usize)>),
}

/// The seed of the bytes of a file outside all regions.
const OUTSIDE: usize = 99;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn bind(
    layout: &Arc<StridedLayout>,
    image: &Image,
    side: SideStorage,
    path: &Path,
) -> Result<(BoundLayout, SideStore), TransferError> {
    let (regions, store): (Vec<OwnedMemoryRegion>, SideStore) = match side {
        SideStorage::Memory => {
            let memory = image.iter().map(|bytes| {
                let mut memory = SystemMemory::allocate(bytes.len()).unwrap();
                memory.as_mut_slice().copy_from_slice(bytes);
                Arc::new(memory)
            });
            let memory: Vec<Arc<SystemMemory>> = memory.collect();
            let regions = memory.iter().map(|m| Arc::clone(m) as OwnedMemoryRegion);
            (regions.collect(), SideStore::Memory(memory))
        }
        SideStorage::File { direct } => {
            let alignment = usize::try_from(layout.alignment()).unwrap();
            let mut places = Vec::new();
            let mut end = 5000_usize;
            for bytes in image {
                let start = (end + 1).next_multiple_of(alignment);
                places.push((start, bytes.len()));
                end = start + bytes.len();
            }
            let byte = |at: usize| poison_byte(OUTSIDE, at as u64);
            let mut content: Vec<u8> = (0..end + 333).map(byte).collect();
            for (bytes, &(start, len)) in image.iter().zip(&places) {
                content[start..start + len].copy_from_slice(bytes);
            }
            std::fs::write(path, &content).unwrap();
            let options = FileMemory::options().direct_io(direct);
            let file = options.open(path, content.len()).unwrap();
            let file: OwnedMemoryRegion = Arc::new(file);
            let view = |&(start, len): &(usize, usize)| {
                let view = RegionView::new(Arc::clone(&file), start, len).unwrap();
                Arc::new(view) as OwnedMemoryRegion
            };
            let regions = places.iter().map(view).collect();
            (regions, SideStore::File(path.to_owned(), places))
        }
    };
    Ok((BoundLayout::new(Arc::clone(layout), regions)?, store))
}

impl SideStore {
    /// The bytes of every region. Asserts that the bytes of a file outside them are unchanged.
    fn image(self) -> Image {
        match self {
            SideStore::Memory(regions) => regions
                .into_iter()
                .map(|region| {
                    let mut memory = Arc::try_unwrap(region).unwrap();
                    memory.as_mut_slice().to_vec()
                })
                .collect(),
            SideStore::File(path, places) => {
                let mut content = std::fs::read(&path).unwrap();
                let parts = places.iter().map(|&(start, len)| {
                    let part = content[start..start + len].to_vec();
                    for (at, byte) in content.iter_mut().enumerate().skip(start).take(len) {
                        *byte = poison_byte(OUTSIDE, at as u64);
                    }
                    part
                });
                let image = parts.collect();
                let byte = |(at, byte): (usize, &u8)| *byte == poison_byte(OUTSIDE, at as u64);
                assert!(content.iter().enumerate().all(byte), "outside the regions");
                image
            }
        }
    }
}

fn resolve(case: &LayoutCase) -> Arc<StridedLayout> {
    Arc::new(StridedLayout::resolve(&case.word, &case.shape, case.alignment).unwrap())
}

/// Limits that a few kilobytes reach.
fn limits() -> impl Strategy<Value = FileLimits> {
    let size = |from: u32| (from..from + 7).prop_map(|bits| 1_u64 << bits);
    let ways = prop::sample::select(vec![FileWay::Best, FileWay::Threads]);
    (ways, size(6), size(6), size(9), size(9), 1..50_usize).prop_map(
        |(way, round_bytes, direct_run_bytes, piece_bytes, staging, round_tiles)| {
            let usize = |bytes: u64| usize::try_from(bytes).unwrap();
            FileLimits {
                way,
                round_bytes,
                round_tiles,
                round_read_bytes: 4 * round_bytes,
                // Slots are whole huge pages, so this is a number of slots.
                staging_bytes: usize(staging) << 14,
                direct_run_bytes,
                joined_run_bytes: usize(4 * piece_bytes),
                read_gap_bytes: round_bytes / 8,
                piece_bytes: usize(piece_bytes),
                in_flight_bytes: usize(6 * piece_bytes),
            }
        },
    )
}

fn sides() -> impl Strategy<Value = (SideStorage, SideStorage)> {
    let all = [
        SideStorage::Memory,
        SideStorage::File { direct: false },
        SideStorage::File { direct: true },
    ];
    let side = || prop::sample::select(all.to_vec());
    let memory = (SideStorage::Memory, SideStorage::Memory);
    (side(), side()).prop_filter("a file", move |sides| *sides != memory)
}

fn transfer(
    case: &TransferCase,
    sides: (SideStorage, SideStorage),
    limits: &FileLimits,
    folder: &Path,
) {
    let (src, dst) = (case.src.reference().unwrap(), case.dst.reference().unwrap());
    let (from_image, to_image) = (src.filled(1).unwrap(), dst.filled(2).unwrap());
    let (src_layout, dst_layout) = (resolve(&case.src), resolve(&case.dst));
    let selection = case.selection.selection();
    let plan = match CopyPlan::new(&src_layout, &dst_layout, &selection) {
        Ok(plan) => plan,
        Err(
            LayoutError::Plan(PlanError::NoCommonRefinement { .. })
            | LayoutError::Plan(PlanError::TooManyPieces { .. }),
        ) => return,
        Err(error) => panic!("{error}"),
    };
    let from = bind(&src_layout, &from_image, sides.0, &folder.join("from"));
    let to = bind(&dst_layout, &to_image, sides.1, &folder.join("to"));
    let ((from, from_store), (to, to_store)) = (from.unwrap(), to.unwrap());
    // SAFETY: the plan is of these layouts, and nothing else refers to their regions.
    unsafe { copy_plan_within(&plan, &from, &to, limits) }.unwrap();
    drop((from, to));
    let mut expected = to_image;
    naive_copy(&src, &from_image, &dst, &mut expected, &case.selection).unwrap();
    assert!(from_store.image() == from_image, "the source was written");
    assert!(to_store.image() == expected, "{sides:?}, {limits:?}");
}

#[test]
fn rounds_that_overlap_copy_what_the_naive_copy_copies_and_nothing_else() {
    let folder = folder();
    let mut runner = proptest::test_runner::TestRunner::new(config(600));
    let cases = (transfers(), sides(), limits());
    let run = runner.run(&cases, |(case, sides, limits)| {
        transfer(&case, sides, &limits, folder.path());
        Ok(())
    });
    run.unwrap();
}

/// 4 MiB in 32 blocks, with limits that split them into many rounds.
struct RoundsFixture {
    layouts: (Arc<StridedLayout>, Arc<StridedLayout>),
    images: (Image, Image),
    plan: CopyPlan,
    limits: FileLimits,
}

impl RoundsFixture {
    fn new(way: FileWay, words: (&str, &str)) -> RoundsFixture {
        let shape = Shape::key_value(32, 4, 16, 4, 128, Unit::raw(2).unwrap()).unwrap();
        let resolve = |word: &str| {
            let word = Word::parse(word).unwrap();
            Arc::new(StridedLayout::resolve(&word, &shape, 512).unwrap())
        };
        let (from, to) = (resolve(words.0), resolve(words.1));
        let image = |layout: &StridedLayout, seed: u64| -> Image {
            let regions = layout.region_bytes().iter().enumerate();
            let region = |(index, bytes): (usize, &u64)| {
                let byte = |at| poison_byte(index, at ^ (seed << 40));
                (0..*bytes).map(byte).collect()
            };
            regions.map(region).collect()
        };
        let ids: Vec<u64> = (0..32).collect();
        let turned: Vec<u64> = ids.iter().map(|id| (id * 5 + 3) % 32).collect();
        let selection = Selection::blocks(&ids, &turned, 16).unwrap();
        let mut limits = FileLimits::for_transfer(4 << 20);
        (limits.way, limits.round_bytes) = (way, 64 << 10);
        (limits.piece_bytes, limits.direct_run_bytes) = (16 << 10, 32 << 10);
        RoundsFixture {
            images: (image(&from, 1), image(&to, 2)),
            plan: CopyPlan::new(&from, &to, &selection).unwrap(),
            layouts: (from, to),
            limits,
        }
    }

    fn run(&self, from: &BoundLayout, to: &BoundLayout) -> Result<(), TransferError> {
        // SAFETY: the plan is of these layouts, and nothing else refers to their regions.
        unsafe { copy_plan_within(&self.plan, from, to, &self.limits) }
    }

    fn expected(&self) -> Image {
        let mut expected = self.images.1.clone();
        kvtile_testkit::execute(&self.plan, &self.images.0, &mut expected).unwrap();
        expected
    }
}

fn on_every_way(words: (&str, &str), test: impl Fn(&RoundsFixture, bool, &Path)) {
    for way in [FileWay::Best, FileWay::Threads] {
        for direct in [false, true] {
            let folder = folder();
            test(&RoundsFixture::new(way, words), direct, folder.path());
        }
    }
}

const STAGED: (&str, &str) = ("BLKNHC", "L|KBHNC");
const UNSTAGED: (&str, &str) = ("BLKNHC", "BLKNHC");

/// Truncated bytes are an error, never zeros, and later transfers work.
#[test]
fn a_file_cut_short_is_an_error_whatever_else_is_in_flight() {
    for words in [STAGED, UNSTAGED] {
        on_every_way(words, |fixture, direct, folder| {
            let path = folder.join("from");
            let from = SideStorage::File { direct };
            let (from, _) = bind(&fixture.layouts.0, &fixture.images.0, from, &path).unwrap();
            let to = SideStorage::Memory;
            let (to, store) = bind(&fixture.layouts.1, &fixture.images.1, to, &path).unwrap();
            let content = std::fs::read(&path).unwrap();
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(content.len() as u64 / 2 + 77).unwrap();
            match fixture.run(&from, &to) {
                Err(TransferError::Memory(error)) => {
                    assert!(
                        matches!(*error, MemoryError::UnexpectedEnd { missing, .. } if missing > 0),
                        "{error}"
                    );
                }
                other => panic!("{other:?}"),
            }
            std::fs::write(&path, &content).unwrap();
            fixture.run(&from, &to).unwrap();
            drop((from, to));
            assert!(store.image() == fixture.expected());
        });
    }
}

#[test]
fn a_file_that_may_not_be_written_is_an_error_and_keeps_its_bytes() {
    for words in [STAGED, UNSTAGED] {
        on_every_way(words, |fixture, direct, folder| {
            let path = folder.join("to");
            let from = SideStorage::Memory;
            let (from, _) = bind(&fixture.layouts.0, &fixture.images.0, from, &path).unwrap();
            let to = SideStorage::File { direct };
            let (to, store) = bind(&fixture.layouts.1, &fixture.images.1, to, &path).unwrap();
            drop(to);
            let options = FileMemory::options().direct_io(direct).read_only(true);
            let file: OwnedMemoryRegion = Arc::new(options.open_whole(&path).unwrap());
            let SideStore::File(_, places) = &store else {
                panic!("a file");
            };
            let views = places.iter().map(|&(start, len)| {
                let view = RegionView::new(Arc::clone(&file), start, len).unwrap();
                Arc::new(view) as OwnedMemoryRegion
            });
            let to = BoundLayout::new(Arc::clone(&fixture.layouts.1), views.collect()).unwrap();
            match fixture.run(&from, &to) {
                Err(TransferError::Memory(error)) => {
                    assert!(matches!(*error, MemoryError::ReadOnly { .. }), "{error}");
                }
                other => panic!("{other:?}"),
            }
            drop(to);
            assert!(store.image() == fixture.images.1);
        });
    }
}

/// As after a panic during a transfer: nothing is in flight, and the worker is reusable.
#[test]
fn a_pipeline_dropped_half_way_leaves_nothing_in_flight() {
    for words in [STAGED, UNSTAGED] {
        on_every_way(words, |fixture, direct, folder| {
            let side = SideStorage::File { direct };
            let path = folder.join("from");
            let (from, _) = bind(&fixture.layouts.0, &fixture.images.0, side, &path).unwrap();
            let to = SideStorage::Memory;
            let (to, store) = bind(&fixture.layouts.1, &fixture.images.1, to, &path).unwrap();
            let mut worker = FileWorker::take(fixture.limits.way);
            let files = FileSides::of(&from, &to, fixture.limits.round_bytes);
            let classes = fixture.plan.classes().iter();
            let tilings = classes.map(|class| {
                let nests = class.nests.iter();
                nests.map(|n| NestTiling::new(n, files).unwrap()).collect()
            });
            let tilings: Vec<Vec<NestTiling>> = tilings.collect();
            // SAFETY: the plan is of these layouts, and nothing else refers to their regions.
            let mut pipeline =
                unsafe { FilePipeline::new(&from, &to, &fixture.limits, &mut worker) };
            for (class, tilings) in fixture.plan.classes().iter().zip(&tilings) {
                for (nest, tiling) in class.nests.iter().zip(tilings) {
                    let start = fixture.plan.start(nest, &class.pairs[0]);
                    for tile in tiling.tiles(start) {
                        let nest = tiling.nest(&tile);
                        pipeline.push(tile, nest).unwrap();
                    }
                }
            }
            drop(pipeline);
            let queue = worker.queue();
            assert_eq!(queue.in_flight(), 0);
            assert!(worker.staging.is_free());
            worker.give_back();
            fixture.run(&from, &to).unwrap();
            drop((from, to));
            assert!(store.image() == fixture.expected());
        });
    }
}

/// Staging memory stays within its limit for scattered sources, and is reused.
#[test]
fn staging_is_bounded_and_used_again() {
    let mut staging = StagingMemory::default();
    let max = 8 << 20;
    let mut taken = Vec::new();
    while let Some(staged) = staging.take(1 << 20, max).unwrap() {
        taken.push(staged);
        assert!(taken.len() < 100);
    }
    assert_eq!(taken.len(), 4, "slots of whole huge pages");
    assert!(staging.total() <= max);
    let first = taken[0];
    staging.give_back(first.slot);
    let again = staging.take(2 << 20, max).unwrap().unwrap();
    assert_eq!(again.start, first.start);
    staging.give_back_all();
    // A slot that exceeds the limit is granted only alone.
    let large = staging.take(20 << 20, max).unwrap().unwrap();
    assert!(staging.take(1, max).unwrap().is_none());
    assert_eq!(staging.total(), 20 << 20);
    staging.give_back(large.slot);
    assert!(staging.is_free());
}
