//! File systems for tests: one of SeaweedFS, mounted by FUSE, which several machines share, and one that is soon full.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    kinds::{InstalledServers, SeaweedServer},
    process::{ServerCommand, ServerError, ServerProcess, show},
};

/// A mounted folder of a server. Dropped, it is unmounted.
#[derive(Debug)]
pub struct MountedFolder {
    /// Where it is mounted.
    pub path: PathBuf,
    process: ServerProcess,
}

impl MountedFolder {
    /// Mounts the folder `/shared` of a server below `folder`, in a folder of its own.
    ///
    /// # Errors
    /// FUSE is not available to this user, or the mount fails.
    pub fn mount(
        servers: &InstalledServers,
        server: &SeaweedServer,
        folder: &Path,
    ) -> Result<MountedFolder, ServerError> {
        check_fuse(servers)?;
        let (path, cache) = (folder.join("mounted"), folder.join("cache"));
        for new in [&path, &cache] {
            fs::create_dir_all(new).map_err(|error| ServerError::system(show(new), error))?;
        }
        let words = [
            "mount".to_owned(),
            format!("-filer={}", server.filer),
            format!("-dir={}", path.display()),
            "-filer.path=/shared".to_owned(),
            format!("-cacheDir={}", cache.display()),
            "-cacheCapacityMB=0".to_owned(),
            format!("-localSocket={}", folder.join("mount.sock").display()),
        ];
        let command = ServerCommand {
            name: "SeaweedFS's mount".to_owned(),
            program: server.program.clone(),
            arguments: words.into_iter().map(Into::into).collect(),
            variables: Vec::new(),
            log: folder.join("mount.log"),
            within: Duration::from_secs(20),
        };
        let process = ServerProcess::start(command, 0, |_| true)?;
        let mut mounted = MountedFolder { path, process };
        mounted.await_mount(Duration::from_secs(20))?;
        Ok(mounted)
    }

    fn await_mount(&mut self, within: Duration) -> Result<(), ServerError> {
        let began = std::time::Instant::now();
        while !is_mounted(&self.path) {
            if began.elapsed() > within {
                let what = format!("{} is not mounted after {within:?}", self.path.display());
                return Err(ServerError::system(what, std::io::ErrorKind::TimedOut));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The process that serves the mount.
    #[must_use]
    pub fn process(&self) -> &ServerProcess {
        &self.process
    }
}

impl Drop for MountedFolder {
    fn drop(&mut self) {
        // The mount would stay behind, and every access to it fail.
        let _ = unmount(&self.path, UnmountFlags::DETACH);
        self.process.kill();
    }
}

/// A file system in memory of few bytes. Dropped, it is unmounted.
#[derive(Debug)]
pub struct SmallDisk {
    /// Where it is mounted.
    pub path: PathBuf,
}

impl SmallDisk {
    /// Mounts a file system of 1 MiB in a folder.
    ///
    /// # Errors
    /// This user may not mount.
    pub fn mount(folder: &Path) -> Result<SmallDisk, ServerError> {
        if !rustix::process::geteuid().is_root() {
            return Err(ServerError::NotInstalled {
                what: "a small file system",
                remedy: "only root may mount here".to_owned(),
            });
        }
        let mounted = mount("tmpfs", folder, "tmpfs", MountFlags::empty(), c"size=1m");
        mounted.map_err(|error| ServerError::system(show(folder), error))?;
        Ok(SmallDisk {
            path: folder.to_owned(),
        })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}

fn check_fuse(servers: &InstalledServers) -> Result<(), ServerError> {
    let remedy = match () {
        () if !Path::new("/dev/fuse").exists() => "this machine has no /dev/fuse",
        () if !rustix::process::geteuid().is_root() => "only root may mount here",
        () if servers.in_path("fusermount3").is_none() => "`apt-get install fuse3` installs it",
        () => return Ok(()),
    };
    Err(ServerError::NotInstalled {
        what: "FUSE",
        remedy: remedy.to_owned(),
    })
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let path = path.display().to_string();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == Some(path.as_str()))
}
