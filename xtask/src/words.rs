//! Words that comments and documents do without: the field has a term for what they paraphrase (a pool *evicts*,
//! a caller *requests*, a lock is *released*), or they leave the subject open.
//!
//! It counts lines of comments, of docstrings and of documents, by crate and folder. A few such words are plain
//! English, so a small rate is accepted.

use std::{fs, path::Path};

use crate::step::{StepFailure, root};

/// Lines with such a word, of 1,000 lines of text.
const RATE_MAX: usize = 5;

/// Words of one word, in lower case. Written in two halves each, so that this list does not count.
const WORDS: [(&str, &str); 24] = [
    ("who", "ever"),
    ("what", "ever"),
    ("no", "body"),
    ("some", "body"),
    ("any", "body"),
    ("some", "one"),
    ("any", "one"),
    ("wh", "o"),
    ("who", "m"),
    ("to", "ld"),
    ("te", "ll"),
    ("te", "lls"),
    ("as", "k"),
    ("as", "ks"),
    ("ask", "ed"),
    ("go", "ne"),
    ("mean", "while"),
    ("wa", "nt"),
    ("wa", "nts"),
    ("want", "ed"),
    ("sa", "ys"),
    ("sa", "id"),
    ("sta", "nds"),
    ("stan", "ding"),
];

/// Pairs of neighbouring words.
const PAIRS: [(&str, &str); 9] = [
    ("given", "back"),
    ("gives", "back"),
    ("give", "back"),
    ("comes", "next"),
    ("come", "next"),
    ("let", "go"),
    ("lets", "go"),
    ("at", "hand"),
    ("of", "others"),
];

/// A group of files with one rate.
struct Area {
    name: String,
    lines: usize,
    found: Vec<String>,
}

/// Areas with more than [`RATE_MAX`] such lines in 1,000.
pub(crate) fn check() -> Result<Vec<String>, StepFailure> {
    let root = root();
    let mut areas = Vec::new();
    for folder in ["crates", "docs", "examples", "xtask", "fuzz"] {
        let mut files = Vec::new();
        texts(&root.join(folder), &mut files)?;
        for file in files {
            let name = file.strip_prefix(&root).unwrap_or(&file);
            let deep = if folder == "crates" { 2 } else { 1 };
            let area: Vec<_> = name
                .iter()
                .take(deep)
                .map(|p| p.to_string_lossy())
                .collect();
            count(&mut areas, &area.join("/"), name, &file)?;
        }
    }
    for file in entries(&root)? {
        if file.extension().is_some_and(|e| e == "md") {
            let name = file.strip_prefix(&root).unwrap_or(&file);
            count(&mut areas, "the documents of the root", name, &file)?;
        }
    }
    Ok(areas.iter().filter_map(verdict).collect())
}

fn verdict(area: &Area) -> Option<String> {
    let found = area.found.len();
    if found * 1000 <= RATE_MAX * area.lines {
        return None;
    }
    Some(format!(
        "{}: {found} lines of {} have words that paraphrase a term or leave a subject open; the limit is \
         {RATE_MAX} in 1,000. Use the field's terms:\n    {}",
        area.name,
        area.lines,
        area.found.join("\n    ")
    ))
}

fn count(areas: &mut Vec<Area>, area: &str, name: &Path, file: &Path) -> Result<(), StepFailure> {
    let text = fs::read_to_string(file)
        .map_err(|error| StepFailure::Tool(format!("{}: {error}", file.display())))?;
    let extension = file.extension().and_then(|e| e.to_str());
    let at = match areas.iter().position(|known| known.name == area) {
        Some(at) => at,
        None => {
            areas.push(Area {
                name: area.to_owned(),
                lines: 0,
                found: Vec::new(),
            });
            areas.len() - 1
        }
    };
    let Some(area) = areas.get_mut(at) else {
        return Err(StepFailure::Tool(format!("no area {at}")));
    };
    for (number, line) in prose(&text, extension.unwrap_or_default()) {
        area.lines += 1;
        if let Some(word) = odd(line) {
            let place = format!("{}:{number}: {word:?} in {:?}", name.display(), line.trim());
            area.found.push(place);
        }
    }
    Ok(())
}

