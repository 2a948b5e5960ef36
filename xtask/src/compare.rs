//! Two builds in turns: an earlier revision and this tree, with the benchmarks of copies and of
//! blocks, and with the time to the first token in vLLM.
//!
//! Each round runs both builds, another one first each time. A figure of a round is compared with
//! the other build's of the same round. A figure is suspect if the median of these ratios exceeds 1 by
//! more than the spread of either build. A part with suspects runs as many rounds again, because among
//! dozens of figures chance makes some suspect. A figure is worse if it is suspect in both.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::{
    python,
    step::{CargoStep, StepFailure, root},
    vllm,
};

/// The benchmarks that can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ComparedPart {
    /// `kvtile bench --quick`: copies, against memcpy in the same run.
    Copies,
    /// `kvtile bench blocks`: keys and pools.
    Blocks,
    /// `cargo x demo-vllm`: the time to the first token.
    FirstToken,
}

/// Arguments of `cargo x compare`.
#[derive(Args)]
pub(crate) struct CompareArguments {
    /// The earlier revision, for instance main or a commit.
    #[arg(long, default_value = "main")]
    before: String,
    /// Rounds of each benchmark; fewer than three have no spread.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(3..))]
    rounds: u32,
    /// Only these benchmarks (default: all; with given programs, those of programs).
    #[arg(long, value_enum, value_delimiter = ',')]
    parts: Vec<ComparedPart>,
    /// A program that was built already, in place of the earlier revision.
    #[arg(long, value_name = "PROGRAM", requires = "after_program")]
    before_program: Option<PathBuf>,
    /// A program that was built already, in place of this tree.
    #[arg(long, value_name = "PROGRAM", requires = "before_program")]
    after_program: Option<PathBuf>,
}

/// Two builds: the earlier one, and this tree.
struct ComparedBuilds {
    programs: [PathBuf; 2],
    /// Folders with the Python package.
    packages: Option<[PathBuf; 2]>,
}

/// The figures of one run by name; lower is better.
type RunFigures = BTreeMap<String, f64>;

/// Compares the builds; fails if a figure is worse.
pub(crate) fn run(arguments: &CompareArguments) -> Result<(), StepFailure> {
    let parts = parts(arguments)?;
    let builds = build(arguments, &parts)?;
    let mut worse = Vec::new();
    for part in parts {
        let suspects = report(part, &measure_rounds(&builds, part, arguments.rounds)?)?;
        if suspects.is_empty() {
            continue;
        }
        println!(
            "\n{} figures are suspect; the part runs again",
            suspects.len()
        );
        let again = report(part, &measure_rounds(&builds, part, arguments.rounds)?)?;
        let confirmed = again
            .into_iter()
            .filter(|(name, _)| suspects.contains_key(name));
        worse.extend(confirmed.map(|(name, ratio)| {
            let first = suspects.get(&name).copied().unwrap_or(f64::NAN);
            format!("{name} takes {first:.3} and {ratio:.3} times as long")
        }));
    }
    match worse.is_empty() {
        true => Ok(()),
        false => Err(StepFailure::Tool(format!(
            "{} figures are worse by more than their spread:\n  {}",
            worse.len(),
            worse.join("\n  ")
        ))),
    }
}

/// The figures of all rounds, by build.
fn measure_rounds(
    builds: &ComparedBuilds,
    part: ComparedPart,
    rounds: u32,
) -> Result<[Vec<RunFigures>; 2], StepFailure> {
    let mut figures: [Vec<RunFigures>; 2] = Default::default();
    for round in 0..rounds {
        let order = match round % 2 {
            0 => [0, 1],
            _ => [1, 0],
        };
        for side in order {
            let measured = measure(builds, part, side)?;
            if let Some(of_side) = figures.get_mut(side) {
                of_side.push(measured);
            }
        }
    }
    Ok(figures)
}

