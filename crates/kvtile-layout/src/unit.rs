//! Units: the atoms of a plane, which no transfer cuts.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    dtype,
    error::{LayoutError, ShapeError},
};

/// Longest codec or plane name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Largest unit, in bytes (1 GiB): an opaque unit is a whole page of one plane at most.
pub const UNIT_BYTES_MAX: u64 = 1 << 30;

/// The atom of a plane: a codec name, its size in bytes and how many values it holds.
///
/// | what | codec | bytes | values |
/// | --- | --- | --- | --- |
/// | bfloat16 | `bf16` | 2 | 1 |
/// | packed 4-bit | `int4` | 1 | 2 |
/// | llama.cpp's Q8_0 record | `q8_0` | 34 | 32 |
/// | an unknown interior | any, chosen by its writer | all of it | 0 |
///
/// Two units are equal when all three are equal. A change of codec is a conversion, which a copy
/// never does.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "UncheckedUnit")]
pub struct Unit {
    codec: String,
    bytes: u64,
    values: u64,
    opaque: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedUnit {
    codec: String,
    bytes: u64,
    values: u64,
    #[serde(default)]
    opaque: bool,
}

impl TryFrom<UncheckedUnit> for Unit {
    type Error = LayoutError;

    fn try_from(unit: UncheckedUnit) -> Result<Self, LayoutError> {
        if unit.opaque {
            if unit.values != 0 {
                return Err(LayoutError::Shape(ShapeError::UnitValues {
                    codec: unit.codec,
                    values: unit.values,
                }));
            }
            Unit::opaque(&unit.codec, unit.bytes)
        } else {
            Unit::new(&unit.codec, unit.bytes, unit.values)
        }
    }
}

impl Unit {
    /// A unit of `bytes` bytes that holds `values` values in the encoding named `codec`.
    ///
    /// # Errors
    /// A codec name that is empty, longer than 64 bytes or not made of `a-z A-Z 0-9 _ . : + / -`;
    /// a size of zero or above [`UNIT_BYTES_MAX`]; no values.
    pub fn new(codec: &str, bytes: u64, values: u64) -> Result<Unit, LayoutError> {
        if values == 0 {
            return Err(LayoutError::Shape(ShapeError::UnitValues {
                codec: codec.to_owned(),
                values,
            }));
        }
        Unit::checked(codec, bytes, values, false)
    }

    /// A unit of unknown interior. It can only be copied whole into a unit of the same codec name
    /// and size. The name should identify the interior, for instance `vllm-cpu-neon-bf16`.
    ///
    /// # Errors
    /// As for [`Unit::new`].
    pub fn opaque(codec: &str, bytes: u64) -> Result<Unit, LayoutError> {
        Unit::checked(codec, bytes, 0, true)
    }

    /// One element of `bytes` bytes of unknown type; its codec is `raw8`,
    /// `raw16`, `raw32` or `raw64`.
    ///
    /// # Errors
    /// A width other than 1, 2, 4 or 8 bytes.
    pub fn raw(bytes: u64) -> Result<Unit, LayoutError> {
        match bytes {
            1 | 2 | 4 | 8 => Unit::checked(&format!("raw{}", bytes * 8), bytes, 1, false),
            _ => Err(LayoutError::Shape(ShapeError::DtypeWidth { bytes })),
        }
    }

    /// The unit of a well-known data type, under any name of torch, numpy, Hugging Face configs,
    /// safetensors or vLLM: `bfloat16`, `torch.bfloat16`, `bf16` and `BF16` are one.
    ///
    /// ```
    /// use kvtile_layout::Unit;
    ///
    /// assert_eq!(Unit::named("torch.float8_e4m3fn"), Unit::named("fp8_e4m3"));
    /// assert_eq!(Unit::named("float33"), None);
    /// ```
    #[must_use]
    pub fn named(name: &str) -> Option<Unit> {
        let (codec, bytes, values) = dtype::known(name)?;
        Unit::checked(codec, bytes, values, false).ok()
    }

    /// As [`Unit::named`]; the error suggests a replacement.
    ///
    /// # Errors
    /// [`ShapeError::UnknownDtype`].
    pub fn of_dtype(name: &str) -> Result<Unit, LayoutError> {
        Unit::named(name).ok_or_else(|| {
            LayoutError::Shape(ShapeError::UnknownDtype {
                name: name.chars().take(NAME_BYTES_MAX).collect(),
                advice: dtype::advice(name),
            })
        })
    }

    fn checked(codec: &str, bytes: u64, values: u64, opaque: bool) -> Result<Unit, LayoutError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.:+/-".contains(c);
        if codec.is_empty() || codec.len() > NAME_BYTES_MAX || !codec.chars().all(allowed) {
            return Err(LayoutError::Shape(ShapeError::CodecName {
                codec: codec.chars().take(NAME_BYTES_MAX).collect(),
            }));
        }
        if bytes == 0 || bytes > UNIT_BYTES_MAX {
            return Err(LayoutError::Shape(ShapeError::UnitBytes {
                codec: codec.to_owned(),
                bytes,
            }));
        }
        Ok(Unit {
            codec: codec.to_owned(),
            bytes,
            values,
            opaque,
        })
    }

    /// The name of the encoding.
    #[must_use]
    pub fn codec(&self) -> &str {
        &self.codec
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many values it holds; 0 for an opaque unit.
    #[must_use]
    pub fn values(&self) -> u64 {
        self.values
    }

    /// Whether its interior is unknown.
    #[must_use]
    pub fn is_opaque(&self) -> bool {
        self.opaque
    }
}

impl From<&Unit> for Unit {
    fn from(unit: &Unit) -> Unit {
        unit.clone()
    }
}

/// As [`Unit::of_dtype`].
impl TryFrom<&str> for Unit {
    type Error = LayoutError;

    fn try_from(name: &str) -> Result<Unit, LayoutError> {
        Unit::of_dtype(name)
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.bytes == 1 { "" } else { "s" };
        write!(f, "{} ({} byte{plural}", self.codec, self.bytes)?;
        match self.values {
            _ if self.opaque => write!(f, ", opaque)"),
            1 => write!(f, ")"),
            values => write!(f, ", {values} values)"),
        }
    }
}
