"""The soaks use the small engines of the folders beside this one, and their settings for warnings."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

BESIDE = Path(__file__).parent.parent


def settings_of(folder: str) -> ModuleType:
    """The settings of a folder of tests, whose modules can be imported from then on."""
    sys.path.insert(0, str(BESIDE / folder))
    spec = importlib.util.spec_from_file_location(f"settings_of_{folder}", BESIDE / folder / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pytest_configure = settings_of("tests_engines").pytest_configure
_of_vllm = settings_of("tests_vllm")
if importlib.util.find_spec("vllm") is not None:
    pytest_collect_file = _of_vllm.pytest_collect_file
