//! The file systems that are known to be local: only one machine mounts them, so a lock on a folder
//! excludes every other process that could open it.
//!
//! On network, shared and user-space file systems, a lock may bind one machine or one mount only,
//! and two stores would overwrite each other's blocks. So every file system that is not on the list
//! is refused. No setting overrides that, because nothing would make it safe.
//!
//! - Two containers or namespaces of one machine that share a folder by bind mounts have the same
//!   folder, and its lock excludes one of them.
//! - `overlay`, the root of most containers, counts as local. Its upper layer belongs to one mount:
//!   the kernel documents two mounts of one upper layer as undefined
//!   (`Documentation/filesystems/overlayfs.rst`), and lower layers are never written. So two
//!   machines never share one overlay, wherever its layers are.
//! - `fuseblk` is a user-space driver of a block device (NTFS) that one machine mounts at a time,
//!   and the name means nothing else. Any other kind of FUSE, `virtiofs` included, may be remote.
//! - Block devices that several machines reach (iSCSI) are as local as their file system: mounting
//!   ext4 twice destroys the file system itself.
//!
//! The numbers are from Linux, `include/uapi/linux/magic.h` and `statfs(2)`; those of ZFS and
//! bcachefs are from their own sources, because `statfs(2)` does not list them.

use std::fs;

use rustix::{
    fd::{AsFd, AsRawFd},
    fs::fstatfs,
};

/// The number of FUSE of every kind.
const FUSE: u32 = 0x6573_5546;

/// Local file systems: the number from `statfs`, and the type names of their mounts.
const LOCAL: [(u32, &[&str]); 18] = [
    (0x0000_ef53, &["ext2", "ext3", "ext4"]),
    (0x5846_5342, &["xfs"]),
    (0x9123_683e, &["btrfs"]),
    (0xf2f5_2010, &["f2fs"]),
    (0x2fc1_2fc1, &["zfs"]),
    (0xca45_1a4e, &["bcachefs"]),
    (0x0102_1994, &["tmpfs", "devtmpfs", "rootfs"]),
    (0x8584_58f6, &["ramfs", "rootfs"]),
    (0x794c_7630, &["overlay"]),
    (0x3153_464a, &["jfs"]),
    (0x5265_4973, &["reiserfs"]),
    (0x0000_3434, &["nilfs2"]),
    (0x0000_482b, &["hfsplus"]),
    (0x0000_4d44, &["vfat", "msdos"]),
    (0x2011_bab0, &["exfat"]),
    (0x7366_746e, &["ntfs3", "ntfs"]),
    (0x5346_544e, &["ntfs"]),
    (FUSE, &["fuseblk"]),
];

/// Names of other file systems, used if the mount cannot be looked up.
const OTHERS: [(u32, &str); 21] = [
    (0x0000_6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb3"),
    (0x0000_517b, "smb"),
    (0x0102_1997, "9p"),
    (FUSE, "fuse"),
    (0x00c3_6400, "ceph"),
    (0x0bd0_0bd0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x5346_414f, "afs"),
    (0x6b41_4653, "afs"),
    (0x7375_7245, "coda"),
    (0x7461_636f, "ocfs2"),
    (0x0116_1970, "gfs2"),
    (0x2003_0528, "orangefs"),
    (0x1983_0326, "beegfs"),
    (0xaad7_aaea, "panfs"),
    (0x786f_4256, "vboxsf"),
    (0x7c7c_6673, "prl_fs"),
    (0xbacb_acbc, "vmhgfs"),
    (0x0000_f15f, "ecryptfs"),
];

/// The file system of a folder is not known to be local; the inner error of a medium's
/// [`std::io::Error`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file_system} is not known to be a local file system")]
pub struct NotLocal {
    /// The name of the file system.
    pub file_system: String,
}

impl From<NotLocal> for std::io::Error {
    fn from(error: NotLocal) -> std::io::Error {
        std::io::Error::new(std::io::ErrorKind::Unsupported, error)
    }
}

/// Refuses a file or folder that is not on a local file system.
pub(super) fn check_local(fd: impl AsFd) -> std::io::Result<()> {
    let magic = fstatfs(&fd)?.f_type;
    // Kernels return a signed word of the machine's size, of which 32 bits are the number.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the upper bits are none or the sign"
    )]
    let magic = magic as u32;
    let name = mount_name(fd.as_fd().as_raw_fd());
    Ok(judge(magic, name.as_deref())?)
}

