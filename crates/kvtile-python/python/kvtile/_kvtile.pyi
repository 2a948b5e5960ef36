import os
from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Generic, Literal, Protocol, SupportsIndex, TypeAlias, TypeVar, final

from typing_extensions import Buffer, Self

__all__ = [
    "STORAGE_WORD",
    "Cache",
    "Completion",
    "Event",
    "FlushReport",
    "Identity",
    "Layout",
    "LoadReport",
    "Match",
    "Plan",
    "Plane",
    "Shape",
    "Snapshot",
    "StoreReport",
    "Subscriber",
    "TokenHasher",
    "TokenSequence",
    "TraceRecorder",
    "TransferReport",
    "__version__",
    "close_all",
    "copy_blocks",
    "copy_blocks_async",
    "plan",
    "run_program",
]

STORAGE_WORD: Final[str]
__version__: str

_Report = TypeVar("_Report", covariant=True)

class _ArrayInterface(Protocol):
    @property
    def __array_interface__(self) -> dict[str, Any]: ...

class _Dlpack(Protocol):
    def __dlpack__(self) -> Any: ...
    def __dlpack_device__(self) -> Any: ...

class _ToList(Protocol):
    def tolist(self) -> Any: ...

class _Dtype(Protocol):
    @property
    def name(self) -> str: ...

_Tensor: TypeAlias = _ArrayInterface | _Dlpack | Buffer
_DtypeLike: TypeAlias = str | type | _Dtype | Any
_Tokens: TypeAlias = Sequence[SupportsIndex] | _ToList
_Range: TypeAlias = tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]
_Priority: TypeAlias = Literal["background", "low", "normal", "urgent"]
_Policy: TypeAlias = Literal["gittins", "lru", "arc", "s3-fifo"]
_Tier: TypeAlias = Literal["host", "disk"]

@final
class Plane:
    def __new__(
        cls,
        name: str,
        dtype: _DtypeLike,
        *,
        unit_bytes: int | None = None,
        opaque: bool = False,
        per_page: bool = False,
        **axes: int,
    ) -> Self: ...
    @property
    def name(self) -> str: ...
    @property
    def codec(self) -> str: ...
    @property
    def axes(self) -> dict[str, int]: ...
    @property
    def unit_bytes(self) -> int: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self, /) -> int: ...

@final
class Shape:
    def __new__(
        cls,
        *,
        num_blocks: int,
        num_layers: int,
        page_size: int,
        num_heads: int | None = None,
        head_size: int | None = None,
        dtype: _DtypeLike | None = None,
        planes: Sequence[Plane] | None = None,
        first_layer: int = 0,
        total_layers: int | None = None,
        first_head: int = 0,
        total_heads: int | None = None,
    ) -> Self: ...
    @staticmethod
    def from_hf_config(
        config: str | os.PathLike[str] | Mapping[str, Any] | Any,
        *,
        page_size: int,
        num_blocks: int = ...,
        dtype: _DtypeLike | None = ...,
        tp_rank: int = ...,
        tp_size: int = ...,
        layers: tuple[int, int] | None = ...,
        text_only: bool = ...,
    ) -> Shape: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def planes(self) -> list[Plane]: ...
    @property
    def block_bytes(self) -> int: ...
    def with_num_blocks(self, num_blocks: int) -> Shape: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self, /) -> int: ...

@final
class Layout:
    def __new__(
        cls,
        word: str,
        *,
        shape: Shape,
        tensors: _Tensor | Sequence[_Tensor] | None = None,
    ) -> Self: ...
    @staticmethod
    def preset(
        name: str,
        *,
        shape: Shape,
        tensors: _Tensor | Sequence[_Tensor] | None = None,
    ) -> Layout: ...
    @property
    def word(self) -> str: ...
    @property
    def preset_name(self) -> str | None: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def num_regions(self) -> int: ...
    @property
    def region_bytes(self) -> list[int]: ...
    @property
    def is_writable(self) -> bool: ...
    @property
    def fingerprint(self) -> str: ...
    def describe(self) -> str: ...
    def _repr_html_(self) -> str: ...

@final
class Plan:
    @property
    def bytes(self) -> int: ...
    @property
    def runs(self) -> int: ...
    @property
    def longest_run(self) -> int: ...
    @property
    def shortest_run(self) -> int: ...
    def __str__(self, /) -> str: ...
    def _repr_html_(self) -> str: ...

