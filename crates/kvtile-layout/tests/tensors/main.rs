//! Imported tensors: strides, formats, readings and the resulting layouts.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod layouts;
mod properties;
mod readings;
mod strides;
mod words;

use kvtile_layout::{
    Axis, LayoutError, Plane, PlaneName, Shape, StridedLayout, Unit, UnitIndex, Word,
    tensor::{
        DimDigit, DimRole, TensorError, TensorFormat, TensorView, layout_from_tensors,
        validate_tensor_shapes, validate_tensor_strides, word_over_tensors,
    },
};
use proptest::prelude::*;

const BF16: usize = 2;

fn bf16() -> Unit {
    Unit::named("bf16").unwrap()
}

/// 10 blocks, 3 layers, 16 tokens, 4 heads of 8.
fn shape() -> Shape {
    Shape::key_value(10, 3, 16, 4, 8, bf16()).unwrap()
}

fn one_layer(blocks: u64, tokens: u64, heads: u64, size: u64) -> Shape {
    Shape::key_value(blocks, 1, tokens, heads, size, bf16()).unwrap()
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
