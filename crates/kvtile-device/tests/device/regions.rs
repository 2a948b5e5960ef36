//! The contract of `MemoryRegion`, checked for every kind of region that devices reach.

use kvtile_device::{
    Device, DeviceError, DeviceMemory, ImportedMemory, PinnedMemory, RegisterOptions,
    RegisteredMemory,
};
use kvtile_memory::{
    BorrowedMemory, MemoryDescriptor, MemoryError, MemoryRegion, OwnedMemoryRegion, RegionView,
    SharedMemory, StorageKind, SystemMemory,
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
        let there = one_part(device, &region, offset..offset + 1);
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
    let first = one_part(device, view.parent(), 0..1);
    assert_eq!(first, address);
    assert!(standin.peek(first, &mut byte));
    assert_eq!(byte, [0x5C]);
    // A view of a view reaches what its region reaches there, and nothing outside.
    let view: OwnedMemoryRegion = Arc::new(view);
    let inner = RegionView::new(Arc::clone(&view), 3, 50).unwrap();
    let inner: OwnedMemoryRegion = Arc::new(inner);
    assert_eq!(one_part(device, &inner, 4..8), first + 14);
    assert_eq!(device.ranges_of(&*inner, 50..50).unwrap(), []);
    for outside in [0..51, 51..51, std::ops::Range { start: 9, end: 8 }] {
        assert!(device.ranges_of(&*inner, outside).is_err());
    }
    drop(inner);
    let moved = std::thread::spawn(move || drop(view));
    moved.join().unwrap();
}

/// The address by which devices reach a range that lies in one piece.
fn one_part(device: &Device, region: &OwnedMemoryRegion, range: std::ops::Range<usize>) -> u64 {
    let parts = device.ranges_of(&**region, range.clone()).unwrap();
    let (address, bytes) = parts.first().copied().unwrap();
    assert_eq!((parts.len(), bytes), (1, range.len()));
    address
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
fn memory_of_other_owners_is_reached_where_it_is_pinned() {
    let standin = Standin::start(StandinOptions {
        aliases: true,
        ..StandinOptions::seeded(8)
    });
    let device = device(&standin);
    let registered: OwnedMemoryRegion = Arc::new(SystemMemory::allocate(SIZE).unwrap());
    let error = device.ranges_of(&*registered, 0..1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "devices do not reach memory of this process: register it, or copy through pinned memory"
    );
    let options = RegisterOptions::default();
    let memory = RegisteredMemory::register(&device, registered, options).unwrap();
    let borrowed = |address: usize, kind| {
        let pointer = std::ptr::NonNull::new(with_exposed_provenance_mut(address)).unwrap();
        // SAFETY: the memory outlives the region, and nothing is copied through it.
        unsafe { BorrowedMemory::new(pointer, 100, Arc::new(()), kind) }.unwrap()
    };
    let pinned = borrowed(memory.addr() + 200, StorageKind::Pinned);
    let address = memory.pieces()[0].device_address;
    assert_eq!(
        device.ranges_of(&pinned, 1..5).unwrap(),
        [(address + 201, 4)]
    );
    let there = borrowed(0x7000, StorageKind::Device(0));
    assert_eq!(device.ranges_of(&there, 1..5).unwrap(), [(0x7001, 4)]);
    let system = SystemMemory::allocate(SIZE).unwrap();
    let claimed = borrowed(system.addr(), StorageKind::Pinned);
    assert!(device.ranges_of(&claimed, 1..5).is_err());
    drop((memory, device));
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
    // The driver also knows the device of an address.
    let devices = [
        memory.device_address() + 4095,
        pinned.device_address(),
        0x1234,
        0,
    ]
    .map(|address| driver.device_of(address).unwrap());
    assert_eq!(devices, [Some(0), None, None, None]);
    let other = DeviceMemory::allocate(&second, 64).unwrap();
    assert_eq!(driver.device_of(other.device_address()).unwrap(), Some(1));
    drop((memory, pinned, other, first, second));
    clean(&standin);
}

#[test]
fn managed_memory_is_refused_and_imported_memory_can_be_read_only() {
    let standin = Standin::start(StandinOptions::seeded(9));
    let device = device(&standin);
    let memory = Arc::new(DeviceMemory::allocate(&device, 4096).unwrap());
    let address = memory.device_address();
    // SAFETY: the memory is the keep-alive, and nothing else uses it.
    let region = unsafe { ImportedMemory::borrow(&device, address, 4096, memory) }.unwrap();
    assert!(region.is_writable());
    assert!(!region.read_only().is_writable());
    let managed = standin.allocate_managed(0, 4096).unwrap();
    // SAFETY: refused.
    let error = unsafe { ImportedMemory::borrow(&device, managed, 4096, Arc::new(())) };
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("it is managed memory"),
        "managed memory moves"
    );
    assert_eq!(standin.complaints(), []);
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
