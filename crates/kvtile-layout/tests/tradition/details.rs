//! Details as descriptors write them.

use super::*;

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

/// Pitfall 5: a custom order that repeats an axis is refused, and an order that a layout cannot
/// hold does not become "unknown".
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
    // A layer-separate layout can hold this order, and keeps it.
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
    // A descriptor may not claim it either: with outer_dim 1, other systems would read the wrong
    // place.
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
