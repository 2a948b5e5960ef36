//! Links of the documents: each relative link leads to a file of the repository, and its anchor to a heading there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use crate::{
    step::{StepFailure, root},
    words::{entries, texts},
};

/// Links that lead nowhere.
pub(crate) fn check() -> Result<Vec<String>, StepFailure> {
    let root = root();
    let mut files = entries(&root)?;
    files.retain(|path| path.is_file());
    for folder in ["docs", "examples", "crates"] {
        texts(&root.join(folder), &mut files)?;
    }
    files.retain(|path| path.extension().is_some_and(|e| e == "md"));
    let mut documents = BTreeMap::new();
    for path in files {
        let text = fs::read_to_string(&path)
            .map_err(|error| StepFailure::Tool(format!("{}: {error}", path.display())))?;
        let text = without_code(&text);
        let name = path.strip_prefix(&root).unwrap_or(&path).to_owned();
        documents.insert(name, text);
    }
    let anchors: BTreeMap<&Path, BTreeSet<String>> = documents
        .iter()
        .map(|(name, text)| (name.as_path(), anchors(text)))
        .collect();
    let exists = |path: &Path| root.join(path).exists();
    let mut broken = Vec::new();
    for (name, text) in &documents {
        broken.extend(broken_links(name, text, &anchors, exists));
    }
    Ok(broken)
}

fn broken_links(
    name: &Path,
    text: &str,
    anchors: &BTreeMap<&Path, BTreeSet<String>>,
    exists: impl Fn(&Path) -> bool,
) -> Vec<String> {
    let mut broken = Vec::new();
    for link in links(text) {
        if ["http:", "https:", "mailto:"]
            .iter()
            .any(|scheme| link.starts_with(scheme))
        {
            continue;
        }
        let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
        let target = match path {
            "" => name.to_owned(),
            path => normal(&name.parent().unwrap_or(Path::new("")).join(path)),
        };
        if !exists(&target) {
            broken.push(format!(
                "{}: the link {link} leads to no file",
                name.display()
            ));
        } else if !anchor.is_empty()
            && !anchors
                .get(target.as_path())
                .is_some_and(|known| known.contains(anchor))
        {
            broken.push(format!(
                "{}: the link {link} leads to no heading",
                name.display()
            ));
        }
    }
    broken
}

/// The targets of `[text](target)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| {
        let link = rest.split_once(')')?.0;
        (!link.contains(char::is_whitespace)).then_some(link)
    })
}

/// The anchors that a forge makes of the headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeMap::<String, usize>::new();
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            // Of a link only its text counts.
            let title = title.replace("](", "]\u{0}(");
            let mut kept = String::new();
            let mut is_target = false;
            for c in title.chars() {
                match c {
                    '\u{0}' => is_target = true,
                    ')' if is_target => is_target = false,
                    _ if is_target => {}
                    ' ' => kept.push('-'),
                    c if c.is_alphanumeric() || c == '-' || c == '_' => kept.push(c),
                    _ => {}
                }
            }
            let count = found.entry(kept.clone()).or_default();
            *count += 1;
            match *count {
                1 => kept,
                count => format!("{kept}-{}", count - 1),
            }
        })
        .collect()
}

/// A document without its blocks and spans of code.
fn without_code(text: &str) -> String {
    let mut kept = String::new();
    let mut is_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            continue;
        }
        if is_code {
            continue;
        }
        // A heading keeps its code, which is in its anchor.
        match line.starts_with('#') {
            true => kept.push_str(line),
            false => kept.push_str(&line.split('`').step_by(2).collect::<Vec<_>>().join(" ")),
        }
        kept.push('\n');
    }
    kept
}

/// A path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_missing_files_and_headings_are_found() {
        let text = "# A page\n\n## Of `code`, twice\n## Of `code`, twice\n[a](b.md) [b](#a-page) [c](../c.md)\n\
                    [d](b.md#there) [e](#of-code-twice-1) [f](#nowhere) `[g](no)`\n```\n[h](no)\n```\n\
                    [i](https://example.org/x)\n";
        let text = without_code(text);
        let name = Path::new("docs/a.md");
        let other = BTreeSet::from(["there".to_owned()]);
        let known = BTreeMap::from([(name, anchors(&text)), (Path::new("docs/b.md"), other)]);
        let exists = |path: &Path| known.contains_key(path);
        let broken = broken_links(name, &text, &known, exists);
        assert_eq!(
            broken,
            [
                "docs/a.md: the link ../c.md leads to no file",
                "docs/a.md: the link #nowhere leads to no heading"
            ]
        );
    }
}
