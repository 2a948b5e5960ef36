//! Finds third-party libraries without loading their code: by the cache of the dynamic linker, by
//! well-known folders, and by paths in the environment.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::checks::{CheckStatus, DoctorCheck};

/// Common folders of driver and toolkit libraries, besides those of the linker.
const FOLDERS: [&str; 10] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/nvidia/lib64",
    "/usr/local/cuda/compat",
    "/usr/lib/wsl/lib",
    "/usr/local/nixl/lib/x86_64-linux-gnu",
    "/opt/nvidia/nvda_nixl/lib/x86_64-linux-gnu",
];

/// NIXL.
pub(super) fn nixl() -> DoctorCheck {
    let name = "NIXL";
    match find(|file| file.starts_with("libnixl") && file.contains(".so")) {
        Some(path) => DoctorCheck::new(name, CheckStatus::Ok, path.display().to_string()),
        None => DoctorCheck::new(
            name,
            CheckStatus::Absent,
            "no libnixl*.so; only remote memory needs it",
        ),
    }
}

/// The first library whose file name matches.
pub(super) fn find(wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let name_of = |path: &Path| {
        let name = path.file_name();
        name.map(|name| name.to_string_lossy().into_owned())
    };
    let cached = linker_cache().into_iter();
    let cached = cached.filter(|path| name_of(path).is_some_and(|name| wanted(&name)));
    if let Some(path) = cached.into_iter().find(|path| path.exists()) {
        return Some(path);
    }
    let mut folders: Vec<PathBuf> = std::env::var_os("LD_LIBRARY_PATH")
        .map(|paths| std::env::split_paths(&paths).collect())
        .unwrap_or_default();
    folders.extend(FOLDERS.iter().map(PathBuf::from));
    folders.extend(python_folders());
    folders.iter().find_map(|folder| {
        let mut files: Vec<PathBuf> = entries(folder);
        files.retain(|path| name_of(path).is_some_and(|name| wanted(&name)));
        files.sort();
        files.into_iter().next()
    })
}

/// Paths in the cache of the dynamic linker: the text between zero bytes. Its other structure is
/// ignored.
fn linker_cache() -> Vec<PathBuf> {
    let cache = fs::read("/etc/ld.so.cache").unwrap_or_default();
    paths_in(&cache)
}

fn paths_in(cache: &[u8]) -> Vec<PathBuf> {
    cache
        .split(|byte| *byte == 0)
        .filter_map(|text| std::str::from_utf8(text).ok())
        .filter(|text| text.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

/// Folders of libraries inside Python packages named after NIXL.
fn python_folders() -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = vec!["/usr/local".into(), "/usr".into()];
    roots.extend(std::env::var_os("VIRTUAL_ENV").map(PathBuf::from));
    let packages = roots
        .iter()
        .flat_map(|root| entries(&root.join("lib")))
        .filter(|path| path.to_string_lossy().contains("/python3"))
        .flat_map(|python| [python.join("site-packages"), python.join("dist-packages")]);
    packages
        .flat_map(|packages| entries(&packages))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().contains("nixl")
        })
        .collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_between_zero_bytes() {
        let cache = b"\x01\x02glibc-ld\0/usr/lib/libcuda.so.1\0libcuda.so.1\0\xff\xfe/x\0/b";
        let expected = [PathBuf::from("/usr/lib/libcuda.so.1"), PathBuf::from("/b")];
        assert_eq!(paths_in(cache), expected);
        assert!(paths_in(b"").is_empty());
    }
}
