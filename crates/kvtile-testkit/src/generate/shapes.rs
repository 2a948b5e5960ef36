//! Random shapes, and pairs of shapes that can be copied between.

use kvtile_layout::{Axis, LayoutError, Plane, PlanePer, Shape, Unit};

use super::choices::Choices;

const NAMES: [&str; 10] = ["k", "v", "ks", "vs", "c", "r", "s", "i", "conv", "ssm"];

/// A shape of at most `bytes_max` bytes with one to four planes. Their units have 1, 2, 3, 4, 7, 8
/// or 34 bytes; they have heads, content and declared axes or not; some have one entry per page, or for several tokens.
/// One shape in three also has an odd plane, and some have only that: see [`odd_plane`].
pub(super) fn shape(choices: &mut Choices, bytes_max: u64) -> Result<Shape, LayoutError> {
    let num_blocks = 1 + choices.below(5);
    let num_layers = 1 + choices.below(4);
    let page_size: u64 = choices.pick(&[4, 1, 2, 3, 6, 8, 12, 16]);
    let num_heads = choices.pick(&[2, 1, 3, 4, 6]);
    let heads = !choices.once_in(5);
    let names = choices.shuffled(NAMES.to_vec());
    let count = 1 + choices.index(4);
    let mut planes = Vec::new();
    for name in names.into_iter().take(count) {
        let mut plane = Plane::new(name, unit(choices)?)?;
        if heads && !choices.once_in(6) {
            plane = plane.extent(Axis::H, num_heads);
        }
        if !choices.once_in(8) {
            plane = plane.extent(Axis::C, choices.pick(&[4, 8, 2, 3, 6, 12, 16, 1]));
        }
        for letter in ['W', 'D'] {
            if let (true, Some(axis)) = (choices.once_in(6), Axis::new(letter)) {
                plane = plane.extent(axis, choices.pick(&[2, 3, 4, 1]));
            }
        }
        let every: Vec<u64> = (2..=4)
            .filter(|every| page_size.is_multiple_of(*every))
            .collect();
        planes.push(match choices.below(7) {
            0 => plane.per_page(),
            1 if !every.is_empty() => plane.every(choices.pick(&every)),
            _ => plane,
        });
    }
    if choices.once_in(3) {
        if choices.once_in(2) {
            planes.clear();
        }
        planes.push(odd_plane(choices)?);
    }
    let mut capped = Shape::new(num_blocks, num_layers, page_size, planes.clone());
    for cap in [12, 8, 6, 4, 3, 2, 1] {
        match capped.as_ref().map(Shape::total_bytes) {
            Ok(Ok(bytes)) if bytes <= bytes_max => break,
            _ => {}
        }
        let planes: Vec<Plane> = planes.iter().map(|plane| cap_plane(plane, cap)).collect();
        capped = Shape::new(
            num_blocks.min(cap),
            num_layers.min(cap),
            page_of(&planes, page_size.min(cap)),
            planes,
        );
    }
    capped
}

/// A plane other than keys and values, with a size that the tokens of a page seldom divide: a
/// recurrent state, scales per page, or records of 34 bytes for 32 values.
fn odd_plane(choices: &mut Choices) -> Result<Plane, LayoutError> {
    let odd = choices.pick(&[1, 3, 5]);
    Ok(match choices.below(5) {
        0 => {
            let bytes = choices.pick(&[41, 1025, 410]);
            Plane::new("state", Unit::opaque("state", bytes)?)?.per_page()
        }
        1 => Plane::new("scale", Unit::raw(4)?)?
            .extent(Axis::C, odd)
            .per_page(),
        2 => Plane::new("scale", Unit::raw(1)?)?.per_page(),
        3 => Plane::new("record", Unit::new("q8_0", 34, 32)?)?
            .extent(Axis::C, odd)
            .per_page(),
        _ => Plane::new("record", Unit::new("q8_0", 34, 32)?)?.extent(Axis::C, odd),
    })
}

fn unit(choices: &mut Choices) -> Result<Unit, LayoutError> {
    match choices.below(8) {
        0 | 1 => Unit::raw(2),
        2 => Unit::raw(1),
        3 => Unit::raw(4),
        4 => Unit::raw(8),
        5 => Unit::new("three", 3, 1),
        6 => Unit::new("q8_0", 34, 32),
        _ => Unit::opaque("unnamed", 7),
    }
}

fn cap_plane(plane: &Plane, cap: u64) -> Plane {
    with_extents(plane, |_, extent| extent.min(cap))
}

fn with_extents(plane: &Plane, extent: impl Fn(Axis, u64) -> u64) -> Plane {
    let mut result =
        Plane::new(plane.name().as_str(), plane.unit().clone()).unwrap_or_else(|_| plane.clone());
    for &(axis, old) in plane.extents() {
        result = result.extent(axis, extent(axis, old));
    }
    match plane.per() {
        PlanePer::Token => result,
        PlanePer::Every(tokens) => result.every(tokens),
        PlanePer::Page => result.per_page(),
    }
}

/// The least number of tokens that is a multiple of the tokens of each plane's entries.
pub(super) fn token_unit(planes: &[Plane]) -> u64 {
    let every = planes.iter().filter_map(|plane| plane.per().tokens());
    every.fold(1, |unit, every| {
        let multiples = (1..=every).map(|times| unit * times);
        multiples
            .into_iter()
            .find(|multiple| multiple % every == 0)
            .unwrap_or(unit)
    })
}

/// The page size of whole entries that is next to `page_size`, and at least one entry of each plane.
fn page_of(planes: &[Plane], page_size: u64) -> u64 {
    let unit = token_unit(planes);
    (page_size / unit).max(1) * unit
}

/// A shape with the same planes in another order, and with other numbers of blocks, layers, tokens
/// and heads as far as the planes allow a copy between the two shapes.
pub(super) fn relative(choices: &mut Choices, shape: &Shape) -> Result<Shape, LayoutError> {
    let per_page = shape
        .planes()
        .iter()
        .any(|plane| plane.per() == PlanePer::Page);
    let headless = shape.planes().iter().any(|plane| !plane.has(Axis::H));
    let num_blocks = choices.pick(&[shape.num_blocks(), 1, 2, 3, 5, 7]);
    let num_layers = choices.pick(&[shape.num_layers(), shape.num_layers(), 1, 2, 3]);
    let page_size = match per_page {
        true => shape.page_size(),
        false => {
            let size = choices.pick(&[shape.page_size(), shape.page_size(), 1, 2, 4, 6, 8]);
            page_of(shape.planes(), size)
        }
    };
    let num_heads = match headless {
        true => shape.num_heads(),
        false => choices.pick(&[shape.num_heads(), shape.num_heads(), 1, 2, 4]),
    };
    let planes = shape.planes().iter().map(|plane| {
        with_extents(plane, |axis, extent| match axis {
            Axis::H => num_heads,
            _ => extent,
        })
    });
    let planes = choices.shuffled(planes.collect());
    Shape::new(num_blocks, num_layers, page_size, planes)
}
