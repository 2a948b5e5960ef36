//! Layouts over memory and files whose every byte the test controls, padding included.
#![expect(dead_code, reason = "each test binary uses a different subset")]
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::{
    alloc,
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kvtile_layout::{Shape, tradition::LayoutSpec};
use kvtile_memory::{
    BorrowedMemory, FileMemory, OwnedMemoryRegion, RegionView, StorageKind, SystemMemory,
};
use kvtile_testkit::{Image, generate::LayoutCase, poison_byte};
use kvtile_transfer::{PhysicalLayout, TransferError};

/// A folder on the filesystem of the build, which is seldom tmpfs.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The storage of the regions of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoragePlace {
    Memory,
    Borrowed,
    File { direct: bool },
}

pub(crate) const PLACES: [StoragePlace; 4] = [
    StoragePlace::Memory,
    StoragePlace::Borrowed,
    StoragePlace::File { direct: false },
    StoragePlace::File { direct: true },
];

/// The bytes under a layout, which are read back after the layout is dropped.
pub(crate) enum RegionStore {
    Memory(Vec<Arc<SystemMemory>>),
    Borrowed(Vec<Arc<HeapBytes>>),
    File {
        path: PathBuf,
        regions: Vec<(usize, usize)>,
    },
}

/// Heap memory of exactly the region's size, so that a sanitizer detects an access one byte beyond.
pub(crate) struct HeapBytes {
    bytes: NonNull<u8>,
    layout: alloc::Layout,
}

// SAFETY: it owns its bytes, and lends them only through `&mut self`.
unsafe impl Send for HeapBytes {}
// SAFETY: as above.
unsafe impl Sync for HeapBytes {}

impl HeapBytes {
    fn with(content: &[u8], alignment: usize) -> HeapBytes {
        let layout = alloc::Layout::from_size_align(content.len(), alignment).unwrap();
        // SAFETY: no region has a size of zero.
        let bytes = unsafe { alloc::alloc(layout) };
        let bytes = NonNull::new(bytes).unwrap();
        let mut heap = HeapBytes { bytes, layout };
        let (to, from) = (heap.bytes, NonNull::from(content).cast());
        // SAFETY: `alloc` returned that many bytes, and nothing else refers to them.
        unsafe { to.copy_from_nonoverlapping(from, content.len()) };
        assert_eq!(heap.bytes_mut(), content);
        heap
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `with` filled that many bytes; `&mut self` excludes all other access, since
        // regions over them keep the `Arc`.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr(), self.layout.size()) }
    }
}

impl Drop for HeapBytes {
    fn drop(&mut self) {
        // SAFETY: allocated in `with` with this layout; no regions over it exist once the `Arc` is
        // dropped.
        unsafe { alloc::dealloc(self.bytes.as_ptr(), self.layout) };
    }
}

/// The seed of the poison bytes between the regions of a file.
const GAP: usize = 77;

/// The layout of `case` over the bytes of `image`.
pub(crate) fn over_image(
    case: &LayoutCase,
    image: &Image,
    place: StoragePlace,
    folder: &Path,
) -> Result<(PhysicalLayout, RegionStore), TransferError> {
    let alignment = usize::try_from(case.alignment).unwrap();
    let (regions, store) = match place {
        StoragePlace::Memory => memory_with(image),
        StoragePlace::Borrowed => borrowed_with(image, alignment),
        StoragePlace::File { direct } => file_with(image, alignment, direct, folder),
    };
    let layout = PhysicalLayout::builder()
        .with_aligned_shape(case.shape.clone(), case.alignment)
        .layout(LayoutSpec::Word(case.word.clone()))
        .with_memory_regions(regions)
        .build()?;
    Ok((layout, store))
}

fn memory_with(image: &Image) -> (Vec<OwnedMemoryRegion>, RegionStore) {
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
    (shared.collect(), RegionStore::Memory(regions))
}

fn borrowed_with(image: &Image, alignment: usize) -> (Vec<OwnedMemoryRegion>, RegionStore) {
    let heaps = image
        .iter()
        .map(|bytes| Arc::new(HeapBytes::with(bytes, alignment)));
    let heaps: Vec<Arc<HeapBytes>> = heaps.collect();
    let regions = heaps.iter().map(|heap| {
        let (size, keep) = (heap.layout.size(), Arc::clone(heap));
        // SAFETY: the bytes are valid and initialised as long as `keep` is held, and nothing else
        // uses them before it is dropped.
        let region = unsafe { BorrowedMemory::new(heap.bytes, size, keep, StorageKind::System) };
        Arc::new(region.unwrap()) as OwnedMemoryRegion
    });
    (regions.collect(), RegionStore::Borrowed(heaps))
}

/// One file for all regions. The first starts at an odd offset where the alignment allows it, and
/// the bytes between regions are poisoned.
fn file_with(
    image: &Image,
    alignment: usize,
    direct: bool,
    folder: &Path,
) -> (Vec<OwnedMemoryRegion>, RegionStore) {
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
    let store = RegionStore::File {
        path,
        regions: places,
    };
    (regions, store)
}

impl RegionStore {
    /// The bytes of every region. The layout must have been dropped. Asserts that the bytes between
    /// the regions of a file are unchanged.
    pub(crate) fn image(self) -> Image {
        match self {
            RegionStore::Memory(regions) => regions
                .into_iter()
                .map(|region| {
                    let mut memory = Arc::try_unwrap(region).unwrap();
                    memory.as_mut_slice().to_vec()
                })
                .collect(),
            RegionStore::Borrowed(heaps) => heaps
                .into_iter()
                .map(|heap| {
                    let mut heap = Arc::into_inner(heap).unwrap();
                    heap.bytes_mut().to_vec()
                })
                .collect(),
            RegionStore::File { path, regions } => {
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
        .with_shape(shape.clone())
        .layout(word.parse::<LayoutSpec>().unwrap())
        .allocate_system()
        .build()
        .unwrap()
}

/// Asserts that `remote`, which was made from the descriptor of `local`, gives every plane of every
/// block and layer the same address, or the same error.
pub(crate) fn same_addresses(remote: &PhysicalLayout, local: &PhysicalLayout) {
    assert!(remote.is_remote() && !local.is_remote());
    let shape = local.shape();
    let [blocks, layers] =
        [shape.num_blocks(), shape.num_layers()].map(|count| usize::try_from(count).unwrap());
    // Includes one index past the end of each axis.
    for block in 0..=blocks {
        for layer in 0..=layers {
            for plane in 0..=shape.planes().len() {
                let place = |layout: &PhysicalLayout| {
                    let found = layout.memory_region(block, layer, plane);
                    found.map_err(|error| error.to_string())
                };
                assert_eq!(place(remote), place(local));
            }
        }
    }
}
