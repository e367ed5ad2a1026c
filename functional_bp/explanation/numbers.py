"""Values for a reader: ``0.73``, ``(1.00 −0.91 −0.75)``, ``4×3, ‖·‖ = 2.28``.

>>> import numpy as np

>>> format_number(0.7310585), format_number(-1.2e-5), format_number(3.0)
('0.73', '−1.2e−5', '3.00')
>>> format_value(np.array([1.0, -0.91, -0.75])), format_value(np.ones((4, 3)))
('(1.00 −0.91 −0.75)', '4×3, ‖·‖ = 3.46')
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from functional_bp.tables.table import State

MOST_SHOWN = 4  # entries of a vector that are written out


class Summary(NamedTuple):
    """A summary is said of an array that is too large to be written out.

    Attributes:
        norm: the square root of the sum of squares of the finite entries.
        least, greatest: of the finite entries; NaN where there is none.
        zeros, nans, infinities: how many entries.
    """

    shape: tuple[int, ...]
    norm: float
    least: float
    greatest: float
    zeros: int
    nans: int
    infinities: int


def numbers_of(array: Any) -> np.ndarray | None:
    """Return an array as NumPy's numbers; None for what has none: a key, a token."""
    try:
        host = np.asarray(array)
        host = host.astype(np.float64) if host.dtype.kind == "V" else host  # bfloat16 and its like
    except (TypeError, ValueError):
        return None
    return host if host.dtype.kind in "biufc" else None


def summarize(array: Any) -> Summary:
    """Summarize an array of any numbers or booleans; of complex entries their modulus."""
    host = np.asarray(array)
    plain = np.abs(host) if host.dtype.kind == "c" else host.astype(np.float64)
    is_finite = np.isfinite(plain)
    finite = plain[is_finite]
    return Summary(
        host.shape,
        float(np.sqrt(np.sum(np.square(finite)))),
        float(finite.min()) if finite.size else np.nan,
        float(finite.max()) if finite.size else np.nan,
        int(np.sum(plain == 0)),
        int(np.sum(np.isnan(plain))),
        int(np.sum(np.isinf(plain))),
    )


def summary_of(array: Any, most: int = MOST_SHOWN) -> Summary | None:
    """Summarize an array that is too large to be written out; return None for anything else."""
    host = numbers_of(array)
    if host is None or host.ndim == 0 or (host.ndim == 1 and 0 < host.size <= most):
        return None
    return summarize(host)


def format_number(number: Any) -> str:
    """Write a number to two decimals, or in powers of ten; integers as they are."""
    plain: Any = np.asarray(number)
    if plain.dtype.kind == "b":
        return str(bool(plain))
    if plain.dtype.kind in "iu":
        return str(int(plain)).replace("-", "−")
    if plain.dtype.kind == "c":
        imaginary = format_number(np.imag(plain))
        sign = "" if imaginary.startswith("−") else "+"
        return f"{format_number(np.real(plain))}{sign}{imaginary}i"
    value = float(plain)
    if not np.isfinite(value):
        return {"nan": "NaN", "inf": "∞", "-inf": "−∞"}[str(value)]
    if value == 0:
        return "0.00"
    if 0.005 <= abs(value) < 9999.995:
        text = f"{value:.2f}"
    else:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        text = f"{mantissa}e{int(exponent)}"
    return text.replace("-", "−")


def format_shape(shape: tuple[int, ...]) -> str:
    """Write a shape: ``4×3``; ``scalar`` for no axes."""
    return "×".join(map(str, shape)) if shape else "scalar"


def format_slices(shape: tuple[int, ...], params: Mapping[str, Any]) -> list[str]:
    """Write what a ``slice`` with these parameters takes of each axis: ``1:3``, ``::2``."""
    keys = ("start_indices", "limit_indices", "strides")
    starts, limits, strides = (params[key] for key in keys)
    return [
        f"{start or ''}:{'' if stop == size else stop}" + (f":{step}" if step != 1 else "")
        for size, start, stop, step in zip(shape, starts, limits, strides or repeat(1))
    ]


def format_value(array: Any, most: int = MOST_SHOWN) -> str:
    """Write a number, a short vector, or shape and norm; NaN and infinity are counted."""
    summary = summary_of(array, most)
    if summary is None:
        host = numbers_of(array)
        if host is None:
            return getattr(getattr(array, "dtype", None), "name", "") or type(array).__name__
        return f"({' '.join(map(format_number, host))})" if host.ndim else format_number(host)
    text = f"{format_shape(summary.shape)}, ‖·‖ = {format_number(summary.norm)}"
    for count, what in ((summary.nans, "NaN"), (summary.infinities, "∞")):
        text += f", {count} {what}" if count else ""
    return text


# Values that a reader must not overlook: NaN, infinities, and gradients that vanish or explode.

VANISHING, EXPLODING = 1e-6, 1e4  # root mean square of a cotangent's entries

WORDS: dict[State, str] = {
    "nan": "NaN", "infinite": "infinite", "zero": "zero gradient",
    "vanishing": "vanishing", "exploding": "exploding",
}  # fmt: skip


def state_of(array: Any, is_cotangent: bool = False) -> State:
    """Say what is remarkable about an array; of a value only that it is not finite.

    >>> state_of(np.array([1.0, np.nan])), state_of(0.0), state_of(0.0, is_cotangent=True)
    ('nan', '', 'zero')
    """
    host = numbers_of(array)
    if host is None or host.dtype.kind not in "fc" or not host.size:
        return ""
    summary = summarize(host)
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
