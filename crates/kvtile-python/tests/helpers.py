"""Shared by several tests: small shapes, and tensors over words."""

from __future__ import annotations

import numpy as np

import kvtile

WORDS = [
    "BLKNHC",
    "BHLKNC",
    "L|KBNHC",
    "L|BKHNC",
    "L|BH(kCN,vNC)",
    "LK|BNHC",
    "L|(kBHCNC4,vBHCN)",
    "LBHN2KCN",
    "L|BHNKC",
    "KLBNHC",
]

EXTENTS = {"B": 5, "L": 2, "N": 4, "H": 2, "C": 8}


def shape(dtype="float32", **changes: int) -> kvtile.Shape:
    """5 blocks of 4 tokens, 2 layers, 2 heads of 8."""
    sizes = {**EXTENTS, **changes}
    return kvtile.Shape(
        num_blocks=sizes["B"],
        num_layers=sizes["L"],
        page_size=sizes["N"],
        num_heads=sizes["H"],
        head_size=sizes["C"],
        dtype=dtype,
    )


def regions(word: str, shape: kvtile.Shape, dtype="float32") -> list[np.ndarray]:
    """Zeroed tensors for a word, one per region."""
    dtype = np.dtype(dtype)
    layout = kvtile.Layout(word, shape=shape)
    return [np.zeros(size // dtype.itemsize, dtype) for size in layout.region_bytes]


def layout(word: str, shape: kvtile.Shape, dtype="float32") -> tuple[kvtile.Layout, list[np.ndarray]]:
    """A layout and its tensors."""
    tensors = regions(word, shape, dtype)
    return kvtile.Layout(word, shape=shape, tensors=tensors), tensors
