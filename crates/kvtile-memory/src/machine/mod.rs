//! Facts about this machine: pages, memory, limits, CPUs, io_uring.
//!
//! Every fact is read from the kernel (`/proc`, `/sys`, a system call), never from the environment.
//! An unknown fact carries the reason. This module changes nothing.

mod caches;
mod control_group;
mod io_uring;
mod memory;
mod pages;

pub use caches::DataCaches;
pub use control_group::{ControlGroupLimit, ControlGroupVersion};
pub use io_uring::IoUring;
pub use memory::{MemoryAmounts, ResourceLimit};
pub use pages::{HugePageMode, HugePagePool};

use serde::Serialize;
use std::path::Path;

/// A fact about the machine, or the reason why it is unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineFact<T> {
    /// The fact is known.
    Known(T),
    /// The fact is unknown.
    Unknown {
        /// Why not.
        reason: String,
    },
}

/// All facts of this module, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Machine {
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Bytes of a transparent huge page.
    pub huge_page_bytes: MachineFact<usize>,
    /// When anonymous memory gets huge pages.
    pub huge_pages: MachineFact<HugePageMode>,
    /// When shared memory gets huge pages.
    pub shared_huge_pages: MachineFact<HugePageMode>,
    /// Huge pages that the administrator reserved (hugetlb); kvtile does not use them.
    pub huge_page_pool: MachineFact<HugePagePool>,
    /// Memory and swap of the whole machine.
    pub memory: MachineFact<MemoryAmounts>,
    /// The lowest memory limit of the process's control groups; `None` without one.
    pub control_group_limit: MachineFact<Option<ControlGroupLimit>>,
    /// Memory that the process may lock (`RLIMIT_MEMLOCK`), which pinning and io_uring need.
    pub locked_memory: ResourceLimit,
    /// Address space that the process may use (`RLIMIT_AS`).
    pub address_space: ResourceLimit,
    /// CPUs that the process may use, by affinity and quota.
    pub cpus_allowed: MachineFact<usize>,
    /// CPUs that are online.
    pub cpus_online: MachineFact<usize>,
    /// Data and unified caches of one processor.
    pub caches: MachineFact<DataCaches>,
    /// Whether the kernel allows the process to set up an io_uring.
    pub io_uring: IoUring,
}

impl Machine {
    /// Reads all facts from the kernel.
    #[must_use]
    pub fn probe() -> Self {
        Self {
            page_bytes: rustix::param::page_size(),
            huge_page_bytes: pages::huge_page_bytes(Path::new("/")),
            huge_pages: pages::anonymous_mode(Path::new("/")),
            shared_huge_pages: pages::shared_mode(Path::new("/")),
            huge_page_pool: pages::pool(Path::new("/")),
            memory: memory::amounts(Path::new("/")),
            control_group_limit: control_group::limit(Path::new("/")),
            locked_memory: ResourceLimit::of(rustix::process::Resource::Memlock),
            address_space: ResourceLimit::of(rustix::process::Resource::As),
            cpus_allowed: cpus_allowed(),
            cpus_online: cpus_online(Path::new("/")),
            caches: DataCaches::probe(),
            io_uring: IoUring::probe(),
        }
    }
}

impl<T> MachineFact<T> {
    /// The fact, if it is known.
    #[must_use]
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(fact) => Some(fact),
            Self::Unknown { .. } => None,
        }
    }

    /// Why the fact is unknown, if it is.
    #[must_use]
    pub fn unknown_reason(&self) -> Option<&str> {
        match self {
            Self::Known(_) => None,
            Self::Unknown { reason } => Some(reason),
        }
    }

    fn unknown(reason: impl Into<String>) -> Self {
        Self::Unknown {
            reason: reason.into(),
        }
    }

    fn and_then<U>(self, next: impl FnOnce(T) -> MachineFact<U>) -> MachineFact<U> {
        match self {
            Self::Known(fact) => next(fact),
            Self::Unknown { reason } => MachineFact::Unknown { reason },
        }
    }

    fn from_option(fact: Option<T>, reason: impl FnOnce() -> String) -> Self {
        fact.map_or_else(|| Self::unknown(reason()), Self::Known)
    }
}

