"""The rank of a worker, and the folder of its blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvtile._errors import IdentityError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

    from kvtile import Identity, ModelIdentity

# The entry of an identity whose blocks cannot be cut by heads: the rank that wrote them.
OF_RANK = "rank"

_RANK = re.compile(r"rank-\d+-of-(\d+)")
_PART = re.compile(r"layers-\d+-\d+\.heads-\d+-\d+(\.replica-\d+)?")


@dataclass(frozen=True)
class Rank:
    """One of the workers that share a model's heads under tensor parallelism."""

    number: int = 0
    size: int = 1

    def __str__(self) -> str:
        return f"{self.number} of {self.size}"

    def folder(self, path: Path, identity: Identity | ModelIdentity) -> Path:
        """The folder for a worker's cache.

        If the order inside a block is known, all workers have the same one: each cache writes the part with its heads there
        and reads the others. Otherwise it is a subfolder for each worker.

        Raises IdentityError if the folder has blocks that these workers cannot use.
        """
        names = [entry.name for entry in path.iterdir()] if path.is_dir() else []
        sizes = {int(found[1]) for found in map(_RANK.fullmatch, names) if found}
        if OF_RANK not in identity.extra:
            self._refuse_old(path, sizes)
            return path
        if "manifest.json" in names:
            sizes.add(1)
        parts = next(filter(_PART.fullmatch, sorted(names)), None)
        for found in [*(str(size) for size in sorted(sizes - {self.size})), *([parts] if parts else [])]:
            raise IdentityError(
                f"tensor_parallel_size differs: the blocks in {path} are of {found}, and this engine has {self.size}; "
                "the order inside this engine's blocks is not known, so they cannot be cut by heads or assembled; "
                "give it another disk_path, or remove them"
            )
        return path / f"rank-{self.number}-of-{self.size}"

    def _refuse_old(self, path: Path, sizes: set[int]) -> None:
        for size in sorted(sizes):
            raise IdentityError(
                f"{path} has the folders rank-0-of-{size} and following, of blocks that only {size} workers can use: "
                "an earlier version of kvtile wrote them, or an engine that keeps blocks whole; "
                "give another disk_path, or remove these folders"
            )


def rank_of(config: VllmConfig) -> Rank:
    """The rank of this worker."""
    from vllm.distributed import get_tensor_model_parallel_rank

    return Rank(get_tensor_model_parallel_rank(), config.parallel_config.tensor_parallel_size)
