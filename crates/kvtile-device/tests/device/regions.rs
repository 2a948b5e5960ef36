//! The contract of `MemoryRegion`, checked for every kind of region that devices reach.

use kvtile_device::{
    Device, DeviceError, DeviceMemory, ImportedMemory, PinnedMemory, RegisterOptions,
    RegisteredMemory,
};
use kvtile_memory::{
    MemoryDescriptor, MemoryError, MemoryRegion, OwnedMemoryRegion, RegionView, SharedMemory,
    StorageKind, SystemMemory,
};
use kvtile_standin::{Standin, StandinLeaks, StandinOptions};
use std::ptr::with_exposed_provenance_mut;
use std::sync::Arc;

const SIZE: usize = 100_003;

/// Pieces of four pages.
fn small_pieces() -> RegisterOptions {
    RegisterOptions {
        piece_bytes: 4 * rustix::param::page_size(),
        threads: 2,
    }
}

fn device(standin: &Standin) -> Device {
    standin.driver().unwrap().device(0).unwrap()
}

/// Checks the contract that all kinds share; `make` returns a fresh region of [`SIZE`] bytes and the address by which
/// devices reach its first byte.
fn conforms(standin: &Standin, device: &Device, make: impl Fn() -> (OwnedMemoryRegion, u64)) {
    let (region, address) = make();
    eprintln!("{region:?}");
    assert_eq!(region.size(), SIZE);
    assert_eq!(region.nixl_descriptor(), None);
    let itself = std::ptr::from_ref(region.as_any()).cast::<()>();
    assert_eq!(itself, Arc::as_ptr(&region).cast());
    let descriptor = MemoryDescriptor::of(&*region);
    assert_eq!(descriptor.end(), Some(region.addr() + SIZE));

    // The device reads what the host wrote, and writes what the host reads, at both ends.
    let queue = device.queue().unwrap();
    let bounce = PinnedMemory::allocate(device, 2).unwrap();
    for offset in [0, SIZE - 1] {
        let there = device_address(&region, address, offset);
        // SAFETY: both places are of this test alone, and live until the queue is idle.
        unsafe { queue.fill(there, 0x5C, 1) }.unwrap();
        // SAFETY: as above.
        unsafe { queue.copy(bounce.device_address(), there, 1) }.unwrap();
        queue.synchronize().unwrap();
        assert_eq!(host_byte(&bounce, 0), 0x5C);
        if region.storage_kind().is_addressable() {
            assert_eq!(host_byte(&*region, offset), 0x5C);
        }
    }

    // Two regions that live at the same time share no byte.
    let (other, _) = make();
    let (one, two) = (
        MemoryDescriptor::of(&*region),
        MemoryDescriptor::of(&*other),
    );
    assert!(!one.overlaps(&two));

    // Views are checked parts, and keep the region alive.
    let view = RegionView::new(Arc::clone(&region), 7, 100).unwrap();
    assert_eq!(view.addr(), region.addr() + 7);
    assert_eq!(view.storage_kind(), region.storage_kind());
    assert!(RegionView::new(Arc::clone(&region), 1, SIZE).is_err());
    drop(region);
    let mut byte = [0];
    assert!(standin.peek(device_address(view.parent(), address, 0), &mut byte));
    assert_eq!(byte, [0x5C]);
    let moved = std::thread::spawn(move || drop(view));
    moved.join().unwrap();
}

/// The address by which devices reach a byte of a region whose first byte they reach at `address`.
fn device_address(region: &OwnedMemoryRegion, address: u64, offset: usize) -> u64 {
    match region.as_any().downcast_ref::<RegisteredMemory>() {
        Some(memory) => memory.device_ranges(offset..offset + 1).next().unwrap().0,
        None => address + offset as u64,
    }
}

fn host_byte(region: &dyn MemoryRegion, offset: usize) -> u8 {
    assert!(region.storage_kind().is_addressable() && offset < region.size());
    let byte: *mut u8 = with_exposed_provenance_mut(region.addr() + offset);
    // SAFETY: inside a region of this process, which no work uses now.
    unsafe { byte.read() }
}

fn clean(standin: &Standin) {
    assert_eq!(standin.complaints(), []);
    assert_eq!(standin.leaks(), StandinLeaks::default());
}