/// The first such word of a line.
fn odd(line: &str) -> Option<String> {
    // Every second piece is code.
    let words = line.split('`').step_by(2).collect::<Vec<_>>().join(" ");
    let lower = words.to_lowercase();
    let words: Vec<&str> = lower
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
        .collect();
    let single = words
        .iter()
        .find(|word| WORDS.iter().any(|(a, b)| word.strip_prefix(a) == Some(*b)));
    let pair = || {
        words
            .windows(2)
            .find(|pair| PAIRS.iter().any(|(a, b)| pair == &[*a, *b]))
            .map(|pair| pair.join(" "))
    };
    single.map(|word| (*word).to_owned()).or_else(pair)
}

/// The lines of text of a file, with their numbers: all of a document, the comments of code, and the docstrings
/// of Python.
fn prose<'a>(text: &'a str, extension: &str) -> Vec<(usize, &'a str)> {
    let mut found = Vec::new();
    let mut is_docstring = false;
    for (number, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line)) {
        let part = match extension {
            "md" => Some(line),
            "rs" => comment(line, "//"),
            _ => {
                let quotes = line.matches("\"\"\"").count();
                let was_docstring = is_docstring;
                let opens = line
                    .trim_start()
                    .trim_start_matches('r')
                    .starts_with("\"\"\"");
                if quotes % 2 == 1 && (was_docstring || opens) {
                    is_docstring = !is_docstring;
                }
                match was_docstring || opens {
                    true => Some(line),
                    false => comment(line, "#"),
                }
            }
        };
        if let Some(part) = part.filter(|part| !part.trim().is_empty()) {
            found.push((number, part));
        }
    }
    found
}

/// A comment that begins the line or follows a blank.
fn comment<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    if line.trim_start().starts_with(mark) {
        return Some(line);
    }
    let (code, comment) = line.split_once(&format!(" {mark} "))?;
    // An odd number of quotes before it: it is inside a string.
    (code.matches('"').count() % 2 == 0).then_some(comment)
}

pub(crate) fn entries(folder: &Path) -> Result<Vec<std::path::PathBuf>, StepFailure> {
    let failed = |error| StepFailure::Tool(format!("{}: {error}", folder.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        found.push(entry.map_err(failed)?.path());
    }
    found.sort();
    Ok(found)
}

/// The texts below a folder. What builds and tools left behind is none.
pub(crate) fn texts(folder: &Path, files: &mut Vec<std::path::PathBuf>) -> Result<(), StepFailure> {
    for path in entries(folder)? {
        let name = path.file_name().map(|name| name.to_string_lossy());
        let left_behind = name.is_some_and(|name| {
            name.starts_with('.') || ["target", "__pycache__"].contains(&&*name)
        });
        if left_behind {
            continue;
        }
        if path.is_dir() {
            texts(&path, files)?;
        } else if path
            .extension()
            .is_some_and(|e| ["rs", "md", "py", "pyi"].iter().any(|known| e == *known))
        {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_in_comments_and_docstrings_alone() {
        let rust = "// Nobody reads it.\nlet told = 1; // as it was asked\nlet url = \"a // who\";\n/// Evicts.\n";
        let lines = prose(rust, "rs");
        assert_eq!(lines.len(), 3);
        assert_eq!(
            lines.iter().filter(|(_, line)| odd(line).is_some()).count(),
            2
        );
        let python = "def f():\n    \"\"\"Says it.\n\n    More, of others.\n    \"\"\"\n    asked = 1  # told\n";
        let odd_lines: Vec<usize> = prose(python, "py")
            .into_iter()
            .filter(|(_, line)| odd(line).is_some())
            .map(|(number, _)| number)
            .collect();
        assert_eq!(odd_lines, [2, 4, 6]);
    }

    #[test]
    fn names_of_items_are_no_words() {
        assert_eq!(odd("`is_wanted`, `Tier::ask` and a task"), None);
        assert_eq!(odd("What is given back."), Some("given back".to_owned()));
    }

    #[test]
    fn a_rate_above_the_limit_is_reported_with_the_lines() {
        let area = |lines, found| Area {
            name: "crate".to_owned(),
            lines,
            found: vec!["a:1".to_owned(); found],
        };
        assert_eq!(verdict(&area(1000, RATE_MAX)), None);
        assert!(verdict(&area(1000, RATE_MAX + 1)).is_some());
        assert!(verdict(&area(10, 1)).is_some());
    }
}
