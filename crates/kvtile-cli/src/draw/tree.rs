//! The nesting of a layout, from its digits: which digit's values lie inside which.
//!
//! ```text
//! L|BH(kCN,vNC)  →  layer × 32 ─ block × 128 ─ head × 8 ─┬ k ─ content × 128 ─ run of tokens
//!                                                        └ v ─ token × 16 ─ run of content
//! ```
//!
//! All values of a digit look alike inside, so the tree is small for layouts of every size. It is
//! made of digits, never of the word: two words for the same places give the same tree.

use kvtile::layout::{AddressStep, Axis, Digit, PlanePiece, StridedLayout};

/// What lies in one place of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NestingNode {
    /// The values of one digit, one after the other.
    Repeat {
        /// The digit.
        digit: DigitLabel,
        /// How many values it has.
        extent: u64,
        /// From one value to the next.
        step: AddressStep,
        /// What each of them holds.
        of: Box<NestingNode>,
    },
    /// Planes, or groups of planes, side by side.
    Parts(Vec<NestingPart>),
    /// Units of one plane in a row.
    Run {
        /// Index of the plane.
        plane: usize,
        /// The digit along which they lie; `None` for a single unit.
        digit: Option<DigitLabel>,
        /// How many units.
        units: u64,
        /// Bytes of all of them.
        bytes: u64,
    },
}

/// One of several parts side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NestingPart {
    /// Names of its planes.
    pub(crate) name: String,
    /// The planes.
    pub(crate) planes: Vec<usize>,
    /// Where it starts, relative to the first part.
    pub(crate) start: AddressStep,
    /// What it holds.
    pub(crate) node: NestingNode,
}

/// How the values of a digit are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DigitLabel {
    /// The axis.
    pub(crate) axis: Axis,
    /// Entries of the axis from one value of the digit to the next.
    pub(crate) low: u64,
    /// Entries of the axis from one neighbour to the next inside a value, where a slower part of
    /// the axis lies inside a faster one; else 0.
    pub(crate) skips: u64,
}

impl DigitLabel {
    /// `token`, or `token by 16` for a digit that counts sixteens.
    pub(crate) fn name(self) -> String {
        match self.low {
            1 => self.axis.long_name(),
            low => format!("{} by {low}", self.axis.long_name()),
        }
    }

    /// The entries of value `value`: `3`, `48–63` or `3,19…`.
    pub(crate) fn value(self, value: u64) -> String {
        let first = value.saturating_mul(self.low);
        match (self.skips, self.low) {
            (0, 1) => first.to_string(),
            (0, low) => format!("{first}–{}", first.saturating_add(low - 1)),
            (skips, _) => format!("{first},{}…", first.saturating_add(skips)),
        }
    }
}

impl NestingNode {
    /// The nesting of all of `layout`.
    pub(crate) fn of(layout: &StridedLayout) -> NestingNode {
        let paths = layout
            .planes()
            .enumerate()
            .map(|(plane, (about, piece))| PlanePath::new(plane, about.name().as_str(), piece))
            .zip(layout.planes())
            .map(|(path, (about, _))| PlanePath {
                unit_bytes: about.unit().bytes(),
                ..path
            })
            .collect();
        build(paths)
    }

    /// Bytes from the first byte of the node to its last.
    pub(crate) fn span(&self) -> u64 {
        match self {
            NestingNode::Repeat {
                extent, step, of, ..
            } => step
                .bytes
                .saturating_mul(extent.saturating_sub(1))
                .saturating_add(of.span()),
            NestingNode::Parts(parts) => {
                let end = |part: &NestingPart| part.start.bytes.saturating_add(part.node.span());
                parts.iter().map(end).max().unwrap_or(0)
            }
            NestingNode::Run { bytes, .. } => *bytes,
        }
    }

    /// Bytes of each value of a digit that nothing lies in: padding, or the room of other shards.
    pub(crate) fn unused(&self) -> u64 {
        match self {
            NestingNode::Repeat { step, of, .. } => step.bytes.saturating_sub(of.span()),
            NestingNode::Parts(_) | NestingNode::Run { .. } => 0,
        }
    }

