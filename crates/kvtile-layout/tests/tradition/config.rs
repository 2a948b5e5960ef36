//! Configs: what build and deserialising refuse.

use super::*;
use kvtile_layout::{ResolveError, ShapeError};

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

/// Pitfall 1: `build` accepts zeros or absurd sizes, and only a later constructor checks them.
#[test]
fn build_names_the_field_that_is_missing_or_zero() {
    type ConfigSetter = fn(LayoutConfigBuilder, usize) -> LayoutConfigBuilder;
    let setters: [(&str, ConfigSetter); 5] = [
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
        let zero = LayoutError::Shape(ShapeError::ZeroExtent {
            what: (*name).to_owned(),
        });
        assert_eq!(set(without, 0).build(), Err(zero));
    }
    let heads = builder().num_heads(0).build();
    assert!(
        matches!(heads, Err(LayoutError::Shape(ShapeError::ZeroExtent { what })) if what == "num_heads")
    );
}

#[test]
fn build_refuses_what_no_layout_can_be() {
    let outer = builder().outer_dim(3).build();
    assert_eq!(refusal(outer), ConfigError::OuterDim { outer_dim: 3 });
    for alignment in [0, 3, 48, 1 << 31] {
        let refused = builder().alignment(alignment).build();
        assert!(matches!(
            refused,
            Err(LayoutError::Resolve(ResolveError::Alignment { .. }))
        ));
    }
    for width in [0, 3, 5, 16] {
        let refused = builder().dtype_width_bytes(width).build();
        assert_eq!(
            refused,
            Err(LayoutError::Shape(ShapeError::DtypeWidth {
                bytes: width as u64
            }))
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
        assert!(matches!(
            builder.build(),
            Err(LayoutError::Shape(ShapeError::TooLarge { .. }))
        ));
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
    assert!(matches!(
        refused,
        Err(LayoutError::Shape(ShapeError::UnitBytes { .. }))
    ));
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

/// Pitfall 1, for external input: deserialising checks the same as `build`.
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
