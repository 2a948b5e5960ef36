//! The checks of `kvtile doctor`, one line each.

use std::path::Path;

use kvtile::{
    memory::{
        DirectIo, FileMemory,
        machine::{HugePageMode, Machine, MachineFact, ResourceLimit},
    },
    transfer::FileIo,
};
use serde::Serialize;

use crate::output::{Screen, count};

/// Bytes of the trial file in a folder.
const TRIAL_BYTES: usize = 64 << 10;

/// Locked memory below which registering buffers soon fails.
const LOCKED_BYTES_MIN: u64 = 64 << 20;

/// The status of a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum CheckStatus {
    /// Nothing to improve.
    Ok,
    /// Can be improved.
    Improvable,
    /// Absent, but optional.
    Absent,
    /// Not detectable.
    Unknown,
}

impl CheckStatus {
    pub(super) fn mark(self, screen: Screen) -> String {
        match self {
            CheckStatus::Ok => screen.ansi("32", "✓"),
            CheckStatus::Improvable => screen.ansi("33;1", "!"),
            CheckStatus::Absent => screen.dim("–"),
            CheckStatus::Unknown => screen.dim("?"),
        }
    }
}

/// One checked feature.
#[derive(Debug, Serialize)]
pub(super) struct DoctorCheck {
    pub(super) name: String,
    pub(super) status: CheckStatus,
    /// What was found, or why the check failed.
    pub(super) found: String,
    /// The advice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) advice: Option<String>,
}

impl DoctorCheck {
    pub(super) fn new(name: &str, status: CheckStatus, found: impl Into<String>) -> DoctorCheck {
        DoctorCheck {
            name: name.to_owned(),
            status,
            found: found.into(),
            advice: None,
        }
    }

    pub(super) fn advice(mut self, advice: &str) -> DoctorCheck {
        self.advice = Some(advice.to_owned());
        self
    }

    fn of_fact<T>(
        name: &str,
        fact: &MachineFact<T>,
        known: impl FnOnce(&T) -> DoctorCheck,
    ) -> DoctorCheck {
        match fact {
            MachineFact::Known(value) => known(value),
            MachineFact::Unknown { reason } => {
                DoctorCheck::new(name, CheckStatus::Unknown, reason.clone())
            }
        }
    }
}

/// The checks of the kernel's facts.
pub(super) fn of_machine(machine: &Machine) -> Vec<DoctorCheck> {
    vec![
        cpus(machine),
        cpu_features(),
        memory(machine),
        memory_limit(machine),
        huge_pages("huge pages", &machine.huge_pages, "enabled", machine),
        huge_pages(
            "shared huge pages",
            &machine.shared_huge_pages,
            "shmem_enabled",
            machine,
        ),
        locked_memory(machine.locked_memory),
        io_uring(),
    ]
}

fn cpus(machine: &Machine) -> DoctorCheck {
    DoctorCheck::of_fact("cores", &machine.cpus_allowed, |&allowed| {
        match machine.cpus_online.known() {
            Some(&online) if online > allowed => DoctorCheck::new(
                "cores",
                CheckStatus::Improvable,
                format!("{allowed} of {online} online may be used"),
            )
            .advice("a CPU affinity or quota holds the rest back; lift it where the copies matter"),
            _ => DoctorCheck::new("cores", CheckStatus::Ok, format!("{allowed} may be used")),
        }
    })
}

fn cpu_features() -> DoctorCheck {
    let features = detected();
    let found = features.join(", ");
    if features.is_empty() {
        DoctorCheck::new(
            "vector units",
            CheckStatus::Unknown,
            "none that kvtile checks for",
        )
    } else {
        DoctorCheck::new("vector units", CheckStatus::Ok, found)
    }
}

#[cfg(target_arch = "x86_64")]
fn detected() -> Vec<&'static str> {
    let features = [
        ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
        ("FMA", std::arch::is_x86_feature_detected!("fma")),
        ("AVX-512F", std::arch::is_x86_feature_detected!("avx512f")),
        ("AVX-512BW", std::arch::is_x86_feature_detected!("avx512bw")),
    ];
    features
        .iter()
        .filter(|(_, has)| *has)
        .map(|(name, _)| *name)
        .collect()
}

#[cfg(target_arch = "aarch64")]
fn detected() -> Vec<&'static str> {
    let features = [("NEON", std::arch::is_aarch64_feature_detected!("neon"))];
    features
        .iter()
        .filter(|(_, has)| *has)
        .map(|(name, _)| *name)
        .collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detected() -> Vec<&'static str> {
    Vec::new()
}

fn memory(machine: &Machine) -> DoctorCheck {
    DoctorCheck::of_fact("memory", &machine.memory, |memory| {
        let found = format!(
            "{} of {} available",
            count(memory.available_bytes),
            count(memory.total_bytes)
        );
        DoctorCheck::new("memory", CheckStatus::Ok, found)
    })
}

