//! Words over tensors: strides with and without gaps, and regions that are tensors.

use super::*;

const WORDS: [&str; 9] = [
    "L|BH(kCN,vNC)",
    "L|KBNHC",
    "L|BKHNC",
    "LK|BNHC",
    "BLKNHC",
    "BHLKNC",
    "L|BHNKC",
    "L|(kBHCNC4,vBHCN)",
    "LBHN2KCN",
];

/// Where dense element `element` of a tensor is, in elements: unravelled along the strides, slowest
/// first.
fn naive_place(view: &TensorView, element: u64) -> u64 {
    let mut dims: Vec<(isize, usize)> = view
        .strides
        .iter()
        .copied()
        .zip(view.shape.iter().copied())
        .collect();
    dims.sort_by_key(|&(stride, size)| (stride, size));
    let (mut rest, mut place) = (element, 0);
    for (stride, size) in dims.into_iter().filter(|(_, size)| *size > 1) {
        place += rest % size as u64 * stride.unsigned_abs() as u64;
        rest /= size as u64;
    }
    place
}

/// All indices of a plane of `shape`.
fn indices(shape: &Shape) -> Vec<UnitIndex> {
    let axes = [
        (Axis::B, shape.num_blocks()),
        (Axis::L, shape.num_layers()),
        (Axis::N, shape.page_size()),
        (Axis::H, shape.num_heads()),
        (Axis::C, shape.planes().first().unwrap().extent_of(Axis::C)),
    ];
    axes.iter()
        .fold(vec![UnitIndex::new()], |all, &(axis, extent)| {
            let further = |index: UnitIndex| (0..extent).map(move |i| index.clone().at(axis, i));
            all.into_iter().flat_map(further).collect()
        })
}

proptest! {
    /// Tensors of any sizes and order of dimensions, with gaps anywhere: without gaps they are
    /// taken, and whatever is taken lies where unravelling says.
    #[test]
    fn a_word_over_tensors_is_the_word_unravelled_along_the_strides(
        word in prop::sample::select(&WORDS[..]),
        cuts in prop::collection::vec(1..9usize, 3),
        order in Just(vec![0usize, 1, 2, 3]).prop_shuffle(),
        gaps in prop_oneof![Just(vec![0usize; 4]), prop::collection::vec(0..3usize, 4)],
        apart in 0..3u64,
        one_storage in any::<bool>(),
    ) {
        let shape = Shape::key_value(3, 2, 4, 2, 8, &bf16()).unwrap();
        let dense = resolve(word, &shape);
        let elements = usize::try_from(dense.region_bytes()[0]).unwrap() / BF16;
        prop_assume!(dense.region_bytes().iter().all(|&bytes| bytes == dense.region_bytes()[0]));
        // Sizes whose product is the region, in any order of memory.
        let mut sizes = Vec::new();
        let mut rest = elements;
        for cut in cuts {
            let size = (1..=cut).rev().find(|size| rest.is_multiple_of(*size)).unwrap();
            sizes.push(size);
            rest /= size;
        }
        sizes.push(rest);
        let mut strides = vec![0; 4];
        let mut reach = 1;
        for &dim in &order {
            strides[dim] = isize::try_from(reach).unwrap();
            reach = reach * sizes[dim] + gaps[dim];
        }
        let tensors = dense.region_bytes().len() as u64;
        let region_bytes = (reach * BF16) as u64 + apart;
        let views: Vec<TensorView> = (0..tensors)
            .map(|tensor| {
                let view = TensorView::new(&sizes, &strides, BF16);
                if one_storage { view.at(0, tensor * region_bytes) } else { view.at(tensor, apart) }
            })
            .collect();
        let regions = if one_storage { vec![region_bytes * tensors] } else {
            vec![region_bytes; usize::try_from(tensors).unwrap()]
        };
        let parsed = Word::parse(word).unwrap();
        let made = word_over_tensors(&parsed, &shape, &views, &regions, 1);
        if gaps == [0; 4] {
            prop_assert!(made.is_ok(), "{:?}", made);
        }
        let Ok(layout) = made else { return Ok(()) };
        for plane in ["k", "v"] {
            for index in indices(&shape) {
                let there = dense.locate(plane, &index).unwrap();
                let view = &views[usize::try_from(there.region).unwrap()];
                let place = naive_place(view, there.offset / 2) * 2;
                let found = layout.locate(plane, &index).unwrap();
                prop_assert_eq!((found.region, found.offset), (view.region, view.byte_offset + place));
            }
        }
    }
}

