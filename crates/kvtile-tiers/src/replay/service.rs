//! Requests of a service that several applications share.
//!
//! Lengths, pauses and returns follow the first half of the conversation trace published with Mooncake (FAST
//! 2025, 6,015 requests): the tables below are its quantiles. A request counts there as a continuation where
//! it holds all full blocks of an earlier one. Three things are made up:
//!
//! - applications with system prompts of one to eight blocks, which change from time to time: conversations
//!   that began earlier keep the old version (the published trace has one block that all requests share);
//! - one new request in eight reads a long document once and never returns;
//! - arrivals are random but not bursty.
//!
//! All arithmetic is on integers, so that every machine draws the same requests.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use kvtile_random::SplitMix64;

use super::{generate::PAGE_SIZE, trace::TraceRow};

/// A quantile function: values at parts of a thousand, with straight lines between them.
type Quantiles = [(u64, u64)];

/// Tokens of the first request of a conversation, without its system prompt.
const FIRST_TOKENS: &Quantiles = &[
    (0, 580),
    (50, 898),
    (250, 1_583),
    (500, 6_607),
    (750, 15_306),
    (900, 27_834),
    (950, 41_560),
    (990, 92_126),
    (1000, 120_000),
];

/// Tokens of a document that is read once.
const DOCUMENT_TOKENS: &Quantiles = &[(0, 8_000), (500, 24_000), (900, 60_000), (1000, 110_000)];

/// Tokens that a turn adds beside the answer before it.
const MORE_TOKENS: &Quantiles = &[
    (0, 4),
    (250, 9),
    (500, 25),
    (600, 46),
    (700, 169),
    (800, 725),
    (900, 4_245),
    (950, 7_665),
    (990, 18_870),
    (1000, 30_000),
];

/// Tokens of an answer.
const ANSWER_TOKENS: &Quantiles = &[
    (0, 1),
    (50, 9),
    (250, 153),
    (500, 356),
    (750, 478),
    (950, 708),
    (1000, 1_600),
];

/// Milliseconds from a request to the next one of its conversation.
const PAUSE_MS: &Quantiles = &[
    (0, 8_000),
    (50, 27_000),
    (250, 66_000),
    (500, 120_000),
    (750, 258_000),
    (900, 429_000),
    (950, 552_000),
    (990, 834_000),
    (1000, 1_200_000),
];

/// Milliseconds from one new conversation or document to the next: an exponential distribution whose mean
/// is 430.
const ARRIVAL_MS: &Quantiles = &[
    (0, 0),
    (250, 124),
    (500, 298),
    (750, 596),
    (900, 990),
    (990, 1_980),
    (1000, 3_000),
];

/// Of a thousand conversations, how many return after their first turn, their second, and so on; after
/// later ones as after the last.
const RETURNS: [u64; 6] = [280, 410, 550, 550, 760, 800];

/// Applications, the popular ones first.
const APPLICATIONS: u64 = 12;

/// Blocks of the longest system prompt.
const PROMPT_BLOCKS_MAX: u64 = 8;

/// Milliseconds until the system prompt of an application changes, on average.
const PROMPT_LASTS_MS: u64 = 60_000;

/// New requests of which one reads a document.
const DOCUMENT_ONE_IN: u64 = 8;

/// Tokens of the longest prompt.
const TOKENS_MAX: u64 = 120_000;

/// The rows of a trace of this workload.
pub(super) fn rows(requests: usize, seed: u64) -> Vec<TraceRow> {
    let mut service = ServiceGenerator::new(seed);
    (0..requests).map(|_| service.next_request()).collect()
}

/// What every request of a conversation begins with, and how far it has come.
#[derive(Clone, Debug)]
struct ServiceConversation {
    /// Ids of the full blocks so far.
    ids: Vec<u64>,
    tokens: u64,
    turns: usize,
}

#[derive(Debug)]
struct ServiceGenerator {
    random: SplitMix64,
    next_id: u64,
    /// Ids of the current system prompt of each application.
    prompts: Vec<Vec<u64>>,
    /// When the next conversation or document arrives.
    arrival_ms: u64,
    /// When a system prompt changes next.
    change_ms: u64,
    /// Conversations that return: when, and the number of each in `sessions`.
    returns: BinaryHeap<Reverse<(u64, u64)>>,
    sessions: BTreeMap<u64, ServiceConversation>,
    sessions_so_far: u64,
}

impl ServiceGenerator {
    fn new(seed: u64) -> ServiceGenerator {
        let mut service = ServiceGenerator {
            random: SplitMix64::new(seed),
            next_id: 0,
            prompts: Vec::new(),
            arrival_ms: 0,
            change_ms: PROMPT_LASTS_MS,
            returns: BinaryHeap::new(),
            sessions: BTreeMap::new(),
            sessions_so_far: 0,
        };
        for _ in 0..APPLICATIONS {
            let prompt = service.new_prompt();
            service.prompts.push(prompt);
        }
        service
    }

