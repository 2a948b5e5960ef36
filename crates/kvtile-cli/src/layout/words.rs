//! Text forms of shapes, digits and nestings.

use std::fmt::Write as _;

use kvtile::layout::{Digit, PlanePer, Shape};

use crate::{
    draw::{NestingNode, NestingPart},
    output::{Align, TextTable, count, thousands},
};

/// `N` for a whole axis, `N/16` for groups of sixteen.
pub(super) fn axis_text(digit: &Digit) -> String {
    match digit.low {
        1 => format!("{} {}", digit.axis, digit.axis.long_name()),
        low => format!("{0}/{low} by {low}", digit.axis),
    }
}

/// `128 blocks × 32 layers × 16 tokens; k: 8 heads of 128 bf16 …`.
pub(crate) fn shape_text(shape: &Shape) -> String {
    let mut text = format!(
        "{} blocks × {} layers × {} tokens",
        thousands(shape.num_blocks()),
        shape.num_layers(),
        shape.page_size()
    );
    let mut planes: Vec<(String, Vec<&str>)> = Vec::new();
    for plane in shape.planes() {
        let mut about: Vec<String> = plane
            .extents()
            .iter()
            .rev()
            .map(|(axis, extent)| format!("{axis} {extent}"))
            .collect();
        match plane.per() {
            PlanePer::Token => {}
            PlanePer::Every(tokens) => about.push(format!("one entry every {tokens} tokens")),
            PlanePer::Page => about.push("one entry a page".to_owned()),
        }
        about.push(plane.unit().codec().to_owned());
        let about = about.join(" × ");
        match planes.last_mut() {
            Some((same, names)) if *same == about => names.push(plane.name().as_str()),
            _ => planes.push((about, vec![plane.name().as_str()])),
        }
    }
    for (about, names) in planes {
        let _ = write!(text, "; {}: {about}", names.join(" and "));
    }
    let shard = shape.shard();
    if shard.heads.count != shard.total_heads {
        let _ = write!(text, "; heads {} of {}", shard.heads, shard.total_heads);
    }
    text
}

/// The nesting as an outline.
pub(super) fn nesting(node: &NestingNode, names: &[String]) -> String {
    let mut table = TextTable::bare([Align::Left, Align::Right, Align::Left]);
    outline(node, 0, names, &mut table);
    table.text()
}

fn outline(node: &NestingNode, depth: usize, names: &[String], table: &mut TextTable) {
    let indent = "  ".repeat(depth);
    match node {
        NestingNode::Repeat {
            digit,
            extent,
            step,
            of,
        } => {
            let each = match step.regions {
                0 => match node.unused() {
                    0 => format!("every {}", count(step.bytes)),
                    unused => {
                        format!(
                            "every {}, {} of it unused",
                            count(step.bytes),
                            count(unused)
                        )
                    }
                },
                1 => "a region each".to_owned(),
                regions => format!("every {} regions", thousands(regions)),
            };
            table.row([
                format!("{indent}{}", digit.name()),
                format!("{} ×", thousands(*extent)),
                each,
            ]);
            outline(of, depth + 1, names, table);
        }
        NestingNode::Parts(parts) => {
            for NestingPart {
                name, start, node, ..
            } in parts
            {
                let place = match (start.regions, start.bytes) {
                    (0, 0) => "first".to_owned(),
                    (0, bytes) => format!("{} further", count(bytes)),
                    (1, _) => "in the next region".to_owned(),
                    (regions, _) => format!("{} regions further", thousands(regions)),
                };
                table.row([format!("{indent}plane {name}"), String::new(), place]);
                outline(node, depth + 1, names, table);
            }
        }
        NestingNode::Run {
            plane,
            digit,
            units,
            bytes,
        } => {
            let name = digit.map_or_else(|| "unit".to_owned(), |digit| digit.name());
            let of = names.get(*plane).map_or("", String::as_str);
            table.row([
                format!("{indent}{name}"),
                format!("{} ×", thousands(*units)),
                format!("{} of {of} in a row", count(*bytes)),
            ]);
        }
    }
}
