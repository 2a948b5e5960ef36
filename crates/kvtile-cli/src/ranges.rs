//! Parses ranges and lists of indices: `0..4`, `3,7,12-15`.

use std::str::FromStr;

/// Most entries of a list.
const ENTRIES_MAX: u64 = 1 << 24;

/// A half-open range: `0..4` is 0, 1, 2, 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexRange {
    /// First entry.
    pub(crate) start: u64,
    /// Number of entries, at least 1.
    pub(crate) count: u64,
}

impl FromStr for IndexRange {
    type Err = String;

    fn from_str(text: &str) -> Result<IndexRange, String> {
        let parsed = text.split_once("..").and_then(|(start, end)| {
            let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
            let count = end.checked_sub(start)?;
            (count > 0).then_some(IndexRange { start, count })
        });
        parsed.ok_or_else(|| "give a range such as 0..4 (its end is not part of it)".to_owned())
    }
}

/// A list of indices: `3,7,12-15` is 3, 7, 12, 13, 14, 15.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IndexList(pub(crate) Vec<u64>);

impl FromStr for IndexList {
    type Err = String;

    fn from_str(text: &str) -> Result<IndexList, String> {
        let problem = || "give a list such as 3,7,12-15 (12-15 includes both)".to_owned();
        let mut list = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (first.trim().parse::<u64>(), last.trim().parse::<u64>())
            else {
                return Err(problem());
            };
            let count = last.checked_sub(first).ok_or_else(problem)?;
            if count >= ENTRIES_MAX || list.len() as u64 + count >= ENTRIES_MAX {
                return Err(format!("a list has at most {ENTRIES_MAX} entries"));
            }
            list.extend(first..=last);
        }
        Ok(IndexList(list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_exclude_their_end_and_lists_include_it() {
        let range: IndexRange = "4..8".parse().unwrap();
        assert_eq!(range, IndexRange { start: 4, count: 4 });
        let list: IndexList = "3,7,12-15".parse().unwrap();
        assert_eq!(list.0, [3, 7, 12, 13, 14, 15]);
    }

    #[test]
    fn senseless_ranges_and_lists_are_refused() {
        for text in [
            "",
            "4",
            "4..4",
            "8..4",
            "a..b",
            "-1..2",
            "0..18446744073709551616",
        ] {
            assert!(text.parse::<IndexRange>().is_err(), "{text:?}");
        }
        for text in ["", ",", "1,,2", "5-3", "0-18446744073709551615", "x"] {
            assert!(text.parse::<IndexList>().is_err(), "{text:?}");
        }
    }
}
