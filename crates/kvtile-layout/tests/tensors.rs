//! Imported tensors: strides, formats, readings and the layouts they make.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use kvtile_layout::{
    Axis, LayoutError, Plane, PlaneName, Shape, StridedLayout, Unit, UnitIndex, Word,
    tensor::{
        DimDigit, DimRole, TensorError, TensorFormat, TensorView, layout_from_tensors,
        validate_tensor_shapes, validate_tensor_strides,
    },
};
use proptest::prelude::*;

const BF16: usize = 2;

fn bf16() -> Unit {
    Unit::named("bf16").unwrap()
}

/// 10 blocks, 3 layers, 16 tokens, 4 heads of 8.
fn shape() -> Shape {
    Shape::key_value(10, 3, 16, 4, 8, &bf16()).unwrap()
}

fn one_layer(blocks: u64, tokens: u64, heads: u64, size: u64) -> Shape {
    Shape::key_value(blocks, 1, tokens, heads, size, &bf16()).unwrap()
}

/// A dense tensor of these sizes.
fn dense(sizes: &[usize]) -> TensorView {
    let mut strides: Vec<isize> = Vec::new();
    let mut span = 1;
    for &size in sizes.iter().rev() {
        strides.insert(0, span);
        span *= isize::try_from(size).unwrap();
    }
    TensorView::new(sizes, &strides, BF16)
}

/// Roles from letters, `K` for the planes k and v, `P` for K and V packed in the content.
fn roles(letters: &str) -> Vec<DimRole> {
    letters
        .chars()
        .map(|letter| match letter {
            'K' => DimRole::planes(&["k", "v"]).unwrap(),
            'P' => DimRole::packed(Axis::C, &["k", "v"]).unwrap(),
            '1' => DimRole::Single,
            axis => DimRole::Axis(Axis::new(axis).unwrap()),
        })
        .collect()
}

fn resolve(word: &str, shape: &Shape) -> StridedLayout {
    StridedLayout::resolve(&Word::parse(word).unwrap(), shape, 1).unwrap()
}

fn per_layer(view: &TensorView, layers: u64) -> Vec<TensorView> {
    (0..layers)
        .map(|layer| view.clone().at(layer, 0).with_layer(layer))
        .collect()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, LayoutError>) -> TensorError {
    match result {
        Err(LayoutError::Tensor(error)) => error,
        other => panic!("expected a tensor error, got {other:?}"),
    }
}

fn name(text: &str) -> PlaneName {
    PlaneName::new(text).unwrap()
}

// Strides and formats.

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
    // [B, H, C/4, N, 4]: the tiles of the content stand outside and inside the tokens.
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
    assert!(matches!(of(empty), Err(LayoutError::ZeroExtent { .. })));
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

// Shapes and readings.

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
    let shape = Shape::key_value(10, 2, 3, 4, 8, &bf16()).unwrap();
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
            Shape::key_value(10, 10, 16, 4, 8, &bf16()).unwrap(),
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
        // Said, either of them is fine.
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

// Layouts.

#[test]
fn registered_tensors_become_the_layout_of_their_word() {
    for (word, letters, sizes) in [
        ("L|KBNHC", "KBNHC", vec![2, 10, 16, 4, 8]),
        ("L|BKNHC", "BKNHC", vec![10, 2, 16, 4, 8]),
        ("L|KBHNC", "KBHNC", vec![2, 10, 4, 16, 8]),
        ("L|BNHKC", "BNHP", vec![10, 16, 4, 16]),
        ("L|BHNKC", "BHNP", vec![10, 4, 16, 16]),
    ] {
        let shape = shape();
        let expected = resolve(word, &shape);
        let view = dense(&sizes).with_roles(roles(letters));
        let tensors = per_layer(&view, 3);
        let layout = layout_from_tensors(&tensors, &shape, expected.region_bytes(), 1).unwrap();
        assert!(layout.same_places(&expected), "{word}");
    }
}

#[test]
fn one_tensor_may_hold_all_layers() {
    let shape = shape();
    let expected = resolve("LBNHKC", &shape);
    // As vLLM gives it: logical order [B, N, H, 2D] of a block-second allocation.
    let strides = [16 * 4 * 16, 10 * 16 * 4 * 16, 4 * 16, 16, 1];
    let view = TensorView::new(&[10, 3, 16, 4, 16], &strides, BF16).with_roles(roles("BLNHP"));
    let layout = layout_from_tensors(&[view], &shape, expected.region_bytes(), 1).unwrap();
    assert!(layout.same_places(&expected));
}

