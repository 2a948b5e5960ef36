//! The names of the block-manager tradition: configs, details, specs, pages.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use kvtile_layout::{
    Axis, LayoutError, Plane, Shape, Shard, StridedLayout, Unit, UnitIndex, Word,
    tensor::TensorFormat,
    tradition::{
        BlockDim, BlockDimension, BlockFormat, BlockOrder, ConfigError, FullyContiguousDetails,
        InnerShape, KvBlockLayout, LayerSeparateDetails, LayoutConfig, LayoutConfigBuilder,
        LayoutKind, LayoutSpec, LayoutTypeDetails, WordDetails, blocks_are_contiguous, page_place,
    },
};
use proptest::prelude::*;

fn builder() -> LayoutConfigBuilder {
    LayoutConfig::builder()
        .num_blocks(6)
        .num_layers(3)
        .outer_dim(2)
        .page_size(4)
        .inner_dim(10)
        .num_heads(5)
}

fn config(inner: InnerShape) -> LayoutConfig {
    builder().inner_shape(inner).build().unwrap()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, LayoutError>) -> ConfigError {
    match result {
        Err(LayoutError::Config(error)) => error,
        other => panic!("expected a config error, got {other:?}"),
    }
}

fn words(spec: &LayoutSpec) -> [String; 3] {
    [InnerShape::NHD, InnerShape::HND, InnerShape::Unknown]
        .map(|inner| spec.word(inner).unwrap().to_string())
}

// Configs.

#[test]
fn a_config_has_the_defaults_of_the_tradition() {
    let config = LayoutConfig::builder()
        .num_blocks(1)
        .num_layers(2)
        .outer_dim(1)
        .page_size(3)
        .inner_dim(7)
        .build()
        .unwrap();
    assert_eq!(config.alignment(), 1);
    assert_eq!(config.dtype_width_bytes(), 2);
    assert_eq!(config.inner_shape(), InnerShape::Unknown);
    assert_eq!(config.num_heads(), None);
    assert_eq!(config.head_size(), None);
    assert_eq!(config.page_bytes(), 42);
    assert_eq!(config.bytes_per_block(), 84);
    assert_eq!(config.required_bytes(), 84);
}

/// Pitfall 1: a config is built with zeros or absurd sizes, and only a later constructor looks.
#[test]
fn build_names_the_field_that_is_missing_or_zero() {
    type Setter = fn(LayoutConfigBuilder, usize) -> LayoutConfigBuilder;
    let setters: [(&str, Setter); 5] = [
        ("num_blocks", LayoutConfigBuilder::num_blocks),
        ("num_layers", LayoutConfigBuilder::num_layers),
        ("outer_dim", LayoutConfigBuilder::outer_dim),
        ("page_size", LayoutConfigBuilder::page_size),
        ("inner_dim", LayoutConfigBuilder::inner_dim),
    ];
    for (i, (name, set)) in setters.iter().enumerate() {
        let others = setters.iter().enumerate().filter(|(j, _)| *j != i);
        let without = others.fold(LayoutConfig::builder(), |b, (_, (_, set))| set(b, 2));
        let missing = ConfigError::MissingField { field: name };
        assert_eq!(refusal(without.clone().build()), missing);
        let zero = LayoutError::ZeroExtent {
            what: (*name).to_owned(),
        };
        assert_eq!(set(without, 0).build(), Err(zero));
    }
    let heads = builder().num_heads(0).build();
    assert!(matches!(heads, Err(LayoutError::ZeroExtent { what }) if what == "num_heads"));
}

