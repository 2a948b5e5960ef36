//! Converts one tensor and its roles to the digits of its planes.

use super::{DimRole, TensorError, TensorView, strides::with_strides, view::joined};
use crate::{
    axis::Axis,
    broken::broken,
    error::LayoutError,
    shape::{BYTES_MAX, Plane, PlaneName, Shape},
    strided::{AddressStep, Digit, PlaneDigits, names},
};

/// One tensor during placement.
pub(super) struct TensorPlacement<'a> {
    pub(super) tensor: usize,
    pub(super) view: &'a TensorView,
    pub(super) roles: &'a [DimRole],
    pub(super) shape: &'a Shape,
}

impl<'a> TensorPlacement<'a> {
    /// Whether a dimension enumerates layers.
    pub(super) fn has_layers(&self) -> bool {
        self.roles.iter().any(|role| role.mentions(Axis::L))
    }

    /// The planes of the tensor, in the order of its roles.
    pub(super) fn planes(&self) -> Result<Vec<&'a Plane>, LayoutError> {
        let mut said = self.roles.iter().filter_map(DimRole::named_planes);
        let which = || TensorError::WhichPlane {
            tensor: self.tensor,
            known: names(self.shape.planes()),
        };
        let named: Vec<&PlaneName> = match (said.next(), said.next(), &self.view.plane) {
            (Some(planes), None, None) => planes.iter().collect(),
            (None, None, Some(plane)) => vec![plane],
            (None, None, None) if self.shape.planes().len() == 1 => {
                return Ok(self.shape.planes().iter().collect());
            }
            _ => return Err(which().into()),
        };
        let mut planes: Vec<&Plane> = Vec::new();
        for name in named {
            let found = self.shape.planes().iter().find(|p| p.name() == name);
            match found {
                Some(plane) if !planes.contains(&plane) => planes.push(plane),
                _ => return Err(which().into()),
            }
        }
        Ok(planes)
    }

    /// The digits of each plane. Digits of L occur only where a dimension has them.
    pub(super) fn digits(&self) -> Result<Vec<PlaneDigits>, LayoutError> {
        let planes = self.planes()?;
        let digits = planes
            .iter()
            .map(|plane| self.plane_digits(plane))
            .collect::<Result<Vec<_>, _>>()?;
        self.check_bytes(&planes)?;
        Ok(digits)
    }

    /// Checks that the elements of the tensor are exactly the units of its planes.
    fn check_bytes(&self, planes: &[&Plane]) -> Result<(), LayoutError> {
        let held = planes.iter().map(|&plane| plane.clone()).collect();
        let layers = if self.has_layers() {
            self.shape.num_layers()
        } else {
            1
        };
        let shape = Shape::new(
            self.shape.num_blocks(),
            layers,
            self.shape.page_size(),
            held,
        )?;
        let expected = shape.total_bytes()?;
        let bytes = self
            .view
            .shape
            .iter()
            .try_fold(self.view.element_bytes as u64, |bytes, &size| {
                bytes.checked_mul(size as u64)
            });
        if bytes != Some(expected) {
            let names: Vec<PlaneName> = planes.iter().map(|p| p.name().clone()).collect();
            return Err(TensorError::TensorBytes {
                tensor: self.tensor,
                bytes: bytes.unwrap_or(u64::MAX),
                planes: joined(&names),
                expected,
            }
            .into());
        }
        Ok(())
    }

    fn plane_digits(&self, plane: &Plane) -> Result<PlaneDigits, LayoutError> {
        let mut placed = PlaneDigits {
            plane: plane.name().to_string(),
            region: self.view.region,
            offset: self.view.byte_offset,
            digits: Vec::new(),
        };
        for dim in 0..self.roles.len() {
            self.place_dimension(dim, plane, &mut placed)?;
        }
        placed.digits.retain(|digit| digit.extent != 1);
        Ok(placed)
    }

    fn place_dimension(
        &self,
        dim: usize,
        plane: &Plane,
        placed: &mut PlaneDigits,
    ) -> Result<(), LayoutError> {
        let (Some(role), Some(&size), Some(&stride)) = (
            self.roles.get(dim),
            self.view.shape.get(dim),
            self.view.strides.get(dim),
        ) else {
            broken(format_args!(
                "dimension {dim} of tensor {} with {} roles",
                self.tensor,
                self.roles.len()
            ))
        };
        let stride = if size == 1 { 0 } else { stride.unsigned_abs() };
        let stride = self.bytes(Axis::K, stride as u64, self.view.element_bytes as u64)?;
        let wrong = |expected| {
            let role = role.to_string();
            TensorError::DimensionSize {
                tensor: self.tensor,
                dim,
                role,
                size,
                expected,
            }
        };
        match role {
            DimRole::Single if size == 1 => {}
            DimRole::Single => return Err(wrong(1).into()),
            DimRole::Planes(planes) => {
                if size != planes.len() {
                    return Err(wrong(planes.len() as u64).into());
                }
                let before = planes.iter().take_while(|p| *p != plane.name()).count();
                placed.offset = self.after(placed.offset, Axis::K, before as u64, stride)?;
            }
            DimRole::Digits(digits) => {
                let whole = digits
                    .iter()
                    .try_fold(1u64, |product, d| product.checked_mul(d.extent));
                if whole != Some(size as u64) {
                    return Err(wrong(whole.unwrap_or(u64::MAX)).into());
                }
                for (digit, stride) in with_strides(digits, stride) {
                    self.push(placed, digit.axis, (digit.low, digit.extent), stride)?;
                }
            }
            DimRole::Axis(axis) => {
                let parts = [plane];
                let step = self.step(dim, *axis, &parts, stride);
                let step = step.map_err(wrong)?;
                let extent = self.shape.extent(plane, *axis);
                self.push(placed, *axis, (1, extent), step.of(plane))?;
            }
            DimRole::Packed { axis, .. } => {
                let held = self.planes()?;
                let step = self.step(dim, *axis, &held, stride).map_err(wrong)?;
                for part in held.iter().take_while(|p| p.name() != plane.name()) {
                    let extent = self.shape.extent(part, *axis);
                    placed.offset = self.after(placed.offset, *axis, extent, step.of(part))?;
                }
                let extent = self.shape.extent(plane, *axis);
                self.push(placed, *axis, (1, extent), step.of(plane))?;
            }
        }
        Ok(())
    }

    /// The distance between entries of `axis` in a dimension that holds the axis for `parts`: the
    /// stride where the size counts entries, the unit where it counts the bytes of a dense row. The
    /// error is the expected size.
    fn step(
        &self,
        dim: usize,
        axis: Axis,
        parts: &[&Plane],
        stride: u64,
    ) -> Result<EntryDistance, u64> {
        let Some(&size) = self.view.shape.get(dim) else {
            broken(format_args!("dimension {dim} of {:?}", self.view.shape))
        };
        let size = size as u64;
        let element = self.view.element_bytes as u64;
        let extent = |plane: &Plane| self.shape.extent(plane, axis);
        let entries: u64 = parts.iter().map(|plane| extent(plane)).sum();
        if size == entries && (entries == 1 || parts.iter().all(|p| stride >= p.unit().bytes())) {
            return Ok(EntryDistance::Stride(stride));
        }
        let bytes = parts.iter().try_fold(0u64, |sum, p| {
            sum.checked_add(extent(p).checked_mul(p.unit().bytes())?)
        });
        let dense = stride == element || size == 1;
        if dense && bytes.is_some() && size.checked_mul(element) == bytes {
            return Ok(EntryDistance::Units);
        }
        if size == entries {
            return Err(bytes.unwrap_or(u64::MAX).div_ceil(element));
        }
        Err(entries)
    }

    fn push(
        &self,
        placed: &mut PlaneDigits,
        axis: Axis,
        (low, extent): (u64, u64),
        bytes: u64,
    ) -> Result<(), LayoutError> {
        let span = bytes.checked_mul(extent).filter(|&b| b <= BYTES_MAX);
        if span.is_none() {
            return Err(self.too_far(axis).into());
        }
        placed.digits.push(Digit {
            axis,
            low,
            extent,
            step: AddressStep::bytes(bytes),
        });
        Ok(())
    }

    fn after(&self, offset: u64, axis: Axis, count: u64, each: u64) -> Result<u64, LayoutError> {
        let end = offset.checked_add(self.bytes(axis, count, each)?);
        end.filter(|&end| end <= BYTES_MAX)
            .ok_or_else(|| self.too_far(axis).into())
    }

    fn bytes(&self, axis: Axis, count: u64, each: u64) -> Result<u64, LayoutError> {
        let bytes = count.checked_mul(each).filter(|&b| b <= BYTES_MAX);
        bytes.ok_or_else(|| self.too_far(axis).into())
    }

    fn too_far(&self, axis: Axis) -> TensorError {
        TensorError::TooFar {
            tensor: self.tensor,
            axis,
        }
    }
}

/// The distance between entries of one dimension.
#[derive(Clone, Copy)]
enum EntryDistance {
    /// This many bytes.
    Stride(u64),
    /// The bytes of a unit of the plane.
    Units,
}

impl EntryDistance {
    fn of(self, plane: &Plane) -> u64 {
        match self {
            EntryDistance::Stride(bytes) => bytes,
            EntryDistance::Units => plane.unit().bytes(),
        }
    }
}
