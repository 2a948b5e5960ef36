"""Imports vLLM and torch early, because they raise warnings on import; only later warnings count."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import vllm.config
    import vllm.engine.arg_utils
    import vllm.lora.worker_manager
    import vllm.v1.core.kv_cache_utils
    import vllm.v1.request  # noqa: F401
