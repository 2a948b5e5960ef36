//! What users type by mistake, and the whole answer.
use std::fs;

use crate::program::{kvtile, program};

/// The whole answer to a request that makes no sense.
fn answers(args: &[&str], expected: &str) {
    assert_eq!(kvtile(args).fails(2), expected, "{args:?}");
}

#[test]
fn small_letters_are_answered_with_the_command_to_type() {
    answers(
        &["layout", "blknhc"],
        "error: \"blknhc\" has its axes in small letters; axes are capital letters, planes small ones: \
         BLKNHC\n  type: kvtile layout BLKNHC\n",
    );
    answers(
        &["plan", "l|bh(kcn,vnc)", "BHLKNC", "--blocks", "4"],
        "error: \"l|bh(kcn,vnc)\" has its axes in small letters; axes are capital letters, planes small \
         ones: L|BH(kCN,vNC)\n  type: kvtile plan 'L|BH(kCN,vNC)' BHLKNC --blocks 4\n",
    );
    // The command that is to be typed does what was meant.
    kvtile(&["plan", "L|BH(kCN,vNC)", "BHLKNC", "--blocks", "4"]).ok();
}

#[test]
fn an_engine_is_answered_with_its_layouts() {
    let hint = "\n  hint: give one of these in the place of a word; `kvtile layout list NAME` says what \
                each is\n";
    for engine in ["vllm", "vLLM", "vlmm"] {
        let said = kvtile(&["layout", engine]).fails(2);
        let first = format!("error: \"{engine}\" is no layout word; it names the engine ");
        assert!(said.starts_with(&first), "{said}");
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[1], "  vllm:LBHNC/gpu/bf16");
        assert_eq!(lines.len(), 15, "{said}");
        assert!(
            lines[13].starts_with("  and ") && lines[13].ends_with(" more"),
            "{said}"
        );
        assert!(said.ends_with(hint), "{said}");
        kvtile(&["layout", lines[1].trim()]).ok();
    }
    answers(
        &["layout", "LBHNC/cpu/float32/vec"],
        &format!(
            "error: \"LBHNC/cpu/float32/vec\" is no layout word; it names without its engine:\n  \
             vllm:LBHNC/cpu/f32/vec\n  vllm:LBHNC/cpu/f32/vec16{hint}"
        ),
    );
}

#[test]
fn a_missing_axis_is_named_with_its_places() {
    answers(
        &["layout", "BLKNH"],
        "error: BLKNH lacks axis C (the content: the elements of one head of one token), of which plane \
         k has 128; put C where it lies, for instance BLKNHC or BLKNCH or BLKCNH\n",
    );
    answers(
        &["layout", "BKNHC"],
        "error: BKNHC lacks axis L (the layers), of which plane k has 32; put L where it lies, for \
         instance BLKNHC or LBKNHC or BKLNHC\n",
    );
    answers(
        &["layout", "NHD"],
        "error: axis D of NHD is neither one of B L K N H C nor declared by a plane; what others call D \
         (head size) is C here\n  hint: give the planes of the shape, for instance --plane c:bf16:C=512\n",
    );
    answers(
        &["layout", "B-L"],
        "error: not a layout word: unexpected '-': a word is made of axes A-Z, planes a-z, numbers, '@', \
         '=', '(', ',', ')' and '|'\n  B-L\n   ^\n  hint: `kvtile layout --help` teaches the language\n",
    );
}

#[test]
fn data_types_and_presets_go_by_the_names_of_every_framework() {
    for (dtype, codec) in [
        ("bfloat16", "bf16"),
        ("torch.bfloat16", "bf16"),
        ("float16", "f16"),
        ("half", "f16"),
        ("float32", "f32"),
        ("fp8_e4m3", "fp8_e4m3"),
        ("torch.float8_e4m3fn", "fp8_e4m3"),
        ("fp8", "fp8_e4m3"),
        ("F8_E5M2", "fp8_e5m2"),
    ] {
        let json = kvtile(&["layout", "BLKNHC", "--dtype", dtype, "--json"]).json();
        assert_eq!(
            json["shape"]["planes"][0]["unit"]["codec"], codec,
            "{dtype}"
        );
        let plane = format!("c:{dtype}:C=512");
        let json = kvtile(&["layout", "BLNC", "--plane", &plane, "--json"]).json();
        assert_eq!(
            json["shape"]["planes"][0]["unit"]["codec"], codec,
            "{dtype}"
        );
    }
    answers(
        &["layout", "BLKNHC", "--dtype", "float33"],
        "error: --dtype \"float33\": no data type is called \"float33\"; did you mean float32?\n",
    );
    answers(
        &["layout", "BLKNHC", "--dtype", "auto"],
        "error: --dtype \"auto\": no data type is called \"auto\"; auto stands for the model's own type; \
         give that, for instance bfloat16\n",
    );
    let python = kvtile(&["layout", "vllm:LBHNC/cpu/float32/vec", "--json"]).json();
    assert_eq!(python["name"], "vllm:LBHNC/cpu/f32/vec");
}