#[test]
fn kernel_blocks_cut_the_tokens_of_a_page() {
    let shape = Shape::key_value(10, 2, 16, 4, 8, &bf16()).unwrap();
    let expected = resolve("L|BNHN4KC", &shape);
    let view = dense(&[40, 4, 4, 16]).with_roles([
        DimRole::kernel_blocks(10, 16, 4),
        DimRole::Axis(Axis::H),
        DimRole::kernel_tokens(4),
        DimRole::packed(Axis::C, &["k", "v"]).unwrap(),
    ]);
    let tensors = per_layer(&view, 2);
    let layout = layout_from_tensors(&tensors, &shape, expected.region_bytes(), 1).unwrap();
    assert!(layout.same_places(&expected));
    let wrong = view.with_roles([
        DimRole::kernel_blocks(10, 16, 4),
        DimRole::Axis(Axis::H),
        DimRole::Axis(Axis::N),
        DimRole::packed(Axis::C, &["k", "v"]).unwrap(),
    ]);
    let error = refusal(layout_from_tensors(
        &per_layer(&wrong, 2),
        &shape,
        expected.region_bytes(),
        1,
    ));
    assert!(matches!(
        error,
        TensorError::DimensionSize { expected: 16, .. }
    ));
}

#[test]
fn tiles_and_transposed_values_come_in_tensors_of_their_own() {
    // [B, H, C/4, N, 4] for keys, [B, H, C, N] for values, as ROCm's paged attention has them.
    let shape = Shape::key_value(10, 2, 16, 4, 8, &bf16()).unwrap();
    let expected = resolve("L|(kBHCNC4,vBHCN)", &shape);
    let tile = |low, extent| {
        let axis = Axis::C;
        DimRole::Digits(vec![DimDigit { axis, low, extent }])
    };
    let [b, h, n] = [Axis::B, Axis::H, Axis::N].map(DimRole::Axis);
    let half = 10 * 4 * 8 * 16 * 2;
    let tensors: Vec<TensorView> = (0..2)
        .flat_map(|layer| {
            let keys = dense(&[10, 4, 2, 16, 4])
                .with_roles([b.clone(), h.clone(), tile(4, 2), n.clone(), tile(1, 4)])
                .with_plane(name("k"));
            let values = dense(&[10, 4, 8, 16])
                .with_roles(roles("BHCN"))
                .with_plane(name("v"));
            [keys.at(layer, 0), values.at(layer, half)].map(|view| view.with_layer(layer))
        })
        .collect();
    let layout = layout_from_tensors(&tensors, &shape, expected.region_bytes(), 1).unwrap();
    assert!(layout.same_places(&expected));
}

#[test]
fn a_byte_tensor_holds_records_and_packed_rows() {
    // 656 bytes a token: 512 of the latent, four f32 scales, 64 bf16 of the rope part.
    let plane = |name: &str, unit, extent| {
        let plane = Plane::new(name, Unit::named(unit).unwrap()).unwrap();
        plane.extent(Axis::C, extent)
    };
    let shape = Shape::new(
        5,
        2,
        64,
        vec![
            plane("c", "fp8_e4m3", 512),
            plane("s", "f32", 4),
            plane("r", "bf16", 64),
        ],
    )
    .unwrap();
    let expected = resolve("L|BNKC", &shape);
    let rows = TensorView::new(&[5, 64, 656], &[64 * 656, 656, 1], 1).with_roles([
        DimRole::Axis(Axis::B),
        DimRole::Axis(Axis::N),
        DimRole::packed(Axis::C, &["c", "s", "r"]).unwrap(),
    ]);
    let tensors = per_layer(&rows, 2);
    let layout = layout_from_tensors(&tensors, &shape, expected.region_bytes(), 1).unwrap();
    assert!(layout.same_places(&expected));

    let q8 = Shape::key_value(5, 1, 4, 3, 2, &Unit::named("q8_0").unwrap()).unwrap();
    let expected = resolve("BKNHC", &q8);
    let sizes = [5, 2, 4, 3, 68];
    let records = TensorView::new(&sizes, &[1632, 816, 204, 68, 1], 1).with_roles(roles("BKNHC"));
    let layout = layout_from_tensors(&[records], &q8, expected.region_bytes(), 1).unwrap();
    assert!(layout.same_places(&expected));
}

