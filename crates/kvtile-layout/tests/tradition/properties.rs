//! Random configs, specs and mutated JSON.

use super::*;

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

    /// Hostile JSON: every accepted value resolves or is refused, without a panic.
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
