//! `kvtile replay` as a user runs it, on a small trace.
use std::fmt::Write as _;

use crate::program::kvtile;

/// Conversations of four turns that come one turn after the other: turn `t` has `t + 1` full blocks.
fn trace(folder: &std::path::Path) -> String {
    let mut text = String::new();
    for turn in 0..4_u64 {
        for conversation in 0..10_u64 {
            let ids: Vec<u64> = (0..=turn).map(|block| conversation * 10 + block).collect();
            writeln!(
                text,
                "{{\"timestamp\": {}, \"input_length\": {}, \"output_length\": 7, \"hash_ids\": {ids:?}}}",
                turn * 1000 + conversation,
                (turn + 1) * 512,
            )
            .unwrap();
        }
    }
    let path = folder.join("trace.jsonl");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn every_policy_stands_beside_the_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let path = trace(folder.path());
    let page = folder.path().join("page.html");
    let page_name = page.to_str().unwrap();
    let args = ["replay", &path, "--dry", "--capacity", "5,40"];
    let json = kvtile(&[&args[..], &["--json", "--html", page_name]].concat()).json();
    let runs = json["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 8);
    for run in runs {
        assert_eq!(run["requests"], 40, "{run}");
        assert!(run["seconds"].as_f64().unwrap() > 0.0, "{run}");
        let ratio = run["block_hit_ratio"].as_f64().unwrap();
        let bound = json["bounds"].as_array().unwrap().iter();
        let bound = bound.filter(|b| b["capacity_blocks"] == run["capacity_blocks"]);
        let bound = bound.map(|b| b["block_hit_ratio"].as_f64().unwrap()).next();
        assert!(ratio <= bound.unwrap() + 1e-12, "{run}");
        // Each of the ten conversations finds 1, 2 and 3 of its 2, 3 and 4 blocks.
        if run["capacity_blocks"] == 40 {
            assert_eq!(
                (run["blocks"].as_u64(), run["hit_blocks"].as_u64()),
                (Some(100), Some(60))
            );
            assert_eq!((ratio, run["token_hit_ratio"].as_f64()), (0.6, Some(0.6)));
        }
    }
    let infinite = json["bounds"].as_array().unwrap().last().unwrap();
    assert!(infinite["capacity_blocks"].is_null() && infinite["hit_blocks"] == 60);
    let page = std::fs::read_to_string(page).unwrap();
    for text in [
        "<!doctype html>",
        "<svg",
        "polyline",
        "gittins",
        "belady",
        "infinite",
    ] {
        assert!(page.contains(text), "{text}");
    }
    for text in ["<script", "http://", "https://", "src=", "@import", "url("] {
        assert!(!page.contains(text), "{text}");
    }
    let text = kvtile(&args).ok();
    for word in [
        "Block hits",
        "60.00",
        "gittins",
        "s3-fifo",
        "belady",
        "10,000 prompt tokens",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn the_same_replay_has_the_same_hits() {
    let folder = tempfile::tempdir().unwrap();
    let path = trace(folder.path());
    let hits = || {
        let args = ["replay", &path, "--dry", "--capacity", "7", "--json"];
        let json = kvtile(&args).json();
        let runs = json["runs"].as_array().unwrap().clone();
        runs.iter()
            .map(|run| run["hit_blocks"].clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(hits(), hits());
}

#[test]
fn what_is_no_trace_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.jsonl");
    let row = |ids: &str, tokens: u32| {
        format!(
            "{{\"timestamp\":0,\"input_length\":{tokens},\"output_length\":1,\"hash_ids\":{ids}}}\n"
        )
    };
    for (text, problem) in [
        ("{}\n".to_owned(), "line 1"),
        (row("[1,2]", 600) + "nonsense\n", "line 2"),
        (
            row("[1,2]", 600) + &row("[1,2,3]", 600),
            "line 2: 600 tokens",
        ),
        (row("[1,2]", 600) + &row("[3,2]", 600), "line 2: block 2"),
        (row("[1]", 600), "line 1: 600 tokens"),
        (String::new(), "no request"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = kvtile(&["replay", path.to_str().unwrap(), "--dry"]).fails(1);
        assert!(error.contains(problem), "{problem}: {error}");
    }
    kvtile(&["replay", "/nonexistent", "--dry"]).fails(1);
    let path = trace(folder.path());
    kvtile(&["replay", &path, "--dry", "--block-bytes", "64"]).fails(2);
    kvtile(&["replay", &path, "--disk", "folder"]).fails(2);
    kvtile(&["replay", &path, "--block-bytes", "33"]).fails(1);
    kvtile(&["replay", &path, "--dry", "--policy", "fifo"]).fails(2);
    kvtile(&["replay", &path, "--dry", "--policy", "lru,fifo"]).fails(2);
    for number in [
        "-1",
        "67108865",
        "4294967296",
        "4611686018427387904",
        "1.5",
        "nan",
        "",
    ] {
        for option in [
            "--capacity",
            "--page-size",
            "--prefill-rate",
            "--block-bytes",
        ] {
            // A rate of that size is one, and an odd block is refused by the cache.
            if number != "67108865" || !["--prefill-rate", "--block-bytes"].contains(&option) {
                kvtile(&["replay", &path, option, number]).fails(2);
            }
        }
    }
    kvtile(&["replay", &path, "--dry", "--capacity", "0"]).fails(2);
}

#[test]
fn the_cache_itself_gives_back_every_byte_and_says_what_it_moved() {
    let folder = tempfile::tempdir().unwrap();
    let path = trace(folder.path());
    let disk = folder.path().join("disk");
    let disk = ["--disk", disk.to_str().unwrap(), "--disk-bytes", "4000000"];
    let args = [
        "replay",
        &path,
        "--capacity",
        "8,40",
        "--block-bytes",
        "4096",
    ];
    let json = kvtile(&[&args[..], &disk, &["--policy", "lru", "--json"]].concat()).json();
    let runs = json["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for run in runs {
        // Host memory and disk together have room for all of the ten conversations.
        assert_eq!(
            (run["blocks"].as_u64(), run["hit_blocks"].as_u64()),
            (Some(100), Some(60))
        );
        assert_eq!(run["compared_blocks"], 60, "{run}");
    }
    // A bound of host memory is none of host memory and disk.
    let bounds = json["bounds"].as_array().unwrap();
    assert!(
        bounds.iter().all(|bound| bound["policy"] == "infinite"),
        "{json}"
    );
    let again = kvtile(&[&args[..], &disk, &["--policy", "lru"]].concat()).fails(2);
    assert!(again.contains("empty disk"), "{again}");
    let route = |run: &serde_json::Value, source: &str| {
        let moves = run["moves"].as_array().unwrap().iter();
        let blocks =
            moves.filter(|moved| moved["source"] == source && moved["destination"] == "host");
        blocks
            .map(|moved| moved["blocks"].as_u64().unwrap())
            .sum::<u64>()
    };
    assert_eq!(
        (route(&runs[0], "device"), route(&runs[1], "device")),
        (40, 40)
    );
    assert!(
        route(&runs[0], "disk") > 30 && route(&runs[1], "disk") == 0,
        "{json}"
    );
    let text = kvtile(&[&args[..], &["--policy", "lru"]].concat()).ok();
    assert!(
        text.contains("came back right") && text.contains("device to host"),
        "{text}"
    );
}

const SHIPPED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/traces/generated.jsonl"
);

/// Without `--capacity`, the capacities and the axes of the chart come from the trace.
#[test]
fn the_trace_that_ships_shows_what_policies_differ_in() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.html");
    let args = [
        "replay",
        SHIPPED,
        "--dry",
        "--json",
        "--html",
        page.to_str().unwrap(),
    ];
    let json = kvtile(&args).json();
    let distinct = json["trace"]["distinct_blocks"].as_u64().unwrap();
    let runs = json["runs"].as_array().unwrap();
    let of = |policy: &str| {
        let runs = runs.iter().filter(|run| run["policy"] == policy);
        let run = |run: &serde_json::Value| {
            let capacity = run["capacity_blocks"].as_u64().unwrap();
            (capacity, run["block_hit_ratio"].as_f64().unwrap())
        };
        runs.map(run).collect::<Vec<(u64, f64)>>()
    };
    let (default, lru) = (of("gittins"), of("lru"));
    let (smallest, largest) = (default[0], *default.last().unwrap());
    assert!(default.len() >= 5 && smallest.0 * 20 <= distinct && largest.0 == distinct);
    // The curves are not flat, all policies hit the same where nothing is evicted, and those that learn
    // differ from LRU where the cache holds a few percent of the blocks.
    assert!(largest.1 > 1.5 * smallest.1, "{default:?}");
    for policy in ["lru", "arc", "s3-fifo"] {
        assert_eq!(of(policy).last(), Some(&largest), "{policy}");
    }
    let few = |curve: &[(u64, f64)]| curve.iter().find(|(blocks, _)| *blocks == 5000).unwrap().1;
    assert!(few(&default) > 1.05 * few(&lru), "{default:?} {lru:?}");
    check_chart(&std::fs::read_to_string(&page).unwrap(), &default, distinct);
}

/// The numbers of an attribute in all parts of a picture that begin with `start`.
fn numbers(picture: &str, start: &str, attribute: &str) -> Vec<f64> {
    let parts = picture.split(start).skip(1);
    let values = parts.map(|part| part.split(attribute).nth(1).unwrap());
    values
        .map(|value| value.split('"').next().unwrap().parse().unwrap())
        .collect()
}

/// Both pictures hold all points inside their frame, in the order of capacities.
fn check_chart(page: &str, default: &[(u64, f64)], distinct: u64) {
    assert!(page.contains("prefers-color-scheme: dark") && page.contains("max-width: 640px"));
    let tables = page.matches("<table").count();
    assert_eq!(page.matches("<div class=\"scroll\"><table").count(), tables);
    let pictures: Vec<&str> = page.split("<svg class=\"").skip(1).collect();
    assert_eq!(
        pictures.len(),
        2,
        "one for wide screens, one for narrow ones"
    );
    for (picture, (class, width)) in pictures
        .into_iter()
        .zip([("wide", 860.0), ("narrow", 440.0)])
    {
        assert!(
            picture.starts_with(&format!("{class}\" viewBox=\"0 0 {width} ")),
            "{class}"
        );
        let picture = picture.split("</svg>").next().unwrap();
        assert!(picture.contains("capacity in blocks (logarithmic)"));
        let largest = format!(">{},{:03}<", distinct / 1000, distinct % 1000);
        assert!(picture.contains(&largest), "{largest}");
        let x = numbers(picture, "<circle class=\"dot c0\"", "cx=\"");
        let y = numbers(picture, "<circle class=\"dot c0\"", "cy=\"");
        assert_eq!(x.len(), default.len());
        assert!(x.is_sorted_by(|a, b| a < b) && x.iter().all(|x| (0.0..width).contains(x)));
        // The curve uses at least a third of the height.
        let (low, high) = (y.first().unwrap(), y.last().unwrap());
        assert!(
            low - high > 110.0 && y.iter().all(|y| (0.0..420.0).contains(y)),
            "{y:?}"
        );
    }
    // Of each capacity the best policy is bold, except where all are equal.
    let table = page
        .split("<tbody>")
        .nth(1)
        .unwrap()
        .split("</tbody>")
        .next()
        .unwrap();
    let rows: Vec<&str> = table.split("<tr>").skip(1).collect();
    let (policies, bounds) = rows.split_at(4);
    for column in 0..default.len() {
        let bold = policies.iter().filter(|row| {
            let cell = row.split("<td").nth(column + 1).unwrap();
            cell.starts_with(" class=\"best\"")
        });
        let bold = bold.count();
        assert_eq!(
            bold > 0,
            column + 1 < default.len(),
            "column {column}: {bold} of 4"
        );
    }
    assert!(
        bounds.iter().all(|row| !row.contains("best")),
        "bounds are no policies"
    );
}

/// The sum of a metric over all its labels.
fn sum(page: &str, name: &str) -> u64 {
    let lines = page.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
    });
    let counts = lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
    counts.sum()
}

#[test]
fn what_the_cache_counts_is_written_for_prometheus() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("metrics.txt");
    let page_name = page.to_str().unwrap();
    let run = [
        "replay",
        SHIPPED,
        "--policy",
        "gittins",
        "--capacity",
        "200",
        "--block-bytes",
        "4096",
    ];
    let json = kvtile(&[&run[..], &["--json", "--prometheus", page_name]].concat()).json();
    let page = std::fs::read_to_string(&page).unwrap();
    let hits = sum(&page, "kvtile_lookup_hit_blocks_total");
    let misses = sum(&page, "kvtile_lookup_miss_blocks_total");
    assert_eq!(hits, json["runs"][0]["hit_blocks"].as_u64().unwrap());
    assert_eq!(hits + misses, sum(&page, "kvtile_lookup_blocks_total"));
    assert!(
        page.contains("# TYPE kvtile_lookup_blocks_total counter"),
        "{page}"
    );

    for (more, problem) in [
        (&["--capacity", "300"][..], "one --capacity"),
        (&["--dry"], "cannot be used with"),
    ] {
        let refused = kvtile(&[&run[..], more, &["--prometheus", page_name]].concat());
        assert!(refused.fails(2).contains(problem), "{more:?}");
    }
}

