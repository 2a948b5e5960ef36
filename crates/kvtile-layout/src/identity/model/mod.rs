//! The identity of a model with groups of layers.
//!
//! ```text
//!               model, revision, extra ─┐
//! target groups: rule, layers, planes,  ├─► chain ─► keys of blocks
//!   page size, rotary embedding ────────┘     │
//!                                             ▼
//!                     each group's planes, shard ─► identity of the group ─► pools, folders, layouts
//! ```
//!
//! What a layer computes depends on the precision and the window of the layers below it, so keys depend on all groups of
//! the model, and not on those of a drafter.

mod group;
mod name;

use std::collections::BTreeMap;

pub use group::{GroupRole, ModelGroup};
pub use name::GroupName;
use serde::{Deserialize, Serialize};

use super::{
    Difference, Fingerprint, Identity, IdentityError, Rope,
    canonical::CanonicalFields,
    limits::{MAP_ENTRIES_MAX, check_count, check_text},
    logical::StoredLogical,
};
use crate::{
    broken::broken,
    error::LayoutError,
    rule::GroupRule,
    shape::{LayerSet, Plane, Shard},
};

/// Names the form and its version.
const CONTEXT: &str = "kvtile identity logical 2";

/// The name of the only group of a model all of whose layers have full attention.
const PLAIN: &str = "full";

/// Begins the entries that the identities of groups have beside those of their model.
const GROUP_EXTRA: &str = "group.";

/// The most entries that the identity of a group has beside its own and its model's: name, rule, role, layers, chain.
const GROUP_ENTRIES: usize = 5;

/// Most groups of a model.
pub const GROUPS_MAX: usize = 64;

/// The meaning of the KV of a model with groups of layers: model, revision, groups, and the parameters that codecs hide.
///
/// A model with one group, of all layers, with full attention and the name `full`, is *plain*: its fingerprints and its
/// serialised form are those of its [`Identity`].
///
/// ```
/// use std::num::NonZeroU64;
/// use kvtile_layout::{GroupRule, LayerSet, Shape, identity::{Identity, ModelGroup, ModelIdentity}};
///
/// let window = GroupRule::Window { tokens: NonZeroU64::new(128).unwrap() };
/// let shape = Shape::key_value(1, 12, 16, 8, 64, "bf16")?;
/// let layers = |first| LayerSet::new((first..24).step_by(2));
/// let model = ModelIdentity::new("gpt-oss-20b", "9f4a1c2", vec![
///     ModelGroup::new("full", GroupRule::Full, &shape)?.with_layers(layers(1)?)?,
///     ModelGroup::new("window", window, &shape)?.with_layers(layers(0)?)?,
/// ])?;
/// let pool = model.group_identity("window").unwrap();
/// assert_ne!(pool.fingerprint(), model.group_identity("full").unwrap().fingerprint());
///
/// // A model with one full group is what it is without groups.
/// let plain = Identity::new("llama-3.1-8b", "0e9e39f", &shape)?;
/// assert_eq!(ModelIdentity::from(plain.clone()).group_identity("full"), Some(plain));
/// # Ok::<(), kvtile_layout::LayoutError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredModel", into = "StoredModel")]
pub struct ModelIdentity {
    model: String,
    revision: String,
    extra: BTreeMap<String, String>,
    /// By name; at least one is of the model itself.
    groups: Vec<ModelGroup>,
}

/// The serialised form: that of an [`Identity`], or with groups in place of page size, planes, shard and rotary
/// embedding.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredModel {
    model: String,
    revision: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    page_size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    planes: Option<Vec<Plane>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shard: Option<Shard>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rope: Option<Rope>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<ModelGroup>>,
}

