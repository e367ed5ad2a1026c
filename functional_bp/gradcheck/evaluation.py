"""A claim and its reference are compiled and run, and their directional derivatives measured.

**Differences.** For a smooth φ, D(h) = (φ(h) − φ(−h)) / 2h = φ'(0) + c₂h² + c₄h⁴ + …; two step
sizes eliminate c₂, three also c₄, and so on (Richardson's extrapolation). The difference of
neighbours in that tableau says how well the derivative is known (Ridders), so that there is a third
answer beside right and wrong: *unresolved*.

**The complex step**, for functions made of analytic operations. For an analytic φ that is real on
the reals::

    φ(i h) = φ(0) + i h φ′(0) − h² φ″(0) / 2 − …,   φ′(0) = Im φ(i h) / h + O(h²)

and nothing is subtracted, so h can be 1e-20 and φ′ is known to rounding. The function's graph is
run on complex numbers: comparisons look at the real part, so a piecewise analytic function is
taken on the piece where the point lies, as its derivative is. An operation that is not analytic,
or that JAX does not have for complex numbers, ends the attempt: differences take over.

Reference: Press et al., *Numerical Recipes*, section 5.7, whose Neville tableau this is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn

from functional_bp import _jax
from functional_bp.engine.sweeps import evaluate
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.subject import Arrays, Subject, double, single
from functional_bp.graph import interpret
from functional_bp.graph.interpret import UNIT64
from functional_bp.graph.nested import CALLS, WITH_OWN_RULE

RATIO = 1.6  # of neighbouring step sizes
FIRST_STEPS = (1e-2, 1e-3, 1e-4, 1e-6)  # relative to the inputs; each starts a tableau


@dataclass(frozen=True)
class Slope:
    """A slope is φ'(0) as differences see it, with its error and whether it can be relied on."""

    value: float
    error: float
    resolved: bool


def extrapolate(
    function: Callable[[float], float], step: float, rows: int = 8
) -> tuple[float, float]:
    """Return φ'(0) from one tableau, and an estimate of its error (infinite if there is none)."""
    tableau: list[list[float]] = []
    best, error = np.nan, np.inf
    for i in range(rows):
        row = [(function(step) - function(-step)) / (2 * step)]
        power = RATIO**2
        for j in range(i):
            row.append((row[j] * power - tableau[i - 1][j]) / (power - 1))
            power *= RATIO**2
        if i:
            for j in range(1, i + 1):
                gap = max(abs(row[j] - row[j - 1]), abs(row[j] - tableau[i - 1][j - 1]))
                if gap <= error:
                    best, error = row[j], gap
            if abs(row[i] - tableau[i - 1][i - 1]) >= 2 * error:
                break  # rounding has taken over
        tableau.append(row)
        step /= RATIO
    return best, error


def slope(function: Callable[[float], float], rounding: float = 0.0) -> Slope:
    """Return φ'(0) from tableaux that start at several steps; resolved where two of them agree.

    ``rounding`` is the absolute rounding error of φ: a difference over the step h is known to
    rounding / h at best, however well its neighbours agree by chance.
    """
    with np.errstate(all="ignore"):
        found = [extrapolate(function, step) for step in FIRST_STEPS]
    finite = [
        (value, max(error, rounding / step))
        for (value, error), step in zip(found, FIRST_STEPS)
        if np.isfinite(value)
    ]
    if not finite:
        return Slope(np.nan, np.inf, False)
    value, error = min(finite, key=lambda pair: pair[1])
    agreeing = sum(abs(other - value) <= 1e-4 * abs(value) + 1e-300 for other, _ in finite)
    return Slope(value, error, bool(agreeing >= 2))


def bend(
    outs: Callable[[float], list[np.ndarray]], bars: tuple[np.ndarray, ...], step: float
) -> float:
    """Return Σ |ȳ| |y(h) − 2 y(0) + y(−h)| / h, less rounding: how much of a kink lies at 0.

    It tends to the jump of the slope as h → 0, and to 0 where the function is smooth. Outputs are
    taken one by one, so that opposite kinks do not cancel.
    """
    ahead, here, behind = outs(step), outs(0.0), outs(-step)
    total = 0.0
    for a, b, c, bar in zip(ahead, here, behind, bars):
        second = np.abs(a - 2 * b + c) - 8 * np.finfo(np.float64).eps * np.abs(b)
        total += float(np.sum(np.abs(bar) * np.maximum(second, 0)))
    return total / step


