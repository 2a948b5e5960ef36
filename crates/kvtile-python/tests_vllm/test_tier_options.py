"""The tier's options, how vLLM finds it, and what it reads from the engine's config."""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import vllm
from configs import engine_config
from tiers import ROW, entry, keys, tiers
from vllm.config import LoRAConfig
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

import kvtile
from kvtile._engine_identity import weights_digest
from kvtile._engine_options import bytes_of
from kvtile.vllm._plugin import register
from kvtile.vllm._tier_identity import identity_of_rows
from kvtile.vllm._tier_options import TierOptions
from kvtile.vllm.tier import KvtileTier

GIVEN = {"path": "/kv", "capacity": 1}


@pytest.mark.parametrize(
    ("text", "count"),
    [(5, 5), ("7", 7), ("100GiB", 100 << 30), ("1.5 MiB", 3 << 19), ("2gb", 2 * 10**9), ("3 KB", 3000), ("1TiB", 1 << 40)],
)
def test_sizes(text: object, count: int) -> None:
    assert bytes_of("capacity", text) == count


@pytest.mark.parametrize("text", [0, -1, True, None, 1.5, "", "GiB", "-1GiB", "1 XB", "1e3", "nan", [1]])
def test_other_sizes_are_refused_by_name(text: object) -> None:
    with pytest.raises(kvtile.SettingsError, match=r"capacity.*100GiB"):
        bytes_of("capacity", text)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"capasity": 1}, "did you mean 'capacity'"),
        ({"polcy": "lru"}, "did you mean 'policy'"),
        ({"zzz": 1}, "It knows path, capacity"),
        ({"workers": "two"}, "workers is 'two'; it takes int or null"),
        ({"workers": -1}, "not negative"),
        ({"wait_seconds": float("inf")}, "not negative"),
        ({"wait_seconds": float("nan")}, "not negative"),
        ({"enable_kv_events": 1}, "enable_kv_events is 1; it takes bool"),
        ({"path": ""}, "the path of a folder"),
        ({"locality": "NEAR"}, "LOCAL or REMOTE"),
        ({"policy": 3}, "it takes gittins, lru, arc, s3-fifo"),
    ],
)
def test_options_are_refused_by_name(given: dict[str, Any], text: str) -> None:
    with pytest.raises(kvtile.SettingsError, match=text):
        TierOptions.read({**GIVEN, **given})


@pytest.mark.parametrize("missing", ["path", "capacity"])
def test_path_and_capacity_are_needed(missing: str) -> None:
    with pytest.raises(kvtile.SettingsError, match=f"needs '{missing}'"):
        TierOptions.read({name: value for name, value in GIVEN.items() if name != missing})


def test_arguments_that_a_later_vllm_passes_are_no_options(tmp_path: Path) -> None:
    with tiers(entry(tmp_path / "kv")) as made:
        spec, view = made.spec, made.view
        options = {name: value for name, value in entry(tmp_path / "other").items() if name not in ("type", "module_path")}
        other = KvtileTier(offloading_spec=spec, primary_kv_view=view, tier_type="kvtile", something_new=3, **options)
        other.shutdown()
        spec.secondary_tier_configs[0]["something_new"] = 3
        with pytest.raises(kvtile.SettingsError, match="something_new"):
            KvtileTier(offloading_spec=spec, primary_kv_view=view, tier_type="kvtile", something_new=3, **options)


def test_the_entry_point_registers_the_short_name_and_may_be_called_twice(tmp_path: Path) -> None:
    found = [point for point in entry_points(group="vllm.general_plugins") if point.name == "kvtile"]
    assert found and found[0].value == "kvtile.vllm._plugin:register", "the installed package declares it"
    assert found[0].load() is register
    register()
    register()
    assert SecondaryTierFactory.get_tier_class({"type": "kvtile"}) is KvtileTier
    described = {name: value for name, value in entry(tmp_path / "kv").items() if name != "module_path"}
    with tiers(described | {"type": "kvtile"}) as made:
        assert made.tier.tier_type == "kvtile"


