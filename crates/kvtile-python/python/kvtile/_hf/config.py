"""A model's config: the fields of its text part, under their usual names, with defaults filled in."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvtile._errors import ArgumentError, IdentityError
from kvtile._hf.fields import ROPE, SHAPE, empty, text, unimportant
from kvtile._hf.models import DERIVED, GROUPED, LAYERS, PLAIN, table

BY_HAND = "make a Shape and an Identity by hand if its KV is one group of full causal attention"
LARGEST = (1 << 31) - 1
"""The maximum of every size in a config."""
# Keys of config parts for inputs other than text.
_MEDIA = re.compile(r"(vision|visual|image|img|video|audio|speech|acoustic|codec|vq|protein|encoder)\w*(_config|_tower|_model)$")


def _read(config: Any) -> Any:
    """The config itself, or the contents of its file."""
    if isinstance(config, str | os.PathLike):
        return _of_file(Path(config))
    if isinstance(config, Mapping) or (hasattr(config, "__dict__") and not isinstance(config, type)):
        return config
    raise ArgumentError(
        "config is a PretrainedConfig, a dict, or the path of a config.json or of its folder, "
        f"not a value of type {type(config).__name__}"
    )


def _of_file(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        because = error.strerror or "it cannot be read"
        hint = "; give the folder of the model, or what AutoConfig.from_pretrained returns for a name on the hub"
        raise IdentityError(f"{file}: {because}{hint if isinstance(error, FileNotFoundError) else ''}") from error
    except ValueError as error:
        raise IdentityError(f"{file} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise IdentityError(f"{file} is not a config: it holds a {type(fields).__name__}, and a config is an object")
    return fields


class Config:
    """The fields of a known model type.

    Args:
        config: a ``PretrainedConfig``, the ``config.json`` as a dict, or the path of that file or of its folder.
        text_only: read the text part of a model that also takes images or sound.
        known: refuse model types that are not in the list.
        groups: read all types as those with groups: no defaults are filled in, and parts other than text are refused.
    """

    def __init__(self, config: Any, *, text_only: bool = False, known: bool = True, groups: bool = False) -> None:
        config = _read(config)
        outer = _fields(config)
        types = (*PLAIN, *GROUPED) if groups else PLAIN
        inner = _text_part(outer, types, text_only=text_only, known=known or groups)
        self.name = _first(outer, inner, "_name_or_path", "name_or_path")
        self.commit = _first(outer, inner, "_commit_hash")
        self.dtype = _first(inner, outer, "dtype", "torch_dtype")
        self.model_type = inner.get("model_type")
        self.listed = not groups and isinstance(self.model_type, str) and self.model_type in table()
        if known:
            self._refuse_unknown(config, inner)
        self.fields = self._filled(inner)

    def _refuse_unknown(self, config: Any, fields: Mapping[str, Any]) -> None:
        if not self.model_type:
            raise IdentityError("the config has no model_type, from which kvtile knows how a model keeps its KV; add it")
        if type(config).__module__.startswith("transformers_modules."):
            raise IdentityError(
                f"the config of this {self.model_type} model comes with code of its own ({type(config).__qualname__}), and "
                f"kvtile knows the KV of transformers' own models only; load it without trust_remote_code, or {BY_HAND}"
            )
        if not self.listed:
            because = other_kind(fields)
            raise IdentityError(
                f"model type {self.model_type!r} is not known to keep plain keys and values"
                f"{f' ({because})' if because else ''}; {BY_HAND} (docs/models.md has the list)"
            )

    def _filled(self, given: Mapping[str, Any]) -> dict[str, Any]:
        if not self.listed:
            return dict(given)
        model = table()[str(self.model_type)]
        fields = copy.deepcopy(dict(model.fields))
        for name, value in given.items():
            usual = model.aliases.get(name, name)
            default = model.fields.get(usual)
            if isinstance(value, Mapping) and isinstance(default, Mapping):
                fields[usual] = {**default, **{key: each for key, each in value.items() if not unimportant(key)}}
            elif value is not None or not isinstance(default, Mapping):
                fields[usual] = value
        derive = DERIVED.get(str(self.model_type))
        if derive is not None:
            try:
                derive(fields)
            except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
                raise IdentityError(f"the config of this {self.model_type} model is invalid: {error}") from error
        return fields

    def number(self, name: str) -> int:
        """A field that must be a positive integer."""
        return self.positive(name, self.fields.get(name))

    def positive(self, name: str, value: Any) -> int:
        """A value that must be a positive integer."""
        largest = LAYERS if name == "num_hidden_layers" else LARGEST
        if value is None:
            raise IdentityError(f"the config has no {name}; add it, or make a Shape and an Identity by hand")
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            raise IdentityError(
                f"the config's {name} is {short(value)}, not a positive whole number up to {largest}"
            )
        return value

    def kv_fields(self) -> dict[str, str]:
        """The fields that change KV besides shape and rotary embedding, as text."""
        left_out = ROPE | SHAPE if self.listed else frozenset()
        return {
            f"config.{name}": text(value)
            for name, value in self.fields.items()
            if name not in left_out and not unimportant(name) and not empty(value)
        }


def _fields(config: Any) -> dict[str, Any]:
    """The fields of a config by their original names."""
    if isinstance(config, Mapping):
        return dict(config)
    if hasattr(config, "to_dict"):
        fields = {**config.to_dict(), "_commit_hash": getattr(config, "_commit_hash", None)}
        # A default-valued field that a newer transformers added is dropped, because older config files lack it.
        if dataclasses.is_dataclass(config):
            model = table().get(fields.get("model_type") or "")
            for field in dataclasses.fields(config):
                if model and model.aliases.get(field.name, field.name) not in model.fields:
                    if field.name in fields and text(fields[field.name]) == text(field.default):
                        del fields[field.name]
        return fields
    fields = {name: getattr(config, name) for name in dir(type(config)) if not name.startswith("__")}
    return {name: value for name, value in {**fields, **vars(config)}.items() if not callable(value)}


def _text_part(outer: Mapping[str, Any], types: Sequence[str], *, text_only: bool, known: bool) -> dict[str, Any]:
    """The fields of the text part. A model of several parts is refused unless ``text_only`` is set."""
    name = outer.get("model_type")
    if outer.get("is_encoder_decoder"):
        raise IdentityError(
            f"{_named(name)} is an encoder-decoder (is_encoder_decoder), whose decoder reads more than its prefix; kvtile keeps decoders' KV only"
        )
    media = sorted(key for key, value in outer.items() if _MEDIA.search(key) and not empty(value))
    part = outer.get("text_config")
    if hasattr(part, "to_dict"):
        part = _fields(part)
    composite = bool(media) or (part is not None and name not in (None, "") and name not in types)
    if composite and known and not text_only:
        parts = f" ({', '.join(media)})" if media else ""
        inner = part.get("model_type") if isinstance(part, Mapping) else f"{name}_text"
        hint = "; if the model gets text only, set text_only=True" if inner in types else ""
        raise IdentityError(
            f"{_named(name)} takes images, sound or more besides text{parts}: KV depends on them, and keys made of tokens "
            f"do not{hint}"
        )
    if part is None:
        fields = {key: value for key, value in outer.items() if key not in media}
        if media and f"{name}_text" in types:
            fields["model_type"] = f"{name}_text"
        return fields
    if not isinstance(part, Mapping):
        raise IdentityError(f"the config's text_config is {short(part)}, not a dict or a config")
    fields = dict(part)
    for key in ("quantization_config", "compression_config"):
        if fields.get(key) is None and outer.get(key) is not None:
            fields[key] = outer[key]
    return fields


def other_kind(fields: Mapping[str, Any]) -> str | None:
    """What kind of KV an unknown type seems to have, for the error message only."""
    if fields.get("kv_lora_rank"):
        return "its KV is a latent (kv_lora_rank), whose planes only its engine knows; make a Shape with planes"
    if isinstance(fields.get("layer_types"), (list, tuple)):
        kinds = sorted({str(kind) for kind in fields["layer_types"]})
        if kinds != ["full_attention"]:
            return f"its layers are of the kinds {', '.join(kinds)}"
    for name, what in {
        "sliding_window": "it has a sliding window",
        "attention_chunk_size": "its attention ends at chunks",
        "cross_attention_layers": "some of its layers read something else than text",
        "block_configs": "its layers differ from each other",
        "hybrid_override_pattern": "it has recurrent layers",
        "layers_block_type": "it has recurrent layers",
        "sparse_attention_config": "it has sparse attention",
    }.items():
        if not empty(fields.get(name)) and fields[name] is not False:
            return f"{what} ({name})"
    return None


def _first(*sources: Any) -> Any:
    """The first non-empty value: searches the sources in order, under each of the names."""
    maps = [source for source in sources if isinstance(source, Mapping)]
    names = [source for source in sources if isinstance(source, str)]
    return next((each[name] for each in maps for name in names if each.get(name)), None)


def _named(name: Any) -> str:
    return f"model type {name!r}" if name else "the model"


def short(value: Any) -> str:
    """A value as error messages show it."""
    written = repr(value)
    return written if len(written) <= 60 else f"{written[:57]}..."
