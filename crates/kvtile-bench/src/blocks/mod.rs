//! What bookkeeping costs: keys from tokens, and the operations of a pool, in nanoseconds a block.
//!
//! Nothing here moves bytes of blocks; that is the rest of this crate. How it is measured stands in
//! `docs/benchmarks/README.md`.

mod hashing;
mod managers;
mod pool;
mod text;

use kvtile_blocks::policy::PolicyKind;
use serde::Serialize;

pub use hashing::HashRow;
pub use managers::{
    CHAIN, ContenderOrder, HashChain, MakeContender, ManagerRatio, ManagerRow, PoolContender,
};
pub use pool::{OperationRow, ThreadsRow};

use crate::{error::BenchError, machine::MachineFacts};

/// What is measured.
#[derive(Clone, Debug)]
pub struct BlocksSettings {
    /// Rounds, of which the median counts.
    pub rounds: u32,
    /// Blocks of the pools.
    pub blocks: usize,
    /// The policies whose pools are measured.
    pub policies: Vec<PolicyKind>,
}

impl Default for BlocksSettings {
    fn default() -> BlocksSettings {
        BlocksSettings {
            rounds: 9,
            blocks: 65_536,
            policies: PolicyKind::ALL.to_vec(),
        }
    }
}

/// Why there are no rivals.
const LEFT_OUT: &str = "kvbm-logical is left out: the program was built without its feature rivals";

/// What it came to.
#[derive(Clone, Debug, Serialize)]
pub struct BlocksReport {
    /// Where.
    pub machine: MachineFacts,
    /// Rounds, of which the median counts.
    pub rounds: u32,
    /// Blocks of the pools.
    pub blocks: usize,
    /// Keys from tokens.
    pub hashing: Vec<HashRow>,
    /// Operations of pools.
    pub operations: Vec<OperationRow>,
    /// Two threads against one.
    pub threads: Vec<ThreadsRow>,
    /// kvtile's pools and the rivals, in turns.
    pub managers: Vec<ManagerRow>,
    /// Why no rivals are among them, where that is so.
    pub managers_left_out: Option<&'static str>,
}

/// Measures everything, one after the other; kvtile's pools and the rivals in turns.
///
/// # Errors
/// Where a pool refuses what the benchmark does with it, or a rival cannot be made.
///
/// # Panics
/// Where a contender finds or evicts other blocks than it should.
pub fn run(
    settings: &BlocksSettings,
    rivals: &[MakeContender],
) -> Result<BlocksReport, BenchError> {
    let mut operations = Vec::new();
    let mut threads = Vec::new();
    for &policy in &settings.policies {
        operations.extend(pool::operations(policy, settings)?);
        threads.push(pool::two_threads(policy, settings)?);
    }
    Ok(BlocksReport {
        machine: MachineFacts::probe(),
        rounds: settings.rounds,
        blocks: settings.blocks,
        hashing: hashing::rows(settings.rounds)?,
        operations,
        threads,
        managers: managers::rows(settings, rivals)?,
        managers_left_out: rivals.is_empty().then_some(LEFT_OUT),
    })
}
