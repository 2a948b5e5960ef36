//! Sizes, roles and readings.

use super::*;

#[test]
fn sizes_that_fit_in_one_way_are_read() {
    for (sizes, planes, expected) in [
        (vec![10, 2, 16, 4, 8], None, "[B, (k,v), N, H, C]"),
        (vec![2, 10, 16, 4, 8], None, "[(k,v), B, N, H, C]"),
        (vec![10, 16, 4, 8], Some("k"), "[B, N, H, C]"),
        (vec![10, 1, 4, 16, 8], Some("v"), "[B, 1, H, N, C]"),
    ] {
        let mut view = dense(&sizes).with_layer(1);
        view.plane = planes.map(name);
        let read = validate_tensor_shapes(&[view], &shape());
        let read = read.unwrap();
        assert_eq!(read.sizes, sizes);
        assert!(read.describe().starts_with(expected), "{}", read.describe());
    }
    let packed = dense(&[10, 3, 4, 5, 16]).with_layer(0);
    let shape = Shape::key_value(10, 2, 3, 4, 8, bf16()).unwrap();
    assert!(matches!(
        refusal(validate_tensor_shapes(&[packed], &shape)),
        TensorError::NoReading { .. }
    ));
    let packed = dense(&[10, 3, 4, 16]).with_layer(0);
    let read = validate_tensor_shapes(&[packed], &shape).unwrap();
    assert_eq!(read.roles, roles("BNHP"));
}

/// Pitfall 24: two layer or head readings fit the same tensor shape, and the code picks one.
#[test]
fn two_readings_of_the_same_numbers_are_an_error_that_names_both() {
    for (shape, sizes, first, second) in [
        (
            one_layer(10, 16, 16, 8),
            vec![10, 2, 16, 16, 8],
            "[B, (k,v), N, H, C]",
            "[B, (k,v), H, N, C]",
        ),
        (
            one_layer(2, 16, 4, 8),
            vec![2, 2, 16, 4, 8],
            "[B, (k,v), N, H, C]",
            "[(k,v), B, N, H, C]",
        ),
        (
            one_layer(10, 16, 8, 8),
            vec![10, 2, 16, 8, 8],
            "[B, (k,v), N, H, C]",
            "[B, (k,v), N, C, H]",
        ),
        (
            Shape::key_value(10, 10, 16, 4, 8, bf16()).unwrap(),
            vec![10, 10, 2, 16, 4, 8],
            "[B, L, (k,v), N, H, C]",
            "[L, B, (k,v), N, H, C]",
        ),
    ] {
        let view = dense(&sizes);
        let refused = refusal(validate_tensor_shapes(std::slice::from_ref(&view), &shape));
        let expected = TensorError::TwoReadings {
            sizes: sizes.clone(),
            first: first.to_owned(),
            second: second.to_owned(),
        };
        assert_eq!(refused, expected);
        // With explicit roles, both readings are valid.
        let letters = first
            .replace("(k,v)", "K")
            .replace(['[', ']', ',', ' '], "");
        let said = view.with_roles(roles(&letters));
        assert!(validate_tensor_shapes(&[said], &shape).is_ok());
    }
}

#[test]
fn roles_that_do_not_fit_are_refused() {
    let of = |view: TensorView| refusal(validate_tensor_shapes(&[view.with_layer(0)], &shape()));
    let swapped = dense(&[10, 2, 16, 4, 8]).with_roles(roles("BKHNC"));
    let expected = TensorError::DimensionSize {
        tensor: 0,
        dim: 2,
        role: "H".to_owned(),
        size: 16,
        expected: 4,
    };
    assert_eq!(of(swapped), expected);
    let which = of(dense(&[10, 16, 4, 8]).with_roles(roles("BNHC")));
    assert!(matches!(which, TensorError::WhichPlane { .. }));
    let twice = dense(&[10, 2, 16, 4, 8])
        .with_roles(roles("BKNHC"))
        .with_plane(name("k"));
    assert!(matches!(of(twice), TensorError::WhichPlane { .. }));
    let unknown = dense(&[10, 16, 4, 8])
        .with_roles(roles("BNHC"))
        .with_plane(name("q"));
    assert!(matches!(of(unknown), TensorError::WhichPlane { .. }));
    let bytes = TensorView::new(&[10, 2, 16, 4, 8], &[1024, 512, 32, 8, 1], 1);
    let bytes = of(bytes.with_roles(roles("BKNHC")));
    assert!(matches!(
        bytes,
        TensorError::DimensionSize {
            dim: 4,
            size: 8,
            expected: 16,
            ..
        }
    ));
    let wide = TensorView::new(&[10, 2, 16, 4, 8], &[1024, 512, 32, 8, 1], 4);
    let wide = of(wide.with_roles(roles("BKNHC")));
    assert!(matches!(wide, TensorError::TensorBytes { .. }));
}

#[test]
fn a_layer_is_said_once() {
    let view = dense(&[10, 2, 16, 4, 8]).with_roles(roles("BKNHC"));
    for layer in [None, Some(3), Some(u64::MAX)] {
        let view = TensorView {
            layer,
            ..view.clone()
        };
        let error = refusal(validate_tensor_shapes(&[view], &shape()));
        let expected = TensorError::WhichLayer {
            tensor: 0,
            num_layers: 3,
        };
        assert_eq!(error, expected);
    }
    let both = dense(&[3, 10, 2, 16, 4, 8])
        .with_roles(roles("LBKNHC"))
        .with_layer(0);
    let error = refusal(validate_tensor_shapes(&[both], &shape()));
    assert!(matches!(error, TensorError::WhichLayer { .. }));
}

#[test]
fn tensors_of_unequal_shapes_are_refused_together() {
    let mut views = per_layer(&dense(&[10, 2, 16, 4, 8]), 3);
    views[2] = dense(&[2, 10, 16, 4, 8]).with_layer(2);
    let error = refusal(validate_tensor_shapes(&views, &shape()));
    assert!(matches!(error, TensorError::ShapesDiffer { tensor: 2, .. }));
}

#[test]
fn the_search_for_readings_ends_on_many_equal_sizes() {
    let plane = ('D'..='J')
        .filter_map(Axis::new)
        .filter(|axis| !axis.is_standard())
        .fold(Plane::new("s", bf16()).unwrap(), |p, axis| {
            p.extent(axis, 4)
        });
    let shape = Shape::new(4, 4, 4, vec![plane]).unwrap();
    for sizes in [vec![4; 8], vec![4; 9], vec![4, 4, 4, 4, 4, 4, 4, 5]] {
        let error = refusal(validate_tensor_shapes(&[dense(&sizes)], &shape));
        let no_single = matches!(
            error,
            TensorError::NoReading { .. } | TensorError::TwoReadings { .. }
        );
        assert!(no_single, "{error}");
    }
}
