"""The stubs match the module, the package is typed, and all public names have docstrings."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import kvtile

pytest.importorskip("mypy")

SETTINGS = str(Path(__file__).parents[3] / "pyproject.toml")


def mypy(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=cwd)


def test_the_stubs_match_the_module(tmp_path: Path) -> None:
    checked = mypy("mypy.stubtest", "kvtile._kvtile", "--mypy-config-file", SETTINGS, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_package_and_its_users_type_check(tmp_path: Path) -> None:
    package = Path(kvtile.__file__).parent
    assert (package / "py.typed").exists()
    (tmp_path / "user.py").write_text(
        textwrap.dedent("""
        import numpy as np
        import kvtile

        async def use(identity: kvtile.Identity, tensors: list[np.ndarray]) -> int:
            shape = kvtile.Shape(num_blocks=8, num_layers=2, page_size=16, num_heads=2, head_size=64, dtype=np.float32)
            layout = kvtile.Layout("L|BHNKC", shape=shape, tensors=tensors)
            with kvtile.Cache(identity, layout, disk="kv", disk_bytes=1 << 30) as cache:
                keys = kvtile.TokenHasher(identity).keys(np.arange(64))
                report = await cache.load(cache.lookup(keys), [1, 2])
                reveal_type(report)
                return report.blocks + kvtile.copy_blocks(layout, layout, [0], [1]).bytes

        kvtile.Layout("BLKNHC", shape=3)
        """)
    )
    options = ["--strict", "--config-file", SETTINGS, "--cache-dir", str(tmp_path / "cache")]
    assert mypy("mypy", *options, "-p", "kvtile", cwd=tmp_path).returncode == 0
    checked = mypy("mypy", *options, "user.py", cwd=tmp_path)
    lines = [line for line in checked.stdout.splitlines() if line.startswith("user.py")]
    assert len(lines) == 2, checked.stdout
    assert 'Revealed type is "kvtile._kvtile.LoadReport"' in lines[0]
    assert 'has incompatible type "int"; expected "Shape"' in lines[1]


def test_all_public_names_have_docstrings() -> None:
    bare = []
    for name in kvtile.__all__:
        public = getattr(kvtile, name)
        if name.startswith("_"):
            continue
        if not inspect.getdoc(public):
            bare.append(name)
        if not inspect.isclass(public) or issubclass(public, Exception):
            continue
        for member, value in vars(public).items():
            if not member.startswith("_") and not inspect.getdoc(value):
                bare.append(f"{name}.{member}")
    assert bare == []
