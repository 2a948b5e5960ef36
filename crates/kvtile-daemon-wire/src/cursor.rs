//! Reading and writing fields.

use crate::{FrameError, KeyBytes, TEXT_BYTES_MAX};

/// Reads the fields of a payload in order.
pub(crate) struct FieldReader<'a> {
    rest: &'a [u8],
    total: usize,
}

impl<'a> FieldReader<'a> {
    pub(crate) fn new(payload: &'a [u8]) -> FieldReader<'a> {
        FieldReader {
            rest: payload,
            total: payload.len(),
        }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], FrameError> {
        match self.rest.split_at_checked(bytes) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(FrameError::Short {
                have: self.total,
                need: (self.total - self.rest.len()).saturating_add(bytes),
            }),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FrameError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn i8(&mut self) -> Result<i8, FrameError> {
        Ok(i8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FrameError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A finite number that is not below 0.
    pub(crate) fn rate(&mut self, what: &'static str) -> Result<f64, FrameError> {
        let bits = self.u64()?;
        let rate = f64::from_bits(bits);
        match rate.is_finite() && rate.is_sign_positive() {
            true => Ok(rate),
            false => Err(FrameError::UnknownValue { what, value: bits }),
        }
    }

    pub(crate) fn key(&mut self) -> Result<KeyBytes, FrameError> {
        self.array()
    }

    /// A byte that is 0 or 1.
    pub(crate) fn flag(&mut self, what: &'static str) -> Result<bool, FrameError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(FrameError::UnknownValue {
                what,
                value: value.into(),
            }),
        }
    }

    /// The length of a list of items of `item_bytes` each. It is at most `most`, and the payload has
    /// the bytes of all items, so memory for it is bounded by what the peer really sent.
    pub(crate) fn count(
        &mut self,
        what: &'static str,
        most: usize,
        item_bytes: usize,
    ) -> Result<usize, FrameError> {
        let value = self.u32()?;
        let count = usize::try_from(value).unwrap_or(usize::MAX);
        if count > most {
            return Err(FrameError::TooMany {
                what,
                value: value.into(),
                most: most as u64,
            });
        }
        let bytes = count.saturating_mul(item_bytes);
        if bytes > self.rest.len() {
            return Err(FrameError::Short {
                have: self.total,
                need: (self.total - self.rest.len()).saturating_add(bytes),
            });
        }
        Ok(count)
    }

    pub(crate) fn keys(&mut self) -> Result<Vec<KeyBytes>, FrameError> {
        let count = self.count("keys of a frame", crate::KEYS_MAX, 16)?;
        (0..count).map(|_| self.array()).collect()
    }

    pub(crate) fn numbers(&mut self) -> Result<Vec<u32>, FrameError> {
        let count = self.count("block numbers of a frame", crate::BLOCKS_MAX, 4)?;
        (0..count).map(|_| self.u32()).collect()
    }

    pub(crate) fn stops(&mut self) -> Result<Vec<u64>, FrameError> {
        let count = self.count("stops of a frame", crate::STOPS_MAX, 8)?;
        (0..count).map(|_| self.u64()).collect()
    }

    pub(crate) fn text(&mut self) -> Result<String, FrameError> {
        let count = self.count("bytes of a text", TEXT_BYTES_MAX, 1)?;
        let text = std::str::from_utf8(self.take(count)?).map_err(|_| FrameError::NotText)?;
        Ok(text.to_owned())
    }

    /// Refuses bytes after the last field.
    pub(crate) fn end(self) -> Result<(), FrameError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(FrameError::Extra { extra }),
        }
    }
}

/// Appends the length of a list. Lists that are longer than their limit are the caller's bug, and
/// the peer refuses them.
pub(crate) fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    out.extend_from_slice(&count.to_le_bytes());
}

pub(crate) fn put_keys(out: &mut Vec<u8>, keys: &[KeyBytes]) {
    put_count(out, keys.len());
    out.extend_from_slice(keys.as_flattened());
}

pub(crate) fn put_numbers(out: &mut Vec<u8>, numbers: &[u32]) {
    put_count(out, numbers.len());
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

pub(crate) fn put_stops(out: &mut Vec<u8>, stops: &[u64]) {
    put_count(out, stops.len());
    for stop in stops {
        out.extend_from_slice(&stop.to_le_bytes());
    }
}

/// Appends a text, cut to its limit at a character.
pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    let (text, _) = text.split_at(text.floor_char_boundary(TEXT_BYTES_MAX));
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}
