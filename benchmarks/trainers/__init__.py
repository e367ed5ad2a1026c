"""One training step of the same models by this package, plain JAX, Keras, Flax NNX and PyTorch.

A trainer is made of a task and takes steps: ``trainer(count)`` takes so many, waits for the last
and returns its loss. All begin at the same parameters and see the same batches in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Trainer = Callable[[int], float]

RATE = 1e-3  # of Adam, with β = (0.9, 0.999) and ε = 1e-8 for all


class LeftOutError(Exception):
    """Another library cannot be measured here; the message says why and what to do."""


def cycle(batches: list[Any]) -> Callable[[], Any]:
    """The next batch at every call, the first one again after the last."""
    place = -1

    def following() -> Any:
        nonlocal place
        place = (place + 1) % len(batches)
        return batches[place]

    return following
