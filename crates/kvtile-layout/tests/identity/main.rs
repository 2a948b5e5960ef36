//! Identity: fingerprints that are the same everywhere, and differences with a name.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod form;
mod layout;
mod logical;
mod model;
mod properties;

use kvtile_layout::{
    Axis, AxisRange, GroupRule, LayerSet, LayoutError, Plane, Shape, Shard, StridedLayout, Unit,
    Word,
    identity::{
        BlockIdentity, Fingerprint, GroupRole, Identity, IdentityError, LayoutIdentity,
        LayoutScope, ModelGroup, ModelIdentity, Real, Rope, RopeParam,
    },
};
use proptest::prelude::*;
use serde_json::{Value, json};

const BLOCKS: u64 = 100;

fn shape_of(codec: &str) -> Shape {
    let unit = Unit::named(codec).unwrap();
    let mut shard = Shard::tensor_parallel(40, 16, 1, 2).unwrap();
    shard.layers = AxisRange::new(4, 32);
    let shape = Shape::key_value(BLOCKS, 32, 16, 8, 128, &unit).unwrap();
    shape.with_shard(shard).unwrap()
}

fn rope(base: f64) -> Rope {
    Rope::new("llama3", base)
        .unwrap()
        .with_number("factor", 8.0)
        .unwrap()
        .with_param("pairing", RopeParam::Text("halves".to_owned()))
        .unwrap()
}

fn logical() -> Identity {
    Identity::new("llama", "0e9e39f", &shape_of("bf16"))
        .unwrap()
        .with_rope(rope(500_000.0))
        .with_extra("scales", "none")
        .unwrap()
}

fn layout(word: &str, shape: &Shape) -> StridedLayout {
    StridedLayout::resolve(&Word::parse(word).unwrap(), shape, 1).unwrap()
}

fn small(blocks: u64) -> Shape {
    Shape::key_value(blocks, 3, 16, 2, 4, Unit::named("bf16").unwrap()).unwrap()
}

fn block_of(word: &str, blocks: u64) -> LayoutIdentity {
    LayoutIdentity::of_block(&layout(word, &small(blocks)))
}

fn whole_of(word: &str, blocks: u64) -> LayoutIdentity {
    LayoutIdentity::of_layout(&layout(word, &small(blocks)))
}

fn refusal<T: std::fmt::Debug>(result: Result<T, LayoutError>) -> IdentityError {
    match result {
        Err(LayoutError::Identity(error)) => error,
        other => panic!("expected an identity error, got {other:?}"),
    }
}
