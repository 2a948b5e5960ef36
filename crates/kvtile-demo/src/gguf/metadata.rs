//! Metadata values. Arrays stay as bytes of the file and are decoded on access, so that a small
//! file cannot become a large structure.

use super::reader::GgufReader;
use crate::DemoError;

/// A metadata value, borrowed from the file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum GgufValue<'a> {
    /// Any unsigned integer of the format.
    Unsigned(u64),
    /// Any signed integer of the format.
    Signed(i64),
    /// A 32-bit float.
    F32(f32),
    /// A 64-bit float.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// A string.
    Text(&'a str),
    /// An array of one scalar type.
    Array(GgufArray<'a>),
}

impl<'a> GgufValue<'a> {
    /// The value as an unsigned integer, if it is a non-negative integer.
    pub fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(value) => Some(*value),
            Self::Signed(value) => u64::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The value as a signed integer, if it is an integer that fits.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Unsigned(value) => i64::try_from(*value).ok(),
            Self::Signed(value) => Some(*value),
            _ => None,
        }
    }

    /// The value as a 32-bit float, if it is stored as one.
    pub fn as_f32(&self) -> Option<f32> {
        match self {
            Self::F32(value) => Some(*value),
            _ => None,
        }
    }

    /// The value as a string.
    pub fn as_text(&self) -> Option<&'a str> {
        match self {
            Self::Text(value) => Some(value),
            _ => None,
        }
    }

    /// The value as an array.
    pub fn as_array(&self) -> Option<&GgufArray<'a>> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }
}

/// The scalar types of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GgufScalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    U64,
    I64,
    F64,
}

/// The meaning of a stored type number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ValueKind {
    Scalar(GgufScalar),
    Array,
}

impl ValueKind {
    fn from_id(type_id: u32) -> Option<Self> {
        Some(Self::Scalar(match type_id {
            0 => GgufScalar::U8,
            1 => GgufScalar::I8,
            2 => GgufScalar::U16,
            3 => GgufScalar::I16,
            4 => GgufScalar::U32,
            5 => GgufScalar::I32,
            6 => GgufScalar::F32,
            7 => GgufScalar::Bool,
            8 => GgufScalar::Text,
            9 => return Some(Self::Array),
            10 => GgufScalar::U64,
            11 => GgufScalar::I64,
            12 => GgufScalar::F64,
            _ => return None,
        }))
    }
}

impl GgufScalar {
    /// The fewest bytes of one value in a file.
    fn bytes_min(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::Text | Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    fn read<'a>(self, reader: &mut GgufReader<'a>) -> Result<GgufValue<'a>, DemoError> {
        Ok(match self {
            Self::U8 => GgufValue::Unsigned(reader.byte()?.into()),
            Self::I8 => GgufValue::Signed(reader.byte()?.cast_signed().into()),
            Self::U16 => GgufValue::Unsigned(reader.u16()?.into()),
            Self::I16 => GgufValue::Signed(reader.u16()?.cast_signed().into()),
            Self::U32 => GgufValue::Unsigned(reader.u32()?.into()),
            Self::I32 => GgufValue::Signed(reader.u32()?.cast_signed().into()),
            Self::F32 => GgufValue::F32(f32::from_bits(reader.u32()?)),
            Self::Bool => GgufValue::Bool(reader.byte()? != 0),
            Self::Text => GgufValue::Text(reader.text()?),
            Self::U64 => GgufValue::Unsigned(reader.u64()?),
            Self::I64 => GgufValue::Signed(reader.u64()?.cast_signed()),
            Self::F64 => GgufValue::F64(f64::from_bits(reader.u64()?)),
        })
    }
}

/// An array of scalars inside the file.
#[derive(Clone, Debug)]
pub struct GgufArray<'a> {
    scalar: GgufScalar,
    len: usize,
    reader: GgufReader<'a>,
}

impl<'a> GgufArray<'a> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The values in order. Parsing has validated each of them.
    pub fn iter(&self) -> impl Iterator<Item = GgufValue<'a>> + use<'a> {
        let (scalar, mut reader) = (self.scalar, self.reader.clone());
        (0..self.len).map_while(move |_| scalar.read(&mut reader).ok())
    }

    fn parse(reader: &mut GgufReader<'a>) -> Result<Self, DemoError> {
        let offset = reader.offset();
        let type_id = reader.u32()?;
        let Some(ValueKind::Scalar(scalar)) = ValueKind::from_id(type_id) else {
            return Err(DemoError::GgufValueType { type_id, offset });
        };
        let claimed = reader.u64()?;
        let len = reader.count("array values", claimed, scalar.bytes_min())?;
        let start = reader.clone();
        if scalar == GgufScalar::Text {
            for _ in 0..len {
                reader.text()?;
            }
        } else {
            reader.take(claimed.saturating_mul(scalar.bytes_min()))?;
        }
        Ok(Self {
            scalar,
            len,
            reader: start,
        })
    }
}

/// Reads a type number and the value that follows it.
pub(super) fn value<'a>(reader: &mut GgufReader<'a>) -> Result<GgufValue<'a>, DemoError> {
    let offset = reader.offset();
    let type_id = reader.u32()?;
    match ValueKind::from_id(type_id) {
        Some(ValueKind::Scalar(scalar)) => scalar.read(reader),
        Some(ValueKind::Array) => GgufArray::parse(reader).map(GgufValue::Array),
        None => Err(DemoError::GgufValueType { type_id, offset }),
    }
}