#[test]
fn numbers_say_their_limits() {
    for option in [
        "--blocks",
        "--layers",
        "--page-size",
        "--heads",
        "--head-size",
        "--tp",
    ] {
        answers(
            &["layout", "BLKNHC", option, "-1"],
            &format!(
                "error: invalid value '-1' for '{option} <N>': give a whole number of 1 or more\n\nFor \
                 more information, try '--help'.\n"
            ),
        );
    }
    answers(
        &[
            "plan",
            "BLKNHC",
            "BLKNHC",
            "--source-tp",
            "2",
            "--source-rank",
            "-1",
        ],
        "error: invalid value '-1' for '--source-rank <N>': give a whole number of 0 or more\n\nFor more \
         information, try '--help'.\n",
    );
    answers(
        &["layout", "BLKNHC", "--alignment", "4XB"],
        "error: invalid value '4XB' for '--alignment <BYTES>': give bytes such as 1048576, 512K, 64MiB (of \
         1024) or 1GB (of 1000)\n\nFor more information, try '--help'.\n",
    );
}

#[test]
fn options_that_nothing_would_read_are_refused() {
    for side in ["source", "destination"] {
        let rank = format!("--{side}-rank");
        answers(
            &["plan", "BLKNHC", "BLKNHC", &rank, "1"],
            &format!(
                "error: {rank} \"1\": of how many ranks? Give --{side}-tp N too, or --tp N for both sides\n"
            ),
        );
    }
    answers(
        &["layout", "list", "--tp", "2"],
        "error: options of the shape beside \"list\": a list has no shape and no picture; give a word or \
         the name of a layout\n",
    );
    answers(
        &["layout", "models", "--svg", "x.svg"],
        "error: --svg beside \"models\": a list has no shape and no picture; give a word or the name of a \
         layout\n",
    );
    let said = kvtile(&["layout", "BLNC", "--plane", "c:bf16:C=5", "--heads", "4"]).fails(2);
    assert!(
        said.contains("'--plane <PLANE>' cannot be used with '--heads <N>'"),
        "{said}"
    );
}

#[test]
fn what_is_no_cache_is_said_to_be_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (empty, none, bare) = (path("empty"), path("none"), path("bare"));
    fs::write(&empty, "").unwrap();
    fs::create_dir(&bare).unwrap();
    let fails = |args: &[&str], expected: String| {
        assert_eq!(
            kvtile(args).fails(1),
            format!("error: {expected}\n"),
            "{args:?}"
        );
    };
    fails(
        &["inspect", &empty],
        format!(
            "{empty} is empty: it has 0 bytes\n  hint: a saved cache is written under another name and \
             renamed at its end, so this is none; save it again"
        ),
    );
    fails(
        &["inspect", &none],
        format!("cannot read {none}\n  because: No such file or directory (os error 2)"),
    );
    fails(
        &["inspect", &bare],
        format!(
            "{bare} is a folder, and a saved cache is a file; for the folder of a disk tier there is \
             `kvtile cache stat DIR`"
        ),
    );
    for command in ["stat", "verify"] {
        fails(&["cache", command, &none], format!("{none} does not exist"));
        fails(
            &["cache", command, &empty],
            format!(
                "{empty} is a file, and a disk tier is a folder; for a saved cache there is `kvtile \
                 inspect FILE`"
            ),
        );
        fails(
            &["cache", command, &bare],
            format!(
                "{bare} is empty: it was cleared, or no cache has been opened in it yet; the next cache \
                 that is opened there makes it a disk tier"
            ),
        );
    }
    fails(
        &["cache", "clear", &none, "--yes"],
        format!("{none} does not exist"),
    );
    assert_eq!(
        kvtile(&["cache", "clear", &bare]).ok(),
        format!("{bare} is empty\n")
    );
    // A folder of foreign files is refused and stays unchanged.
    fs::write(folder.path().join("bare/letter.txt"), "dear").unwrap();
    fails(
        &["cache", "clear", &bare, "--yes"],
        format!(
            "{bare} is no disk tier and holds \"letter.txt\"; give an empty folder or a new one"
        ),
    );
    assert_eq!(
        fs::read(folder.path().join("bare/letter.txt")).unwrap(),
        b"dear"
    );
}

