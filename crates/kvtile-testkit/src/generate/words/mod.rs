//! Random words that are layouts of a shape.
//!
//! A draft is a tree of items that grows from the slowest item on. Each step adds a digit that all
//! current planes share, a bar, or a separation (K, or a sum whose parts may split the axes anew).
//! Stride rules come last, because a fixed stride must hold the items to its right.

mod draft;

use std::fmt::Write as _;

use kvtile_layout::{Axis, Shape, Word};

use super::choices::Choices;
use crate::{error::TestkitError, reference::ReferenceLayout};

/// A word that is a layout of `shape` with this alignment. `None` means that the draft is no word:
/// a bug of this module, which shows as a test without cases.
pub(super) fn word(choices: &mut Choices, shape: &Shape, alignment: u64) -> Option<Word> {
    let mut nodes = draft::draft(choices, shape);
    let plain = Word::parse(&print(&nodes)).ok()?;
    if add_rules(choices, &mut nodes)
        && let Some(ruled) = settle_rules(&mut nodes, shape, alignment)
    {
        return Some(ruled);
    }
    Some(plain)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NodeRule {
    None,
    RoundUp(u64),
    Fixed(u64),
}

#[derive(Clone, Debug)]
enum WordNode {
    Axis {
        axis: Axis,
        modulus: Option<u64>,
        rule: NodeRule,
        in_bytes: bool,
    },
    Plane(String),
    Bar,
    Sum(Vec<Vec<WordNode>>),
}

fn print(nodes: &[WordNode]) -> String {
    let mut text = String::new();
    for node in nodes {
        match node {
            WordNode::Bar => text.push('|'),
            WordNode::Plane(name) => text.push_str(name),
            WordNode::Sum(parts) => {
                let parts: Vec<String> = parts.iter().map(|part| print(part)).collect();
                text.push_str(&format!("({})", parts.join(",")));
            }
            WordNode::Axis {
                axis,
                modulus,
                rule,
                ..
            } => {
                text.push(axis.letter());
                let modulus = modulus.map_or(String::new(), |m| m.to_string());
                text.push_str(&modulus);
                let _ = match rule {
                    NodeRule::None => Ok(()),
                    NodeRule::RoundUp(bytes) => write!(text, "@{bytes}"),
                    NodeRule::Fixed(bytes) => write!(text, "={bytes}"),
                };
            }
        }
    }
    text
}

fn rules(nodes: &mut [WordNode]) -> Vec<&mut NodeRule> {
    let mut found = Vec::new();
    for node in nodes {
        match node {
            WordNode::Axis { rule, in_bytes, .. } if *in_bytes => found.push(rule),
            WordNode::Sum(parts) => found.extend(parts.iter_mut().flat_map(|part| rules(part))),
            WordNode::Axis { .. } | WordNode::Plane(_) | WordNode::Bar => {}
        }
    }
    found
}

/// Sets up to two stride rules, at most one of them fixed; returns whether it set one.
fn add_rules(choices: &mut Choices, nodes: &mut [WordNode]) -> bool {
    let mut any = false;
    let mut fixed = false;
    let mut places = rules(nodes);
    for _ in 0..choices.below(3) {
        let at = choices.index(places.len());
        let bytes = choices.pick(&[8, 2, 3, 4, 5, 16, 32, 64]);
        let Some(rule) = places.get_mut(at) else {
            break;
        };
        any = true;
        **rule = match !fixed && choices.once_in(2) {
            true => NodeRule::Fixed(bytes),
            false => NodeRule::RoundUp(bytes),
        };
        fixed |= matches!(**rule, NodeRule::Fixed(_));
    }
    any
}

/// Raises the fixed stride to the size of its content; `None` if padding would dominate.
fn settle_rules(nodes: &mut [WordNode], shape: &Shape, alignment: u64) -> Option<Word> {
    for _ in 0..16 {
        let word = Word::parse(&print(nodes)).ok()?;
        match ReferenceLayout::new(&word, shape, alignment) {
            Ok(layout) => {
                let padded: u64 = layout.region_bytes().iter().sum();
                return (padded <= 4096 + 8 * shape.total_bytes().ok()?).then_some(word);
            }
            Err(TestkitError::StrideTooSmall { holds, stride, .. }) => {
                for rule in rules(nodes) {
                    if let NodeRule::Fixed(bytes) = rule {
                        *bytes = holds + stride % 3;
                    }
                }
            }
            Err(_) => return None,
        }
    }
    None
}
