//! Rotary position embedding: the rotation of the stored keys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Real,
    canonical::{CanonicalFields, FieldValue},
    limits::{LIST_ENTRIES_MAX, MAP_ENTRIES_MAX, check_count, check_text},
};
use crate::error::LayoutError;

/// The rotary position embedding of a model: its kind, its base and all further parameters of the
/// angles (scaling factor, original context length, rotated dimensions, interleaving).
///
/// Keys are stored rotated, so every parameter must be equal before stored bytes may be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedRope")]
pub struct Rope {
    kind: String,
    base: Real,
    params: BTreeMap<String, RopeParam>,
}

/// One parameter of a [`Rope`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RopeParam {
    /// A number.
    Number(Real),
    /// One number per dimension, for instance the factors of LongRoPE.
    Numbers(Vec<Real>),
    /// A parameter that is not numeric.
    Text(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedRope {
    kind: String,
    base: Real,
    #[serde(default)]
    params: BTreeMap<String, RopeParam>,
}

impl TryFrom<UncheckedRope> for Rope {
    type Error = LayoutError;

    fn try_from(rope: UncheckedRope) -> Result<Rope, LayoutError> {
        let UncheckedRope { kind, base, params } = rope;
        let rope = Rope::new(&kind, base.get())?;
        params
            .into_iter()
            .try_fold(rope, |rope, (name, param)| rope.with_param(&name, param))
    }
}

impl Rope {
    /// An embedding of kind `kind` (`default`, `llama3`, `yarn`, as the model's config calls it)
    /// with base `base` (also called theta).
    ///
    /// # Errors
    /// A kind that is empty or longer than 4096 bytes; a base that is not finite.
    pub fn new(kind: &str, base: f64) -> Result<Rope, LayoutError> {
        check_text("rope.kind", kind)?;
        Ok(Rope {
            kind: kind.to_owned(),
            base: Real::new(base)?,
            params: BTreeMap::new(),
        })
    }

    /// Sets the parameter `name`.
    ///
    /// # Errors
    /// A name or text that is empty or too long; more than 256 parameters or 65,536 numbers.
    pub fn with_param(mut self, name: &str, param: RopeParam) -> Result<Rope, LayoutError> {
        check_text("rope.params", name)?;
        match &param {
            RopeParam::Number(_) => {}
            RopeParam::Numbers(list) => check_count("rope.params", list.len(), LIST_ENTRIES_MAX)?,
            RopeParam::Text(text) => check_text("rope.params", text)?,
        }
        self.params.insert(name.to_owned(), param);
        check_count("rope.params", self.params.len(), MAP_ENTRIES_MAX)?;
        Ok(self)
    }

    /// Sets the parameter `name` to a number.
    ///
    /// # Errors
    /// As for [`Rope::with_param`]; a value that is not finite.
    pub fn with_number(self, name: &str, value: f64) -> Result<Rope, LayoutError> {
        self.with_param(name, RopeParam::Number(Real::new(value)?))
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The base.
    #[must_use]
    pub fn base(&self) -> f64 {
        self.base.get()
    }

    /// The parameters by name.
    #[must_use]
    pub fn params(&self) -> &BTreeMap<String, RopeParam> {
        &self.params
    }

    pub(super) fn fields(&self, fields: &mut CanonicalFields) {
        fields.text("rope.kind", &self.kind);
        fields.value("rope.base", FieldValue::Real(self.base));
        for (name, param) in &self.params {
            let value = match param {
                RopeParam::Number(value) => FieldValue::Real(*value),
                RopeParam::Numbers(values) => FieldValue::Reals(values.clone()),
                RopeParam::Text(text) => FieldValue::Text(text.clone()),
            };
            fields.value(format!("rope.params.{name}"), value);
        }
    }
}
