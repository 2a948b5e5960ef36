//! Pre-faulted pages. It is one test, since it looks at the threads of the process.
#![expect(clippy::panic, clippy::unwrap_used, reason = "tests")]

use kvtile_memory::{
    HugePages, MemoryRegion, Prefault, PrefaultProgress, SharedMemory, SystemMemory,
    machine::Machine,
};
use parking_lot::Mutex;
use std::fs;

const SIZE: usize = (256 << 20) + 4096;

/// Bytes of the mapping at `addr` that are resident.
fn resident_bytes(addr: usize) -> usize {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in maps.lines() {
        let range = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'));
        let hex = |text| usize::from_str_radix(text, 16).ok();
        if let Some((start, end)) = range.and_then(|(start, end)| hex(start).zip(hex(end))) {
            inside = (start..end).contains(&addr);
        } else if let Some(kibibytes) = line.strip_prefix("Rss:").filter(|_| inside) {
            let number = kibibytes.trim().trim_end_matches(" kB");
            return number.parse::<usize>().unwrap() * 1024;
        }
    }
    panic!("no mapping at {addr:#x}");
}

/// The number of threads that are populating pages.
fn threads_at_work() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.trim() == "kvtile-prefault")
        .count()
}

/// Pitfall 13: a host pool takes tens of minutes to start while one thread faults page by page.
#[test]
fn prefaulted_pages_are_there_brought_by_several_threads_and_reported() {
    lazy_memory_has_no_pages();
    for huge in [true, false] {
        system_memory_has_all_pages(huge);
    }
    shared_memory_has_all_pages();
    several_threads_work();
    small_regions_and_odd_thread_counts_work();
}

fn lazy_memory_has_no_pages() {
    let memory = SystemMemory::options()
        .progress(|_| panic!("there is nothing to report"))
        .allocate(SIZE)
        .unwrap();
    assert!(resident_bytes(memory.addr()) < SIZE / 8);
}

/// Demands that `reports` rise to the total.
fn complete(reports: &[PrefaultProgress], size: usize) {
    assert!(reports.is_sorted_by_key(|progress| progress.done_bytes));
    let last = reports.last().unwrap();
    assert_eq!(last.done_bytes, last.total_bytes);
    assert!((last.fraction() - 1.0).abs() < f64::EPSILON);
    assert!(last.total_bytes >= size);
    assert!(
        reports
            .iter()
            .all(|report| report.total_bytes == last.total_bytes)
    );
}

fn system_memory_has_all_pages(huge: bool) {
    let reports = Mutex::new(Vec::new());
    let mut memory = SystemMemory::options()
        .huge_pages(huge)
        .prefault(Prefault::Populate { threads: 0 })
        .progress(|progress| reports.lock().push(progress))
        .allocate(SIZE)
        .unwrap();
    complete(&reports.into_inner(), SIZE);
    assert!(resident_bytes(memory.addr()) >= SIZE);
    match (huge, memory.huge_pages()) {
        (true, HugePages::Advised) => {
            let machine = Machine::probe();
            let huge_page = *machine.huge_page_bytes.known().unwrap();
            assert_eq!(memory.addr() % huge_page, 0);
        }
        (true, HugePages::Unavailable { reason }) => eprintln!("no huge pages here: {reason}"),
        (false, HugePages::NotRequested) => {}
        other => panic!("{other:?}"),
    }
    assert!(memory.as_mut_slice().iter().all(|byte| *byte == 0));
}

fn shared_memory_has_all_pages() {
    let reports = Mutex::new(Vec::new());
    let memory = SharedMemory::options()
        .prefault(Prefault::Populate { threads: 2 })
        .progress(|progress| reports.lock().push(progress))
        .create(SIZE)
        .unwrap();
    complete(&reports.into_inner(), SIZE);
    assert!(resident_bytes(memory.addr()) >= SIZE);
    match memory.huge_pages() {
        HugePages::Advised => {
            let machine = Machine::probe();
            let huge_page = *machine.huge_page_bytes.known().unwrap();
            assert_eq!(memory.addr() % huge_page, 0);
        }
        HugePages::Unavailable { reason } => eprintln!("no huge shared pages here: {reason}"),
        other => panic!("{other:?}"),
    }
    let mut bytes = vec![1; SIZE];
    memory.read_exact_at(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

/// The first report waits until all threads have started. No thread can finish before, since each
/// has a part to report.
fn several_threads_work() {
    let seen = Mutex::new(0);
    let memory = SystemMemory::options()
        .prefault(Prefault::Populate { threads: 4 })
        .progress(|_| {
            let mut seen = seen.lock();
            for _ in 0..10_000 {
                if *seen >= 3 {
                    return;
                }
                *seen = threads_at_work().max(*seen);
                std::thread::yield_now();
            }
        })
        .allocate(SIZE)
        .unwrap();
    assert!(resident_bytes(memory.addr()) >= SIZE);
    // Three workers, and the calling thread.
    assert_eq!(seen.into_inner(), 3);
}

fn small_regions_and_odd_thread_counts_work() {
    for threads in [0, 1, 3, 1000, usize::MAX] {
        for size in [1, 4096, 4097, (32 << 20) - 1, 32 << 20, (32 << 20) + 1] {
            let reports = Mutex::new(Vec::new());
            let memory = SystemMemory::options()
                .prefault(Prefault::Populate { threads })
                .progress(|progress| reports.lock().push(progress))
                .allocate(size)
                .unwrap();
            complete(&reports.into_inner(), size);
            assert!(resident_bytes(memory.addr()) >= size);
        }
    }
}