    /// Planes that lie in this node.
    pub(crate) fn planes(&self) -> Vec<usize> {
        match self {
            NestingNode::Repeat { of, .. } => of.planes(),
            NestingNode::Parts(parts) => {
                parts.iter().flat_map(|part| part.planes.clone()).collect()
            }
            NestingNode::Run { plane, .. } => vec![*plane],
        }
    }
}

/// What is left of one plane's way to its units.
#[derive(Clone, Debug)]
struct PlanePath {
    plane: usize,
    name: String,
    start: AddressStep,
    unit_bytes: u64,
    /// Longest step first.
    digits: Vec<Digit>,
}

impl PlanePath {
    fn new(plane: usize, name: &str, piece: &PlanePiece) -> PlanePath {
        let mut digits = piece.digits().to_vec();
        digits.sort_by_key(|digit| std::cmp::Reverse(digit.step));
        PlanePath {
            plane,
            name: name.to_owned(),
            start: AddressStep {
                regions: piece.region(),
                bytes: piece.offset(),
            },
            unit_bytes: 1,
            digits,
        }
    }

    fn label(&self) -> Option<DigitLabel> {
        let (first, rest) = self.digits.split_first()?;
        let inner = rest.iter().filter(|d| d.axis == first.axis);
        let above = inner.map(|d| d.low).filter(|&low| low > first.low);
        Some(DigitLabel {
            axis: first.axis,
            low: first.low,
            skips: above.min().unwrap_or(0),
        })
    }
}

fn build(mut paths: Vec<PlanePath>) -> NestingNode {
    paths.sort_by_key(|path| path.start);
    let groups = groups(paths);
    let mut nodes = groups.into_iter().map(|group| {
        let names: Vec<&str> = group.iter().map(|path| path.name.as_str()).collect();
        let name = names.join(" ");
        let planes = group.iter().map(|path| path.plane).collect();
        let start = group.first().map(|path| path.start).unwrap_or_default();
        NestingPart {
            name,
            planes,
            start,
            node: level(group),
        }
    });
    match (nodes.next(), nodes.next()) {
        (Some(only), None) => only.node,
        (first, second) => {
            let mut parts: Vec<NestingPart> =
                first.into_iter().chain(second).chain(nodes).collect();
            let origin = parts.first().map(|part| part.start).unwrap_or_default();
            for part in &mut parts {
                part.start = AddressStep {
                    regions: part.start.regions.saturating_sub(origin.regions),
                    bytes: part.start.bytes.saturating_sub(origin.bytes),
                };
            }
            NestingNode::Parts(parts)
        }
    }
}

/// Neighbours that share their slowest digit and lie within one step of it.
fn groups(paths: Vec<PlanePath>) -> Vec<Vec<PlanePath>> {
    let mut groups: Vec<Vec<PlanePath>> = Vec::new();
    for path in paths {
        let belongs = groups.last().and_then(|group| {
            let first = group.first()?;
            let (digit, other) = (first.digits.first()?, path.digits.first()?);
            let near = first
                .start
                .plus(digit.step)
                .is_some_and(|end| path.start < end);
            Some(digit == other && near)
        });
        match groups.last_mut() {
            Some(group) if belongs == Some(true) => group.push(path),
            _ => groups.push(vec![path]),
        }
    }
    groups
}

/// Paths of one group: their common digit, then the rest.
fn level(mut group: Vec<PlanePath>) -> NestingNode {
    let (digit, label) = match group.first() {
        Some(first) => match (first.digits.first(), first.label()) {
            (Some(digit), Some(label)) => (*digit, label),
            _ => return run(first, 1, None),
        },
        None => return NestingNode::Parts(Vec::new()),
    };
    if let [only] = group.as_slice()
        && only.digits.len() == 1
        && digit.step == AddressStep::bytes(only.unit_bytes)
    {
        return run(only, digit.extent, Some(label));
    }
    for path in &mut group {
        path.digits.remove(0);
    }
    NestingNode::Repeat {
        digit: label,
        extent: digit.extent,
        step: digit.step,
        of: Box::new(build(group)),
    }
}

