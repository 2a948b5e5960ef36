//! Lookups that wait for the answers of a tier.

use std::{
    any::Any,
    collections::HashSet,
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use kvtile_blocks::{
    BlockKey, Tick,
    events::{StoredBlock, TierId, TierKind},
    pool::PinClaim,
};
use kvtile_testkit::tier::MemoryTier;
use kvtile_tiers::{
    RequestError, SettingsError, TierError,
    cache::Completion,
    metrics::MissReason,
    tier::{
        AnswerTime, BlockRead, BlockWrite, GroupId, ReadReport, SyncReport, Tier, TierAbilities,
        TierAnswer, TierHold, TierSettings, TierStats, WriteReport,
    },
};
use kvtile_transfer::completion::Completer;
use parking_lot::Mutex;

use super::common::{TestEngine, chain, engine_layout, settings};
use super::keeper::{self, TestCache};

const WITHIN: Duration = Duration::from_secs(60);

/// A tier whose lookups know only the keys of earlier answers. The test answers.
#[derive(Debug)]
struct AnsweringTier {
    inner: MemoryTier,
    known: Mutex<HashSet<BlockKey>>,
    questions: Mutex<Vec<(Vec<BlockKey>, Completer<TierAnswer>)>>,
    /// Whether it claims to read pieces, which it does not verify.
    reads_pieces: bool,
}

impl AnsweringTier {
    /// Answers all questions; returns their number.
    fn answer(&self, failure: Option<&TierError>) -> usize {
        let questions = std::mem::take(&mut *self.questions.lock());
        let number = questions.len();
        for (keys, completer) in questions {
            let there = keys
                .iter()
                .take_while(|key| self.inner.has(GroupId(0), key));
            let there: Vec<BlockKey> = there.copied().collect();
            let leading = match failure {
                None => there.len(),
                Some(_) => 0,
            };
            if failure.is_none() {
                self.known.lock().extend(there);
            }
            let mut answer = TierAnswer::of(leading);
            answer.failure = failure.cloned();
            completer.finish(answer);
        }
        number
    }

    fn known(&self, keys: &[BlockKey]) -> usize {
        let known = self.known.lock();
        keys.iter().take_while(|key| known.contains(key)).count()
    }
}

impl Tier for AnsweringTier {
    fn id(&self) -> TierId {
        self.inner.id()
    }

    fn abilities(&self) -> TierAbilities {
        TierAbilities {
            answers: AnswerTime::Later,
            reads_pieces: self.reads_pieces,
            verifies: false,
            ..self.inner.abilities()
        }
    }

    fn find(
        &self,
        group: GroupId,
        keys: &[BlockKey],
        claim: &PinClaim,
    ) -> Option<Box<dyn TierHold>> {
        self.inner.find(group, &keys[..self.known(keys)], claim)
    }

    fn hold(&self, group: GroupId, keys: &[BlockKey]) -> Option<Box<dyn TierHold>> {
        self.inner.hold(group, &keys[..self.known(keys)])
    }

    fn ask(&self, _group: GroupId, keys: &[BlockKey]) -> Completion<TierAnswer> {
        let completer = Completer::new(0, 0);
        let completion = completer.completion();
        self.questions.lock().push((keys.to_vec(), completer));
        completion
    }

    fn read(&self, blocks: Vec<BlockRead>) -> Completion<ReadReport> {
        self.inner.read(blocks)
    }

    fn write(&self, blocks: Vec<BlockWrite>) -> Completion<WriteReport> {
        self.inner.write(blocks)
    }

    fn forget(&self, group: GroupId, keys: &[BlockKey]) -> usize {
        self.inner.forget(group, keys)
    }

    fn evict(&self, blocks: usize, now: Tick) -> usize {
        self.inner.evict(blocks, now)
    }

    fn clear(&self, now: Tick) -> usize {
        self.inner.clear(now)
    }

    fn sync(&self) -> Completion<SyncReport> {
        self.inner.sync()
    }

    fn durable(&self, group: GroupId, keys: &[BlockKey]) -> Vec<bool> {
        self.inner.durable(group, keys)
    }

    fn stats(&self) -> TierStats {
        self.inner.stats()
    }

    fn estimate(&self, group: GroupId, blocks: usize) -> Option<Duration> {
        self.inner.estimate(group, blocks)
    }

    fn list(&self, blocks: &mut Vec<StoredBlock>) {
        self.inner.list(blocks);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A cache over the tier, which has the first `there` blocks of chain 1, and host memory none.
fn open(there: usize, answer_within: Duration) -> (TestCache, Arc<AnsweringTier>, Vec<BlockKey>) {
    let id = TierId::new(TierKind::Remote, "answering").unwrap();
    let opened: Arc<Mutex<Weak<AnsweringTier>>> = Arc::default();
    let slot = Arc::clone(&opened);
    let tier = TierSettings::default().answer_within(answer_within);
    let cache = keeper::builder(settings(16))
        .tier(tier, move |context| {
            let inner = MemoryTier::shared(id, 64, context).unwrap();
            let tier = Arc::new(AnsweringTier {
                inner,
                known: Mutex::default(),
                questions: Mutex::default(),
                reads_pieces: false,
            });
            *slot.lock() = Arc::downgrade(&tier);
            Ok(tier as Arc<dyn Tier>)
        })
        .open(engine_layout())
        .unwrap();
    let tier = opened.lock().upgrade().unwrap();
    let keys = chain(1, 10);
    TestEngine::new(&cache).store(&keys[..there], 0);
    cache.evict(TierId::HOST, there).unwrap();
    assert_eq!(tier.stats().present, there as u64);
    (cache, tier, keys)
}

#[test]
fn a_tier_that_reads_pieces_and_verifies_none_is_refused() {
    let id = TierId::new(TierKind::Remote, "answering").unwrap();
    let opened = keeper::builder(settings(16))
        .tier(TierSettings::default(), move |context| {
            Ok(Arc::new(AnsweringTier {
                inner: MemoryTier::shared(id, 64, context).unwrap(),
                known: Mutex::default(),
                questions: Mutex::default(),
                reads_pieces: true,
            }) as Arc<dyn Tier>)
        })
        .open(engine_layout());
    let Err(error) = opened else {
        panic!("no checksum of a piece would be compared");
    };
    // A client of a daemon has the text alone.
    let expected = SettingsError::PiecesNotVerified { tier: id }.to_string();
    assert!(error.to_string().contains(&expected), "{error}");
}

#[test]
fn a_seek_finds_what_the_answer_names_and_a_lookup_alone_does_not() {
    let (cache, tier, keys) = open(6, WITHIN);
    assert_eq!(cache.lookup(&keys).blocks(), 0);
    let seek = cache.seek(&keys, WITHIN);
    assert!(!seek.is_ready() && seek.waits_for() == 1);
    let seek = seek.try_match().unwrap_err();
    while tier.answer(None) == 0 {
        thread::yield_now();
    }
    assert!(seek.wait_timeout(WITHIN));
    let found = seek.try_match().unwrap();
    assert_eq!(found.blocks_in(tier.id()), 6);
    let mut engine = TestEngine::new(&cache);
    let load = cache.load(found, &[20, 21, 22, 23, 24, 25]).unwrap();
    assert_eq!(load.wait().blocks, 6);
    for (block, key) in (20..).zip(&keys[..6]) {
        assert!(engine.holds(key, block));
    }
    let stats = cache.stats();
    assert_eq!(stats.misses[&MissReason::Absent], 10 + 4);
}

#[test]
fn a_seek_waits_for_its_time_and_no_longer() {
    let (cache, tier, keys) = open(6, WITHIN);
    let begin = Instant::now();
    let found = cache.seek(&keys, Duration::from_millis(30)).wait();
    assert!(begin.elapsed() >= Duration::from_millis(30));
    assert_eq!(found.blocks(), 0);
    assert_eq!(cache.stats().misses[&MissReason::Late], 10);
    // The time of the caller does not blame the tier, and the answer serves the next lookup.
    tier.answer(None);
    assert_eq!(cache.lookup(&keys).blocks(), 6);
    let seek = cache.seek(&keys, Duration::ZERO);
    // A daemon's answer takes a round trip.
    assert!(seek.wait_timeout(WITHIN));
    assert_eq!(seek.try_match().unwrap().blocks(), 6);
    thread::scope(|scope| {
        let waits = scope.spawn(|| cache.seek(&chain(2, 3), WITHIN).wait().blocks());
        while !waits.is_finished() {
            tier.answer(None);
            thread::yield_now();
        }
        assert_eq!(waits.join().unwrap(), 0);
    });
}

#[test]
fn a_tier_that_fails_or_never_answers_is_left_alone_for_a_time() {
    let refused = || TierError::Request(RequestError::ReadOnlyStore);
    for failure in [Some(refused()), None] {
        let (cache, tier, keys) = open(6, Duration::from_millis(20));
        let seek = cache.seek(&keys, WITHIN);
        match &failure {
            Some(error) => {
                while tier.answer(Some(error)) == 0 {
                    thread::yield_now();
                }
            }
            None => thread::sleep(Duration::from_millis(30)),
        }
        let found = match failure.is_some() {
            true => seek.wait(),
            false => {
                drop(seek);
                cache.seek(&keys, Duration::from_millis(30)).wait()
            }
        };
        assert_eq!(found.blocks(), 0);
        // The tier gets no question now, so the next seek is ready at once.
        tier.questions.lock().clear();
        let (begin, next) = (Instant::now(), cache.seek(&keys, WITHIN));
        assert!(next.wait_timeout(WITHIN) && begin.elapsed() < WITHIN);
        assert!(tier.questions.lock().is_empty());
        assert_eq!(next.wait().blocks(), 0);
    }
}

#[test]
fn a_seek_outlives_its_cache_and_finds_nothing() {
    let (cache, tier, keys) = open(6, WITHIN);
    let seek = cache.seek(&keys, WITHIN);
    drop(cache);
    tier.answer(None);
    assert_eq!(seek.wait().blocks(), 0);
}
