//! The models of the matrix.

use kvtile::{
    layout::{Axis, Plane, Shape, Shard, Unit},
    presets::find_model,
};

use crate::error::BenchError;

/// Tokens per block.
const PAGE_SIZE: u64 = 16;

/// The shape of the blocks, and its name in reports.
#[derive(Clone, Debug)]
pub struct BenchModel {
    /// For instance `llama-3.1-8b tp 8`.
    pub name: String,
    /// Layers, tokens per block and planes; the number of blocks is ignored.
    pub shape: Shape,
}

/// A preset, the number of ranks, and the data type where it is not the model's own.
type ModelEntry = (&'static str, u64, Option<&'static str>);

/// Whole and split, large and tiny, a latent, and elements of one byte.
const MODELS: [ModelEntry; 6] = [
    ("llama-3.1-8b", 1, None),
    ("llama-3.1-8b", 8, None),
    ("llama-3.1-70b", 8, None),
    ("smollm2-135m", 1, None),
    ("deepseek-v3", 1, None),
    ("llama-3.1-8b", 1, Some("fp8_e4m3")),
];

/// The models of a quick run.
const QUICK: [ModelEntry; 3] = [
    ("llama-3.1-8b", 1, None),
    ("deepseek-v3", 1, None),
    ("llama-3.1-8b", 1, Some("fp8_e4m3")),
];

pub(super) fn usual(quick: bool) -> Result<Vec<BenchModel>, BenchError> {
    let rows = if quick { &QUICK[..] } else { &MODELS[..] };
    rows.iter().map(|row| model(*row)).collect()
}

/// The part of a whole model that the second of two tensor-parallel ranks holds.
pub(super) fn half_of_heads(whole: &Shape) -> Result<Shape, BenchError> {
    let shard = Shard::tensor_parallel(whole.num_layers(), whole.num_heads(), 1, 2)?;
    let mut planes = Vec::new();
    for plane in whole.planes() {
        let mut half = Plane::new(plane.name().as_str(), plane.unit().clone())?;
        for &(axis, extent) in plane.extents() {
            half = half.extent(axis, if axis == Axis::H { extent / 2 } else { extent });
        }
        planes.push(half);
    }
    let (blocks, page_size) = (whole.num_blocks(), whole.page_size());
    Ok(Shape::new(blocks, whole.num_layers(), page_size, planes)?.with_shard(shard)?)
}

fn model((name, ranks, dtype): ModelEntry) -> Result<BenchModel, BenchError> {
    let preset = find_model(name)?;
    let unit = match dtype.and_then(Unit::named) {
        Some(unit) => unit,
        None => preset.unit()?,
    };
    let mut title = name.to_owned();
    if ranks > 1 {
        title.push_str(&format!(" tp {ranks}"));
    }
    if let Some(dtype) = dtype {
        title.push_str(&format!(" {dtype}"));
    }
    Ok(BenchModel {
        name: title,
        shape: preset.shape(1, PAGE_SIZE, ranks, 0, &unit)?,
    })
}
