"""A prefix cache for ``generate`` of transformers, with a small model of random weights: the answers are the same."""

try:
    import torch
    import transformers
except ModuleNotFoundError as error:
    raise SystemExit(f"skipped: this example needs torch and transformers; {error.name} is not installed") from None

from kvtile.transformers import PrefixCache

torch.manual_seed(1)
config = transformers.LlamaConfig(
    vocab_size=200, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2
)  # fmt: skip
model = transformers.LlamaForCausalLM(config).eval()

document = torch.randint(3, 200, (1, 128))  # eight blocks of 16 tokens
questions = [torch.cat([document, torch.randint(3, 200, (1, 10))], dim=1) for _ in range(2)]
options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}

with PrefixCache(model, disk="kv-cache", host_gib=0.1) as cache:
    for question in questions:
        inputs = {"input_ids": question, "attention_mask": torch.ones_like(question)}
        answer = cache.generate(model, inputs, **options)
        assert torch.equal(answer, model.generate(**inputs, **options))
        print("loaded blocks so far:", sum(cache.stats()["hits"].values()))

# prints:
# loaded blocks so far: 0
# loaded blocks so far: 8
