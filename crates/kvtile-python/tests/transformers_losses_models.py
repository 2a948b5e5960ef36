"""Builds the model of each type, in the process from which those that are killed are forked."""

from __future__ import annotations

from transformers_losses import KINDS, model_of

for kind in KINDS:
    model_of(kind)
