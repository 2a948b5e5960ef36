//! The options of the shape of a layout.

use clap::Args;
use kvtile::{
    layout::{Axis, Plane, PlanePer, Shape, Shard, Unit},
    presets::{self, ModelPreset},
};

use crate::{error::CliError, numbers};

/// The help of `--plane`.
const PLANE_HELP: &str = "A plane NAME:UNIT[:AXIS=EXTENT,…], once for each plane, for instance \
c:bf16:C=512. UNIT is a data type (bf16, fp8_e4m3, q8_0, …), NAME/BYTES, NAME/BYTES/VALUES or \
opaque/NAME/BYTES; the suffix `:page` gives one entry per page instead of one per token, `:every=4` one for 4 tokens";

/// The shape options: blocks, layers, tokens, planes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Shape")]
pub struct ShapeArgs {
    /// Take layers, heads and planes of a well-known model (see `kvtile layout models`)
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Tensor-parallel size: this rank holds a share of the heads
    #[arg(long, value_name = "N", value_parser = numbers::count)]
    pub tp: Option<u64>,
    /// Tensor-parallel rank, counted from 0
    #[arg(long, value_name = "N", requires = "tp", value_parser = numbers::index)]
    pub rank: Option<u64>,
    /// Blocks [default: 128]
    #[arg(long, value_name = "N", value_parser = numbers::count)]
    pub blocks: Option<u64>,
    /// Layers [default: 32, or the model's]
    #[arg(long, value_name = "N", value_parser = numbers::count)]
    pub layers: Option<u64>,
    /// Tokens per block [default: 16]
    #[arg(long, value_name = "N", value_parser = numbers::count)]
    pub page_size: Option<u64>,
    /// KV heads [default: 8, or the model's]
    #[arg(long, value_name = "N", value_parser = numbers::count)]
    pub heads: Option<u64>,
    /// Elements of one head of one token [default: 128, or the model's]
    #[arg(long, value_name = "N", value_parser = numbers::count)]
    pub head_size: Option<u64>,
    /// Data type of K and V [default: bf16]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<String>,
    /// The planes, where no model and no data type gives them.
    #[arg(long = "plane", value_name = "PLANE", help = PLANE_HELP,
          conflicts_with_all = ["heads", "head_size", "dtype"])]
    pub planes: Vec<String>,
    /// Bytes that block strides are rounded up to: a power of two
    #[arg(long, value_name = "BYTES", default_value_t = 1, value_parser = numbers::parse_bytes)]
    pub alignment: u64,
}

/// The options of one side of a plan that differ from the common ones.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SideOverride {
    /// Tokens per block.
    pub(crate) page_size: Option<u64>,
    /// Tensor-parallel size.
    pub(crate) tp: Option<u64>,
    /// Tensor-parallel rank.
    pub(crate) rank: Option<u64>,
}

impl ShapeArgs {
    /// The options with the overrides of one side.
    pub(crate) fn with(&self, other: SideOverride) -> ShapeArgs {
        ShapeArgs {
            page_size: other.page_size.or(self.page_size),
            tp: other.tp.or(self.tp),
            rank: other.rank.or(self.rank),
            ..self.clone()
        }
    }

    /// Whether the user gave an option of the shape.
    pub(crate) fn is_given(&self) -> bool {
        let numbers = [
            self.tp,
            self.rank,
            self.blocks,
            self.layers,
            self.page_size,
            self.heads,
            self.head_size,
        ];
        numbers.iter().any(Option::is_some)
            || self.model.is_some()
            || self.dtype.is_some()
            || !self.planes.is_empty()
            || self.alignment != 1
    }

    /// The shape for a layout. Missing options come from `example`, where the layout is a known
    /// one, else from a model of 8 billion parameters.
    ///
    /// # Errors
    /// Options that contradict each other, or sizes that no layout can have.
    pub fn shape(&self, example: Option<&Shape>) -> Result<Shape, CliError> {
        let model = self.model.as_deref().map(presets::find_model).transpose()?;
        let planes = self.whole_planes(model, example)?;
        let layers = self
            .layers
            .or(model.map(|model| model.layers))
            .or(example.map(Shape::num_layers))
            .unwrap_or(32);
        let blocks = self.blocks.or(example.map(Shape::num_blocks));
        let page_size = self.page_size.or(example.map(Shape::page_size));
        let heads = planes.iter().find(|plane| plane.has(Axis::H));
        let heads = heads.map_or(1, |plane| plane.extent_of(Axis::H));
        let shard = match self.tp {
            None => Shard::whole(layers, heads),
            Some(size) => Shard::tensor_parallel(layers, heads, self.rank.unwrap_or(0), size)?,
        };
        let planes = planes
            .iter()
            .map(|plane| with_heads(plane, shard.heads.count))
            .collect::<Result<_, _>>()?;
        let shape = Shape::new(
            blocks.unwrap_or(128),
            layers,
            page_size.unwrap_or(16),
            planes,
        )?;
        Ok(shape.with_shard(shard)?)
    }

    /// The title of the shape: the name of the model, or "a custom shape".
    #[must_use]
    pub fn title(&self) -> String {
        let tp = self.tp.map_or(String::new(), |tp| format!(" tp {tp}"));
        let model = self.model.as_deref().unwrap_or("a custom shape");
        format!("{model}{tp}")
    }

