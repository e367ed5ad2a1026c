"""Inputs nobody tried: faults that only certain indices, scales, branches or calls show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from sampling import sampled

from functional_bp.gradcheck.check import check
from functional_bp.gradcheck.input_classes import IndexRange, index_ranges

X = np.array([[0.5, -1.5, 2.0], [1.0, 0.25, -0.75]], np.float32)
TABLE = np.arange(27, dtype=np.float32).reshape(9, 3) / 7 - 1
TOKENS = np.array([[1, 4, 2], [8, 3, 5]])


def rule(function: Callable, backward: Callable) -> Any:
    """``function`` with a pullback ``backward(arguments, y_bar)`` that is handed all arguments."""
    made = jax.custom_vjp(function)
    made.defvjp(lambda *xs: (function(*xs), xs), backward)
    return made


def lookup(change: Callable) -> Any:
    def backward(kept, y_bar):
        table, tokens = kept
        return change(jnp.zeros_like(table).at[tokens].add(y_bar)), None

    return rule(lambda table, tokens: table[tokens], backward)


def power(limit: float) -> Any:
    """Σ (s/r)⁶, wrong where (s/r)⁶ is above the limit."""

    def backward(kept, y_bar):
        r, s = kept
        p = jnp.minimum((s / r) ** 6, limit)
        return -6 * y_bar * p / r, jnp.sum(6 * y_bar * p / s)

    return rule(lambda r, s: jnp.sum((s / r) ** 6), backward)


def remembering() -> Any:
    seen: dict[Any, Any] = {}

    def backward(kept, y_bar):
        (x,) = kept
        if not isinstance(x, jax.core.Tracer):
            x = seen.setdefault(x.shape, x)
        return (2 * x * y_bar,)

    return rule(lambda x: x * x, backward)


def batched_wrongly(x: Any, y_bar: Any) -> Any:
    rows = jax.ShapeDtypeStruct((x.shape[0], 1), x.dtype)
    total = jax.pure_callback(
        lambda a: np.sum(a, axis=1, keepdims=True)[..., :1], rows, x * y_bar,
        vmap_method="broadcast_all",
    )  # fmt: skip
    return x * 0 + total


def row_sums(backward: Callable) -> Any:
    return rule(lambda x: jnp.sum(x * x, axis=1, keepdims=True), backward)


REACHED = [
    ("a row that no index hits", lookup(lambda bar: bar.at[0].set(0.0)), (TABLE, TOKENS)),
    ("larger counts", rule(lambda x, n: x * n, lambda kept, y_bar:
        (jnp.minimum(kept[1], 6) * y_bar, None)), (X[0], np.array([1, 4, 5]))),
    ("an intermediate threshold", power(1e3), (np.array([0.9, 1.4, 2.0], np.float32),
        np.float32(1.1))),
    ("one argument's scale", rule(lambda x, c: x * x / c, lambda kept, y_bar: (
        2 * kept[0] * y_bar / kept[1] * (jnp.abs(kept[0]) < 30 * kept[1]),
        -jnp.sum(y_bar * kept[0] ** 2) / kept[1] ** 2)), (np.abs(X[0]), np.float32(1.3))),
]  # fmt: skip


@pytest.mark.parametrize(("subject", "args", "reference"), sampled(
    (pytest.param(*c[1:], reference, id=f"{c[0]}, {judge}")
     for c in REACHED for judge, reference in [("reference", None), ("differences", False)]),
    3))  # fmt: skip
def test_the_search_reaches(subject: Any, args: tuple, reference: Any) -> None:
    report = check(subject, *args, reference=reference)
    assert report.verdict == "wrong" and report.findings[0].inputs != "given"


def test_both_ties_taken_whole_are_found_without_a_reference() -> None:
    def backward(kept, y_bar):
        (x,) = kept
        winners = (x == jnp.max(x, axis=1, keepdims=True)).astype(x.dtype)
        return (winners * y_bar[:, None],)

    shared = lambda kept, y_bar: (
        backward(kept, y_bar)[0] / jnp.sum(backward(kept, y_bar * 0 + 1)[0], axis=1, keepdims=True),
    )
    largest = lambda x: jnp.max(x, axis=1)
    assert check(rule(largest, backward), X, reference=False).verdict == "wrong"
    assert check(rule(largest, shared), X, reference=False).verdict != "wrong"


def test_what_is_kept_from_calls_with_other_inputs_is_found() -> None:
    (finding,) = check(remembering(), X).findings
    assert finding.kind == "hidden state" and "other inputs" in finding.message


def test_a_batch_that_makes_the_backward_pass_raise_is_found() -> None:
    right = row_sums(lambda kept, y_bar: (2 * kept[0] * y_bar,))
    wrong = row_sums(lambda kept, y_bar: (
        2 * kept[0] * y_bar + 0 * batched_wrongly(kept[0], y_bar),))  # fmt: skip
    (finding,) = check(wrong, X).findings
    assert finding.kind == "vmap" and "raises" in finding.message
    assert check(right, X).ok


def test_a_cotangent_cut_off_or_narrowed_is_told_apart() -> None:
    square = lambda x: x * x
    clipped = rule(square, lambda kept, y_bar: (jnp.clip(2 * kept[0] * y_bar, -1e3, 1e3),))
    narrow = rule(square, lambda kept, y_bar: (
        2 * kept[0] * y_bar.astype(jnp.float16).astype(y_bar.dtype),))  # fmt: skip
    assert [(f.kind, "threshold" in f.message) for f in check(clipped, X).findings] == [
        ("not linear", True)
    ]
    assert check(narrow, X).findings[0].kind == "precision"


def test_an_implicit_gradient_is_not_judged_where_its_iteration_has_not_converged() -> None:
    def solve(w, b):
        return lax.scan(lambda z, _: (jnp.tanh(w @ z + b), None), 0 * b, length=120)[0]

    def backward(kept, z_bar):
        w, b = kept
        z = solve(w, b)
        d = 1 - z**2
        b_bar = d * jnp.linalg.solve(jnp.eye(len(z), dtype=z.dtype) - w.T * d, z_bar)
        return jnp.outer(b_bar, z), b_bar

    w = np.array([[0.2, -0.3, 0.1], [0.4, 0.1, -0.2], [0.0, 0.3, 0.2]], np.float32)
    b = np.array([0.5, -1.0, 0.3], np.float32)
    report = check(rule(solve, backward), w, b)
    assert report.ok, report
    assert any("outside the domain" in row.against for row in report.rows)


def symbolic(backward: Callable) -> Any:
    made = jax.custom_vjp(lambda x, y: (x * y, x + y))
    made.defvjp(
        lambda x, y: ((x.value * y.value, x.value + y.value),
                      (x.value, y.value, x.perturbed, y.perturbed)),
        backward, symbolic_zeros=True,
    )  # fmt: skip
    return made


def test_arguments_and_outputs_are_taken_one_at_a_time() -> None:
    zero = jax.custom_derivatives.SymbolicZero

    def bars(kept, out):
        x, y, *_ = kept
        p, s = (jnp.zeros(b.shape, b.dtype) if isinstance(b, zero) else b for b in out)
        return p * y + s, p * x + s

    def needs_both(kept, out):
        x_bar, y_bar = bars(kept, out)
        return (x_bar if kept[3] else 2 * x_bar), y_bar

    def skips(kept, out):
        x_bar, y_bar = bars(kept, out)
        return (jnp.zeros_like(x_bar) if isinstance(out[0], zero) else x_bar), y_bar

    args = (X[0], X[1])
    assert check(symbolic(bars), *args).ok
    (finding,) = check(symbolic(needs_both), *args).findings
    assert finding.argument == "x" and "x alone differentiated" in finding.message
    (finding,) = check(symbolic(skips), *args).findings
    assert finding.kind == "cotangent ignored" and "output 1 alone" in finding.message


@pytest.mark.parametrize(("function", "expected"), [
    (lambda t, i: t[i], IndexRange(9)),
    (lambda t, i: t.at[i].add(1.0), IndexRange(9)),
    (lambda t, i: t.at[i].set(1.0), IndexRange(9, distinct=True)),
    (lambda t, i: jax.nn.one_hot(i, 5) @ t[:5], IndexRange(5)),
    (lambda t, i: lax.dynamic_slice_in_dim(t, i[0, 0], 4), IndexRange(6)),
    (lambda t, i: t * jnp.sum(i), None),
])  # fmt: skip
def test_the_range_of_an_index_is_read_off_the_graph(function: Callable, expected: Any) -> None:
    found = index_ranges(jax.make_jaxpr(function)(TABLE, TOKENS).jaxpr)
    assert found.get(1) == expected


def test_a_finding_says_where_it_is_wrong_beside_what_is_wrong_there() -> None:
    """Another function belongs there, but below zero alone: both are true of it, and are said."""

    @jax.custom_vjp
    def elu(x):
        return jnp.where(x > 0, x, jnp.expm1(x))

    elu.defvjp(
        lambda x: (jnp.where(x > 0, x, jnp.expm1(x)), x),
        lambda x, y_bar: (jnp.where(x > 0, y_bar, y_bar * jnp.expm1(x)),),
    )
    finding = check(elu, np.array([1.5, 2.0, -0.5, 0.25, -1.0, -3.0], np.float32)).findings[0]
    assert (finding.kind, finding.also) == ("wrong function", ("region",))
