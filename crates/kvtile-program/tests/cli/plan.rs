//! `kvtile plan` as a user runs it.
use crate::program::kvtile;

#[test]
fn a_plan_names_bytes_runs_and_loops_and_draws_both_sides() {
    let text = kvtile(&["plan", "L|KBNHC", "BHLKNC"]).ok();
    for part in [
        "16 MiB (16,777,216 bytes) in 65,536 runs of 256 B",
        "for 8 block pairs",
        "source       region 0",
        "destination  region 0",
        "Source  L|KBNHC",
        "Destination  BHLKNC",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    let widest = text.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(widest <= 80, "{widest} columns:\n{text}");
}

/// The runs that the layouts of real engines come to, one block and one layer.
#[test]
fn runs_are_as_long_as_they_can_be() {
    for (source, destination, longest) in [
        ("L|KBNHC", "KBNLHC", 2_048),
        ("L|KBNHC", "KBLNHC", 32_768),
        ("L|BHNKC", "KBNLHC", 256),
    ] {
        let args = [
            "plan",
            source,
            destination,
            "--source-blocks",
            "3",
            "--json",
        ];
        let json = kvtile(&args).json();
        assert_eq!(
            json["run_bytes"]["longest"], longest,
            "{source} to {destination}"
        );
    }
}

#[test]
fn json_has_both_sides_and_every_loop() {
    let json = kvtile(&["plan", "L|KBNHC", "BHLKNC", "--json"]).json();
    assert_eq!(json["bytes"], 16_777_216);
    assert_eq!(json["block_pairs"], 8);
    assert_eq!(json["source"]["word"], "L|KBNHC");
    assert_eq!(json["destination"]["regions"]["count"], 1);
    let nest = &json["classes"][0]["nests"][0];
    let runs: u64 = nest["loops"]
        .as_array()
        .unwrap()
        .iter()
        .map(|each| each["extent"].as_u64().unwrap())
        .product();
    assert_eq!(nest["runs"], runs);
    assert_eq!(nest["run_axes"], "C");
}

#[test]
fn equal_layouts_are_one_run() {
    let json = kvtile(&["plan", "BLKNHC", "BLKNHC", "--json"]).json();
    assert_eq!(json["runs"], 1);
}

#[test]
fn shards_share_the_heads_that_they_hold() {
    let args = [
        "plan",
        "BHLKNC",
        "BHLKNC",
        "--source-tp",
        "2",
        "--source-rank",
        "1",
        "--json",
    ];
    let json = kvtile(&args).json();
    assert_eq!(json["source"]["shape"]["shard"]["heads"]["start"], 4);
    assert_eq!(json["bytes"], 8 << 20);
    let args = [
        "plan",
        "BHLKNC",
        "BHLKNC",
        "--source-tp",
        "2",
        "--destination-tp",
        "2",
    ];
    let error = kvtile(&[&args[..], &["--destination-rank", "1"]].concat()).fails(2);
    assert!(error.contains("share no heads"), "{error}");
}

#[test]
fn heads_are_mapped_as_the_options_say() {
    let args = [
        "plan",
        "BLKHNC",
        "BLKHNC",
        "--source-heads",
        "0..4",
        "--destination-heads",
        "4..8",
        "--json",
    ];
    assert_eq!(kvtile(&args).json()["bytes"], 8 << 20);
    let args = [
        "plan",
        "BLKHNC",
        "BLKHNC",
        "--source-heads",
        "0..4",
        "--destination-heads",
        "4..7",
    ];
    assert!(kvtile(&args).fails(2).contains("--destination-heads"));
}

#[test]
fn pages_of_other_sizes_exchange() {
    let args = [
        "plan",
        "BLKNHC",
        "BLKNHC",
        "--destination-page-size",
        "256",
        "--json",
    ];
    let json = kvtile(&args).json();
    assert_eq!(
        (&json["block_pairs"], &json["bytes"]),
        (&16.into(), &(32 << 20).into())
    );
}

#[test]
fn layers_tokens_and_blocks_are_selected() {
    let args = [
        "plan",
        "L|KBNHC",
        "BLKNHC",
        "--source-blocks",
        "7,3,12-15",
        "--destination-blocks",
        "0-5",
        "--layer-range",
        "0..8",
        "--token-range",
        "0..4",
        "--json",
    ];
    let json = kvtile(&args).json();
    assert_eq!(json["block_pairs"], 6);
    assert_eq!(json["bytes"], 6 * 8 * 2 * 4 * 8 * 128 * 2);
    for bad in [
        ["--source-blocks", "999"],
        ["--layer-range", "0..33"],
        ["--layer-range", "8..8"],
        ["--destination-blocks", "1,1,1"],
    ] {
        let args = [&["plan", "L|KBNHC", "BLKNHC"], &bad[..]].concat();
        assert!(!kvtile(&args).fails(2).is_empty());
    }
}

#[test]
fn what_does_not_go_together_is_refused_by_name() {
    let args = ["plan", "BLKNHC", "BN(c,r)C", "--plane", "k:bf16:C=4"];
    assert!(kvtile(&args).fails(2).contains("plane"));
}

#[test]
fn both_sides_and_the_runs_are_drawn_as_svg() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.svg");
    kvtile(&["plan", "L|KBNHC", "BHLKNC", "--svg", path.to_str().unwrap()]).ok();
    let svg = std::fs::read_to_string(path).unwrap();
    assert!(svg.contains("Source: L|KBNHC") && svg.contains("Destination: BHLKNC"));
    assert!(svg.matches("<path ").count() > 4);
}

#[test]
fn more_blocks_than_memory_could_list_are_planned_all_the_same() {
    let tiny = [
        "--layers",
        "1",
        "--page-size",
        "1",
        "--heads",
        "1",
        "--head-size",
        "1",
    ];
    let args = [
        "plan",
        "BLKNHC",
        "BLKNHC",
        "--blocks",
        "36028797018963968",
        "--json",
    ];
    assert_eq!(kvtile(&[&args[..], &tiny].concat()).json()["bytes"], 32);
}