# The complex step

STEPS = (1e-20, 1.37e-20)  # two of them, whose difference shows the rounding
AGREEING = 1e-9  # relative; where they are further apart the imaginary part is rounding

# Analytic for complex operands, by the same operation.
ANALYTIC = {
    "add", "add_any", "sub", "mul", "div", "neg", "square", "integer_pow", "exp", "exp2", "expm1",
    "log", "log1p", "sin", "cos", "tan", "sinh", "cosh", "tanh", "asinh", "logistic", "sqrt",
    "rsqrt", "pow", "reduce_sum", "cumsum", "reduce_prod", "cumprod",
    "broadcast_in_dim", "reshape", "squeeze", "transpose", "concatenate", "pad",
    "slice", "dynamic_slice", "dynamic_update_slice", "gather", "scatter", "scatter-add",
    "select_n", "rev", "copy", "name", "split", "stack", "tile", "convert_element_type",
}  # fmt: skip
REAL_PART = {"gt", "lt", "ge", "le", "eq", "ne", "sign", "floor", "ceil", "round", "is_finite",
             "argmax", "argmin", "stop_gradient"}  # fmt: skip

BILINEAR = {"dot_general", "conv_general_dilated"}
HOLDING = CALLS | WITH_OWN_RULE | {"scan", "cond"}


class NotAnalytic(Exception):
    """An operation cannot be run on complex numbers as an analytic continuation."""


def complex_step(
    fun: Callable[[Sequence[Any], Sequence[Any]], Sequence[Any]],
    actives: Sequence[np.ndarray],
    fixed: Sequence[Any],
) -> Callable[..., list[Any]] | None:
    """Compile a function for the derivative of ``fun(actives, fixed)``; None where there is none.

    Returns:
        ``run(actives, fixed, directions, h)``: Re f(x + i h v) of every output, then
        Im f(x + i h v) / h of every output.
    """
    if any(np.iscomplexobj(x) for x in actives):
        return None
    try:
        closed = jax.make_jaxpr(lambda a, f: list(fun(a, f)))(tuple(actives), tuple(fixed))
        jaxpr, consts = _jax.open_jaxpr(closed)
        if interpret.has_while(jaxpr) or any(_is_complex(v.aval) for v in jaxpr.outvars):
            return None
        run = _runner(jaxpr, consts)
        jax.eval_shape(run, tuple(actives), tuple(fixed), tuple(actives), 1.0)
    except (NotAnalytic, TypeError, ValueError, NotImplementedError):
        return None
    return jax.jit(run)


