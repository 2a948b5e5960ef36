//! Sizes of imported tensors: do they fit a shape, and in how many ways.

use super::{
    DimRole, TensorError, TensorView,
    place::Placement,
    strides::check_tensor,
    view::{joined, reading},
};
use crate::{
    axis::Axis,
    error::LayoutError,
    shape::{BYTES_MAX, Plane, PlaneName, Shape},
    strided::{PlaneDigits, StridedLayout},
};

/// Most dimensions of a tensor whose roles are found from its sizes.
const SEARCH_DIMENSIONS_MAX: usize = 8;

/// What a set of tensors has in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorShape {
    /// Entries of each dimension.
    pub sizes: Vec<usize>,
    /// What each dimension is.
    pub roles: Vec<DimRole>,
}

/// Checks that all tensors have one shape, with one reading of it that fits `shape`, and returns
/// both.
///
/// Roles that are given are checked; where none are, the sizes must fit `shape` in exactly one
/// way. That two readings of the same numbers fit is an error which names both, even if one of
/// them is the usual one.
///
/// # Errors
/// No tensors; tensors of different sizes, elements or roles; strides that are zero, negative or
/// overlapping; sizes that do not fit `shape`, or fit it in two ways.
pub fn validate_tensor_shapes(
    tensors: &[TensorView],
    shape: &Shape,
) -> Result<TensorShape, LayoutError> {
    let Some(first) = tensors.first() else {
        return Err(TensorError::NoTensors.into());
    };
    for (tensor, view) in tensors.iter().enumerate() {
        check_tensor(tensor, view)?;
        let same = view.shape == first.shape
            && view.element_bytes == first.element_bytes
            && view.roles == first.roles;
        if !same {
            return Err(TensorError::ShapesDiffer {
                tensor,
                found: describe(view),
                expected: describe(first),
            }
            .into());
        }
    }
    let mut common = None;
    for (tensor, view) in tensors.iter().enumerate() {
        let roles = roles_of(tensor, view, shape)?;
        let expected = common.get_or_insert_with(|| roles.clone());
        if *expected != roles {
            return Err(TensorError::ShapesDiffer {
                tensor,
                found: reading(&roles),
                expected: reading(expected),
            }
            .into());
        }
    }
    Ok(TensorShape {
        sizes: first.shape.clone(),
        roles: common.unwrap_or_default(),
    })
}

fn describe(view: &TensorView) -> String {
    let roles = view.roles.as_ref().map_or(String::new(), |r| reading(r));
    format!("{:?} x {} bytes {roles}", view.shape, view.element_bytes)
}

/// The roles of a tensor: those given, checked, or the only ones that fit.
pub(super) fn roles_of(
    tensor: usize,
    view: &TensorView,
    shape: &Shape,
) -> Result<Vec<DimRole>, LayoutError> {
    if let Some(roles) = &view.roles {
        fit(tensor, view, roles, shape)?;
        return Ok(roles.clone());
    }
    let mut search = Search {
        tensor,
        view,
        shape,
        found: Vec::new(),
    };
    for needs in search.needs() {
        search.extend(&mut Vec::new(), &needs);
    }
    let mut found = search.found.into_iter();
    match (found.next(), found.next()) {
        (Some(roles), None) => Ok(roles),
        (Some(first), Some(second)) => Err(TensorError::TwoReadings {
            sizes: view.shape.clone(),
            first: reading(&first),
            second: reading(&second),
        }
        .into()),
        (None, _) => Err(TensorError::NoReading {
            sizes: view.shape.clone(),
            expected: extents(shape, view.layer.is_none()),
        }
        .into()),
    }
}

/// What the shape has, for errors: `B:100 N:16 k[H:8 C:128] v[H:8 C:128]`.
fn extents(shape: &Shape, with_layers: bool) -> String {
    let mut text = format!("B:{} ", shape.num_blocks());
    if with_layers {
        text.push_str(&format!("L:{} ", shape.num_layers()));
    }
    text.push_str(&format!("N:{}", shape.page_size()));
    for plane in shape.planes() {
        let own: Vec<String> = plane
            .extents()
            .iter()
            .map(|(axis, extent)| format!("{axis}:{extent}"))
            .collect();
        text.push_str(&format!(" {}[{}]", plane.name(), own.join(" ")));
    }
    text
}

/// Checks that the tensor with these roles holds its planes, each axis once, without overlap.
fn fit(
    tensor: usize,
    view: &TensorView,
    roles: &[DimRole],
    shape: &Shape,
) -> Result<(), LayoutError> {
    let placement = Placement {
        tensor,
        view,
        roles,
        shape,
    };
    let layers = match (placement.has_layers(), view.layer) {
        (true, None) => shape.num_layers(),
        (false, Some(layer)) if layer < shape.num_layers() => 1,
        (false, None) if shape.num_layers() == 1 => 1,
        _ => {
            return Err(TensorError::WhichLayer {
                tensor,
                num_layers: shape.num_layers(),
            }
            .into());
        }
    };
    let held: Vec<Plane> = placement.planes()?.into_iter().cloned().collect();
    let held = Shape::new(shape.num_blocks(), layers, shape.page_size(), held)?;
    let digits: Vec<PlaneDigits> = placement
        .digits()?
        .into_iter()
        .map(|digits| PlaneDigits {
            region: 0,
            ..digits
        })
        .collect();
    StridedLayout::from_digits(&held, &digits, &[BYTES_MAX], 1)?;
    Ok(())
}

