"""Records the requests of an engine as a trace, and replays it on caches of two sizes and two policies."""

import json
import subprocess
import sys

import kvtile

PAGE_SIZE = 16
shape = kvtile.Shape(num_blocks=1, num_layers=4, page_size=PAGE_SIZE, num_heads=2, head_size=64, dtype="float32")
hasher = kvtile.TokenHasher(kvtile.Identity("a-model", "main", shape))

# Eight users in turn continue their conversations, all with one system prompt. A trace has ids of blocks, no tokens.
conversations = [list(range(320)) for _ in range(8)]
with kvtile.TraceRecorder("requests.jsonl", PAGE_SIZE) as recorder:
    for turn in range(5):
        for user, tokens in enumerate(conversations, 1):
            tokens.extend(1000 * user + 100 * turn + token for token in range(100))
            recorder.record(hasher.keys(tokens), len(tokens), output_tokens=20)
print("recorded", recorder.recorded, "dropped", recorder.dropped)

command = ["replay", "requests.jsonl", "--dry", "--page-size", str(PAGE_SIZE), "--capacity", "60,200"]
command += ["--policy", "gittins,lru", "--json"]
answer = subprocess.run([sys.executable, "-m", "kvtile", *command], check=True, capture_output=True)
for run in json.loads(answer.stdout)["runs"]:
    if run["policy"] in ("gittins", "lru"):
        print(f"{run['policy']} with {run['capacity_blocks']} blocks serves {run['token_hit_ratio']:.0%} of all tokens")

# prints:
# recorded 40 dropped 0
# gittins with 60 blocks serves 51% of all tokens
# gittins with 200 blocks serves 77% of all tokens
# lru with 60 blocks serves 50% of all tokens
# lru with 200 blocks serves 68% of all tokens
