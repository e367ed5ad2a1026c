"""An evaluation compiles a claim and its reference together, and runs them in one precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from functional_bp import _jax
from functional_bp.gradcheck.derivatives import Slope, complex_slope, complex_step
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.subject import Arrays, Subject, double, single
from functional_bp.graph import interpret
from functional_bp.graph.interpret import UNIT64


class Point(NamedTuple):
    """A point is where a claim is judged: active and other leaves, cotangents of the outputs."""

    actives: Arrays
    fixed: Arrays
    bars: Arrays

    def cast(self, to: Callable[[Any], np.ndarray]) -> Point:
        """Return the same with every active leaf and cotangent converted."""
        return Point(tuple(map(to, self.actives)), self.fixed, tuple(map(to, self.bars)))


class Result(NamedTuple):
    """A result has outputs and cotangents at a point, as claimed and the reference's (or None)."""

    outs: Arrays
    claimed: Arrays
    true_outs: Arrays | None
    true: Arrays | None


class Evaluation:
    """An evaluation runs a subject in one precision; everything is compiled once.

    Args:
        subject: what to run.
        bits: 64 for double precision throughout, 32 for JAX's default.
        dtype: with 32 bits, the dtype of arguments and cotangents (half precision).
    """

    def __init__(self, subject: Subject, bits: int, dtype: Any = None) -> None:
        self.subject, self.bits = subject, bits
        self.cast = double if bits == 64 else single
        if dtype is not None:
            self.cast = lambda x: np.asarray(x).astype(dtype)

    def precision(self) -> Any:
        """Return the context in which the subject's code runs."""
        return jax.enable_x64(self.bits == 64)

    def outs(self, actives: Sequence[Any], fixed: Arrays) -> Arrays:
        """Return the outputs that are differenced: the reference's where there is one."""
        with self.precision():
            return to_numpy(self._outs(tuple(actives), fixed))

    def both(self, point: Point) -> Result:
        """Run claim and reference at a point."""
        with self.precision():
            outs, claimed, true_outs, true = self._both(*point)
        reference = None if true is None else (to_numpy(true_outs), to_numpy(true))
        return Result(to_numpy(outs), to_numpy(claimed), *(reference or (None, None)))

    def analytic_slope(self, point: Point, leaf: int, direction: np.ndarray) -> Slope | None:
        """Return d/dh ⟨ȳ, f(x + h v)⟩ at 0 by the complex step; None where f is not analytic."""
        with self.precision():
            if self._complex is None:
                return None
            try:
                return complex_slope(self._complex, *point, leaf, direction)
            except (ValueError, TypeError, NotImplementedError):  # no code for complex numbers
                self._complex = None
                return None

    @cached_property
    def _complex(self) -> Callable[..., list[Any]] | None:
        subject = self.subject
        if not subject.traceable or subject.numeric is not None or self.bits != 64:
            return None
        fun = subject.reference or subject.value
        return complex_step(fun, tuple(map(self.cast, subject.actives)), subject.fixed)

    @cached_property
    def _outs(self) -> Callable[..., Any]:
        subject = self.subject
        if subject.numeric is not None:
            return subject.numeric
        fun = subject.reference or subject.value
        return self._compiled(fun) if subject.traceable else fun

    @cached_property
    def _both(self) -> Callable[..., Any]:
        return self._compiled(self.pair) if self.subject.traceable else self.pair

    def pair(self, actives: Arrays, fixed: Arrays, bars: Arrays) -> tuple[Any, Any, Any, Any]:
        """Return what ``both`` compiles: outputs and cotangents, claimed and by the reference."""
        outs, claimed = self.subject.pull(actives, fixed, bars)
        if self.subject.reference is None:
            return outs, claimed, None, None
        true_outs, true = pull_reference(self.subject, actives, fixed, bars)
        return outs, claimed, true_outs, true

    def _compiled(self, fun: Callable[..., Any]) -> Callable[..., Any]:
        """``fun`` under jit, loops bounded; pytrees of arrays in and out."""

        @jax.jit
        def run(*args: Any) -> Any:
            leaves, tree = jax.tree.flatten(args)
            made: list[Any] = []

            def flat(*arrays: Any) -> list[Any]:
                out, out_tree = jax.tree.flatten(fun(*jax.tree.unflatten(tree, arrays)))
                made[:] = [out_tree]
                return out

            outs = interpret.bounded(flat)(*leaves)
            return jax.tree.unflatten(made[0], outs)

        return run

    def graph(self, point: Point) -> tuple[Any, Sequence[Any]]:
        """Return the jaxpr of claim and reference together, and its constants."""
        with self.precision():
            closed = jax.make_jaxpr(self.pair)(*point)
        return _jax.open_jaxpr(closed)

    @cached_property
    def unit(self) -> float:
        """Return the relative spacing of the reference's coarsest number format, at least ours."""
        subject = self.subject
        own = UNIT64 if self.bits == 64 else float(np.finfo(np.float32).eps)
        fun = subject.reference or subject.value
        if not subject.traceable:
            return own
        with Guard("the function, traced"), self.precision():
            closed = jax.make_jaxpr(fun)(tuple(map(self.cast, subject.actives)), subject.fixed)
            return max(own, interpret.lowest_precision(_jax.open_jaxpr(closed)[0]))
        return own  # a NumPy function computes in what it is given


def pull_reference(
    subject: Subject, actives: Arrays, fixed: Arrays, bars: Arrays
) -> tuple[Arrays, Arrays]:
    """Return the reference's outputs, and its cotangents by JAX's reverse mode."""
    if subject.reference_pull is not None:
        return subject.reference_pull(actives, fixed, bars)
    assert subject.reference is not None
    reference = subject.reference
    outs, pullback = jax.vjp(lambda *xs: reference(xs, fixed), *actives)
    # The claim's output may have another dtype than the reference's in mixed precision.
    return outs, pullback(tuple(jax.numpy.asarray(b, o.dtype) for b, o in zip(bars, outs)))


def to_numpy(arrays: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """Return the arrays on the host; half precision comes as float32."""
    found = []
    for array in arrays:
        host = np.asarray(array)
        half = host.dtype.kind not in "fc" or host.dtype.itemsize == 2
        found.append(host.astype(np.float32) if half else host)
    return tuple(found)