#[test]
fn a_fused_inner_dimension_names_its_axes() {
    let shape = one_layer(10, 16, 4, 8);
    let expected = resolve("BKNHC", &shape);
    let view = dense(&[10, 2, 16, 32]).with_roles([
        DimRole::Axis(Axis::B),
        DimRole::planes(&["k", "v"]).unwrap(),
        DimRole::Axis(Axis::N),
        DimRole::fused(&[(Axis::H, 4), (Axis::C, 8)]),
    ]);
    assert_eq!(
        validate_tensor_strides(std::slice::from_ref(&view)).unwrap(),
        TensorFormat::NHD
    );
    let layout = layout_from_tensors(&[view], &shape, expected.region_bytes(), 1).unwrap();
    assert!(layout.same_places(&expected));
}

#[test]
fn layers_lie_an_even_step_apart_in_one_region_too() {
    let shape = shape();
    let view = dense(&[10, 2, 16, 4, 8]).with_roles(roles("BKNHC"));
    let bytes = 10 * 2 * 16 * 4 * 8 * 2;
    let at = |offsets: [u64; 3]| -> Vec<TensorView> {
        (0..3u64)
            .zip(offsets)
            .map(|(layer, offset)| view.clone().at(0, offset).with_layer(layer))
            .collect()
    };
    let even = layout_from_tensors(&at([0, bytes, 2 * bytes]), &shape, &[3 * bytes], 1).unwrap();
    assert!(even.same_places(&resolve("LBKNHC", &shape)));
    let uneven = at([0, bytes, 2 * bytes + 64]);
    let refused = layout_from_tensors(&uneven, &shape, &[4 * bytes], 1);
    let error = TensorError::UnevenLayers {
        plane: name("k"),
        layer: 2,
    };
    assert_eq!(refusal(refused), error);
    let backwards = at([2 * bytes, bytes, 0]);
    let refused = layout_from_tensors(&backwards, &shape, &[4 * bytes], 1);
    assert!(matches!(
        refusal(refused),
        TensorError::UnevenLayers { layer: 1, .. }
    ));
}

/// Pitfall 7: overlapping regions, or the same region for two layers, accepted.
#[test]
fn tensors_that_share_bytes_are_refused() {
    let shape = shape();
    let view = dense(&[10, 2, 16, 4, 8]).with_roles(roles("BKNHC"));
    let bytes = 10 * 2 * 16 * 4 * 8 * 2;
    for step in [0, bytes - 2] {
        let tensors: Vec<TensorView> = (0..3)
            .map(|layer| view.clone().at(0, layer * step).with_layer(layer))
            .collect();
        let refused = layout_from_tensors(&tensors, &shape, &[3 * bytes], 1);
        assert!(
            matches!(refusal(refused), TensorError::TensorsOverlap { .. }),
            "{step}"
        );
    }
    let half = dense(&[10, 16, 4, 8]).with_roles(roles("BNHC"));
    let both: Vec<TensorView> = ["k", "v"]
        .iter()
        .flat_map(|plane| per_layer(&half.clone().with_plane(name(plane)), 3))
        .collect();
    let refused = layout_from_tensors(&both, &shape, &[bytes; 3], 1);
    assert!(matches!(
        refusal(refused),
        TensorError::TensorsOverlap { .. }
    ));
}

#[test]
fn layers_and_planes_are_given_once_and_inside_their_regions() {
    let shape = shape();
    let view = dense(&[10, 2, 16, 4, 8]).with_roles(roles("BKNHC"));
    let bytes = 10 * 2 * 16 * 4 * 8 * 2;
    let mut tensors = per_layer(&view, 3);
    let third = tensors.pop().unwrap();
    let missing = refusal(layout_from_tensors(&tensors, &shape, &[bytes; 3], 1));
    let error = |count| TensorError::LayerCount {
        plane: name("k"),
        layer: 2,
        count,
    };
    assert_eq!(missing, error(0));
    tensors.extend([third.clone(), third.clone()]);
    assert_eq!(
        refusal(layout_from_tensors(&tensors, &shape, &[bytes; 3], 1)),
        error(2)
    );
    tensors.pop();
    assert!(layout_from_tensors(&tensors, &shape, &[bytes; 3], 1).is_ok());
    let small = layout_from_tensors(&tensors, &shape, &[bytes, bytes, bytes - 1], 1);
    assert!(matches!(
        small,
        Err(LayoutError::OutsideRegion { region: 2, .. })
    ));
    let away = layout_from_tensors(&tensors, &shape, &[bytes; 2], 1);
    assert!(matches!(away, Err(LayoutError::OutsideRegion { .. })));
    assert_eq!(
        refusal(layout_from_tensors(&[], &shape, &[bytes], 1)),
        TensorError::NoTensors
    );
    let only_keys = per_layer(&dense(&[10, 16, 4, 8]).with_roles(roles("BNHC")), 3)
        .into_iter()
        .map(|view| view.with_plane(name("k")))
        .collect::<Vec<_>>();
    let refused = refusal(layout_from_tensors(&only_keys, &shape, &[bytes; 3], 1));
    assert!(matches!(refused, TensorError::LayerCount { count: 0, .. }));
}

