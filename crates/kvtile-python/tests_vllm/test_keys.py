"""Two requests share exactly the blocks that vLLM's prefix cache would share, except that content counts, not names."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.request import Request

import kvtile
from kvtile.vllm._content import digest_of_embeddings, digest_of_feature
from kvtile.vllm._keys import RequestKeys

PAGE = 4
PLACEHOLDER = 7


@pytest.fixture(scope="module", autouse=True)
def first_hash() -> None:
    init_none_hash(sha256)


@pytest.fixture(scope="module")
def hasher() -> kvtile.TokenHasher:
    shape = kvtile.Shape(num_blocks=1, num_layers=1, page_size=PAGE, num_heads=1, head_size=4, dtype="float32")
    return kvtile.TokenHasher(kvtile.Identity("m", "r", shape))


def feature(number: int, offset: int, length: int, modality: str = "image", **changes: Any) -> MultiModalFeatureSpec:
    """One of a few images; a number always has the same content."""
    data = {"pixels": SimpleNamespace(data=torch.full((2, 3), float(number))), "grid": SimpleNamespace(data=torch.tensor([number]))}
    given = {"data": data, "identifier": f"image-{number}", "mm_position": PlaceholderRange(offset, length), "modality": modality}
    return MultiModalFeatureSpec(**(given | changes))


def request(tokens: list[int] | None = None, **given: Any) -> Request:
    return Request(
        "r", tokens, SamplingParams(max_tokens=4), None, block_hasher=get_request_block_hasher(PAGE, sha256), **given
    )


def keys_of(hasher: kvtile.TokenHasher, made: Request) -> list[bytes]:
    lora = made.lora_request
    # The name and path of an adapter substitute for its content here.
    common = [f"{lora.lora_name} at {lora.lora_path}".encode()] if lora is not None else []
    keys = RequestKeys(made, {0: hasher, 1: hasher}, common)
    of = keys.of(made.num_tokens // PAGE)
    assert of[0] == of[1] and len(of[0]) == (made.num_tokens // PAGE if keys.limit is None else keys.limit)
    return of[0]


def some_request(numbers: random.Random) -> Request:
    """Random combinations of few texts, images and adapters, so that many requests share much."""
    tokens: list[int] = []
    features = []
    for _ in range(numbers.randrange(1, 6)):
        if numbers.random() < 0.4:
            length = numbers.choice([1, 3, 4, 7])
            features.append(feature(numbers.randrange(2), len(tokens), length))
            tokens += [PLACEHOLDER] * length
        else:
            tokens += [numbers.randrange(2)] * numbers.choice([1, 2, 4, 5])
    given: dict[str, Any] = {"mm_features": features}
    if numbers.random() < 0.3:
        given["cache_salt"] = numbers.choice(["red", "blue"])
    if numbers.random() < 0.3:
        number = numbers.randrange(1, 3)
        given["lora_request"] = LoRARequest(f"lora-{number}", number, f"/loras/{number}")
    if numbers.random() < 0.2:
        rows = torch.tensor([[float(numbers.randrange(2))]] * len(tokens))
        return request(None, prompt_embeds=rows, **(given | {"mm_features": None}))
    made = request(tokens, **given)
    made.append_output_token_ids([numbers.randrange(2) for _ in range(numbers.randrange(4))])
    return made


@pytest.mark.parametrize("seed", range(4))
def test_keys_are_equal_exactly_where_vllms_hashes_are(hasher: kvtile.TokenHasher, seed: int) -> None:
    numbers = random.Random(seed)
    by_hash: dict[Any, bytes] = {}
    by_key: dict[bytes, Any] = {}
    blocks = 0
    for _ in range(1500):
        made = some_request(numbers)
        keys = keys_of(hasher, made)
        assert len(keys) == len(made.block_hashes)
        for key, block_hash in zip(keys, made.block_hashes, strict=True):
            blocks += 1
            assert by_hash.setdefault(block_hash, key) == key
            assert by_key.setdefault(key, block_hash) == block_hash
    assert len(by_key) < 0.6 * blocks, "many blocks are shared"


def test_a_system_prompt_before_an_image_is_shared_and_so_is_the_first_of_two_images(hasher: kvtile.TokenHasher) -> None:
    prompt = list(range(100, 110))
    one, two = (keys_of(hasher, request(prompt + [PLACEHOLDER] * 4 + [1] * 6, mm_features=[feature(n, 10, 4)])) for n in (1, 2))
    assert one[:2] == two[:2] and one[2] != two[2] and one[3] != two[3]
    more = request(prompt + [PLACEHOLDER] * 4 + [1] * 6 + [PLACEHOLDER] * 4, mm_features=[feature(1, 10, 4), feature(2, 20, 4)])
    assert keys_of(hasher, more)[:5] == one
    text = keys_of(hasher, request(prompt + [PLACEHOLDER] * 4 + [1] * 6))
    assert text[:2] == one[:2] and text[2] != one[2]


def test_the_name_of_an_image_does_not_count(hasher: kvtile.TokenHasher) -> None:
    """A client may set the name, and without caches vLLM numbers images per request, from 0 after every start."""
    tokens = [PLACEHOLDER] * 8

    def keys(**changes: Any) -> list[bytes]:
        return keys_of(hasher, request(tokens, mm_features=[feature(1, 0, 8, **changes)]))

    other = {"pixels": SimpleNamespace(data=torch.zeros(2, 3)), "grid": SimpleNamespace(data=torch.tensor([1]))}
    assert keys(identifier="0-image-0") == keys(identifier="1-image-0")
    assert keys(identifier="0-image-0") != keys(identifier="0-image-0", data=other)
    assert keys() != keys(modality="video")
    masks = [torch.tensor([True] * 8), torch.tensor([True] * 7 + [False])]
    assert len({str(keys(mm_position=PlaceholderRange(0, 8, mask))) for mask in masks}) == 2


@pytest.mark.parametrize("data", [None, {"pixels": SimpleNamespace(data=object())}])
def test_blocks_after_unknown_content_have_no_keys(hasher: kvtile.TokenHasher, data: Any) -> None:
    """The content is in shared memory (mm_processor_cache_type shm), or in a separate encoder."""
    tokens = list(range(10)) + [PLACEHOLDER] * 4 + [1] * 6
    known = keys_of(hasher, request(tokens, mm_features=[feature(1, 10, 4)]))
    keys = RequestKeys(request(tokens, mm_features=[feature(1, 10, 4, data=data)]), {0: hasher}, [])
    assert keys.limit == 2 and keys.of(5)[0] == known[:2]


def test_every_value_has_its_own_digest() -> None:
    values = [
        None, torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(6), torch.zeros(2, 3, dtype=torch.int32), torch.zeros(0), torch.zeros(0, 1),
        torch.zeros(2, 3, dtype=torch.bfloat16), [torch.zeros(2, 3)], [torch.zeros(1, 3)] * 2, [], {}, 0, False, 0.0, "", "0", b"", b"0",
        torch.zeros(2, 3).numpy(), torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[0.0, 1.0], [2.0, 3.0]]).t(),
    ]
    digests = [digest_of_feature(feature(1, 0, 1, data={"one": SimpleNamespace(data=value)})) for value in values]
    assert None not in digests and len(set(digests)) == len(values)
    moved = torch.tensor([[0.0, 2.0], [1.0, 3.0]]).t()
    assert digest_of_feature(feature(1, 0, 1, data={"one": SimpleNamespace(data=moved)})) == digests[-2], "strides do not count"


def test_embeddings_count_by_content_and_by_which_positions_are_tokens() -> None:
    rows = torch.arange(8.0).reshape(4, 2)
    digests = {
        digest_of_embeddings(rows, None), digest_of_embeddings(rows + 1, None), digest_of_embeddings(rows.to(torch.float64), None),
        digest_of_embeddings(rows, [True] * 4), digest_of_embeddings(rows, [True] * 3 + [False]),
    }
    assert len(digests) == 5


def test_a_session_that_replaces_its_last_tokens_has_other_keys(hasher: kvtile.TokenHasher) -> None:
    """As vLLM does on new input (Scheduler._update_request_as_session)."""
    made = request([1] * 10, mm_features=[])
    keys = RequestKeys(made, {0: hasher}, [])
    before = keys.of(2)[0]
    assert keys.follow() is None
    made._all_token_ids[6:] = [2] * 6
    assert keys.follow() == 1
    after = keys.of(3)[0]
    assert after[0] == before[0] and after[1] != before[1]
    assert after == keys_of(hasher, request([1] * 6 + [2] * 6))
    made._all_token_ids += [PLACEHOLDER] * 4
    made.mm_features.append(feature(1, 12, 4))
    assert keys.follow() == 3
    assert keys.of(4)[0] == keys_of(hasher, request([1] * 6 + [2] * 6 + [PLACEHOLDER] * 4, mm_features=[feature(1, 12, 4)]))
