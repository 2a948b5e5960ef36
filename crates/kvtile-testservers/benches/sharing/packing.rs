//! What compression costs: a tier without threads over a store in memory, with and without it.

use std::sync::Arc;

use kvtile_shared::{memory::MemoryStore, store::SharedStore};
use kvtile_testkit::disk::SplitMix64;
use kvtile_testservers::kinds::InstalledServers;

use crate::{
    SharingOptions,
    report::{RowSubject, SharingReport},
    tier::{BenchTier, BenchTierSettings},
    turns::{TurnContender, in_turns},
};

/// Bytes of a bundle, and how many a round moves.
const SIZE: (usize, usize) = (4 << 20, 8);

pub(crate) fn measure(
    _servers: &InstalledServers,
    options: &SharingOptions,
    report: &mut SharingReport,
) {
    let values = normal_values(SIZE.0 / 4);
    for what in ["compress: store", "compress: fetch"] {
        let contenders = [("raw", false), ("compressed", true)].map(|(name, compress)| {
            let store: Arc<dyn SharedStore> = MemoryStore::new();
            let settings = BenchTierSettings {
                prefix: "packing",
                compress,
                threads: 0,
                content: Some(values.clone()),
            };
            let mut tier = BenchTier::open(&store, SIZE, settings);
            tier.write(usize::MAX);
            let is_store = what == "compress: store";
            TurnContender {
                name,
                goal: None,
                round: Box::new(move |round| match is_store {
                    true => tier.write(round),
                    false => tier.read(),
                }),
            }
        });
        let subject = RowSubject {
            what,
            value_bytes: SIZE.0,
            values: SIZE.1,
            clients: 1,
        };
        report.add(&subject, &in_turns(options.rounds, contenders.into()));
    }
}

/// 32-bit floats of about a normal distribution, as keys and values are.
fn normal_values(bytes: usize) -> Vec<u8> {
    let mut numbers = SplitMix64::new(1);
    let mut values = Vec::with_capacity(bytes);
    while values.len() < bytes {
        let sum: f32 = (0..12)
            .map(|_| numbers.below(1 << 20) as f32 / (1 << 20) as f32)
            .sum();
        values.extend((sum - 6.0).to_le_bytes());
    }
    values.truncate(bytes);
    values
}
