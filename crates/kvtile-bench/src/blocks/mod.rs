//! The cost of bookkeeping: keys from tokens, and the operations of a pool, in nanoseconds per
//! block.
//!
//! Nothing here moves the bytes of blocks; the other modules of this crate measure that.
//! `docs/benchmarks/README.md` describes the method.

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

/// Settings of the measurement.
#[derive(Clone, Debug)]
pub struct BlocksSettings {
    /// Number of rounds; results are their median.
    pub rounds: u32,
    /// Blocks of the pools.
    pub blocks: usize,
    /// The measured policies.
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

/// The reason for missing rivals.
const LEFT_OUT: &str = "kvbm-logical is left out: the program was built without its feature rivals";

/// The report.
#[derive(Clone, Debug, Serialize)]
pub struct BlocksReport {
    /// The machine.
    pub machine: MachineFacts,
    /// Number of rounds; results are their median.
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
    /// Why it contains no rivals, if so.
    pub managers_left_out: Option<&'static str>,
}

/// Measures all parts in sequence; kvtile's pools and the rivals take turns.
///
/// # Errors
/// A pool that refuses an operation of the benchmark, or a rival that cannot be created.
///
/// # Panics
/// A contender that finds or evicts other blocks than expected.
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
