//! The contract of `MemoryRegion`, checked for every kind of region.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "common/folder.rs"]
mod folder;

use folder::folder;
use kvtile_memory::{
    BorrowedMemory, FileMemory, MemType, MemoryDescriptor, MemoryError, MemoryRegion,
    NixlDescriptor, OwnedMemoryRegion, Prefault, RegionView, SharedMemory, StorageKind,
    SystemMemory, file_of,
};
use std::any::Any;
use std::ptr::{NonNull, with_exposed_provenance_mut};
use std::sync::Arc;

const SIZE: usize = 100_003;

/// Checks the contract that all kinds share; `make` returns a fresh region of [`SIZE`] bytes.
fn conforms(make: impl Fn() -> OwnedMemoryRegion) {
    let region = make();
    eprintln!("{region:?}");
    describes_itself(&region);
    bytes_are_there(&region);
    views_are_checked_parts(&region);

    // Pitfall 11: two regions that live at the same time share no byte.
    let other = make();
    if region.storage_kind().is_addressable() {
        assert!(!MemoryDescriptor::of(&*region).overlaps(&MemoryDescriptor::of(&*other)));
    } else {
        assert_ne!(region.storage_kind(), other.storage_kind());
    }

    // A view works from another thread, and keeps its region alive.
    let view = RegionView::new(other, 5, 10).unwrap();
    let seen = std::thread::spawn(move || {
        bytes_are_there(&(Arc::new(view.clone()) as OwnedMemoryRegion));
        (view.addr(), Arc::strong_count(view.parent()))
    });
    assert_eq!(seen.join().unwrap().1, 1);
}

fn describes_itself(region: &OwnedMemoryRegion) {
    assert_eq!(region.size(), SIZE);
    assert_eq!(region.addr(), region.addr());
    assert_eq!(region.nixl_descriptor(), None);
    assert!(region.is_writable());
    let descriptor = MemoryDescriptor::of(&**region);
    assert_eq!(descriptor.end(), Some(region.addr() + SIZE));
    let is_file = matches!(region.storage_kind(), StorageKind::Disk(_));
    assert_eq!(file_of(&**region).is_some(), is_file);
    let itself = std::ptr::from_ref(region.as_any()).cast::<()>();
    assert_eq!(itself, Arc::as_ptr(region).cast());
    let known: [bool; 4] = [
        region.as_any().is::<SystemMemory>(),
        region.as_any().is::<SharedMemory>(),
        region.as_any().is::<FileMemory>(),
        region.as_any().is::<BorrowedMemory>(),
    ];
    assert_eq!(known.iter().filter(|known| **known).count(), 1);
}

/// Writes and reads the first and the last byte the way executors do.
fn bytes_are_there(region: &OwnedMemoryRegion) {
    let last = region.size() - 1;
    if let Some((file, start)) = file_of(&**region) {
        for (offset, value) in [(0, 17), (last as u64, 18)] {
            file.write_all_at(start + offset, &[value]).unwrap();
            let mut byte = [0];
            file.read_exact_at(start + offset, &mut byte).unwrap();
            assert_eq!(byte, [value]);
        }
        return;
    }
    assert!(region.storage_kind().is_addressable());
    for (offset, value) in [(0, 17), (last, 18)] {
        let byte: *mut u8 = with_exposed_provenance_mut(region.addr() + offset);
        // SAFETY: `offset` is inside a writable, addressable region that only this test uses.
        unsafe { byte.write(value) };
        // SAFETY: as before.
        assert_eq!(unsafe { byte.read() }, value);
    }
}

fn views_are_checked_parts(region: &OwnedMemoryRegion) {
    let view = |parent: &OwnedMemoryRegion, offset, size| {
        RegionView::new(Arc::clone(parent), offset, size)
    };
    for (offset, size) in [(0, SIZE), (0, 1), (SIZE - 1, 1), (7, 1000)] {
        let part = view(region, offset, size).unwrap();
        assert_eq!(part.addr(), region.addr() + offset);
        assert_eq!(part.size(), size);
        assert_eq!(part.storage_kind(), region.storage_kind());
        assert_eq!(part.is_writable(), region.is_writable());
        assert_eq!(part.offset(), offset);
        assert!(MemoryDescriptor::of(&**region).contains(&MemoryDescriptor::of(&part)));
    }
    for (offset, size) in [
        (0, SIZE + 1),
        (1, SIZE),
        (SIZE, 1),
        (usize::MAX, 1),
        (1, usize::MAX),
        (usize::MAX, usize::MAX),
    ] {
        assert!(
            matches!(
                view(region, offset, size),
                Err(MemoryError::OutOfBounds { .. })
            ),
            "{offset} {size}"
        );
    }
    assert!(matches!(view(region, 3, 0), Err(MemoryError::ZeroSize)));

    let outer: OwnedMemoryRegion = Arc::new(view(region, 1000, 5000).unwrap());
    let inner: OwnedMemoryRegion = Arc::new(view(&outer, 200, 300).unwrap());
    assert_eq!(inner.addr(), region.addr() + 1200);
    let flat = inner.as_any().downcast_ref::<RegionView>().unwrap();
    assert!(Arc::ptr_eq(flat.parent(), region), "views do not stack");
    assert_eq!(flat.offset(), 1200);
    // Bytes outside the outer view are out of bounds, even where the region continues.
    for (offset, size) in [(0, 5001), (4999, 2), (5000, 1)] {
        assert!(view(&outer, offset, size).is_err());
    }
    if let Some((file, start)) = file_of(&*inner) {
        assert_eq!(start, 1200);
        assert!(std::ptr::eq(file, file_of(&**region).unwrap().0));
    }
}

