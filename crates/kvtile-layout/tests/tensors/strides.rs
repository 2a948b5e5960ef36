//! Strides and the formats that they imply.

use super::*;
use kvtile_layout::ShapeError;

#[test]
fn roles_and_strides_say_the_format() {
    for (letters, sizes, format) in [
        ("BKNHC", [10, 2, 16, 4, 8], TensorFormat::NHD),
        ("KBNHC", [2, 10, 16, 4, 8], TensorFormat::NHD),
        ("BKHNC", [10, 2, 4, 16, 8], TensorFormat::HND),
        ("KBHNC", [2, 10, 4, 16, 8], TensorFormat::HND),
        ("KBHCN", [2, 10, 4, 8, 16], TensorFormat::Unknown),
        ("KBCNH", [2, 10, 8, 16, 4], TensorFormat::Unknown),
    ] {
        let view = dense(&sizes).with_roles(roles(letters));
        assert_eq!(
            validate_tensor_strides(&[view]).unwrap(),
            format,
            "{letters}"
        );
    }
}

#[test]
fn a_transposed_view_is_what_its_strides_are() {
    // Sizes in the order N, H of a tensor that lies in the order H, N.
    let strides = [2 * 4 * 16 * 8, 4 * 16 * 8, 8, 16 * 8, 1];
    let view = TensorView::new(&[10, 2, 16, 4, 8], &strides, BF16).with_roles(roles("BKNHC"));
    assert_eq!(validate_tensor_strides(&[view]).unwrap(), TensorFormat::HND);
}

#[test]
fn strides_of_dimensions_of_one_entry_are_not_looked_at() {
    let one_head = TensorView::new(&[10, 2, 16, 1, 8], &[256, 128, 8, 8, 1], BF16);
    let strange = TensorView::new(&[10, 2, 16, 1, 8], &[256, 128, 8, 0, 1], BF16);
    let one_token = TensorView::new(&[10, 2, 1, 4, 8], &[64, 32, -7, 8, 1], BF16);
    for view in [one_head, strange, one_token] {
        let view = view.with_roles(roles("BKNHC"));
        assert_eq!(validate_tensor_strides(&[view]).unwrap(), TensorFormat::NHD);
    }
}

#[test]
fn tiles_and_unnamed_heads_are_an_unknown_format() {
    // [B, H, C/4, N, 4]: content tiles outside and inside the tokens.
    let digit = |low, extent| {
        let axis = Axis::C;
        DimRole::Digits(vec![DimDigit { axis, low, extent }])
    };
    let [b, h, n] = [Axis::B, Axis::H, Axis::N].map(DimRole::Axis);
    let tiles = [b, h, digit(4, 2), n, digit(1, 4)];
    let view = dense(&[10, 4, 2, 16, 4]).with_roles(tiles);
    assert_eq!(
        validate_tensor_strides(&[view]).unwrap(),
        TensorFormat::Unknown
    );
    let fused = dense(&[10, 2, 16, 32]).with_roles(roles("BKNC"));
    assert_eq!(
        validate_tensor_strides(&[fused]).unwrap(),
        TensorFormat::Unknown
    );
    // Kernel blocks of 4 tokens with heads outside: tokens on both sides of the heads.
    let kernel = dense(&[40, 4, 4, 8]).with_roles([
        DimRole::kernel_blocks(10, 16, 4),
        DimRole::Axis(Axis::H),
        DimRole::kernel_tokens(4),
        DimRole::Axis(Axis::C),
    ]);
    assert_eq!(
        validate_tensor_strides(&[kernel]).unwrap(),
        TensorFormat::Unknown
    );
}

#[test]
fn strides_that_are_zero_negative_or_overlapping_are_refused() {
    let of = |strides: [isize; 3]| {
        let view = TensorView::new(&[10, 16, 8], &strides, BF16).with_roles(roles("BNC"));
        refusal(validate_tensor_strides(&[view]))
    };
    let zero = TensorError::ZeroStride {
        tensor: 0,
        dim: 0,
        size: 10,
    };
    assert_eq!(of([0, 8, 1]), zero);
    let negative = TensorError::NegativeStride {
        tensor: 0,
        dim: 1,
        stride: -8,
    };
    assert_eq!(of([128, -8, 1]), negative);
    let overlapping = TensorError::OverlappingStride {
        tensor: 0,
        dim: 0,
        stride: 127,
        span: 128,
    };
    assert_eq!(of([127, 8, 1]), overlapping);
    let huge = of([isize::MAX, isize::MAX, 1]);
    assert!(matches!(huge, TensorError::OverlappingStride { .. }));
    let extreme = of([isize::MIN, 8, 1]);
    assert!(matches!(extreme, TensorError::NegativeStride { .. }));
}

#[test]
fn tensors_that_are_no_tensors_are_refused() {
    let of = |view: TensorView| validate_tensor_strides(&[view]);
    assert_eq!(
        refusal(validate_tensor_strides(&[])),
        TensorError::NoTensors
    );
    assert_eq!(
        refusal(of(dense(&[2, 3]))),
        TensorError::RolesMissing { tensor: 0 }
    );
    let short = TensorView::new(&[2, 3], &[3], BF16).with_roles(roles("BN"));
    assert!(matches!(
        refusal(of(short)),
        TensorError::Dimensions { strides: 1, .. }
    ));
    let few = dense(&[2, 3]).with_roles(roles("B"));
    assert!(matches!(
        refusal(of(few)),
        TensorError::Dimensions { roles: 1, .. }
    ));
    let many = dense(&[1; 17]).with_roles(roles(&"1".repeat(17)));
    assert!(matches!(
        refusal(of(many)),
        TensorError::Dimensions { sizes: 17, .. }
    ));
    let empty = dense(&[2, 0]).with_roles(roles("BN"));
    assert!(matches!(
        of(empty),
        Err(LayoutError::Shape(ShapeError::ZeroExtent { .. }))
    ));
    let bytes = TensorView::new(&[2, 3], &[3, 1], 0).with_roles(roles("BN"));
    assert!(matches!(
        refusal(of(bytes)),
        TensorError::ElementBytes { bytes: 0, .. }
    ));
}

#[test]
fn tensors_of_two_formats_are_refused_together() {
    let nhd = dense(&[10, 2, 16, 4, 8]).with_roles(roles("BKNHC"));
    let hnd = dense(&[10, 2, 4, 16, 8]).with_roles(roles("BKHNC"));
    let expected = TensorError::FormatsDiffer {
        tensor: 1,
        found: TensorFormat::HND,
        expected: TensorFormat::NHD,
    };
    assert_eq!(refusal(validate_tensor_strides(&[nhd, hnd])), expected);
}
