"""Values that a reader must not overlook: NaN, infinities, and gradients that vanish or explode."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from functional_bp.explain.numbers import summarize

State = Literal["", "nan", "infinite", "zero", "vanishing", "exploding"]
VANISHING, EXPLODING = 1e-6, 1e4  # root mean square of a cotangent's entries

WORDS: dict[State, str] = {
    "nan": "NaN", "infinite": "infinite", "zero": "zero gradient",
    "vanishing": "vanishing", "exploding": "exploding",
}  # fmt: skip


def state_of(array: Any, is_cotangent: bool = False) -> State:
    """What is remarkable about an array; of a value only that it is not finite.

    >>> state_of(np.array([1.0, np.nan])), state_of(0.0), state_of(0.0, is_cotangent=True)
    ('nan', '', 'zero')
    """
    try:
        host = np.asarray(array)
        if host.dtype.kind not in "fcV" or not host.size:
            return ""
        summary = summarize(host)
    except (TypeError, ValueError):  # a key, a token
        return ""
    if summary.nans:
        return "nan"
    if summary.infinities:
        return "infinite"
    if not is_cotangent:
        return ""
    if summary.norm == 0:
        return "zero"
    size = summary.norm / np.sqrt(host.size)
    return "vanishing" if size < VANISHING else "exploding" if size > EXPLODING else ""
