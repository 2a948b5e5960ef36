//! Layouts over shared memory that one process writes and others read.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{os::unix::net::UnixStream, sync::Arc};

use kvtile_layout::Shape;
use kvtile_memory::{Prefault, SharedMemory, SharedReadMemory};
use kvtile_transfer::{
    CopyError, FillPattern, LeaseError, LeaseMode, PhysicalLayout, TransferError, TransferManager,
    TransferOptions,
};

fn shape() -> Shape {
    Shape::key_value(4, 2, 4, 2, 8, "f32").unwrap()
}

/// The owner's layout and the layout of a reader of the same memory.
fn both() -> (PhysicalLayout, PhysicalLayout) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let layout = || {
        PhysicalLayout::builder()
            .with_shape(shape())
            .layout("BLKNHC")
    };
    let owner = layout()
        .allocate_shared_for_readers(Prefault::None)
        .build()
        .unwrap();
    owner.shared_memory().unwrap().send(&ours).unwrap();
    let memory = SharedReadMemory::receive(&theirs).unwrap();
    let reader = layout().over_memory(Arc::new(memory)).build().unwrap();
    (owner, reader)
}

#[test]
fn a_reader_copies_what_the_owner_wrote_and_writes_nothing() {
    let (owner, reader) = both();
    let (ours, theirs) = (TransferManager::new(), TransferManager::new());
    let owner = ours.register(owner).unwrap();
    let reader = theirs.register(reader).unwrap();
    let engine = PhysicalLayout::builder()
        .with_shape(shape())
        .layout("L|BH(kCN,vNC)")
        .allocate_system()
        .build()
        .unwrap();
    let engine = theirs.register(engine).unwrap();
    ours.fill(owner, &[2], FillPattern::Distinct { seed: 5 })
        .unwrap();
    let options = TransferOptions::new();
    let copied = theirs.execute_transfer(reader, &[2], engine, &[1], options);
    copied.unwrap().wait().unwrap();
    assert_eq!(
        ours.block_digest(owner, 2).unwrap(),
        theirs.block_digest(engine, 1).unwrap()
    );
    let refused = theirs.execute_transfer(engine, &[1], reader, &[0], TransferOptions::new());
    assert!(matches!(
        refused,
        Err(TransferError::Copy(CopyError::ReadOnly))
    ));
    let refused = theirs.fill(reader, &[0], FillPattern::Constant(1));
    assert!(refused.is_err());
}

/// The owner may lend slices, since only it writes; a reader, and memory that all write, may not.
#[test]
fn only_memory_that_this_process_alone_writes_is_lent_as_slices() {
    let (owner, reader) = both();
    let shared = PhysicalLayout::builder()
        .with_shape(shape())
        .layout("BLKNHC")
        .over_memory(Arc::new(SharedMemory::create(1 << 20).unwrap()))
        .build()
        .unwrap();
    for (layout, is_lent) in [(owner, true), (reader, false), (shared, false)] {
        let manager = TransferManager::new();
        let handle = manager.register(layout).unwrap();
        let lease = manager.lease(handle, &[1], LeaseMode::Read).unwrap();
        match lease.block(1) {
            Ok(_) => assert!(is_lent),
            Err(error) => assert!(
                !is_lent && matches!(error, TransferError::Lease(LeaseError::SharedPages)),
                "{error}"
            ),
        }
    }
}
