//! GGUF files, versions 2 and 3, little-endian: metadata and tensors.
//!
//! ```text
//! | "GGUF" | version u32 | tensors u64 | pairs u64 |
//! | pairs: key, type u32, value | tensors: name, extents, type u32, offset u64 |
//! | padding to general.alignment (32) | data |
//! ```
//!
//! A file is untrusted input. All parsed data borrows from its bytes, the remaining bytes bound
//! every count, and a tensor outside the data, misaligned or overlapping another is refused. This
//! module does not know models.

mod dequantise;
mod metadata;
mod reader;
mod tensor;

use std::collections::BTreeMap;

pub use metadata::{GgufArray, GgufValue};
pub use tensor::{GgufTensor, TensorKind};

use crate::DemoError;
use reader::GgufReader;

/// The fewest bytes of a key-value pair: an empty key, a type, a one-byte value.
const PAIR_BYTES_MIN: u64 = 8 + 4 + 1;
/// The fewest bytes of a tensor entry: an empty name, one extent, type, offset.
const TENSOR_BYTES_MIN: u64 = 8 + 4 + 8 + 4 + 8;
/// Most extents of a tensor.
const EXTENTS_MAX: u64 = 4;
/// The default alignment of tensor data.
const ALIGNMENT_DEFAULT: u64 = 32;
/// The largest accepted alignment.
const ALIGNMENT_MAX: u64 = 1 << 20;

/// A parsed file, borrowing from its bytes.
#[derive(Clone, Debug)]
pub struct Gguf<'a> {
    metadata: BTreeMap<&'a str, GgufValue<'a>>,
    tensors: BTreeMap<&'a str, GgufTensor<'a>>,
}

impl<'a> Gguf<'a> {
    /// Parses a whole file.
    ///
    /// # Errors
    /// A `Gguf…` variant of [`DemoError`] for any byte sequence that is not a
    /// well-formed file whose tensors lie inside it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DemoError> {
        let mut reader = GgufReader::new(bytes);
        let magic = reader.magic()?;
        if &magic != b"GGUF" {
            return Err(DemoError::GgufMagic { found: magic });
        }
        let version = reader.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(DemoError::GgufVersion { version });
        }
        let (tensors, pairs) = (reader.u64()?, reader.u64()?);
        let pairs = reader.count("metadata pairs", pairs, PAIR_BYTES_MIN)?;
        let metadata = read_metadata(&mut reader, pairs)?;
        let tensors = reader.count("tensors", tensors, TENSOR_BYTES_MIN)?;
        let entries = (0..tensors)
            .map(|_| TensorEntry::read(&mut reader))
            .collect::<Result<Vec<_>, _>>()?;
        let alignment = alignment(&metadata)?;
        let padding = (reader.offset() as u64).next_multiple_of(alignment) - reader.offset() as u64;
        if !entries.is_empty() {
            reader.take(padding)?;
        }
        let data = reader.take(reader.available() as u64)?;
        let tensors = place(entries, data, alignment)?;
        Ok(Self { metadata, tensors })
    }

    /// A metadata value.
    ///
    /// # Errors
    /// [`DemoError::KeyMissing`].
    pub fn value(&self, key: &str) -> Result<&GgufValue<'a>, DemoError> {
        self.metadata.get(key).ok_or_else(|| DemoError::KeyMissing {
            key: key.to_owned(),
        })
    }

    /// A metadata value that may be absent.
    pub fn find(&self, key: &str) -> Option<&GgufValue<'a>> {
        self.metadata.get(key)
    }

    /// A string of the metadata.
    ///
    /// # Errors
    /// [`DemoError::KeyMissing`] or [`DemoError::KeyType`].
    pub fn text(&self, key: &str) -> Result<&'a str, DemoError> {
        self.value(key)?
            .as_text()
            .ok_or_else(|| key_type(key, "string"))
    }

    /// A non-negative integer of the metadata.
    ///
    /// # Errors
    /// [`DemoError::KeyMissing`] or [`DemoError::KeyType`].
    pub fn unsigned(&self, key: &str) -> Result<u64, DemoError> {
        self.value(key)?
            .as_u64()
            .ok_or_else(|| key_type(key, "non-negative integer"))
    }

    /// A 32-bit float of the metadata.
    ///
    /// # Errors
    /// [`DemoError::KeyMissing`] or [`DemoError::KeyType`].
    pub fn float(&self, key: &str) -> Result<f32, DemoError> {
        self.value(key)?
            .as_f32()
            .ok_or_else(|| key_type(key, "32-bit float"))
    }

    /// An array of the metadata.
    ///
    /// # Errors
    /// [`DemoError::KeyMissing`] or [`DemoError::KeyType`].
    pub fn array(&self, key: &str) -> Result<&GgufArray<'a>, DemoError> {
        self.value(key)?
            .as_array()
            .ok_or_else(|| key_type(key, "array"))
    }

    /// A tensor.
    ///
    /// # Errors
    /// [`DemoError::TensorMissing`].
    pub fn tensor(&self, name: &str) -> Result<&GgufTensor<'a>, DemoError> {
        self.tensors
            .get(name)
            .ok_or_else(|| DemoError::TensorMissing {
                name: name.to_owned(),
            })
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = &GgufTensor<'a>> {
        self.tensors.values()
    }
}

