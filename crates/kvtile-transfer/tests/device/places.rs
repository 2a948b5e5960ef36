//! Layouts over memory that devices reach, whose every byte the test controls.

use std::{path::Path, sync::Arc};

use kvtile_device::{
    Device, DeviceMemory, DeviceQueue, PinnedMemory, RegisterOptions, RegisteredMemory,
};
use kvtile_layout::tradition::LayoutSpec;
use kvtile_memory::{OwnedMemoryRegion, RegionView, SystemMemory};
use kvtile_standin::Standin;
use kvtile_testkit::{Image, generate::LayoutCase, poison_byte};
use kvtile_transfer::PhysicalLayout;

use crate::common::{RegionStore, StoragePlace, over_image};

/// Where a layout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DevicePlace {
    /// Memory of the device.
    Device,
    /// Memory that the driver pinned.
    Pinned,
    /// Registered memory, in pieces of a page.
    Registered,
    /// Memory that is not pinned.
    Pageable,
    /// A file.
    File,
}

/// The bytes under a layout.
pub(crate) enum DeviceStore {
    /// One allocation at an address of the device; the regions at these offsets and sizes.
    Reached {
        memory: OwnedMemoryRegion,
        address: Vec<(u64, usize)>,
        is_host: bool,
    },
    Other(RegionStore),
}

/// The seed of the poison bytes between regions.
const GAP: usize = 78;

/// The layout of `case` over the bytes of `image`. Regions lie at odd offsets of one allocation, where the alignment allows
/// it, with poisoned bytes between them.
pub(crate) fn place(
    case: &LayoutCase,
    image: &Image,
    at: DevicePlace,
    (standin, device, folder): (&Standin, &Device, &Path),
) -> (PhysicalLayout, DeviceStore) {
    let other = match at {
        DevicePlace::Pageable => Some(StoragePlace::Memory),
        DevicePlace::File => Some(StoragePlace::File { direct: false }),
        _ => None,
    };
    if let Some(other) = other {
        let (layout, store) = over_image(case, image, other, folder).unwrap();
        return (layout, DeviceStore::Other(store));
    }
    let alignment = usize::try_from(case.alignment).unwrap();
    let mut end = 4093;
    let mut places = Vec::new();
    for bytes in image {
        let start = (end + 17usize).next_multiple_of(alignment);
        places.push(start..start + bytes.len());
        end = start + bytes.len();
    }
    end += 1001;
    let memory: OwnedMemoryRegion = match at {
        DevicePlace::Device => Arc::new(DeviceMemory::allocate(device, end).unwrap()),
        DevicePlace::Pinned => Arc::new(PinnedMemory::allocate(device, end).unwrap()),
        _ => {
            let options = SystemMemory::options().huge_pages(false);
            let memory = Arc::new(options.allocate(end).unwrap());
            let options = RegisterOptions {
                piece_bytes: 4096,
                threads: 1,
            };
            Arc::new(RegisteredMemory::register(device, memory, options).unwrap())
        }
    };
    let address = device.ranges_of(&*memory, 0..end).unwrap();
    let mut content: Vec<u8> = (0..end).map(|at| poison_byte(GAP, at as u64)).collect();
    for (bytes, place) in image.iter().zip(&places) {
        content[place.clone()].copy_from_slice(bytes);
    }
    let mut from = 0;
    for &(address, bytes) in &address {
        assert!(standin.poke(address, &content[from..from + bytes]));
        from += bytes;
    }
    let regions = places.iter().map(|place| {
        let view = RegionView::new(Arc::clone(&memory), place.start, place.len()).unwrap();
        Arc::new(view) as OwnedMemoryRegion
    });
    let layout = PhysicalLayout::builder()
        .with_aligned_shape(case.shape.clone(), case.alignment)
        .layout(LayoutSpec::Word(case.word.clone()))
        .with_memory_regions(regions.collect())
        .build()
        .unwrap();
    let store = DeviceStore::Reached {
        memory,
        address,
        is_host: at != DevicePlace::Device,
    };
    (layout, store)
}

impl DeviceStore {
    /// Another user of the memory, who knows no more than that the transfer has ended: reads all of it, and writes all of it
    /// where `writes`. The checker complains where that is not enough.
    pub(crate) fn touch(&self, standin: &Standin, foreign: &DeviceQueue, writes: bool) {
        let DeviceStore::Reached {
            address, is_host, ..
        } = self
        else {
            return;
        };
        for &(start, bytes) in address {
            if *is_host {
                assert!(standin.host_access(start, bytes, writes, "the engine"));
                continue;
            }
            let scratch = DeviceMemory::allocate(foreign.device(), bytes).unwrap();
            // SAFETY: the scratch is of this test alone, and the queue is idle before it is freed; the memory belongs to
            // the caller, whose transfer has ended.
            unsafe { foreign.copy(scratch.device_address(), start, bytes) }.unwrap();
            if writes {
                // SAFETY: as above.
                unsafe { foreign.copy(start, scratch.device_address(), bytes) }.unwrap();
            }
            foreign.synchronize().unwrap();
        }
    }

    /// The bytes of every region of `image`, after the layout was dropped. Asserts that the bytes between are unchanged.
    pub(crate) fn image(self, standin: &Standin, image: &Image, alignment: u64) -> Image {
        let (memory, address) = match self {
            DeviceStore::Other(store) => return store.image(),
            DeviceStore::Reached {
                memory, address, ..
            } => (memory, address),
        };
        let mut content = Vec::new();
        for (start, bytes) in address {
            let mut part = vec![0; bytes];
            assert!(standin.peek(start, &mut part));
            content.extend(part);
        }
        assert_eq!(content.len(), memory.size());
        let alignment = usize::try_from(alignment).unwrap();
        let mut found = Vec::new();
        let (mut end, mut cursor) = (4093, 0);
        let check = |range: std::ops::Range<usize>| {
            for at in range {
                assert_eq!(
                    content[at],
                    poison_byte(GAP, at as u64),
                    "byte {at} between"
                );
            }
        };
        for bytes in image {
            let start = (end + 17usize).next_multiple_of(alignment);
            check(cursor..start);
            end = start + bytes.len();
            cursor = end;
            found.push(content[start..end].to_vec());
        }
        check(cursor..content.len());
        found
    }
}