impl From<ModelIdentity> for StoredModel {
    fn from(identity: ModelIdentity) -> StoredModel {
        match identity.plain() {
            Some(plain) => {
                let plain = StoredLogical::from(plain);
                StoredModel {
                    model: plain.model,
                    revision: plain.revision,
                    page_size: Some(plain.page_size),
                    planes: Some(plain.planes),
                    shard: Some(plain.shard),
                    rope: plain.rope,
                    extra: plain.extra,
                    groups: None,
                }
            }
            None => StoredModel {
                model: identity.model,
                revision: identity.revision,
                page_size: None,
                planes: None,
                shard: None,
                rope: None,
                extra: identity.extra,
                groups: Some(identity.groups),
            },
        }
    }
}

impl TryFrom<StoredModel> for ModelIdentity {
    type Error = LayoutError;

    fn try_from(stored: StoredModel) -> Result<ModelIdentity, LayoutError> {
        let StoredModel {
            model,
            revision,
            page_size,
            planes,
            shard,
            rope,
            extra,
            groups,
        } = stored;
        match (page_size, planes, shard, groups) {
            (Some(page_size), Some(planes), Some(shard), None) => {
                let plain = StoredLogical {
                    model,
                    revision,
                    page_size,
                    planes,
                    shard,
                    rope,
                    extra,
                };
                Ok(ModelIdentity::from(Identity::try_from(plain)?))
            }
            (None, None, None, Some(groups)) if rope.is_none() => {
                let identity = ModelIdentity::new(&model, &revision, groups)?;
                check_count("extra", extra.len(), MAP_ENTRIES_MAX)?;
                let mut extra = extra.iter();
                extra.try_fold(identity, |identity, (key, value)| {
                    identity.with_extra(key, value)
                })
            }
            _ => Err(IdentityError::GroupsOrPlanes.into()),
        }
    }
}

impl From<Identity> for ModelIdentity {
    fn from(identity: Identity) -> ModelIdentity {
        let shard = identity.shard();
        let group = ModelGroup::new(PLAIN, GroupRule::Full, identity.shape())
            .and_then(|group| group.with_layers(LayerSet::first(shard.total_layers)));
        let Ok(group) = group else {
            broken(format_args!("the shape of an identity: {identity:?}"))
        };
        ModelIdentity {
            model: identity.model().to_owned(),
            revision: identity.revision().to_owned(),
            extra: identity.extra().clone(),
            groups: vec![group.with_rope(identity.rope().cloned())],
        }
    }
}

impl ModelIdentity {
    /// The identity of a model of these groups, in any order. `revision` identifies the weights: a commit or a checksum
    /// of the file.
    ///
    /// # Errors
    /// A model or revision that is empty or longer than 4096 bytes; no group of the model itself; more than
    /// [`GROUPS_MAX`]; two groups of one name; more entries than an identity has.
    pub fn new(
        model: &str,
        revision: &str,
        groups: Vec<ModelGroup>,
    ) -> Result<ModelIdentity, LayoutError> {
        check_text("model", model)?;
        check_text("revision", revision)?;
        check_count("groups", groups.len(), GROUPS_MAX)?;
        let mut groups = groups;
        groups.sort_by(|a, b| a.name().cmp(b.name()));
        let pairs = groups.iter().zip(groups.iter().skip(1));
        if let Some((twice, _)) = pairs.into_iter().find(|(a, b)| a.name() == b.name()) {
            let group = twice.name().clone();
            return Err(IdentityError::GroupTwice { group }.into());
        }
        let identity = ModelIdentity {
            model: model.to_owned(),
            revision: revision.to_owned(),
            extra: BTreeMap::new(),
            groups,
        };
        if identity.targets().next().is_none() {
            return Err(IdentityError::NoTargetGroup {
                count: identity.groups.len(),
            }
            .into());
        }
        identity.checked()
    }

