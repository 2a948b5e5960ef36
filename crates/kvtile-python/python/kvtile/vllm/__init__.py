"""vLLM keeps its KV in kvtile: in host memory and on disk, over restarts, for CPUs without a GPU too.

``KvtileConnector`` is loaded by vLLM itself::

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

Importing this module imports vLLM. What it can be told is in :class:`kvtile.vllm.Settings`.
"""

from kvtile.vllm._connector import KvtileConnector
from kvtile.vllm._settings import Settings
from kvtile.vllm._stats import KvtileStats

__all__ = ["KvtileConnector", "KvtileStats", "Settings"]
