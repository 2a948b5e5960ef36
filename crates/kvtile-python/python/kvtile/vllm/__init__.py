"""A vLLM connector: keeps KV in host memory and on disk, across restarts, also on machines without a GPU.

vLLM itself loads ``KvtileConnector``::

    from vllm import LLM
    from vllm.config import KVTransferConfig

    llm = LLM(
        "meta-llama/Llama-3.2-1B",
        kv_transfer_config=KVTransferConfig(
            kv_connector="KvtileConnector",
            kv_role="kv_both",
            kv_connector_module_path="kvtile.vllm",
            kv_connector_extra_config={"host_gib": 4, "disk_path": "/var/cache/kv", "disk_gib": 100},
        ),
    )

Importing this module imports vLLM. :class:`kvtile.vllm.Settings` documents the settings.
"""

from kvtile.vllm._connector import KvtileConnector
from kvtile.vllm._settings import Settings
from kvtile.vllm._stats import KvtileStats

__all__ = ["KvtileConnector", "KvtileStats", "Settings"]
