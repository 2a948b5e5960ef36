"""Every change of a model's KV changes its identity, before a cache is opened and while one is open."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kvtile

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import hybrids  # noqa: E402
from tiny import GREEDY, llama, of, prompt  # noqa: E402

from kvtile.transformers import PrefixCache  # noqa: E402

SETTINGS = {"host_gib": 0.05, "page_size": 8}


class Adapted(torch.nn.Module):
    """A linear layer with a low-rank adapter, as adapter libraries replace the layer."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.down = torch.nn.Linear(base.in_features, 4, bias=False)
        self.up = torch.nn.Linear(4, base.out_features, bias=False)
        self.scaling = {"default": 0.5}
        self.active = ["default"]
        self.loose = torch.zeros(base.out_features)
        self.listed = [torch.zeros(base.out_features)]

    def forward(self, x: Any) -> Any:
        base = self.base(x) + self.loose + self.listed[0]
        return base + sum(self.scaling[name] * self.up(self.down(x)) for name in self.active)


class Doubled(torch.nn.Linear):
    """A linear layer that computes other values from the same weights."""

    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


def adapted(seed: int = 0, **changes: Any) -> Any:
    model = llama(seed, **changes)
    torch.manual_seed(1)
    for layer in model.model.layers:
        layer.self_attn.q_proj = Adapted(layer.self_attn.q_proj)
    return model


def experts() -> Any:
    """A mixture of experts."""
    config = transformers.Qwen3MoeConfig(
        vocab_size=211, hidden_size=48, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=12, num_experts=4, num_experts_per_tok=2,
        initializer_range=0.3,
    )  # fmt: skip
    return of(transformers.Qwen3MoeForCausalLM, config)


@torch.no_grad()
def _add(model: Any) -> None:
    model.model.layers[2].mlp.up_proj.weight.add_(0.01)


@torch.no_grad()
def _one_element(model: Any) -> None:
    model.model.layers[1].self_attn.k_proj.weight[3, 5] += 0.5


