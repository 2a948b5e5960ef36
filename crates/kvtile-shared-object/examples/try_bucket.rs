//! Opens a bucket as a shared store, writes a value, reads it, and removes it:
//! `cargo run -p kvtile-shared-object --example try_bucket -- s3://bucket/prefix`.

use std::{
    env,
    error::Error,
    time::{Duration, Instant},
};

use kvtile_shared::store::{Deadline, SharedStore, SinkState, ValueName, ValueSink};
use kvtile_shared_object::{ObjectBucket, ObjectStoreUrl};

/// Memory for the value.
struct ReadBack {
    bytes: Vec<u8>,
    filled: usize,
}

impl ValueSink for ReadBack {
    fn space(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.filled..).unwrap_or_default()
    }

    fn filled(&mut self, bytes: usize) -> SinkState {
        self.filled += bytes;
        match self.filled < self.bytes.len() {
            true => SinkState::Open,
            false => SinkState::Full,
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let url = env::args().nth(1).ok_or("give the URL of a bucket")?;
    let url: ObjectStoreUrl = url.parse()?;
    let by = || Deadline::within(Duration::from_secs(20));
    let store = ObjectBucket::open(&url, by())?;
    println!(
        "{} is open; keeps the first value: {}",
        store.name(),
        store.abilities().keeps_first
    );
    let name = ValueName::new("try-bucket/value")?;
    let value = vec![7; 8 << 20];
    let start = Instant::now();
    let written = store.write(&name, &[&value], None, by())?;
    println!(
        "wrote {} bytes in {:.0?}: {written:?}",
        value.len(),
        start.elapsed()
    );
    let mut back = ReadBack {
        bytes: vec![0; value.len()],
        filled: 0,
    };
    let start = Instant::now();
    let present = store.read(&name, &mut back, by())?;
    let is_equal = present && back.bytes == value;
    println!("read them in {:.0?}: equal {is_equal}", start.elapsed());
    println!("removed: {}", store.remove(&[name], by())?);
    Ok(())
}
