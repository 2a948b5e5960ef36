//! One group of layers of a model.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{
    super::{
        IdentityError, Rope,
        canonical::CanonicalFields,
        limits::{MAP_ENTRIES_MAX, check_count, check_text},
        logical::{normal, shape_fields},
    },
    GroupName,
};
use crate::{
    error::LayoutError,
    rule::GroupRule,
    shape::{LayerSet, Plane, Shape, Shard},
};

/// Whose layers a group has.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum GroupRole {
    /// Those of the model.
    #[default]
    Target,
    /// Those of a draft model for speculative decoding: it never decides whether a prefix is a hit, and keys do not
    /// depend on it.
    Draft,
}

impl fmt::Display for GroupRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GroupRole::Target => "target",
            GroupRole::Draft => "draft",
        })
    }
}

/// Layers of a model with one rule, one set of planes and one page size.
///
/// The layers of the shape, and of its shard, are the group's own: layer `i` is the `i`-th of [`layers`](Self::layers).
/// A stage of a pipeline has a range of them ([`LayerSet::within`]).
///
/// A layer may be in several groups, for instance in one with its keys and values and in one with its state.
///
/// ```
/// use std::num::NonZeroU64;
/// use kvtile_layout::{GroupRule, LayerSet, Shape, identity::{ModelGroup, Rope}};
///
/// let window = GroupRule::Window { tokens: NonZeroU64::new(128).unwrap() };
/// let shape = Shape::key_value(1, 12, 16, 8, 64, "bf16")?;
/// let group = ModelGroup::new("window", window, &shape)?
///     .with_layers(LayerSet::new((0..24).step_by(2))?)?
///     .with_rope(Rope::new("yarn", 150_000.0)?);
/// assert_eq!(group.layers().position(10), Some(5));
/// # Ok::<(), kvtile_layout::LayoutError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredModelGroup", into = "StoredModelGroup")]
pub struct ModelGroup {
    name: GroupName,
    rule: GroupRule,
    role: GroupRole,
    layers: LayerSet,
    /// The shape of one block, with replica 0 and the planes sorted by name.
    shape: Shape,
    rope: Option<Rope>,
    extra: BTreeMap<String, String>,
}

/// The serialised form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredModelGroup {
    name: GroupName,
    rule: GroupRule,
    #[serde(default)]
    role: GroupRole,
    layers: LayerSet,
    page_size: u64,
    planes: Vec<Plane>,
    shard: Shard,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope: Option<Rope>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<String, String>,
}

impl From<ModelGroup> for StoredModelGroup {
    fn from(group: ModelGroup) -> StoredModelGroup {
        StoredModelGroup {
            page_size: group.shape.page_size(),
            planes: group.shape.planes().to_vec(),
            shard: group.shape.shard(),
            name: group.name,
            rule: group.rule,
            role: group.role,
            layers: group.layers,
            rope: group.rope,
            extra: group.extra,
        }
    }
}

impl TryFrom<StoredModelGroup> for ModelGroup {
    type Error = LayoutError;

    fn try_from(stored: StoredModelGroup) -> Result<ModelGroup, LayoutError> {
        let layers = stored.shard.layers.count;
        let shape = Shape::new(1, layers, stored.page_size, stored.planes)?;
        let shape = shape.with_shard(stored.shard)?;
        let group = ModelGroup::new(stored.name.as_str(), stored.rule, &shape)?
            .with_role(stored.role)
            .with_layers(stored.layers)?
            .with_rope(stored.rope);
        check_count("extra", stored.extra.len(), MAP_ENTRIES_MAX)?;
        let mut extra = stored.extra.iter();
        extra.try_fold(group, |group, (key, value)| group.with_extra(key, value))
    }
}

impl ModelGroup {
    /// A group of the model itself whose layers are the first ones of the model. `shape` has the part of the group that
    /// is held here; its number of blocks is ignored.
    ///
    /// # Errors
    /// A name that is none ([`GroupName`]).
    pub fn new(name: &str, rule: GroupRule, shape: &Shape) -> Result<ModelGroup, LayoutError> {
        Ok(ModelGroup {
            name: GroupName::new(name)?,
            rule,
            role: GroupRole::Target,
            layers: LayerSet::first(shape.shard().total_layers),
            shape: normal(shape)?,
            rope: None,
            extra: BTreeMap::new(),
        })
    }

    /// Sets the layers of the model that the group has, in all its parts.
    ///
    /// # Errors
    /// A number of layers that is not that of the shape's shard as a whole (`total_layers`).
    pub fn with_layers(mut self, layers: LayerSet) -> Result<ModelGroup, LayoutError> {
        let total = self.shape.shard().total_layers;
        if layers.count() != total {
            return Err(IdentityError::GroupLayers {
                group: self.name,
                count: layers.count(),
                layers,
                total,
            }
            .into());
        }
        self.layers = layers;
        Ok(self)
    }

    /// Sets the parameters of the rotary embedding, which the stored keys depend on; `None` for layers without one.
    #[must_use]
    pub fn with_rope(mut self, rope: impl Into<Option<Rope>>) -> ModelGroup {
        self.rope = rope.into();
        self
    }

    /// Sets whose layers the group has.
    #[must_use]
    pub fn with_role(mut self, role: GroupRole) -> ModelGroup {
        self.role = role;
        self
    }

    /// Sets the entry `key` to `value`: a parameter of this group alone that its codecs hide, such as the variant of an
    /// 8-bit format, or the revision of the weights of a draft model.
    ///
    /// # Errors
    /// A key or value that is empty or longer than 4096 bytes; more than 256 entries.
    pub fn with_extra(mut self, key: &str, value: &str) -> Result<ModelGroup, LayoutError> {
        check_text("extra", key)?;
        check_text("extra", value)?;
        self.extra.insert(key.to_owned(), value.to_owned());
        check_count("extra", self.extra.len(), MAP_ENTRIES_MAX)?;
        Ok(self)
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &GroupName {
        &self.name
    }

    /// What a hit needs of the group.
    #[must_use]
    pub fn rule(&self) -> GroupRule {
        self.rule
    }

    /// Whose layers the group has.
    #[must_use]
    pub fn role(&self) -> GroupRole {
        self.role
    }

    /// The layers of the model that the group has, in all its parts.
    #[must_use]
    pub fn layers(&self) -> &LayerSet {
        &self.layers
    }

    /// The shape of one block, with replica 0 and the planes by name.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
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

    /// The fields of the group that its planes, its shard and its rotary embedding do not have.
    pub(super) fn own_fields(&self) -> [(&'static str, String); 3] {
        [
            ("rule", self.rule.to_string()),
            ("role", self.role.to_string()),
            ("layers", self.layers.to_string()),
        ]
    }

    /// The fields of the part `shard` of the group, or of the part that is held.
    pub(super) fn fields(&self, shard: Shard) -> CanonicalFields {
        let mut fields = CanonicalFields::default();
        for (path, text) in self.own_fields() {
            fields.text(path, text);
        }
        shape_fields(&self.shape, shard, &mut fields);
        if let Some(rope) = &self.rope {
            rope.fields(&mut fields);
        }
        for (key, value) in &self.extra {
            fields.text(format!("extra.{key}"), value);
        }
        fields
    }

    /// The whole of the group in all its parts.
    pub(super) fn whole(&self) -> Shard {
        let part = self.shape.shard();
        Shard::whole(part.total_layers, part.total_heads)
    }
}
