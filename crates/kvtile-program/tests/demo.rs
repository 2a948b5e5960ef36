//! `kvtile demo` as a user runs it: real processes, mostly with the tiny model.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longest that a process is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program, its files in `cache`.
fn demo(cache: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvtile"));
    command.arg("demo").args(args).arg("--cache-dir").arg(cache);
    command.env_remove("NO_COLOR").env_remove("COLUMNS");
    command
}

fn run(cache: &Path, args: &[&str]) -> Output {
    demo(cache, args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What a run that shows everything printed.
fn shown(cache: &Path, args: &[&str]) -> String {
    let output = run(cache, args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout).to_owned()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

/// Folders of runs in the cache.
fn runs(cache: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_run = |path: &PathBuf| {
        path.file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("demo-")
    };
    paths.filter(is_run).collect()
}

#[test]
fn any_layout_of_stored_blocks_gives_equal_tokens() {
    let cache = tempfile::tempdir().unwrap();
    for (word, more) in [
        ("BHLKNC", &["--page-size", "24"][..]),
        ("BLNHN4KC", &["--threads", "1"]),
        (
            "BLH(kNCN16C2,vCNC16N2)",
            &["--page-size", "32", "--tokens", "3"],
        ),
        ("BKLNHC", &["--page-size", "7"]),
    ] {
        let args = [&["--tiny", "--store-layout", word], more].concat();
        let out = shown(cache.path(), &args);
        assert!(out.starts_with("kvtile demo: "), "{out}");
        assert!(out.contains("tokens equal: yes"), "{out}");
        assert!(
            out.contains(&format!("blocks into host memory in {word}")),
            "{out}"
        );
        assert!(
            out.contains("blocks from host memory into L|BKNHC"),
            "{out}"
        );
        assert!(out.contains("blocks from disk into L|BH(kCN,vNC)"), "{out}");
        assert!(out.contains("refused: rope.base is 500000.0"), "{out}");
        assert!(
            out.contains("tiny Llama with random weights (no real model)"),
            "{out}"
        );
        for line in out.lines() {
            assert!(line.chars().count() <= 80, "more than 80 columns: {line}");
        }
    }
    assert!(runs(cache.path()).is_empty());
}

#[test]
fn a_layout_that_is_none_or_does_not_fit_is_a_request_that_makes_no_sense() {
    let cache = tempfile::tempdir().unwrap();
    // Not a word; a word that lacks an axis; a modulus that does not divide the page; blocks in
    // pieces.
    for (word, problem) in [
        ("BH(", ""),
        ("BHLKN", "C"),
        ("BLKHCN5N", "N"),
        ("L|KBNHC", "--store-layout"),
    ] {
        let output = run(cache.path(), &["--tiny", "--store-layout", word]);
        assert_eq!(output.status.code(), Some(2), "{word}");
        let error = text(&output.stderr);
        assert!(
            error.starts_with("error: ") && error.contains(problem),
            "{word}: {error}"
        );
        assert!(!text(&output.stdout).contains("prefill"), "{word}");
    }
    for args in [
        &["--page-size", "0"][..],
        &["--tiny", "--page-size", "5000"],
        &["--tiny", "--page-size", "9999"],
        &["--tokens", "0"],
        &["--model", "x", "--tiny"],
    ] {
        assert_eq!(run(cache.path(), args).status.code(), Some(2), "{args:?}");
    }
    let absent = run(cache.path(), &["--model", "/absent.gguf"]);
    assert_eq!(absent.status.code(), Some(1));
    assert!(text(&absent.stderr).contains("cannot open /absent.gguf"));
}

#[test]
fn a_model_file_of_the_user_is_taken_as_it_is() {
    let cache = tempfile::tempdir().unwrap();
    let model = cache.path().join("model.gguf");
    fs::write(&model, kvtile_demo::tiny::gguf(9)).unwrap();
    let mut command = demo(cache.path(), &["--model", "model.gguf", "--json"]);
    let output = command.current_dir(cache.path()).output().unwrap();
    let report = json(&output.stdout);
    assert_eq!(report["first"]["model"]["tiny"], false);
    let name = report["second"]["model"]["name"].as_str().unwrap();
    assert!(name.ends_with("seed 9"), "{name}");
    assert_eq!(report["tokens_equal"], true);
    fs::write(&model, "GGUF, but nothing else").unwrap();
    let output = run(cache.path(), &["--model", model.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("GGUF version"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn json_has_every_figure_and_nothing_else_on_standard_output() {
    let cache = tempfile::tempdir().unwrap();
    let output = run(cache.path(), &["--tiny", "--json", "--tokens", "9"]);
    assert!(text(&output.stderr).starts_with("kvtile demo: "));
    let report = json(&output.stdout);
    let (first, second) = (&report["first"], &report["second"]);
    assert_ne!(first["process_id"], second["process_id"]);
    assert_eq!(first["model"]["tiny"], true);
    assert_eq!(first["model"]["sha256"], second["model"]["sha256"]);
    assert_eq!(first["open"]["layout"], "BHLKNC");
    assert_eq!(first["open"]["found_blocks"], 0);
    assert_eq!(second["open"]["found_blocks"], first["flushed"]["blocks"]);
    assert_eq!(report["tokens_equal"], true);
    assert_eq!(report["tokens_compared"], 18);
    let requests = report["requests"].as_array().unwrap();
    let prompt = &first["prompt"];
    let all = serde_json::json!({
        "blocks": prompt["prefix_blocks"],
        "tokens": prompt["prefix_tokens"],
    });
    let nothing = serde_json::json!({ "blocks": 0, "tokens": 0 });
    for (request, (process, from, layout)) in requests.iter().zip([
        (first, "recomputed", "L|BKNHC"),
        (first, "host", "L|BKNHC"),
        (second, "disk", "L|BH(kCN,vNC)"),
    ]) {
        assert_eq!(request["process_id"], process["process_id"]);
        let prefix = &request["prefix"];
        for source in ["recomputed", "host", "disk"] {
            let expected = if source == from { &all } else { &nothing };
            assert_eq!(&prefix[source], expected, "{source} of {request}");
        }
        assert_eq!(prefix["layout"], layout);
        assert_eq!(prefix["bytes"], prompt["prefix_bytes"]);
        let tokens = |answer: &Value| answer["tokens"].as_array().unwrap().len();
        assert_eq!(tokens(&request["answer"]), 9);
        assert_eq!(
            request["answer"]["tokens"],
            request["recompute"]["answer"]["tokens"]
        );
        assert_eq!(request["first_difference"], Value::Null);
        let seconds = |value: &Value| value.as_f64().filter(|seconds| *seconds > 0.0).unwrap();
        let saved = seconds(&request["recompute"]["prefix_seconds"]) - seconds(&prefix["seconds"]);
        assert!((request["saved_seconds"].as_f64().unwrap() - saved).abs() < 1e-9);
        let ratio = seconds(&request["recompute"]["first_token_seconds"])
            / seconds(&request["first_token_seconds"]);
        assert!((seconds(&request["first_token_ratio"]) - ratio).abs() < 1e-6);
    }
    let compared = requests.iter().map(|request| &request["tokens_compared"]);
    assert_eq!(compared.collect::<Vec<_>>(), [0, 9, 9]);
    assert_eq!(report["refusal"]["field"], "rope.base");
    assert_eq!(report["kept"], Value::Null);
}

/// Pitfall 36: no checksum on stored data.
#[test]
fn a_kept_folder_can_be_looked_at_and_continued_until_a_byte_of_it_flips() {
    let cache = tempfile::tempdir().unwrap();
    let output = run(cache.path(), &["--tiny", "--keep", "--json"]);
    let report = json(&output.stdout);
    let kept = PathBuf::from(report["kept"].as_str().unwrap());
    let folder = PathBuf::from(report["first"]["open"]["folder"].as_str().unwrap());
    let program = |args: &[&OsStr], input: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kvtile"));
        command.args(args).stdin(input).output().unwrap()
    };
    let again = || {
        let request = fs::File::open(kept.join("resume.json")).unwrap();
        program(&[OsStr::new("demo-resume")], request.into())
    };
    let verify = || {
        let args = ["cache", "verify"].map(OsStr::new);
        program(&[args[0], args[1], folder.as_os_str()], Stdio::null())
    };
    assert!(verify().status.success());
    let resumed = again();
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    let done = json(
        resumed
            .stdout
            .split(|byte| *byte == b'\n')
            .rev()
            .nth(1)
            .unwrap(),
    );
    assert_eq!(
        done["done"]["request"]["answer"]["tokens"],
        report["requests"][2]["answer"]["tokens"]
    );

    let slots = folder.join("slots");
    let mut bytes = fs::read(&slots).unwrap();
    let at = bytes.iter().position(|byte| *byte != 0).unwrap() + 4000;
    *bytes.get_mut(at).unwrap() ^= 0x10;
    fs::write(&slots, bytes).unwrap();
    assert_eq!(verify().status.code(), Some(1));
    let resumed = again();
    assert_eq!(resumed.status.code(), Some(1));
    let error = text(&resumed.stderr);
    assert!(error.contains("a block on disk is damaged"), "{error}");
    assert!(
        !text(&resumed.stdout).contains("\"said\""),
        "nothing of it is used"
    );
}

/// The page is self-contained: it runs no script and fetches nothing.
#[test]
fn the_page_shows_what_the_terminal_shows() {
    let cache = tempfile::tempdir().unwrap();
    let path = cache.path().join("page.html");
    let out = shown(
        cache.path(),
        &["--tiny", "--tokens", "4", "--html", path.to_str().unwrap()],
    );
    let page = fs::read_to_string(&path).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>\n"));
    for foreign in ["<script", "http://", "https://", "url(", "@import"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    // Every figure of the table in the terminal is in the table of the page.
    let names = [
        "from disk",
        "time for the prefix",
        "recomputing it took",
        "saved",
        "equal tokens",
    ];
    for name in names {
        let start = format!("  {name} ");
        let line = out.lines().find(|line| line.starts_with(&start)).unwrap();
        let cells = line.strip_prefix(&start).unwrap();
        let cells = cells
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty());
        let row = page
            .split("<tr")
            .find(|row| row.contains(&format!(">{name}<")))
            .unwrap();
        for cell in cells {
            assert!(
                row.contains(&format!("<td>{cell}</td>")),
                "{name}: {cell} in {row}"
            );
        }
    }
    assert_eq!(page.matches("<blockquote>").count(), 3);
    assert!(page.contains("prefers-color-scheme: dark"));
    let pictures: Vec<&str> = page.split("<svg class=\"").skip(1).collect();
    assert_eq!(
        pictures.len(),
        2,
        "one for wide screens, one for narrow ones"
    );
    for (picture, class) in pictures.into_iter().zip(["wide", "narrow"]) {
        assert!(picture.starts_with(class));
        // Both ways for two requests, one for the first, each bar in two parts; and the zoomed view.
        assert_eq!(picture.matches("<rect").count(), 12, "{class}");
        let zoomed = picture.split("<text class=\"tick zoom\"").next().unwrap();
        let widths = zoomed.split("<rect class=\"").skip(11).map(|rect| {
            assert!(
                rect.starts_with("host") || rect.starts_with("disk"),
                "{rect}"
            );
            let width = rect.split("width=\"").nth(1).unwrap();
            width.split('"').next().unwrap().parse::<f64>().unwrap()
        });
        let longest = widths.fold(0.0, f64::max);
        assert!(
            longest > 150.0,
            "{class}: the longest loaded prefix has {longest} pixels"
        );
    }
    assert!(page.contains("<code>rope.base</code> is 500000.0"));
}

#[test]
fn without_a_way_to_fetch_the_model_the_tiny_one_takes_its_place() {
    let cache = tempfile::tempdir().unwrap();
    let mut command = demo(cache.path(), &["--tokens", "2"]);
    let output = command.env("PATH", "/nowhere").output().unwrap();
    let out = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        out.contains("The real model cannot be had: `python3` was not found"),
        "{out}"
    );
    assert!(
        out.contains("tiny Llama with random weights (no real model)"),
        "{out}"
    );
    assert!(out.contains("tokens equal: yes"), "{out}");
}

/// A process under test that does not outlive it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(mut command: Command) -> Running {
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Running(command.spawn().unwrap())
}

fn signal(name: &str, process: u32) {
    let status = Command::new("kill")
        .arg(name)
        .arg(process.to_string())
        .status();
    assert!(status.unwrap().success());
}

/// Pitfall 35: temporary files left by killed processes.
#[test]
fn a_run_that_is_interrupted_leaves_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let mut running = start(demo(cache.path(), &["--tiny", "--tokens", "9000"]));
    let started = Instant::now();
    while runs(cache.path()).is_empty() {
        assert!(started.elapsed() < PATIENCE, "it made no folder");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("prefill")));
    signal("-INT", running.0.id());
    assert_eq!(running.0.wait().unwrap().code(), Some(130));
    assert!(runs(cache.path()).is_empty());
}

#[test]
fn a_second_process_that_dies_is_a_failure_and_leaves_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let mut running = start(demo(cache.path(), &["--tiny", "--tokens", "400"]));
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines();
    let heading = lines.find_map(|line| {
        let line = line.unwrap();
        let id =
            line.strip_suffix(", started now; it is given the model, the folder and a prompt")?;
        Some(id.strip_prefix("process ").unwrap().parse().unwrap())
    });
    signal("-KILL", heading.unwrap());
    lines.for_each(drop);
    assert_eq!(running.0.wait().unwrap().code(), Some(1));
    let mut error = String::new();
    running
        .0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut error)
        .unwrap();
    assert!(
        error.contains("the second process failed (signal: 9"),
        "{error}"
    );
    assert!(runs(cache.path()).is_empty());
}

#[test]
fn the_real_model_answers_from_the_folder() {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("models");
    let output = run(&cache, &["--json", "--tokens", "16"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report = json(&output.stdout);
    if let Some(reason) = report["first"]["tiny_instead"].as_str() {
        eprintln!("skipped, the real model cannot be had: {reason}");
        return;
    }
    assert_eq!(report["tokens_equal"], true);
    let answer = report["requests"][2]["answer"]["text"].as_str().unwrap();
    assert!(answer.contains("Marmalade"), "{answer}");
    assert_eq!(report["refusal"]["stored"], "100000.0");
    assert!(runs(&cache).is_empty());
}