    /// The next request: of a conversation that returns, or a new one.
    fn next_request(&mut self) -> TraceRow {
        let returning = self.returns.peek().map(|Reverse((at, _))| *at);
        if returning.is_some_and(|at| at <= self.arrival_ms)
            && let Some(Reverse((now, number))) = self.returns.pop()
            && let Some(mut session) = self.sessions.remove(&number)
        {
            session.tokens = (session.tokens + self.draw(MORE_TOKENS)).min(TOKENS_MAX);
            return self.turn(now, session);
        }
        let now = self.arrival_ms;
        self.arrival_ms += self.draw(ARRIVAL_MS);
        self.change_prompts(now);
        if self.random.once_in(DOCUMENT_ONE_IN) {
            let tokens = self.draw(DOCUMENT_TOKENS);
            let answer = self.draw(ANSWER_TOKENS);
            return self.row(now, &mut Vec::new(), tokens, answer);
        }
        // Of two applications the more popular one: the first has a sixth of the requests.
        let application = self.random.index(self.prompts.len());
        let application = application.min(self.random.index(self.prompts.len()));
        let ids = self.prompts.get(application).cloned().unwrap_or_default();
        let prompt = ids.len() as u64 * u64::from(PAGE_SIZE);
        let tokens = (prompt + self.draw(FIRST_TOKENS)).min(TOKENS_MAX);
        let turns = 0;
        self.turn(now, ServiceConversation { ids, tokens, turns })
    }

    /// One turn of a conversation. Schedules the next one, if there is one.
    fn turn(&mut self, now: u64, mut session: ServiceConversation) -> TraceRow {
        let answer = self.draw(ANSWER_TOKENS);
        let row = self.row(now, &mut session.ids, session.tokens, answer);
        let returns = RETURNS.get(session.turns).or(RETURNS.last());
        let returns = returns.is_some_and(|&chance| self.random.below(1000) < chance);
        if returns && session.tokens < TOKENS_MAX {
            session.turns += 1;
            session.tokens += answer;
            let number = self.sessions_so_far;
            self.sessions_so_far += 1;
            let at = now + self.draw(PAUSE_MS);
            self.returns.push(Reverse((at, number)));
            self.sessions.insert(number, session);
        }
        row
    }

    /// A request of so many tokens that begins with these full blocks; adds its other full blocks to them.
    fn row(&mut self, now: u64, ids: &mut Vec<u64>, tokens: u64, answer: u64) -> TraceRow {
        let tokens = tokens.max(1);
        let page_size = u64::from(PAGE_SIZE);
        let full = tokens / page_size;
        let more = self.fresh(full.saturating_sub(ids.len() as u64));
        ids.extend(more);
        let mut hash_ids = ids.clone();
        if !tokens.is_multiple_of(page_size) {
            hash_ids.extend(self.fresh(1));
        }
        TraceRow {
            timestamp: now,
            input_length: u32::try_from(tokens).unwrap_or(u32::MAX),
            output_length: u32::try_from(answer).unwrap_or(u32::MAX),
            hash_ids,
            page_size: None,
        }
    }

    fn change_prompts(&mut self, now: u64) {
        while self.change_ms <= now {
            self.change_ms += 1 + self.random.below(2 * PROMPT_LASTS_MS);
            let prompt = self.new_prompt();
            let application = self.random.index(self.prompts.len());
            if let Some(current) = self.prompts.get_mut(application) {
                *current = prompt;
            }
        }
    }

    fn new_prompt(&mut self) -> Vec<u64> {
        let blocks = 1 + self.random.below(PROMPT_BLOCKS_MAX);
        self.fresh(blocks)
    }

    /// Ids that no block has yet.
    fn fresh(&mut self, count: u64) -> Vec<u64> {
        let start = self.next_id;
        self.next_id += count;
        (start..self.next_id).collect()
    }

    fn draw(&mut self, quantiles: &Quantiles) -> u64 {
        value_at(quantiles, self.random.below(1_000_000))
    }
}

/// The value of a quantile function at so many millionths.
fn value_at(quantiles: &Quantiles, millionths: u64) -> u64 {
    let pairs = quantiles.iter().zip(quantiles.iter().skip(1));
    for (&(from, low), &(to, high)) in pairs {
        let (from, to) = (from * 1000, to * 1000);
        if millionths < to {
            return low + (high - low) * millionths.saturating_sub(from) / (to - from).max(1);
        }
    }
    quantiles.last().map_or(0, |&(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_straight_lines_between_their_points() {
        let line: &Quantiles = &[(0, 10), (500, 20), (1000, 120)];
        let expected = [
            (0, 10),
            (250_000, 15),
            (500_000, 20),
            (750_000, 70),
            (1_000_000, 120),
        ];
        for (at, value) in expected {
            assert_eq!(value_at(line, at), value, "{at}");
        }
        for table in [
            FIRST_TOKENS,
            DOCUMENT_TOKENS,
            MORE_TOKENS,
            ANSWER_TOKENS,
            PAUSE_MS,
            ARRIVAL_MS,
        ] {
            let rises = |pair: &[(u64, u64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
            assert!(table.windows(2).all(rises), "{table:?}");
            assert_eq!(
                (table[0].0, table.last().unwrap().0),
                (0, 1000),
                "{table:?}"
            );
        }
    }

    #[test]
    fn requests_come_in_order_with_the_lengths_and_returns_of_the_tables() {
        let rows = rows(4_000, 5);
        assert!(rows.is_sorted_by_key(|row| row.timestamp));
        let mut lengths: Vec<u32> = rows.iter().map(|row| row.output_length).collect();
        lengths.sort_unstable();
        assert!((320..400).contains(&lengths[2_000]), "{}", lengths[2_000]);
        // A request that finds more than a system prompt continues a conversation.
        let mut seen = std::collections::HashSet::new();
        let mut continued = 0;
        for row in &rows {
            let longest = usize::try_from(PROMPT_BLOCKS_MAX).unwrap();
            continued += usize::from(
                row.hash_ids
                    .get(longest)
                    .is_some_and(|id| seen.contains(id)),
            );
            seen.extend(row.hash_ids.iter().copied());
        }
        // The published trace has 30 % continuations, of which some are shorter.
        assert!((600..1_600).contains(&continued), "{continued}");
    }
}
