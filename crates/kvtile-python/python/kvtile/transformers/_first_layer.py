"""Checks by its first layer that a cache holds the KV of given tokens.

Keys and values of the first layer depend on a token and its position alone. This module recomputes them, without
attention and without the other layers, and compares. The KV of other tokens, positions or models differs there by as
much as the values themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache

from kvtile._errors import IdentityError, RequestError
from kvtile.transformers._kinds import cache_name
from kvtile.transformers._model import bare

# The largest relative error, by the norm, of a token's key or value: a few times the rounding error of the dtype.
# Another token or position differs by 0.1 and more.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 5e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
_AT_ONCE = 4096


class _Computed(Exception):  # noqa: N818  it ends a forward pass, and is not an error
    """The keys and values of the first layer are computed."""


class _FirstLayer(DynamicCache):  # type: ignore[misc]
    """A cache that records the first tensors that a layer gives it, and ends the forward pass."""

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *_: Any, **__: Any) -> Any:
        self.given = {"keys": key_states[:, :, 0], "values": value_states[:, :, 0]}
        raise _Computed

    def update_conv_state(self, conv_states: Any, layer_idx: int, *_: Any, **__: Any) -> Any:
        self.given = {"conv_states.0": conv_states[..., -1]}
        raise _Computed


def first_tensors(model: Any, tokens: list[int], positions: list[int]) -> dict[str, Any]:
    """What the first layer that keeps anything keeps of tokens: ``keys`` and ``values``, each ``[tokens, heads, head
    size]``, or the columns of ``conv_states.0``, ``[tokens, channels]``.

    Raises:
        IdentityError: a model that does not compute its first layer token by token.
    """
    parts, device = [], bare(model).device
    for at in range(0, len(tokens), _AT_ONCE):
        cache = _FirstLayer(config=bare(model).config)
        try:
            # Each token is a sequence of its own, so attention is trivial and the mask has one element.
            with torch.no_grad():
                bare(model)(
                    input_ids=torch.tensor(tokens[at : at + _AT_ONCE], device=device)[:, None],
                    position_ids=torch.tensor(positions[at : at + _AT_ONCE], device=device)[:, None],
                    use_cache=True,
                    **{cache_name(model): cache},
                )
        except _Computed:
            parts.append(cache.given)
        except Exception as error:
            raise IdentityError(
                f"{type(model).__name__} does not compute its first layer from tokens and positions ({error}), so kvtile "
                "cannot check which tokens a cache holds"
            ) from error
        else:
            raise IdentityError(f"{type(model).__name__} does not fill the cache object that it is given")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def check_first_tensors(
    tokens: list[int], positions: list[int], found: dict[str, Any], computed: dict[str, Any]
) -> None:
    """Refuses tensors of the first layer that are not those of these tokens at these positions.

    Args:
        found: by name, ``[tokens, ...]``; ``computed`` likewise.

    Raises:
        RequestError: names the first token that differs.
    """
    for name, of_tokens in computed.items():
        tolerance = TOLERANCES[of_tokens.dtype]
        ours, theirs = found[name].flatten(1).double(), of_tokens.flatten(1).double()
        length = theirs.norm(dim=1)
        apart = (ours - theirs).norm(dim=1)
        # Written so that NaN is refused too.
        wrong = ~(apart <= tolerance * length)
        if wrong.any():
            at = int(wrong.nonzero()[0])
            raise RequestError(
                f"the cache holds other KV: in its first layer the {name} of token {tokens[at]} at position "
                f"{positions[at]} are {float(apart[at] / length[at]):.2g} of their length away from the model's; "
                "give the cache that generate worked on, and the inputs and outputs of that call"
            )