fn memory_limit(machine: &Machine) -> DoctorCheck {
    let name = "memory limit";
    if let Some(bytes) = machine.address_space.soft_bytes {
        let found = format!("{} of address space (RLIMIT_AS)", count(bytes));
        return DoctorCheck::new(name, CheckStatus::Improvable, found)
            .advice("`ulimit -v unlimited` lifts it; mappings count fully against it");
    }
    DoctorCheck::of_fact(name, &machine.control_group_limit, |limit| {
        let Some(limit) = limit else {
            return DoctorCheck::new(name, CheckStatus::Ok, "none");
        };
        let found = format!("{} by {}", count(limit.limit_bytes), limit.path.display());
        let total = machine.memory.known().map(|memory| memory.total_bytes);
        if total.is_some_and(|total| limit.limit_bytes >= total) {
            return DoctorCheck::new(name, CheckStatus::Ok, found);
        }
        DoctorCheck::new(name, CheckStatus::Improvable, found).advice(
            "pools beyond it are killed, not refused, once their pages are touched; size them \
             below it or raise the limit of the container",
        )
    })
}

fn huge_pages(
    name: &str,
    fact: &MachineFact<HugePageMode>,
    file: &str,
    machine: &Machine,
) -> DoctorCheck {
    let size = machine.huge_page_bytes.known();
    let size = size.map_or(String::new(), |&bytes| {
        format!(" ({})", count(bytes as u64))
    });
    DoctorCheck::of_fact(name, fact, |mode| {
        let (status, found) = match mode {
            HugePageMode::Always => (CheckStatus::Ok, "always"),
            HugePageMode::Advised => (CheckStatus::Ok, "on request, and kvtile requests them"),
            HugePageMode::Never => (CheckStatus::Improvable, "never"),
            _ => (CheckStatus::Unknown, "in a mode that kvtile does not know"),
        };
        let check = DoctorCheck::new(name, status, format!("{found}{size}"));
        if status != CheckStatus::Improvable {
            return check;
        }
        let value = if file == "enabled" {
            "madvise"
        } else {
            "advise"
        };
        check.advice(&format!(
            "echo {value} | sudo tee /sys/kernel/mm/transparent_hugepage/{file}"
        ))
    })
}

fn locked_memory(limit: ResourceLimit) -> DoctorCheck {
    let name = "locked memory";
    match limit.soft_bytes {
        None => DoctorCheck::new(name, CheckStatus::Ok, "no limit"),
        Some(bytes) if bytes >= LOCKED_BYTES_MIN => {
            DoctorCheck::new(name, CheckStatus::Ok, format!("up to {}", count(bytes)))
        }
        Some(bytes) => DoctorCheck::new(
            name,
            CheckStatus::Improvable,
            format!("up to {}", count(bytes)),
        )
        .advice(
            "pinned memory and registered buffers need more: `ulimit -l unlimited`, or \
                 memlock in /etc/security/limits.conf",
        ),
    }
}

/// The way to read and write files, by the same probe that a transfer makes.
fn io_uring() -> DoctorCheck {
    let name = "io_uring";
    match FileIo::probe() {
        FileIo::IoUring => DoctorCheck::new(
            name,
            CheckStatus::Ok,
            "works; kvtile reads and writes files with it",
        ),
        FileIo::Threads { reason } => {
            let found = format!("{reason}; kvtile reads and writes files with threads");
            DoctorCheck::new(name, CheckStatus::Improvable, found)
                .advice("with io_uring, several reads and writes in flight need no threads")
        }
        _ => DoctorCheck::new(name, CheckStatus::Unknown, "no result"),
    }
}

/// Whether files in `folder` can bypass the page cache.
pub(super) fn direct_io(folder: &Path) -> DoctorCheck {
    let name = format!("direct I/O in {}", folder.display());
    let trial = FileMemory::options()
        .direct_io(true)
        .scratch(folder, TRIAL_BYTES);
    match trial {
        Err(error) => DoctorCheck::new(&name, CheckStatus::Unknown, format!("cannot try: {error}"))
            .advice("name a folder that exists and can be written with --folder"),
        Ok(file) => match file.direct_io() {
            DirectIo::Active { align } => {
                let found = format!("works, aligned to {align} bytes");
                DoctorCheck::new(&name, CheckStatus::Ok, found)
            }
            DirectIo::Unavailable { reason } => DoctorCheck::new(
                &name,
                CheckStatus::Improvable,
                reason,
            )
            .advice(
                "files there go through the page cache; ext4 and xfs on a disk support direct I/O",
            ),
            DirectIo::NotRequested => {
                DoctorCheck::new(&name, CheckStatus::Unknown, "not requested")
            }
        },
    }
}
