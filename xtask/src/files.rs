//! File rules: the length of files, where unsafe code is allowed, and text that is allowed nowhere.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::step::{StepFailure, root};

/// Lines of a source file, without its tests.
const LINES_MAX: usize = 600;

/// Folders and files that may contain unsafe code: memory, the executors, the leases that prove
/// them sound, the calls of the device driver and the regions that it owns, the rig of the check for
/// machines with a GPU, the stand-in for the driver (in tests only, whose functions are called as the
/// driver's), and the file in which the Python package reads the structures of DLPack and of the buffer
/// protocol.
const UNSAFE_PLACES: [&str; 8] = [
    "crates/kvtile-device/src/driver",
    "crates/kvtile-device/src/memory",
    "crates/kvtile-gpu-check/src/rig",
    "crates/kvtile-standin/src",
    "crates/kvtile-memory/src",
    "crates/kvtile-transfer/src/execute",
    "crates/kvtile-transfer/src/lease",
    "crates/kvtile-python/src/tensor/foreign.rs",
];

/// Folders whose code may read the environment.
const ENVIRONMENT_FOLDERS: [&str; 3] = [
    "crates/kvtile-cli/src",
    "crates/kvtile-program/src",
    "xtask/src",
];

/// Folders whose code does no I/O, reads no clock and starts no thread.
const PURE_FOLDERS: [&str; 5] = [
    "crates/kvtile-blocks/src",
    "crates/kvtile-kernels/src",
    "crates/kvtile-layout/src",
    "crates/kvtile-ptx/src",
    "crates/kvtile-random/src",
];

/// Folders where `return Ok(())` without a comment may hide a broken invariant.
const CORE_FOLDERS: [&str; 6] = [
    "crates/kvtile-blocks/src",
    "crates/kvtile-device/src",
    "crates/kvtile-layout/src",
    "crates/kvtile-memory/src",
    "crates/kvtile-tiers/src",
    "crates/kvtile-transfer/src",
];

/// Text that is allowed nowhere. It is split here, so that this file passes.
fn forbidden() -> [(String, &'static str); 5] {
    [
        (["todo", "!("].concat(), "finish it"),
        (["unimplemented", "!("].concat(), "finish it"),
        (
            ["#[", "allow("].concat(),
            "use #[expect(…, reason = \"…\")]",
        ),
        (["#[", "ignore"].concat(), "skip at run time with a reason"),
        (["FIX", "ME"].concat(), "mend it or write an issue"),
    ]
}

pub(crate) fn check() -> Result<Vec<String>, StepFailure> {
    let root = root();
    let mut sources = Vec::new();
    for folder in ["crates", "xtask", "fuzz"] {
        collect(&root.join(folder), &mut sources)?;
    }
    let mut broken = Vec::new();
    for path in sources {
        let text = fs::read_to_string(&path)
            .map_err(|error| StepFailure::Tool(format!("{}: {error}", path.display())))?;
        let name = path.strip_prefix(&root).unwrap_or(&path);
        broken.extend(check_file(name, &text));
    }
    Ok(broken)
}

/// The source files below a folder.
pub(crate) fn collect(folder: &Path, sources: &mut Vec<PathBuf>) -> Result<(), StepFailure> {
    let failed = |error| StepFailure::Tool(format!("{}: {error}", folder.display()));
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, sources)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            sources.push(path);
        }
    }
    Ok(())
}

/// The numbered lines of a file without its tests. `#[cfg(test)]` in the first column marks the
/// next item as a test; the code after that item counts again.
fn without_tests(text: &str) -> Vec<(usize, &str)> {
    let mut kept = Vec::new();
    let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line));
    while let Some((number, line)) = lines.next() {
        if line != "#[cfg(test)]" {
            kept.push((number, line));
            continue;
        }
        // The item ends with its first line, or with a closing bracket in the first column.
        let mut is_item = false;
        for (_, line) in lines.by_ref() {
            let is_attribute = !is_item && (line.starts_with("#[") || line.starts_with("//"));
            is_item |= !is_attribute && !line.is_empty();
            let closes = line.starts_with(['}', ')', ']']);
            if is_item && (line.ends_with(';') && !line.starts_with(' ') || closes) {
                break;
            }
        }
    }
    kept
}

/// The lines of code: without tests and comments.
pub(crate) fn code(text: &str) -> Vec<(usize, &str)> {
    let mut lines = without_tests(text);
    lines.retain(|(_, line)| !line.trim_start().starts_with("//"));
    lines
}

/// The lines of `let … else` blocks that return success without a comment: a broken invariant must
/// not pass as success.
fn unexplained(text: &str) -> Vec<usize> {
    let lines = without_tests(text);
    let answers = |line: &str| line.trim_start().starts_with("return Ok(())");
    let mut found = Vec::new();
    for pair in lines.windows(2) {
        let [(number, line), (_, next)] = pair else {
            continue;
        };
        let opens = line.trim_end().ends_with("else {") && !line.contains("} else {");
        let in_one = line.contains("else { return Ok(())");
        if in_one || (opens && answers(next)) {
            found.push(*number);
        }
    }
    found
}

