//! The caches of well-known models.

use std::sync::LazyLock;

use serde::Deserialize;

use super::{PresetError, unknown};
use crate::{
    axis::Axis,
    error::LayoutError,
    identity::Real,
    shape::{Plane, Shape, Shard},
    unit::Unit,
};

const FILE: &str = "presets/models.toml";

static MODELS: LazyLock<Result<Vec<ModelPreset>, LayoutError>> =
    LazyLock::new(|| parse(include_str!("../../presets/models.toml")));

/// Every known model, in the order of the data file.
///
/// # Errors
/// A broken data file, which the tests of this crate exclude.
pub fn models() -> Result<&'static [ModelPreset], LayoutError> {
    MODELS.as_deref().map_err(Clone::clone)
}

/// The model called `name`, upper or lower case.
///
/// # Errors
/// [`PresetError::Unknown`], with names that resemble it.
pub fn find_model(name: &str) -> Result<&'static ModelPreset, LayoutError> {
    let all = models()?;
    if let Some(model) = all.iter().find(|m| m.name.eq_ignore_ascii_case(name)) {
        return Ok(model);
    }
    let names = all.iter().map(|model| model.name.as_str());
    Err(unknown("model", name, names).into())
}

/// The cache of a model per token and layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ModelCache {
    /// Keys and values: planes `k` and `v`.
    Heads {
        /// KV heads of the whole model.
        kv_heads: u64,
        /// Values of one head of one token.
        head_size: u64,
    },
    /// A latent shared by all heads and its rope part: planes `c` and `r`, without heads.
    Latent {
        /// Values of the latent.
        latent: u64,
        /// Values of the rope part.
        rope_part: u64,
    },
}

/// The numbers of one model that its cache depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelPreset {
    /// The name, lower case, for instance `llama-3.1-8b`.
    pub name: String,
    /// The name as its makers write it.
    pub title: String,
    /// Layers.
    pub layers: u64,
    /// Attention heads (of queries).
    pub heads: u64,
    /// The cache per token and layer.
    pub cache: ModelCache,
    /// The base of the rotary embedding; `None` where its config was not read.
    pub rope_theta: Option<Real>,
    /// The type of the weights, which the cache has too by default: a name that [`Unit::named`]
    /// knows.
    pub dtype: String,
    /// The config.json with these numbers.
    pub source: String,
    /// How the numbers were checked here.
    pub seen: String,
    /// A warning or a hint for users.
    pub note: Option<String>,
}

impl ModelPreset {
    /// The unit of its dtype.
    ///
    /// # Errors
    /// A dtype that [`Unit::named`] does not know, which the tests of this crate exclude.
    pub fn unit(&self) -> Result<Unit, LayoutError> {
        Unit::named(&self.dtype).ok_or_else(|| broken(&format!("{}: unknown dtype", self.name)))
    }

    /// The shape of rank `tp_rank` of `tp_size`, with `num_blocks` blocks of `page_size` tokens,
    /// all layers and `unit` as its element. KV heads are split over the ranks. With more ranks
    /// than heads, and for a latent, ranks hold replicas.
    ///
    /// # Errors
    /// A rank outside `0..tp_size`; a size that neither divides the KV heads nor is a multiple of
    /// them; a unit that is opaque or does not divide a head; counts of zero or too large.
    pub fn shape(
        &self,
        num_blocks: u64,
        page_size: u64,
        tp_size: u64,
        tp_rank: u64,
        unit: &Unit,
    ) -> Result<Shape, LayoutError> {
        let shard = |kv_heads| Shard::tensor_parallel(self.layers, kv_heads, tp_rank, tp_size);
        match self.cache {
            ModelCache::Heads {
                kv_heads,
                head_size,
            } => {
                let shard = shard(kv_heads)?;
                let (heads, content) = (shard.heads.count, self.units(head_size, unit)?);
                Shape::key_value(num_blocks, self.layers, page_size, heads, content, unit)?
                    .with_shard(shard)
            }
            ModelCache::Latent { latent, rope_part } => {
                let plane = |name, values| -> Result<Plane, LayoutError> {
                    let content = self.units(values, unit)?;
                    Ok(Plane::new(name, unit.clone())?.extent(Axis::C, content))
                };
                let planes = vec![plane("c", latent)?, plane("r", rope_part)?];
                Shape::new(num_blocks, self.layers, page_size, planes)?.with_shard(shard(1)?)
            }
        }
    }

    fn units(&self, values: u64, unit: &Unit) -> Result<u64, LayoutError> {
        match values.checked_div(unit.values()) {
            Some(units) if units * unit.values() == values => Ok(units),
            _ => Err(PresetError::UnitValues {
                name: self.name.clone(),
                values,
                unit: unit.to_string(),
            }
            .into()),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelsFile {
    model: Vec<ModelPresetRow>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelPresetRow {
    name: String,
    title: String,
    layers: u64,
    heads: u64,
    kv_heads: Option<u64>,
    head_size: Option<u64>,
    latent: Option<u64>,
    rope_part: Option<u64>,
    rope_theta: Option<Real>,
    dtype: String,
    source: String,
    seen: String,
    note: Option<String>,
}

fn parse(text: &str) -> Result<Vec<ModelPreset>, LayoutError> {
    let file: ModelsFile = toml::from_str(text).map_err(|error| broken(&error.to_string()))?;
    let mut models: Vec<ModelPreset> = Vec::new();
    for row in file.model {
        if models.iter().any(|model| model.name == row.name) {
            return Err(broken(&format!("{}: a second row of this name", row.name)));
        }
        models.push(model(row)?);
    }
    Ok(models)
}

fn model(row: ModelPresetRow) -> Result<ModelPreset, LayoutError> {
    let cache = match (row.kv_heads, row.head_size, row.latent, row.rope_part) {
        (Some(kv_heads), Some(head_size), None, None) => ModelCache::Heads {
            kv_heads,
            head_size,
        },
        (None, None, Some(latent), Some(rope_part)) => ModelCache::Latent { latent, rope_part },
        _ => {
            let problem = "give kv_heads and head_size, or latent and rope_part";
            return Err(broken(&format!("{}: {problem}", row.name)));
        }
    };
    Ok(ModelPreset {
        name: row.name,
        title: row.title,
        layers: row.layers,
        heads: row.heads,
        cache,
        rope_theta: row.rope_theta,
        dtype: row.dtype,
        source: row.source,
        seen: row.seen,
        note: row.note,
    })
}

fn broken(problem: &str) -> LayoutError {
    PresetError::Data {
        file: FILE,
        problem: problem.to_owned(),
    }
    .into()
}
