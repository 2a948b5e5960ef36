"""The model of the other tests is converted exactly, not merely well enough to answer."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(os.environ["KVTILE_TEST_MODEL"])
PROMPT = "The capital of France is"
# With rows of q and k in the wrong order, the model still begins with Paris, but fails at the fifth token.
GREEDY = [7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33, 29, 34, 34, 216]


def test_the_model_answers_exactly_and_decodes_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=len(GREEDY), do_sample=False)[0][inputs.input_ids.shape[1] :]
    assert said.tolist() == GREEDY
    assert tokenizer.decode(said).startswith(" Paris.")
    text = "12 caf\u00e9s\t\u4f60\u597d \U0001f600 <|im_end|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