fn check_file(path: &Path, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let name = path.display();
    let source = path.components().any(|c| c.as_os_str() == "src");
    let inside = |folders: &[&str]| folders.iter().any(|folder| path.starts_with(folder));
    let lines = without_tests(text).len();
    if source && lines > LINES_MAX {
        broken.push(format!(
            "{name}: {lines} lines; past {LINES_MAX} it is two concepts"
        ));
    }
    if !text.starts_with("//!") && !text.starts_with("#!") {
        broken.push(format!("{name}: no module header (//!)"));
    }
    for (number, line) in text.lines().enumerate() {
        for (text, advice) in forbidden() {
            if line.contains(&text) {
                broken.push(format!("{name}:{}: {text}: {advice}", number + 1));
            }
        }
    }
    if !source {
        return broken;
    }
    if inside(&CORE_FOLDERS) {
        let unexplained = unexplained(text).into_iter();
        broken.extend(unexplained.map(|number| {
            format!(
                "{name}:{number}: an `else` that returns Ok needs the reason as a comment in its block, or must be \
                 an assertion"
            )
        }));
    }
    for (number, line) in code(text) {
        let has = |word: &str| line.contains(word);
        let not_safe = ["{", "fn", "impl", "trait"]
            .iter()
            .any(|what| has(&["un", "safe ", what].concat()));
        if not_safe && !inside(&UNSAFE_PLACES) {
            broken.push(format!(
                "{name}:{number}: unsafe code is allowed only in memory, the executors, leases, calls of the device driver and foreign.rs"
            ));
        }
        if has("env::var") && !inside(&ENVIRONMENT_FOLDERS) {
            broken.push(format!(
                "{name}:{number}: only the program reads the environment"
            ));
        }
        let impure = [
            "std::fs",
            "std::net",
            "std::thread",
            "std::time",
            "std::env",
            "std::io",
        ];
        if inside(&PURE_FOLDERS) && impure.iter().any(|word| has(word)) {
            broken.push(format!("{name}:{number}: this crate is pure"));
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(path: &str, text: &str) -> usize {
        check_file(Path::new(path), text).len()
    }

    #[test]
    fn unsafe_code_outside_its_folders_is_found() {
        let text = "//! Header.\nfn f() { unsafe { g() } }\n";
        assert_eq!(broken("crates/kvtile-layout/src/a.rs", text), 1);
        assert_eq!(broken("crates/kvtile-transfer/src/manager/a.rs", text), 1);
        assert_eq!(broken("crates/kvtile-transfer/src/execute/a.rs", text), 0);
        assert_eq!(
            broken("crates/kvtile-python/src/tensor/foreign.rs", text),
            0
        );
        assert_eq!(broken("crates/kvtile-python/src/tensor/dlpack.rs", text), 1);
    }

    #[test]
    fn pure_crates_use_no_clock_and_only_the_program_reads_the_environment() {
        let text = "//! Header.\nuse std::time::Instant;\n";
        assert_eq!(broken("crates/kvtile-layout/src/a.rs", text), 1);
        let text = "//! Header.\nfn f() { std::env::var(\"A\").ok(); }\n";
        assert_eq!(broken("crates/kvtile-transfer/src/a.rs", text), 1);
        assert_eq!(broken("crates/kvtile-cli/src/a.rs", text), 0);
    }

    #[test]
    fn code_behind_the_tests_of_a_file_has_the_same_rules() {
        let bad = "use std::time::Instant;\n";
        for tests in [
            "#[cfg(test)]\nmod tests;\n",
            "#[cfg(test)]\n#[path = \"a.rs\"]\nmod tests;\n",
            "#[cfg(test)]\nuse a::{\n    b,\n    c,\n};\n",
            "#[cfg(test)]\nmod tests {\n    use std::time::Instant;\n    fn f() {\n    }\n}\n",
            "#[cfg(test)]\nimpl A {\n    fn f() -> std::time::Instant;\n}\n",
        ] {
            let text = format!("//! Header.\n{tests}{bad}");
            assert_eq!(broken("crates/kvtile-layout/src/a.rs", &text), 1, "{text}");
            let text = format!("//! Header.\n{bad}{tests}");
            assert_eq!(broken("crates/kvtile-layout/src/a.rs", &text), 1, "{text}");
        }
        let long = format!(
            "//! Header.\n#[cfg(test)]\nmod tests;\n{}",
            "\n".repeat(700)
        );
        assert_eq!(broken("crates/kvtile/src/a.rs", &long), 1);
        let tests = format!(
            "//! Header.\n#[cfg(test)]\nmod tests {{\n{}}}\n",
            "\n".repeat(700)
        );
        assert_eq!(broken("crates/kvtile/src/a.rs", &tests), 0);
    }

    #[test]
    fn success_in_an_else_needs_a_reason() {
        let bare =
            "//! H.\nfn f() {\n    let Some(a) = b else {\n        return Ok(());\n    };\n}\n";
        let core = "crates/kvtile-tiers/src/a.rs";
        assert_eq!(broken(core, bare), 1);
        assert_eq!(broken("crates/kvtile-cli/src/a.rs", bare), 0);
        let long = bare.replace("let Some(a) = b else", "let Some(a) = b\n    else");
        assert_eq!(broken(core, &long), 1);
        let said = bare.replace("return", "// Nothing waits.\n        return");
        assert_eq!(broken(core, &said), 0);
        let in_one = "//! H.\nfn f() {\n    let Some(a) = b else { return Ok(()) };\n}\n";
        assert_eq!(broken(core, in_one), 1);
        let error = bare.replace("Ok(())", "Err(e)");
        assert_eq!(broken(core, &error), 0);
        let branch =
            "//! H.\nfn f() {\n    if a {\n    } else {\n        return Ok(());\n    }\n}\n";
        assert_eq!(broken(core, branch), 0);
    }

    #[test]
    fn long_files_marks_and_missing_headers_are_found() {
        let long = format!("//! Header.\n{}", "\n".repeat(700));
        assert_eq!(broken("crates/kvtile/src/a.rs", &long), 1);
        assert_eq!(broken("crates/kvtile/src/a.rs", "fn f() {}\n"), 1);
        let mark = format!("//! Header.\nfn f() {{ {} }}\n", ["todo", "!()"].concat());
        assert_eq!(broken("crates/kvtile/src/a.rs", &mark), 1);
    }
}
