"""Seconds of several sides, one run, interleaved; a ratio is the median of those of neighbours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

Key = TypeVar("Key")
SAMPLE_SECONDS = 0.02  # what one sample takes at least


def sampler(compiled: Callable[..., Any], *args: Any) -> Callable[[], float]:
    """Make a function that runs a compiled program often enough, and says seconds a run."""
    jax.block_until_ready(compiled(*args))  # the first run is slower than those after it
    once = _seconds(compiled, args, 1)
    calls = max(1, int(SAMPLE_SECONDS / max(once, 1e-6)))
    return lambda: _seconds(compiled, args, calls)


def _seconds(compiled: Callable[..., Any], args: tuple[Any, ...], calls: int) -> float:
    out: Any = None
    start = time.perf_counter()
    for _ in range(calls):
        out = compiled(*args)
    jax.block_until_ready(out)
    return (time.perf_counter() - start) / calls


def interleaved(runs: Mapping[Key, Callable[[], float]], repeats: int) -> dict[Key, list[float]]:
    """Sample all sides in turns, every other round backwards."""
    samples: dict[Key, list[float]] = {side: [] for side in runs}
    for i in range(repeats):
        for side in list(runs)[:: 1 if i % 2 else -1]:
            samples[side].append(runs[side]())
    return samples


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Return the median of the ratios of neighbours."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