def complex_slope(
    run: Callable[..., list[Any]],
    actives: Sequence[np.ndarray],
    fixed: Sequence[Any],
    bars: Sequence[np.ndarray],
    leaf: int,
    direction: np.ndarray,
) -> Slope | None:
    """Return d/dh ⟨ȳ, f(x + h v)⟩ at 0, for the direction v of one active argument.

    Args:
        run: what ``complex_step`` returned.
        actives: x.
        fixed: the other arguments.
        bars: ȳ, one per output.
        leaf: which argument is moved.
        direction: v.

    Returns:
        None where two steps disagree, as where a complex function rounds what a real one does not.
    """
    directions = tuple(direction if i == leaf else np.zeros_like(x) for i, x in enumerate(actives))
    found, sizes = [], []
    for h in STEPS:
        slopes = [np.asarray(y) for y in run(tuple(actives), tuple(fixed), directions, h)]
        products = [b * s for b, s in zip(bars, slopes[len(slopes) // 2 :], strict=True)]
        found.append(float(sum(np.sum(p) for p in products)))
        sizes.append(float(sum(np.sum(np.abs(p)) for p in products)))
    apart = abs(found[0] - found[1])
    if not apart <= AGREEING * sizes[0]:
        return None
    return Slope(found[0], 4 * apart + 16 * UNIT64 * sizes[0], True)


def _runner(jaxpr: Jaxpr, consts: Sequence[Any]) -> Callable[..., list[Any]]:
    def run(actives: Any, fixed: Any, directions: Any, h: Any) -> list[Any]:
        pairs = zip(map(jnp.asarray, actives), map(jnp.asarray, directions))
        along = [lax.complex(x, jnp.asarray(h * v, x.dtype)) for x, v in pairs]
        outs = interpret.interpret(jaxpr, consts, [*along, *fixed], _evaluate)
        return [*(jnp.real(y) for y in outs), *(jnp.imag(y) / h for y in outs)]

    return run


def _evaluate(eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
    if not any(map(_is_complex, operands)):
        return evaluate(eqn, operands)
    name = eqn.primitive.name
    if name in REAL_PART:
        return evaluate(eqn, [x.real if _is_complex(x) else x for x in operands])
    if name in _CONTINUED:
        return [_CONTINUED[name](eqn, *operands)]
    if name in HOLDING:
        return interpret.rebuild(eqn, [_widened(x) for x in operands], _evaluate)
    if name not in ANALYTIC | BILINEAR:
        raise NotAnalytic(name)
    wide = [_widened(x) for x in operands]
    if name in BILINEAR:
        return [_bilinear(eqn, *wide)]
    params = {
        key: _complex_of(value) if key in ("new_dtype", "preferred_element_type") else value
        for key, value in eqn.params.items()
    }
    return evaluate(eqn.replace(params=params), wide)


def _is_complex(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.complexfloating)


def _widened(x: Any) -> Any:
    """A real or complex operand as a complex one; integers and booleans as they are."""
    kind = jnp.result_type(x)
    return jnp.asarray(x, _complex_of(kind)) if jnp.issubdtype(kind, jnp.floating) else x


def _complex_of(dtype: Any) -> Any:
    if dtype is None or jnp.issubdtype(dtype, jnp.complexfloating):
        return dtype
    if jnp.dtype(dtype) != jnp.float64:  # rounds more than the two steps may differ
        raise NotAnalytic(f"values in {dtype}")
    return jnp.dtype("complex128")


def _bilinear(eqn: JaxprEqn, x: Any, y: Any) -> Any:
    """(a + ib)(c + id) with real products: a library may form (a + b)(c + d), which loses b, d."""
    product = lambda a, b: evaluate(eqn, [a, b])[0]
    imaginary = product(x.real, y.imag) + product(x.imag, y.real)
    return lax.complex(product(x.real, y.real) - product(x.imag, y.imag), imaginary)


def _larger(eqn: JaxprEqn, x: Any, y: Any) -> Any:
    """max or min by the real part; ties take the first."""
    x, y = jnp.broadcast_arrays(*map(_widened, (x, y)))
    first = x.real >= y.real if eqn.primitive.name == "max" else x.real <= y.real
    return jnp.where(first, x, y)


def _absolute(eqn: JaxprEqn, x: Any) -> Any:
    return jnp.where(x.real < 0, -x, x)


def _clamped(eqn: JaxprEqn, low: Any, x: Any, high: Any) -> Any:
    low, x, high = map(_widened, (low, x, high))
    return jnp.where(x.real < low.real, low, jnp.where(x.real > high.real, high, x))


def _extreme(eqn: JaxprEqn, x: Any) -> Any:
    """The entry whose real part is largest or least, along the axes."""
    axes = eqn.params["axes"]
    kept = [i for i in range(x.ndim) if i not in axes]
    flat = jnp.transpose(x, [*kept, *axes]).reshape([x.shape[i] for i in kept] + [-1])
    pick = jnp.argmax if eqn.primitive.name == "reduce_max" else jnp.argmin
    return jnp.take_along_axis(flat, pick(flat.real, axis=-1)[..., None], axis=-1)[..., 0]


_CONTINUED: dict[str, Callable[..., Any]] = {
    "max": _larger,
    "min": _larger,
    "abs": _absolute,
    "clamp": _clamped,
    "reduce_max": _extreme,
    "reduce_min": _extreme,
}


# Claim and reference, compiled


class Point(NamedTuple):
    """A point is where a claim is judged: active and other leaves, cotangents of the outputs."""

    actives: Arrays
    fixed: Arrays
    bars: Arrays

    def with_active(self, leaf: int, x: Any) -> Point:
        """Return the same with one active leaf replaced."""
        return self._replace(actives=(*self.actives[:leaf], x, *self.actives[leaf + 1 :]))

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

    def along(self, point: Point, leaf: int, step: np.ndarray) -> Arrays:
        """Return the outputs that are differenced, with one active leaf moved by a step."""
        return self.outs(point.with_active(leaf, point.actives[leaf] + step).actives, point.fixed)

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