/// Checks that a file system is known to be local: by its number and, if the mount can be looked
/// up, by its name; both must match.
fn judge(magic: u32, name: Option<&str>) -> Result<(), NotLocal> {
    let of_number = LOCAL.iter().filter(|(number, _)| *number == magic);
    let mut names = of_number.flat_map(|(_, names)| names.iter());
    let local = match name {
        Some(name) => names.any(|local| *local == name),
        // The number of FUSE alone is not enough.
        None => names.next().is_some() && magic != FUSE,
    };
    if local {
        return Ok(());
    }
    let known = OTHERS.iter().find(|(number, _)| *number == magic);
    let file_system = match (name, known) {
        (Some(name), _) => name.to_owned(),
        (None, Some((_, name))) => (*name).to_owned(),
        (None, None) => format!("the file system with number {magic:#x}"),
    };
    Err(NotLocal { file_system })
}

/// The type of the mount that an open file is on, such as `fuse.sshfs`.
fn mount_name(fd: i32) -> Option<String> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mount_type(&mounts, id.trim())
}

/// The type of the mount with the id `id`: `27 1 254:0 / / rw - ext4 /dev/vda rw`.
fn mount_type(mounts: &str, id: &str) -> Option<String> {
    let mut lines = mounts.lines();
    let line = lines.find(|line| line.split(' ').next() == Some(id))?;
    let (_, rest) = line.split_once(" - ")?;
    rest.split(' ').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The whole table: each number with each of its names, without a name, and with every other
    /// name.
    #[test]
    fn a_file_system_is_local_only_if_number_and_name_match() {
        for (number, names) in LOCAL {
            for (other, others) in LOCAL {
                for name in others {
                    let both = LOCAL
                        .iter()
                        .any(|(n, names)| *n == number && names.contains(name));
                    assert_eq!(judge(number, Some(name)).is_ok(), both, "{other:#x} {name}");
                }
            }
            assert_eq!(judge(number, None).is_ok(), number != FUSE);
            assert!(!names.is_empty());
            for foreign in ["nfs", "fuse.sshfs", "9p", "", "EXT4", "ext4 ", "fuse"] {
                assert!(
                    judge(number, Some(foreign)).is_err(),
                    "{number:#x} {foreign}"
                );
            }
        }
        for (number, known) in OTHERS {
            assert_eq!(judge(number, None).unwrap_err().file_system, known);
            let names = [
                "nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "lustre", "gpfs",
            ];
            let fuse = [
                "fuse",
                "fuse.sshfs",
                "fuse.glusterfs",
                "fuse.s3fs",
                "fuse.bindfs",
            ];
            for name in names.into_iter().chain(fuse) {
                assert_eq!(judge(number, Some(name)).unwrap_err().file_system, name);
            }
        }
        let unknown = judge(0x1234_5678, None).unwrap_err().file_system;
        assert_eq!(unknown, "the file system with number 0x12345678");
        for name in ["ext4", "xfs", "squashfs", "proc", "aufs"] {
            assert!(judge(0x1234_5678, Some(name)).is_err());
        }
    }

    #[test]
    fn no_number_is_on_both_lists_but_that_of_fuse() {
        for (number, _) in OTHERS.iter().filter(|(number, _)| *number != FUSE) {
            assert!(
                LOCAL.iter().all(|(local, _)| local != number),
                "{number:#x}"
            );
        }
    }

    #[test]
    fn the_type_of_a_mount_is_found_by_its_number() {
        let mounts = "\
            22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw\n\
            270 27 0:50 / /mnt/a\\040-\\040b rw - fuse.sshfs host:/x rw,user_id=0\n";
        let of = |id| mount_type(mounts, id);
        assert_eq!(of("27").as_deref(), Some("ext4"));
        assert_eq!(of("270").as_deref(), Some("fuse.sshfs"));
        assert_eq!(of("2"), None);
        let here = fs::File::open("/proc/self").unwrap();
        assert_eq!(mount_name(here.as_raw_fd()).as_deref(), Some("proc"));
        assert_eq!(
            check_local(&here).unwrap_err().to_string(),
            "proc is not known to be a local file system"
        );
    }
}
