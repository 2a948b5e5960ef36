//! Layouts of another process: their addresses and sizes can be computed, and their bytes cannot be
//! read or written.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;

use kvtile_layout::{LayoutError, ResolveError, Shape, Unit, Word};
use kvtile_memory::{MemoryDescriptor, StorageKind};
use kvtile_transfer::{
    FillPattern, LayoutDescriptor, LayoutHandle, LeaseMode, PhysicalLayout, RegisterError,
    TransferError, TransferManager, TransferOptions,
};

/// Number of blocks of every layout.
const BLOCKS: usize = 4;

fn shape() -> Shape {
    Shape::key_value(BLOCKS as u64, 2, 4, 2, 8, Unit::raw(2).unwrap()).unwrap()
}

fn in_file(path: &std::path::Path, word: &str) -> PhysicalLayout {
    PhysicalLayout::builder()
        .with_shape(shape())
        .layout(word.parse::<Word>().unwrap())
        .allocate_disk(Some(path.to_owned()))
        .build()
        .unwrap()
}

/// The layout from another process's point of view.
fn remote(layout: &PhysicalLayout) -> PhysicalLayout {
    let json = layout.to_descriptor().to_json().unwrap();
    let descriptor = LayoutDescriptor::from_json(&json).unwrap();
    PhysicalLayout::from_descriptor(descriptor).unwrap()
}

/// Registers `layout` and fills every block.
fn filled(manager: &TransferManager, layout: PhysicalLayout) -> LayoutHandle {
    let handle = manager.register(layout).unwrap();
    let blocks: Vec<usize> = (0..BLOCKS).collect();
    let pattern = FillPattern::Distinct { seed: 3 };
    manager.fill(handle, &blocks, pattern).unwrap();
    handle
}

#[track_caller]
fn is_refused<T>(result: Result<T, TransferError>) {
    let error = result.map(|_| ()).unwrap_err();
    assert!(
        matches!(
            error,
            TransferError::Register(RegisterError::RemoteLayout { .. })
        ),
        "{error}"
    );
    let text = error.to_string();
    assert!(text.contains("cannot read or write it"), "{text}");
}

#[test]
fn a_descriptor_of_another_system_gives_the_address_of_every_page() {
    let bytes = 10 * 4 * 2 * 16 * 128 * 2;
    let json = format!(
        r#"{{"version": 1, "layout_config": {{"num_blocks": 10, "num_layers": 4, "outer_dim": 2,
            "page_size": 16, "inner_dim": 128, "dtype_width_bytes": 2}},
            "location": {{"Device": 3}},
            "nixl_metadata": {{"agent_name": "w", "mem_type": "Vram", "device_id": 3}},
            "memory_descriptors": [{{"addr": 139637976727552, "size": {bytes}}}],
            "layout_type_details": {{"FullyContiguous": {{"block_format": "Operational"}}}}}}"#
    );
    let descriptor = LayoutDescriptor::from_json(&json).unwrap();
    let layout = PhysicalLayout::from_descriptor(descriptor).unwrap();
    let page = 16 * 128 * 2;
    let expected = MemoryDescriptor {
        addr: 139_637_976_727_552 + ((7 * 4 + 2) * 2 + 1) * page,
        size: page,
    };
    assert_eq!(layout.memory_region(7, 2, 1).unwrap(), expected);
    let outside = layout.memory_region(10, 0, 0).unwrap_err();
    assert!(
        matches!(
            outside,
            TransferError::Layout(LayoutError::Resolve(ResolveError::IndexOutOfRange { .. }))
        ),
        "{outside}"
    );
    // The regions are in the other process, so the trait that lends them is refused too.
    assert!(layout.memory_regions().is_empty());
    is_refused(layout.layout());
}

/// Block first, one region per layer, and non-contiguous pages, which have no single address.
#[test]
fn a_remote_layout_has_the_addresses_and_sizes_of_its_owner() {
    let folder = common::folder();
    for (number, word) in ["BLKNHC", "L|KBNHC", "BHLKNC", "BK|LNHC"]
        .into_iter()
        .enumerate()
    {
        let memory = common::in_memory(&shape(), word);
        common::same_addresses(&remote(&memory), &memory);
        let file = in_file(&folder.path().join(number.to_string()), word);
        common::same_addresses(&remote(&file), &file);
    }
}

/// Pitfall 17: no executor dereferences an address of another process.
#[test]
fn remote_layouts_are_refused_on_both_sides_and_cannot_be_leased() {
    let folder = common::folder();
    let path = folder.path().join("of-another-process");
    let manager = TransferManager::new();
    let memory = filled(&manager, common::in_memory(&shape(), "BLKNHC"));
    let file = filled(&manager, in_file(&path, "L|KBNHC"));
    let seen = |handle| -> Vec<String> {
        let digest = |block| manager.block_digest(handle, block).unwrap().to_string();
        (0..BLOCKS).map(digest).collect()
    };
    let before = (seen(memory), seen(file), fs::read(&path).unwrap());

    for owned in [memory, file] {
        let layout = remote(&manager.layout(owned).unwrap());
        assert!(layout.is_remote());
        let on_disk = matches!(layout.location(), StorageKind::Disk(_));
        assert_eq!(on_disk, owned == file);
        let there = manager.register(layout).unwrap();
        for (from, to) in [
            (memory, there),
            (file, there),
            (there, memory),
            (there, file),
            (there, there),
        ] {
            let options = || TransferOptions::new().verify(true);
            is_refused(manager.execute_transfer(from, &[0], to, &[1], options()));
            let layers = options().layer_by_layer(true);
            is_refused(manager.execute_transfer(from, &[0], to, &[1], layers));
        }
        is_refused(manager.lease(there, &[0], LeaseMode::Read));
        is_refused(manager.lease(there, &[0], LeaseMode::Write));
        is_refused(manager.block_digest(there, 0));
        is_refused(manager.fill(there, &[0], FillPattern::Constant(1)));
        manager.unregister(there).unwrap();
    }
    assert!(before == (seen(memory), seen(file), fs::read(&path).unwrap()));
}
