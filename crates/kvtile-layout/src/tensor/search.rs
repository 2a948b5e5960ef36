//! Searches for all assignments of the dimensions of a tensor to the axes of a shape.

use super::{DimRole, TensorView, shapes::fit};
use crate::{
    axis::Axis,
    shape::{Plane, PlaneName, Shape},
};

/// Most dimensions of a tensor for a search of roles by size.
const SEARCH_DIMENSIONS_MAX: usize = 8;

/// The first two readings of the tensor that fit, so that the caller can detect ambiguity.
pub(super) fn readings(tensor: usize, view: &TensorView, shape: &Shape) -> Vec<Vec<DimRole>> {
    let mut search = RoleSearch {
        tensor,
        view,
        shape,
        found: Vec::new(),
    };
    for needs in search.needs() {
        search.extend(&mut Vec::new(), &needs);
    }
    search.found
}

/// A requirement that a dimension can meet.
#[derive(Clone)]
enum DimNeed {
    /// An axis of this extent.
    Axis(Axis, u64),
    /// An axis whose size placement checks: content, which may count bytes.
    Content(DimRole),
    /// One entry per plane.
    Planes(Vec<PlaneName>),
}

/// The state of a search.
struct RoleSearch<'a> {
    tensor: usize,
    view: &'a TensorView,
    shape: &'a Shape,
    found: Vec<Vec<DimRole>>,
}

impl RoleSearch<'_> {
    /// The sets of requirements of the tensor: one, or two where several planes may lie in a
    /// dimension of their own or side by side in the content.
    fn needs(&self) -> Vec<Vec<DimNeed>> {
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
        let axes: Vec<DimNeed> = [Axis::B, Axis::L, Axis::N]
            .into_iter()
            .chain(declared.filter(|&axis| axis != Axis::C))
            .filter(|&axis| axis != Axis::L || self.view.layer.is_none())
            .map(|axis| DimNeed::Axis(axis, self.shape.extent(plane, axis)))
            .filter(|need| !matches!(need, DimNeed::Axis(_, 1)))
            .collect();
        let with = |needs: &[DimNeed]| axes.iter().chain(needs).cloned().collect::<Vec<DimNeed>>();
        let content = DimNeed::Content(DimRole::Axis(Axis::C));
        // Content of one element needs no dimension.
        let small =
            plane.extent_of(Axis::C) == 1 && plane.unit().bytes() == self.view.element_bytes as u64;
        let content = if small { vec![] } else { vec![content] };
        if own.is_some() {
            return vec![with(&content)];
        }
        let packed = DimNeed::Content(DimRole::Packed {
            axis: Axis::C,
            planes: names.clone(),
        });
        let apart: Vec<DimNeed> = content
            .into_iter()
            .chain([DimNeed::Planes(names)])
            .collect();
        vec![with(&apart), with(&[packed])]
    }

    /// Extends a partial reading by one dimension; keeps the first two complete ones that fit.
    fn extend(&mut self, roles: &mut Vec<DimRole>, needs: &[DimNeed]) {
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
                DimNeed::Axis(axis, extent) if *extent == size as u64 => DimRole::Axis(*axis),
                DimNeed::Content(role) if self.may_be_content(role, size) => role.clone(),
                DimNeed::Planes(planes) if planes.len() == size => DimRole::Planes(planes.clone()),
                DimNeed::Axis(..) | DimNeed::Planes(_) | DimNeed::Content(_) => continue,
            };
            let mut rest = needs.to_vec();
            rest.remove(i);
            roles.push(role);
            self.extend(roles, &rest);
            roles.pop();
        }
    }

    /// Whether `size` can be the number of units or bytes of some content. The bound prunes most
    /// dead ends of the search.
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
