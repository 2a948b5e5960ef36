"""The backend's log."""

from __future__ import annotations

import logging

logger = logging.getLogger("kvtile.sglang")
"""Messages appear beside SGLang's own."""
