//! Layouts over memory and files whose every byte the test knows, padding included.
#![expect(
    dead_code,
    reason = "each test binary uses another part of what they share"
)]
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kvtile_layout::{Shape, tradition::LayoutSpec};
use kvtile_memory::{FileMemory, OwnedMemoryRegion, RegionView, SystemMemory};
use kvtile_testkit::{Image, generate::LayoutCase, poison_byte};
use kvtile_transfer::{PhysicalLayout, TransferError};

/// A folder on the filesystem that holds the build, which is seldom tmpfs.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Where the regions of a layout are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Memory,
    File { direct: bool },
}

pub(crate) const PLACES: [Place; 3] = [
    Place::Memory,
    Place::File { direct: false },
    Place::File { direct: true },
];

/// The bytes under a layout, to be read back when the layout is gone.
pub(crate) enum Store {
    Memory(Vec<Arc<SystemMemory>>),
    File {
        path: PathBuf,
        regions: Vec<(usize, usize)>,
    },
}

/// The number of the region whose poison the gaps between the regions of a file have.
const GAP: usize = 77;

/// The layout of `case` over the bytes of `image`.
pub(crate) fn over_image(
    case: &LayoutCase,
    image: &Image,
    place: Place,
    folder: &Path,
) -> Result<(PhysicalLayout, Store), TransferError> {
    let alignment = usize::try_from(case.alignment).unwrap();
    let (regions, store) = match place {
        Place::Memory => memory_with(image),
        Place::File { direct } => file_with(image, alignment, direct, folder),
    };
    let layout = PhysicalLayout::builder()
        .with_shape(case.shape.clone(), case.alignment)
        .layout(LayoutSpec::Word(case.word.clone()))
        .with_memory_regions(regions)
        .build()?;
    Ok((layout, store))
}

fn memory_with(image: &Image) -> (Vec<OwnedMemoryRegion>, Store) {
    let regions: Vec<Arc<SystemMemory>> = image
        .iter()
        .map(|bytes| {
            let options = SystemMemory::options().huge_pages(false);
            let mut memory = options.allocate(bytes.len()).unwrap();
            memory.as_mut_slice().copy_from_slice(bytes);
            Arc::new(memory)
        })
        .collect();
    let shared = regions.iter();
    let shared = shared.map(|region| Arc::clone(region) as OwnedMemoryRegion);
    (shared.collect(), Store::Memory(regions))
}

/// One file for all regions. The first starts at an odd place where the alignment allows it, and
/// what lies between them is poisoned.
fn file_with(
    image: &Image,
    alignment: usize,
    direct: bool,
    folder: &Path,
) -> (Vec<OwnedMemoryRegion>, Store) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("regions-{number}"));
    let mut end = 4093;
    let mut places = Vec::new();
    for bytes in image {
        let start = (end + 17usize).next_multiple_of(alignment);
        places.push((start, bytes.len()));
        end = start + bytes.len();
    }
    end += 1001;
    let mut content: Vec<u8> = (0..end).map(|at| poison_byte(GAP, at as u64)).collect();
    for (bytes, &(start, size)) in image.iter().zip(&places) {
        content[start..start + size].copy_from_slice(bytes);
    }
    std::fs::write(&path, content).unwrap();
    let options = FileMemory::options().direct_io(direct);
    let file: OwnedMemoryRegion = Arc::new(options.open(&path, end).unwrap());
    let regions = places
        .iter()
        .map(|&(start, size)| {
            let view = RegionView::new(Arc::clone(&file), start, size).unwrap();
            Arc::new(view) as OwnedMemoryRegion
        })
        .collect();
    let store = Store::File {
        path,
        regions: places,
    };
    (regions, store)
}

impl Store {
    /// The bytes of every region. Nobody holds the layout any more, and what lies between the
    /// regions of a file is as it was.
    pub(crate) fn image(self) -> Image {
        match self {
            Store::Memory(regions) => regions
                .into_iter()
                .map(|region| {
                    let mut memory = Arc::try_unwrap(region).unwrap();
                    memory.as_mut_slice().to_vec()
                })
                .collect(),
            Store::File { path, regions } => {
                let content = std::fs::read(&path).unwrap();
                std::fs::remove_file(&path).unwrap();
                let mut end = 0;
                for &(start, size) in regions.iter().chain([&(content.len(), 0)]) {
                    for (at, byte) in content.iter().enumerate().take(start).skip(end) {
                        let expected = poison_byte(GAP, at as u64);
                        assert_eq!(*byte, expected, "byte {at} between the regions");
                    }
                    end = start + size;
                }
                let part = |&(start, size): &(usize, usize)| content[start..start + size].to_vec();
                regions.iter().map(part).collect()
            }
        }
    }
}

/// A layout of `word` in system memory.
pub(crate) fn in_memory(shape: &Shape, word: &str) -> PhysicalLayout {
    PhysicalLayout::builder()
        .with_shape(shape.clone(), 1)
        .layout(word.parse::<LayoutSpec>().unwrap())
        .allocate_system()
        .build()
        .unwrap()
}
