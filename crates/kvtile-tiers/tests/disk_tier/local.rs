//! A folder on a file system that is not known to be local: a FUSE file system that the test
//! serves.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::fd::AsRawFd,
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use crate::common::{room_for, usual};
use kvtile_tiers::{
    FolderError, TierError,
    disk::{Inspection, SlotStore, medium::FolderMedium},
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// Opcodes of kernel requests (`include/uapi/linux/fuse.h`).
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const RELEASEDIR: u32 = 29;
const ACCESS: u32 = 34;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

/// Requests that change nothing.
const HARMLESS: [u32; 14] = [
    LOOKUP,
    FORGET,
    GETATTR,
    STATFS,
    RELEASE,
    FLUSH,
    INIT,
    OPENDIR,
    READDIR,
    RELEASEDIR,
    ACCESS,
    INTERRUPT,
    DESTROY,
    BATCH_FORGET,
];

/// An empty FUSE file system that a thread of this process serves, with the opcodes of its
/// requests.
struct ServedFuse<'a> {
    at: &'a Path,
    asked: Arc<Mutex<Vec<u32>>>,
}

impl ServedFuse<'_> {
    /// Mounts it at `at`; the error is the reason why that is not possible here.
    fn mount(at: &Path) -> Result<ServedFuse<'_>, String> {
        let device = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse");
        let device = device.map_err(|error| format!("/dev/fuse: {error}"))?;
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0\0",
            device.as_raw_fd()
        );
        let data = std::ffi::CString::from_vec_with_nul(data.into_bytes()).unwrap();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("kvtile", at, "fuse.kvtile-test", flags, data.as_c_str())
            .map_err(|errno| format!("mount: {errno}"))?;
        let asked = Arc::default();
        let heard = Arc::clone(&asked);
        thread::spawn(move || serve(device, &heard));
        Ok(ServedFuse { at, asked })
    }
}

impl Drop for ServedFuse<'_> {
    fn drop(&mut self) {
        unmount(self.at, UnmountFlags::DETACH).unwrap();
    }
}

/// Serves requests until the unmount.
fn serve(mut device: File, asked: &Mutex<Vec<u32>>) {
    let mut request = vec![0; 1 << 20];
    while let Ok(length) = device.read(&mut request) {
        assert!(length >= 40);
        let word = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().unwrap());
        let opcode = word(4);
        asked.lock().unwrap().push(opcode);
        let (error, body) = answer(opcode);
        if matches!(opcode, FORGET | BATCH_FORGET | INTERRUPT) {
            continue;
        }
        let mut reply = Vec::new();
        let length = u32::try_from(16 + body.len()).unwrap();
        reply.extend_from_slice(&length.to_le_bytes());
        reply.extend_from_slice(&error.to_le_bytes());
        reply.extend_from_slice(&request[8..16]);
        reply.extend_from_slice(&body);
        if device.write(&reply).is_err() {
            return;
        }
    }
}

fn answer(opcode: u32) -> (i32, Vec<u8>) {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    match opcode {
        // Protocol version 7.31, no flags, writes of up to 128 KiB.
        INIT => {
            let mut body = vec![7, 31, 1 << 17, 0, 0, 1 << 17, 1];
            body.resize(16, 0);
            (0, words(&body))
        }
        // Valid for one second: inode 1, a folder with mode 0755 and two links.
        GETATTR => {
            let mut body = vec![0; 26];
            body[0] = 1;
            body[4] = 1;
            body[19] = 0o040_755;
            body[20] = 2;
            (0, words(&body))
        }
        OPENDIR => (0, words(&[0; 4])),
        STATFS => (0, words(&[0; 20])),
        READDIR | RELEASE | RELEASEDIR | FLUSH | ACCESS | DESTROY => (0, Vec::new()),
        LOOKUP => (-libc::ENOENT, Vec::new()),
        _ => (-libc::ENOSYS, Vec::new()),
    }
}

#[test]
fn a_folder_on_a_file_system_that_is_not_known_to_be_local_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let served = match ServedFuse::mount(folder.path()) {
        Ok(served) => served,
        Err(reason) => {
            println!("skipped: no FUSE file system can be mounted here: {reason}");
            return;
        }
    };
    let identity = usual();
    let settings = room_for(8, &identity);
    for path in [
        folder.path().to_owned(),
        folder.path().join("not/there/yet"),
    ] {
        let error = SlotStore::create_or_open(&path, &settings, &identity).unwrap_err();
        match &error {
            TierError::Folder(FolderError::NotLocal {
                folder,
                file_system,
            }) => {
                assert_eq!(folder, path.to_str().unwrap());
                assert_eq!(file_system, "fuse.kvtile-test");
            }
            other => panic!("{other}"),
        }
        let text = error.to_string();
        for part in [
            "fuse.kvtile-test",
            "Give a folder on a disk of this machine",
            "ext4",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
    // Clearing would write, and is refused; inspecting only reads.
    assert!(kvtile_tiers::disk::clear(&FolderMedium::new(folder.path())).is_err());
    assert!(matches!(
        Inspection::open(folder.path()),
        Err(TierError::Folder(FolderError::NotAStore { .. }))
    ));
    let asked = served.asked.lock().unwrap().clone();
    assert!(asked.contains(&STATFS), "{asked:?}");
    let written: Vec<u32> = asked
        .into_iter()
        .filter(|what| !HARMLESS.contains(what))
        .collect();
    // GETXATTR (22) is harmless too; there were no other requests.
    assert!(written.iter().all(|what| *what == 22), "{written:?}");
    drop(served);
    // The same path after the unmount.
    SlotStore::create_or_open(folder.path(), &settings, &identity).unwrap();
}
