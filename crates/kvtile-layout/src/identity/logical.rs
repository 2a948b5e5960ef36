//! The logical part: the meaning of the stored values, independent of their order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Difference, Fingerprint, Rope,
    canonical::CanonicalFields,
    limits::{MAP_ENTRIES_MAX, check_count, check_text},
};
use crate::{
    axis::Axis,
    error::LayoutError,
    shape::{Plane, PlanePer, Shape, Shard},
    strided::names,
};

/// Names the form of the logical part and its version.
const CONTEXT: &str = "kvtile identity logical 1";

/// The meaning of the values of a block: model, revision, planes, page size, layers, heads, rotary
/// embedding, and the parameters that codecs hide.
///
/// Blocks with equal logical parts hold the same values in some order and can be converted into
/// each other. Blocks with different logical parts cannot replace each other. The number of blocks,
/// the replica number and the order of the planes are not part of it.
///
/// ```
/// use kvtile_layout::{Shape, Unit, identity::{Identity, Rope}};
///
/// let bf16 = Unit::new("bf16", 2, 1)?;
/// let shape = Shape::key_value(1000, 32, 16, 8, 128, &bf16)?;
/// let rope = |base| Rope::new("llama3", base)?.with_number("factor", 8.0);
/// let ours = Identity::new("llama-3.1-8b", "0e9e39f", &shape)?.with_rope(rope(500_000.0)?);
/// let theirs = Identity::new("llama-3.1-8b", "0e9e39f", &shape)?.with_rope(rope(10_000.0)?);
/// let difference = ours.first_difference(&theirs).expect("the bases differ");
/// assert_eq!(difference.field, "rope.base");
/// assert_ne!(ours.fingerprint(), theirs.fingerprint());
/// # Ok::<(), kvtile_layout::LayoutError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredLogical", into = "StoredLogical")]
pub struct Identity {
    model: String,
    revision: String,
    /// The shape of one block, with replica 0 and the planes sorted by name.
    shape: Shape,
    rope: Option<Rope>,
    extra: BTreeMap<String, String>,
}

/// The serialised form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StoredLogical {
    pub(super) model: String,
    pub(super) revision: String,
    pub(super) page_size: u64,
    pub(super) planes: Vec<Plane>,
    pub(super) shard: Shard,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rope: Option<Rope>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) extra: BTreeMap<String, String>,
}

impl From<Identity> for StoredLogical {
    fn from(identity: Identity) -> StoredLogical {
        StoredLogical {
            page_size: identity.page_size(),
            planes: identity.planes().to_vec(),
            shard: identity.shard(),
            model: identity.model,
            revision: identity.revision,
            rope: identity.rope,
            extra: identity.extra,
        }
    }
}

impl TryFrom<StoredLogical> for Identity {
    type Error = LayoutError;

    fn try_from(stored: StoredLogical) -> Result<Identity, LayoutError> {
        let layers = stored.shard.layers.count;
        let shape = Shape::new(1, layers, stored.page_size, stored.planes)?;
        let shape = shape.with_shard(stored.shard)?;
        let identity =
            Identity::new(&stored.model, &stored.revision, &shape)?.with_rope(stored.rope);
        check_count("extra", stored.extra.len(), MAP_ENTRIES_MAX)?;
        stored
            .extra
            .iter()
            .try_fold(identity, |identity, (key, value)| {
                identity.with_extra(key, value)
            })
    }
}

impl Identity {
    /// The identity of the part of a model that `shape` holds. `revision` identifies the weights: a
    /// commit or a checksum of the file. A model with rotary embedding adds its parameters with
    /// [`with_rope`](Self::with_rope).
    ///
    /// # Errors
    /// A model or revision that is empty or longer than 4096 bytes.
    pub fn new(model: &str, revision: &str, shape: &Shape) -> Result<Identity, LayoutError> {
        check_text("model", model)?;
        check_text("revision", revision)?;
        Ok(Identity {
            model: model.to_owned(),
            revision: revision.to_owned(),
            shape: normal(shape)?,
            rope: None,
            extra: BTreeMap::new(),
        })
    }

    /// Sets the parameters of the rotary embedding, which the stored keys depend on; `None` for a model
    /// without one.
    #[must_use]
    pub fn with_rope(mut self, rope: impl Into<Option<Rope>>) -> Identity {
        self.rope = rope.into();
        self
    }

    /// Sets the entry `key` to `value`. Entries are parameters that the codecs hide, for instance a
    /// digest of static scales, the seed of a rotation or the variant of an 8-bit format.
    ///
    /// # Errors
    /// A key or value that is empty or longer than 4096 bytes; more than 256 entries.
    pub fn with_extra(mut self, key: &str, value: &str) -> Result<Identity, LayoutError> {
        check_text("extra", key)?;
        check_text("extra", value)?;
        self.extra.insert(key.to_owned(), value.to_owned());
        check_count("extra", self.extra.len(), MAP_ENTRIES_MAX)?;
        Ok(self)
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The revision of the weights.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The shape of one block, with replica 0 and the planes by name.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The planes, by name.
    #[must_use]
    pub fn planes(&self) -> &[Plane] {
        self.shape.planes()
    }

    /// Tokens per block.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.shape.page_size()
    }

    /// The layers and heads of the whole model that a block holds. The replica is always 0.
    #[must_use]
    pub fn shard(&self) -> Shard {
        self.shape.shard()
    }

    /// The rotary embedding.
    #[must_use]
    pub fn rope(&self) -> Option<&Rope> {
        self.rope.as_ref()
    }

