"""Arrays of a check: promotion to double precision, rounding to single, random draws, distances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

Arrays = tuple[Any, ...]
UNIT64 = float(np.finfo(np.float64).eps)  # relative spacing of float64
UNIT32 = float(np.finfo(np.float32).eps)


def is_inexact(x: Any) -> bool:
    """Whether ``x`` is a real or complex array or number, so that it has a cotangent."""
    dtype = getattr(x, "dtype", None)
    dtype = np.asarray(x).dtype if dtype is None else dtype
    return bool(jnp.issubdtype(dtype, np.inexact))


def double(x: Any) -> np.ndarray:
    """``x`` in float64, or in complex128 where it is complex."""
    array = np.asarray(x)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def single(x: Any) -> np.ndarray:
    """``x`` in float32, or in complex64 where it is complex."""
    array = np.asarray(x)
    with np.errstate(over="ignore"):
        return array.astype(np.complex64 if array.dtype.kind == "c" else np.float32)


def unit_of(dtype: Any) -> float:
    """The relative spacing of a real or complex dtype: 2.2e-16 for float64, 1.2e-7 for float32."""
    return float(jnp.finfo(dtype).eps)


def normal(rng: np.random.Generator, like: Any, dtype: Any = None) -> np.ndarray:
    """Standard normal numbers of the shape and dtype of ``like``, or in the dtype ``dtype``."""
    dtype = np.dtype(dtype or like.dtype)
    drawn = rng.standard_normal(np.shape(like))
    if dtype.kind == "c":
        return (drawn + 1j * rng.standard_normal(np.shape(like))).astype(dtype)
    return drawn.astype(dtype)


def nudged(rng: np.random.Generator, x: np.ndarray, unit: float) -> np.ndarray:
    """``x`` with every entry moved by a few units in the last place, up or down."""
    return (x * (1 + 4 * unit * rng.choice([-1.0, 1.0], np.shape(x)))).astype(x.dtype)


def distance(claimed: Any, true: Any) -> float:
    """‖claimed − true‖ / ‖true‖ over the entries where the true value is finite."""
    a = np.asarray(claimed).astype(np.complex128).ravel()
    b = np.asarray(true).astype(np.complex128).ravel()
    on = np.isfinite(b)
    if not on.any():
        return 0.0
    with np.errstate(all="ignore"):
        return float(np.linalg.norm((a - b)[on]) / (np.linalg.norm(b[on]) + 1e-300))


def farthest(claimed: Sequence[Any], true: Sequence[Any]) -> float:
    """The largest distance of all pairs; NaN counts as infinite."""
    found = [distance(a, b) for a, b in zip(claimed, true, strict=True)]
    return max([0.0, *(np.inf if np.isnan(d) else d for d in found)])


def all_finite(arrays: Sequence[Any]) -> bool:
    """Whether every entry of every array is finite."""
    return all(bool(np.all(np.isfinite(np.asarray(a)))) for a in arrays)


def pairing(bars: Sequence[Any], values: Sequence[Any]) -> float:
    """⟨ȳ, y⟩ = Σ Re(ȳ y), the pairing under which JAX's cotangents are defined."""
    return float(sum(np.sum(np.real(np.asarray(b) * np.asarray(v))) for b, v in zip(bars, values)))
