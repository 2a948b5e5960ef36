"""What a process and a folder take under an adapter that works for a long time."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Seconds of each soak; `cargo x soak-engines` sets it. In CI the soak only shows that it works.
SECONDS = float(os.environ.get("KVTILE_SOAK_SECONDS", "4"))
# Between a restart and the next one.
TURN = 0.5
# Pages that the allocator keeps and threads that come and go: a leak of a whole row a second is more within minutes.
MOST_GROWTH = 24 << 20
# Rings that kvtile keeps for the next transfers of the process, and makes when so many run at once.
KEPT_RINGS = 4


def turns() -> Iterator[int]:
    """The numbers of turns, until the time is up; at least four."""
    end, number = time.monotonic() + SECONDS, 0
    while number < 4 or time.monotonic() < end:
        yield number
        number += 1


@dataclass(frozen=True)
class Taken:
    """What the process takes now."""

    resident: int
    # Without the rings.
    descriptors: int
    rings: int
    # Of the operating system: Python lists some that have ended.
    threads: int

    @classmethod
    def now(cls) -> Taken:
        gc.collect()
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        rings, descriptors = 0, 0
        for number in os.listdir("/proc/self/fd"):
            # The descriptor of the folder itself is closed by now.
            with contextlib.suppress(FileNotFoundError):
                is_ring = os.readlink(f"/proc/self/fd/{number}") == "anon_inode:[io_uring]"
                rings, descriptors = rings + is_ring, descriptors + (not is_ring)
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), descriptors, rings, len(os.listdir("/proc/self/task")))


class Growth:
    """Compares what the process takes after each turn with what it took after a quarter of the soak."""

    def __init__(self, folder: Path, most: int) -> None:
        self.folder, self.most = folder, most
        self.start = time.monotonic()
        self.warm: Taken | None = None

    def look(self) -> None:
        """To be called between turns, while the adapter is closed."""
        now = Taken.now()
        taken = sum(file.stat().st_blocks * 512 for file in self.folder.rglob("*") if file.is_file())
        assert taken <= self.most, f"the folder takes {taken} of {self.most} bytes"
        assert now.rings <= KEPT_RINGS, now
        if self.warm is None:
            if time.monotonic() - self.start > SECONDS / 4:
                self.warm = now
            return
        assert now.resident - self.warm.resident <= MOST_GROWTH, (self.warm, now)
        assert now.descriptors <= self.warm.descriptors and now.threads <= self.warm.threads, (self.warm, now)

    def report(self) -> None:
        """Prints the growth."""
        now = Taken.now()
        assert self.warm is not None, "the soak was too short to compare anything"
        print(
            f"{time.monotonic() - self.start:.0f} s: {(now.resident - self.warm.resident) / (1 << 20):+.1f} MiB of "
            f"{self.warm.resident >> 20}, {now.descriptors - self.warm.descriptors:+d} of {self.warm.descriptors} descriptors"
        )


def flip_one_bit(folder: Path, numbers: random.Random) -> None:
    """Flips a bit of the largest file, which has the blocks."""
    path = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with path.open("r+b") as file:
        place = numbers.randrange(path.stat().st_size)
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1 << numbers.randrange(8)]))