#[test]
fn lists_have_commas_or_the_option_several_times() {
    let runs = |args: &[&str]| {
        let all = [&["replay", SHIPPED, "--dry", "--json"], args].concat();
        let json = kvtile(&all).json();
        let run = |run: &serde_json::Value| (run["policy"].clone(), run["capacity_blocks"].clone());
        json["runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(run)
            .collect::<Vec<_>>()
    };
    let commas = runs(&["--policy", "lru,arc", "--capacity", "50,100"]);
    assert_eq!(commas.len(), 4);
    let apart = [
        "--policy",
        "lru",
        "--policy",
        "arc",
        "--capacity",
        "50",
        "--capacity",
        "100",
    ];
    assert_eq!(commas, runs(&apart));
    assert_eq!(
        commas,
        runs(&["--policy", "lru", "--policy", "arc", "--capacity", "50,100"])
    );
    // Repeated values count once, spaces behind commas are ignored.
    assert_eq!(
        commas,
        runs(&["--policy", "lru, arc,lru", "--capacity", "100,50,100"])
    );
    for (option, list) in [
        ("--policy", "lru,"),
        ("--capacity", "50,"),
        ("--capacity", ",50"),
    ] {
        kvtile(&["replay", SHIPPED, "--dry", option, list]).fails(2);
    }
}

#[test]
fn timestamps_may_have_fractions_and_nothing_else_may() {
    let folder = tempfile::tempdir().unwrap();
    let trace = |text: &str| {
        let path = folder.path().join("trace.jsonl");
        std::fs::write(&path, text).unwrap();
        kvtile(&["replay", path.to_str().unwrap(), "--dry", "--capacity", "5"])
    };
    let row = |timestamp: &str, tokens: &str, id: &str| {
        format!(
            r#"{{"timestamp": {timestamp}, "input_length": {tokens}, "output_length": 1, "hash_ids": [{id}]}}"#
        )
    };
    trace(&row("12.75", "512", "1")).ok();
    for (timestamp, tokens, id, problem) in [
        ("-1", "512", "1", "timestamp of 0 milliseconds"),
        ("-0.5", "512", "1", "timestamp of 0 milliseconds"),
        ("1e300", "512", "1", "timestamp of 0 milliseconds"),
        ("\"1\"", "512", "1", "timestamp of 0 milliseconds"),
        ("1", "511.5", "1", "511.5"),
        ("1", "512", "1.5", "1.5"),
    ] {
        let refused = trace(&row(timestamp, tokens, id)).fails(1);
        assert!(refused.contains(problem), "{refused}");
        assert!(refused.contains("line 1"), "{refused}");
    }
}

#[test]
fn the_demonstration_refuses_numbers_that_it_has_no_use_for() {
    for option in ["--threads", "--tokens", "--page-size"] {
        for number in ["0", "-1", "65537", "4294967296", "1.5"] {
            // As one argument, so that a sign does not begin an option.
            let given = format!("{option}={number}");
            let refused = kvtile(&["demo", "--tiny", &given]).fails(2);
            assert!(refused.contains(option), "{refused}");
        }
    }
}
