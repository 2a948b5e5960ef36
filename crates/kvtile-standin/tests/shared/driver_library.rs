//! The stand-in as a shared library, for tests that load a driver by its file.

use std::{path::PathBuf, process::Command};

/// The library, built where a run of one test alone has not built the examples.
pub(crate) fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap().with_file_name("examples");
    let library = folder.join("libdriver_library.so");
    if !library.exists() {
        let build = [
            "build",
            "-p",
            "kvtile-standin",
            "--example",
            "driver_library",
        ];
        let status = Command::new(env!("CARGO")).args(build).status().unwrap();
        assert!(status.success());
    }
    library
}
