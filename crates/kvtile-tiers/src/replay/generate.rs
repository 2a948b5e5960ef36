//! Generated requests of several workloads. The same seed gives the same requests on every machine.

use kvtile_random::SplitMix64;

use super::{
    service,
    trace::{Trace, TraceError, TraceRow},
};

/// The kind of requests that [`generate`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Conversations of several turns, with pauses between the turns.
    Chat,
    /// Many long system prompts, each followed by short questions that do not return.
    SystemPrompts,
    /// A prompt, one or two of many documents of uneven popularity, and a question.
    Documents,
    /// Conversations, and one request in 24 that reads a long archive once.
    Scans,
    /// A service as the published conversation trace shows it: conversations that return after think times,
    /// one-off documents, and system prompts that change.
    Service,
}

impl Workload {
    /// All workloads.
    pub const ALL: [Workload; 5] = [
        Workload::Chat,
        Workload::SystemPrompts,
        Workload::Documents,
        Workload::Scans,
        Workload::Service,
    ];
}

/// Tokens of a block of generated traces.
pub(super) const PAGE_SIZE: u32 = 512;

/// Most requests that are generated, as all of them are in memory.
const REQUESTS_MAX: usize = 1 << 20;

/// Generates `requests` requests, at most 2^20.
///
/// # Errors
/// [`TraceError::Empty`] for no requests, [`TraceError::TooManyRequests`].
pub fn generate(workload: Workload, requests: usize, seed: u64) -> Result<Trace, TraceError> {
    if requests > REQUESTS_MAX {
        let max = REQUESTS_MAX;
        return Err(TraceError::TooManyRequests { requests, max });
    }
    Trace::of_rows(&rows(workload, requests, seed), PAGE_SIZE)
}

/// The rows of a trace.
pub(super) fn rows(workload: Workload, requests: usize, seed: u64) -> Vec<TraceRow> {
    if workload == Workload::Service {
        return service::rows(requests, seed);
    }
    let mut generator = RequestGenerator {
        random: SplitMix64::new(seed),
        next_id: 0,
        conversations: Vec::new(),
        prompts: Vec::new(),
        documents: Vec::new(),
        now: 0,
    };
    (0..requests).map(|_| generator.row(workload)).collect()
}

/// A number below `end` whose octave is uniform, so that small numbers are frequent.
fn skewed(random: &mut SplitMix64, end: u64) -> u64 {
    let bits = u64::from(end.max(1).ilog2()) + 1;
    let octave = random.below(bits + 1);
    random.below(1_u64 << octave).min(end.saturating_sub(1))
}

#[derive(Clone)]
struct Conversation {
    ids: Vec<u64>,
    turns_left: u64,
}

struct RequestGenerator {
    random: SplitMix64,
    next_id: u64,
    conversations: Vec<Conversation>,
    prompts: Vec<Vec<u64>>,
    /// The ids of each document, by the prompt, the document and the second document of its chain.
    documents: Vec<((u64, u64, u64), Vec<u64>)>,
    now: u64,
}

impl RequestGenerator {
    fn fresh(&mut self, count: u64) -> Vec<u64> {
        let start = self.next_id;
        self.next_id += count;
        (start..self.next_id).collect()
    }

    fn row(&mut self, workload: Workload) -> TraceRow {
        self.now += self.random.below(800);
        match workload {
            Workload::Chat => self.chat(),
            Workload::SystemPrompts => self.question(),
            Workload::Documents => self.document(),
            Workload::Scans if self.random.once_in(24) => {
                let ids = self.fresh(240);
                self.finish(ids)
            }
            Workload::Scans | Workload::Service => self.chat(),
        }
    }

    /// A request with these full blocks and, for most, a partial block.
    fn finish(&mut self, mut ids: Vec<u64>) -> TraceRow {
        let full = u32::try_from(ids.len()).unwrap_or(u32::MAX / PAGE_SIZE - 1);
        let tail = u32::try_from(self.random.below(u64::from(PAGE_SIZE))).unwrap_or(0);
        if tail > 0 || full == 0 {
            ids.extend(self.fresh(1));
        }
        let output = skewed(&mut self.random, 2000);
        TraceRow {
            timestamp: self.now,
            input_length: full * PAGE_SIZE + if full == 0 { tail.max(1) } else { tail },
            output_length: u32::try_from(output).unwrap_or(0),
            hash_ids: ids,
            page_size: None,
        }
    }