def _data(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.data *= 1.5


def _other_data(model: Any) -> None:
    weight = model.model.layers[1].mlp.down_proj.weight
    weight.data = weight.data + 0.25


def _parameter(model: Any) -> None:
    norm = model.model.layers[0].input_layernorm
    norm.weight = torch.nn.Parameter(norm.weight.detach() + 0.1)


def _bias(model: Any) -> None:
    model.model.layers[0].self_attn.k_proj.bias = torch.nn.Parameter(torch.ones(16))


def _loaded(model: Any) -> None:
    model.load_state_dict(llama(5).state_dict())


def _order(model: Any) -> None:
    model.model.layers = torch.nn.ModuleList(list(model.model.layers)[::-1])


def _class(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.__class__ = Doubled


def _activation(model: Any) -> None:
    model.model.layers[1].mlp.act_fn = torch.nn.ReLU()


def _set(path: str, value: Any) -> Callable[[Any], None]:
    """Returns a function that sets an attribute of a module, or of the config."""

    def change(model: Any) -> None:
        *owners, name = path.split(".")
        for owner in owners:
            model = model[int(owner)] if owner.isdecimal() else getattr(model, owner)
        setattr(model, name, value)

    return change


def _adapter(model: Any) -> None:
    torch.manual_seed(3)
    model.model.layers[1].self_attn.v_proj = Adapted(model.model.layers[1].self_attn.v_proj)


@torch.no_grad()
def _trained_adapter(model: Any) -> None:
    model.model.layers[2].self_attn.q_proj.up.weight.add_(0.1)


def _merged(model: Any) -> None:
    for layer in model.model.layers:
        module = layer.self_attn.q_proj
        module.base.weight.data += 0.5 * module.up.weight.data @ module.down.weight.data
        layer.self_attn.q_proj = module.base


def _scaling(model: Any) -> None:
    model.model.layers[1].self_attn.q_proj.scaling["default"] = 2.0


def _off(model: Any) -> None:
    model.model.layers[1].self_attn.q_proj.active.clear()


def _loose(model: Any) -> None:
    model.model.layers[1].self_attn.q_proj.loose += 0.1


def _listed(model: Any) -> None:
    model.model.layers[1].self_attn.q_proj.listed[0] = torch.ones(48)


def _frequencies(model: Any) -> None:
    model.model.rotary_emb.inv_freq *= 0.5


# By name: a model, a change of its KV, and whether it is detected if the caller names the weights by revision=.
CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], None], bool]] = {
    "weights, added to": (llama, _add, False),
    "weights, one element": (llama, _one_element, False),
    "weights, through data": (llama, _data, False),
    "weights, other data": (llama, _other_data, False),
    "weights, another parameter": (llama, _parameter, False),
    "weights, loaded": (llama, _loaded, False),
    "weights, cast": (llama, lambda model: model.to(torch.bfloat16), True),
    "a bias more": (llama, _bias, True),
    "the order of layers": (llama, _order, False),
    "the class of a module": (llama, _class, True),
    "an activation": (llama, _activation, True),
    "an epsilon": (llama, _set("model.layers.1.input_layernorm.variance_epsilon", 1e-2), True),
    "the scale of attention": (llama, _set("model.layers.1.self_attn.scaling", 0.9), True),
    "causal or not": (llama, _set("model.layers.1.self_attn.is_causal", False), True),
    "rotary frequencies": (llama, _frequencies, True),
    "rotary scaling": (llama, _set("model.rotary_emb.attention_scaling", 1.5), True),
    "an adapter, put in": (llama, _adapter, True),
    "an adapter, trained again": (adapted, _trained_adapter, True),
    "an adapter, merged": (adapted, _merged, True),
    "an adapter, its scale": (adapted, _scaling, True),
    "an adapter, switched off": (adapted, _off, True),
    "a tensor that torch does not know of": (adapted, _loose, True),
    "a tensor in a list": (adapted, _listed, True),
    "config, num_experts_per_tok": (experts, _set("config.num_experts_per_tok", 1), True),
    "config, rms_norm_eps": (llama, _set("config.rms_norm_eps", 1e-2), True),
    "config, an unknown attention": (llama, _set("config._attn_implementation_internal", "my_attention"), True),
}


def identity(model: Any, **settings: Any) -> kvtile.Identity:
    with PrefixCache(model, **SETTINGS, **settings) as cache:
        return cache.identity


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_model_has_another_identity(name: str, tmp_path: Path) -> None:
    make, change, _ = CHANGES[name]
    settings = {"disk": tmp_path / "kv", "disk_gib": 0.1}
    # A commit in the config does not identify the weights in memory.
    plain, changed, again = make(), make(), make()
    for model in (plain, changed, again):
        model.config._commit_hash = "0123456789abcdef"
    change(changed)
    first = identity(plain, **settings)
    with contextlib.suppress(kvtile.IdentityError), PrefixCache(changed, **SETTINGS) as cache:
        assert cache.identity != first
    with pytest.raises(kvtile.IdentityError):
        identity(changed, **settings)
    assert identity(again, **settings) == first


@pytest.mark.parametrize("name", [name for name, (_, _, seen) in CHANGES.items() if seen])
def test_a_revision_does_not_hide_adapters_and_settings(name: str) -> None:
    make, change, _ = CHANGES[name]
    plain, changed = make(), make()
    change(changed)
    with contextlib.suppress(kvtile.IdentityError):
        assert identity(changed, revision="mine") != identity(plain, revision="mine")


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_under_an_open_cache_is_noticed(name: str) -> None:
    make, change, _ = CHANGES[name]
    model, tokens = make(), prompt(1, 40)
    with PrefixCache(model, **SETTINGS) as cache:
        past = cache.prefill(tokens)
        outputs = model.generate(tokens, past_key_values=past, **GREEDY)
        change(model)
        for use in (
            lambda: cache.prefill(tokens),
            lambda: cache.save(tokens, outputs, past),
            lambda: cache.generate(model, tokens, **GREEDY),
        ):
            for _ in range(2):
                with pytest.raises(kvtile.IdentityError, match="has changed since this cache was opened"):
                    use()


