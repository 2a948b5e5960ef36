"""KV cache blocks of language models, in any layout and any memory, moved at the speed of the memory."""

from __future__ import annotations

from kvtile import _errors
from kvtile._errors import *
from kvtile._kvtile import (
    Layout,
    Plan,
    Plane,
    Shape,
    TransferReport,
    __version__,
    copy_blocks,
    plan,
)

for _error in (globals()[_name] for _name in _errors.__all__):
    _error.__module__ = "kvtile"
