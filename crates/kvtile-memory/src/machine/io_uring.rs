//! Whether io_uring is available: the probe sets up a ring and closes it at once.

use super::read;
use rustix::io::Errno;
use rustix::io_uring::{io_uring_params, io_uring_setup};
use serde::Serialize;
use std::path::Path;

/// Whether the kernel allows the process to set up an io_uring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum IoUring {
    /// It does.
    Available {
        /// The feature bits that the kernel reports (`IORING_FEAT_*`).
        feature_bits: u32,
    },
    /// It does not.
    Unavailable {
        /// Why not, and what to change.
        reason: String,
    },
}

impl IoUring {
    /// Probes the kernel.
    #[must_use]
    pub fn probe() -> Self {
        let mut params = io_uring_params::default();
        // SAFETY: `params` is a valid, zeroed request: no flags, so the kernel uses no descriptor
        // or memory of ours and writes only its answer into `params`, which outlives the call.
        match unsafe { io_uring_setup(1, &mut params) } {
            Ok(_ring) => Self::Available {
                feature_bits: params.features.bits(),
            },
            Err(errno) => Self::Unavailable {
                reason: explain(errno, Path::new("/")),
            },
        }
    }
}

fn explain(errno: Errno, root: &Path) -> String {
    let path = "proc/sys/kernel/io_uring_disabled";
    let switch = read(root, path);
    match (errno, switch.known().map(|text| text.trim())) {
        (Errno::NOSYS, _) => "this kernel has no io_uring, or hides it".to_owned(),
        (Errno::PERM, Some(switch @ ("1" | "2"))) => {
            format!("/{path} is {switch}; 0 lets every process use it")
        }
        (Errno::PERM, _) => "a sandbox of this process forbids it (seccomp)".to_owned(),
        (Errno::NOMEM, _) => {
            "no memory, or the limit of locked memory (RLIMIT_MEMLOCK) is too low".to_owned()
        }
        _ => format!("the kernel refused: {errno}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::fake_root;
    use super::*;

    #[test]
    fn the_reason_names_the_switch_that_forbids() {
        let root = fake_root(&[("proc/sys/kernel/io_uring_disabled", "2\n")]);
        assert!(explain(Errno::PERM, root.path()).contains("io_uring_disabled is 2"));
        let root = fake_root(&[("proc/sys/kernel/io_uring_disabled", "0\n")]);
        assert!(explain(Errno::PERM, root.path()).contains("seccomp"));
        assert!(explain(Errno::NOSYS, root.path()).contains("no io_uring"));
    }

    #[test]
    fn this_kernel_is_probed() {
        match IoUring::probe() {
            IoUring::Available { feature_bits } => assert_ne!(feature_bits, 0),
            IoUring::Unavailable { reason } => eprintln!("no io_uring here: {reason}"),
        }
    }
}
