//! Parses arbitrary bytes as the header of a saved cache: a header or a typed error.
#![no_main]

use kvtile_layout::StridedLayout;
use kvtile_transfer::saved::SavedHeader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let Ok(header) = serde_json::from_slice::<SavedHeader>(json) else {
        return;
    };
    let _ = StridedLayout::resolve(&header.word, &header.shape, header.alignment);
    assert_eq!(header.identity.first_difference(&header.identity), None);
});