fn over(word: &str, views: &[TensorView]) -> Result<StridedLayout, LayoutError> {
    let bytes = vec![1 << 20; views.len()];
    word_over_tensors(&Word::parse(word).unwrap(), &shape(), views, &bytes, 1)
}

#[test]
fn gaps_between_blocks_and_heads_are_taken() {
    // Blocks 1024 elements apart, of which 2 * 4 * 16 * 8 belong to this layer; heads padded.
    let view = TensorView::new(&[10, 4, 16, 16], &[1500, 300, 16, 1], BF16);
    let layout = over("L|BH(kCN,vNC)", &per_layer(&view, 3)).unwrap();
    let index = UnitIndex::new()
        .at(Axis::B, 2)
        .at(Axis::H, 3)
        .at(Axis::C, 1);
    let at = layout.locate("k", &index).unwrap();
    assert_eq!(at.offset, 2 * (2 * 1500 + 3 * 300 + 16));
    let at = layout.locate("v", &index).unwrap();
    assert_eq!(at.offset, 2 * (2 * 1500 + 3 * 300 + 128 + 1));
}

#[test]
fn gaps_inside_what_the_word_keeps_together_are_refused() {
    // A gap after every 6 elements, where the word has rows of 8 in one piece.
    let shape = one_layer(10, 3, 4, 8);
    let word = |text: &str, view: TensorView| {
        let word = Word::parse(text).unwrap();
        word_over_tensors(&word, &shape, &[view], &[1 << 20], 1)
    };
    let view = TensorView::new(&[10, 4, 8, 6], &[500, 100, 10, 1], BF16);
    let refused = refusal(word("BHKNC", view));
    assert!(
        matches!(refused, TensorError::TensorGap { .. }),
        "{refused}"
    );
    let view = TensorView::new(&[10, 4, 6, 8], &[500, 100, 10, 1], BF16);
    word("BHKNC", view).unwrap();
    // A unit is never cut: bytes with a gap after each.
    let bytes = TensorView::new(&[10, 4, 6, 16], &[1000, 200, 32, 2], 1);
    let refused = refusal(word("BHKNC", bytes));
    assert!(
        matches!(refused, TensorError::TensorGap { .. }),
        "{refused}"
    );
}

#[test]
fn the_number_of_tensors_and_their_bytes_are_checked() {
    let view = dense(&[10, 4, 16, 16]);
    let refused = refusal(over("L|BHNKC", &per_layer(&view, 2)));
    assert_eq!(
        refused.to_string(),
        "2 tensors for L|BHNKC, which has 3 regions; give one tensor a region"
    );
    let refused = refusal(over("L|BHNKC", &per_layer(&dense(&[10, 4, 16, 15]), 3)));
    assert_eq!(
        refused.to_string(),
        "tensor 0 of sizes [10, 4, 16, 15] has 19200 bytes, its region has 20480"
    );
}

#[test]
fn layers_at_uneven_distances_of_one_region_are_refused() {
    let view = dense(&[10, 4, 16, 16]);
    let views: Vec<TensorView> = [0, 20480, 50000]
        .iter()
        .map(|&at| view.clone().at(0, at))
        .collect();
    let refused = refusal(over("L|BHNKC", &views));
    assert!(
        matches!(refused, TensorError::UnevenLayers { layer: 2, .. }),
        "{refused}"
    );
}
