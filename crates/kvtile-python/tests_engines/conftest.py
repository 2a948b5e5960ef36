"""Settings of the tests against engines' own code."""

from __future__ import annotations

import pytest

# Warnings of the engines and of what they import are not ours to mend.
_THEIRS = ("sglang", "lmcache", "torch", "torchvision", "transformers", "triton", "numba", "importlib", "opentelemetry", "tvm_ffi")


def pytest_configure(config: pytest.Config) -> None:
    """Accepts warnings from the engines' modules; those of kvtile remain errors."""
    for name in _THEIRS:
        config.addinivalue_line("filterwarnings", rf"ignore:::{name}(\..*)?")
