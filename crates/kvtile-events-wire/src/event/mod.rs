//! Batches of events.
//!
//! A batch is an array: a time in seconds, the events, the data-parallel rank or nothing. An event is a map
//! with its kind under `type`, or, from older versions of vLLM, an array that begins with its kind. Events are
//! written as maps, as vLLM 0.32 writes them, to the same bytes. Fields that this crate does not know are kept.

mod fields;
mod made;

#[cfg(test)]
mod tests;

pub use self::made::WireStored;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{
    error::WireError,
    pack::{self, WireValue},
};

/// The name under which an event has its kind.
const KIND: &str = "type";

/// An event.
#[derive(Clone, Debug, PartialEq)]
pub struct WireEvent {
    kind: String,
    /// The fields of vLLM's class in its order, then unknown fields by name.
    fields: Vec<(String, WireValue)>,
}

impl WireEvent {
    /// An event of a kind with these fields, checked: `BlockStored`, `BlockRemoved`, `AllBlocksCleared`, or
    /// one that this crate does not know.
    ///
    /// # Errors
    /// [`WireError::Field`] for a field of a wrong type, one that is missing, or one that is there twice.
    pub fn new(kind: String, fields: Vec<(String, WireValue)>) -> Result<WireEvent, WireError> {
        let wrong = |field: &str, problem| WireError::Field {
            kind: kind.clone(),
            field: field.to_owned(),
            problem,
        };
        let mut by_name = BTreeMap::new();
        for (name, value) in fields {
            if name == KIND {
                return Err(wrong(&name, "the kind is no field"));
            }
            if by_name.contains_key(&name) {
                return Err(wrong(&name, "it is there twice"));
            }
            by_name.insert(name, value);
        }
        let mut fields = Vec::new();
        for field in fields::fields(&kind).unwrap_or_default() {
            let value = by_name.remove(field.name);
            let value = match value {
                None if !field.of.takes_nil() => return Err(wrong(field.name, "it is missing")),
                value => value.unwrap_or(WireValue::Nil),
            };
            if !field.of.takes(&value) {
                return Err(wrong(field.name, "it has another type"));
            }
            if !(field.is_optional && value == WireValue::Nil) {
                fields.push((field.name.to_owned(), value));
            }
        }
        fields.extend(by_name);
        Ok(WireEvent { kind, fields })
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The value of a field.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&WireValue> {
        let field = self.fields.iter().find(|(known, _)| known == name);
        field.map(|(_, value)| value)
    }

    /// How many blocks it is about.
    #[must_use]
    pub fn blocks(&self) -> usize {
        match self.field("block_hashes") {
            Some(WireValue::List(hashes)) => hashes.len(),
            _ => 0,
        }
    }

    fn of_value(value: WireValue) -> Result<WireEvent, WireError> {
        let no_kind = || WireError::Field {
            kind: "an event".to_owned(),
            field: KIND.to_owned(),
            problem: "it is missing",
        };
        match value {
            WireValue::Map(mut fields) => {
                let at = fields.iter().position(|(name, _)| name == KIND);
                match at.map(|at| fields.remove(at).1) {
                    Some(WireValue::Text(kind)) => WireEvent::new(kind, fields),
                    _ => Err(no_kind()),
                }
            }
            WireValue::List(values) => {
                let mut values = values.into_iter();
                let Some(WireValue::Text(kind)) = values.next() else {
                    return Err(no_kind());
                };
                let Some(names) = fields::fields(&kind) else {
                    return Err(WireError::Field {
                        kind,
                        field: KIND.to_owned(),
                        problem: "an array of a kind whose fields are not known",
                    });
                };
                let names = names.iter().map(|field| field.name.to_owned());
                WireEvent::new(kind, names.zip(values).collect())
            }
            _ => Err(no_kind()),
        }
    }

    fn to_value(&self) -> WireValue {
        let kind = (KIND.to_owned(), WireValue::Text(self.kind.clone()));
        let fields = self.fields.iter().cloned();
        WireValue::Map(std::iter::once(kind).chain(fields).collect())
    }
}

/// A batch of events, which has one sequence number.
#[derive(Clone, Debug, PartialEq)]
pub struct WireBatch {
    /// When it was made, in seconds since 1970.
    pub time: f64,
    /// The events, in order.
    pub events: Vec<WireEvent>,
    /// The data-parallel rank of the engine.
    pub data_parallel_rank: Option<u64>,
}

impl WireBatch {
    /// Reads the bytes of a batch. Values behind the rank, which a later version may add, are dropped.
    ///
    /// # Errors
    /// [`WireError::Batch`] with the place, [`WireError::Field`] with the event's kind and field.
    pub fn decode(bytes: &[u8]) -> Result<WireBatch, WireError> {
        WireBatch::of_value(pack::read(bytes)?)
    }

    /// The bytes of the batch, as vLLM writes them.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let rank = self.data_parallel_rank;
        let events = self.events.iter().map(WireEvent::to_value).collect();
        let values = vec![
            WireValue::Float(self.time),
            WireValue::List(events),
            rank.map_or(WireValue::Nil, WireValue::Number),
        ];
        let mut bytes = Vec::new();
        pack::write(&WireValue::List(values), &mut bytes);
        bytes
    }

    fn of_value(value: WireValue) -> Result<WireBatch, WireError> {
        let wrong = |problem| WireError::Batch { at: 0, problem };
        let WireValue::List(values) = value else {
            return Err(wrong("a batch is an array"));
        };
        let mut values = values.into_iter();
        let time = match values.next() {
            Some(WireValue::Float(time)) => time,
            // An encoder may write whole seconds as a whole number.
            Some(WireValue::Number(time)) => time as f64,
            _ => return Err(wrong("a batch begins with its time")),
        };
        let Some(WireValue::List(events)) = values.next() else {
            return Err(wrong("a batch has a list of events behind its time"));
        };
        let data_parallel_rank = match values.next() {
            None | Some(WireValue::Nil) => None,
            Some(WireValue::Number(rank)) => Some(rank),
            Some(_) => return Err(wrong("the data-parallel rank is a whole number")),
        };
        let events: Result<_, _> = events.into_iter().map(WireEvent::of_value).collect();
        Ok(WireBatch {
            time,
            events: events?,
            data_parallel_rank,
        })
    }

    /// The batch as JSON.
    pub(crate) fn to_json(&self) -> Value {
        let events = self.events.iter().map(WireEvent::to_value);
        let mut json = Map::new();
        json.insert("time".to_owned(), Value::from(self.time));
        json.insert(
            "data_parallel_rank".to_owned(),
            Value::from(self.data_parallel_rank),
        );
        let events = events.map(|event| pack::to_json(&event));
        json.insert("events".to_owned(), events.collect());
        Value::Object(json)
    }

    /// The batch of JSON.
    ///
    /// # Errors
    /// The problem.
    pub(crate) fn of_json(json: Value) -> Result<WireBatch, String> {
        let Value::Object(mut json) = json else {
            return Err("a batch is an object".to_owned());
        };
        let mut take = |name: &str| {
            let value = json.remove(name);
            value.ok_or_else(|| format!("the batch has no {name:?}"))
        };
        let values = [take("time")?, take("events")?, take("data_parallel_rank")?];
        let values: Result<Vec<WireValue>, String> =
            values.into_iter().map(pack::of_json).collect();
        if let Some(name) = json.keys().next() {
            return Err(format!("a batch has no {name:?}"));
        }
        WireBatch::of_value(WireValue::List(values?)).map_err(|error| error.to_string())
    }
}
