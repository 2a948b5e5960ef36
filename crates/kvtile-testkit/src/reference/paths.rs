//! The axes on each plane's path through a word, and the rules for them.

use kvtile_layout::{Axis, AxisItem, Plane, Shape, Word, WordItem};

use super::axes;
use crate::error::TestkitError;

/// For each plane of the shape, the axes on its path, slowest first.
pub(super) fn paths(word: &Word, shape: &Shape) -> Result<Vec<Vec<AxisItem>>, TestkitError> {
    let all: Vec<usize> = (0..shape.planes().len()).collect();
    let items: Vec<&WordItem> = word.items().iter().collect();
    let mut found = vec![None; all.len()];
    follow(word, shape, &items, &all, &[], &mut found)?;
    let mut paths = Vec::new();
    for (plane, path) in shape.planes().iter().zip(found) {
        let path = path.ok_or_else(|| TestkitError::PlaneMissing {
            word: word.to_string(),
            plane: plane.name().to_string(),
        })?;
        check(shape, plane, &path)?;
        paths.push(path);
    }
    Ok(paths)
}

fn follow(
    word: &Word,
    shape: &Shape,
    items: &[&WordItem],
    set: &[usize],
    so_far: &[AxisItem],
    found: &mut [Option<Vec<AxisItem>>],
) -> Result<(), TestkitError> {
    let Some((first, rest)) = items.split_first() else {
        let [plane] = set else {
            return Err(TestkitError::PlanesNotSeparated {
                word: word.to_string(),
            });
        };
        if let Some(slot) = found.get_mut(*plane) {
            *slot = Some(so_far.to_vec());
        }
        return Ok(());
    };
    match first {
        WordItem::Bar => follow(word, shape, rest, set, so_far, found),
        WordItem::Plane(name) => {
            let plane = only(shape, set, name.as_str())?;
            follow(word, shape, rest, &[plane], so_far, found)
        }
        WordItem::Axis(axis) => {
            let so_far: Vec<AxisItem> = so_far.iter().copied().chain([*axis]).collect();
            if axis.axis != Axis::K {
                return follow(word, shape, rest, set, &so_far, found);
            }
            for &plane in set {
                follow(word, shape, rest, &[plane], &so_far, found)?;
            }
            Ok(())
        }
        WordItem::Sum(parts) => {
            for (part, planes) in parts.iter().zip(share(shape, set, parts)?) {
                let items: Vec<&WordItem> =
                    part.items().iter().chain(rest.iter().copied()).collect();
                follow(word, shape, &items, &planes, so_far, found)?;
            }
            Ok(())
        }
    }
}

/// The plane called `name`, which must be in `set`.
pub(super) fn only(shape: &Shape, set: &[usize], name: &str) -> Result<usize, TestkitError> {
    set.iter()
        .copied()
        .find(|&i| name_of(shape, i) == Some(name))
        .ok_or_else(|| TestkitError::UnknownPlane {
            plane: name.to_owned(),
        })
}

/// The planes of `set` that each part is for: those it names or, if it names none, those that no
/// part names.
pub(super) fn share(
    shape: &Shape,
    set: &[usize],
    parts: &[Word],
) -> Result<Vec<Vec<usize>>, TestkitError> {
    let mentioned: Vec<Vec<String>> = parts.iter().map(mentions).collect();
    let anywhere = |i: usize| {
        mentioned
            .iter()
            .flatten()
            .any(|n| name_of(shape, i) == Some(n))
    };
    let mut left: Vec<usize> = set.to_vec();
    let mut shares = Vec::new();
    for (part, names) in parts.iter().zip(&mentioned) {
        let mine: Vec<usize> = set
            .iter()
            .copied()
            .filter(|&i| match names.as_slice() {
                [] => !anywhere(i),
                names => names.iter().any(|n| name_of(shape, i) == Some(n)),
            })
            .collect();
        if mine.is_empty() || !mine.iter().all(|i| left.contains(i)) {
            return Err(TestkitError::PartPlanes {
                part: part.to_string(),
            });
        }
        left.retain(|i| !mine.contains(i));
        shares.push(mine);
    }
    match left.first() {
        None => Ok(shares),
        Some(&plane) => Err(TestkitError::PlaneMissing {
            word: parts
                .iter()
                .map(Word::to_string)
                .collect::<Vec<_>>()
                .join(","),
            plane: name_of(shape, plane).unwrap_or_default().to_owned(),
        }),
    }
}

fn mentions(part: &Word) -> Vec<String> {
    let mut names = Vec::new();
    for item in part.items() {
        match item {
            WordItem::Plane(name) => names.push(name.to_string()),
            WordItem::Sum(parts) => names.extend(parts.iter().flat_map(mentions)),
            WordItem::Axis(_) | WordItem::Bar => {}
        }
    }
    names
}

fn name_of(shape: &Shape, plane: usize) -> Option<&str> {
    shape.planes().get(plane).map(|p| p.name().as_str())
}

/// Checks that no axis is unknown, no digit occurs twice, and moduli divide each other and the
/// extent. The walk checks that the digits determine every index.
fn check(shape: &Shape, plane: &Plane, path: &[AxisItem]) -> Result<(), TestkitError> {
    for (i, item) in path.iter().enumerate() {
        let (axis, modulus) = (item.axis, item.modulus);
        if !shape.knows(axis) {
            return Err(TestkitError::UnknownAxis { axis });
        }
        let mut before = path.iter().take(i);
        if before.any(|b| b.axis == axis && b.modulus == modulus) {
            return Err(TestkitError::RepeatedDigit { axis, modulus });
        }
    }
    for axis in axes(plane) {
        let extent = shape.extent(plane, axis);
        let mut chain: Vec<u64> = path
            .iter()
            .filter(|item| item.axis == axis && extent > 1)
            .filter_map(|item| item.modulus)
            .collect();
        chain.push(extent);
        let (_, moduli) = chain.split_last().unwrap_or((&extent, &[]));
        let mut moduli = moduli.to_vec();
        moduli.sort_unstable();
        moduli.push(extent);
        for pair in moduli.windows(2) {
            if let &[modulus, of] = pair
                && of % modulus != 0
            {
                return Err(TestkitError::ModulusDoesNotDivide { axis, modulus, of });
            }
        }
    }
    Ok(())
}