#[test]
fn numbers_beyond_every_memory_are_refused_without_overflow() {
    let shape = one_layer(2, 16, 4, 8);
    let huge = isize::MAX / 2;
    let view = TensorView::new(&[2, 2, 16, 4, 8], &[huge, 512, 32, 8, 1], BF16);
    let view = view.with_roles(roles("BKNHC"));
    assert!(layout_from_tensors(&[view], &shape, &[u64::MAX], 1).is_err());
    let view = dense(&[2, 2, 16, 4, 8])
        .with_roles(roles("BKNHC"))
        .at(0, u64::MAX);
    assert!(layout_from_tensors(&[view], &shape, &[u64::MAX], 1).is_err());
    let view = dense(&[2, 2, 16, 4, 8])
        .with_roles(roles("BKNHC"))
        .at(u64::MAX, 0);
    assert!(layout_from_tensors(&[view], &shape, &[u64::MAX], 1).is_err());
}

// Properties.

proptest! {
    /// Dimensions in any order, with any padding: every unit lies where the strides say.
    #[test]
    fn units_lie_where_the_strides_say(
        sizes in (1..4u64, 1..4u64, 1..4u64, 1..4u64, 1..5u64),
        order in Just(vec![0usize, 1, 2, 3, 4, 5]).prop_shuffle(),
        padding in prop::collection::vec(0..3u64, 6),
        offset in 0..50u64,
    ) {
        let (b, l, n, h, c) = sizes;
        let shape = Shape::key_value(b, l, n, h, c, &bf16()).unwrap();
        let extents = [b, l, 2, n, h, c];
        let axes = ["B", "L", "K", "N", "H", "C"];
        // Strides of the dimensions in the order of the letters, from a shuffled memory order.
        let mut strides = [0u64; 6];
        let mut reach = 1;
        for (&dim, pad) in order.iter().rev().zip(&padding) {
            strides[dim] = reach + pad;
            reach = strides[dim] * extents[dim];
        }
        let view = TensorView::new(
            &extents.map(|e| usize::try_from(e).unwrap()),
            &strides.map(|s| isize::try_from(s).unwrap()),
            BF16,
        );
        let view = view.with_roles(roles(&axes.concat())).at(0, offset);
        let region = offset + reach * 2;
        let layout = layout_from_tensors(&[view], &shape, &[region], 1).unwrap();
        for (k, plane) in (0..2).zip(["k", "v"]) {
            let at = [b - 1, l / 2, k, n / 2, h - 1, c / 2];
            let index = [Axis::B, Axis::L, Axis::N, Axis::H, Axis::C]
                .into_iter()
                .zip([at[0], at[1], at[3], at[4], at[5]])
                .fold(UnitIndex::new(), |index, (axis, i)| index.at(axis, i));
            let expected = at.iter().zip(strides).map(|(i, s)| i * s).sum::<u64>();
            let found = layout.locate(plane, &index).unwrap();
            prop_assert_eq!(found.offset, offset + 2 * expected);
        }
    }

    /// Random numbers never panic, and what is taken is injective.
    #[test]
    fn hostile_tensors_never_panic(
        sizes in prop::collection::vec(0..6usize, 0..7),
        strides in prop::collection::vec(prop_oneof![-3..200isize, any::<isize>()], 0..7),
        letters in prop::collection::vec(prop::sample::select("BLKNHCP1Z".chars().collect::<Vec<_>>()), 0..7),
        with_roles in any::<bool>(),
        layer in prop::option::of(0..3u64),
    ) {
        let mut view = TensorView::new(&sizes, &strides, BF16);
        view.layer = layer;
        if with_roles {
            view = view.with_roles(roles(&letters.iter().collect::<String>()));
        }
        let shape = Shape::key_value(2, 1, 3, 2, 4, &bf16()).unwrap();
        let _ = validate_tensor_strides(std::slice::from_ref(&view));
        let _ = validate_tensor_shapes(std::slice::from_ref(&view), &shape);
        if let Ok(layout) = layout_from_tensors(&[view], &shape, &[1 << 40], 1) {
            prop_assert!(layout.is_injective());
        }
    }
}
