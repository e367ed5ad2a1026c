"""A number of the logs that is watched: what is better, and whether it became so."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from functional_bp.errors import compose
from functional_bp.train.callbacks.callback import CallbackError

HIGHER = ("accuracy", "acc", "auc", "precision", "recall", "f1", "r2", "iou", "score")
LOWER = ("loss", "error", "mae", "mse", "rmse", "mape", "entropy", "crossentropy", "perplexity")


class Monitor:
    """A number of the logs, and the best one seen.

    An improvement is by more than ``min_delta``; NaN and infinity never are one.

    Args:
        monitor: its name in the logs: "loss", "val_accuracy".
        mode: "min", "max", or "auto": by the last part of the name.
        min_delta: what a change has to exceed.
        owner: the callback's name, for messages.

    Raises:
        CallbackError: ``mode`` is none of these, or the name does not tell.
    """

    def __init__(self, monitor: str, mode: str, min_delta: float, owner: str) -> None:
        self.name, self.owner, self.min_delta = monitor, owner, abs(min_delta)
        self.sign = 1.0 if _mode(monitor, mode, owner) == "min" else -1.0
        self.best: float | None = None
        self._seen = False

    def read(self, logs: Mapping[str, Any]) -> float | None:
        """The number; None in an epoch without validation.

        Raises:
            CallbackError: the logs have none of that name.
        """
        if self.name in logs:
            self._seen = True
            return float(np.asarray(logs[self.name]))
        validated = any(name.startswith("val_") for name in logs)
        if not self.name.startswith("val_") or validated:
            raise CallbackError(self._absent(", ".join(logs)))
        return None

    def _absent(self, got: str) -> str:
        do = "take one of these names"
        if self.name.startswith("val_"):
            do = "pass validation_data= or validation_split=, or watch a name without val_"
        what = f"{self.owner} watches {self.name!r}, which the logs do not have"
        return compose(what, got=got or "no logs", expected=self.name, do=do)

    def warn_if_never_seen(self, epochs: int) -> None:
        """Say so when training ends and the number never came."""
        if epochs and not self._seen and self.best is None:
            warnings.warn(self._absent(f"{epochs} epochs without validation"), stacklevel=3)

    def improves(self, value: float, reference: float | None) -> bool:
        """Whether a value is better than another one by more than ``min_delta``."""
        if not math.isfinite(value):
            return False
        return reference is None or self.sign * (reference - value) > self.min_delta


def _mode(monitor: str, mode: str, owner: str) -> str:
    if mode not in ("auto", "min", "max"):
        raise CallbackError(
            compose(
                f"{owner} does not know the mode",
                got=f"mode = {mode!r}",
                expected='"min", "max" or "auto"',
            )
        )
    if mode != "auto":
        return mode
    last = monitor.lower().replace("-", "_").split("_")[-1]
    for mode, words in (("max", HIGHER), ("min", LOWER)):
        if last in words:
            return mode
    raise CallbackError(
        compose(
            f"{owner} cannot tell whether a higher or a lower {monitor!r} is better",
            got='mode = "auto"',
            expected="a name that ends like accuracy or loss",
            do='pass mode="min" or mode="max"',
        )
    )
