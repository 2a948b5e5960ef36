//! Huge pages: their size, and which memory gets them.

use super::{MachineFact, read, unclear};
use serde::Serialize;
use std::path::Path;

/// When memory of one kind gets transparent huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HugePageMode {
    /// Always, with or without `madvise`.
    Always,
    /// Where the memory is advised (`MADV_HUGEPAGE`), as kvtile does.
    Advised,
    /// Never.
    Never,
}

/// Huge pages that the administrator reserved (hugetlb).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HugePagePool {
    /// Bytes of one page.
    pub page_bytes: u64,
    /// Pages in the pool.
    pub total_pages: u64,
    /// Pages that are free.
    pub free_pages: u64,
}

const FOLDER: &str = "sys/kernel/mm/transparent_hugepage";

impl MachineFact<HugePageMode> {
    /// Why requesting huge pages has no effect; `None` where it may have one.
    pub(crate) fn refusal(&self) -> Option<String> {
        match self {
            Self::Known(HugePageMode::Never) => Some(
                "the kernel is set to use none (\"never\" in \
                 /sys/kernel/mm/transparent_hugepage)"
                    .to_owned(),
            ),
            Self::Known(_) => None,
            Self::Unknown { reason } => Some(reason.clone()),
        }
    }
}

pub(super) fn huge_page_bytes(root: &Path) -> MachineFact<usize> {
    let path = format!("{FOLDER}/hpage_pmd_size");
    read(root, &path).and_then(|text| {
        let bytes = text.trim().parse().ok();
        let sensible = bytes.filter(|bytes: &usize| bytes.is_power_of_two());
        MachineFact::from_option(sensible, || unclear(&path, &text))
    })
}

pub(super) fn anonymous_mode(root: &Path) -> MachineFact<HugePageMode> {
    mode(root, &format!("{FOLDER}/enabled"))
}

pub(super) fn shared_mode(root: &Path) -> MachineFact<HugePageMode> {
    mode(root, &format!("{FOLDER}/shmem_enabled"))
}

/// The word in brackets of a line such as `always [madvise] never`.
fn mode(root: &Path, path: &str) -> MachineFact<HugePageMode> {
    read(root, path).and_then(|text| {
        let chosen = text
            .split_once('[')
            .and_then(|(_, rest)| rest.split_once(']'))
            .map(|(chosen, _)| chosen);
        let mode = match chosen {
            Some("always" | "force" | "within_size") => Some(HugePageMode::Always),
            Some("madvise" | "advise") => Some(HugePageMode::Advised),
            Some("never" | "deny") => Some(HugePageMode::Never),
            _ => None,
        };
        MachineFact::from_option(mode, || unclear(path, &text))
    })
}

pub(super) fn pool(root: &Path) -> MachineFact<HugePagePool> {
    let path = "proc/meminfo";
    read(root, path).and_then(|text| {
        let number = |name| super::memory::field(&text, name);
        let pool = (|| {
            Some(HugePagePool {
                page_bytes: number("Hugepagesize")?.checked_mul(1024)?,
                total_pages: number("HugePages_Total")?,
                free_pages: number("HugePages_Free")?,
            })
        })();
        MachineFact::from_option(pool, || format!("/{path} names no huge page pool"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::fake_root;
    use super::*;

    #[test]
    fn the_chosen_mode_is_the_one_in_brackets() {
        let mode = |text: &str| {
            let root = fake_root(&[("sys/kernel/mm/transparent_hugepage/enabled", text)]);
            anonymous_mode(root.path())
        };
        assert_eq!(
            mode("[always] madvise never\n"),
            MachineFact::Known(HugePageMode::Always)
        );
        assert_eq!(
            mode("always [madvise] never\n"),
            MachineFact::Known(HugePageMode::Advised)
        );
        let never = mode("always madvise [never]\n");
        assert_eq!(never, MachineFact::Known(HugePageMode::Never));
        assert!(never.refusal().unwrap().contains("never"));
        assert!(mode("always [madvise] never\n").refusal().is_none());
        for senseless in ["", "[", "always", "[sometimes]"] {
            assert!(mode(senseless).refusal().is_some(), "{senseless:?}");
        }
    }

    #[test]
    fn shared_memory_has_a_mode_of_its_own() {
        let text = "always within_size advise [never] deny force\n";
        let root = fake_root(&[("sys/kernel/mm/transparent_hugepage/shmem_enabled", text)]);
        assert_eq!(
            shared_mode(root.path()),
            MachineFact::Known(HugePageMode::Never)
        );
    }

    #[test]
    fn a_huge_page_is_a_power_of_two() {
        let bytes = |text: &str| {
            let root = fake_root(&[("sys/kernel/mm/transparent_hugepage/hpage_pmd_size", text)]);
            huge_page_bytes(root.path())
        };
        assert_eq!(bytes("2097152\n"), MachineFact::Known(2 << 20));
        for senseless in ["0\n", "3000000\n", "-1\n", "99999999999999999999\n"] {
            assert!(bytes(senseless).known().is_none(), "{senseless:?}");
        }
    }

    #[test]
    fn the_pool_is_read_in_bytes_and_pages() {
        let text = "HugePages_Total:       8\nHugePages_Free:        3\n\
                    Hugepagesize:       2048 kB\n";
        let root = fake_root(&[("proc/meminfo", text)]);
        let expected = HugePagePool {
            page_bytes: 2 << 20,
            total_pages: 8,
            free_pages: 3,
        };
        assert_eq!(pool(root.path()), MachineFact::Known(expected));
    }
}