@pytest.mark.parametrize("name", ["an adapter, its scale", "an epsilon", "config, rms_norm_eps"])
def test_a_reverted_change_is_accepted(name: str) -> None:
    make, change, _ = CHANGES[name]
    model, tokens = make(), prompt(1, 40)
    with PrefixCache(model, **SETTINGS) as cache:
        cache.generate(model, tokens, **GREEDY)
        change(model)
        with pytest.raises(kvtile.IdentityError):
            cache.prefill(tokens)
        if name.startswith("an adapter"):
            model.model.layers[1].self_attn.q_proj.scaling["default"] = 0.5
        elif name == "an epsilon":
            model.model.layers[1].input_layernorm.variance_epsilon = 1e-6
        else:
            model.config.rms_norm_eps = 1e-6
        assert cache.prefill(tokens).get_seq_length() == 32


def test_changes_that_keep_kv_are_accepted() -> None:
    model, tokens = llama(), prompt(1, 40)
    changes: list[Callable[[], Any]] = [
        lambda: model.load_state_dict(llama().state_dict()),
        lambda: model.requires_grad_(False),
        lambda: model.train(),
        lambda: model.eval(),
        lambda: model.to(torch.float32),
        lambda: model.set_attn_implementation("eager"),
        lambda: model.generate(tokens, output_hidden_states=True, return_dict_in_generate=True, **GREEDY),
        lambda: setattr(model.generation_config, "top_k", 5),
        lambda: setattr(model.config, "use_cache", False),
        lambda: setattr(model.config, "_commit_hash", "0123456789abcdef"),
        lambda: torch.use_deterministic_algorithms(False),
    ]
    with PrefixCache(model, **SETTINGS) as cache:
        cache.generate(model, tokens, **GREEDY)
        for at, change in enumerate(changes):
            change()
            assert cache.prefill(tokens).get_seq_length() == 32, at


def test_a_model_that_is_what_its_config_says_needs_no_more_than_that() -> None:
    """Its identity equals that of other engines, and survives upgrades of transformers."""
    extra = identity(llama(), revision="mine").extra
    assert extra and all(name.startswith("config.") for name in extra)
    assert "state" in identity(adapted(), revision="mine").extra


