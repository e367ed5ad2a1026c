"""One explanation of a wrong gradient, and when numbers count as explained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A fault leaves a gap of its own size. It counts as explained where less than a millionth of it
# remains: a constant that was rounded to float32 (6e-8) passes, a chance match does not.
OF_THE_GAP = 1e-6
# Entries far below the largest gap are dominated by what the large ones cancel to.
OF_THE_LARGEST_GAP = 1e-8
# Rounding of float64 (2e-16) through some thousand operations.
OF_THE_MAGNITUDE = 1e-12


@dataclass(frozen=True)
class Hypothesis:
    """What accounts for a wrong gradient.

    Attributes:
        kind: one of ``findings.KINDS``.
        message: a sentence for a person who sees nothing else.
        residual_error: the part of the disagreement that it leaves unexplained, between 0 and 1;
            NaN where it says where or how the claim is wrong, and not by how much.
        cost: how much was assumed; of two that explain, the cheaper is likelier the fault.
        fresh_samples: how many samples besides the given one it was verified on.
        details: further facts, one sentence each.
        added: true − claimed as a formula, where that is what was found.
    """

    kind: str
    message: str
    residual_error: float = float("nan")
    cost: float = 1.0
    fresh_samples: int = 0
    details: tuple[str, ...] = ()
    added: str = ""


def tolerance(claimed: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Per entry, how far a prediction of ``claimed`` may be off."""
    gap = np.abs(claimed - true)
    magnitude = max(np.abs(claimed).max(initial=0.0), np.abs(true).max(initial=0.0))
    largest = gap.max(initial=0.0)
    return OF_THE_GAP * gap + OF_THE_LARGEST_GAP * largest + OF_THE_MAGNITUDE * magnitude


def unexplained(
    predicted: np.ndarray, claimed: np.ndarray, true: np.ndarray, rounding: float = 0.0
) -> float | None:
    """‖predicted − claimed‖ / ‖true − claimed‖, or None where some entry is not explained.

    ``rounding`` is how far each entry may be off because it was written down with few digits.
    """
    if predicted.shape != claimed.shape:
        return None
    with np.errstate(all="ignore"):
        off = np.maximum(np.abs(predicted - claimed) - 1.001 * rounding, 0.0)
        if not np.all(off <= tolerance(claimed, true)):
            return None
    gap = float(np.linalg.norm(claimed - true))
    return float(np.linalg.norm(off)) / gap if gap else 0.0
