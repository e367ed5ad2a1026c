"""Test inputs that stand beside the rules: what to call, on arrays of what shape and range.

A case is data, not arrays, so that importing a rule touches no device::

    case(lambda x, y: x @ y, real(3, 4), real(4, 2))
    case(lax.log, real(3, low=0.1, high=4))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Spec:
    """An array to be drawn: shape, dtype kind, range, or fixed ``values``."""

    shape: tuple[int, ...]
    kind: str = "real"  # "real", "complex", "integer", "boolean"
    low: float = -2.0
    high: float = 2.0
    values: Any = None
    make: Callable[[np.ndarray], np.ndarray] | None = None  # for example, to make it symmetric

    def draw(self, rng: np.random.Generator, dtype: Any = np.float64) -> np.ndarray:
        """Draw the array; ``dtype`` is that of the real and complex specs' real part."""
        if self.values is not None:
            given = np.asarray(self.values)
            if self.kind == "complex":
                return given.astype(np.result_type(dtype, np.complex64))
            return given.astype(dtype) if self.kind == "real" else given
        if self.kind == "integer":
            return rng.integers(int(self.low), int(self.high), self.shape).astype(np.int32)
        if self.kind == "boolean":
            return rng.integers(0, 2, self.shape).astype(bool)
        drawn = rng.uniform(self.low, self.high, self.shape)
        if self.kind == "complex":
            drawn = drawn + 1j * rng.uniform(self.low, self.high, self.shape)
        if self.make is not None:
            drawn = self.make(drawn)
        if self.kind == "complex":
            return drawn.astype(np.result_type(dtype, np.complex64))
        return drawn.astype(dtype)

    @property
    def differentiable(self) -> bool:
        """Whether a cotangent exists for it."""
        return self.kind in ("real", "complex")


def real(*shape: int, low: float = -2.0, high: float = 2.0, values: Any = None,
         make: Callable[[np.ndarray], np.ndarray] | None = None) -> Spec:  # fmt: skip
    """Uniform in [low, high), or the fixed ``values``; ``make`` reshapes the draw's structure."""
    return Spec(np.shape(values) if values is not None else shape, "real", low, high, values, make)


def cplx(*shape: int, low: float = -2.0, high: float = 2.0, values: Any = None,
         make: Callable[[np.ndarray], np.ndarray] | None = None) -> Spec:  # fmt: skip
    """Complex, real and imaginary part uniform in [low, high)."""
    shape = np.shape(values) if values is not None else shape
    return Spec(shape, "complex", low, high, values, make)


def integer(*shape: int, low: int = 0, high: int = 4, values: Any = None) -> Spec:
    """Integers in [low, high), or the fixed ``values`` (their dtype is kept)."""
    return Spec(np.shape(values) if values is not None else shape, "integer", low, high, values)


def boolean(*shape: int, values: Any = None) -> Spec:
    """Fair coin flips, or the fixed ``values``."""
    return Spec(np.shape(values) if values is not None else shape, "boolean", values=values)


@dataclass(frozen=True)
class Case:
    """A call of one primitive: the function, and what to draw for its arguments.

    Attributes:
        function: takes arrays, returns an array or a pytree of arrays.
        specs: one per argument.
        reference: a JAX function with the same values, to differentiate instead where ``jax.vjp``
            of ``function`` is missing, wrong or imprecise; None where JAX's own gradient is right.
        second_order: False where the second derivative is not defined or not finite.
        half: False where half precision is not supported or meaningless for the operation.
        batchable: False where JAX itself cannot ``vmap`` the operation.
        note: why any of these is False, or what the case is for.
    """

    function: Callable[..., Any]
    specs: tuple[Spec, ...]
    reference: Callable[..., Any] | None = None
    second_order: bool = True
    half: bool = True
    batchable: bool = True
    note: str = ""

    def draw(self, seed: int = 0, dtype: Any = np.float64) -> list[np.ndarray]:
        """The arguments as NumPy arrays."""
        rng = np.random.default_rng(seed)
        return [spec.draw(rng, dtype) for spec in self.specs]


def case(
    function: Callable[..., Any],
    *specs: Spec,
    reference: Callable[..., Any] | None = None,
    second_order: bool = True,
    half: bool = True,
    batchable: bool = True,
    note: str = "",
) -> Case:
    """A call to test a rule on; see ``Case``."""
    return Case(function, specs, reference, second_order, half, batchable, note)
