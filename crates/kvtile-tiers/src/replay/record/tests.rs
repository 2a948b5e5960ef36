//! What a recorder wrote is read as a trace.

use std::{io::Write as _, time::Duration};

use super::*;

const PAGE: u32 = 16;

fn keys(chain: u8, blocks: u8) -> Vec<BlockKey> {
    (0..blocks)
        .map(|block| BlockKey::from_opaque(&[chain, block]))
        .collect()
}

fn request(keys: &[BlockKey], input_tokens: u32) -> RecordedRequest<'_> {
    RecordedRequest {
        arrived: Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)),
        keys,
        input_tokens,
        output_tokens: 7,
    }
}

fn read(path: &Path) -> Trace {
    let limits = TraceLimits {
        page_size: None,
        ..TraceLimits::default()
    };
    Trace::read(BufReader::new(File::open(path).unwrap()), &limits).unwrap()
}

#[test]
fn a_replay_reads_what_was_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.jsonl");
    let (short, long) = (keys(1, 2), keys(1, 3));
    let recorder = TraceRecorder::open(&path, PAGE, &RecordOptions::new()).unwrap();
    recorder.record(&request(&short, 40));
    recorder.record(&request(&long, 48));
    // The engine has keys for three of five blocks: what follows them is cut to a block that is not full.
    recorder.record(&request(&long, 80));
    // A prompt of no full block, and one of which the keys are more than the prompt.
    recorder.record(&request(&[], 5));
    recorder.record(&request(&long, 32));
    let report = recorder.finish();
    assert_eq!((report.recorded, report.dropped), (5, 0));
    assert_eq!(report.bytes, std::fs::metadata(&path).unwrap().len());

    // The trace names its page size.
    let trace = read(&path);
    assert_eq!(trace.page_size(), PAGE);
    let requests: Vec<_> = trace.requests().collect();
    let lengths: Vec<_> = requests
        .iter()
        .map(|r| (r.input_tokens, r.blocks.len()))
        .collect();
    assert_eq!(lengths, [(40, 3), (48, 3), (63, 4), (5, 1), (32, 2)]);
    assert!(requests.iter().all(|r| r.output_tokens == 7));
    assert_eq!(requests[0].timestamp_ms, 1_700_000_000_123);
    // Full blocks are shared; blocks that are not full never are.
    assert_eq!(requests[0].blocks[..2], requests[1].blocks[..2]);
    assert_eq!(requests[1].blocks, &requests[2].blocks[..3]);
    assert_eq!(trace.distinct_blocks(), 3 + 3);
}

#[test]
fn a_later_run_appends_behind_the_last_whole_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.jsonl");
    let chain = keys(2, 2);
    let recorder = TraceRecorder::open(&path, PAGE, &RecordOptions::new()).unwrap();
    recorder.record(&request(&chain, 33));
    drop(recorder);
    let whole = std::fs::read(&path).unwrap();
    for torn in ["", "{", "{\"timestamp\":17000,\"input_len"] {
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(torn.as_bytes()).unwrap();
        let recorder = TraceRecorder::open(&path, PAGE, &RecordOptions::new()).unwrap();
        recorder.record(&request(&chain, 33));
        assert_eq!(recorder.finish().recorded, 1);
    }
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.starts_with(&whole));
    assert_eq!(read(&path).requests().len(), 4);
    assert_eq!(read(&path).distinct_blocks(), 2 + 4);
}

#[test]
fn a_whole_request_without_a_line_break_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.jsonl");
    let row = |at: u64| {
        let (ids, more) = ("[1,2]", r#""page_size":16"#);
        format!(
            r#"{{"timestamp": {at}, "input_length":32,"output_length":1,"hash_ids":{ids},{more}}}"#
        )
    };
    for written in [row(1), format!("{}\n{}", row(1), row(2))] {
        std::fs::write(&path, &written).unwrap();
        let recorder = TraceRecorder::open(&path, PAGE, &RecordOptions::new()).unwrap();
        recorder.record(&request(&keys(2, 2), 32));
        let report = recorder.finish();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&written), "{text}");
        assert_eq!(report.bytes, text.len() as u64);
        assert_eq!(text.lines().count(), written.lines().count() + 1);
        assert_eq!(read(&path).requests().len(), text.lines().count());
    }
}

#[test]
fn a_file_that_is_something_else_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notes.txt");
    let whole = r#"{"timestamp":1,"input_length":16,"output_length":1,"hash_ids":[1]}"#;
    let behind = format!("{whole}\nmy notes");
    let others = [
        "my notes\n",
        "my notes",
        "{",
        "{\"timestamp\": 1}\n",
        "{\"timestamp\": 1}",
        "\n",
        &behind,
    ];
    for text in others {
        std::fs::write(&path, text).unwrap();
        let refused = TraceRecorder::open(&path, PAGE, &RecordOptions::new()).unwrap_err();
        assert!(
            matches!(refused, RecordError::NotATrace { .. }),
            "{refused}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }
    std::fs::remove_file(&path).unwrap();
    let recorder = TraceRecorder::open(&path, PAGE, &RecordOptions::new()).unwrap();
    recorder.record(&request(&keys(3, 2), 33));
    drop(recorder);
    let refused = TraceRecorder::open(&path, 32, &RecordOptions::new()).unwrap_err();
    assert!(
        matches!(refused, RecordError::NotATrace { .. }),
        "{refused}"
    );
    let limits = TraceLimits {
        page_size: Some(32),
        ..TraceLimits::default()
    };
    let refused = Trace::read(&*std::fs::read(&path).unwrap(), &limits).unwrap_err();
    assert!(
        matches!(refused, TraceError::PageSizeDiffers { found: PAGE, .. }),
        "{refused}"
    );
    let none = TraceRecorder::open(&path, 0, &RecordOptions::new()).unwrap_err();
    assert!(matches!(none, RecordError::PageSize));
    let folder_itself = TraceRecorder::open(folder.path(), PAGE, &RecordOptions::new());
    assert!(matches!(
        folder_itself.unwrap_err(),
        RecordError::File { .. }
    ));
}

#[test]
fn two_recorders_do_not_share_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.jsonl");
    let first = TraceRecorder::open(&path, PAGE, &RecordOptions::new()).unwrap();
    let refused = TraceRecorder::open(&path, PAGE, &RecordOptions::new()).unwrap_err();
    assert!(matches!(refused, RecordError::InUse { .. }), "{refused}");
    drop(first);
    assert!(TraceRecorder::open(&path, PAGE, &RecordOptions::new()).is_ok());
}

#[test]
fn a_full_file_drops_and_counts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.jsonl");
    let chain = keys(4, 2);
    let options = RecordOptions::new().bytes_max(400);
    let recorder = TraceRecorder::open(&path, PAGE, &options).unwrap();
    for _ in 0..100 {
        recorder.record(&request(&chain, 33));
    }
    let report = recorder.finish();
    assert!(report.recorded >= 2 && report.bytes <= 400, "{report:?}");
    assert_eq!(report.recorded + report.dropped, 100);
    assert_eq!(read(&path).requests().len() as u64, report.recorded);
}

#[test]
fn a_full_disk_ends_the_recording_and_is_reported() {
    // Every write to it fails, as on a disk that is full.
    let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
    let counts = RecordCounts::default();
    let (lines, received) = sync_channel(2);
    lines.send(b"{}\n".to_vec()).unwrap();
    lines.send(b"{}\n".to_vec()).unwrap();
    drop(lines);
    write_lines(full, &received, &counts, u64::MAX);
    assert_eq!(counts.dropped.load(Ordering::Relaxed), 2);
    assert!(counts.error.lock().is_some());
}
