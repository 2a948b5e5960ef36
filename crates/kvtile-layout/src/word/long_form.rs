//! The long form of a word: plain English for error messages and for `explain`.

use super::{AxisItem, StrideRule, Word, WordItem};

pub(super) fn long_form(word: &Word) -> String {
    phrase(word.items())
}

/// "per layer: block, head, then k: content, token; v: token, content".
fn phrase(items: &[WordItem]) -> String {
    if let Some(bar) = items.iter().position(|item| *item == WordItem::Bar) {
        let (left, right) = items.split_at(bar);
        let right = phrase(right.get(1..).unwrap_or_default());
        return match list(left) {
            left if left.is_empty() => format!("in a region of its own: {right}"),
            left => format!("per {left}: {right}"),
        };
    }
    list(items)
}

fn list(items: &[WordItem]) -> String {
    let mut text = String::new();
    let mut separator = "";
    for (i, item) in items.iter().enumerate() {
        let tail = items.get(i + 1..).unwrap_or_default();
        match item {
            WordItem::Axis(axis) => {
                text.push_str(separator);
                text.push_str(&axis_phrase(*axis));
                separator = ", ";
            }
            WordItem::Plane(name) => {
                let rest = list(tail);
                text.push_str(if separator.is_empty() { "" } else { ", then " });
                text.push_str(name.as_str());
                if !rest.is_empty() {
                    text.push_str(": ");
                    text.push_str(&rest);
                }
                return text;
            }
            WordItem::Sum(parts) => {
                text.push_str(if separator.is_empty() { "" } else { ", then " });
                text.push_str(&sum_phrase(parts, tail));
                return text;
            }
            WordItem::Bar => {}
        }
    }
    text
}

fn sum_phrase(parts: &[Word], tail: &[WordItem]) -> String {
    let phrases: Vec<String> = parts
        .iter()
        .map(|part| {
            let items: Vec<WordItem> = part.items().iter().chain(tail).cloned().collect();
            let nested = part.items().iter().any(|i| matches!(i, WordItem::Sum(_)));
            let text = phrase(&items);
            if nested { format!("({text})") } else { text }
        })
        .collect();
    phrases.join("; ")
}

fn axis_phrase(item: AxisItem) -> String {
    let mut text = item.axis.long_name();
    if let Some(modulus) = item.modulus {
        text.push_str(&format!(" mod {modulus}"));
    }
    match item.rule {
        Some(StrideRule::RoundUp(bytes)) => {
            text.push_str(&format!(" (stride rounded up to {bytes} bytes)"));
        }
        Some(StrideRule::Fixed(bytes)) => text.push_str(&format!(" (stride {bytes} bytes)")),
        None => {}
    }
    text
}