#[test]
fn build_refuses_what_no_layout_can_be() {
    let outer = builder().outer_dim(3).build();
    assert_eq!(refusal(outer), ConfigError::OuterDim { outer_dim: 3 });
    for alignment in [0, 3, 48, 1 << 31] {
        let refused = builder().alignment(alignment).build();
        assert!(matches!(refused, Err(LayoutError::Alignment { .. })));
    }
    for width in [0, 3, 5, 16] {
        let refused = builder().dtype_width_bytes(width).build();
        assert_eq!(
            refused,
            Err(LayoutError::DtypeWidth {
                bytes: width as u64
            })
        );
    }
    let uneven = ConfigError::HeadsDoNotDivide {
        num_heads: 3,
        inner_dim: 10,
    };
    assert_eq!(refusal(builder().num_heads(3).build()), uneven);
    let hnd = builder().num_heads(None).inner_shape(InnerShape::HND);
    assert!(matches!(
        refusal(hnd.build()),
        ConfigError::NeedsHeads { .. }
    ));
}

/// Pitfall 3: one-byte elements refused, head size from a formula that contradicts the strides.
#[test]
fn every_element_width_is_taken_and_the_head_size_is_inner_dim_over_heads() {
    for width in [1, 2, 4, 8] {
        let config = builder()
            .dtype_width_bytes(width)
            .inner_shape(InnerShape::NHD)
            .build()
            .unwrap();
        assert_eq!(config.head_size(), Some(2));
        let shape = config.shape().unwrap();
        assert_eq!(shape.planes()[0].extent_of(Axis::C), 2);
        assert_eq!(shape.planes()[0].unit().bytes(), width as u64);
        assert_eq!(
            shape.block_bytes().unwrap(),
            config.bytes_per_block() as u64
        );
    }
}

/// Pitfall 1: size products wrap or saturate.
#[test]
fn sizes_that_do_not_fit_a_signed_offset_are_refused_by_build() {
    let huge = [
        builder().num_blocks(usize::MAX),
        builder().num_blocks(1 << 62),
        builder().num_layers(1 << 61),
        builder().page_size(1 << 60),
        builder().inner_dim(usize::MAX).num_heads(None),
        builder().num_blocks(1 << 58).alignment(1 << 30),
    ];
    for builder in huge {
        assert!(matches!(builder.build(), Err(LayoutError::TooLarge { .. })));
    }
    let largest = LayoutConfig::builder()
        .num_blocks((1 << 31) - 1)
        .num_layers(1 << 16)
        .outer_dim(1)
        .page_size(1 << 8)
        .inner_dim(1 << 7)
        .dtype_width_bytes(1)
        .build()
        .unwrap();
    let expected = ((1 << 31) - 1) * (1usize << 31);
    assert_eq!(largest.required_bytes(), expected);
}

#[test]
fn an_opaque_page_above_the_largest_unit_is_refused_by_build() {
    let page = builder()
        .page_size(1 << 20)
        .inner_dim(1 << 10)
        .num_heads(None);
    let refused = page.clone().build();
    assert!(matches!(refused, Err(LayoutError::UnitBytes { .. })));
    assert!(page.inner_shape(InnerShape::NHD).build().is_ok());
}

#[test]
fn a_config_is_one_json_object_with_optional_fields() {
    let config = builder().build().unwrap();
    let json = serde_json::to_value(&config).unwrap();
    let expected = serde_json::json!({
        "num_blocks": 6, "num_layers": 3, "outer_dim": 2, "page_size": 4, "inner_dim": 10,
        "alignment": 1, "dtype_width_bytes": 2, "inner_shape": "Unknown", "num_heads": 5,
    });
    assert_eq!(json, expected);
    let short = r#"{"num_blocks": 6, "num_layers": 3, "outer_dim": 2, "page_size": 4,
        "inner_dim": 10, "written_by": "another system"}"#;
    let read: LayoutConfig = serde_json::from_str(short).unwrap();
    assert_eq!(read, builder().num_heads(None).build().unwrap());
}

/// Pitfall 1, from outside: deserialising checks what `build` checks.
#[test]
fn a_config_from_json_is_validated() {
    let good = serde_json::to_value(builder().build().unwrap()).unwrap();
    let bad = [
        ("num_blocks", serde_json::json!(0)),
        ("num_blocks", serde_json::json!(-1)),
        ("num_blocks", serde_json::json!(u64::MAX)),
        ("num_blocks", serde_json::Value::Null),
        ("outer_dim", serde_json::json!(3)),
        ("page_size", serde_json::json!("4")),
        ("alignment", serde_json::json!(3)),
        ("dtype_width_bytes", serde_json::json!(3)),
        ("inner_shape", serde_json::json!("DHN")),
        ("num_heads", serde_json::json!(4)),
    ];
    for (field, value) in bad {
        let mut json = good.clone();
        json[field] = value.clone();
        let read = serde_json::from_value::<LayoutConfig>(json);
        assert!(read.is_err(), "{field} {value} was taken");
    }
}

