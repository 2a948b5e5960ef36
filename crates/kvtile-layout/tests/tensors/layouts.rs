//! Sets of tensors as layouts.

use super::*;
use kvtile_layout::ResolveError;

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
    // As vLLM returns it: logical order [B, N, H, 2D] of a block-second allocation.
    let strides = [16 * 4 * 16, 10 * 16 * 4 * 16, 4 * 16, 16, 1];
    let view = TensorView::new(&[10, 3, 16, 4, 16], &strides, BF16).with_roles(roles("BLNHP"));
    let layout = layout_from_tensors(&[view], &shape, expected.region_bytes(), 1).unwrap();
    assert!(layout.same_places(&expected));
}

#[test]
fn kernel_blocks_cut_the_tokens_of_a_page() {
    let shape = Shape::key_value(10, 2, 16, 4, 8, bf16()).unwrap();
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
    // [B, H, C/4, N, 4] for keys, [B, H, C, N] for values, as in ROCm's paged attention.
    let shape = Shape::key_value(10, 2, 16, 4, 8, bf16()).unwrap();
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
    // 656 bytes per token: 512 of the latent, four f32 scales, 64 bf16 of the rope part.
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

    let q8 = Shape::key_value(5, 1, 4, 3, 2, Unit::named("q8_0").unwrap()).unwrap();
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
        Err(LayoutError::Resolve(ResolveError::OutsideRegion {
            region: 2,
            ..
        }))
    ));
    let away = layout_from_tensors(&tensors, &shape, &[bytes; 2], 1);
    assert!(matches!(
        away,
        Err(LayoutError::Resolve(ResolveError::OutsideRegion { .. }))
    ));
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
