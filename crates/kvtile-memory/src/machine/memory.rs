//! The amounts of memory, and the resource limits of the process.

use super::{MachineFact, read};
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use std::path::Path;

/// Memory and swap of the whole machine, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryAmounts {
    /// Memory that the kernel manages.
    pub total_bytes: u64,
    /// Memory that can be used without swapping, as the kernel estimates it.
    pub available_bytes: u64,
    /// Swap that is free.
    pub swap_free_bytes: u64,
}

/// A resource limit of the process, in bytes; `None` means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ResourceLimit {
    /// The soft limit, which the kernel enforces.
    pub soft_bytes: Option<u64>,
    /// The hard limit, up to which the process may raise the soft one.
    pub hard_bytes: Option<u64>,
}

impl ResourceLimit {
    pub(super) fn of(resource: Resource) -> Self {
        let limit = getrlimit(resource);
        Self {
            soft_bytes: limit.current,
            hard_bytes: limit.maximum,
        }
    }
}

pub(super) fn amounts(root: &Path) -> MachineFact<MemoryAmounts> {
    let path = "proc/meminfo";
    read(root, path).and_then(|text| {
        let bytes = |name| field(&text, name)?.checked_mul(1024);
        let amounts = (|| {
            Some(MemoryAmounts {
                total_bytes: bytes("MemTotal")?,
                available_bytes: bytes("MemAvailable")?,
                swap_free_bytes: bytes("SwapFree").unwrap_or(0),
            })
        })();
        MachineFact::from_option(amounts, || {
            format!("/{path} lacks MemTotal or MemAvailable")
        })
    })
}

/// The number after `name:` in a text in the format of `/proc/meminfo`.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::fake_root;
    use super::*;

    #[test]
    fn amounts_are_in_bytes() {
        let text = "MemTotal:       24684092 kB\nMemFree: 1 kB\nMemAvailable:   23000000 kB\n\
                    SwapFree:          10 kB\n";
        let root = fake_root(&[("proc/meminfo", text)]);
        let expected = MemoryAmounts {
            total_bytes: 24_684_092 * 1024,
            available_bytes: 23_000_000 * 1024,
            swap_free_bytes: 10 * 1024,
        };
        assert_eq!(amounts(root.path()), MachineFact::Known(expected));
    }

    #[test]
    fn malformed_amounts_are_unknown() {
        for text in [
            "",
            "MemTotal: x kB\n",
            "MemTotal: 1 kB\n",
            "MemTotal:\nMemAvailable:\n",
        ] {
            let root = fake_root(&[("proc/meminfo", text)]);
            assert!(amounts(root.path()).known().is_none(), "{text:?}");
        }
        let text = "MemTotal: 18446744073709551615 kB\nMemAvailable: 1 kB\n";
        let root = fake_root(&[("proc/meminfo", text)]);
        assert!(amounts(root.path()).known().is_none());
    }
}
