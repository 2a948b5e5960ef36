//! Suggests corrections of a word that does not fit its shape.
//!
//! Suggestions never become a layout by themselves. Each resolves against the shape and appears in
//! an error message.

use crate::{
    axis::Axis,
    error::{LayoutError, ResolveError},
    shape::Shape,
    strided::StridedLayout,
    word::{Word, WordItem},
};

/// Most words in an error.
const WORDS_MAX: usize = 3;

/// The usual order of the axes, slowest first.
const USUAL: [Axis; 6] = [Axis::B, Axis::L, Axis::K, Axis::N, Axis::H, Axis::C];

/// Longest word to correct, in characters: the search tries each position.
const CHARACTERS_MAX: usize = 64;

/// Adds suggestions to `error`, where `word` fails on `shape` by a common slip.
pub(super) fn explained(error: LayoutError, word: &Word, shape: &Shape) -> LayoutError {
    let text = word.to_string();
    if text.len() > CHARACTERS_MAX {
        return error;
    }
    match error {
        LayoutError::Resolve(ResolveError::UnknownPlane { plane, known }) => {
            match in_capitals(word, shape) {
                Some(meant) => LayoutError::Resolve(ResolveError::SmallAxes { word: text, meant }),
                None => LayoutError::Resolve(ResolveError::UnknownPlane { plane, known }),
            }
        }
        LayoutError::Resolve(ResolveError::AxisMissing {
            axis,
            plane,
            extent,
            word,
            ..
        }) => LayoutError::Resolve(ResolveError::AxisMissing {
            axis,
            extent,
            plane,
            meant: with_axes(&text, &missing(&text, shape), shape),
            word,
        }),
        LayoutError::Resolve(ResolveError::PlanesNotSeparated { word, planes, .. }) => {
            LayoutError::Resolve(ResolveError::PlanesNotSeparated {
                word,
                planes,
                meant: with_axes(&text, &missing(&text, shape), shape),
            })
        }
        other => other,
    }
}

fn fits(text: &str, shape: &Shape) -> Option<String> {
    let word = Word::parse(text).ok()?;
    StridedLayout::resolve_word(&word, shape, 1).ok()?;
    Some(text.to_owned())
}

/// The word with its axes as capital letters: `blknhc`, `l|bh(kcn,vnc)`.
fn in_capitals(word: &Word, shape: &Shape) -> Option<String> {
    let all = capitals(word.items(), &|_| "");
    let planes: Vec<&str> = shape.planes().iter().map(|p| p.name().as_str()).collect();
    let kept = |name: &str| {
        let begins = planes.iter().filter(|plane| name.starts_with(**plane));
        begins
            .copied()
            .max_by_key(|plane| plane.len())
            .unwrap_or("")
    };
    fits(&all, shape).or_else(|| fits(&capitals(word.items(), &kept), shape))
}

/// The items with every name in capitals after the part that `kept` returns.
fn capitals<'a>(items: &[WordItem], kept: &impl Fn(&str) -> &'a str) -> String {
    let mut text = String::new();
    for item in items {
        match item {
            WordItem::Axis(axis) => text.push_str(&axis.to_string()),
            WordItem::Bar => text.push('|'),
            WordItem::Plane(name) => {
                let name = name.as_str();
                let kept = kept(name);
                text.push_str(kept);
                let rest = name.strip_prefix(kept).unwrap_or(name);
                text.push_str(&rest.to_ascii_uppercase());
            }
            WordItem::Sum(parts) => {
                let parts = parts.iter().map(|part| capitals(part.items(), kept));
                text.push_str(&format!("({})", parts.collect::<Vec<_>>().join(",")));
            }
        }
    }
    text
}

/// The axes of the shape that do not occur in the text.
fn missing(text: &str, shape: &Shape) -> Vec<Axis> {
    let declared = shape.planes().iter().flat_map(|plane| plane.extents());
    let mut axes = USUAL.to_vec();
    axes.extend(declared.map(|(axis, _)| *axis));
    axes.retain(|axis| !text.contains(axis.letter()) && needed(*axis, shape));
    axes.dedup();
    axes
}

fn needed(axis: Axis, shape: &Shape) -> bool {
    let planes = shape.planes();
    match axis {
        Axis::K => planes.len() > 1,
        axis => planes.iter().any(|plane| shape.extent(plane, axis) > 1),
    }
}

/// `text` with `axes` inserted where the shape allows them; the usual order comes first.
fn with_axes(text: &str, axes: &[Axis], shape: &Shape) -> Vec<String> {
    let Some((last, others)) = axes.split_last() else {
        return Vec::new();
    };
    let mut text = text.to_owned();
    for axis in others {
        let places = (0..=text.len()).filter_map(|at| put(&text, *axis, at));
        match places.min_by_key(|word| disorder(word)) {
            Some(word) => text = word,
            None => return Vec::new(),
        }
    }
    let places = (0..=text.len()).filter_map(|at| put(&text, *last, at));
    let mut words: Vec<String> = places.filter_map(|word| fits(&word, shape)).collect();
    words.sort_by_key(|word| disorder(word));
    words.dedup();
    words.truncate(WORDS_MAX);
    words
}

fn put(text: &str, axis: Axis, at: usize) -> Option<String> {
    let (before, after) = text.split_at_checked(at)?;
    let number = after.starts_with(|c: char| c.is_ascii_digit() || c == '@' || c == '=');
    (!number).then(|| format!("{before}{axis}{after}"))
}

/// Number of axis pairs in the reverse of the usual order.
fn disorder(word: &str) -> usize {
    let place = |letter: char| USUAL.iter().position(|axis| axis.letter() == letter);
    let places: Vec<usize> = word.chars().filter_map(place).collect();
    let pairs = places.iter().enumerate().map(|(index, place)| {
        let later = places.iter().skip(index + 1);
        later.filter(|other| *other < place).count()
    });
    pairs.sum()
}
