"""The rank of a worker, and the folder of its blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kvtile._errors import IdentityError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

_RANK = re.compile(r"rank-\d+-of-(\d+)")


@dataclass(frozen=True)
class Rank:
    """One of the workers that share a model's heads under tensor parallelism."""

    number: int = 0
    size: int = 1

    def __str__(self) -> str:
        return f"{self.number} of {self.size}"

    def folder(self, path: Path) -> Path:
        """The folder of a worker's blocks: the folder itself for a single worker, otherwise a subfolder per worker.

        Raises IdentityError if the folder has blocks of another number of workers.
        """
        entries = [entry.name for entry in path.iterdir()] if path.is_dir() else []
        sizes = {int(found[1]) for found in map(_RANK.fullmatch, entries) if found}
        if "manifest.json" in entries:
            sizes.add(1)
        for size in sizes - {self.size}:
            raise IdentityError(
                f"tensor_parallel_size differs: the blocks in {path} are of {size}, and this engine has {self.size}; "
                "give it another disk_path, or remove them"
            )
        return path if self.size == 1 else path / f"rank-{self.number}-of-{self.size}"


def rank_of(config: VllmConfig) -> Rank:
    """The rank of this worker."""
    from vllm.distributed import get_tensor_model_parallel_rank

    return Rank(get_tensor_model_parallel_rank(), config.parallel_config.tensor_parallel_size)
