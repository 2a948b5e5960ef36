//! The measured machine, as stored with the results.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use kvtile::memory::machine::{Machine, MachineFact};
use serde::{Deserialize, Serialize};

/// The facts of the machine that influence the results, and the version of kvtile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFacts {
    /// The name of the processor.
    pub cpu: String,
    /// Cores that the process may use.
    pub cores: u64,
    /// Caches of the first core, where known.
    pub caches: Option<CacheFacts>,
    /// Whether the processor reports a hypervisor.
    pub virtual_machine: bool,
    /// Memory of the machine, in bytes.
    pub memory_bytes: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Bytes of a transparent huge page, and the mode of the kernel.
    pub huge_pages: String,
    /// The version of the kernel.
    pub kernel: String,
    /// Vector units that copies may use.
    pub vector_units: Vec<String>,
    /// Version of kvtile.
    pub kvtile: String,
    /// The day of the run, in UTC.
    pub date: String,
}

/// Caches for data of one core, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheFacts {
    /// First level.
    pub level1_bytes: u64,
    /// Second level.
    pub level2_bytes: u64,
    /// The last level, which cores share.
    pub last_level_bytes: u64,
}

impl MachineFacts {
    /// Reads the facts from the kernel.
    #[must_use]
    pub fn probe() -> MachineFacts {
        let machine = Machine::probe();
        let cpu_info = read("/proc/cpuinfo");
        let line = |name: &str| {
            let mut lines = cpu_info.lines().filter_map(|line| line.split_once(':'));
            let found = lines.find(|(key, _)| key.trim() == name);
            found.map(|(_, value)| value.trim().to_owned())
        };
        let flags = line("flags").or(line("Features")).unwrap_or_default();
        let flag = |name: &str| flags.split_ascii_whitespace().any(|flag| flag == name);
        let vectors = ["sse2", "avx2", "avx512f", "avx512vbmi", "asimd", "sve"];
        let huge = match (&machine.huge_page_bytes, &machine.huge_pages) {
            (MachineFact::Known(bytes), MachineFact::Known(mode)) => {
                let mode = format!("{mode:?}").to_lowercase();
                format!("{} KiB, {mode}", bytes >> 10)
            }
            _ => "unknown".to_owned(),
        };
        MachineFacts {
            cpu: line("model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: machine
                .cpus_allowed
                .known()
                .map_or(1, |&cores| cores as u64),
            caches: machine.caches.known().map(|caches| CacheFacts {
                level1_bytes: caches.level1_bytes,
                level2_bytes: caches.level2_bytes,
                last_level_bytes: caches.last_level_bytes,
            }),
            virtual_machine: flag("hypervisor"),
            memory_bytes: machine
                .memory
                .known()
                .map_or(0, |memory| memory.total_bytes),
            page_bytes: machine.page_bytes as u64,
            huge_pages: huge,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            vector_units: vectors
                .iter()
                .filter(|name| flag(name))
                .map(|&name| name.to_owned())
                .collect(),
            kvtile: env!("CARGO_PKG_VERSION").to_owned(),
            date: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or_else(|_| String::new(), |since| date(since.as_secs() / 86_400)),
        }
    }

    /// Payload of a cell that fits the second-level cache on both sides, with room for other data.
    #[must_use]
    pub fn cache_cell_bytes(&self) -> u64 {
        self.caches.map_or(1 << 20, |caches| caches.level2_bytes) / 4
    }

    /// Available bytes, by the machine and by the control group.
    #[must_use]
    pub fn available_bytes() -> Option<u64> {
        let machine = Machine::probe();
        let memory = machine.memory.known().map(|memory| memory.available_bytes);
        let limit = machine.control_group_limit.known().and_then(Option::as_ref);
        let limit = limit.map(|limit| limit.limit_bytes);
        limit.into_iter().chain(memory).min()
    }
}

fn read(path: &str) -> String {
    // A fact that the kernel does not report is shown as unknown.
    fs::read_to_string(path).unwrap_or_default()
}

/// The date of a day counted from 1970-01-01 (Howard Hinnant: chrono-compatible low-level date
/// algorithms, `civil_from_days`).
fn date(days: u64) -> String {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_dates() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(19_782), "2024-02-29");
        assert_eq!(date(20_514), "2026-03-02");
    }

    #[test]
    fn the_machine_has_its_facts() {
        let facts = MachineFacts::probe();
        assert!(facts.cores > 0 && facts.page_bytes > 0);
        eprintln!("{facts:#?}");
    }
}