    /// Sets the entry `key` to `value`. Entries are parameters of all groups that the codecs hide, for instance the
    /// variant of an 8-bit format.
    ///
    /// # Errors
    /// A key or value that is empty or longer than 4096 bytes; more than 256 entries, with those that the identities of
    /// groups have beside; a key that begins with `group.`, if the model is not plain.
    pub fn with_extra(mut self, key: &str, value: &str) -> Result<ModelIdentity, LayoutError> {
        check_text("extra", key)?;
        check_text("extra", value)?;
        self.extra.insert(key.to_owned(), value.to_owned());
        self.checked()
    }

    /// Checks that each group has an identity.
    fn checked(self) -> Result<ModelIdentity, LayoutError> {
        check_count("extra", self.extra.len(), MAP_ENTRIES_MAX)?;
        if self.is_plain() {
            return Ok(self);
        }
        let mut names = self.extra.keys();
        if let Some(key) = names.find(|key| key.starts_with(GROUP_EXTRA)) {
            let key = key.clone();
            return Err(IdentityError::ReservedExtra { key }.into());
        }
        for group in &self.groups {
            let count = self.extra.len() + group.extra().len() + GROUP_ENTRIES;
            check_count(
                &format!("extra of group {}", group.name()),
                count,
                MAP_ENTRIES_MAX,
            )?;
            for key in group.extra().keys() {
                check_text("extra", &format!("{GROUP_EXTRA}extra.{key}"))?;
            }
        }
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

    /// The parameters of all groups that the codecs hide.
    #[must_use]
    pub fn extra(&self) -> &BTreeMap<String, String> {
        &self.extra
    }

    /// The groups, by name.
    #[must_use]
    pub fn groups(&self) -> &[ModelGroup] {
        &self.groups
    }

    /// The group called `name`.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&ModelGroup> {
        self.groups
            .iter()
            .find(|group| group.name().as_str() == name)
    }

    /// The groups of the model itself, by name: those that decide whether a prefix is a hit.
    pub fn targets(&self) -> impl Iterator<Item = &ModelGroup> {
        let own = |group: &&ModelGroup| group.role() == GroupRole::Target;
        self.groups.iter().filter(own)
    }

    /// The tokens of one key: the greatest common divisor of the page sizes of all groups.
    #[must_use]
    pub fn unit(&self) -> u64 {
        let pages = self.groups.iter().map(|group| group.shape().page_size());
        pages.fold(0, greatest_common_divisor)
    }

    /// The tokens between two stops: the least common multiple of the page sizes of the model's own groups; `None` if it
    /// exceeds `u64`.
    #[must_use]
    pub fn stop_unit(&self) -> Option<u64> {
        let mut pages = self.targets().map(|group| group.shape().page_size());
        pages.try_fold(1_u64, |unit, page| {
            unit.checked_mul(page / greatest_common_divisor(unit, page))
        })
    }

    /// The identity without groups, if the model is plain: one group, of all layers, with full attention and the name
    /// `full`.
    #[must_use]
    pub fn plain(&self) -> Option<Identity> {
        match self.groups.as_slice() {
            [_] => self.plain_target(),
            _ => None,
        }
    }

    fn is_plain(&self) -> bool {
        self.groups.len() == 1 && self.plain_target_group().is_some()
    }

    /// The only group of the model itself, if it needs no fields of groups.
    fn plain_target_group(&self) -> Option<&ModelGroup> {
        let mut targets = self.targets();
        let (group, None) = (targets.next()?, targets.next()) else {
            return None;
        };
        let all = LayerSet::first(group.shape().shard().total_layers);
        let plain = group.name().as_str() == PLAIN
            && group.rule() == GroupRule::Full
            && *group.layers() == all
            && group.extra().is_empty();
        plain.then_some(group)
    }

    fn plain_target(&self) -> Option<Identity> {
        let group = self.plain_target_group()?;
        Some(self.identity_of(group, &self.extra))
    }

