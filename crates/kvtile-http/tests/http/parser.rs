//! A parser of the text format of Prometheus, by its grammar: what it does not know is an error.

use std::collections::{BTreeMap, BTreeSet};

/// A family of samples.
#[derive(Debug, Default)]
pub(crate) struct ParsedFamily {
    pub(crate) kind: String,
    pub(crate) help: String,
    /// Labels, without `__name__`, and values; a summary's have the label `suffix`.
    pub(crate) samples: Vec<(BTreeMap<String, String>, f64)>,
}

/// Parses a page.
pub(crate) fn parse(page: &str) -> BTreeMap<String, ParsedFamily> {
    assert!(page.ends_with('\n'), "the last line has no end");
    let mut families: BTreeMap<String, ParsedFamily> = BTreeMap::new();
    let mut current = String::new();
    let mut seen = BTreeSet::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert!(is_name(name) && !help.is_empty(), "{line}");
            assert!(!families.contains_key(name), "{name} is described twice");
            current = name.to_owned();
            families.entry(current.clone()).or_default().help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert_eq!(name, current, "a type without its help");
            assert!(["counter", "gauge", "summary"].contains(&kind), "{line}");
            families.get_mut(name).unwrap().kind = kind.to_owned();
        } else {
            let (name, mut labels, value) = sample(line);
            let family = families
                .get_mut(&current)
                .unwrap_or_else(|| panic!("{line}"));
            let suffix = name
                .strip_prefix(&current)
                .unwrap_or_else(|| panic!("{line}"));
            match family.kind.as_str() {
                "summary" => assert!(["_sum", "_count"].contains(&suffix), "{line}"),
                _ => assert_eq!(suffix, "", "{line}"),
            }
            assert!(seen.insert((name.clone(), labels.clone())), "twice: {line}");
            if !suffix.is_empty() {
                labels.insert("suffix".to_owned(), suffix.to_owned());
            }
            family.samples.push((labels, value));
        }
    }
    families
}

fn is_name(text: &str) -> bool {
    let is_first = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    text.starts_with(is_first) && text.chars().all(|c| is_first(c) || c.is_ascii_digit())
}

fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line}"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(is_name(label) && !label.contains(':'), "{line}");
            let (text, after) = text(after, line);
            assert!(labels.insert(label.to_owned(), text).is_none(), "{line}");
            if let Some(after) = after.strip_prefix('}') {
                rest = after;
                break;
            }
            rest = after.strip_prefix(',').unwrap_or_else(|| panic!("{line}"));
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("{line}"));
    let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
    (name.to_owned(), labels, value)
}

/// The text of a label up to its closing quote, and what follows.
fn text<'a>(from: &'a str, line: &str) -> (String, &'a str) {
    let mut text = String::new();
    let mut characters = from.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (text, &from[at + 1..]),
            '\\' => match characters.next() {
                Some((_, 'n')) => text.push('\n'),
                Some((_, escaped @ ('\\' | '"'))) => text.push(escaped),
                other => panic!("{other:?} is escaped in {line}"),
            },
            other => text.push(other),
        }
    }
    panic!("a label without an end: {line}");
}
