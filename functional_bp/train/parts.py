"""An array that several processes hold is written in parts, each by a process that has it.

So no process ever holds the whole. What is read back is any slice of the array, out of the parts
that it overlaps: by another number of processes, on other devices, or by one alone.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

POLL_SECONDS = 0.01  # between looks whether another process has written its parts
PARTS, SUMS = "parts", "sums.json"


class Part(NamedTuple):
    """A block of an array begins at ``start`` and has this shape; ``process`` writes it."""

    process: int
    start: tuple[int, ...]
    shape: tuple[int, ...]


def is_shared(leaf: Any) -> bool:
    """Other processes hold an array too, or a part of it."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def parts_of(array: Any) -> list[Part] | None:
    """The blocks that make up an array; None for one that a process can write alone."""
    if not is_shared(array) or array.is_fully_replicated:
        return None
    first: dict[Any, int] = {}
    for device, index in array.sharding.devices_indices_map(array.shape).items():
        block = _block(index, array.shape)
        first[block] = min(device.process_index, first.get(block, device.process_index))
    return sorted(Part(process, *block) for block, process in first.items())


def _block(index: Any, shape: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    bounds = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
    return tuple(a for a, _ in bounds), tuple(b - a for a, b in bounds)


def own_blocks(name: str, array: jax.Array, parts: Sequence[Part]) -> dict[str, np.ndarray]:
    """The blocks that this process is to write are copied to host memory, by name of a file."""
    here = {_block(shard.index, array.shape): shard.data for shard in array.addressable_shards}
    return {
        _file(name, k): np.array(here[part.start, part.shape], order="C")
        for k, part in enumerate(parts)
        if part.process == jax.process_index()
    }


def _file(name: str, k: int) -> str:
    return f"{name}-{k}"


def write(folder: Path, blocks: Mapping[str, np.ndarray]) -> None:
    """Blocks are written, with their sizes and checksums; the folder has its name when all are."""
    beside = folder.with_name(f"{folder.name}.unfinished")
    beside.mkdir(parents=True)
    sums = {}
    for file, block in blocks.items():
        content = block.tobytes()
        (beside / file).write_bytes(content)
        sums[file] = (len(content), zlib.crc32(content))
    (beside / SUMS).write_text(json.dumps(sums))
    os.replace(beside, folder)


def collect(folder: Path, checkpoint: Path, count: int) -> dict[str, tuple[int, int]]:
    """The parts of all processes are moved into a checkpoint, as soon as they are written.

    Returns:
        Size and CRC-32 of every file, by its path from the checkpoint.
    """
    sums = {}
    (checkpoint / PARTS).mkdir()
    for k in range(count):
        while not (folder / str(k)).is_dir():
            time.sleep(POLL_SECONDS)
        at = checkpoint / PARTS / str(k)
        os.replace(folder / str(k), at)
        for file, sum_of in json.loads((at / SUMS).read_text()).items():
            sums[f"{PARTS}/{k}/{file}"] = tuple(sum_of)
    shutil.rmtree(folder, ignore_errors=True)
    return sums


class Stored:
    """A stored array is read by slices, from the parts that these overlap.

    Args:
        name: of its files.
        parts: of it.
        shape: of the whole.
        dtype: of the whole.
        read: returns the bytes of a file, by its path from the checkpoint.
    """

    def __init__(
        self, name: str, parts: Sequence[Any], shape: Any, dtype: Any, read: Callable[[str], bytes]
    ) -> None:
        self.shape, self.dtype, self.ndim = tuple(shape), np.dtype(dtype), len(shape)
        self._parts = [Part(k, tuple(start), tuple(size)) for k, start, size in parts]
        self._name, self._read = name, read
        self._kept: dict[int, np.ndarray] = {}

    def __getitem__(self, index: Any) -> np.ndarray:
        start, shape = _block(index, self.shape)
        out = np.empty(shape, self.dtype)
        for k, part in enumerate(self._parts):
            low = np.maximum(start, part.start)
            high = np.minimum(np.add(start, shape), np.add(part.start, part.shape))
            if np.all(low < high):
                to = tuple(map(slice, low - start, high - start))
                out[to] = self._part(k)[tuple(map(slice, low - part.start, high - part.start))]
        return out

    def _part(self, k: int) -> np.ndarray:
        if k not in self._kept:
            part = self._parts[k]
            content = self._read(f"{PARTS}/{part.process}/{_file(self._name, k)}")
            self._kept[k] = np.frombuffer(content, self.dtype).reshape(part.shape)
        return self._kept[k]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[tuple(slice(None) for _ in self.shape)], dtype)