def plan(
    src: Layout,
    dst: Layout,
    src_blocks: Sequence[int] | None = None,
    dst_blocks: Sequence[int] | None = None,
    *,
    layers: _Range | None = None,
    tokens: _Range | None = None,
    heads: _Range | None = None,
) -> Plan: ...
def copy_blocks(
    src: Layout,
    dst: Layout,
    src_blocks: Sequence[int],
    dst_blocks: Sequence[int] | None = None,
    *,
    layers: _Range | None = None,
    tokens: _Range | None = None,
    heads: _Range | None = None,
    verify: bool = False,
) -> TransferReport: ...
def copy_blocks_async(
    src: Layout,
    dst: Layout,
    src_blocks: Sequence[int],
    dst_blocks: Sequence[int] | None = None,
    *,
    layers: _Range | None = None,
    tokens: _Range | None = None,
    heads: _Range | None = None,
    verify: bool = False,
) -> Completion[TransferReport]: ...

@final
class Identity:
    def __new__(
        cls,
        model: str,
        revision: str,
        shape: Shape,
        *,
        rope: Mapping[str, Any] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> Self: ...
    @staticmethod
    def from_hf_config(
        config: str | os.PathLike[str] | Mapping[str, Any] | Any,
        *,
        page_size: int,
        dtype: _DtypeLike | None = ...,
        model: str | None = ...,
        revision: str | None = ...,
        tp_rank: int = ...,
        tp_size: int = ...,
        layers: tuple[int, int] | None = ...,
        extra: Mapping[str, str] | None = ...,
        max_model_len: int | None = ...,
        text_only: bool = ...,
    ) -> Identity: ...
    @staticmethod
    def from_json(text: str) -> Identity: ...
    def to_json(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def page_size(self) -> int: ...
    @property
    def extra(self) -> dict[str, str]: ...
    @property
    def fingerprint(self) -> str: ...
    def difference(self, other: Identity) -> str | None: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __hash__(self, /) -> int: ...

@final
class TokenHasher:
    def __new__(
        cls,
        identity: Identity,
        *,
        salt: str = "",
        profile: Literal["blake3", "xxh3", "router"] = "blake3",
        seed: int | None = None,
        page_size: int | None = None,
    ) -> Self: ...
    @property
    def page_size(self) -> int: ...
    def keys(
        self,
        tokens: _Tokens,
        *,
        parent: bytes | None = None,
        extra: Sequence[bytes] = ...,
    ) -> list[bytes]: ...

@final
class TokenSequence:
    def __new__(
        cls,
        hasher: TokenHasher,
        tokens: _Tokens | None = None,
        *,
        extra: Sequence[bytes] = ...,
    ) -> Self: ...
    def extend(self, tokens: _Tokens) -> list[bytes]: ...
    def mark(self, start: int, stop: int, content: bytes) -> None: ...
    def truncate(self, length: int) -> None: ...
    @property
    def keys(self) -> list[bytes]: ...
    @property
    def tokens(self) -> list[int]: ...
    def __len__(self, /) -> int: ...

@final
class TraceRecorder:
    def __new__(cls, path: str | os.PathLike[str], page_size: int, *, bytes_max: int = 1073741824) -> Self: ...
    def record(
        self,
        keys: Sequence[bytes],
        input_tokens: int,
        output_tokens: int = 0,
        *,
        arrived: float | None = None,
    ) -> None: ...
    def close(self) -> None: ...
    @property
    def recorded(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def error(self) -> str | None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...

@final
class Completion(Generic[_Report]):
    def wait(self, timeout: float | None = None) -> _Report: ...
    def wait_layer(self, layer: int, timeout: float | None = None) -> bool: ...
    def done(self) -> bool: ...
    def cancel(self) -> bool: ...
    def add_done_callback(self, callback: Callable[[Completion[_Report]], object]) -> None: ...
    def __await__(self, /) -> Generator[Any, None, _Report]: ...
    @classmethod
    def __class_getitem__(cls, key: Any) -> Any: ...

@final
class TransferReport:
    @property
    def bytes(self) -> int: ...
    @property
    def runs(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def verified(self) -> bool: ...

@final
class LoadReport:
    @property
    def blocks(self) -> int: ...
    @property
    def wanted(self) -> int: ...
    @property
    def from_tiers(self) -> dict[str, int]: ...
    @property
    def bytes(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def stopped(self) -> str | None: ...
    @property
    def detail(self) -> str | None: ...

@final
class StoreReport:
    @property
    def stored(self) -> int: ...
    @property
    def present(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def stopped(self) -> str | None: ...
    @property
    def detail(self) -> str | None: ...

@final
class FlushReport:
    @property
    def wanted(self) -> int: ...
    @property
    def written(self) -> int: ...
    @property
    def no_tier(self) -> int: ...
    @property
    def no_room(self) -> int: ...
    @property
    def late(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def durable(self) -> bool: ...
    @property
    def tiers(self) -> dict[str, dict[str, int]]: ...

@final
class Match:
    @property
    def blocks(self) -> int: ...
    @property
    def tiers(self) -> list[str]: ...
    def blocks_in(self, tier: _Tier) -> int: ...
    def skip(self, blocks: int) -> Self: ...
    def truncate(self, blocks: int) -> Self: ...
    def release(self) -> None: ...
    def __len__(self, /) -> int: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        *_exception: type[BaseException] | BaseException | TracebackType | None,
    ) -> None: ...

@final
class Event:
    @property
    def sequence(self) -> int: ...
    @property
    def tier(self) -> str: ...
    @property
    def group(self) -> int: ...
    @property
    def kind(self) -> Literal["stored", "removed", "cleared"]: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def parent(self) -> bytes | None: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    __hash__: None  # type: ignore[assignment]

@final
class Snapshot:
    @property
    def first_event(self) -> int: ...
    @property
    def exact_from(self) -> int: ...
    @property
    def blocks(self) -> list[tuple[str, int, bytes, bytes | None]]: ...
    def __len__(self, /) -> int: ...

@final
class Subscriber:
    def poll(self, count: int = 1024) -> list[Event]: ...
    def resynchronise(self, snapshot: Snapshot) -> None: ...
    @property
    def next_sequence(self) -> int: ...

@final
class Cache:
    def __new__(
        cls,
        identity: Identity,
        layout: Layout,
        *,
        host_bytes: int | None = ...,
        prefault: bool | None = ...,
        disk: str | os.PathLike[str] | None = ...,
        disk_bytes: int | None = ...,
        disk_writes: Literal["on_eviction", "at_once"] | int | None = ...,
        disk_policy: _Policy | None = ...,
        close_within: float | None = ...,
        answer_within: float | None = ...,
        policy: _Policy | None = ...,
        storage_word: str | None = ...,
        quotas: Mapping[int, int] | None = ...,
        workers: int | None = ...,
        queue_capacity: int | None = ...,
        recompute_tokens_per_second: float | None = ...,
        event_capacity: int | None = ...,
    ) -> Self: ...
    def lookup(
        self,
        keys: Sequence[bytes],
        *,
        owner: int = 0,
        hold: float | None = None,
        priority: int = 0,
        lifetime: float | None = None,
        output_tokens: int = 0,
        partial_tail: bool = False,
    ) -> Match: ...
    def load(
        self,
        found: Match,
        blocks: Sequence[int],
        *,
        priority: _Priority = "normal",
        within: float | None = None,
        layout: Layout | None = None,
    ) -> Completion[LoadReport]: ...
    def store(
        self,
        keys: Sequence[bytes],
        blocks: Sequence[int],
        *,
        first: int = 0,
        tenant: int = 0,
        priority: _Priority = "low",
        within: float | None = None,
        keep: int = 0,
        lifetime: float | None = None,
        output_tokens: int = 0,
        partial_tail: bool = False,
        layout: Layout | None = None,
    ) -> Completion[StoreReport]: ...
    def prefetch(self, keys: Sequence[bytes]) -> Completion[LoadReport]: ...
    def evict(self, tier: _Tier, blocks: int) -> int: ...
    def clear(self) -> int: ...
    def flush(self) -> FlushReport: ...
    def stats(self) -> dict[str, Any]: ...
    def pool_stats(self, tier: _Tier) -> dict[str, Any]: ...
    def overdue(self) -> list[dict[str, int]]: ...
    @property
    def disk_bytes_per_second(self) -> float | None: ...
    @property
    def host_bytes_per_block(self) -> int: ...
    def subscribe(self) -> Subscriber: ...
    def snapshot(self) -> Snapshot: ...
    def step(self) -> bool: ...
    def close(self) -> FlushReport | None: ...
    @property
    def closed(self) -> bool: ...
    def _repr_html_(self) -> str: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        *_exception: type[BaseException] | BaseException | TracebackType | None,
    ) -> None: ...

def close_all() -> None: ...
def run_program(arguments: Sequence[str]) -> int: ...
