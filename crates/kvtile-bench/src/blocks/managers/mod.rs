//! Managers of blocks against each other: kvtile's pool and those that other projects publish, in turns in
//! one run, on the same chains, with the same operations. It does not know what it measures: a contender is
//! behind a trait, and the rivals are in a crate of their own.
//!
//! Each round fills every contender and empties it again. A round begins with another contender than the
//! one before, and ratios are taken within a round.

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
use kvtile_random::Numbers;

/// Blocks of a chain, which is what each call is about.
pub const CHAIN: usize = 128;

/// A hash for each block of a chain, as evenly spread as those of an engine.
pub type HashChain = Vec<u64>;

/// How a contender chooses the blocks that go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContenderOrder {
    /// Its default.
    Default,
    /// The block that was used longest ago.
    Lru,
}

/// A manager that has exactly as many blocks as its chains, and knows these by their numbers. Every method
/// says how many blocks it got, so that the benchmark can tell whether all contenders do the same.
pub trait PoolContender: Send + Sync {
    /// The project and, where there are several, the version.
    fn manager(&self) -> &'static str;

    /// What it calls its order of eviction.
    fn order_name(&self) -> &'static str;

    /// The order that it stands for.
    fn order(&self) -> ContenderOrder;

    /// Allocates blocks for a chain, evicting cached ones where too few are free, and keeps them.
    fn allocate(&mut self) -> usize;

    /// Registers the blocks that were allocated last as this chain, and keeps them in use.
    fn register(&mut self, chain: usize) -> usize;

    /// Finds this chain and keeps it in use.
    fn find_and_keep(&mut self, chain: usize) -> usize;

    /// Finds this chain and lets go of it.
    fn find(&self, chain: usize) -> usize;

    /// Lets go of everything that it keeps.
    fn let_go(&mut self);

    /// Does what a thread of its own does when it has time. False where there is no such thing.
    fn maintain(&mut self) -> bool {
        false
    }
}

/// Makes a contender for these chains.
pub type MakeContender = fn(&[HashChain]) -> Result<Box<dyn PoolContender>, BenchError>;

/// Operations in the order in which a round does them.
const OPERATIONS: [&str; 6] = [
    "register",
    "match active",
    "match inactive and release",
    "the same on two threads",
    MAINTAIN,
    "evict and allocate",
];

/// The operation that some have.
const MAINTAIN: &str = "maintain";

/// What one round of one contender took, by operation.
type Round = [Duration; OPERATIONS.len()];

/// A contender and what its rounds took.
struct Line {
    contender: Box<dyn PoolContender>,
    rounds: Vec<Round>,
}

/// All contenders, each operation over all blocks, in turns.
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
    let mut lines: Vec<Line> = lines
        .into_iter()
        .map(|contender| Line {
            contender,
            rounds: Vec::new(),
        })
        .collect();
    let mut random = Numbers::new(2);
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

/// As many chains as fill a pool.
fn chains(blocks: usize) -> Vec<HashChain> {
    let mut random = Numbers::new(1);
    let mut chain = || (0..CHAIN).map(|_| random.any()).collect();
    (0..blocks / CHAIN).map(|_| chain()).collect()
}

/// One round over a contender that knows none of the chains before it. It keeps some of them behind it:
/// blocks that were evicted for new ones are free, and nothing is found any more.
fn round(contender: &mut dyn PoolContender, order: &[usize]) -> Round {
    let mut times = Round::default();
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
    assert_eq!(left, 0, "{who}: what was evicted is not found");
    times
}
