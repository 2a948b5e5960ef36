//! Environments with engines or servers: gigabytes, so they are in the user's cache folder, named by their versions, and shared by
//! all checkouts.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
};

use crate::{
    python::{self, WheelProfile},
    step::StepFailure,
};

/// An environment to create: what is installed into it, and how.
pub(crate) struct CachedEnvironment<'a> {
    /// The folder's name, with the engines' versions.
    pub(crate) name: &'a str,
    /// Disk space for creating it, in GB.
    pub(crate) needed_gb: u64,
    /// Packages that replace the versions that others require.
    pub(crate) overrides: &'a [&'a str],
    /// Packages with their dependencies.
    pub(crate) packages: &'a [&'a str],
    /// Packages without their dependencies.
    pub(crate) alone: &'a [&'a str],
}

impl CachedEnvironment<'_> {
    /// The environment's folder, and its lock. The lock admits one command at a time, because each installs its own
    /// package.
    pub(crate) fn install(&self) -> Result<(PathBuf, File), StepFailure> {
        let folder = cache_folder()?.join("kvtile");
        let environment = folder.join(self.name);
        let lock = lock(&folder, self.name)?;
        let stamp = environment.join("packages.txt");
        let wanted = [self.overrides, self.alone, self.packages].concat();
        let wanted = wanted.join("\n");
        if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            return Ok((environment, lock));
        }
        self.check_room(&folder)?;
        python::make_environment(&environment)?;
        let pip = ["-m", "pip", "install", "--quiet", "uv>=0.9"];
        python::run_with(&environment, "python", &pip, &[])?;
        let install = ["pip", "install"];
        if !self.overrides.is_empty() {
            uv(&environment, install.iter().chain(self.overrides))?;
        }
        let overrides = environment.join("overrides.txt");
        fs::write(&overrides, self.overrides.join("\n"))
            .map_err(|error| python::file(&overrides, &error))?;
        let overrides = overrides.display().to_string();
        let with = ["pip", "install", "--override", overrides.as_str()];
        uv(&environment, with.iter().chain(self.packages))?;
        let without = ["pip", "install", "--no-deps"];
        if !self.alone.is_empty() {
            uv(&environment, without.iter().chain(self.alone))?;
        }
        fs::write(&stamp, wanted).map_err(|error| python::file(&stamp, &error))?;
        Ok((environment, lock))
    }

    /// Fails early if the disk has too little space.
    fn check_room(&self, folder: &Path) -> Result<(), StepFailure> {
        let error = |error: rustix::io::Errno| python::file(folder, &error.into());
        let found = rustix::fs::statvfs(folder).map_err(error)?;
        let free_gb = found.f_bavail.saturating_mul(found.f_frsize) / 1_000_000_000;
        if free_gb < self.needed_gb {
            return Err(StepFailure::Tool(format!(
                "{} has {free_gb} GB free, and {} takes {}; set XDG_CACHE_HOME to another folder",
                folder.display(),
                self.name,
                self.needed_gb
            )));
        }
        Ok(())
    }
}

/// Waits until no other checkout uses the environment.
fn lock(folder: &Path, name: &str) -> Result<File, StepFailure> {
    fs::create_dir_all(folder).map_err(|error| python::file(folder, &error))?;
    let path = folder.join(format!("{name}.lock"));
    let file = File::create(&path).map_err(|error| python::file(&path, &error))?;
    if file.try_lock().is_err() {
        eprintln!("another command uses {name}; waiting for it");
        file.lock().map_err(|error| python::file(&path, &error))?;
    }
    Ok(file)
}

/// The environment variable with which Python keeps compiled modules beside the environment's: compiling an engine's
/// modules takes most of its start, and the tests start engines by the dozen. Checkouts stay clean.
pub(crate) fn bytecode(environment: &Path) -> (&'static str, String) {
    let folder = environment.join("bytecode").display().to_string();
    ("PYTHONPYCACHEPREFIX", folder)
}

/// Builds the package and installs it into an environment, without its dependencies.
pub(crate) fn install_package(
    environment: &Path,
    profile: WheelProfile,
) -> Result<(), StepFailure> {
    let wheel = python::wheel_alone(profile)?;
    let wheel = wheel.display().to_string();
    let again = ["pip", "install", "--quiet", "--reinstall", "--no-deps"];
    uv(environment, again.iter().chain(&[wheel.as_str()]))
}

/// Installs a package without its dependencies into a folder beside the environment's own packages, once. In front of
/// these it takes the place of another version.
pub(crate) fn install_beside(environment: &Path, package: &str) -> Result<PathBuf, StepFailure> {
    let folder = environment.join("beside").join(package);
    let stamp = folder.join("installed.txt");
    if !stamp.exists() {
        let target = folder.display().to_string();
        let install = ["pip", "install", "--quiet", "--no-deps", "--no-cache"];
        let into = ["--target", target.as_str(), package];
        uv(environment, install.iter().chain(&into))?;
        fs::write(&stamp, package).map_err(|error| python::file(&stamp, &error))?;
    }
    Ok(folder)
}

/// Runs the environment's package installer.
fn uv<'a>(
    environment: &Path,
    arguments: impl IntoIterator<Item = &'a &'a str>,
) -> Result<(), StepFailure> {
    let arguments: Vec<&str> = arguments.into_iter().copied().collect();
    python::run_with(environment, "uv", &arguments, &[])
}

fn cache_folder() -> Result<PathBuf, StepFailure> {
    // The XDG base directory specification: relative paths are invalid and must be ignored.
    let folder = |name| env::var_os(name).map(PathBuf::from);
    let folder = |name| folder(name).filter(|path: &PathBuf| path.is_absolute());
    let home = || folder("HOME").map(|home| home.join(".cache"));
    folder("XDG_CACHE_HOME").or_else(home).ok_or_else(|| {
        StepFailure::Tool(
            "neither XDG_CACHE_HOME nor HOME is set; set one for the cache folder".to_owned(),
        )
    })
}
