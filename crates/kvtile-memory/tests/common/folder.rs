//! A temporary folder on the filesystem of the build, which is seldom tmpfs.

pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}
