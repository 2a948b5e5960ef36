//! Kinds, words and their addresses.

use super::*;

#[test]
fn kinds_are_names_for_words() {
    let first = LayoutSpec::LayerSeparate(BlockDimension::BlockIsFirstDim);
    let second = LayoutSpec::LayerSeparate(BlockDimension::BlockIsSecondDim);
    assert_eq!(
        words(&LayoutSpec::FullyContiguous),
        ["BLKNHC", "BLKHNC", "BLKNHC"]
    );
    assert_eq!(words(&first), ["L|BKNHC", "L|BKHNC", "L|BKNHC"]);
    assert_eq!(words(&second), ["L|KBNHC", "L|KBHNC", "L|KBNHC"]);
    for spec in [LayoutSpec::FullyContiguous, first, second] {
        assert_eq!(spec.to_string().parse::<LayoutSpec>().unwrap(), spec);
    }
    let word: LayoutSpec = "L|BH(kCN,vNC)".parse().unwrap();
    assert_eq!(word.kind(), LayoutKind::Strided);
    assert_eq!(word.to_string(), "L|BH(kCN,vNC)");
    assert!("BLK(".parse::<LayoutSpec>().is_err());
}

/// The addresses of the tradition, computed here from their definition.
#[test]
fn kinds_place_elements_as_the_tradition_defines() {
    let (blocks, planes, tokens, heads, size) = (6u64, 2u64, 4u64, 5u64, 2u64);
    for inner in [InnerShape::NHD, InnerShape::HND] {
        let config = config(inner);
        let shape = config.shape().unwrap();
        let layout = |spec: LayoutSpec| spec.resolve(&shape, inner, 1).unwrap();
        let contiguous = layout(LayoutSpec::FullyContiguous);
        let first = layout(LayoutSpec::LayerSeparate(BlockDimension::BlockIsFirstDim));
        let second = layout(LayoutSpec::LayerSeparate(BlockDimension::BlockIsSecondDim));
        let page = tokens * heads * size;
        for (b, l, k) in [(0, 0, 0), (5, 2, 1), (1, 2, 0), (3, 0, 1)] {
            for (n, h, c) in [(0, 0, 0), (3, 4, 1), (2, 1, 0)] {
                let inside = match inner {
                    InnerShape::NHD => (n * heads + h) * size + c,
                    _ => (h * tokens + n) * size + c,
                };
                let at = UnitIndex::new()
                    .at(Axis::B, b)
                    .at(Axis::L, l)
                    .at(Axis::N, n)
                    .at(Axis::H, h)
                    .at(Axis::C, c);
                let plane = ["k", "v"][usize::try_from(k).unwrap()];
                let found = |layout: &StridedLayout| {
                    let location = layout.locate(plane, &at).unwrap();
                    (location.region, location.offset)
                };
                let block = (b * 3 + l) * planes + k;
                assert_eq!(found(&contiguous), (0, 2 * (block * page + inside)));
                assert_eq!(found(&first), (l, 2 * ((b * planes + k) * page + inside)));
                assert_eq!(found(&second), (l, 2 * ((k * blocks + b) * page + inside)));
            }
        }
    }
}

#[test]
fn one_plane_is_called_kv() {
    let config = builder()
        .outer_dim(1)
        .inner_shape(InnerShape::NHD)
        .build()
        .unwrap();
    let shape = config.shape().unwrap();
    assert_eq!(shape.planes().len(), 1);
    assert_eq!(shape.planes()[0].name().as_str(), "kv");
}

#[test]
fn without_heads_nhd_is_one_head_of_the_inner_dimension() {
    let config = builder()
        .num_heads(None)
        .inner_shape(InnerShape::NHD)
        .build()
        .unwrap();
    let shape = config.shape().unwrap();
    assert_eq!(shape.num_heads(), 1);
    assert_eq!(shape.planes()[0].extent_of(Axis::C), 10);
}

#[test]
fn an_unknown_inner_shape_is_one_opaque_unit_a_page() {
    let config = config(InnerShape::Unknown);
    let shape = config.shape().unwrap();
    for plane in shape.planes() {
        assert!(plane.unit().is_opaque());
        assert_eq!(plane.unit().bytes(), config.page_bytes() as u64);
        assert_eq!(plane.unit().codec(), "unknown16");
    }
    for spec in [
        LayoutSpec::FullyContiguous,
        LayoutSpec::LayerSeparate(BlockDimension::BlockIsSecondDim),
    ] {
        let layout = spec.resolve(&shape, InnerShape::Unknown, 1).unwrap();
        assert_eq!(layout.plane_span(5, 2, 1).unwrap().bytes, 80);
    }
}

/// Pitfall 6: the inner order is stated or refused, never assumed.
#[test]
fn an_unknown_inner_order_over_known_tokens_and_heads_is_refused() {
    let shape = config(InnerShape::NHD).shape().unwrap();
    let refused = LayoutSpec::FullyContiguous.resolve(&shape, InnerShape::Unknown, 1);
    let error = refusal(refused);
    assert!(matches!(
        error,
        ConfigError::InnerOrderUnknown {
            tokens: 4,
            heads: 5,
            ..
        }
    ));
    // With one head both orders are the same bytes.
    let one = builder()
        .num_heads(1)
        .inner_shape(InnerShape::HND)
        .build()
        .unwrap();
    let shape = one.shape().unwrap();
    let unknown = LayoutSpec::FullyContiguous
        .resolve(&shape, InnerShape::Unknown, 1)
        .unwrap();
    let hnd = LayoutSpec::FullyContiguous
        .resolve(&shape, InnerShape::HND, 1)
        .unwrap();
    assert!(unknown.same_places(&hnd));
}

/// Pitfall 4: `alignment` accepted and never used.
#[test]
fn alignment_pads_the_stride_of_blocks() {
    let config = builder()
        .alignment(256)
        .inner_shape(InnerShape::NHD)
        .build()
        .unwrap();
    let details = LayoutTypeDetails::LayerSeparate(LayerSeparateDetails {
        block_dim: BlockDimension::BlockIsFirstDim,
        kv_block_layout: None,
        shape: None,
    });
    let layout = details.resolve(&config).unwrap();
    assert_eq!(config.page_bytes() * 2, 160);
    assert_eq!(layout.plane_span(1, 0, 0).unwrap().start.offset, 256);
    assert_eq!(layout.plane_span(1, 0, 1).unwrap().start.offset, 256 + 80);
    assert_eq!(layout.region_bytes(), [6 * 256; 3]);
    assert_eq!(layout.alignment(), 256);
}

#[test]
fn a_word_over_a_config_without_heads_is_refused_where_it_places_heads() {
    let no_heads = builder().num_heads(None).build().unwrap();
    let spec: LayoutSpec = "BHLKNC".parse().unwrap();
    assert!(matches!(
        refusal(spec.shape(&no_heads)),
        ConfigError::NeedsHeads { .. }
    ));
    let with_heads = spec.shape(&builder().build().unwrap()).unwrap();
    assert_eq!(with_heads.num_heads(), 5);
    let flat: LayoutSpec = "BNLKC".parse().unwrap();
    assert_eq!(
        flat.shape(&no_heads).unwrap().planes()[0].extent_of(Axis::C),
        10
    );
    let opaque: LayoutSpec = "KLB".parse().unwrap();
    assert!(
        opaque.shape(&no_heads).unwrap().planes()[0]
            .unit()
            .is_opaque()
    );
}
