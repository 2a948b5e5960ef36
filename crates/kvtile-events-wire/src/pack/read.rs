//! Reads values, with bounds on their depth and number.

use super::WireValue;
use crate::error::WireError;

/// Deepest nesting of lists and maps.
const DEPTH_MAX: usize = 16;

/// Most values of one batch.
const VALUES_MAX: usize = 4 << 20;

/// Reads one value, which must be all of `bytes`.
///
/// # Errors
/// [`WireError::Batch`] with the place.
pub(crate) fn read(bytes: &[u8]) -> Result<WireValue, WireError> {
    let mut reader = PackReader {
        bytes,
        at: 0,
        values: 0,
    };
    let value = reader.value(0)?;
    match reader.at == bytes.len() {
        true => Ok(value),
        false => Err(reader.wrong("there are bytes behind the batch")),
    }
}

struct PackReader<'a> {
    bytes: &'a [u8],
    at: usize,
    values: usize,
}

impl PackReader<'_> {
    fn wrong(&self, problem: &'static str) -> WireError {
        WireError::Batch {
            at: self.at,
            problem,
        }
    }

    fn take(&mut self, count: usize) -> Result<&[u8], WireError> {
        let end = self.at.checked_add(count);
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(bytes) => {
                self.at += count;
                Ok(bytes)
            }
            None => Err(self.wrong("it ends within a value")),
        }
    }

    /// A big-endian number of so many bytes.
    fn number(&mut self, bytes: usize) -> Result<u64, WireError> {
        let bytes = self.take(bytes)?.iter();
        Ok(bytes.fold(0, |number, &byte| (number << 8) | u64::from(byte)))
    }

    fn length(&mut self, bytes: usize) -> Result<usize, WireError> {
        let length = self.number(bytes)?;
        usize::try_from(length).map_err(|_| self.wrong("it is too long"))
    }

    fn signed(&mut self, bytes: usize) -> Result<WireValue, WireError> {
        let shift = 64 - 8 * u32::try_from(bytes).unwrap_or(8);
        let number = self.number(bytes)?.cast_signed();
        Ok(of_signed((number << shift) >> shift))
    }

    fn value(&mut self, depth: usize) -> Result<WireValue, WireError> {
        self.values += 1;
        if depth > DEPTH_MAX {
            return Err(self.wrong("values are nested too deeply"));
        }
        if self.values > VALUES_MAX {
            return Err(self.wrong("there are too many values"));
        }
        let kind = match self.take(1)? {
            [kind] => *kind,
            _ => return Err(self.wrong("it ends within a value")),
        };
        let low = |mask: u8| usize::from(kind & mask);
        match kind {
            0x00..=0x7f => Ok(WireValue::Number(u64::from(kind))),
            0x80..=0x8f => self.map(low(0x0f), depth),
            0x90..=0x9f => self.list(low(0x0f), depth),
            0xa0..=0xbf => self.text(low(0x1f)),
            0xc0 => Ok(WireValue::Nil),
            0xc2 | 0xc3 => Ok(WireValue::Bool(kind == 0xc3)),
            0xc4..=0xc6 => {
                let length = self.length(1 << (kind - 0xc4))?;
                Ok(WireValue::Bytes(self.take(length)?.to_vec()))
            }
            0xca => {
                let bits = u32::try_from(self.number(4)?).unwrap_or_default();
                self.float(f64::from(f32::from_bits(bits)))
            }
            0xcb => {
                let bits = self.number(8)?;
                self.float(f64::from_bits(bits))
            }
            0xcc..=0xcf => Ok(WireValue::Number(self.number(1 << (kind - 0xcc))?)),
            0xd0..=0xd3 => self.signed(1 << (kind - 0xd0)),
            0xd9..=0xdb => {
                let length = self.length(1 << (kind - 0xd9))?;
                self.text(length)
            }
            0xdc | 0xdd => {
                let length = self.length(if kind == 0xdc { 2 } else { 4 })?;
                self.list(length, depth)
            }
            0xde | 0xdf => {
                let length = self.length(if kind == 0xde { 2 } else { 4 })?;
                self.map(length, depth)
            }
            0xe0..=0xff => Ok(of_signed(i64::from(kind.cast_signed()))),
            _ => Err(self.wrong("a value of a type that events do not have")),
        }
    }

    /// JSON has no infinities, and no event needs one.
    fn float(&self, number: f64) -> Result<WireValue, WireError> {
        match number.is_finite() {
            true => Ok(WireValue::Float(number)),
            false => Err(self.wrong("a number that is not finite")),
        }
    }

    fn text(&mut self, length: usize) -> Result<WireValue, WireError> {
        let text = str::from_utf8(self.take(length)?).map(str::to_owned);
        let text = text.map_err(|_| self.wrong("text that is no UTF-8"));
        text.map(WireValue::Text)
    }

    // Lists and maps grow with the values that are there: their lengths may be lies.
    fn list(&mut self, length: usize, depth: usize) -> Result<WireValue, WireError> {
        let mut values = Vec::new();
        for _ in 0..length {
            values.push(self.value(depth + 1)?);
        }
        Ok(WireValue::List(values))
    }

    fn map(&mut self, length: usize, depth: usize) -> Result<WireValue, WireError> {
        let mut entries = Vec::new();
        for _ in 0..length {
            let WireValue::Text(name) = self.value(depth + 1)? else {
                return Err(self.wrong("a name that is no text"));
            };
            entries.push((name, self.value(depth + 1)?));
        }
        Ok(WireValue::Map(entries))
    }
}

/// The one form of a whole number.
fn of_signed(number: i64) -> WireValue {
    match u64::try_from(number) {
        Ok(number) => WireValue::Number(number),
        Err(_) => WireValue::Negative(number),
    }
}