fn key_type(key: &str, expected: &'static str) -> DemoError {
    DemoError::KeyType {
        key: key.to_owned(),
        expected,
    }
}

fn read_metadata<'a>(
    reader: &mut GgufReader<'a>,
    pairs: usize,
) -> Result<BTreeMap<&'a str, GgufValue<'a>>, DemoError> {
    let mut metadata = BTreeMap::new();
    for _ in 0..pairs {
        let key = reader.text()?;
        let value = metadata::value(reader)?;
        if metadata.insert(key, value).is_some() {
            return Err(DemoError::GgufDuplicate {
                name: key.to_owned(),
            });
        }
    }
    Ok(metadata)
}

fn alignment(metadata: &BTreeMap<&str, GgufValue<'_>>) -> Result<u64, DemoError> {
    let Some(value) = metadata.get("general.alignment") else {
        return Ok(ALIGNMENT_DEFAULT);
    };
    value
        .as_u64()
        .filter(|alignment| alignment.is_power_of_two() && *alignment <= ALIGNMENT_MAX)
        .ok_or_else(|| key_type("general.alignment", "power of two up to 1 MiB"))
}

/// A tensor entry of the header, before the check of its place.
struct TensorEntry<'a> {
    name: &'a str,
    kind: TensorKind,
    extents: Vec<u64>,
    offset: u64,
}

impl<'a> TensorEntry<'a> {
    fn read(reader: &mut GgufReader<'a>) -> Result<Self, DemoError> {
        let name = reader.text()?;
        let count = u64::from(reader.u32()?);
        if !(1..=EXTENTS_MAX).contains(&count) {
            return Err(DemoError::GgufCount {
                what: "extents of one tensor",
                count,
                limit: EXTENTS_MAX,
            });
        }
        let extents = (0..count)
            .map(|_| reader.u64())
            .collect::<Result<Vec<_>, _>>()?;
        let type_id = reader.u32()?;
        let kind = TensorKind::from_id(type_id).ok_or_else(|| DemoError::GgufTensorType {
            tensor: name.to_owned(),
            type_id,
        })?;
        let offset = reader.u64()?;
        Ok(Self {
            name,
            kind,
            extents,
            offset,
        })
    }

    /// Bytes of the tensor; every row fills whole units.
    fn size_bytes(&self) -> Option<u64> {
        let (row, others) = self.extents.split_first()?;
        let rows = others
            .iter()
            .try_fold(1u64, |product, extent| product.checked_mul(*extent))?;
        (*row > 0 && rows > 0).then_some(())?;
        self.kind.bytes_of(*row)?.checked_mul(rows)
    }

    fn place(
        self,
        data: &'a [u8],
        alignment: u64,
    ) -> Result<(u64, u64, GgufTensor<'a>), DemoError> {
        let size = self.size_bytes();
        let extents = self
            .extents
            .iter()
            .map(|extent| usize::try_from(*extent).ok());
        let (Some(bytes), Some(extents)) = (size, extents.collect::<Option<Vec<_>>>()) else {
            return Err(DemoError::GgufTensorExtents {
                tensor: self.name.to_owned(),
                extents: self.extents,
            });
        };
        let wrong = |reason| DemoError::GgufTensorPlace {
            tensor: self.name.to_owned(),
            offset: self.offset,
            bytes,
            reason,
        };
        if !self.offset.is_multiple_of(alignment) {
            return Err(wrong("is not aligned as the file demands"));
        }
        let range = usize::try_from(self.offset)
            .ok()
            .zip(usize::try_from(bytes).ok());
        let stored = range
            .and_then(|(offset, bytes)| data.get(offset..offset.checked_add(bytes)?))
            .ok_or_else(|| wrong("is outside the file's data"))?;
        let tensor = GgufTensor {
            name: self.name,
            kind: self.kind,
            extents,
            bytes: stored,
        };
        Ok((self.offset, bytes, tensor))
    }
}

fn place<'a>(
    entries: Vec<TensorEntry<'a>>,
    data: &'a [u8],
    alignment: u64,
) -> Result<BTreeMap<&'a str, GgufTensor<'a>>, DemoError> {
    let mut placed = entries
        .into_iter()
        .map(|entry| entry.place(data, alignment))
        .collect::<Result<Vec<_>, _>>()?;
    placed.sort_by_key(|(offset, ..)| *offset);
    let mut tensors = BTreeMap::new();
    let mut end = 0;
    for (offset, bytes, tensor) in placed {
        let name = tensor.name;
        if offset < end {
            let reason = "overlaps the tensor before it";
            return Err(DemoError::GgufTensorPlace {
                tensor: name.to_owned(),
                offset,
                bytes,
                reason,
            });
        }
        end = offset.saturating_add(bytes);
        if tensors.insert(name, tensor).is_some() {
            return Err(DemoError::GgufDuplicate {
                name: name.to_owned(),
            });
        }
    }
    Ok(tensors)
}