#[test]
fn device_memory_conforms() {
    let standin = Standin::start(StandinOptions::seeded(1));
    let device = device(&standin);
    let make = || {
        let memory = DeviceMemory::allocate(&device, SIZE).unwrap();
        assert_eq!(memory.storage_kind(), StorageKind::Device(0));
        let address = memory.device_address();
        (Arc::new(memory) as OwnedMemoryRegion, address)
    };
    conforms(&standin, &device, make);
    drop(device);
    clean(&standin);
}

#[test]
fn pinned_memory_conforms_and_is_zeroed() {
    let standin = Standin::start(StandinOptions::seeded(2));
    let device = device(&standin);
    let make = || {
        let memory = PinnedMemory::allocate(&device, SIZE).unwrap();
        assert_eq!(memory.storage_kind(), StorageKind::Pinned);
        assert!((0..SIZE).all(|offset| host_byte(&memory, offset) == 0));
        let address = memory.device_address();
        (Arc::new(memory) as OwnedMemoryRegion, address)
    };
    conforms(&standin, &device, make);
    drop(device);
    clean(&standin);
}

#[test]
fn registered_memory_conforms_whatever_its_device_address_is() {
    for aliases in [false, true] {
        let standin = Standin::start(StandinOptions {
            aliases,
            ..StandinOptions::seeded(3)
        });
        let device = device(&standin);
        let registered = |region: OwnedMemoryRegion| {
            let host = region.addr() as u64;
            let memory = RegisteredMemory::register(&device, region, small_pieces()).unwrap();
            assert_eq!(memory.storage_kind(), StorageKind::Pinned);
            assert_eq!(
                memory.pieces().len(),
                SIZE.div_ceil(small_pieces().piece_bytes)
            );
            let address = memory.pieces()[0].device_address;
            assert_eq!(address == host, !aliases);
            (Arc::new(memory) as OwnedMemoryRegion, address)
        };
        conforms(&standin, &device, || {
            registered(Arc::new(SystemMemory::allocate(SIZE).unwrap()))
        });
        conforms(&standin, &device, || {
            registered(Arc::new(SharedMemory::create(SIZE).unwrap()))
        });
        drop(device);
        clean(&standin);
    }
}

#[test]
fn imported_memory_conforms_and_shares_its_buffer() {
    let standin = Standin::start(StandinOptions::seeded(4));
    let device = device(&standin);
    let borrow = || {
        let memory = Arc::new(DeviceMemory::allocate(&device, SIZE + 512).unwrap());
        let address = memory.device_address() + 256;
        // SAFETY: the memory is the keep-alive, and this test alone uses it.
        let region = unsafe { ImportedMemory::borrow(&device, address, SIZE, memory) }.unwrap();
        assert!(region.keep_alive().is_some());
        (Arc::new(region) as OwnedMemoryRegion, address)
    };
    conforms(&standin, &device, borrow);
    let originals = std::cell::RefCell::new(Vec::new());
    let open = || {
        let memory = Arc::new(DeviceMemory::allocate(&device, SIZE).unwrap());
        let handle = memory.export().unwrap();
        // SAFETY: the memory lives in `originals`, and this test alone uses it.
        let region = unsafe { ImportedMemory::open(&device, &handle) }.unwrap();
        // SAFETY: as above.
        let same = unsafe {
            ImportedMemory::borrow(
                &device,
                memory.device_address(),
                SIZE,
                Arc::clone(&memory) as _,
            )
        };
        // Two mappings of the same bytes have other addresses and one buffer.
        assert_ne!(region.addr(), memory.addr());
        assert_eq!(region.buffer_id(), same.unwrap().buffer_id());
        originals.borrow_mut().push(memory);
        let address = region.device_address();
        (Arc::new(region) as OwnedMemoryRegion, address)
    };
    conforms(&standin, &device, open);
    originals.borrow_mut().clear();
    drop(device);
    clean(&standin);
}

