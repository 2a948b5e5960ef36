//! The fields of vLLM's events, in the order of its classes (0.32).

use crate::pack::WireValue;

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FieldType {
    /// A list of hashes: bytes or numbers.
    Hashes,
    /// A hash or nothing.
    HashOrNil,
    /// A list of numbers.
    Numbers,
    /// A number.
    Number,
    /// A number or nothing.
    NumberOrNil,
    /// Text or nothing.
    TextOrNil,
    /// A list or nothing.
    ListOrNil,
}

impl FieldType {
    /// Whether a value has the type.
    pub(super) fn takes(self, value: &WireValue) -> bool {
        let is_hash =
            |value: &WireValue| matches!(value, WireValue::Bytes(_) | WireValue::Number(_));
        let is_number = |value: &WireValue| matches!(value, WireValue::Number(_));
        match (self, value) {
            (FieldType::Hashes, WireValue::List(values)) => values.iter().all(is_hash),
            (FieldType::Numbers, WireValue::List(values)) => values.iter().all(is_number),
            (FieldType::Number, value) => is_number(value),
            (FieldType::Hashes | FieldType::Numbers, _) => false,
            (_, WireValue::Nil) => true,
            (FieldType::HashOrNil, value) => is_hash(value),
            (FieldType::NumberOrNil, value) => is_number(value),
            (FieldType::TextOrNil, value) => matches!(value, WireValue::Text(_)),
            (FieldType::ListOrNil, value) => matches!(value, WireValue::List(_)),
        }
    }

    /// Whether nothing is a value of the type.
    pub(super) fn takes_nil(self) -> bool {
        self.takes(&WireValue::Nil)
    }
}

/// A field.
#[derive(Clone, Copy, Debug)]
pub(super) struct EventField {
    pub(super) name: &'static str,
    pub(super) of: FieldType,
    /// Whether the encoder leaves it out where it is nothing.
    pub(super) is_optional: bool,
}

const fn always(name: &'static str, of: FieldType) -> EventField {
    EventField {
        name,
        of,
        is_optional: false,
    }
}

const fn optional(name: &'static str, of: FieldType) -> EventField {
    EventField {
        name,
        of,
        is_optional: true,
    }
}

const STORED: [EventField; 14] = [
    always("block_hashes", FieldType::Hashes),
    always("parent_block_hash", FieldType::HashOrNil),
    always("token_ids", FieldType::Numbers),
    always("block_size", FieldType::Number),
    always("lora_id", FieldType::NumberOrNil),
    always("medium", FieldType::TextOrNil),
    always("lora_name", FieldType::TextOrNil),
    optional("extra_keys", FieldType::ListOrNil),
    optional("group_idx", FieldType::NumberOrNil),
    optional("kv_cache_spec_kind", FieldType::TextOrNil),
    optional("kv_cache_spec_sliding_window", FieldType::NumberOrNil),
    optional("locality", FieldType::TextOrNil),
    optional("ownership", FieldType::TextOrNil),
    optional("session_id", FieldType::TextOrNil),
];

const REMOVED: [EventField; 5] = [
    always("block_hashes", FieldType::Hashes),
    always("medium", FieldType::TextOrNil),
    optional("group_idx", FieldType::NumberOrNil),
    optional("locality", FieldType::TextOrNil),
    optional("ownership", FieldType::TextOrNil),
];

/// The fields of a kind of event; `None` for a kind that vLLM 0.32 does not have.
pub(super) fn fields(kind: &str) -> Option<&'static [EventField]> {
    match kind {
        "BlockStored" => Some(&STORED),
        "BlockRemoved" => Some(&REMOVED),
        "AllBlocksCleared" => Some(&[]),
        _ => None,
    }
}