// Kinds and words.

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
        assert_eq!(page_place(&layout, 5, 2, 1).unwrap().bytes, 80);
    }
}

/// Pitfall 6: the inner order is stated or refused, never taken for granted.
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
    assert_eq!(page_place(&layout, 1, 0, 0).unwrap().offset, 256);
    assert_eq!(page_place(&layout, 1, 0, 1).unwrap().offset, 256 + 80);
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

// Details.

#[test]
fn details_are_written_as_existing_systems_write_them() {
    let contiguous = LayoutTypeDetails::FullyContiguous(FullyContiguousDetails::default());
    let json = serde_json::to_string(&contiguous).unwrap();
    assert_eq!(
        json,
        r#"{"FullyContiguous":{"block_format":"Operational"}}"#
    );
    let separate = LayoutTypeDetails::LayerSeparate(LayerSeparateDetails {
        block_dim: BlockDimension::BlockIsFirstDim,
        kv_block_layout: None,
        shape: None,
    });
    let json = serde_json::to_string(&separate).unwrap();
    assert_eq!(json, r#"{"LayerSeparate":{"block_dim":"BlockIsFirstDim"}}"#);
    let word = LayoutTypeDetails::Word(WordDetails {
        word: Word::parse("BHLKNC").unwrap(),
        shape: None,
    });
    let json = serde_json::to_string(&word).unwrap();
    assert_eq!(json, r#"{"Word":{"word":"BHLKNC"}}"#);
}

#[test]
fn every_stated_block_order_is_read() {
    let config = config(InnerShape::Unknown);
    let read = |layout: &str| {
        let json = format!(
            r#"{{"FullyContiguous": {{"block_format": "Operational", "kv_block_layout": {layout}}}}}"#
        );
        let details: LayoutTypeDetails = serde_json::from_str(&json).unwrap();
        details.resolve(&config).unwrap()
    };
    let shape = config.element_shape().unwrap();
    for (layout, word) in [
        (r#""OperationalNHD""#, "BLKNHC"),
        (r#""OperationalHND""#, "BLKHNC"),
        (r#""UniversalTP""#, "BHLKNC"),
        (r#""UniversalPP""#, "BLHKNC"),
        (
            r#"{"Custom": ["Head", "Page", "Layer", "Outer"]}"#,
            "BHNLKC",
        ),
        (
            r#"{"Custom": ["Layer", "Outer", "Page", "Head"]}"#,
            "BLKNHC",
        ),
    ] {
        let word = Word::parse(word).unwrap();
        let expected = StridedLayout::resolve(&word, &shape, 1).unwrap();
        assert!(
            read(layout).same_places(&expected),
            "{layout} is not {word}"
        );
    }
    let opaque = config.shape().unwrap();
    for silent in [r#""Unknown""#, "null"] {
        assert_eq!(read(silent).shape(), &opaque);
    }
}

/// Pitfall 5: a custom order that repeats an axis is refused, and one that a layout cannot hold
/// does not turn into "unknown".
#[test]
fn orders_that_repeat_an_axis_or_do_not_fit_are_refused() {
    use BlockDim::{Head, Layer, Outer, Page};
    assert!(BlockOrder::new([Head, Head, Layer, Outer]).is_err());
    for custom in [
        r#"["Head", "Head", "Layer", "Outer"]"#,
        r#"["Head", "Page", "Layer"]"#,
        r#"["Head", "Page", "Layer", "Outer", "Page"]"#,
        r#"["Head", "Page", "Layer", "Block"]"#,
    ] {
        let json =
            format!(r#"{{"FullyContiguous": {{"kv_block_layout": {{"Custom": {custom}}}}}}}"#);
        let read = serde_json::from_str::<LayoutTypeDetails>(&json);
        assert!(read.is_err(), "{custom} was taken");
    }
    let config = config(InnerShape::Unknown);
    let custom = |order| KvBlockLayout::Custom(BlockOrder::new(order).unwrap());
    let separate = |block_dim, kv_block_layout| {
        LayoutTypeDetails::LayerSeparate(LayerSeparateDetails {
            block_dim,
            kv_block_layout: Some(kv_block_layout),
            shape: None,
        })
        .resolve(&config)
    };
    for (block_dim, order) in [
        (BlockDimension::BlockIsFirstDim, KvBlockLayout::UniversalTP),
        (BlockDimension::BlockIsSecondDim, KvBlockLayout::UniversalTP),
        (BlockDimension::BlockIsSecondDim, KvBlockLayout::UniversalPP),
        (
            BlockDimension::BlockIsSecondDim,
            custom([Layer, Page, Outer, Head]),
        ),
    ] {
        let error = refusal(separate(block_dim, order));
        assert!(
            matches!(error, ConfigError::LayerSeparateOrder { .. }),
            "{error}"
        );
    }
    // One region a layer can hold this one, and does.
    let held = separate(
        BlockDimension::BlockIsFirstDim,
        custom([Layer, Page, Outer, Head]),
    );
    let word = Word::parse("L|BNKHC").unwrap();
    let shape = config.element_shape().unwrap();
    let expected = StridedLayout::resolve(&word, &shape, 1).unwrap();
    assert!(held.unwrap().same_places(&expected));
}

/// Pitfall 6: two statements of the inner order agree, or the descriptor is refused.
#[test]
fn a_stated_order_that_contradicts_the_inner_shape_is_refused() {
    let details = |stated| {
        LayoutTypeDetails::FullyContiguous(FullyContiguousDetails {
            kv_block_layout: Some(stated),
            ..FullyContiguousDetails::default()
        })
    };
    let (nhd, hnd) = (KvBlockLayout::OperationalNHD, KvBlockLayout::OperationalHND);
    for (inner, stated, agrees) in [
        (InnerShape::NHD, nhd, true),
        (InnerShape::NHD, hnd, false),
        (InnerShape::HND, hnd, true),
        (InnerShape::HND, nhd, false),
        (InnerShape::NHD, KvBlockLayout::UniversalTP, false),
        (InnerShape::NHD, KvBlockLayout::Unknown, true),
        (InnerShape::Unknown, hnd, true),
    ] {
        let read = details(stated).resolve(&config(inner));
        assert_eq!(read.is_ok(), agrees, "{inner:?} and {stated}");
        if !agrees {
            let error = refusal(read);
            assert!(matches!(error, ConfigError::InnerShapeContradicts { .. }));
        }
    }
    let no_heads = builder().num_heads(None).build().unwrap();
    assert!(details(nhd).resolve(&no_heads).is_ok());
    let error = refusal(details(KvBlockLayout::UniversalTP).resolve(&no_heads));
    assert!(matches!(error, ConfigError::NeedsHeads { .. }));
}

/// Pitfall 15: same total bytes, different shape.
#[test]
fn a_shape_that_is_not_what_the_config_says_is_refused() {
    let config = config(InnerShape::NHD);
    let unit = Unit::raw(2).unwrap();
    let shape = |b, l, n, h, c| Shape::key_value(b, l, n, h, c, &unit).unwrap();
    let read = |shape: &Shape| {
        let details = LayoutTypeDetails::Word(WordDetails {
            word: Word::parse("BLKNHC").unwrap(),
            shape: Some(shape.clone()),
        });
        details.resolve(&config)
    };
    assert!(read(&shape(6, 3, 4, 5, 2)).is_ok());
    for (other, field) in [
        (shape(3, 6, 4, 5, 2), "num_blocks"),
        (shape(6, 2, 6, 5, 2), "num_layers"),
        (shape(6, 3, 5, 4, 2), "page_size"),
        (shape(6, 3, 4, 5, 3), "bytes per block"),
        (shape(6, 3, 4, 2, 5), "num_heads"),
    ] {
        let error = refusal(read(&other));
        let named = matches!(error, ConfigError::ShapeDisagrees { what, .. } if what == field);
        assert!(named, "{error}");
    }
}

#[test]
fn a_traditional_layout_keeps_codecs_and_shard_in_its_details() {
    let bf16 = Unit::named("bf16").unwrap();
    let shape = Shape::key_value(6, 3, 4, 5, 2, &bf16)
        .unwrap()
        .with_shard(Shard::tensor_parallel(3, 10, 1, 2).unwrap())
        .unwrap();
    let config = config(InnerShape::HND);
    let spec = LayoutSpec::LayerSeparate(BlockDimension::BlockIsSecondDim);
    let details = LayoutTypeDetails::describing(&spec, &shape, &config).unwrap();
    let LayoutTypeDetails::LayerSeparate(separate) = &details else {
        panic!("{details:?}");
    };
    assert_eq!(
        separate.kv_block_layout,
        Some(KvBlockLayout::OperationalHND)
    );
    assert_eq!(separate.shape.as_ref(), Some(&shape));
    assert_eq!(details.spec(&config).unwrap(), spec);
    assert_eq!(details.shape(&config).unwrap(), shape);
    assert_eq!(details.inner_shape(&config).unwrap(), InnerShape::HND);
    assert_eq!(
        details.kind(),
        LayoutKind::LayerSeparate(BlockDimension::BlockIsSecondDim)
    );
}

#[test]
fn planes_that_the_tradition_cannot_say_are_described_by_a_word() {
    let byte = Unit::raw(1).unwrap();
    let plane = |name, extent| {
        Plane::new(name, byte.clone())
            .unwrap()
            .extent(Axis::C, extent)
    };
    let shape = Shape::new(6, 3, 4, vec![plane("c", 512), plane("r", 64)]).unwrap();
    let config = LayoutConfig::from_shape(&shape, 1).unwrap();
    assert_eq!((config.outer_dim(), config.inner_dim()), (1, 576));
    let spec = LayoutSpec::LayerSeparate(BlockDimension::BlockIsSecondDim);
    let details = LayoutTypeDetails::describing(&spec, &shape, &config).unwrap();
    let LayoutTypeDetails::Word(word) = &details else {
        panic!("{details:?}");
    };
    assert_eq!(word.word.to_string(), "L|KBNHC");
    let direct = spec.resolve(&shape, InnerShape::Unknown, 1).unwrap();
    assert!(details.resolve(&config).unwrap().same_places(&direct));
    // Nor may a descriptor claim it: with outer_dim 1, others would look in the wrong place.
    let claimed = LayoutTypeDetails::LayerSeparate(LayerSeparateDetails {
        block_dim: BlockDimension::BlockIsSecondDim,
        kv_block_layout: None,
        shape: Some(shape),
    });
    let error = refusal(claimed.resolve(&config));
    assert!(matches!(
        error,
        ConfigError::ShapeDisagrees {
            what: "outer_dim",
            ..
        }
    ));
}

#[test]
fn unknown_fields_of_details_are_refused() {
    for json in [
        r#"{"FullyContiguous": {"block_format": "Operational", "swizzle": 8}}"#,
        r#"{"LayerSeparate": {"block_dim": "BlockIsFirstDim", "swizzle": 8}}"#,
        r#"{"Word": {"word": "BLKNHC", "swizzle": 8}}"#,
        r#"{"FullyContiguous": {"block_format": "Compressed"}}"#,
        r#"{"Other": {}}"#,
    ] {
        assert!(
            serde_json::from_str::<LayoutTypeDetails>(json).is_err(),
            "{json}"
        );
    }
}

#[test]
fn a_config_from_a_shape_counts_what_the_shape_holds() {
    let q8 = Unit::named("q8_0").unwrap();
    let quantised = Shape::key_value(7, 2, 4, 3, 2, &q8).unwrap();
    let config = LayoutConfig::from_shape(&quantised, 64).unwrap();
    assert_eq!((config.outer_dim(), config.dtype_width_bytes()), (2, 1));
    assert_eq!((config.inner_dim(), config.num_heads()), (204, Some(3)));
    assert_eq!(
        config.bytes_per_block() as u64,
        quantised.block_bytes().unwrap()
    );
    assert_eq!(config.alignment(), 64);
    let known = self::config(InnerShape::HND);
    assert_eq!(
        LayoutConfig::from_shape(&known.shape().unwrap(), 1)
            .unwrap()
            .inner_dim(),
        10
    );
    let state = Plane::new("s", Unit::raw(1).unwrap())
        .unwrap()
        .per_page()
        .extent(Axis::C, 5);
    let odd = Shape::new(1, 1, 4, vec![state]).unwrap();
    let error = refusal(LayoutConfig::from_shape(&odd, 1));
    assert_eq!(
        error,
        ConfigError::NoInnerDim {
            bytes: 5,
            page_size: 4
        }
    );
    assert!(LayoutConfig::from_shape(&quantised, 3).is_err());
}

// Pages.

#[test]
fn the_page_of_one_block_layer_and_plane_has_one_place() {
    let config = config(InnerShape::HND);
    let details = LayoutTypeDetails::FullyContiguous(FullyContiguousDetails::default());
    let layout = details.resolve(&config).unwrap();
    let page = page_place(&layout, 4, 1, 1).unwrap();
    assert_eq!(
        (page.region, page.offset, page.bytes),
        (0, ((4 * 3 + 1) * 2 + 1) * 80, 80)
    );
    let blocks = LayoutError::IndexOutOfRange {
        axis: Axis::B,
        index: 6,
        extent: 6,
    };
    assert_eq!(page_place(&layout, 6, 0, 0), Err(blocks));
    assert!(matches!(
        page_place(&layout, 0, 3, 0),
        Err(LayoutError::IndexOutOfRange { .. })
    ));
    let error = refusal(page_place(&layout, 0, 0, 2));
    assert_eq!(
        error,
        ConfigError::OuterOutOfRange {
            outer: 2,
            planes: 2
        }
    );
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
        let page = page_place(&layout, 1, 1, 1);
        assert_eq!(page.is_ok(), page_is_one_run, "{word}");
        if !page_is_one_run {
            assert!(matches!(refusal(page), ConfigError::NotContiguous { .. }));
        }
        assert_eq!(blocks_are_contiguous(&layout), block_is_one_run, "{word}");
    }
}

#[test]
fn tensor_formats_are_inner_shapes() {
    assert_eq!(InnerShape::from(TensorFormat::NHD), InnerShape::NHD);
    assert_eq!(InnerShape::from(TensorFormat::HND), InnerShape::HND);
    assert_eq!(InnerShape::from(TensorFormat::Unknown), InnerShape::Unknown);
    assert_eq!(BlockFormat::default(), BlockFormat::Operational);
}

// Properties.

fn configs() -> impl Strategy<Value = LayoutConfig> {
    let counts = (
        1..9usize,
        1..5usize,
        1..3usize,
        1..9usize,
        1..5usize,
        1..9usize,
    );
    let kinds = prop_oneof![
        Just(InnerShape::Unknown),
        Just(InnerShape::NHD),
        Just(InnerShape::HND)
    ];
    (counts, 0..12u32, 0..4u32, kinds, any::<bool>()).prop_map(
        |((blocks, layers, outer, page, heads, size), align, width, inner, with_heads)| {
            LayoutConfig::builder()
                .num_blocks(blocks)
                .num_layers(layers)
                .outer_dim(outer)
                .page_size(page)
                .inner_dim(heads * size)
                .alignment(1 << align)
                .dtype_width_bytes(1 << width)
                .inner_shape(inner)
                .num_heads((with_heads || inner == InnerShape::HND).then_some(heads))
                .build()
                .unwrap()
        },
    )
}

fn specs() -> impl Strategy<Value = LayoutSpec> {
    prop_oneof![
        Just(LayoutSpec::FullyContiguous),
        Just(LayoutSpec::LayerSeparate(BlockDimension::BlockIsFirstDim)),
        Just(LayoutSpec::LayerSeparate(BlockDimension::BlockIsSecondDim)),
        Just("BNLKC".parse().unwrap()),
        Just("BLK".parse().unwrap()),
        Just("BHLKNC".parse().unwrap()),
    ]
}

proptest! {
    #[test]
    fn configs_survive_json(config in configs()) {
        let json = serde_json::to_string(&config).unwrap();
        prop_assert_eq!(serde_json::from_str::<LayoutConfig>(&json).unwrap(), config);
    }

    #[test]
    fn details_survive_json_and_resolve_to_the_same_places(config in configs(), spec in specs()) {
        let Ok(shape) = spec.shape(&config) else {
            return Ok(());
        };
        let alignment = config.alignment() as u64;
        let Ok(layout) = spec.resolve(&shape, config.inner_shape(), alignment) else {
            return Ok(());
        };
        let details = LayoutTypeDetails::describing(&spec, &shape, &config).unwrap();
        let json = serde_json::to_string(&details).unwrap();
        let read: LayoutTypeDetails = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&read, &details);
        prop_assert!(read.resolve(&config).unwrap().same_places(&layout));
        prop_assert_eq!(read.spec(&config).unwrap(), spec);
    }

    #[test]
    fn a_config_from_a_shape_has_its_bytes(config in configs(), spec in specs()) {
        let Ok(shape) = spec.shape(&config) else {
            return Ok(());
        };
        let described = LayoutConfig::from_shape(&shape, 1).unwrap();
        prop_assert_eq!(described.required_bytes(), config.required_bytes());
        prop_assert_eq!(described.num_blocks(), config.num_blocks());
        prop_assert_eq!(described.page_size(), config.page_size());
    }

    /// Hostile JSON: whatever is read resolves or is refused, without a panic.
    #[test]
    fn mutated_json_never_panics(
        config in configs(),
        spec in specs(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mutate = |text: String| {
            let mut bytes = text.into_bytes();
            for (at, byte) in &edits {
                let at = at.index(bytes.len());
                bytes[at] = b"0123456789-{}[]\",:BLKNHC|@=e."[usize::from(*byte) % 29];
            }
            bytes
        };
        let config_json = mutate(serde_json::to_string(&config).unwrap());
        let config = match serde_json::from_slice::<LayoutConfig>(&config_json) {
            Ok(read) => read,
            Err(_) => config,
        };
        let shape = spec.shape(&config).and_then(|shape| {
            LayoutTypeDetails::describing(&spec, &shape, &config)
        });
        if let Ok(details) = shape {
            let json = mutate(serde_json::to_string(&details).unwrap());
            if let Ok(read) = serde_json::from_slice::<LayoutTypeDetails>(&json) {
                let _ = read.resolve(&config);
            }
        }
    }

    #[test]
    fn digits_survive_json(config in configs()) {
        let shape = config.element_shape().unwrap();
        let word = Word::parse("L|KBNHC").unwrap();
        let layout = StridedLayout::resolve(&word, &shape, 1).unwrap();
        let planes = layout
            .planes()
            .map(|(plane, piece)| kvtile_layout::PlaneDigits {
                plane: plane.name().to_string(),
                region: piece.region(),
                offset: piece.offset(),
                digits: piece.digits().to_vec(),
            })
            .collect();
        let spec = LayoutSpec::Digits {
            planes,
            region_bytes: layout.region_bytes().to_vec(),
        };
        let json = serde_json::to_string(&spec).unwrap();
        let read: LayoutSpec = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(&read, &spec);
        let resolved = read.resolve(&shape, InnerShape::Unknown, 1).unwrap();
        prop_assert!(resolved.same_places(&layout));
        let details = LayoutTypeDetails::describing(&spec, &shape, &config).unwrap();
        prop_assert!(details.resolve(&config).unwrap().same_places(&layout));
    }
}
