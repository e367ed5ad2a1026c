"""The UCI handwritten digits that scikit-learn ships: 1797 images of 8×8 pixels, ten classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class MissingExtraError(ImportError):
    """A package of one of the extras is not installed."""


class Part(NamedTuple):
    """Images ``f32[b,64]``, one a row, and their labels ``i32[b]``."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class Digits(NamedTuple):
    """Three parts without overlap, with the classes in equal proportion."""

    training: Part
    validation: Part
    held_out: Part


def load_digits(seed: int, validation: float = 0.1, held_out: float = 0.2) -> Digits:
    """Load and split the digits; pixels scaled to [0, 2], the training mean taken away.

    Args:
        seed: of the split.
        validation: the share that says when to stop.
        held_out: the share that is looked at once, after training.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise MissingExtraError(
            "the digits come with scikit-learn, which is not installed\n"
            "  to do:    pip install 'functional-bp[demo]'"
        ) from error
    images, labels = map(np.asarray, datasets.load_digits(return_X_y=True))

    def split(part: Part, share: float) -> tuple[Part, Part]:
        rows = np.arange(len(part))
        chosen = model_selection.train_test_split(
            rows, test_size=share, stratify=part.labels, random_state=seed
        )
        first, second = (Part(part.images[c], part.labels[c]) for c in chosen)
        return first, second

    rest, last = split(Part(images, labels), held_out)
    training, middle = split(rest, validation / (1 - held_out))
    mean = training.images.mean(axis=0)
    parts = (
        Part(((part.images - mean) / 8).astype(np.float32), part.labels.astype(np.int32))
        for part in (training, middle, last)
    )
    return Digits(*parts)


def batches(part: Part, batch_size: int, rng: np.random.Generator) -> Iterator[Part]:
    """One epoch in random order; images that do not fill a batch wait for the next epoch."""
    order = rng.permutation(len(part))
    for first in range(0, len(part) - batch_size + 1, batch_size):
        chosen = order[first : first + batch_size]
        yield Part(part.images[chosen], part.labels[chosen])