    /// The planes of the whole model.
    fn whole_planes(
        &self,
        model: Option<&ModelPreset>,
        example: Option<&Shape>,
    ) -> Result<Vec<Plane>, CliError> {
        if !self.planes.is_empty() {
            return self.planes.iter().map(|text| plane(text)).collect();
        }
        let dtype = self.dtype.as_deref();
        let dtype = dtype.map(|text| unit("--dtype", text)).transpose()?;
        let sized = self.heads.is_some() || self.head_size.is_some();
        if let (Some(model), false) = (model, sized) {
            let unit = dtype.map_or_else(|| model.unit(), Ok)?;
            return Ok(model.shape(1, 1, 1, 0, &unit)?.planes().to_vec());
        }
        if let (Some(example), None, false) = (example, &dtype, sized) {
            return Ok(example.planes().to_vec());
        }
        let unit = dtype.map_or_else(|| unit("--dtype", "bf16"), Ok)?;
        let (heads, content) = (self.heads.unwrap_or(8), self.head_size.unwrap_or(128));
        let shape = Shape::key_value(1, 1, 1, heads, content, &unit)?;
        Ok(shape.planes().to_vec())
    }
}

/// The plane with this many heads, if it has heads.
fn with_heads(plane: &Plane, heads: u64) -> Result<Plane, CliError> {
    let mut held = Plane::new(plane.name().as_str(), plane.unit().clone())?;
    held = match plane.per() {
        PlanePer::Token => held,
        PlanePer::Every(tokens) => held.every(tokens),
        PlanePer::Page => held.per_page(),
    };
    for &(axis, extent) in plane.extents() {
        held = held.extent(axis, if axis == Axis::H { heads } else { extent });
    }
    Ok(held)
}

/// `c:bf16:C=512`.
fn plane(text: &str) -> Result<Plane, CliError> {
    let refused = |problem: &str| CliError::Option {
        option: "--plane",
        value: text.to_owned(),
        problem: problem.to_owned(),
    };
    let mut parts = text.split(':');
    let (Some(name), Some(of)) = (parts.next(), parts.next()) else {
        return Err(refused(
            "give NAME:UNIT:AXIS=EXTENT, for instance c:bf16:C=512",
        ));
    };
    let mut plane = Plane::new(name, unit("--plane", of)?)?;
    for part in parts {
        if part == "page" {
            plane = plane.per_page();
            continue;
        }
        if let Some(tokens) = part.strip_prefix("every=") {
            let tokens = tokens.parse();
            plane = plane.every(tokens.map_err(|_| {
                refused("the tokens of an entry are a number, for instance every=4")
            })?);
            continue;
        }
        for extent in part.split(',') {
            let parsed = extent.split_once('=').and_then(|(axis, extent)| {
                let mut letters = axis.chars();
                let axis = letters.next().and_then(Axis::new)?;
                let extent = extent.parse().ok()?;
                letters.next().is_none().then_some((axis, extent))
            });
            let (axis, extent) =
                parsed.ok_or_else(|| refused("an extent is AXIS=NUMBER, for instance C=512"))?;
            plane = plane.extent(axis, extent);
        }
    }
    Ok(plane)
}

/// `bf16`, `name/bytes`, `name/bytes/values` or `opaque/name/bytes`.
fn unit(option: &'static str, text: &str) -> Result<Unit, CliError> {
    let refused = || CliError::Option {
        option,
        value: text.to_owned(),
        problem: "spell a unit out as NAME/BYTES, NAME/BYTES/VALUES or opaque/NAME/BYTES"
            .to_owned(),
    };
    let parts: Vec<&str> = text.split('/').collect();
    let number = |text: &str| text.parse::<u64>().map_err(|_| refused());
    match parts.as_slice() {
        ["opaque", name, bytes] => Ok(Unit::opaque(name, number(bytes)?)?),
        [name, bytes] => Ok(Unit::new(name, number(bytes)?, 1)?),
        [name] => Unit::of_dtype(name).map_err(|error| CliError::Option {
            option,
            value: text.to_owned(),
            problem: error.to_string(),
        }),
        [name, bytes, values] => Ok(Unit::new(name, number(bytes)?, number(values)?)?),
        _ => Err(refused()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_spelled_with_unit_and_extents() {
        let latent = plane("c:bf16:C=512").unwrap();
        assert_eq!(latent.extent_of(Axis::C), 512);
        let record = plane("k:q8_0:H=8,C=4").unwrap();
        assert_eq!((record.unit().bytes(), record.extent_of(Axis::H)), (34, 8));
        let page = plane("x:opaque/secret/4096:page").unwrap();
        assert!(page.unit().is_opaque() && !page.is_per_token());
        let state = plane("ssm:f32:H=8,D=64,C=16:page").unwrap();
        assert!(state.has(Axis::new('D').unwrap()));
    }

    #[test]
    fn senseless_planes_are_refused() {
        for text in [
            "",
            "c",
            "c:",
            "C:bf16",
            "c:bf17",
            "c:bf16:C",
            "c:bf16:CC=1",
            "c:bf16:C=x",
        ] {
            assert!(plane(text).is_err(), "{text:?}");
        }
    }
}
