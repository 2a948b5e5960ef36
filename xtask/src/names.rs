//! Names of types: one name, one thing, in the whole workspace, tests included.
//!
//! It reads text: a line of code that defines a struct, an enum, a trait, a union, or, in the first column, an
//! alias. Associated types are indented and belong to their traits.

use std::{collections::BTreeMap, fs, path::Path};

use crate::{
    files::collect,
    step::{StepFailure, root},
};

/// Names that may occur more than once, and why.
const SHARED: [(&str, &str); 1] = [("Error", "the error of a crate or a small module")];

/// Types whose name another type of the workspace has.
pub(crate) fn check() -> Result<Vec<String>, StepFailure> {
    let root = root();
    let mut sources = Vec::new();
    for folder in ["crates", "xtask", "fuzz"] {
        collect(&root.join(folder), &mut sources)?;
    }
    let mut defined: BTreeMap<String, Vec<String>> = BTreeMap::new();
    sources.sort();
    for path in sources {
        let text = fs::read_to_string(&path)
            .map_err(|error| StepFailure::Tool(format!("{}: {error}", path.display())))?;
        let shown = path.strip_prefix(&root).unwrap_or(&path);
        enter(shown, &text, &mut defined);
    }
    Ok(twice(&defined))
}

fn enter(path: &Path, text: &str, defined: &mut BTreeMap<String, Vec<String>>) {
    let mut before = "";
    for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line)) {
        // Two builds of one thing.
        let is_alternative = before.trim_start().starts_with("#[cfg(not(");
        before = line;
        if is_alternative {
            continue;
        }
        if let Some(name) = defines(line) {
            let place = format!("{}:{number}", path.display());
            defined.entry(name.to_owned()).or_default().push(place);
        }
    }
}

fn twice(defined: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    defined
        .iter()
        .filter(|(name, places)| {
            places.len() > 1 && !SHARED.iter().any(|(shared, _)| shared == name)
        })
        .map(|(name, places)| {
            format!(
                "{name} names {} types; one name, one thing:\n    {}",
                places.len(),
                places.join("\n    ")
            )
        })
        .collect()
}

/// The name of the type that a line defines.
fn defines(line: &str) -> Option<&str> {
    let code = line.trim_start();
    let is_top = code.len() == line.len();
    let code = match code.strip_prefix("pub(") {
        Some(rest) => rest.split_once(')')?.1.trim_start(),
        None => code.strip_prefix("pub ").unwrap_or(code),
    };
    let code = code.strip_prefix("unsafe ").unwrap_or(code);
    let kinds = ["struct ", "enum ", "trait ", "union "];
    let rest = kinds
        .iter()
        .find_map(|kind| code.strip_prefix(kind))
        .or_else(|| code.strip_prefix("type ").filter(|_| is_top))?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
    let name = rest.get(..end.unwrap_or(rest.len()))?;
    name.starts_with(char::is_uppercase).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_found_and_associated_types_are_not() {
        assert_eq!(defines("pub(crate) struct Slot<'a> {"), Some("Slot"));
        assert_eq!(defines("    enum Kind {"), Some("Kind"));
        assert_eq!(defines("pub unsafe trait Region: Sync {"), Some("Region"));
        assert_eq!(defines("type Job<S> = Box<dyn Work<S>>;"), Some("Job"));
        assert_eq!(defines("    type Error = LayoutError;"), None);
        assert_eq!(defines("/// struct Slot"), None);
        assert_eq!(defines("let structure = 1;"), None);
    }

    #[test]
    fn a_name_with_two_definitions_is_reported_with_both() {
        let mut defined = BTreeMap::new();
        enter(
            Path::new("a.rs"),
            "struct Slot;\nstruct Error;\n",
            &mut defined,
        );
        enter(
            Path::new("b.rs"),
            "\nenum Slot {}\nenum Error {}\n",
            &mut defined,
        );
        let two_builds = "#[cfg(loom)]\ntype Held = u8;\n#[cfg(not(loom))]\ntype Held = u16;\n";
        enter(Path::new("c.rs"), two_builds, &mut defined);
        let found = twice(&defined);
        assert_eq!(found.len(), 1);
        assert!(
            found
                .iter()
                .all(|text| text.contains("a.rs:1") && text.contains("b.rs:2"))
        );
    }
}