/// Something that a dimension has to be.
#[derive(Clone)]
enum Need {
    /// An axis of this extent.
    Axis(Axis, u64),
    /// An axis whose size is checked by placing it: content, which may count bytes.
    Content(DimRole),
    /// One entry a plane.
    Planes(Vec<PlaneName>),
}

/// The search for all ways in which the dimensions of a tensor can be the axes of a shape.
struct Search<'a> {
    tensor: usize,
    view: &'a TensorView,
    shape: &'a Shape,
    found: Vec<Vec<DimRole>>,
}

impl Search<'_> {
    /// The sets of needs that the tensor may meet: one, or two where several planes may lie in a
    /// dimension of their own or side by side in the content.
    fn needs(&self) -> Vec<Vec<Need>> {
        let names: Vec<PlaneName> = self
            .shape
            .planes()
            .iter()
            .map(|p| p.name().clone())
            .collect();
        let own = match (&self.view.plane, self.shape.planes()) {
            (Some(name), planes) => planes.iter().find(|p| p.name() == name),
            (None, [plane]) => Some(plane),
            (None, _) => None,
        };
        let Some(plane) = own.or(self.shape.planes().first()) else {
            return Vec::new();
        };
        let declared = plane.extents().iter().map(|(axis, _)| *axis);
        let axes: Vec<Need> = [Axis::B, Axis::L, Axis::N]
            .into_iter()
            .chain(declared.filter(|&axis| axis != Axis::C))
            .filter(|&axis| axis != Axis::L || self.view.layer.is_none())
            .map(|axis| Need::Axis(axis, self.shape.extent(plane, axis)))
            .filter(|need| !matches!(need, Need::Axis(_, 1)))
            .collect();
        let with = |needs: &[Need]| axes.iter().chain(needs).cloned().collect::<Vec<Need>>();
        let content = Need::Content(DimRole::Axis(Axis::C));
        // Content of one element needs no dimension.
        let small =
            plane.extent_of(Axis::C) == 1 && plane.unit().bytes() == self.view.element_bytes as u64;
        let content = if small { vec![] } else { vec![content] };
        if own.is_some() {
            return vec![with(&content)];
        }
        let packed = Need::Content(DimRole::Packed {
            axis: Axis::C,
            planes: names.clone(),
        });
        let apart: Vec<Need> = content.into_iter().chain([Need::Planes(names)]).collect();
        vec![with(&apart), with(&[packed])]
    }

    /// Extends a partial reading by one dimension; keeps the first two whole ones that fit.
    fn extend(&mut self, roles: &mut Vec<DimRole>, needs: &[Need]) {
        let dims = self.view.shape.len();
        let left = self.view.shape.iter().skip(roles.len());
        let large = left.filter(|&&size| size != 1).count();
        if self.found.len() == 2 || dims > SEARCH_DIMENSIONS_MAX || large != needs.len() {
            return;
        }
        let Some(&size) = self.view.shape.get(roles.len()) else {
            if fit(self.tensor, self.view, roles, self.shape).is_ok() {
                self.found.push(roles.clone());
            }
            return;
        };
        if size == 1 {
            roles.push(DimRole::Single);
            self.extend(roles, needs);
            roles.pop();
            return;
        }
        for (i, need) in needs.iter().enumerate() {
            let role = match need {
                Need::Axis(axis, extent) if *extent == size as u64 => DimRole::Axis(*axis),
                Need::Content(role) if self.may_be_content(role, size) => role.clone(),
                Need::Planes(planes) if planes.len() == size => DimRole::Planes(planes.clone()),
                Need::Axis(..) | Need::Planes(_) | Need::Content(_) => continue,
            };
            let mut rest = needs.to_vec();
            rest.remove(i);
            roles.push(role);
            self.extend(roles, &rest);
            roles.pop();
        }
    }
}

impl Search<'_> {
    /// Whether `size` counts the units or the bytes of some content: a bound that spares the
    /// search most dead ends.
    fn may_be_content(&self, role: &DimRole, size: usize) -> bool {
        let planes = self.shape.planes().iter();
        let held: Vec<&Plane> = match (role, &self.view.plane) {
            (DimRole::Packed { .. }, _) | (_, None) => planes.collect(),
            (_, Some(name)) => planes.filter(|p| p.name() == name).collect(),
        };
        let size = size as u64;
        let bytes = size.saturating_mul(self.view.element_bytes as u64);
        let content = |plane: &Plane| plane.extent_of(Axis::C);
        let content_bytes = |plane: &Plane| content(plane).saturating_mul(plane.unit().bytes());
        match role {
            DimRole::Packed { .. } => {
                let sum = |of: &dyn Fn(&Plane) -> u64| {
                    held.iter().fold(0u64, |sum, p| sum.saturating_add(of(p)))
                };
                size == sum(&content) || bytes == sum(&content_bytes)
            }
            _ => held
                .iter()
                .any(|p| size == content(p) || bytes == content_bytes(p)),
        }
    }
}

impl TensorShape {
    /// The reading as a person reads it: `[B, (k,v), N, H, C]`.
    #[must_use]
    pub fn describe(&self) -> String {
        let planes = self.roles.iter().filter_map(DimRole::named_planes).next();
        let planes = planes.map_or(String::new(), |planes| {
            format!(", planes {}", joined(planes))
        });
        format!("{} of sizes {:?}{planes}", reading(&self.roles), self.sizes)
    }
}
