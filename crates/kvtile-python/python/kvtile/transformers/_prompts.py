"""The prompts of a batch, from the output of a tokenizer.

This module knows token ids and masks, but neither models nor KV.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kvtile._errors import RequestError


@dataclass(frozen=True)
class Prompt:
    """A prompt of a batch: its tokens, which end with the batch, and the column of the first one."""

    tokens: list[int]
    start: int

    @property
    def end(self) -> int:
        """The column after the last token."""
        return self.start + len(self.tokens)


def prompts_of(inputs: Any, padding: int | None = None) -> list[Prompt]:
    """The prompts of a batch.

    Args:
        inputs: token ids, or a mapping with ``input_ids`` and optionally ``attention_mask``.
        padding: the token that ``generate`` treats as padding without a mask.

    Raises:
        RequestError: the tokens or the mask are not those of a batch that is padded on the left.
    """
    mask = None
    if isinstance(inputs, Mapping):
        mask = inputs.get("attention_mask")
        if "input_ids" not in inputs:
            raise RequestError(f"the inputs have {', '.join(map(str, inputs)) or 'nothing'}, and no input_ids")
        inputs = inputs["input_ids"]
    sequences = token_lists(inputs)
    if mask is None:
        if padding is not None and any(padding in tokens for tokens in sequences):
            raise RequestError(
                f"the inputs have the padding token {padding} and no attention_mask, from which generate guesses one; "
                "give the attention_mask"
            )
        masks = [[1] * len(tokens) for tokens in sequences]
    else:
        masks = _mask_lists(mask)
    if [len(seen) for seen in masks] != [len(tokens) for tokens in sequences]:
        raise RequestError(
            f"the attention mask does not have the size of the inputs: {_size(masks)} for inputs of {_size(sequences)}"
        )
    prompts = []
    for tokens, seen in zip(sequences, masks, strict=True):
        start = next((at for at, value in enumerate(seen) if value), len(seen))
        if not all(seen[start:]):
            raise RequestError(
                "the attention mask leaves out tokens after the first one; pad on the left (padding_side), as "
                "generate requires, and mask nothing else"
            )
        prompts.append(Prompt(tokens[start:], start))
    if not prompts or not all(prompt.tokens for prompt in prompts):
        raise RequestError("the inputs have no tokens")
    return prompts


def token_lists(tokens: Any) -> list[list[int]]:
    """Token ids, one list per sequence, all of the same length."""
    if isinstance(tokens, (str, bytes)):
        raise RequestError(f"{type(tokens).__name__} are not token ids; give the output of the tokenizer")
    rows = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens) if hasattr(tokens, "__iter__") else tokens
    if not isinstance(rows, list):
        raise RequestError(f"token ids are [prompts, tokens] or [tokens], and not {rows!r}")
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
    if rows and not isinstance(rows[0], (list, tuple)):
        rows = [rows]
    for row in rows:
        if not isinstance(row, (list, tuple)) or not all(type(token) is int and token >= 0 for token in row):
            raise RequestError("token ids are whole numbers that are not negative, [prompts, tokens] or [tokens]")
    if len({len(row) for row in rows}) > 1:
        raise RequestError("the inputs are of several lengths; pad them on the left, with an attention mask")
    return [list(row) for row in rows]


def end_of_answer(tokens: list[int], start: int, stop: int, ends: Collection[int]) -> int:
    """The end of an answer: shorter answers of a batch are padded after it."""
    return next((at + 1 for at in range(start, stop) if tokens[at] in ends), stop)


def _mask_lists(mask: Any) -> list[list[int]]:
    rows = mask.tolist() if hasattr(mask, "tolist") else mask
    if isinstance(rows, (list, tuple)) and rows and not isinstance(rows[0], (list, tuple)):
        rows = [rows]
    if not isinstance(rows, (list, tuple)) or not all(isinstance(row, (list, tuple)) for row in rows):
        raise RequestError(f"an attention mask is [prompts, tokens] of 0 and 1, and not {mask!r}")
    if not all(isinstance(value, (int, float)) and value in (0, 1) for row in rows for value in row):
        raise RequestError(
            "an attention mask is [prompts, tokens] of 0 and 1; with a mask of more dimensions or other values KV is "
            "not a function of the tokens before it"
        )
    return [[int(value) for value in row] for row in rows]


def _size(rows: list[list[int]]) -> str:
    return f"{len(rows)} x {len(rows[0]) if rows else 0}"
