"""This named list says where we differ from JAX on purpose, and what is true there.

By default every gradient is JAX's, kinks included. Each exception is declared beside its rule::

    improvement("digamma at negative x", lax.digamma, at=(-10.3,), wrt=0, true=15.0...,
                jax="1e18", source="reflection: ψ(1−x) − ψ(x) = π cot πx, differentiated")

and tested: our gradient must be ``true`` to the stated tolerance.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True, eq=False)
class Improvement:
    """An improvement is one place where the gradient is not JAX's.

    Attributes:
        name: what a person would look for.
        function: the call; its output is summed (real parts) before it is differentiated.
        at: the arguments: Python numbers, nested lists or NumPy arrays.
        wrt: which argument the gradient is for.
        true: the true gradient.
        jax: what JAX does there: "raises …" or its value.
        source: where the true value comes from.
        dtype: the dtype it is shown in.
        rtol: how near ours must be to the true value.
        file: where it is declared, beside its rule.
        order: how often the function is differentiated.
    """

    name: str
    function: Callable[..., Any]
    at: Sequence[Any]
    wrt: int
    true: Any
    jax: str
    source: str
    dtype: str = "float64"
    rtol: float = 1e-6
    file: str = ""
    order: int = 1

    def gradient(self, grad: Callable[..., Any]) -> Callable[..., Any]:
        """Differentiate the call by a transform, ``bp.grad`` or ``jax.grad``."""
        function = self.function
        for _ in range(self.order):
            function = grad(_summed(function), self.wrt)
        return function


def _summed(function: Callable[..., Any]) -> Callable[..., Any]:
    def real_sum(*args: Any) -> Any:
        leaves = jax.tree.leaves(function(*args))
        return sum(jnp.sum(jnp.real(y)) for y in leaves if jnp.issubdtype(y.dtype, jnp.inexact))

    return real_sum


improvements: list[Improvement] = []


def improvement(
    name: str, function: Callable[..., Any], *, at: Sequence[Any], wrt: int = 0, **facts: Any
) -> None:
    """Declare that our gradient of ``function`` at ``at`` is ``true`` where JAX's is not.

    ``facts`` are the other attributes of an ``Improvement``.
    """
    file = sys._getframe(1).f_code.co_filename
    improvements.append(Improvement(name, function, tuple(at), wrt, file=file, **facts))