    fn prompt(&mut self, prompts: u64, blocks: u64) -> (u64, Vec<u64>) {
        while (self.prompts.len() as u64) < prompts {
            let len = 1 + self.random.below(blocks);
            let prompt = self.fresh(len);
            self.prompts.push(prompt);
        }
        let number = skewed(&mut self.random, prompts);
        let index = usize::try_from(number).unwrap_or(0);
        (number, self.prompts.get(index).cloned().unwrap_or_default())
    }

    fn chat(&mut self) -> TraceRow {
        let open = self.conversations.len() as u64;
        let goes_on = open > 0 && self.random.below(10) < 7;
        let at = if goes_on {
            // The last conversations to speak continue most often.
            let back = skewed(&mut self.random, open);
            usize::try_from(open - 1 - back).unwrap_or(0)
        } else {
            let (_, ids) = self.prompt(6, 3);
            let turns_left = skewed(&mut self.random, 16);
            self.conversations.push(Conversation { ids, turns_left });
            self.conversations.len() - 1
        };
        let mut conversation = self.conversations.remove(at);
        let grows = 1 + skewed(&mut self.random, 20);
        let more = self.fresh(grows);
        conversation.ids.extend(more);
        let row = self.finish(conversation.ids.clone());
        if conversation.turns_left > 0 && conversation.ids.len() < 200 {
            conversation.turns_left -= 1;
            self.conversations.push(conversation);
        }
        row
    }

    fn question(&mut self) -> TraceRow {
        let (_, mut ids) = self.prompt(400, 24);
        let len = skewed(&mut self.random, 8);
        let question = self.fresh(len);
        ids.extend(question);
        self.finish(ids)
    }

    fn document(&mut self) -> TraceRow {
        let (prompt, mut ids) = self.prompt(4, 4);
        let first = skewed(&mut self.random, 3000);
        let second = match self.random.below(3) {
            0 => skewed(&mut self.random, 3000),
            _ => u64::MAX,
        };
        let places = [(prompt, first, u64::MAX), (prompt, first, second)];
        let count = if second == u64::MAX { 1 } else { 2 };
        for place in places.into_iter().take(count) {
            let known = self.documents.iter().find(|(at, _)| *at == place);
            let blocks = match known {
                Some((_, blocks)) => blocks.clone(),
                None => {
                    let len = 2 + self.random.below(12);
                    let blocks = self.fresh(len);
                    self.documents.push((place, blocks.clone()));
                    blocks
                }
            };
            ids.extend(blocks);
        }
        self.finish(ids)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::replay::TraceLimits;

    const SHIPPED: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/traces/generated.jsonl"
    );

    /// Requests of the trace that ships, and their seed.
    const SHIPPED_REQUESTS: (usize, u64) = (2_000, 1);

    /// The lines of the trace that ships.
    fn lines() -> String {
        let (requests, seed) = SHIPPED_REQUESTS;
        let rows = rows(Workload::Service, requests, seed);
        let line = |row: &TraceRow| serde_json::to_string(row).unwrap() + "\n";
        rows.iter().map(line).collect()
    }

    #[test]
    fn the_trace_that_ships_is_the_one_that_is_generated() {
        if std::env::var_os("KVTILE_WRITE_TRACE").is_some() {
            fs::write(SHIPPED, lines()).unwrap();
        }
        let shipped = fs::read_to_string(SHIPPED).unwrap();
        assert!(
            shipped == lines(),
            "docs/traces/generated.jsonl is of another generator; write it anew with \
             `KVTILE_WRITE_TRACE=1 cargo test -p kvtile-tiers --lib the_trace_that_ships`"
        );
        assert!(shipped.len() < 1_000_000, "{} bytes", shipped.len());
        let read = Trace::read(shipped.as_bytes(), &TraceLimits::default()).unwrap();
        let (requests, seed) = SHIPPED_REQUESTS;
        let made = generate(Workload::Service, requests, seed).unwrap();
        assert!(read.requests().eq(made.requests()));
    }
}
