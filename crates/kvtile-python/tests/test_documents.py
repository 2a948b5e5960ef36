"""Runs the Python examples of the documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def examples(name: str, kind: str) -> list[str]:
    """The examples of a document with the fence ``kind``."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)


def run(name: str, kind: str, names: dict[str, object]) -> None:
    """Runs the examples in order, as a reader would."""
    found = examples(name, kind)
    assert found
    for example in found:
        exec(compile(example, name, "exec"), names)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["README.md", "docs/python.md", "docs/groups.md"])
def test_the_examples_of_a_document_run(name: str) -> None:
    run(name, "python", {})


def test_the_examples_with_a_model_run() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tiny import llama, prompt

    inputs = prompt(1, 40)
    both = {"input_ids": inputs, "attention_mask": torch.ones_like(inputs)}
    run("docs/transformers.md", "python torch", {"model": llama(), "inputs": both})


def test_no_example_is_left_out() -> None:
    names = {
        "docs/groups.md": {"sh", "python"},
        "docs/python.md": {"sh", "python"},
        "docs/transformers.md": {"python torch"},
    }
    for name, expected in names.items():
        fences = re.findall(r"^```(\w.*)$", (ROOT / name).read_text(), re.MULTILINE)
        assert set(fences) == expected
