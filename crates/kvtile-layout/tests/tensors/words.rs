//! Words over tensors: strides with and without gaps, tensors as regions, and tensors with two
//! possible orders.

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

/// The position of dense element `element` of a tensor, in elements: unravelled along the strides,
/// slowest first.
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

/// The position along the dimensions in their listed order, the last one fastest.
fn naive_place_as_shown(view: &TensorView, element: u64) -> u64 {
    let dims = view.strides.iter().zip(&view.shape).rev();
    let (mut rest, mut place) = (element, 0);
    for (stride, &size) in dims {
        place += rest % size as u64 * stride.unsigned_abs() as u64;
        rest /= size as u64;
    }
    place
}

/// Whether both readings of a tensor are the same.
fn reads_one_way(view: &TensorView) -> bool {
    let elements: usize = view.shape.iter().product();
    (0..elements as u64).all(|at| naive_place(view, at) == naive_place_as_shown(view, at))
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
    /// Tensors of any sizes and order of dimensions, with gaps anywhere. A tensor whose memory
    /// order differs from its listed order is refused. Of the others, all without gaps are
    /// accepted, and every accepted one has the positions of the unravelling.
    #[test]
    fn a_word_over_tensors_is_the_word_unravelled_along_the_strides(
        word in prop::sample::select(&WORDS[..]),
        cuts in prop::collection::vec(1..9usize, 3),
        order in Just(vec![0usize, 1, 2, 3]).prop_shuffle(),
        gaps in prop_oneof![Just(vec![0usize; 4]), prop::collection::vec(0..3usize, 4)],
        apart in 0..3u64,
        one_storage in any::<bool>(),
    ) {
        let shape = Shape::key_value(3, 2, 4, 2, 8, bf16()).unwrap();
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
        if !reads_one_way(&views[0]) {
            let refused = matches!(made, Err(LayoutError::Tensor(TensorError::TwoOrders { .. })));
            prop_assert!(refused, "{:?}", made);
            // After the permutation of the error, it is in memory order.
            let Err(LayoutError::Tensor(TensorError::TwoOrders { order, .. })) = made else {
                return Ok(());
            };
            let by = |numbers: &[isize]| order.iter().map(|&dim| numbers[dim]).collect::<Vec<_>>();
            let memory: Vec<usize> = order.iter().map(|&dim| sizes[dim]).collect();
            let permuted = TensorView::new(&memory, &by(&strides), BF16);
            prop_assert!(reads_one_way(&permuted));
            return Ok(());
        }
        if let Err(LayoutError::Tensor(TensorError::SizesInOtherOrder { .. })) = made {
            prop_assert!(is_other_order(word, &sizes), "{:?} under {}", sizes, word);
            return Ok(());
        }
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

/// Whether the sizes are the extents of a word of single axes in another order, in the shape of the
/// property above.
fn is_other_order(word: &str, sizes: &[usize]) -> bool {
    let inside = word.split('|').next_back().unwrap();
    let extents = inside.chars().map(|letter| match letter {
        'B' => 3,
        'L' | 'K' | 'H' => 2,
        'N' => 4,
        _ => 8,
    });
    let (extents, sizes): (Vec<usize>, Vec<usize>) = (
        extents.collect(),
        sizes.iter().copied().filter(|&size| size > 1).collect(),
    );
    let sorted = |sizes: &[usize]| {
        let mut sizes = sizes.to_vec();
        sizes.sort_unstable();
        sizes
    };
    extents != sizes && sorted(&extents) == sorted(&sizes)
}

proptest! {
    /// The sizes of a word's axes in every order, and every view of them: only the word's own order
    /// in memory order is accepted, and whole axes may be fused.
    #[test]
    fn the_axes_of_a_word_are_taken_in_its_own_order_alone(
        word in prop::sample::select(&["L|BKHNC", "L|KBNHC", "LK|BNHC", "BLKNHC", "BHLKNC", "L|BHNKC"][..]),
        order in Just((0..6usize).collect::<Vec<_>>()).prop_shuffle(),
        permuted in any::<bool>(),
        bytes in any::<bool>(),
    ) {
        let shape = Shape::key_value(3, 2, 4, 2, 8, bf16()).unwrap();
        let inside = word.split('|').next_back().unwrap();
        let extents: Vec<usize> = inside.chars().map(|letter| match letter {
            'B' => 3,
            'L' | 'K' | 'H' => 2,
            'N' => 4,
            _ => 8,
        }).collect();
        let order: Vec<usize> = order.into_iter().filter(|&dim| dim < extents.len()).collect();
        // In memory as `order`, or in the word's order and listed as `order`.
        let mut sizes: Vec<usize> = order.iter().map(|&dim| extents[dim]).collect();
        let mut view = dense(&sizes);
        if permuted {
            let strides = dense(&extents).strides;
            let shown: Vec<isize> = order.iter().map(|&dim| strides[dim]).collect();
            view = TensorView::new(&sizes, &shown, BF16);
        } else if bytes {
            *sizes.last_mut().unwrap() *= BF16;
            view = dense(&sizes);
            view.element_bytes = 1;
        }
        let regions = resolve(word, &shape).region_bytes().to_vec();
        let views: Vec<TensorView> =
            (0..regions.len() as u64).map(|region| view.clone().at(region, 0)).collect();
        let made = word_over_tensors(&Word::parse(word).unwrap(), &shape, &views, &regions, 1);
        let taken = if permuted {
            reads_one_way(&view)
        } else {
            // With bytes, only a permutation that keeps the fastest axis gives the same sizes.
            let moved = bytes && extents.last() != order.last().map(|&dim| &extents[dim]);
            moved || !is_other_order(word, &dense(&order.iter().map(|&dim| extents[dim]).collect::<Vec<_>>()).shape)
        };
        prop_assert_eq!(made.is_ok(), taken, "{:?}", made);
    }
}

#[test]
fn a_transposed_view_is_refused_with_both_readings_whatever_its_sizes() {
    let shape = Shape::new(
        10,
        3,
        16,
        vec![
            Plane::new("k", bf16())
                .unwrap()
                .extent(Axis::H, 4)
                .extent(Axis::C, 8),
        ],
    )
    .unwrap();
    let word = Word::parse("L|BNHC").unwrap();
    let over =
        |view: TensorView| word_over_tensors(&word, &shape, &per_layer(&view, 3), &[1 << 20; 3], 1);
    // Memory is B, H, N, C, and numpy lists B, N, H, C.
    let refused = refusal(over(TensorView::new(
        &[10, 16, 4, 8],
        &[512, 8, 128, 1],
        BF16,
    )));
    assert_eq!(
        refused.to_string(),
        "tensor 0 can be read in two ways as L|BNHC: along its dimensions as it shows them, \
         [10, 16, 4, 8], or along its memory, [10, 4, 16, 8]; a word speaks of memory, slowest first: \
         give the view with its dimensions in that order, which are its dimensions [0, 2, 1, 3], under \
         the word of that order"
    );
    // After the permutation of the error, the sizes still contradict the order of the word.
    let refused = refusal(over(dense(&[10, 4, 16, 8])));
    assert_eq!(
        refused.to_string(),
        "tensors of sizes [10, 4, 16, 8] can be read in two ways: L|BNHC is B 10, N 16, H 4, C 8 in \
         memory, and the sizes are the same in another order; give the word of the order that memory \
         has, or, where the sizes do not say what is in memory, give the tensors flat"
    );
    over(dense(&[10, 16, 4, 8])).unwrap();
    over(dense(&[10, 512])).unwrap();
    // Equal sizes are ambiguous.
    let square = one_layer(10, 8, 8, 8);
    let view = TensorView::new(&[10, 2, 8, 8, 8], &[1024, 512, 8, 64, 1], BF16);
    let word = Word::parse("BKNHC").unwrap();
    let refused = refusal(word_over_tensors(&word, &square, &[view], &[1 << 20], 1));
    assert!(
        matches!(refused, TensorError::TwoOrders { .. }),
        "{refused}"
    );
}

#[test]
fn dimensions_of_size_one_say_no_order() {
    let shape = one_layer(10, 1, 4, 8);
    let word = Word::parse("BKNHC").unwrap();
    // One token: neither its position among the dimensions nor its stride matters.
    for (sizes, strides) in [
        ([10, 2, 1, 4, 8], [64, 32, 1, 8, 1]),
        ([10, 2, 4, 1, 8], [64, 32, 8, 900, 1]),
    ] {
        let view = TensorView::new(&sizes, &strides, BF16);
        word_over_tensors(&word, &shape, &[view], &[1 << 20], 1).unwrap();
    }
}

fn over(word: &str, views: &[TensorView]) -> Result<StridedLayout, LayoutError> {
    let bytes = vec![1 << 20; views.len()];
    word_over_tensors(&Word::parse(word).unwrap(), &shape(), views, &bytes, 1)
}

#[test]
fn gaps_between_blocks_and_heads_are_taken() {
    // Blocks are 1024 elements apart, of which 2 * 4 * 16 * 8 belong to this layer; heads are
    // padded.
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
    // A gap after every 6 elements, where the word has contiguous rows of 8.
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

/// Keys of 24 and values of 8 elements, or a latent and a rope part, in tensors of their own.
#[test]
fn planes_of_unequal_width_have_tensors_of_unequal_shape() {
    let plane = |name, heads: u64, content| {
        let plane = Plane::new(name, bf16()).unwrap();
        plane.extent(Axis::H, heads).extent(Axis::C, content)
    };
    let shape = Shape::new(3, 2, 4, vec![plane("k", 2, 24), plane("v", 2, 8)]).unwrap();
    let dense = resolve("LK|BNHC", &shape);
    // Values have a gap after each token, keys have none.
    let keys = TensorView::new(&[3, 4, 2, 24], &[192, 48, 24, 1], BF16);
    let values = TensorView::new(&[3, 4, 2, 8], &[80, 20, 8, 1], BF16);
    let views: Vec<TensorView> = [&keys, &values, &keys, &values]
        .into_iter()
        .zip(0..)
        .map(|(view, region)| view.clone().at(region, 0))
        .collect();
    let bytes = [3 * 192 * 2, 3 * 80 * 2, 3 * 192 * 2, 3 * 80 * 2];
    let word = Word::parse("LK|BNHC").unwrap();
    let layout = word_over_tensors(&word, &shape, &views, &bytes, 1).unwrap();
    for (plane, content) in [("k", 24), ("v", 8)] {
        for (block, layer, token) in
            (0..3).flat_map(|b| (0..2).flat_map(move |l| (0..4).map(move |n| (b, l, n))))
        {
            for (head, at) in (0..2).flat_map(|h| (0..content).map(move |c| (h, c))) {
                let index = [Axis::B, Axis::L, Axis::N, Axis::H, Axis::C];
                let index = index.into_iter().zip([block, layer, token, head, at]);
                let index = index.fold(UnitIndex::new(), |all, (axis, i)| all.at(axis, i));
                let there = dense.locate(plane, &index).unwrap();
                let view = &views[usize::try_from(there.region).unwrap()];
                let found = layout.locate(plane, &index).unwrap();
                let expected = naive_place(view, there.offset / 2) * 2;
                assert_eq!((found.region, found.offset), (there.region, expected));
            }
        }
    }
    // Tensors of one plane still have one shape.
    let mut other = views.clone();
    other[3] = TensorView::new(&[3, 4, 2, 8], &[64, 16, 8, 1], BF16).at(3, 0);
    let refused = refusal(word_over_tensors(&word, &shape, &other, &bytes, 1));
    assert!(
        matches!(
            refused,
            TensorError::ShapesDiffer {
                tensor: 3,
                first: 1,
                ..
            }
        ),
        "{refused}"
    );
    // A value tensor whose sizes are the word's in another order.
    let mut other = views;
    for at in [1, 3] {
        other[at] = TensorView::new(&[4, 3, 2, 8], &[48, 16, 8, 1], BF16).at(at as u64, 0);
    }
    let refused = refusal(word_over_tensors(&word, &shape, &other, &bytes, 1));
    assert!(
        matches!(refused, TensorError::SizesInOtherOrder { .. }),
        "{refused}"
    );
}
