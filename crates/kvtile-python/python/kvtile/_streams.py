"""The stream of torch that transfers of an engine's tensors are ordered with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def compute_stream(device: torch.device) -> Any:
    """The stream in which this thread enqueues the model's work now; None for memory of the CPU, which has none.

    The engine may change it between calls, so it is not kept.
    """
    if device.type == "cpu":
        return None
    import torch

    return torch.cuda.current_stream(device)