    fn identity_of(&self, group: &ModelGroup, extra: &BTreeMap<String, String>) -> Identity {
        let identity = Identity::new(&self.model, &self.revision, group.shape());
        let identity = identity.map(|identity| identity.with_rope(group.rope().cloned()));
        let identity = identity.and_then(|identity| {
            let mut extra = extra.iter();
            extra.try_fold(identity, |identity, (key, value)| {
                identity.with_extra(key, value)
            })
        });
        match identity {
            Ok(identity) => identity,
            Err(error) => broken(format_args!("group {} of {self:?}: {error}", group.name())),
        }
    }

    /// The fingerprint of all groups of the model itself, with all layers and heads in their shards: what keys are made
    /// with. It is equal for all parts of one model, and with and without a drafter.
    ///
    /// For a plain model it is [`Identity::model_fingerprint`].
    #[must_use]
    pub fn chain(&self) -> Fingerprint {
        match self.plain_target() {
            Some(plain) => plain.model_fingerprint(),
            None => self
                .fields_of(self.targets(), ModelGroup::whole)
                .fingerprint(CONTEXT),
        }
    }

    /// The fingerprint of all fields, those of drafters and of the part that is held here included.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        match self.plain() {
            Some(plain) => plain.fingerprint(),
            None => self.fields().fingerprint(CONTEXT),
        }
    }

    /// The identity of the blocks of the group called `name`: for its pool, its folder and its layouts; `None` where
    /// there is no such group.
    ///
    /// It has the group's shape and rotary embedding, and in `extra` the group's name, rule, role, layers and entries,
    /// and the [`chain`](Self::chain). The group of a plain model has none of these entries, with and without a drafter.
    #[must_use]
    pub fn group_identity(&self, name: &str) -> Option<Identity> {
        let group = self.group(name)?;
        if self.plain_target_group() == Some(group) {
            return self.plain_target();
        }
        let mut extra = self.extra.clone();
        let mut set =
            |key: String, value: String| extra.insert(format!("{GROUP_EXTRA}{key}"), value);
        set("name".to_owned(), group.name().to_string());
        for (field, value) in group.own_fields() {
            set(field.to_owned(), value);
        }
        for (key, value) in group.extra() {
            set(format!("extra.{key}"), value.clone());
        }
        // The last entry of a group: a difference of another one says more.
        set("target_groups".to_owned(), self.chain().to_string());
        Some(self.identity_of(group, &extra))
    }

    /// The first field that differs, in a fixed order; `None` exactly where the identities are equal.
    #[must_use]
    pub fn first_difference(&self, other: &ModelIdentity) -> Option<Difference> {
        self.differences(other).into_iter().next()
    }

    /// Every field that differs, in a fixed order: the model, the entries of a user, the names of the groups, and the
    /// groups by name.
    #[must_use]
    pub fn differences(&self, other: &ModelIdentity) -> Vec<Difference> {
        if let (Some(ours), Some(theirs)) = (self.plain(), other.plain()) {
            return ours.differences(&theirs);
        }
        self.fields().differences(&other.fields())
    }

    fn fields(&self) -> CanonicalFields {
        self.fields_of(self.groups.iter(), |group| group.shape().shard())
    }

    fn fields_of<'a>(
        &self,
        groups: impl Iterator<Item = &'a ModelGroup>,
        shard: impl Fn(&ModelGroup) -> Shard,
    ) -> CanonicalFields {
        let groups: Vec<&ModelGroup> = groups.collect();
        let mut fields = CanonicalFields::default();
        fields.text("model", &self.model);
        fields.text("revision", &self.revision);
        for (key, value) in &self.extra {
            fields.text(format!("extra.{key}"), value);
        }
        let names: Vec<&str> = groups.iter().map(|group| group.name().as_str()).collect();
        fields.text("groups", names.join(", "));
        for group in groups {
            let below = format!("groups.{}.", group.name());
            fields.append_below(&below, group.fields(shard(group)));
        }
        fields
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    match b {
        0 => a,
        b => greatest_common_divisor(b, a % b),
    }
}
