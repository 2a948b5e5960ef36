//! Records the requests of an engine as a trace, and replays it on caches of several sizes and
//! policies: how many tokens would each of them have served?
//!
//! ```sh
//! cargo run -p kvtile --example record_and_replay
//! ```

use std::{error::Error, fs::File, io::BufReader, path::Path};

use kvtile::{
    Identity, PolicyKind, Shape, TokenHasher,
    tiers::replay::{
        DryCache, RecordOptions, RecordedRequest, Trace, TraceLimits, TraceRecorder, infinite,
        replay,
    },
};

const PAGE_SIZE: u32 = 16;

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("requests.jsonl");
    record(&path)?;

    // The trace names its page size.
    let trace = Trace::read(BufReader::new(File::open(&path)?), &TraceLimits::default())?;
    let best = infinite(&trace).token_hit_ratio();
    println!(
        "{} requests, {} different blocks",
        trace.requests().len(),
        trace.distinct_blocks()
    );
    println!("without a limit  {:5.1} % of all tokens", 100.0 * best);
    for blocks in [60, 200] {
        for policy in [PolicyKind::Gittins, PolicyKind::Lru] {
            let mut cache = DryCache::new(&policy.into(), blocks)?;
            let totals = replay(&trace, &mut cache, &mut |_| ())?;
            let ratio = totals.token_hit_ratio();
            println!("{policy:?}, {blocks} blocks  {:5.1} %", 100.0 * ratio);
            assert!(ratio > 0.0 && ratio <= best);
        }
    }
    Ok(())
}

/// Eight users in turn continue their conversations, all with one system prompt. A trace has ids
/// of blocks, and no tokens.
fn record(path: &Path) -> Result<(), Box<dyn Error>> {
    let shape = Shape::key_value(1, 4, u64::from(PAGE_SIZE), 2, 64, "bf16")?;
    let hasher = TokenHasher::new(&Identity::new("a-model", "main", &shape)?)?;
    let recorder = TraceRecorder::open(path, PAGE_SIZE, &RecordOptions::new())?;
    let system: Vec<u32> = (0..320).collect();
    let mut conversations = vec![system; 8];
    for turn in 0..5 {
        for (user, tokens) in (1_u32..).zip(&mut conversations) {
            tokens.extend((0..100).map(|token| 1000 * user + 100 * turn + token));
            recorder.record(&RecordedRequest {
                arrived: None, // now
                keys: &hasher.keys(tokens),
                input_tokens: u32::try_from(tokens.len())?,
                output_tokens: 20,
            });
        }
    }
    let report = recorder.finish();
    assert_eq!((report.recorded, report.dropped), (40, 0));
    Ok(())
}
