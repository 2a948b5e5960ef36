"""A prefix cache for ``generate`` of Hugging Face transformers.

The KV of prompts and answers is kept in host memory and, where a folder is given, on disk. A prompt that begins as
an earlier one did continues from there, in this process or a later one; the tokens are those that the
model would have given without the cache.

    cache = kvtile.transformers.PrefixCache(model, disk="kv-cache", host_gib=2)
    outputs = cache.generate(model, inputs, max_new_tokens=64)

or, with a ``generate`` of your own:

    past = cache.prefill(inputs)
    outputs = model.generate(**inputs, past_key_values=past)
    cache.save(inputs, outputs, past)
"""

from kvtile.transformers._cache import PrefixCache

__all__ = ["PrefixCache"]
