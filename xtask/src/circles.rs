//! Cycles among the rooms of a crate: modules at the top of its `src` that use each other, directly
//! or through others. A room in a cycle cannot be read, tested or moved alone.
//!
//! The check reads text: `crate::room::…` in `use` trees and in paths, `super::room::…` at the top
//! of a room, and names that the root re-exports from a room. Tests may use any room.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::{
    files::{code, collect},
    step::{StepFailure, root},
};

/// Known cycles by crate. They are to be removed and must not grow. The check fails for an entry
/// that no longer exists.
const KNOWN: [(&str, &[&[&str]]); 5] = [
    (
        "kvtile-bench",
        &[&["file_rows", "lines", "matrix", "row", "settings"]],
    ),
    (
        "kvtile-blocks",
        &[&["error", "events", "key", "policy", "pool"]],
    ),
    (
        "kvtile-layout",
        &[&[
            "error",
            "identity",
            "presets",
            "shape",
            "strided",
            "tensor",
            "tradition",
            "unit",
            "word",
        ]],
    ),
    ("kvtile-memory", &[&["error", "region"]]),
    (
        "kvtile-python",
        &[
            &[
                "arguments",
                "cache",
                "completion",
                "identity",
                "keys",
                "layout",
                "model",
                "shape",
                "transfer",
            ],
            &["ending", "guard"],
        ],
    ),
];

/// The rooms that each room uses.
type RoomUses = BTreeMap<String, BTreeSet<String>>;

/// A source file of a crate: its path inside `src`, and its text.
type SourceFile = (PathBuf, String);

pub(crate) fn check() -> Result<Vec<String>, StepFailure> {
    let crates = root().join("crates");
    let failed = |error| StepFailure::Tool(format!("{}: {error}", crates.display()));
    let mut broken = Vec::new();
    for entry in fs::read_dir(&crates).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let src = entry.path().join("src");
        if !src.is_dir() {
            continue;
        }
        let mut sources = Vec::new();
        collect(&src, &mut sources)?;
        let mut read = Vec::new();
        for path in sources {
            let text = fs::read_to_string(&path)
                .map_err(|error| StepFailure::Tool(format!("{}: {error}", path.display())))?;
            let inside = path.strip_prefix(&src).unwrap_or(&path);
            read.push((inside.to_owned(), text));
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let known = KNOWN.iter().find(|(known, _)| *known == name);
        let known = known.map_or(&[][..], |(_, circles)| circles);
        broken.extend(complaints(&name, &circles(&uses(&read)), known));
    }
    broken.sort();
    Ok(broken)
}

/// Complaints about new cycles of a crate, and about known ones that no longer exist.
fn complaints(name: &str, found: &[Vec<String>], known: &[&[&str]]) -> Vec<String> {
    let is_known = |circle: &&Vec<String>| known.iter().any(|known| circle.iter().eq(*known));
    let new = found.iter().filter(|circle| !is_known(circle));
    let new = new.map(|circle| format!("{name}: rooms use each other: {}", circle.join(", ")));
    let is_found = |known: &&&[&str]| found.iter().any(|circle| circle.iter().eq(**known));
    let old = known.iter().filter(|known| !is_found(known));
    let old = old.map(|known| {
        let known = known.join(", ");
        format!("{name}: the cycle of {known} no longer exists; remove it from KNOWN")
    });
    new.chain(old).collect()
}

/// The cycles: groups of rooms that reach each other, each sorted by name.
fn circles(uses: &RoomUses) -> Vec<Vec<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        uses.keys().map(|room| (room, reach(uses, room))).collect();
    let mut found = BTreeSet::new();
    for (room, rooms) in &reached {
        let back = |other: &&&String| reached.get(**other).is_some_and(|back| back.contains(room));
        let circle: Vec<String> = rooms.iter().filter(back).map(|r| (*r).clone()).collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

/// The rooms that `room` uses, directly or through others.
fn reach<'u>(uses: &'u RoomUses, room: &String) -> BTreeSet<&'u String> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&String> = uses.get(room).into_iter().flatten().collect();
    while let Some(other) = next.pop() {
        if reached.insert(other) {
            next.extend(uses.get(other).into_iter().flatten());
        }
    }
    reached
}

/// The rooms that each room of a crate uses.
fn uses(sources: &[SourceFile]) -> RoomUses {
    let rooms: BTreeSet<String> = sources.iter().filter_map(|(path, _)| room(path)).collect();
    let from_root = re_exports(sources, &rooms);
    let mut uses: RoomUses = rooms.iter().map(|r| (r.clone(), BTreeSet::new())).collect();
    for (path, text) in sources {
        let Some(used) = room(path).and_then(|room| uses.get_mut(&room)) else {
            continue;
        };
        if is_test(path) {
            continue;
        }
        let text = joined(text);
        let mut names = heads(&text, "crate::");
        // At the top of a room, `super` is the root of the crate.
        if path.iter().count() == 1 || path.ends_with("mod.rs") && path.iter().count() == 2 {
            names.extend(heads(&text, "super::"));
        }
        for name in names {
            match rooms.get(&name).or_else(|| from_root.get(&name)) {
                Some(other) => used.insert(other.clone()),
                None => false,
            };
        }
    }
    for (room, used) in &mut uses {
        used.remove(room);
    }
    uses
}

