//! Canonical fields: the input of fingerprints and of comparisons.
//!
//! An identity is a list of fields in a fixed order, each a dotted path and a value. Comparing two
//! lists names the first field that differs, and the fingerprint is the hash of the list, so a
//! field can be in one only when it is in the other. The bytes:
//!
//! ```text
//! form   number of fields, then the fields
//! field  path as text, then one byte and a value:
//!        0 number   1 text   2 real (its bits as a number)
//!        3 reals (how many, then the bits of each)
//! number 8 bytes, little-endian
//! text   its length in bytes as a number, then UTF-8
//! ```
//!
//! Nothing here depends on the platform, on a serialisation crate or on the order of a map. A
//! change of the form or of the fields takes a new context string; an old context never changes
//! its meaning.

use std::fmt;

use super::{Fingerprint, Real};
use crate::ShownText;

/// The value of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FieldValue {
    Number(u64),
    Text(String),
    Real(Real),
    Reals(Vec<Real>),
}

impl fmt::Display for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FieldValue::Number(value) => write!(f, "{value}"),
            FieldValue::Text(text) => f.write_str(text),
            FieldValue::Real(value) => write!(f, "{value}"),
            FieldValue::Reals(values) => f.debug_list().entries(values).finish(),
        }
    }
}

/// One field: a dotted path and its value.
type CanonicalField = (String, FieldValue);

/// The fields of an identity in their fixed order. Paths occur once.
#[derive(Default)]
pub(super) struct CanonicalFields(Vec<CanonicalField>);

impl CanonicalFields {
    pub(super) fn number(&mut self, path: impl Into<String>, value: u64) {
        self.0.push((path.into(), FieldValue::Number(value)));
    }

    pub(super) fn text(&mut self, path: impl Into<String>, text: impl Into<String>) {
        self.0.push((path.into(), FieldValue::Text(text.into())));
    }

    pub(super) fn value(&mut self, path: impl Into<String>, value: FieldValue) {
        self.0.push((path.into(), value));
    }

    pub(super) fn append(&mut self, mut other: CanonicalFields) {
        self.0.append(&mut other.0);
    }

    /// Appends the fields of a part, each path below `prefix`.
    pub(super) fn append_below(&mut self, prefix: &str, part: CanonicalFields) {
        let below = part.0.into_iter();
        self.0
            .extend(below.map(|(path, value)| (format!("{prefix}{path}"), value)));
    }

    /// The fingerprint of the fields. `context` names what they describe and the version of the
    /// form, and is used for nothing else.
    pub(super) fn fingerprint(&self, context: &str) -> Fingerprint {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        hasher.update(&self.bytes());
        let mut bytes = [0; 16];
        hasher.finalize_xof().fill(&mut bytes);
        Fingerprint::from_bytes(bytes)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        number(&mut bytes, self.0.len() as u64);
        for (path, value) in &self.0 {
            text(&mut bytes, path);
            match value {
                FieldValue::Number(value) => {
                    bytes.push(0);
                    number(&mut bytes, *value);
                }
                FieldValue::Text(value) => {
                    bytes.push(1);
                    text(&mut bytes, value);
                }
                FieldValue::Real(value) => {
                    bytes.push(2);
                    number(&mut bytes, value.to_bits());
                }
                FieldValue::Reals(values) => {
                    bytes.push(3);
                    number(&mut bytes, values.len() as u64);
                    values.iter().for_each(|v| number(&mut bytes, v.to_bits()));
                }
            }
        }
        bytes
    }

    /// Every difference between both lists, in the order of the fields.
    pub(super) fn differences(&self, other: &CanonicalFields) -> Vec<Difference> {
        let (mut ours, mut theirs) = (self.0.as_slice(), other.0.as_slice());
        let mut found = Vec::new();
        loop {
            let (mine, yours) = match (ours.first(), theirs.first()) {
                (None, None) => return found,
                (Some(a), Some(b)) if a.0 == b.0 => (Some(a), Some(b)),
                (Some(a), Some(b)) => match (holds(theirs, &a.0), holds(ours, &b.0)) {
                    (true, false) => (None, Some(b)),
                    (false, false) if b.0 < a.0 => (None, Some(b)),
                    _ => (Some(a), None),
                },
                (a, b) => (a, b),
            };
            if mine.map(|f| &f.1) != yours.map(|f| &f.1) {
                found.push(Difference::new(mine, yours));
            }
            ours = ours.get(usize::from(mine.is_some())..).unwrap_or_default();
            theirs = theirs
                .get(usize::from(yours.is_some())..)
                .unwrap_or_default();
        }
    }
}

fn holds(fields: &[CanonicalField], path: &str) -> bool {
    fields.iter().any(|(p, _)| p == path)
}

fn number(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend_from_slice(&value.to_le_bytes());
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    number(bytes, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
}

/// One field in which two identities differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field, a dotted path such as `rope.base`.
    pub field: String,
    /// Its value on this side; `(absent)` where this side lacks the field.
    pub ours: String,
    /// Its value on the other side; `(absent)` where the other side lacks the field.
    pub theirs: String,
}

impl Difference {
    fn new(ours: Option<&CanonicalField>, theirs: Option<&CanonicalField>) -> Difference {
        let text =
            |f: Option<&CanonicalField>| f.map_or("(absent)".to_owned(), |f| f.1.to_string());
        Difference {
            field: ours.or(theirs).map(|f| f.0.clone()).unwrap_or_default(),
            ours: text(ours),
            theirs: text(theirs),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference {
            field,
            ours,
            theirs,
        } = self;
        write!(
            f,
            "{} differs: {} here, {} there",
            ShownText(field),
            ShownText(ours),
            ShownText(theirs)
        )
    }
}
