//! Any bytes: a descriptor or a typed error, within bounded memory.
#![no_main]

use kvtile::layout::{LayoutDescriptor, PhysicalLayout};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let Ok(descriptor) = LayoutDescriptor::from_json_bytes(json) else {
        return;
    };
    let Ok(layout) = PhysicalLayout::from_descriptor(descriptor.clone()) else {
        return;
    };
    assert!(layout.is_remote());
    let again = layout.to_descriptor().expect("what was read can be written");
    assert_eq!(again.layout_config, descriptor.layout_config);
    assert_eq!(again.memory_descriptors, descriptor.memory_descriptors);
});
