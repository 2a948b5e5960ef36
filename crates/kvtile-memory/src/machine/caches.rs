//! The data and unified caches of a processor, as the kernel describes them.

use super::{MachineFact, read, unclear};
use serde::Serialize;
use std::path::Path;

/// Caches of the machine's first processor that hold data (data and unified caches), in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DataCaches {
    /// First level, of one core.
    pub level1_bytes: u64,
    /// Second level; the first level's size where there is no second one.
    pub level2_bytes: u64,
    /// The last level, which cores share; the second level's size where there is no third one.
    pub last_level_bytes: u64,
}

impl DataCaches {
    /// Reads them from the kernel.
    #[must_use]
    pub fn probe() -> MachineFact<DataCaches> {
        caches(Path::new("/"))
    }
}

/// Reads `/sys/devices/system/cpu/cpu0/cache`.
fn caches(root: &Path) -> MachineFact<DataCaches> {
    const FOLDER: &str = "sys/devices/system/cpu/cpu0/cache";
    let mut sizes = [0u64; 4];
    for index in 0.. {
        let folder = format!("{FOLDER}/index{index}");
        let text = |name: &str| read(root, &format!("{folder}/{name}"));
        let (level, kind, size) = match (text("level"), text("type"), text("size")) {
            (MachineFact::Known(level), MachineFact::Known(kind), MachineFact::Known(size)) => {
                (level, kind, size)
            }
            (MachineFact::Unknown { reason }, ..) if index == 0 => {
                return MachineFact::Unknown { reason };
            }
            _ => break,
        };
        if kind.trim() == "Instruction" {
            continue;
        }
        let parsed = level.trim().parse::<usize>().ok().zip(bytes(&size));
        let Some((level, bytes)) = parsed else {
            return MachineFact::unknown(unclear(&format!("{folder}/size"), &size));
        };
        if let Some(known) = sizes.get_mut(level) {
            *known = bytes;
        }
    }
    let [_, first, second, third] = sizes;
    if first == 0 {
        return MachineFact::unknown(format!("/{FOLDER} names no cache for data"));
    }
    let second = second.max(first);
    MachineFact::Known(DataCaches {
        level1_bytes: first,
        level2_bytes: second,
        last_level_bytes: third.max(second),
    })
}

/// `32768K` or `260M` in bytes.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..)? {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::super::tests::fake_root;
    use super::*;

    const INDEX: &str = "sys/devices/system/cpu/cpu0/cache/index";

    fn root_with(caches: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let mut files = Vec::new();
        for (index, (level, kind, size)) in caches.iter().enumerate() {
            for (name, text) in [("level", level), ("type", kind), ("size", size)] {
                files.push((format!("{INDEX}{index}/{name}"), (*text).to_owned()));
            }
        }
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(path, text)| (path.as_str(), text.as_str()))
            .collect();
        fake_root(&files)
    }

    #[test]
    fn data_caches_are_found_by_level() {
        let root = root_with(&[
            ("1\n", "Data\n", "48K\n"),
            ("1\n", "Instruction\n", "32K\n"),
            ("2\n", "Unified\n", "1024K\n"),
            ("3\n", "Unified\n", "260M\n"),
        ]);
        let expected = DataCaches {
            level1_bytes: 48 << 10,
            level2_bytes: 1 << 20,
            last_level_bytes: 260 << 20,
        };
        assert_eq!(caches(root.path()), MachineFact::Known(expected));
    }

    #[test]
    fn a_missing_level_has_the_size_of_the_one_before() {
        let root = root_with(&[("1\n", "Data\n", "64K\n"), ("2\n", "Unified\n", "2M\n")]);
        let found = caches(root.path());
        assert_eq!(found.known().unwrap().last_level_bytes, 2 << 20);
    }

    #[test]
    fn an_unreadable_cache_has_a_reason() {
        let nothing = tempfile::tempdir().unwrap();
        assert!(caches(nothing.path()).unknown_reason().is_some());
        for size in ["", "much", "18446744073709551615G", "-1K"] {
            let root = root_with(&[("1\n", "Data\n", size)]);
            assert!(caches(root.path()).unknown_reason().is_some(), "{size:?}");
        }
        let root = root_with(&[("1\n", "Instruction\n", "32K\n")]);
        assert!(caches(root.path()).unknown_reason().is_some());
    }
}
