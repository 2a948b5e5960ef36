//! Exit codes, quiet and verbose, completions and the manual.
use crate::program::{kvtile, saved_cache};

/// Every command that a user is to know.
const COMMANDS: [&str; 13] = [
    "demo",
    "bench",
    "layout",
    "plan",
    "inspect",
    "replay",
    "events",
    "cache",
    "serve",
    "top",
    "doctor",
    "completions",
    "man",
];

#[test]
fn completions_know_every_command_in_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = kvtile(&["completions", shell]).ok();
        for command in COMMANDS {
            assert!(script.contains(command), "{command} is missing for {shell}");
        }
        for word in ["verify", "--output", "--quiet"] {
            assert!(
                script.contains(word.trim_start_matches('-')),
                "{word} in {shell}"
            );
        }
    }
    let said = kvtile(&["completions", "tcsh"]).fails(2);
    assert!(
        said.contains("possible values: bash, elvish, fish, powershell, zsh"),
        "{said}"
    );
}

#[test]
fn the_manual_has_a_page_for_every_command() {
    let page = kvtile(&["man"]).ok();
    assert!(page.contains(".TH kvtile 1"), "{page}");
    for command in COMMANDS {
        let escaped = format!("kvtile\\-{command}(1)");
        assert!(page.contains(&escaped), "{command} is missing in\n{page}");
        let own = kvtile(&["man", command]).ok();
        assert!(own.contains(&format!(".TH kvtile-{command} 1")), "{own}");
    }
    let stat = kvtile(&["man", "cache", "stat"]).ok();
    assert!(stat.contains(".TH kvtile-cache-stat 1"), "{stat}");
    let said = kvtile(&["man", "cache", "sort"]).fails(2);
    assert!(
        said.contains("no such command; there are stat, verify, export, convert, sweep, clear"),
        "{said}"
    );
}

#[test]
fn exit_codes_are_those_that_the_help_names() {
    let help = kvtile(&["--help"]).ok();
    for line in [
        "  0    done, and what was checked is whole",
        "  1    failed, damaged or refused",
        "  2    a request that makes no sense",
        "  130  stopped with Ctrl-C, by the shell's count",
    ] {
        assert!(help.contains(line), "{line:?} is missing in\n{help}");
    }
    assert_eq!(kvtile(&["layout", "BLKNHC"]).code, 0);
    assert_eq!(kvtile(&["inspect", "/no/such/file"]).code, 1);
    assert_eq!(kvtile(&["layout", "BLKN?"]).code, 2);
    assert_eq!(kvtile(&["layout"]).code, 2);
    assert_eq!(kvtile(&["no-such-command"]).code, 2);
}

#[test]
fn quiet_leaves_the_exit_code_and_verbose_says_what_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let whole = saved_cache(folder.path(), "whole.kvtile", 1e4);
    let other = saved_cache(folder.path(), "other.kvtile", 2e4);
    let (whole, other) = (whole.to_str().unwrap(), other.to_str().unwrap());
    assert_eq!(kvtile(&["inspect", whole, "--quiet"]).ok(), "");
    let refused = kvtile(&["-q", "inspect", whole, "--against", other]);
    assert_eq!(refused.stdout, "");
    assert!(refused.fails(1).starts_with(&format!("error: {whole}: ")));
    // Programs read the JSON.
    assert!(kvtile(&["inspect", whole, "-q", "--json"]).json()["identity"].is_object());
    let svg = folder.path().join("x.svg");
    let svg = svg.to_str().unwrap();
    let loud = kvtile(&["layout", "BLKNHC", "--verbose", "--svg", svg]);
    let bytes = std::fs::metadata(svg).unwrap().len();
    let lines: Vec<&str> = loud.stderr.lines().collect();
    assert_eq!(lines[0], format!("writing {bytes} bytes to {svg}"));
    assert!(
        lines[1].starts_with("took 0.") && lines[1].ends_with(" s"),
        "{lines:?}"
    );
    assert!(loud.stdout.contains("The picture is in"));
    let quiet = kvtile(&["layout", "BLKNHC", "--quiet", "--svg", svg]).ok();
    assert!(!quiet.contains("The picture is in") && quiet.contains("each block"));
    kvtile(&["layout", "BLKNHC", "--quiet", "--verbose"]).fails(2);
}