fn run(path: &PlanePath, units: u64, digit: Option<DigitLabel>) -> NestingNode {
    NestingNode::Run {
        plane: path.plane,
        digit,
        units,
        bytes: units.saturating_mul(path.unit_bytes),
    }
}

#[cfg(test)]
mod tests {
    use kvtile::layout::{Shape, Unit, Word};

    use super::*;

    fn names(word: &str) -> Vec<String> {
        let unit = Unit::named("bf16").unwrap();
        let shape = Shape::key_value(128, 32, 16, 8, 128, &unit).unwrap();
        let word: Word = word.parse().unwrap();
        let layout = StridedLayout::resolve(&word, &shape, 1).unwrap();
        let mut lines = Vec::new();
        walk(&NestingNode::of(&layout), "", &mut lines);
        lines
    }

    fn walk(node: &NestingNode, before: &str, lines: &mut Vec<String>) {
        match node {
            NestingNode::Repeat {
                digit, extent, of, ..
            } => walk(of, &format!("{before}{}:{extent} ", digit.name()), lines),
            NestingNode::Parts(parts) => {
                for part in parts {
                    walk(&part.node, &format!("{before}[{}] ", part.name), lines);
                }
            }
            NestingNode::Run { digit, units, .. } => {
                let name = digit.map(|d| d.name()).unwrap_or_default();
                lines.push(format!("{before}run {name}:{units}"));
            }
        }
    }

    #[test]
    fn sums_split_where_the_planes_differ() {
        assert_eq!(
            names("L|BH(kCN,vNC)"),
            [
                "layer:32 block:128 head:8 [k] content:128 run token:16",
                "layer:32 block:128 head:8 [v] token:16 run content:128",
            ]
        );
    }

    #[test]
    fn padding_is_what_a_step_is_longer_than_its_inside() {
        let unit = Unit::named("bf16").unwrap();
        let shape = Shape::key_value(4, 1, 3, 1, 5, &unit).unwrap();
        let layout = |word: &str| {
            let word: Word = word.parse().unwrap();
            StridedLayout::resolve(&word, &shape, 1).unwrap()
        };
        assert_eq!(NestingNode::of(&layout("BLKNHC")).unused(), 0);
        let padded = NestingNode::of(&layout("B@64LKNHC"));
        assert_eq!((padded.unused(), padded.span()), (4, 3 * 64 + 60));
    }

    #[test]
    fn an_outer_plane_axis_splits_first() {
        let lines = names("KLBNHC");
        assert_eq!(lines.len(), 2);
        assert_eq!(
            lines[0],
            "[k] layer:32 block:128 token:16 head:8 run content:128"
        );
    }

    #[test]
    fn tiles_name_the_entries_that_a_value_stands_for() {
        let lines = names("L|(kBHCNC8,vBHCN)");
        assert_eq!(
            lines[0],
            "layer:32 [k] block:128 head:8 content by 8:16 token:16 run content:8"
        );
        let tile = DigitLabel {
            axis: Axis::C,
            low: 8,
            skips: 0,
        };
        assert_eq!(tile.value(2), "16–23");
    }

    #[test]
    fn a_slower_digit_inside_a_faster_one_is_shown_as_skipping() {
        let unit = Unit::named("bf16").unwrap();
        let shape = Shape::key_value(1, 1, 64, 1, 4, &unit).unwrap();
        let word: Word = "BLHKN16NC".parse().unwrap();
        let layout = StridedLayout::resolve(&word, &shape, 1).unwrap();
        let mut lines = Vec::new();
        walk(&NestingNode::of(&layout), "", &mut lines);
        assert_eq!(lines[0], "[k] token:16 token by 16:4 run content:4");
        let NestingNode::Parts(parts) = NestingNode::of(&layout) else {
            panic!("K and V lie side by side");
        };
        let NestingNode::Repeat { digit, .. } = &parts[0].node else {
            panic!("tokens come first");
        };
        assert_eq!(digit.value(3), "3,19…");
    }
}
