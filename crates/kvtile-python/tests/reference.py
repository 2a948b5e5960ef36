"""A naive implementation of the layout language: walks a word element by element, without strides."""

from __future__ import annotations

import re
from collections.abc import Iterator

ITEM = re.compile(r"([A-Z])(\d*)|([a-z]+)|(\|)|(\()|(\))|(,)")


def parse(word: str) -> list:
    """A word as items: ("axis", letter, modulus), ("plane", name), ("bar",), ("sum", [words])."""
    tokens = [match.groups() for match in ITEM.finditer(word)]
    position = 0

    def items() -> list:
        nonlocal position
        found = []
        while position < len(tokens):
            letter, modulus, plane, bar, opened, closed, comma = tokens[position]
            if closed or comma:
                return found
            position += 1
            if letter:
                found.append(("axis", letter, int(modulus) if modulus else None))
            elif plane:
                found.append(("plane", plane))
            elif bar:
                found.append(("bar",))
            elif opened:
                parts = [items()]
                while tokens[position][6]:
                    position += 1
                    parts.append(items())
                position += 1
                found.append(("sum", parts))
        return found

    return items()


def places(word: str, extents: dict[str, int], planes: tuple[str, ...]) -> dict[tuple, tuple[int, int]]:
    """The position of each element: (plane, b, l, n, h, c) to (region, element)."""
    found: dict[tuple, tuple[int, int]] = {}
    region, element = -1, 0
    for fresh, plane, index in walk(parse(word), extents, planes, [], {}, None):
        if fresh or region < 0:
            region, element = region + 1, 0
        key = (plane, *(index.get(axis, 0) for axis in "BLNHC"))
        assert key not in found, key
        found[key] = (region, element)
        element += 1
    return found


def walk(items, extents, planes, before, index, plane) -> Iterator[tuple[bool, str, dict[str, int]]]:
    if not items:
        yield False, plane, index
        return
    item, rest = items[0], items[1:]
    if item[0] == "plane":
        yield from walk(rest, extents, planes, before, index, item[1])
    elif item[0] == "bar":
        for count, (_, name, at) in enumerate(walk(rest, extents, planes, before, index, plane)):
            yield count == 0, name, at
    elif item[0] == "sum":
        for part in item[1]:
            yield from walk(part + rest, extents, planes, before, index, plane)
    elif item[1] == "K":
        for name in planes:
            yield from walk(rest, extents, planes, before, index, name)
    else:
        _, letter, modulus = item
        others = [m for kind, *data in before + items if kind == "axis" for a, m in [data] if a == letter and m]
        low = max((m for m in others if modulus is None or m < modulus), default=1)
        extent = (modulus or extents[letter]) // low
        for digit in range(extent):
            at = {**index, letter: index.get(letter, 0) + digit * low}
            yield from walk(rest, extents, planes, [*before, item], at, plane)