fn parts(arguments: &CompareArguments) -> Result<Vec<ComparedPart>, StepFailure> {
    let given = arguments.parts.clone();
    let of_programs = vec![ComparedPart::Copies, ComparedPart::Blocks];
    match (given.is_empty(), arguments.before_program.is_some()) {
        (true, true) => Ok(of_programs),
        (true, false) => Ok([of_programs, vec![ComparedPart::FirstToken]].concat()),
        (false, true) if given.contains(&ComparedPart::FirstToken) => Err(StepFailure::Tool(
            "the first token is measured with the Python packages of two trees; leave --before-program and --after-program \
             out, or first-token"
                .to_owned(),
        )),
        (false, _) => Ok(given),
    }
}

/// Builds both programs and, for the first token, both Python packages.
fn build(
    arguments: &CompareArguments,
    parts: &[ComparedPart],
) -> Result<ComparedBuilds, StepFailure> {
    let given = (&arguments.before_program, &arguments.after_program);
    if let (Some(before), Some(after)) = given {
        return Ok(ComparedBuilds {
            programs: [before.clone(), after.clone()],
            packages: None,
        });
    }
    let folder = python::target().join("compare");
    let source = folder.join("source");
    check_out(&source, &arguments.before)?;
    let trees = [source, root()];
    let targets = [folder.join("before"), python::target()];
    let mut programs = Vec::new();
    let mut packages = Vec::new();
    let with_python = parts.contains(&ComparedPart::FirstToken);
    for ((tree, target), name) in trees.iter().zip(&targets).zip(["before", "after"]) {
        // The package of the program had another name in earlier revisions.
        compile(tree, target, ["--bin", "kvtile"])?;
        programs.push(target.join("release/kvtile"));
        if with_python {
            compile(tree, target, ["-p", "kvtile-python"])?;
            packages.push(package(tree, target, &folder.join(name).join("package"))?);
        }
    }
    let two = |paths: Vec<PathBuf>| <[PathBuf; 2]>::try_from(paths).ok();
    let Some(programs) = two(programs) else {
        return Err(StepFailure::Tool("two programs were built".to_owned()));
    };
    let packages = two(packages);
    Ok(ComparedBuilds { programs, packages })
}

/// Checks the revision out into `source`, in place of an earlier one.
fn check_out(source: &Path, revision: &str) -> Result<(), StepFailure> {
    let path = source.display().to_string();
    let exists = source.exists();
    let words = match exists {
        true => vec!["-C", &path, "checkout", "--quiet", "--detach", revision],
        // Git may still list the folder of a target that was removed.
        false => vec![
            "worktree", "add", "--force", "--quiet", "--detach", &path, revision,
        ],
    };
    let status = Command::new("git")
        .args(&words)
        .current_dir(root())
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(StepFailure::Step(format!("git {}", words.join(" ")))),
        Err(error) => Err(StepFailure::Tool(format!("cannot start git: {error}"))),
    }
}

fn compile(tree: &Path, target: &Path, selection: [&str; 2]) -> Result<(), StepFailure> {
    let manifest = tree.join("Cargo.toml").display().to_string();
    let target = target.display().to_string();
    let build = ["build", "--release", "--locked"];
    let places = ["--manifest-path", &manifest, "--target-dir", &target];
    CargoStep::cargo(build.into_iter().chain(selection).chain(places)).run()
}

/// Copies the package of a tree and its extension module to `folder`.
fn package(tree: &Path, target: &Path, folder: &Path) -> Result<PathBuf, StepFailure> {
    let copy = |from: &Path, to: &Path| {
        let status = Command::new("cp").arg("-a").args([from, to]).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            _ => Err(StepFailure::Step(format!(
                "cp -a {} {}",
                from.display(),
                to.display()
            ))),
        }
    };
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|error| python::file(folder, &error))?;
    }
    if let Some(parent) = folder.parent() {
        fs::create_dir_all(parent).map_err(|error| python::file(parent, &error))?;
    }
    copy(&tree.join("crates/kvtile-python/python"), folder)?;
    let module = target.join("release/lib_kvtile.so");
    copy(&module, &folder.join("kvtile/_kvtile.abi3.so"))?;
    Ok(folder.to_owned())
}

