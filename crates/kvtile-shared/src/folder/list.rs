//! Listings: one directory a page, in the order of their names.

use std::{fs, io, path::Path};

use super::{FolderStore, is_absent};
use crate::store::{ListPage, ListedValue, ValueName};

impl FolderStore {
    /// The values of the first directory after `after`, or of `under` itself. A page may be empty
    /// and have a next page.
    pub(super) fn list_page(&self, under: &str, after: Option<&str>) -> io::Result<ListPage> {
        let under = under.trim_end_matches('/');
        let base = self.folder.join(under);
        let directory = match after {
            None => String::new(),
            Some(after) => after.to_owned(),
        };
        let values = self.values_in(under, &directory)?;
        let visited: Vec<&str> = directory.split('/').filter(|one| !one.is_empty()).collect();
        let next = next_directory(&base, &visited)?;
        Ok(ListPage {
            values,
            next: next.map(|parts| parts.join("/")),
        })
    }

    fn values_in(&self, under: &str, directory: &str) -> io::Result<Vec<ListedValue>> {
        let parts = [under, directory].into_iter().filter(|one| !one.is_empty());
        let relative = parts.collect::<Vec<&str>>().join("/");
        let entries = entries(&self.folder.join(&relative))?;
        let mut now = None;
        let mut values = Vec::new();
        for entry in entries {
            let Ok(file) = entry.file_name().into_string() else {
                continue;
            };
            let name = match relative.is_empty() {
                true => file,
                false => format!("{relative}/{file}"),
            };
            let (Ok(name), Ok(metadata)) = (ValueName::new(name), entry.metadata()) else {
                continue;
            };
            if metadata.is_file() {
                let now = *now.get_or_insert_with(|| self.now());
                let age = metadata.modified().ok();
                let age = age.map(|modified| now.duration_since(modified).unwrap_or_default());
                values.push(ListedValue {
                    name,
                    bytes: metadata.len(),
                    age,
                });
            }
        }
        Ok(values)
    }
}

/// The entries of a directory; none of one that does not exist.
fn entries(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.collect(),
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The directory after `visited` in a walk that visits each directory before those in it, in the
/// order of names.
fn next_directory(base: &Path, visited: &[&str]) -> io::Result<Option<Vec<String>>> {
    let mut names = Vec::new();
    for entry in entries(base)? {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if !name.starts_with('.') && entry.file_type()?.is_dir() {
            names.push(name);
        }
    }
    names.sort();
    let Some((first, deeper)) = visited.split_first() else {
        return Ok(names.into_iter().next().map(|name| vec![name]));
    };
    for name in names {
        if name.as_str() < *first {
            continue;
        }
        if name.as_str() > *first {
            return Ok(Some(vec![name]));
        }
        if let Some(below) = next_directory(&base.join(&name), deeper)? {
            let mut path = vec![name];
            path.extend(below);
            return Ok(Some(path));
        }
    }
    Ok(None)
}
