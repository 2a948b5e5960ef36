//! Resources of the process: descriptors and mapped bytes.

pub(crate) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Address space in use, in bytes.
pub(crate) fn mapped_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = status.split(' ').next().unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}