def test_opening_takes_no_random_number_and_changes_nothing() -> None:
    model = llama()
    before, config, state = {k: v.clone() for k, v in model.state_dict().items()}, model.config.to_dict(), torch.get_rng_state()
    identity(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.to_dict() == config
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_cache_keeps_no_model_alive() -> None:
    import gc
    import weakref

    model = llama()
    cache = PrefixCache(model, **SETTINGS)
    cache.generate(model, prompt(1, 20), **GREEDY)
    gone = [weakref.ref(model), weakref.ref(model.lm_head.weight)]
    del model
    gc.collect()
    assert [each() for each in gone] == [None, None]
    with pytest.raises(kvtile.IdentityError, match="no longer exists"):
        cache.prefill(prompt(1, 20))
    cache.close()


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_precision_of_products_is_in_the_identity() -> None:
    model = llama()
    plain = identity(model)
    with precision("medium"):
        assert identity(model) != plain
    with PrefixCache(model, **SETTINGS) as cache:
        with precision("medium"), pytest.raises(kvtile.IdentityError, match="float32_matmul"):
            cache.prefill(prompt(1, 20))
        cache.prefill(prompt(1, 20))


def hook(*_: Any) -> None:
    """A hook in the caller's code."""


@pytest.mark.parametrize(
    "put",
    [
        lambda module: module.register_forward_hook(hook),
        lambda module: module.register_forward_pre_hook(hook),
        lambda module: setattr(module, "forward", lambda x: x),
    ],
)
def test_code_of_the_callers_in_a_model_is_refused_or_named(put: Callable[[Any], Any]) -> None:
    model = llama()
    with PrefixCache(model, **SETTINGS) as cache:
        put(model.model.layers[1].mlp)
        with pytest.raises(kvtile.IdentityError, match=r"model\.layers\.1\.mlp has a hook"):
            cache.prefill(prompt(1, 20))
    with pytest.raises(kvtile.IdentityError, match="remove it, or say what it does"):
        PrefixCache(model, **SETTINGS)
    assert identity(model, extra={"hooks": "records shapes"}).extra["hooks"] == "records shapes"


def test_dropout_is_refused_for_as_long_as_it_drops_out() -> None:
    model, tokens = llama(attention_dropout=0.1), prompt(1, 40)
    with PrefixCache(model, **SETTINGS) as cache:
        outputs = cache.generate(model, tokens, **GREEDY)
        past = cache.prefill(tokens)
        model.train()
        for use in (lambda: cache.prefill(tokens), lambda: cache.save(tokens, outputs, past)):
            with pytest.raises(kvtile.RequestError, match=r"attention_dropout 0\.1.*model\.eval"):
                use()
        model.eval()
        assert cache.prefill(tokens).get_seq_length() == 32


def test_autocast_is_refused() -> None:
    model, tokens = llama(), prompt(1, 40)
    with PrefixCache(model, **SETTINGS) as cache:
        with torch.autocast("cpu", torch.bfloat16):
            with pytest.raises(kvtile.RequestError, match=r"autocast to torch\.bfloat16"):
                cache.prefill(tokens)
            past = transformers.DynamicCache(config=model.config)
            outputs = model.generate(tokens, past_key_values=past, **GREEDY)
        with pytest.raises(kvtile.RequestError, match="holds other KV"):
            cache.save(tokens, outputs, past)


def llama_rope(kind: str) -> Any:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {}
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64, **factors}
    return llama(rope_parameters=rope)


def quantised() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(llama(), {torch.nn.Linear}, dtype=torch.qint8)


def prompt_tuned() -> Any:
    model = llama()
    model.peft_config = {"default": type("PrefixTuning", (), {"is_prompt_learning": True})()}
    return model


def encoder_decoder() -> Any:
    config = transformers.T5Config(
        vocab_size=99, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def without_head() -> Any:
    return transformers.LlamaModel(llama().config).eval()


def sliding() -> Any:
    config = transformers.MistralConfig(
        vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, sliding_window=8,
    )  # fmt: skip
    return transformers.MistralForCausalLM(config).eval()


def recurrent() -> Any:
    return transformers.RecurrentGemmaForCausalLM(
        transformers.RecurrentGemmaConfig(
            vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, lru_width=16
        )
    ).eval()


def with_images() -> Any:
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
              "patch_size": 14}  # fmt: skip
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **text}, vision_config={"model_type": "clip_vision_model", **vision},
        image_token_id=98,
    )  # fmt: skip
    return transformers.LlavaForConditionalGeneration(config).eval()


def with_images_and_windows() -> Any:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
              "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=hybrids.config("gemma3_text"), vision_config=transformers.SiglipVisionConfig(**vision), mm_tokens_per_image=4
    )
    return transformers.Gemma3ForConditionalGeneration(config).eval()


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: llama_rope("dynamic"), "dynamic"),
    (lambda: llama_rope("longrope"), "longrope"),
    (quantised, "depend on all tokens of a forward pass"),
    (prompt_tuned, "learned tokens before the prompt"),
    (encoder_decoder, "has an encoder"),
    (without_head, "cannot generate"),
    (sliding, "sliding|window"),
    (recurrent, "in its modules"),
    (with_images, r"images.*\(text_config, vision_config\).*call model\.generate"),
    (with_images_and_windows, r"images.*\(text_config, vision_config\).*call model\.generate"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=lambda value: getattr(value, "__name__", None))