    /// The parameters that the codecs hide.
    #[must_use]
    pub fn extra(&self) -> &BTreeMap<String, String> {
        &self.extra
    }

    /// The fingerprint of all fields.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fields().fingerprint(CONTEXT)
    }

    /// The fingerprint of the identity of the whole model: [`fingerprint`](Self::fingerprint) with
    /// all layers and heads in the shard. It is equal for all parts of one model.
    #[must_use]
    pub fn model_fingerprint(&self) -> Fingerprint {
        let part = self.shard();
        let whole = Shard::whole(part.total_layers, part.total_heads);
        self.fields_of(whole).fingerprint(CONTEXT)
    }

    /// The identity of another part of the same model.
    ///
    /// # Errors
    /// As for [`Shape::of_shard`].
    pub fn of_shard(&self, shard: Shard) -> Result<Identity, LayoutError> {
        let shard = Shard {
            replica: 0,
            ..shard
        };
        Ok(Identity {
            shape: self.shape.of_shard(shard)?,
            ..self.clone()
        })
    }

    /// The first field that differs, in a fixed order; `None` exactly where the identities are
    /// equal.
    #[must_use]
    pub fn first_difference(&self, other: &Identity) -> Option<Difference> {
        self.differences(other).into_iter().next()
    }

    /// Every field that differs, in a fixed order.
    #[must_use]
    pub fn differences(&self, other: &Identity) -> Vec<Difference> {
        let mut differences = self.fields().differences(&other.fields());
        // Entries that a user added explain a difference of the planes, so they come first.
        differences.sort_by_key(|difference| match &difference.field {
            field if field.starts_with("extra.") => 1,
            field if ["model", "revision", "page_size"].contains(&field.as_ref()) => 0,
            _ => 2,
        });
        differences
    }

    /// The first field of the structure (planes, page size, shard) in which the identity differs
    /// from `shape`.
    ///
    /// # Errors
    /// A shape that no identity can have.
    pub fn difference_to_shape(&self, shape: &Shape) -> Result<Option<Difference>, LayoutError> {
        let rope = self.rope().cloned();
        let same = Identity::new(self.model(), self.revision(), shape)?.with_rope(rope);
        let structural = ["planes", "page_size", "shard"];
        let mut differences = self.differences(&same).into_iter();
        Ok(differences.find(|d| structural.iter().any(|part| d.field.starts_with(part))))
    }

    pub(super) fn fields(&self) -> CanonicalFields {
        self.fields_of(self.shard())
    }

    /// The fields of the part `shard` of the model.
    fn fields_of(&self, shard: Shard) -> CanonicalFields {
        let mut fields = CanonicalFields::default();
        fields.text("model", &self.model);
        fields.text("revision", &self.revision);
        shape_fields(&self.shape, shard, &mut fields);
        if let Some(rope) = &self.rope {
            rope.fields(&mut fields);
        }
        for (key, value) in &self.extra {
            fields.text(format!("extra.{key}"), value);
        }
        fields
    }
}

/// The shape of one block, with replica 0 and the planes sorted by name.
pub(super) fn normal(shape: &Shape) -> Result<Shape, LayoutError> {
    let mut planes: Vec<Plane> = shape
        .planes()
        .iter()
        .map(in_order)
        .collect::<Result<_, _>>()?;
    planes.sort_by(|a, b| a.name().cmp(b.name()));
    let shard = Shard {
        replica: 0,
        ..shape.shard()
    };
    Shape::new(1, shape.num_layers(), shape.page_size(), planes)?.with_shard(shard)
}

/// The fields of the part `shard` of a shape: page size, planes, layers and heads.
pub(super) fn shape_fields(shape: &Shape, shard: Shard, fields: &mut CanonicalFields) {
    fields.number("page_size", shape.page_size());
    fields.text("planes", names(shape.planes()));
    for plane in shape.planes() {
        plane_fields(plane, shard.heads.count, fields);
    }
    for (path, value) in [
        ("shard.layers.start", shard.layers.start),
        ("shard.layers.count", shard.layers.count),
        ("shard.total_layers", shard.total_layers),
        ("shard.heads.start", shard.heads.start),
        ("shard.heads.count", shard.heads.count),
        ("shard.total_heads", shard.total_heads),
    ] {
        fields.number(path, value);
    }
}

/// The plane with its axes in order; files may have them in another order.
fn in_order(plane: &Plane) -> Result<Plane, LayoutError> {
    let mut ordered = Plane::new(plane.name().as_str(), plane.unit().clone())?;
    ordered = match plane.per() {
        PlanePer::Token => ordered,
        PlanePer::Every(tokens) => ordered.every(tokens),
        PlanePer::Page => ordered.per_page(),
    };
    Ok(plane
        .extents()
        .iter()
        .fold(ordered, |plane, &(axis, extent)| plane.extent(axis, extent)))
}

/// The fields of a plane, if the part has `heads` heads.
fn plane_fields(plane: &Plane, heads: u64, fields: &mut CanonicalFields) {
    let name = plane.name();
    let unit = plane.unit();
    let kind = if unit.is_opaque() { "opaque" } else { "values" };
    fields.text(format!("planes.{name}.codec"), unit.codec());
    fields.text(format!("planes.{name}.unit"), kind);
    fields.number(format!("planes.{name}.unit_bytes"), unit.bytes());
    fields.number(format!("planes.{name}.unit_values"), unit.values());
    fields.text(format!("planes.{name}.per"), plane.per().to_string());
    for &(axis, extent) in plane.extents() {
        let extent = if axis == Axis::H { heads } else { extent };
        fields.number(format!("planes.{name}.{axis}"), extent);
    }
}
