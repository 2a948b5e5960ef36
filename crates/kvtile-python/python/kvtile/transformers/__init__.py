"""A prefix cache for ``generate`` of Hugging Face transformers.

The cache keeps the KV of prompts and answers in host memory and, if a folder is given, on disk. A prompt with a known
prefix continues from its KV, in this process or a later one. The generated tokens are the same as without the cache.

    cache = kvtile.transformers.PrefixCache(model, disk="kv-cache", host_gib=2)
    outputs = cache.generate(model, inputs, max_new_tokens=64)

or, with a ``generate`` of your own:

    past = cache.prefill(inputs)
    outputs = model.generate(**inputs, past_key_values=past)
    cache.save(inputs, outputs, past)
"""

from kvtile.transformers._cache import PrefixCache

__all__ = ["PrefixCache"]
