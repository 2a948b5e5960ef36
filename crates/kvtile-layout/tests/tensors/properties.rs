//! Random strides and hostile numbers.

use super::*;

proptest! {
    /// Dimensions in any order, with any padding: the strides give the place of every unit.
    #[test]
    fn units_lie_where_the_strides_say(
        sizes in (1..4u64, 1..4u64, 1..4u64, 1..4u64, 1..5u64),
        order in Just(vec![0usize, 1, 2, 3, 4, 5]).prop_shuffle(),
        padding in prop::collection::vec(0..3u64, 6),
        offset in 0..50u64,
    ) {
        let (b, l, n, h, c) = sizes;
        let shape = Shape::key_value(b, l, n, h, c, bf16()).unwrap();
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

    /// Random numbers never panic, and every accepted layout is injective.
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
        let shape = Shape::key_value(2, 1, 3, 2, 4, bf16()).unwrap();
        let _ = validate_tensor_strides(std::slice::from_ref(&view));
        let _ = validate_tensor_shapes(std::slice::from_ref(&view), &shape);
        if let Ok(layout) = layout_from_tensors(&[view], &shape, &[1 << 40], 1) {
            prop_assert!(layout.is_injective());
        }
    }
}