#[test]
fn system_memory_conforms() {
    conforms(|| Arc::new(SystemMemory::allocate(SIZE).unwrap()));
    conforms(|| {
        let options = SystemMemory::options().huge_pages(false);
        let prefault = Prefault::Populate { threads: 2 };
        Arc::new(options.prefault(prefault).allocate(SIZE).unwrap())
    });
}

#[test]
fn shared_memory_conforms() {
    conforms(|| Arc::new(SharedMemory::create(SIZE).unwrap()));
}

#[test]
fn received_shared_memory_conforms() {
    conforms(|| {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        SharedMemory::create(SIZE).unwrap().send(&ours).unwrap();
        Arc::new(SharedMemory::receive(&theirs).unwrap())
    });
}

#[test]
fn file_memory_conforms() {
    let folder = folder();
    for direct in [false, true] {
        let options = FileMemory::options().direct_io(direct);
        conforms(|| Arc::new(options.scratch(folder.path(), SIZE).unwrap()));
    }
}

#[test]
fn borrowed_memory_conforms() {
    for kind in [StorageKind::System, StorageKind::Pinned] {
        conforms(|| {
            let mut owner = vec![0_u8; SIZE].into_boxed_slice();
            let pointer = NonNull::new(owner.as_mut_ptr()).unwrap();
            // The box must not move once its address is exposed, so it is kept as a raw pointer.
            let keep_alive: Arc<dyn Any + Send + Sync> =
                Arc::new(RawBoxOwner(Box::into_raw(owner)));
            // SAFETY: the bytes live as long as `RawBoxOwner`, and no other code uses them.
            Arc::new(unsafe { BorrowedMemory::new(pointer, SIZE, keep_alive, kind) }.unwrap())
        });
    }
}

/// The owner of borrowed bytes.
struct RawBoxOwner(*mut [u8]);

// SAFETY: the pointer is used only to free the bytes that it owns.
unsafe impl Send for RawBoxOwner {}
// SAFETY: as above.
unsafe impl Sync for RawBoxOwner {}

