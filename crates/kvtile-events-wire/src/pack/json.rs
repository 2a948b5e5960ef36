//! Values as JSON. Bytes are `{"$hex": "…"}`; a single name of a map that begins with `$` gets a second one.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::WireValue;

/// The name of bytes.
const HEX: &str = "$hex";

/// A value as JSON.
pub(crate) fn to_json(value: &WireValue) -> Value {
    match value {
        WireValue::Nil => Value::Null,
        WireValue::Bool(value) => Value::from(*value),
        WireValue::Number(number) => Value::from(*number),
        WireValue::Negative(number) => Value::from(*number),
        WireValue::Float(number) => Value::from(*number),
        WireValue::Text(text) => Value::from(text.as_str()),
        WireValue::Bytes(bytes) => {
            let mut text = String::with_capacity(bytes.len() * 2);
            for byte in bytes {
                // Writing to a string cannot fail.
                let _ = write!(text, "{byte:02x}");
            }
            Value::Object(Map::from_iter([(HEX.to_owned(), Value::from(text))]))
        }
        WireValue::List(values) => values.iter().map(to_json).collect(),
        WireValue::Map(entries) => {
            let escaped = entries.len() == 1;
            let entry = |(name, value): &(String, WireValue)| {
                let name = match escaped && name.starts_with('$') {
                    true => format!("${name}"),
                    false => name.clone(),
                };
                (name, to_json(value))
            };
            Value::Object(entries.iter().map(entry).collect())
        }
    }
}

/// The value of JSON.
///
/// # Errors
/// Bytes that are not in hexadecimal digits; numbers out of range.
pub(crate) fn of_json(json: Value) -> Result<WireValue, String> {
    match json {
        Value::Null => Ok(WireValue::Nil),
        Value::Bool(value) => Ok(WireValue::Bool(value)),
        Value::Number(number) => {
            let whole = number.as_u64().map(WireValue::Number);
            let whole = whole.or_else(|| number.as_i64().map(WireValue::Negative));
            let value = whole.or_else(|| number.as_f64().map(WireValue::Float));
            value.ok_or_else(|| format!("{number} is out of range"))
        }
        Value::String(text) => Ok(WireValue::Text(text)),
        Value::Array(values) => {
            let values: Result<_, _> = values.into_iter().map(of_json).collect();
            values.map(WireValue::List)
        }
        Value::Object(entries) => of_object(entries),
    }
}

fn of_object(entries: Map<String, Value>) -> Result<WireValue, String> {
    let single = entries.len() == 1;
    let mut values = Vec::new();
    for (name, value) in entries {
        let special = name.strip_prefix('$').filter(|_| single);
        let name = match (special, &value) {
            (None, _) => name,
            (Some("hex"), Value::String(text)) => return of_hex(text),
            (Some(rest), _) if rest.starts_with('$') => rest.to_owned(),
            (Some(_), _) => return Err(format!("{name:?} is none of a recording's names")),
        };
        values.push((name, of_json(value)?));
    }
    Ok(WireValue::Map(values))
}

fn of_hex(text: &str) -> Result<WireValue, String> {
    let problem = || format!("{text:?} is no hexadecimal number of whole bytes");
    let digits: Option<Vec<u8>> = text
        .chars()
        .map(|digit| {
            digit
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        })
        .collect();
    let digits = digits.ok_or_else(problem)?;
    let (pairs, []) = digits.as_chunks::<2>() else {
        return Err(problem());
    };
    let bytes = pairs.iter().map(|[high, low]| (high << 4) | low);
    Ok(WireValue::Bytes(bytes.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_from_their_json() {
        let single = |name: &str| {
            let text = WireValue::Text("00".to_owned());
            WireValue::Map(vec![(name.to_owned(), text)])
        };
        let values = [
            WireValue::Nil,
            WireValue::Number(u64::MAX),
            WireValue::Negative(i64::MIN),
            WireValue::Float(2.0),
            WireValue::Float(0.1),
            WireValue::Bytes(vec![0, 255, 16]),
            WireValue::List(vec![WireValue::Bool(true), WireValue::Bytes(vec![])]),
            single("$hex"),
            single("$$"),
            single("name"),
        ];
        for value in values {
            let text = to_json(&value).to_string();
            let json = serde_json::from_str(&text).unwrap();
            assert_eq!(of_json(json).unwrap(), value, "{text}");
        }
        for text in [
            r#"{"$hex":"0"}"#,
            r#"{"$hex":"0g"}"#,
            r#"{"$hex":1}"#,
            r#"{"$x":1}"#,
        ] {
            assert!(
                of_json(serde_json::from_str(text).unwrap()).is_err(),
                "{text}"
            );
        }
    }
}
