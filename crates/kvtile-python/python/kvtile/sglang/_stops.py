"""Which prefixes SGLang can resume from, by the pages that each pool has.

A prefix of ``n`` pages is usable if each pool has what its policy needs for it. The usable lengths are a set: a pool
that keeps only the end of a prefix leaves holes, so 5 pages may be usable while 4 and 3 are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PoolPresence:
    """What a pool has of a request.

    Attributes:
        has: whether the pool has each page.
        trailing: the number of pages at the end of a prefix that it needs; None: all pages.
    """

    has: Sequence[bool]
    trailing: int | None = None

    def stops(self, pages: int) -> set[int]:
        """The prefixes of at most this many pages for which the pool has what it needs."""
        if self.trailing is None:
            return set(range(1, leading(self.has[:pages]) + 1))
        found, run = set(), 0
        for page, has in enumerate(self.has[:pages], 1):
            run = run + 1 if has else 0
            if run >= min(self.trailing, page):
                found.add(page)
        return found


def leading(has: Sequence[bool]) -> int:
    """The number of pages before the first missing one."""
    return next((page for page, there in enumerate(has) if not there), len(has))


def leading_groups(has: Sequence[bool], group_pages: int, block_pages: int) -> int:
    """The pages that the leading complete groups of keys cover, for a pool that keeps groups of ``group_pages`` keys for
    each ``block_pages`` pages. 0 if the sizes make no sense."""
    if group_pages < 1 or block_pages < 1:
        return 0
    return leading(has) // group_pages * block_pages


def usable_prefixes(pages: int, pools: Sequence[PoolPresence]) -> list[int]:
    """The prefixes of at most this many pages for which all pools have what they need, the shortest first."""
    found = set(range(1, pages + 1))
    for pool in pools:
        found &= pool.stops(pages)
    return sorted(found)