impl Drop for RawBoxOwner {
    fn drop(&mut self) {
        // SAFETY: it came from `Box::into_raw` and is freed once.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

#[test]
fn borrowed_memory_is_kept_alive_by_every_view() {
    let mut bytes = [0_u8; 64];
    let keep_alive: Arc<dyn Any + Send + Sync> = Arc::new(());
    let pointer = NonNull::from(&mut bytes).cast();
    let borrow =
        // SAFETY: the region is dropped before `bytes`.
        unsafe { BorrowedMemory::new(pointer, 64, Arc::clone(&keep_alive), StorageKind::System) };
    let region: OwnedMemoryRegion = Arc::new(borrow.unwrap().read_only());
    assert!(!region.is_writable());
    let view = RegionView::new(region, 8, 8).unwrap();
    assert!(!view.is_writable());
    assert_eq!(Arc::strong_count(&keep_alive), 2);
    drop(view);
    assert_eq!(Arc::strong_count(&keep_alive), 1);
}

/// Pitfalls 11 and 2 at their root: no region without bytes, and none that wraps.
#[test]
fn borrowing_nothing_or_past_the_end_is_refused() {
    let borrow = |addr: usize, size, kind| {
        let pointer = NonNull::new(with_exposed_provenance_mut(addr)).unwrap();
        // SAFETY: every call is refused, so no byte is ever accessed.
        unsafe { BorrowedMemory::new(pointer, size, Arc::new(()), kind) }
    };
    assert!(matches!(
        borrow(4096, 0, StorageKind::System),
        Err(MemoryError::ZeroSize)
    ));
    assert!(matches!(
        borrow(usize::MAX - 10, 12, StorageKind::Device(0)),
        Err(MemoryError::AddressWrap { .. })
    ));
    assert!(matches!(
        borrow(4096, isize::MAX as usize + 1, StorageKind::Pinned),
        Err(MemoryError::TooLarge { .. })
    ));
    assert!(matches!(
        borrow(4096, 10, StorageKind::Disk(3)),
        Err(MemoryError::UnsupportedKind { .. })
    ));
}

/// Pitfall 11: a zero-size allocation shares its address with the next one.
#[test]
fn sizes_of_zero_and_absurd_sizes_are_refused_everywhere() {
    let folder = folder();
    let path = folder.path().join("file");
    for (size, zero) in [(0, true), (usize::MAX, false), (isize::MAX as usize, false)] {
        let refusals = [
            SystemMemory::allocate(size).err(),
            SharedMemory::create(size).err(),
            FileMemory::options().create_new(&path, size).err(),
            FileMemory::options().scratch(folder.path(), size).err(),
            FileMemory::options().open_or_create(&path, size).err(),
            kvtile_memory::AlignedBuffer::new(size, 64).err(),
        ];
        for refusal in refusals {
            let refusal = refusal.unwrap_or_else(|| panic!("{size} bytes were granted"));
            assert_eq!(matches!(refusal, MemoryError::ZeroSize), zero, "{refusal}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

#[test]
fn fresh_memory_is_zeroed_and_page_aligned() {
    let page = rustix::param::page_size();
    let mut system = SystemMemory::allocate(SIZE).unwrap();
    assert_eq!(system.addr() % page, 0);
    assert_eq!(system.as_mut_slice(), vec![0; SIZE]);
    let shared = SharedMemory::create(SIZE).unwrap();
    assert_eq!(shared.addr() % page, 0);
    let mut bytes = vec![1; SIZE];
    shared.read_exact_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, vec![0; SIZE]);
}

#[test]
fn descriptors_compare_and_never_wrap() {
    let at = |addr, size| MemoryDescriptor { addr, size };
    assert!(at(0, 10).overlaps(&at(9, 1)));
    assert!(!at(0, 10).overlaps(&at(10, 1)));
    assert!(!at(0, 10).overlaps(&at(5, 0)));
    assert!(at(usize::MAX, 5).overlaps(&at(usize::MAX - 1, 3)));
    assert!(!at(usize::MAX, 5).contains(&at(usize::MAX, 1)));
    assert!(at(0, 10).contains(&at(0, 10)));
    assert!(!at(0, 10).contains(&at(1, 10)));
    assert_eq!(at(1, usize::MAX).end(), None);
}

#[test]
fn kinds_and_descriptors_are_serialised_as_descriptors_have_them() {
    let kinds = [
        (StorageKind::System, "\"System\""),
        (StorageKind::Pinned, "\"Pinned\""),
        (StorageKind::Device(0), "{\"Device\":0}"),
        (StorageKind::Disk(3), "{\"Disk\":3}"),
    ];
    for (kind, json) in kinds {
        assert_eq!(serde_json::to_string(&kind).unwrap(), json);
        assert_eq!(serde_json::from_str::<StorageKind>(json).unwrap(), kind);
    }
    let descriptor = MemoryDescriptor {
        addr: 4096,
        size: 7,
    };
    let json = "{\"addr\":4096,\"size\":7}";
    assert_eq!(serde_json::to_string(&descriptor).unwrap(), json);
    assert_eq!(
        serde_json::from_str::<MemoryDescriptor>(json).unwrap(),
        descriptor
    );
    for hostile in [
        "{\"addr\":-1,\"size\":7}",
        "{\"addr\":1}",
        "{\"addr\":1e30,\"size\":7}",
    ] {
        assert!(serde_json::from_str::<MemoryDescriptor>(hostile).is_err());
    }
    for (mem_type, json) in [
        (MemType::Dram, "\"Dram\""),
        (MemType::Vram, "\"Vram\""),
        (MemType::Block, "\"Block\""),
        (MemType::Object, "\"Object\""),
        (MemType::File, "\"File\""),
        (MemType::Unknown, "\"Unknown\""),
    ] {
        assert_eq!(serde_json::to_string(&mem_type).unwrap(), json);
    }
}

#[test]
fn kinds_know_their_nixl_names() {
    let facts = |kind: StorageKind| (kind.mem_type(), kind.device_id(), kind.is_addressable());
    assert_eq!(facts(StorageKind::System), (MemType::Dram, 0, true));
    assert_eq!(facts(StorageKind::Pinned), (MemType::Dram, 0, true));
    assert_eq!(facts(StorageKind::Device(2)), (MemType::Vram, 2, false));
    assert_eq!(facts(StorageKind::Disk(9)), (MemType::File, 9, false));
}

/// A region that is registered with a NIXL agent.
#[derive(Debug)]
struct NixlRegion(SystemMemory);

// SAFETY: every method delegates to a region that keeps the contract.
unsafe impl MemoryRegion for NixlRegion {
    fn addr(&self) -> usize {
        self.0.addr()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn storage_kind(&self) -> StorageKind {
        self.0.storage_kind()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn nixl_descriptor(&self) -> Option<NixlDescriptor> {
        Some(NixlDescriptor {
            addr: self.addr() as u64,
            size: self.size(),
            mem_type: MemType::Dram,
            device_id: 4,
        })
    }
}

#[test]
fn a_view_of_a_registered_region_is_registered_in_part() {
    let region: OwnedMemoryRegion = Arc::new(NixlRegion(SystemMemory::allocate(SIZE).unwrap()));
    let view = RegionView::new(Arc::clone(&region), 64, 128).unwrap();
    let whole = region.nixl_descriptor().unwrap();
    let part = view.nixl_descriptor().unwrap();
    assert_eq!((part.addr, part.size), (whole.addr + 64, 128));
    assert_eq!((part.mem_type, part.device_id), (MemType::Dram, 4));
}