/// The room of a file; `None` for the root of the crate.
fn room(path: &Path) -> Option<String> {
    let first = path.components().next()?;
    let first = first.as_os_str().to_string_lossy();
    let name = first.strip_suffix(".rs").unwrap_or(&first);
    (!["lib", "main"].contains(&name)).then(|| name.to_owned())
}

fn is_test(path: &Path) -> bool {
    let mut parts = path.iter().map(|part| part.to_string_lossy());
    parts.any(|part| {
        let name = part.strip_suffix(".rs").unwrap_or(&part);
        name == "tests" || name.ends_with("_tests")
    })
}

/// Names that the root re-exports, and their rooms.
fn re_exports(sources: &[SourceFile], rooms: &BTreeSet<String>) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for (path, text) in sources {
        if room(path).is_some() {
            continue;
        }
        let text = joined(text);
        for room in rooms {
            for start in ["use ", "use crate::", "use self::"] {
                for name in heads(&text, &format!("{start}{room}::")) {
                    names.insert(name, room.clone());
                }
            }
        }
    }
    names
}

/// The code of a file as one line.
fn joined(text: &str) -> String {
    let lines: Vec<&str> = code(text).iter().map(|(_, line)| line.trim()).collect();
    lines.join(" ")
}

/// The first path segment after every `start`: one, or all of a tree in braces.
fn heads(text: &str, start: &str) -> Vec<String> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (at, _) in text.match_indices(start) {
        let before = text.get(..at).and_then(|before| before.chars().next_back());
        if before.is_some_and(|c| is_name(c) || c == '$' || c == ':') {
            continue;
        }
        let rest = text.get(at + start.len()..).unwrap_or_default();
        let Some(tree) = rest.strip_prefix('{') else {
            found.push(rest.chars().take_while(|c| is_name(*c)).collect());
            continue;
        };
        let (mut depth, mut name) = (0, String::new());
        let mut is_head = true;
        for c in tree.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    found.push(std::mem::take(&mut name));
                    is_head = true;
                }
                ' ' if name.is_empty() => {}
                c if is_name(c) && is_head => name.push(c),
                _ => is_head = false,
            }
        }
        found.push(name);
    }
    found.retain(|name: &String| !name.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sources: &[(&str, &str)]) -> Vec<Vec<String>> {
        let sources = sources.iter();
        let sources = sources.map(|(path, text)| (PathBuf::from(path), (*text).to_owned()));
        circles(&uses(&sources.collect::<Vec<_>>()))
    }

    #[test]
    fn heads_of_paths_and_trees_are_read() {
        let text = "use crate::{a::{x, y}, b, c_d::e as f,}; crate::g::h(); \
                    $crate::i; my_crate::j; self::crate_::k";
        assert_eq!(heads(text, "crate::"), ["a", "b", "c_d", "g"]);
    }

    #[test]
    fn rooms_that_use_each_other_are_a_circle() {
        let two = [
            ("a/mod.rs", "mod x;\n"),
            ("a/x.rs", "use crate::{\n    c,\n    b::{self, d},\n};\n"),
            ("b.rs", "fn f() {\n    crate::a::g();\n}\n"),
            ("c.rs", "use std::fs;\n"),
        ];
        assert_eq!(found(&two), [["a", "b"]]);
        let three = [
            ("a.rs", "use crate::b;\n"),
            ("b.rs", "use crate::c;\n"),
            ("c/mod.rs", "use super::a;\n"),
            ("c/b.rs", "use super::e;\n"),
            ("e.rs", "use crate::c;\n"),
            ("d.rs", "use crate::a;\n"),
        ];
        assert_eq!(found(&three), [["a", "b", "c"]]);
    }

    #[test]
    fn names_that_the_root_re_exports_belong_to_their_room() {
        let sources = [
            (
                "lib.rs",
                "mod a;\npub use b::{\n    Thing,\n    Other,\n};\n",
            ),
            ("a.rs", "use crate::Thing;\n"),
            ("b.rs", "use crate::a;\n"),
        ];
        assert_eq!(found(&sources), [["a", "b"]]);
    }

    #[test]
    fn tests_and_comments_and_a_room_itself_make_no_circle() {
        let sources = [
            (
                "a.rs",
                "//! crate::b\nuse crate::a;\n#[cfg(test)]\nuse crate::b;\n",
            ),
            ("a/tests/x.rs", "use crate::b;\n"),
            ("b.rs", "use crate::a;\n"),
        ];
        assert!(found(&sources).is_empty());
    }

    #[test]
    fn new_circles_and_known_ones_that_are_open_are_complaints() {
        let circle = |rooms: &[&str]| rooms.iter().map(|r| (*r).to_owned()).collect::<Vec<_>>();
        let found = [circle(&["a", "b"])];
        assert!(complaints("k", &found, &[&["a", "b"]]).is_empty());
        assert_eq!(complaints("k", &found, &[]).len(), 1);
        assert_eq!(complaints("k", &found, &[&["a", "b", "c"]]).len(), 2);
        assert_eq!(complaints("k", &[], &[&["a", "b"]]).len(), 1);
    }
}
