//! Tensors: types, extents, place in the file, and their values as f32.

use super::dequantise;
use crate::DemoError;

/// The element types that can be dequantised to f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorKind {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    BF16,
    /// 32 values of 4 bits with one scale.
    Q4_0,
    /// 32 values of 4 bits with a scale and a minimum.
    Q4_1,
    /// 32 values of 8 bits with one scale.
    Q8_0,
}

impl TensorKind {
    /// The kind of a stored type number.
    pub(super) fn from_id(type_id: u32) -> Option<Self> {
        match type_id {
            0 => Some(Self::F32),
            1 => Some(Self::F16),
            2 => Some(Self::Q4_0),
            3 => Some(Self::Q4_1),
            8 => Some(Self::Q8_0),
            30 => Some(Self::BF16),
            _ => None,
        }
    }

    /// Values and bytes of the smallest indivisible unit.
    pub fn unit(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q8_0 => (32, 34),
        }
    }

    /// Bytes of `values` values, if they fill whole units and do not overflow.
    pub fn bytes_of(self, values: u64) -> Option<u64> {
        let (unit_values, unit_bytes) = self.unit();
        let (unit_values, unit_bytes) = (unit_values as u64, unit_bytes as u64);
        values.is_multiple_of(unit_values).then_some(())?;
        (values / unit_values).checked_mul(unit_bytes)
    }
}

/// A tensor of the file.
#[derive(Clone, Debug)]
pub struct GgufTensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub kind: TensorKind,
    /// Its extents, fastest first; one to four of them, none zero.
    pub extents: Vec<usize>,
    /// Its bytes.
    pub bytes: &'a [u8],
}

impl<'a> GgufTensor<'a> {
    /// Values of one row: the fastest extent.
    pub fn row_values(&self) -> usize {
        self.extents.first().copied().unwrap_or(0)
    }

    /// Number of rows: the product of all other extents.
    pub fn rows(&self) -> usize {
        self.extents.iter().skip(1).product()
    }

    /// Writes row `row` as f32 into `out`.
    ///
    /// # Errors
    /// When there is no such row, or `out` does not hold exactly one row.
    pub fn read_row(&self, row: usize, out: &mut [f32]) -> Result<(), DemoError> {
        let width = self.row_values();
        let bytes = self
            .kind
            .bytes_of(width as u64)
            .and_then(|bytes| usize::try_from(bytes).ok())
            .filter(|bytes| *bytes > 0 && out.len() == width)
            .and_then(|bytes| self.bytes.chunks_exact(bytes).nth(row));
        let Some(bytes) = bytes else {
            return Err(DemoError::TensorExtents {
                name: self.name.to_owned(),
                expected: vec![out.len(), row.saturating_add(1)],
                found: self.extents.clone(),
            });
        };
        dequantise::dequantise(self.kind, bytes, out);
        Ok(())
    }
}