def test_models_whose_kv_is_no_function_of_a_prefix_are_refused_at_opening(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(kvtile.IdentityError, match=message):
        PrefixCache(make(), **SETTINGS)


def test_a_model_in_another_memory_is_refused() -> None:
    model = llama()
    model.model.layers[2].mlp = model.model.layers[2].mlp.to("meta")
    with pytest.raises(kvtile.TensorError, match=r"model\.layers\.2\.mlp\.\w+\.weight is on meta"):
        PrefixCache(model, **SETTINGS)


def test_a_compiled_model_is_the_model() -> None:
    model, tokens = llama(), prompt(1, 40)
    plain = identity(model)
    compiled = torch.compile(model, backend="eager")
    with PrefixCache(compiled, **SETTINGS) as cache:
        assert cache.identity == plain
        wanted = model.generate(tokens, **GREEDY)
        for _ in range(2):
            assert torch.equal(cache.generate(compiled, tokens, **GREEDY), wanted)
        assert cache.stats()["hits"] == {"host": 4}


# The evidence for each row of the document's table of models: names of changes, of refused models, or of tests.
ROWS: dict[str, list[str]] = {
    "weights, merged adapters": [*(name for name in CHANGES if name.startswith("weights")), "an adapter, merged"],
    "adapters (peft)": [name for name in CHANGES if name.startswith("an adapter")],
    "prompt and prefix tuning": ["prompt_tuned"],
    "dtype": ["weights, cast"],
    "quantised weights": ["the class of a module", "a bias more"],
    "dynamic quantisation": ["quantised"],
    "fields of the config": [name for name in CHANGES if name.startswith("config")],
    "RoPE of type": ["test_models_whose_kv_is_no_function_of_a_prefix_are_refused_at_opening"],
    "sliding windows": ["sliding"],
    "unknown model types": ["recurrent"],
    "encoders": ["encoder_decoder", "without_head", "with_images"],
    "attributes of modules": ["an epsilon", "the scale of attention", "causal or not", "an activation"],
    "hooks and": ["test_code_of_the_callers_in_a_model_is_refused_or_named"],
    "`attn_implementation`": ["test_changes_that_keep_kv_are_accepted"],
    "other attention functions": ["config, an unknown attention"],
    "`torch.set_float32": ["test_the_precision_of_products_is_in_the_identity"],
    "`torch.autocast`": ["test_autocast_is_refused"],
    "training mode with dropout": ["test_dropout_is_refused_for_as_long_as_it_drops_out"],
    "training mode without": ["test_changes_that_keep_kv_are_accepted", "test_a_compiled_model_is_the_model"],
    "`device_map`": ["test_a_model_in_another_memory_is_refused"],
    "`_name_or_path`": ["test_the_name_of_a_model_is_in_its_identity"],
    "`_commit_hash`": ["test_changes_that_keep_kv_are_accepted"],
}


def test_the_name_of_a_model_is_in_its_identity() -> None:
    model, other = llama(), llama()
    other.config._name_or_path = "a/name"
    assert identity(model).difference(identity(other)).startswith("model")


def test_each_row_of_the_document_is_shown() -> None:
    text = (Path(__file__).parents[3] / "docs/transformers.md").read_text()
    table = text.split("| of the model | what `PrefixCache` does |\n| --- | --- |\n")[1].split("\n\n")[0]
    shown = CHANGES.keys() | {make.__name__ for make, _ in REFUSED} | globals().keys()
    for row in table.splitlines():
        (proofs,) = [proofs for start, proofs in ROWS.items() if row.startswith(f"| {start}")]
        assert proofs and set(proofs) <= shown, row
    assert len(table.splitlines()) == len(ROWS)
