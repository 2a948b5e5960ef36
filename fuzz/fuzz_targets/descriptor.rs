//! Parses arbitrary bytes as a descriptor: either version or a typed error, within bounded memory.
#![no_main]

use kvtile_transfer::{DescribedLayout, LayoutDescriptor, PhysicalLayout};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let Ok(descriptor) = LayoutDescriptor::from_json_bytes(json) else {
        return;
    };
    let text = descriptor.to_json_bytes().expect("what was read can be written");
    let again = LayoutDescriptor::from_json_bytes(&text).expect("what was written can be read");
    assert_eq!(again, descriptor);
    let Ok(layout) = PhysicalLayout::from_descriptor(descriptor.clone()) else {
        return;
    };
    assert!(layout.is_remote());
    let shown = layout.to_descriptor();
    assert_eq!(shown, descriptor);
    let bytes = layout.strided().region_bytes();
    assert_eq!(bytes.len(), shown.memory_descriptors.len());
    for (region, bytes) in shown.memory_descriptors.iter().zip(bytes) {
        assert!(region.size as u64 >= *bytes && region.end().is_some());
    }
    // The traditional view exists, or reports why it does not.
    let config = layout.config().is_ok();
    assert_eq!(config, layout.serialization_details().is_ok());
    if let DescribedLayout::Traditional { .. } = descriptor.layout {
        assert!(config);
    }
    let shape = layout.shape();
    let last = |count: u64| usize::try_from(count - 1).unwrap_or(usize::MAX);
    for (block, layer) in [(0, 0), (last(shape.num_blocks()), last(shape.num_layers()))] {
        for plane in 0..shape.planes().len() {
            if let Ok(place) = layout.memory_region(block, layer, plane) {
                let inside = |region: &kvtile_memory::MemoryDescriptor| {
                    place.addr >= region.addr && place.end() <= region.end()
                };
                assert!(shown.memory_descriptors.iter().any(inside));
            }
        }
    }
});
