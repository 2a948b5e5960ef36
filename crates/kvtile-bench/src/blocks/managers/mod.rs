//! Compares block managers: kvtile's pool and the published managers of other projects, in turns in
//! one run, on the same chains, with the same operations. This module does not know the managers:
//! each is a contender behind a trait, and the rivals are in a crate of their own.
//!
//! Each round fills every contender and empties it again. Rounds start with different contenders,
//! and ratios are taken within a round.

mod ours;
mod rows;
mod text;

use std::time::Duration;

use kvtile_blocks::policy::PolicyKind;

pub use rows::{ManagerRatio, ManagerRow};
pub(super) use text::write;

use super::{
    BlocksSettings,
    pool::{both, timed},
};
use crate::error::BenchError;
use kvtile_random::SplitMix64;

/// Blocks of a chain; each call handles one chain.
pub const CHAIN: usize = 128;

/// A hash for each block of a chain, uniformly distributed like those of an engine.
pub type HashChain = Vec<u64>;

/// The eviction order of a contender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContenderOrder {
    /// Its default.
    Default,
    /// The least recently used block.
    Lru,
}

/// A manager whose number of blocks equals that of its chains. It knows chains by their numbers.
/// Every method returns its number of blocks, so that the benchmark can check that all contenders
/// do the same work.
pub trait PoolContender: Send + Sync {
    /// The project and, where several versions exist, the version.
    fn manager(&self) -> &'static str;

    /// The project's own name of its eviction order.
    fn order_name(&self) -> &'static str;

    /// The eviction order that it represents.
    fn order(&self) -> ContenderOrder;

    /// Allocates blocks for a chain and keeps them; evicts cached blocks where too few are free.
    fn allocate(&mut self) -> usize;

    /// Registers the last allocated blocks as this chain and keeps them in use.
    fn register(&mut self, chain: usize) -> usize;

    /// Finds this chain and keeps it in use.
    fn find_and_keep(&mut self, chain: usize) -> usize;

    /// Finds this chain and releases it.
    fn find(&self, chain: usize) -> usize;

    /// Releases all blocks in use.
    fn let_go(&mut self);

    /// Runs the work of its background thread. Returns false where it has none.
    fn maintain(&mut self) -> bool {
        false
    }
}

/// Creates a contender for these chains.
pub type MakeContender = fn(&[HashChain]) -> Result<Box<dyn PoolContender>, BenchError>;

/// The operations in the order of a round.
const OPERATIONS: [&str; 6] = [
    "register",
    "match active",
    "match inactive and release",
    "the same on two threads",
    MAINTAIN,
    "evict and allocate",
];

/// The operation that only some contenders have.
const MAINTAIN: &str = "maintain";

/// The times of one round of one contender, by operation.
type OperationTimes = [Duration; OPERATIONS.len()];

/// A contender and the times of its rounds.
struct ManagerLine {
    contender: Box<dyn PoolContender>,
    rounds: Vec<OperationTimes>,
}

/// Measures all contenders in turns; each operation covers all blocks.
pub(super) fn rows(
    settings: &BlocksSettings,
    rivals: &[MakeContender],
) -> Result<Vec<ManagerRow>, BenchError> {
    let chains = chains(settings.blocks);
    let mut lines = Vec::new();
    for (policy, maintained) in [
        (PolicyKind::default(), false),
        (PolicyKind::default(), true),
        (PolicyKind::Lru, false),
    ] {
        lines.push(ours::contender(policy, maintained, &chains)?);
    }
    for make in rivals {
        lines.push(make(&chains)?);
    }
    let mut lines: Vec<ManagerLine> = lines
        .into_iter()
        .map(|contender| ManagerLine {
            contender,
            rounds: Vec::new(),
        })
        .collect();
    let mut random = SplitMix64::new(2);
    for number in 0..=settings.rounds {
        let order = random.order(chains.len());
        for line in &mut lines {
            let round = round(line.contender.as_mut(), &order);
            // The first round warms up.
            if number > 0 {
                line.rounds.push(round);
            }
        }
        lines.rotate_left(1);
    }
    let turns = (settings.rounds as usize + 1) % lines.len();
    lines.rotate_right(turns);
    Ok(rows::rows(&lines, chains.len() * CHAIN))
}

/// Chains that fill a pool.
fn chains(blocks: usize) -> Vec<HashChain> {
    let mut random = SplitMix64::new(1);
    let mut chain = || (0..CHAIN).map(|_| random.any()).collect();
    (0..blocks / CHAIN).map(|_| chain()).collect()
}

/// One round over a contender that has no cached chains. Allocations evict and release all of them,
/// so none can be found afterwards.
fn round(contender: &mut dyn PoolContender, order: &[usize]) -> OperationTimes {
    let mut times = OperationTimes::default();
    let [register, active, inactive, two, maintain, evict] = &mut times;
    let who = format!("{} {}", contender.manager(), contender.order_name());
    let whole = |found: usize, what: &str| assert_eq!(found, CHAIN, "{who}: {what} is whole");
    for &chain in order {
        whole(contender.allocate(), "an allocation");
        let registered = timed(register, || contender.register(chain));
        whole(registered, "a registered chain");
    }
    for chain in 0..order.len() {
        let found = timed(active, || contender.find_and_keep(chain));
        whole(found, "an active chain");
    }
    contender.let_go();
    for &chain in order {
        whole(
            timed(inactive, || contender.find(chain)),
            "an inactive chain",
        );
    }
    let shared = &*contender;
    let (first, second) = order.split_at(order.len() / 2);
    let work = |part: &[usize]| part.iter().map(|&chain| shared.find(chain)).sum::<usize>();
    let mut found = [0; 2];
    let [left, right] = &mut found;
    *two += both(|| *left = work(first), || *right = work(second));
    assert_eq!(
        found.iter().sum::<usize>(),
        order.len() * CHAIN,
        "{who}: all chains, on two threads"
    );
    if !timed(maintain, || contender.maintain()) {
        *maintain = Duration::ZERO;
    }
    for _ in order {
        whole(
            timed(evict, || contender.allocate()),
            "an allocation that evicts",
        );
    }
    contender.let_go();
    let left: usize = order.iter().map(|&chain| contender.find(chain)).sum();
    assert_eq!(left, 0, "{who}: evicted blocks are not found");
    times
}
