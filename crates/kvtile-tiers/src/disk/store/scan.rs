//! Reads all records of a folder.

use std::io;

use super::super::{
    capacity::PAGE,
    medium::MediumFile,
    record::{DecodedRecord, RecordForm, SlotRecord, StoreId},
};

/// Bytes of records in one read.
const CHUNK_BYTES: usize = 1 << 20;

/// The unit in which a failed chunk is reread, in bytes.
const RETRY_BYTES: usize = PAGE;

/// The decoded records of a folder.
#[derive(Debug, Default)]
pub(in super::super) struct RecordScan {
    pub(in super::super) stored: Vec<(u32, SlotRecord)>,
    pub(in super::super) torn: Vec<u32>,
    pub(in super::super) unreadable: Vec<u32>,
    /// The first error of writing records back.
    pub(in super::super) failure: Option<io::Error>,
}

/// What to scan: the folder's number, its places and the form of its records.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct ScanScope<'a> {
    pub(in super::super) store: &'a StoreId,
    pub(in super::super) places: u32,
    pub(in super::super) form: RecordForm,
    /// Whether the scan writes the bytes back unchanged. After a failed sync, the page cache may
    /// hold records and erasures that the disk does not, and that no later sync would write out.
    pub(in super::super) write_back: bool,
}

/// The records of neighbouring places.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum RecordRun<'a> {
    /// Their bytes.
    Read(&'a [u8]),
    /// This many records, of one page, cannot be read.
    Unreadable(u32),
}

/// Reads the records of the places `0..places` in ascending order. `visit` receives each run with
/// its first place, which begins a page.
pub(in super::super) fn each_run(
    records: &dyn MediumFile,
    (places, form): (u32, RecordForm),
    visit: &mut dyn FnMut(u32, RecordRun<'_>),
) {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut first = 0;
    while first < places {
        let count = (places - first).min(records_in(CHUNK_BYTES, form));
        if let Some(buffer) = buffer.get_mut(..count as usize * form.bytes()) {
            read_chunk(records, (first, form), buffer, visit);
        }
        first += count;
    }
}

fn read_chunk(
    records: &dyn MediumFile,
    (first, form): (u32, RecordForm),
    buffer: &mut [u8],
    visit: &mut dyn FnMut(u32, RecordRun<'_>),
) {
    let offset = u64::from(first) * form.stride();
    if records.read_exact_at(offset, buffer).is_ok() {
        visit(first, RecordRun::Read(buffer));
        return;
    }
    // A bad page costs only its own records.
    let mut place = first;
    for page in buffer.chunks_mut(RETRY_BYTES) {
        let count = records_in(page.len(), form);
        let offset = u64::from(place) * form.stride();
        let read = records.read_exact_at(offset, page);
        let run = match read {
            Ok(()) => RecordRun::Read(page),
            Err(_) => RecordRun::Unreadable(count),
        };
        visit(place, run);
        place += count;
    }
}

/// Whole records in `bytes` bytes.
fn records_in(bytes: usize, form: RecordForm) -> u32 {
    u32::try_from(bytes / form.bytes()).unwrap_or(u32::MAX)
}

impl RecordScan {
    /// Reads the records of all places, in ascending order.
    pub(in super::super) fn read(records: &dyn MediumFile, of: ScanScope<'_>) -> RecordScan {
        let mut scan = RecordScan::default();
        let scope = (of.places, of.form);
        each_run(records, scope, &mut |first, run| match run {
            RecordRun::Read(bytes) => scan.take(records, &of, first, bytes),
            RecordRun::Unreadable(count) => scan.unreadable.extend(first..first + count),
        });
        scan
    }

    fn take(&mut self, records: &dyn MediumFile, of: &ScanScope<'_>, first: u32, bytes: &[u8]) {
        let offset = u64::from(first) * of.form.stride();
        if of.write_back
            && let Err(error) = records.write_all_at(offset, bytes)
        {
            self.failure.get_or_insert(error);
        }
        self.decode(of, first, bytes);
    }

    fn decode(&mut self, of: &ScanScope<'_>, first: u32, bytes: &[u8]) {
        for (place, record) in (first..).zip(bytes.chunks_exact(of.form.bytes())) {
            match SlotRecord::decode(of.form, record, (of.store, place)) {
                DecodedRecord::Empty => {}
                DecodedRecord::Stored(record) => self.stored.push((place, record)),
                DecodedRecord::Torn => self.torn.push(place),
            }
        }
    }
}

/// Whether the error means the end of the file.
pub(in super::super) fn is_end(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
}
