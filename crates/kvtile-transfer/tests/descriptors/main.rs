//! Descriptors: those of other systems are read, written ones survive a round trip, and hostile
//! ones are refused within bounded memory.
//!
//! | file | what it tests |
//! | --- | --- |
//! | `tradition` | version 1 as other systems write it |
//! | `general` | version 2: JSON, order, and refused descriptors |
//! | `round_trip` | layouts of every kind survive a round trip |
//! | `hostile` | version 1 from a hostile or faulty writer |
//! | `memory` | absurd counts and mutations, within bounded memory |
#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod general;
mod hostile;
mod memory;
mod round_trip;
mod tradition;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use kvtile_transfer::{LayoutDescriptor, PhysicalLayout, TransferError};
use serde_json::{Value, json};

/// The system allocator with a count of allocated bytes.
struct AllocationCounter;

pub(crate) static LIVE: AtomicUsize = AtomicUsize::new(0);
pub(crate) static PEAK: AtomicUsize = AtomicUsize::new(0);

fn count(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the system allocator; counting touches none of its memory.
unsafe impl GlobalAlloc for AllocationCounter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: AllocationCounter = AllocationCounter;

/// Memory limit of all tests of this binary together, in bytes: some run concurrently.
pub(crate) const MEMORY_MAX: usize = 512 << 20;

pub(crate) fn contiguous() -> Value {
    json!({
        "version": 1,
        "layout_config": {
            "num_blocks": 10, "num_layers": 4, "outer_dim": 2, "page_size": 16,
            "inner_dim": 128, "alignment": 1, "dtype_width_bytes": 2
        },
        "location": "System",
        "nixl_metadata": {"agent_name": "worker-1", "mem_type": "Dram", "device_id": 0},
        "memory_descriptors": [{"addr": 4096, "size": 10 * 4 * 2 * 16 * 128 * 2}],
        "layout_type_details": {"FullyContiguous": {"block_format": "Operational"}}
    })
}

pub(crate) fn separate() -> Value {
    let bytes = 10 * 2 * 16 * 128 * 2u64;
    let regions: Vec<Value> = (0..4u64)
        .map(|layer| json!({"addr": 0x10_0000 + layer * bytes, "size": bytes}))
        .collect();
    let mut value = contiguous();
    value["location"] = json!({"Device": 3});
    value["nixl_metadata"] = json!({"agent_name": "w", "mem_type": "Vram", "device_id": 3});
    value["memory_descriptors"] = Value::Array(regions);
    value["layout_type_details"] = json!({"LayerSeparate": {"block_dim": "BlockIsSecondDim"}});
    value
}

pub(crate) fn read(value: &Value) -> Result<PhysicalLayout, TransferError> {
    PhysicalLayout::from_descriptor(LayoutDescriptor::from_json(&value.to_string())?)
}

/// A layout by a word that no config describes: a page of one opaque unit beside a plane of scales.
pub(crate) fn general_word() -> Value {
    json!({
        "version": 2,
        "shape": {
            "num_blocks": 10, "num_layers": 4, "page_size": 16,
            "planes": [
                {"name": "page", "unit": {"codec": "packed", "bytes": 4100, "values": 0, "opaque": true},
                 "per_token": false},
                {"name": "scale", "unit": {"codec": "raw32", "bytes": 4, "values": 1, "opaque": false}}
            ]
        },
        "alignment": 64,
        "order": {"word": "BLKNC"},
        "location": "System",
        "nixl_metadata": {"agent_name": "worker-1", "mem_type": "Dram", "device_id": 0},
        "memory_descriptors": [{"addr": 4096, "size": 10 * 4 * (4100 + 64) + 10 * 64}]
    })
}

fn digit(axis: &str, extent: u64, bytes: u64) -> Value {
    json!({"axis": axis, "low": 1, "extent": extent, "step": {"regions": 0, "bytes": bytes}})
}

/// A layout by digits: pages of 100 bytes in two regions, one per layer.
pub(crate) fn general_digits() -> Value {
    let layer = json!({"axis": "L", "low": 1, "extent": 2, "step": {"regions": 1, "bytes": 0}});
    let mut value = general_word();
    value["shape"] = json!({
        "num_blocks": 3, "num_layers": 2, "page_size": 16,
        "planes": [{"name": "s", "unit": {"codec": "raw8", "bytes": 1, "values": 1, "opaque": false},
                    "per_token": false, "extents": [["C", 100]]}]
    });
    value["alignment"] = json!(1);
    value["order"] = json!({"digits": {
        "planes": [{"plane": "s", "region": 0, "offset": 28,
                    "digits": [layer, digit("B", 3, 128), digit("C", 100, 1)]}],
        "region_bytes": [384, 384]
    }});
    value["memory_descriptors"] = json!([{"addr": 4096, "size": 384}, {"addr": 8192, "size": 400}]);
    value
}