#[test]
fn a_cleared_folder_is_said_to_be_cleared() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.jsonl");
    let line = r#"{"timestamp":0,"input_length":1024,"output_length":1,"hash_ids":[1,2]}"#;
    fs::write(&trace, format!("{line}\n{line}\n")).unwrap();
    let disk = folder.path().join("disk");
    let (trace, disk) = (trace.to_str().unwrap(), disk.to_str().unwrap());
    let args = [
        "replay",
        trace,
        "--block-bytes",
        "4K",
        "--capacity",
        "4",
        "--policy",
        "lru",
        "--disk",
        disk,
        "--disk-bytes",
        "1MB",
    ];
    kvtile(&args).ok();
    let tier = format!("{disk}/lru-4");
    assert!(
        kvtile(&["cache", "stat", &tier])
            .ok()
            .contains("blocks         2 of 233")
    );
    assert_eq!(
        kvtile(&["cache", "clear", &tier, "--yes"]).ok(),
        format!("{tier} is empty\n")
    );
    assert_eq!(
        kvtile(&["cache", "clear", &tier, "--yes"]).ok(),
        format!("{tier} is empty\n")
    );
    let said = kvtile(&["cache", "stat", &tier]).fails(1);
    assert!(
        said.starts_with(&format!("error: {tier} is empty: it was cleared, or")),
        "{said}"
    );
}

#[test]
fn lists_are_given_with_commas_or_by_repeating_the_option() {
    let trace = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/traces/generated.jsonl"
    );
    let runs = |args: &[&str]| {
        let mut all = vec!["replay", trace, "--dry", "--json"];
        all.extend(args);
        let report = kvtile(&all).json();
        let runs = report["runs"].as_array().unwrap().iter();
        let runs = runs.map(|run| {
            format!(
                "{}-{}",
                run["policy"].as_str().unwrap(),
                run["capacity_blocks"]
            )
        });
        runs.collect::<Vec<_>>()
    };
    let expected = ["gittins-100", "gittins-200", "lru-100", "lru-200"];
    assert_eq!(
        runs(&["--policy", "gittins,lru", "--capacity", "100,200"]),
        expected
    );
    let repeated = [
        "--policy",
        "gittins",
        "--policy",
        "lru",
        "--capacity",
        "100",
        "--capacity",
        "200",
    ];
    assert_eq!(runs(&repeated), expected);
}

#[test]
fn a_dash_is_standard_input_and_output() {
    let trace = include_str!("../../../../docs/traces/generated.jsonl");
    let args = [
        "replay",
        "-",
        "--dry",
        "--policy",
        "lru",
        "--capacity",
        "50",
    ];
    let run = |more: &[&str]| {
        let output = program()
            .args(args)
            .args(more)
            .write_stdin(trace)
            .output()
            .unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&[]).starts_with("-: 2,000 requests"));
    // A file that goes to standard output has it alone.
    let page = run(&["--html", "-"]);
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    let svg = kvtile(&["layout", "BLKNHC", "--svg", "-"]).ok();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
    let svg = kvtile(&["plan", "BLKNHC", "LBKNHC", "--svg", "-"]).ok();
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
}

#[test]
fn files_of_the_user_are_opened_first_and_replaced_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    // An output that cannot be written is refused before any input is read.
    let lost = path("none/page.html");
    let said = kvtile(&["replay", "no-such-trace", "--dry", "--html", &lost]).fails(1);
    assert!(
        said.starts_with(&format!("error: cannot write {lost}\n")),
        "{said}"
    );
    // A command that fails leaves the file as it was, and no other.
    let page = path("page.html");
    fs::write(&page, "before").unwrap();
    for option in ["--html", "--output"] {
        kvtile(&["replay", "no-such-trace", "--dry", option, &page]).fails(1);
        assert_eq!(fs::read_to_string(&page).unwrap(), "before");
    }
    let text = kvtile(&["layout", "BLKNHC"]).ok();
    assert_eq!(kvtile(&["layout", "BLKNHC", "--output", &page]).ok(), "");
    assert_eq!(fs::read_to_string(&page).unwrap(), text);
    assert_eq!(kvtile(&["layout", "BLKNHC", "-o", "-"]).ok(), text);
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    // A device is written to, and not replaced by a file.
    kvtile(&["layout", "BLKNHC", "--output", "/dev/null"]).ok();
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    kvtile(&[
        "layout",
        "BLKNHC",
        "--output",
        folder.path().to_str().unwrap(),
    ])
    .fails(1);
}
