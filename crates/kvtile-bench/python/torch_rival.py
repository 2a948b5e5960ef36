"""Copies blocks between layouts as a user of PyTorch would, against a flat copy of its own.

Reads a JSON list of jobs from standard input, prints a JSON list of figures. A job has the axes of
both sides from slowest to fastest, which of them enumerate tensors of their own (`regions`), the
extents of the axes, the bytes of an element, block orders for each round, and how many rounds.

Axes: B block, L layer, K plane, N token, H head, C content. One thread.
"""

import itertools
import json
import sys
import time

import torch

DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Side:
    """One layout: a tensor for each index of its region axes."""

    def __init__(self, axes, regions, extents, dtype, fill):
        self.regions = regions
        self.axes = [axis for axis in axes if axis not in regions]
        shape = [extents[axis] for axis in self.axes]
        indices = itertools.product(*(range(extents[axis]) for axis in regions))
        self.tensors = {index: fill(shape, dtype) for index in indices}

    def view(self, fixed):
        """The tensor of the region that `fixed` names, the other axes of `fixed` selected."""
        tensor = self.tensors[tuple(fixed[axis] for axis in self.regions)]
        axes = list(self.axes)
        for axis, index in fixed.items():
            if axis in axes:
                tensor = tensor.select(axes.index(axis), index)
                axes.remove(axis)
        return tensor, axes


def distinct(shape, dtype):
    low, high = (0, 256) if dtype == torch.uint8 else (-(2**15), 2**15)
    return torch.randint(low, high, shape, dtype=dtype)


def poisoned(shape, dtype):
    return torch.full(shape, 0x25, dtype=dtype)


def copy(source, destination, extents, source_ids, destination_ids):
    """Region by region: select the blocks, permute them, put them where they belong."""
    outer = sorted(set(source.regions) | set(destination.regions), key="BLKNHC".index)
    for index in itertools.product(*(range(extents[axis]) for axis in outer)):
        fixed = dict(zip(outer, index))
        read, from_axes = source.view(fixed)
        written, to_axes = destination.view(fixed)
        blocks = read.index_select(from_axes.index("B"), source_ids)
        blocks = blocks.permute([from_axes.index(axis) for axis in to_axes]).contiguous()
        written.index_copy_(to_axes.index("B"), destination_ids, blocks)


def is_right(source, destination, extents, source_ids, destination_ids):
    outer = sorted(set(source.regions) | set(destination.regions), key="BLKNHC".index)
    for index in itertools.product(*(range(extents[axis]) for axis in outer)):
        fixed = dict(zip(outer, index))
        for a, b in list(zip(source_ids.tolist(), destination_ids.tolist()))[:4]:
            read, from_axes = source.view({**fixed, "B": a})
            written, to_axes = destination.view({**fixed, "B": b})
            if not torch.equal(read.permute([from_axes.index(axis) for axis in to_axes]), written):
                return False
    return True


def measure(job):
    extents = job["extents"]
    dtype = DTYPES[job["unit_bytes"]]
    source = Side(job["source"], job["source_regions"], extents, dtype, distinct)
    destination = Side(job["destination"], job["destination_regions"], extents, dtype, poisoned)
    flat_source = distinct([job["bytes"] // job["unit_bytes"]], dtype)
    flat_destination = torch.empty_like(flat_source)
    flat_destination.copy_(flat_source)
    generator = torch.Generator().manual_seed(job["seed"])
    times = {"copy": [], "flat": []}
    for turn in range(job["rounds"] + 1):
        blocks = extents["B"]
        source_ids, destination_ids = (
            (torch.arange(blocks), torch.arange(blocks))
            if job["consecutive"]
            else (
                torch.randperm(blocks, generator=generator),
                torch.randperm(blocks, generator=generator),
            )
        )
        for tensor in destination.tensors.values():
            tensor.fill_(0x25)
        for name in ["copy", "flat"] if turn % 2 else ["flat", "copy"]:
            start = time.perf_counter()
            for _ in range(job["repeats"]):
                if name == "flat":
                    flat_destination.copy_(flat_source)
                else:
                    copy(source, destination, extents, source_ids, destination_ids)
            elapsed = (time.perf_counter() - start) / job["repeats"]
            if turn:
                times[name].append(elapsed)
        if not is_right(source, destination, extents, source_ids, destination_ids):
            return {"right": False, "seconds": 1.0, "flat_seconds": 1.0, "spread": 0.0}
    median = {name: sorted(all)[len(all) // 2] for name, all in times.items()}
    copies = times["copy"]
    return {
        "right": True,
        "seconds": median["copy"],
        "flat_seconds": median["flat"],
        "spread": (max(copies) - min(copies)) / median["copy"],
    }


def main():
    torch.set_num_threads(1)
    json.dump([measure(job) for job in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