/// One run of one build.
fn measure(
    builds: &ComparedBuilds,
    part: ComparedPart,
    side: usize,
) -> Result<RunFigures, StepFailure> {
    let missing = || StepFailure::Tool(format!("there is no build {side}"));
    match part {
        ComparedPart::Copies | ComparedPart::Blocks => {
            let program = builds.programs.get(side).ok_or_else(missing)?;
            let words = match part {
                ComparedPart::Copies => ["bench", "--quick", "--json"],
                _ => ["bench", "blocks", "--json"],
            };
            let results = output(program, &words)?;
            Ok(match part {
                ComparedPart::Copies => copies(&results),
                _ => blocks(&results),
            })
        }
        ComparedPart::FirstToken => {
            let packages = builds.packages.as_ref();
            let package = packages.and_then(|packages| packages.get(side));
            let results = vllm::demonstration(package.ok_or_else(missing)?)?;
            Ok(first_tokens(&results))
        }
    }
}

/// The JSON that a program prints.
fn output(program: &Path, words: &[&str]) -> Result<Value, StepFailure> {
    let text = format!("{} {}", program.display(), words.join(" "));
    println!("$ {text}");
    let mut command = Command::new(program);
    command
        .args(words)
        .current_dir(root())
        .stderr(Stdio::inherit());
    let output = command
        .output()
        .map_err(|error| StepFailure::Tool(format!("cannot start {text}: {error}")))?;
    match (
        output.status.success(),
        serde_json::from_slice(&output.stdout),
    ) {
        (true, Ok(results)) => Ok(results),
        _ => Err(StepFailure::Step(text)),
    }
}

/// The elements of a list of the results.
fn elements<'v>(results: &'v Value, list: &str) -> impl Iterator<Item = &'v Value> + 'v {
    let elements = results.get(list).and_then(Value::as_array);
    elements.into_iter().flatten()
}

/// Adds the field `figure` of each element, under the name that the fields `names` make.
fn add<'v>(
    figures: &mut RunFigures,
    elements: impl Iterator<Item = &'v Value>,
    names: &[&str],
    figure: impl Fn(&Value) -> Option<f64>,
) {
    for element in elements {
        let name = names.iter().filter_map(|name| match element.get(*name)? {
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        });
        let name: Vec<String> = name.collect();
        if let Some(figure) = figure(element).filter(|figure| *figure > 0.0) {
            figures.insert(name.join(" "), figure);
        }
    }
}

fn number(element: &Value, field: &str) -> Option<f64> {
    element.get(field).and_then(Value::as_f64)
}

/// The time of each copy as a multiple of that of memcpy in the same run.
fn copies(results: &Value) -> RunFigures {
    let mut figures = RunFigures::new();
    let ours = elements(results, "rows")
        .filter(|row| row.get("method").and_then(Value::as_str) == Some("kvtile"));
    let names = [
        "class",
        "source",
        "destination",
        "source_place",
        "destination_place",
        "model",
        "bytes",
        "threads",
    ];
    add(&mut figures, ours, &names, |row| {
        Some(1.0 / number(row, "ratio")?)
    });
    figures
}

/// Nanoseconds per block.
fn blocks(results: &Value) -> RunFigures {
    let mut figures = RunFigures::new();
    let of = |element: &Value| number(element, "ns_per_block");
    let hashing = elements(results, "hashing");
    add(&mut figures, hashing, &["profile", "page_size"], of);
    let operations = elements(results, "operations");
    add(&mut figures, operations, &["policy", "operation"], of);
    let managers = elements(results, "managers")
        .filter(|row| row.get("manager").and_then(Value::as_str) == Some("kvtile"));
    add(
        &mut figures,
        managers,
        &["manager", "order", "operation"],
        of,
    );
    figures
}

