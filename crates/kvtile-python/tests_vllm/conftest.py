"""Imports vLLM early for the files that import it, because it raises warnings on import; only later warnings count.

Files that only start engines do not need it in their own process, where the import would take a quarter of a minute."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

IMPORTS = re.compile(r"^\s*(from|import) (vllm|kvtile\.vllm|configs|tiers)\b", re.MULTILINE)


def pytest_collect_file(file_path: Path) -> None:
    """Called before a file is imported."""
    if "vllm" in sys.modules or file_path.suffix != ".py" or not IMPORTS.search(file_path.read_text()):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm.config
        import vllm.engine.arg_utils
        import vllm.lora.worker_manager
        import vllm.v1.core.kv_cache_utils
        import vllm.v1.request  # noqa: F401