#[test]
fn sizes_and_kinds_that_no_region_has_are_refused() {
    let standin = Standin::start(StandinOptions::seeded(5));
    let device = device(&standin);
    let zero = |error| matches!(error, DeviceError::Memory(MemoryError::ZeroSize));
    assert!(zero(DeviceMemory::allocate(&device, 0).unwrap_err()));
    assert!(zero(PinnedMemory::allocate(&device, 0).unwrap_err()));
    let huge = DeviceMemory::allocate(&device, usize::MAX).unwrap_err();
    assert!(
        matches!(huge, DeviceError::Memory(MemoryError::TooLarge { .. })),
        "{huge}"
    );

    let pinned: OwnedMemoryRegion = Arc::new(PinnedMemory::allocate(&device, 4096).unwrap());
    let again = RegisteredMemory::register(&device, pinned, small_pieces()).unwrap_err();
    assert_eq!(
        again.to_string(),
        "pinned memory of this process cannot be registered with a device; only memory of this process can"
    );
    let system: OwnedMemoryRegion = Arc::new(SystemMemory::allocate(SIZE).unwrap());
    let options = RegisterOptions {
        piece_bytes: 1000,
        threads: 0,
    };
    let error = RegisteredMemory::register(&device, Arc::clone(&system), options).unwrap_err();
    assert!(
        matches!(
            error,
            DeviceError::PieceSize {
                piece_bytes: 1000,
                ..
            }
        ),
        "{error}"
    );
    let first = RegisteredMemory::register(&device, Arc::clone(&system), small_pieces()).unwrap();
    let twice = RegisteredMemory::register(&device, system, small_pieces()).unwrap_err();
    assert!(
        twice
            .to_string()
            .contains("CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED (712)"),
        "{twice}"
    );
    drop((first, device));
    clean(&standin);
}

#[test]
fn addresses_are_not_taken_on_trust() {
    let standin = Standin::start(StandinOptions {
        devices: 2,
        ..StandinOptions::seeded(6)
    });
    let driver = standin.driver().unwrap();
    let (first, second) = (driver.device(0).unwrap(), driver.device(1).unwrap());
    let memory = DeviceMemory::allocate(&first, 4096).unwrap();
    let pinned = PinnedMemory::allocate(&first, 4096).unwrap();
    let cases = [
        (
            &first,
            memory.device_address(),
            4097,
            "it is in an allocation of 4096 bytes",
        ),
        (&second, memory.device_address(), 4096, "of device 0"),
        (
            &first,
            pinned.device_address(),
            64,
            "it is pinned memory of the host",
        ),
        (&first, 0x1234, 64, "the driver does not know it"),
        (&first, u64::MAX - 2, 64, "the driver does not know it"),
    ];
    for (device, address, bytes, found) in cases {
        // SAFETY: refused.
        let error = unsafe { ImportedMemory::borrow(device, address, bytes, Arc::new(())) };
        let error = error.unwrap_err().to_string();
        assert!(error.contains(found), "{error}");
    }
    drop((memory, pinned, first, second));
    clean(&standin);
}

#[test]
fn registration_is_cut_into_pieces_and_prefaulted() {
    let standin = Standin::start(StandinOptions::seeded(7));
    let device = device(&standin);
    let page = rustix::param::page_size();
    let touched = parking_lot::Mutex::new(0);
    let progress =
        |progress: kvtile_memory::PrefaultProgress| *touched.lock() = progress.done_bytes;
    let memory = RegisteredMemory::allocate(&device, SIZE, small_pieces(), progress).unwrap();
    assert!(*touched.lock() >= SIZE);
    let ranges: Vec<_> = memory
        .pieces()
        .iter()
        .map(|piece| piece.range.clone())
        .collect();
    assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, SIZE));
    assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
    // A range over three pieces has three parts; the driver refuses a copy over their seams.
    let over = 3 * page..9 * page;
    let parts: Vec<usize> = memory
        .device_ranges(over.clone())
        .map(|(_, bytes)| bytes)
        .collect();
    assert_eq!(parts, [page, 4 * page, page]);
    assert_eq!(memory.device_ranges(SIZE..SIZE + 5).count(), 0);
    assert_eq!(memory.device_ranges(5..5).count(), 0);
    let queue = device.queue().unwrap();
    let target = DeviceMemory::allocate(&device, over.len()).unwrap();
    let start = memory.device_ranges(over).next().unwrap().0;
    // SAFETY: refused.
    let refused = unsafe { queue.copy(target.device_address(), start, 6 * page) };
    let refused = refused.unwrap_err().to_string();
    assert!(
        refused.contains("cuMemcpyAsync failed with CUDA_ERROR_INVALID_VALUE (1)"),
        "{refused}"
    );
    // A view that starts inside a page is cut where pages end.
    let system: OwnedMemoryRegion = Arc::new(SystemMemory::allocate(SIZE).unwrap());
    let view: OwnedMemoryRegion = Arc::new(RegionView::new(system, 100, SIZE - 100).unwrap());
    let view = RegisteredMemory::register(&device, view, small_pieces()).unwrap();
    assert_eq!(view.pieces()[0].range, 0..4 * page - 100);
    drop((view, memory, target, queue, device));
    clean(&standin);
}
