//! The socket of a daemon.

use std::{
    fs::{File, OpenOptions},
    io::{self, PipeReader},
    os::unix::{
        fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use kvtile_daemon_wire::{RefusalCode, RefusalFrame};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::FlockOperation,
};

use crate::{DaemonError, DaemonParts, RunningSession, session};

/// How often the listener looks for sessions that have ended, in nanoseconds.
const LOOK_AFTER: i64 = 50_000_000;

/// A socket that only this daemon serves.
pub(crate) struct DaemonSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Its lock shows other daemons that this one lives; the kernel releases it with the process.
    _lock: File,
}

impl DaemonSocket {
    /// Makes the socket with mode 0600. The socket that a dead daemon left is replaced.
    pub(crate) fn bind(path: &Path) -> Result<DaemonSocket, DaemonError> {
        let failed = |operation| DaemonError::socket(operation, path);
        let mut lock_path = path.as_os_str().to_owned();
        lock_path.push(".lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed("lock the socket"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DaemonError::InUse {
                    socket: path.display().to_string(),
                });
            }
            Err(errno) => return Err(failed("lock the socket")(errno.into())),
        }
        match std::fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => {
                std::fs::remove_file(path).map_err(failed("replace the old socket"))?;
            }
            Ok(_) => {
                return Err(DaemonError::NotASocket {
                    socket: path.display().to_string(),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("examine the socket")(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed("make the socket"))?;
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(path, mode).map_err(failed("protect the socket"))?;
        listener
            .set_nonblocking(true)
            .map_err(failed("listen on the socket"))?;
        Ok(DaemonSocket {
            listener,
            path: path.to_path_buf(),
            _lock: lock,
        })
    }

    /// The next client; `None` if none came for a short time, or once the other end of `stop` is
    /// closed.
    fn accept(&self, stop: &PipeReader) -> Option<UnixStream> {
        let mut fds = [
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        let time = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK_AFTER,
        };
        let _ = poll(&mut fds, Some(&time));
        match self.listener.accept() {
            Ok((stream, _)) => Some(stream),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                log::warn!("cannot accept a client: {error}");
                // Out of descriptors: the loop must not spin.
                std::thread::sleep(std::time::Duration::from_millis(50));
                None
            }
        }
    }
}

impl Drop for DaemonSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Accepts clients until the daemon stops, which closes the other end of `stop`.
pub(crate) fn serve(parts: &Arc<DaemonParts>, socket: DaemonSocket, stop: &PipeReader) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    while !parts.is_stopping.load(Ordering::Acquire) {
        let stream = socket.accept(stop);
        parts
            .sessions
            .lock()
            .retain(|running| !running.thread.is_finished());
        let Some(stream) = stream else {
            continue;
        };
        if let Err(refusal) = check(parts, &stream) {
            session::refuse(&stream, &refusal);
            continue;
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        match session::start(parts, stream, number) {
            Ok((session, thread)) => {
                let running = RunningSession { session, thread };
                parts.sessions.lock().push(running);
            }
            Err(error) => log::warn!("a client is not served: {error}"),
        }
    }
    drop(socket);
}

/// Refuses other users, and clients above the limit.
fn check(parts: &DaemonParts, stream: &UnixStream) -> Result<(), RefusalFrame> {
    let ours = rustix::process::geteuid();
    let peer = rustix::net::sockopt::socket_peercred(stream);
    match peer {
        Ok(peer) if peer.uid == ours => {}
        Ok(peer) => {
            return Err(RefusalFrame::new(
                RefusalCode::Settings,
                format!(
                    "the daemon serves user {}, and this process runs as user {}",
                    ours.as_raw(),
                    peer.uid.as_raw()
                ),
            ));
        }
        Err(errno) => {
            let text = format!("the daemon cannot tell the user of this process: {errno}");
            return Err(RefusalFrame::new(RefusalCode::Settings, text));
        }
    }
    let most = parts.settings.sessions_max;
    match parts.sessions.lock().len() < most {
        true => Ok(()),
        false => Err(RefusalFrame::new(
            RefusalCode::Settings,
            format!("the daemon serves {most} clients at a time, and all places are taken"),
        )),
    }
}