/// What each time to the first token with kvtile is a multiple of, in the same process and for the
/// same prompt: the computation without a connector, or a hit of vLLM's own cache.
const FIRST_TOKENS: [(&str, [&str; 2]); 4] = [
    ("cold", ["none", "cold"]),
    ("again", ["none", "again"]),
    ("forgotten", ["none", "again"]),
    ("restarted", ["kvtile", "again"]),
];

/// The median of the prompts' ratios, for each source.
fn first_tokens(results: &Value) -> RunFigures {
    let answers: Vec<&Value> = elements(results, "answers").collect();
    let text = |answer: &Value, field| Some(answer.get(field)?.as_str()?.to_owned());
    let is = |answer: &Value, engine: &str, state: &str| {
        text(answer, "engine").as_deref() == Some(engine)
            && text(answer, "state").as_deref() == Some(state)
    };
    // The second process begins with the first answer from a restart.
    let second = answers
        .iter()
        .position(|answer| is(answer, "kvtile", "restarted"));
    let (before, after) = answers.split_at(second.unwrap_or(answers.len()));
    let mut figures = RunFigures::new();
    for (state, [base_engine, base_state]) in FIRST_TOKENS {
        let process = match state {
            "restarted" => after,
            _ => before,
        };
        let seconds = |engine, state, prompt: Option<&Value>| {
            let answer = process
                .iter()
                .find(|answer| is(answer, engine, state) && answer.get("round") == prompt)?;
            number(answer, "first_token_seconds")
        };
        let ours = process.iter().filter(|answer| is(answer, "kvtile", state));
        let ratios = ours.filter_map(|answer| {
            let base = seconds(base_engine, base_state, answer.get("round"))?;
            Some(number(answer, "first_token_seconds")? / base)
        });
        let ratios: Vec<f64> = ratios.collect();
        if !ratios.is_empty() {
            figures.insert(
                format!("{state} over {base_engine} {base_state}"),
                median(ratios).0,
            );
        }
    }
    figures
}

/// The median, and largest less smallest as a part of it.
fn median(mut figures: Vec<f64>) -> (f64, f64) {
    figures.sort_by(f64::total_cmp);
    let middle = figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN);
    let ends = figures.first().zip(figures.last());
    (
        middle,
        ends.map_or(0.0, |(least, most)| (most - least) / middle),
    )
}

/// Prints the figures; returns the ratios of those that are suspect. Fails if there is none to compare.
fn report(part: ComparedPart, rounds: &[Vec<RunFigures>; 2]) -> Result<RunFigures, StepFailure> {
    let [before, after] = rounds;
    let names = after.first().into_iter().flat_map(BTreeMap::keys);
    let mut suspects = RunFigures::new();
    let mut compared = 0;
    println!("\n{part:?}\n      before  spread       after  spread  after/before  spread");
    for name in names {
        let of = |rounds: &[RunFigures]| -> Option<Vec<f64>> {
            rounds
                .iter()
                .map(|round| round.get(name).copied())
                .collect()
        };
        let (Some(before), Some(after)) = (of(before), of(after)) else {
            println!("  {name}: only in one of the builds");
            continue;
        };
        compared += 1;
        let ratios = after
            .iter()
            .zip(&before)
            .map(|(after, before)| after / before);
        let (ratio, of_ratio) = median(ratios.collect());
        let ((before, of_before), (after, of_after)) = (median(before), median(after));
        let is_suspect = ratio - 1.0 > of_before.max(of_after);
        let mark = if is_suspect { '!' } else { ' ' };
        println!(
            "{before:12.4}  {of_before:6.2}  {after:10.4}  {of_after:6.2}  {ratio:11.3}{mark}  {of_ratio:6.2}  {name}"
        );
        if is_suspect {
            suspects.insert(name.clone(), ratio);
        }
    }
    match compared {
        0 => Err(StepFailure::Tool(format!(
            "{part:?}: the results of the two builds have no figure in common"
        ))),
        _ => Ok(suspects),
    }
}