/// Bytes of a transparent huge page.
pub(crate) fn huge_page_size() -> Option<usize> {
    pages::huge_page_bytes(Path::new("/")).known().copied()
}

/// When anonymous memory gets huge pages.
pub(crate) fn transparent_huge_pages() -> MachineFact<HugePageMode> {
    pages::anonymous_mode(Path::new("/"))
}

/// When shared memory gets huge pages.
pub(crate) fn shared_huge_pages() -> MachineFact<HugePageMode> {
    pages::shared_mode(Path::new("/"))
}

/// Available memory and free swap, in bytes.
pub(crate) fn available_memory() -> Option<u64> {
    memory::amounts(Path::new("/")).known().map(|amounts| {
        amounts
            .available_bytes
            .saturating_add(amounts.swap_free_bytes)
    })
}

/// The lowest memory limit of this process's control groups, in bytes.
pub(crate) fn memory_limit() -> Option<u64> {
    let limit = control_group::limit(Path::new("/"));
    limit.known()?.as_ref().map(|limit| limit.limit_bytes)
}

fn cpus_allowed() -> MachineFact<usize> {
    match std::thread::available_parallelism() {
        Ok(count) => MachineFact::Known(count.get()),
        Err(error) => MachineFact::unknown(format!("the kernel does not report it: {error}")),
    }
}

fn cpus_online(root: &Path) -> MachineFact<usize> {
    let path = "sys/devices/system/cpu/online";
    read(root, path).and_then(|text| {
        let count = text.trim().split(',').map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
            last.checked_sub(first)?.checked_add(1)
        });
        MachineFact::from_option(count.sum(), || unclear(path, &text))
    })
}

/// The text of a kernel file; `path` is relative to `root`.
fn read(root: &Path, path: &str) -> MachineFact<String> {
    match std::fs::read_to_string(root.join(path)) {
        Ok(text) => MachineFact::Known(text),
        Err(error) => MachineFact::unknown(format!("cannot read /{path}: {error}")),
    }
}

fn unclear(path: &str, text: &str) -> String {
    let start: String = text.chars().take(60).collect();
    format!("/{path} has unexpected content: {start:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root folder with the given files.
    pub(super) fn fake_root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn online_cpus_are_counted_over_ranges() {
        let count =
            |text: &str| cpus_online(fake_root(&[("sys/devices/system/cpu/online", text)]).path());
        assert_eq!(count("0-1\n"), MachineFact::Known(2));
        assert_eq!(count("0,2-5,7\n"), MachineFact::Known(6));
        for senseless in ["", "a-b\n", "5-1\n", "0-18446744073709551615\n"] {
            assert!(count(senseless).unknown_reason().is_some(), "{senseless:?}");
        }
    }

    #[test]
    fn a_machine_without_proc_and_sys_gives_reasons_instead_of_numbers() {
        let root = tempfile::tempdir().unwrap();
        let reason = |fact: Option<&str>| assert!(fact.unwrap().contains("cannot read /"));
        reason(pages::huge_page_bytes(root.path()).unknown_reason());
        reason(pages::anonymous_mode(root.path()).unknown_reason());
        reason(pages::shared_mode(root.path()).unknown_reason());
        reason(pages::pool(root.path()).unknown_reason());
        reason(memory::amounts(root.path()).unknown_reason());
        reason(control_group::limit(root.path()).unknown_reason());
        reason(cpus_online(root.path()).unknown_reason());
    }

    #[test]
    fn this_machine_answers_consistently() {
        let machine = Machine::probe();
        assert!(machine.page_bytes.is_power_of_two());
        let memory = machine.memory.known().expect("Linux has /proc/meminfo");
        assert!(memory.available_bytes <= memory.total_bytes);
        assert!(*machine.cpus_allowed.known().unwrap() >= 1);
        let json = serde_json::to_value(&machine).unwrap();
        assert_eq!(json["page_bytes"], machine.page_bytes);
        assert_eq!(json["memory"]["known"]["total_bytes"], memory.total_bytes);
        eprintln!("{machine:#?}");
    }
}
