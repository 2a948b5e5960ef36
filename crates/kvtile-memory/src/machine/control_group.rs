//! The memory limit of the process's control groups (cgroups), version 1 or 2.
//!
//! A process is in one group of a tree. The limits of all ancestor groups apply too, as far as they
//! are visible (inside a container, the tree ends at the container).

use super::{MachineFact, read};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The lowest limit found, and its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ControlGroupLimit {
    /// Bytes that the group may use.
    pub limit_bytes: u64,
    /// The file that contains the limit.
    pub path: PathBuf,
    /// The version of control groups.
    pub version: ControlGroupVersion,
}

/// The two versions of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlGroupVersion {
    /// Version 1: one tree for each controller.
    V1,
    /// Version 2: one tree for all controllers.
    V2,
}

/// Version 1 writes "no limit" as a huge number; numbers from here on mean no limit.
const NO_LIMIT_FROM: u64 = 1 << 62;

pub(super) fn limit(root: &Path) -> MachineFact<Option<ControlGroupLimit>> {
    read(root, "proc/self/cgroup").and_then(|groups| {
        read(root, "proc/self/mountinfo").and_then(|mounts| {
            let files = groups
                .lines()
                .filter_map(|line| limit_files(root, line, &mounts))
                .flatten();
            let limits = files.filter_map(|(version, path)| {
                let text = std::fs::read_to_string(&path).ok()?;
                let limit_bytes = text.trim().parse().ok()?;
                (limit_bytes < NO_LIMIT_FROM).then_some(ControlGroupLimit {
                    limit_bytes,
                    path,
                    version,
                })
            });
            MachineFact::Known(limits.min_by_key(|limit| limit.limit_bytes))
        })
    })
}

/// The limit files of one line of `/proc/self/cgroup`, from its group up to the root of the tree.
fn limit_files(
    root: &Path,
    line: &str,
    mounts: &str,
) -> Option<Vec<(ControlGroupVersion, PathBuf)>> {
    let mut parts = line.splitn(3, ':');
    let hierarchy = parts.next()?;
    let controllers = parts.next()?;
    let group = parts.next()?;
    let (version, file) = if hierarchy == "0" && controllers.is_empty() {
        (ControlGroupVersion::V2, "memory.max")
    } else if controllers.split(',').any(|name| name == "memory") {
        (ControlGroupVersion::V1, "memory.limit_in_bytes")
    } else {
        return None;
    };
    let (mounted_group, mount_point) = mounts.lines().find_map(|mount| mount_of(mount, version))?;
    let top = root.join(mount_point.trim_start_matches('/'));
    // Inside a container the group may be relative to a tree that is not mounted here; then the top
    // of the mount is the group itself.
    let below = group.strip_prefix(mounted_group).unwrap_or(group);
    let mut folder = top.join(below.trim_start_matches('/'));
    let mut files = Vec::new();
    while folder.starts_with(&top) {
        files.push((version, folder.join(file)));
        if !folder.pop() {
            break;
        }
    }
    Some(files)
}

/// Group and folder of a mount of the tree, from a line of `/proc/self/mountinfo`:
/// `36 35 98:0 /group /folder options ... - type source super-options`.
fn mount_of(line: &str, version: ControlGroupVersion) -> Option<(&str, &str)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut filesystem = filesystem.split(' ');
    let right = match (filesystem.next()?, version) {
        ("cgroup2", ControlGroupVersion::V2) => true,
        ("cgroup", ControlGroupVersion::V1) => filesystem
            .nth(1)?
            .split(',')
            .any(|option| option == "memory"),
        _ => false,
    };
    let mut fields = mount.split(' ').skip(3);
    let group = fields.next()?;
    let folder = fields.next()?;
    right.then_some((if group == "/" { "" } else { group }, folder))
}

#[cfg(test)]
mod tests {
    use super::super::tests::fake_root;
    use super::*;

    const V2_MOUNT: &str = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";

    fn found(files: &[(&str, &str)]) -> Option<(u64, ControlGroupVersion)> {
        let root = fake_root(files);
        let limit = limit(root.path());
        let limit = limit.known().expect("both files of proc are there");
        limit
            .as_ref()
            .map(|limit| (limit.limit_bytes, limit.version))
    }

    #[test]
    fn version_2_takes_the_least_limit_up_the_tree() {
        let files = [
            ("proc/self/cgroup", "0::/a/b\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/a/memory.max", "1000000\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
        ];
        assert_eq!(found(&files), Some((1_000_000, ControlGroupVersion::V2)));
    }

    #[test]
    fn version_1_without_a_limit_is_no_limit() {
        let mount = "31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let group = ("proc/self/cgroup", "4:memory:/x\n0::/\n");
        let mounts = ("proc/self/mountinfo", mount);
        let file = "sys/fs/cgroup/memory/x/memory.limit_in_bytes";
        assert_eq!(
            found(&[group, mounts, (file, "9223372036854771712\n")]),
            None
        );
        assert_eq!(
            found(&[group, mounts, (file, "4096\n")]),
            Some((4096, ControlGroupVersion::V1))
        );
    }

    #[test]
    fn a_container_that_mounts_its_own_group_finds_it_at_the_top() {
        let mount = "31 24 0:27 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
        let files = [
            ("proc/self/cgroup", "0::/docker/abc\n"),
            ("proc/self/mountinfo", mount),
            ("sys/fs/cgroup/memory.max", "5000\n"),
        ];
        assert_eq!(found(&files), Some((5000, ControlGroupVersion::V2)));
    }

    #[test]
    fn a_group_that_is_not_mounted_here_falls_back_to_the_mount() {
        let files = [
            ("proc/self/cgroup", "0::/../elsewhere\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/memory.max", "7000\n"),
        ];
        assert_eq!(found(&files), Some((7000, ControlGroupVersion::V2)));
    }

    #[test]
    fn malformed_lines_are_skipped() {
        for (groups, mounts) in [("", ""), (":::\n", V2_MOUNT), ("0::/\n", "x - \n - y\n")] {
            let files = [
                ("proc/self/cgroup", groups),
                ("proc/self/mountinfo", mounts),
            ];
            assert_eq!(found(&files), None);
        }
    }
}
