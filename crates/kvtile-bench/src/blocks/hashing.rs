//! Keys of all full blocks of one prompt, on one thread.

use std::{hint::black_box, time::Instant};

use kvtile_blocks::{
    BlocksError,
    key::{BlockHasher, KeyProfile, KeySettings},
};
use serde::Serialize;

use crate::times::RoundTimes;

/// Tokens of the prompt.
const TOKENS: u32 = 8_192;
/// How often the prompt is hashed in one round.
const PROMPTS: u32 = 20;

/// One profile with one page size.
#[derive(Clone, Debug, Serialize)]
pub struct HashRow {
    /// The hash profile.
    pub profile: &'static str,
    /// Tokens per block.
    pub page_size: usize,
    /// Nanoseconds per block, the median.
    pub ns_per_block: f64,
    /// 10^6 tokens per second, by the median.
    pub million_tokens_per_s: f64,
    /// Longest round minus shortest, as a part of the median.
    pub spread: f64,
    /// The goal in 10^6 tokens per second, if any.
    pub goal: Option<f64>,
}

/// All profiles and page sizes, in turns.
pub(super) fn rows(rounds: u32) -> Result<Vec<HashRow>, BlocksError> {
    let tokens: Vec<u32> = (0..TOKENS).map(|i| i.wrapping_mul(2_654_435_761)).collect();
    let mut cells = Vec::new();
    for page_size in [16, 32, 64, 256] {
        for profile in [
            KeyProfile::Blake3,
            KeyProfile::Xxh3,
            KeyProfile::Router { seed: 1337 },
        ] {
            let settings = KeySettings::new().profile(profile).page_size(page_size);
            cells.push((
                BlockHasher::new(&settings, b"benchmark")?,
                RoundTimes::default(),
            ));
        }
    }
    let mut keys = Vec::with_capacity(tokens.len());
    for round in 0..=rounds {
        for (hasher, times) in &mut cells {
            let begun = Instant::now();
            for _ in 0..PROMPTS {
                keys.clear();
                hasher.keys(None, black_box(&tokens), &mut keys);
                black_box(&keys);
            }
            // The first round warms up.
            if round > 0 {
                times.add(begun.elapsed());
            }
        }
    }
    Ok(cells
        .iter()
        .map(|(hasher, times)| row(hasher, times))
        .collect())
}

fn row(hasher: &BlockHasher, times: &RoundTimes) -> HashRow {
    let seconds = times.median().as_secs_f64() / f64::from(PROMPTS);
    let page_size = hasher.page_size();
    let blocks = f64::from(TOKENS) / page_size as f64;
    let goal = match hasher.profile() {
        KeyProfile::Blake3 if page_size == 16 => Some(130.0),
        KeyProfile::Xxh3 if page_size == 16 => Some(1_000.0),
        _ => None,
    };
    HashRow {
        profile: hasher.profile().name(),
        page_size,
        ns_per_block: seconds * 1e9 / blocks,
        million_tokens_per_s: f64::from(TOKENS) / seconds / 1e6,
        spread: times.spread(),
        goal,
    }
}
