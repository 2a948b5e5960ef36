"""The entry point ``vllm.general_plugins``: makes ``"type": "kvtile"`` a tier of vLLM. It runs in every process of vLLM."""

from __future__ import annotations

import logging

_logger = logging.getLogger("vllm.kvtile")


def register() -> None:
    """Registers the tier. Never raises: an older vLLM has no tiers, and a second call changes nothing."""
    try:
        from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

        SecondaryTierFactory.register_tier("kvtile", "kvtile.vllm.tier", "KvtileTier")
    except ValueError:
        _logger.debug("the tier kvtile is registered already")
    except (ImportError, AttributeError) as error:
        _logger.debug("this vLLM has no tiers that kvtile can be: %s", error)