def test_the_entry_point_imports_nothing_of_vllm() -> None:
    program = "import sys, kvtile.vllm._plugin; sys.exit(any(name.split('.')[0] in ('vllm', 'torch') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_entry_point_does_not_raise_without_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.v1.kv_offload.tiering.factory", None)
    register()


def unvouched(folder: Path) -> dict[str, Any]:
    """An entry without a revision."""
    return {name: value for name, value in entry(folder).items() if name != "revision"}


def test_the_engines_config_is_part_of_the_identity(tmp_path: Path) -> None:
    vllm_config = engine_config()
    with tiers(unvouched(tmp_path / "kv"), vllm_config) as made:
        made.store(keys(range(2)))
        found = identity_of_rows(made.spec.config, ROW, made.tier.options)
        assert found.revision == f"blake2b:{weights_digest(Path(vllm_config.model_config.model))}"
        assert found.extra["vllm.device"].startswith("cpu, instruction set ")
        assert found.extra["vllm.hash"] == "sha256"
    other = engine_config()
    other.model_config.hf_text_config = copy.deepcopy(other.model_config.hf_text_config)
    other.model_config.hf_text_config.rope_parameters["rope_theta"] = 12345.0
    with pytest.raises(kvtile.KvtileError, match=r"(?s)rope.*another path"), tiers(unvouched(tmp_path / "kv"), other):
        pass
    with tiers(unvouched(tmp_path / "kv"), engine_config()) as made:
        assert made.lookup(keys(range(2))) == 2


def test_an_engine_whose_config_is_not_visible_needs_a_revision(tmp_path: Path) -> None:
    with pytest.raises(kvtile.SettingsError, match='give "revision"'), tiers(unvouched(tmp_path / "kv")):
        pass


def test_the_config_of_another_engine_is_not_taken(tmp_path: Path) -> None:
    from vllm.config import KVTransferConfig

    vllm_config = engine_config()
    vllm_config.kv_transfer_config = KVTransferConfig(kv_connector="OffloadingConnector", kv_role="kv_both", engine_id="other")
    with pytest.raises(kvtile.SettingsError, match='give "revision"'), tiers(unvouched(tmp_path / "kv")):
        pass


def test_adapters_are_refused_unless_their_paths_are_trusted(tmp_path: Path) -> None:
    vllm_config = engine_config()
    vllm_config.lora_config = LoRAConfig()
    with pytest.raises(kvtile.SettingsError, match="trust_adapter_paths"), tiers(entry(tmp_path / "kv"), vllm_config):
        pass
    with tiers(entry(tmp_path / "kv", trust_adapter_paths=True), vllm_config) as made:
        made.store(keys([1]))


def test_keys_that_can_collide_are_refused(tmp_path: Path) -> None:
    vllm_config = engine_config()
    vllm_config.cache_config.prefix_caching_hash_algo = "xxhash"
    with pytest.raises(kvtile.SettingsError, match="prefix_caching_hash_algo=xxhash"), tiers(entry(tmp_path / "kv"), vllm_config):
        pass


def test_engines_that_change_their_weights_are_refused(tmp_path: Path) -> None:
    vllm_config = engine_config()
    vllm_config.model_config.enable_sleep_mode = True
    with pytest.raises(kvtile.SettingsError, match="enable_sleep_mode"), tiers(entry(tmp_path / "kv"), vllm_config):
        pass


def test_an_upgrade_of_vllm_is_refused_by_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = unvouched(tmp_path / "kv")
    with tiers(described, engine_config()) as made:
        made.store(keys(range(2)))
    major, minor = str(vllm.__version__).split(".")[:2]
    monkeypatch.setattr(vllm, "__version__", f"{major}.{minor}.99")
    with tiers(described, engine_config()) as made:
        assert made.lookup(keys(range(2))) == 2
    later = f"{major}.{int(minor) + 1}"
    monkeypatch.setattr(vllm, "__version__", f"{later}.0")
    with (
        pytest.raises(kvtile.IdentityError, match=r"(?s)vllm\.version.*another path") as refused,
        tiers(described, engine_config()),
    ):
        pass
    assert f"{major}.{minor}" in str(refused.value) and later in str(refused.value)
