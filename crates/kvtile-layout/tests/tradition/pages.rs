//! The address of one block, layer and plane.

use super::*;
use kvtile_layout::ResolveError;

#[test]
fn the_page_of_one_block_layer_and_plane_has_one_place() {
    let config = config(InnerShape::HND);
    let details = LayoutTypeDetails::FullyContiguous(FullyContiguousDetails::default());
    let layout = details.resolve(&config).unwrap();
    let page = layout.plane_span(4, 1, 1).unwrap();
    assert_eq!(
        (page.start.region, page.start.offset, page.bytes),
        (0, ((4 * 3 + 1) * 2 + 1) * 80, 80)
    );
    let blocks = LayoutError::Resolve(ResolveError::IndexOutOfRange {
        axis: Axis::B,
        index: 6,
        extent: 6,
    });
    assert_eq!(layout.plane_span(6, 0, 0), Err(blocks));
    assert!(matches!(
        layout.plane_span(0, 3, 0),
        Err(LayoutError::Resolve(ResolveError::IndexOutOfRange { .. }))
    ));
    let planes = LayoutError::Resolve(ResolveError::IndexOutOfRange {
        axis: Axis::K,
        index: 2,
        extent: 2,
    });
    assert_eq!(layout.plane_span(0, 0, 2), Err(planes));
}

#[test]
fn a_page_in_pieces_is_an_error_and_whole_blocks_are_known() {
    let shape = config(InnerShape::NHD).shape().unwrap();
    for (word, page_is_one_run, block_is_one_run) in [
        ("BLKNHC", true, true),
        ("B@4096LKNHC", true, true),
        ("BLKHNC", true, true),
        ("BL(kCHN,vNHC)", true, true),
        ("BHLKNC", false, true),
        ("LBNHKC", false, false),
        ("L|BKNHC", true, false),
        ("LBKNHC", true, false),
        ("BLKNH@8C", false, false),
        ("BK|LNHC", true, false),
    ] {
        let word = Word::parse(word).unwrap();
        let layout = StridedLayout::resolve(&word, &shape, 1).unwrap();
        let page = layout.plane_span(1, 1, 1);
        assert_eq!(page.is_ok(), page_is_one_run, "{word}");
        if !page_is_one_run {
            assert!(matches!(
                page,
                Err(LayoutError::Resolve(ResolveError::NotContiguous { .. }))
            ));
        }
        assert_eq!(layout.blocks_are_contiguous(), block_is_one_run, "{word}");
    }
}

#[test]
fn tensor_formats_are_inner_shapes() {
    assert_eq!(InnerShape::from(TensorFormat::NHD), InnerShape::NHD);
    assert_eq!(InnerShape::from(TensorFormat::HND), InnerShape::HND);
    assert_eq!(InnerShape::from(TensorFormat::Unknown), InnerShape::Unknown);
    assert_eq!(BlockFormat::default(), BlockFormat::Operational);
}
