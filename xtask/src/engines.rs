//! SGLang and LMCache with the package: their own classes, pools and controllers, on a machine without a GPU.
//!
//! Neither engine runs a model here. Their wheels are installed without their dependencies, most of which are GPU
//! kernels, and beside them the packages that the imported modules need.

use crate::{
    cached::{self, CachedEnvironment},
    python::{self, WheelProfile},
    step::StepFailure,
};

/// The engines. SGLang requires torch 2.14.1; vLLM's environment has this version, and the imported modules work with
/// it.
const ENVIRONMENT: CachedEnvironment<'_> = CachedEnvironment {
    name: "sglang-0.5.23-lmcache-0.5.6-torch-2.13.0",
    needed_gb: 8,
    overrides: &["torch==2.13.0"],
    packages: &[
        // Both.
        "aiohttp==3.14.5",
        "msgspec==0.23.0",
        "numpy==2.2.6",
        "psutil==7.2.2",
        "pytest>=8.4",
        "pyzmq==27.3.0",
        "requests==2.34.2",
        "safetensors==0.8.0",
        "transformers==5.19.0",
        // SGLang.
        "apache-tvm-ffi==0.1.11",
        "compressed-tensors==0.20.1",
        "dill==0.4.1",
        "gguf==0.19.0",
        "ipython==9.18.1",
        "orjson==3.13.0",
        "pillow==13.0.0",
        "pybase64==1.5.1",
        "pydantic==2.14.4",
        "sentencepiece==0.2.3",
        "starlette==1.10.0",
        "torchvision==0.28.0",
        "tqdm==4.70.1",
        // LMCache.
        "aiofile",
        "aiofiles",
        "blake3",
        "cachetools",
        "cryptography",
        "httpx",
        "numba",
        "nvtx",
        "opentelemetry-api<=1.40.0",
        "opentelemetry-sdk<=1.40.0",
        "prometheus_client<=0.24.1",
        "py-cpuinfo",
        "redis",
        "sortedcontainers",
    ],
    alone: &["sglang==0.5.23", "lmcache==0.5.6"],
};
/// Sets how long the soaks last.
pub(crate) const SOAK_SECONDS: &str = "KVTILE_SOAK_SECONDS";
const TESTS: &str = "crates/kvtile-python/tests_engines";
const SOAKS: [&str; 2] = [
    "crates/kvtile-python/tests_soak/test_sglang_soak.py",
    "crates/kvtile-python/tests_soak/test_lmcache_soak.py",
];

/// The tests against the engines' own code, and a short soak. `arguments` are for pytest, such as a file of the folder.
pub(crate) fn test(arguments: &[String]) -> Result<(), StepFailure> {
    match arguments {
        [] => pytest(&[&[TESTS], &SOAKS[..]].concat(), None),
        given => pytest(&given.iter().map(String::as_str).collect::<Vec<_>>(), None),
    }
}

/// The soaks alone, of so many seconds each.
pub(crate) fn soak(seconds: u64) -> Result<(), StepFailure> {
    pytest(&[&["-s"], &SOAKS[..]].concat(), Some(seconds))
}

fn pytest(arguments: &[&str], soak_seconds: Option<u64>) -> Result<(), StepFailure> {
    let (environment, _lock) = match ENVIRONMENT.install() {
        Ok(installed) => installed,
        Err(failure) => {
            eprintln!(
                "\n*** SKIPPED: SGLang and LMCache cannot be installed here, nothing was tested with them: {failure}\n"
            );
            return Ok(());
        }
    };
    cached::install_package(&environment, WheelProfile::Tests)?;
    let pytest = ["-m", "pytest", "-v", "-p", "no:cacheprovider"];
    let mut variables = vec![
        ("HF_HUB_OFFLINE", "1".to_owned()),
        ("OMP_NUM_THREADS", "2".to_owned()),
        cached::bytecode(&environment),
    ];
    variables.extend(soak_seconds.map(|seconds| (SOAK_SECONDS, seconds.to_string())));
    let arguments = [&pytest[..], arguments].concat();
    python::run_with(&environment, "python", &arguments, &variables)
}
