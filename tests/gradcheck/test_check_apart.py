"""Faults that show only where the two passes run apart, or where several devices share the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from sampling import sampled

from functional_bp.gradcheck.check import check

X = np.array([[0.5, -1.5, 2.0], [1.0, 0.25, -0.75], [0.3, 0.2, -0.1], [1.0, 2.0, -3.0]], np.float32)
W = np.array([[0.2, -0.4], [1.5, 0.3], [-0.8, 0.6]], np.float32)


def exponential(forward: Callable, backward: Callable) -> Any:
    """exp x with hand-written passes."""
    made = jax.custom_vjp(jnp.exp)
    made.defvjp(forward, backward)
    return made


def in_a_closure() -> Any:
    def forward(x):
        y = jnp.exp(x)
        return y, jax.tree_util.Partial(lambda y_bar: y * y_bar)

    return exponential(forward, lambda pullback, y_bar: (pullback(y_bar),))


def in_a_variable() -> Any:
    kept: dict[Any, Any] = {}

    def forward(x):
        y = jnp.exp(x)
        if isinstance(x, jax.core.Tracer):
            kept["y"] = y
        return y, (x, y)

    def backward(residuals, y_bar):
        x, y = residuals
        return (kept["y"] * y_bar if isinstance(x, jax.core.Tracer) else y * y_bar,)

    return exponential(forward, backward)


@pytest.mark.parametrize("made", [in_a_closure, in_a_variable])
def test_what_the_forward_pass_leaves_beside_the_residuals_is_lost_in_a_scan(made: Any) -> None:
    report = check(made(), X)
    (finding,) = report.findings
    assert report.verdict == "wrong"
    assert {finding.kind, *finding.also} & {"scan", "remat"}
    assert finding.where is None or finding.where.file == __file__


def test_a_closure_over_a_residual_is_told_in_words() -> None:
    (finding,) = check(in_a_closure(), X).findings
    assert finding.kind == "scan" and "remat" in finding.also
    assert "left in a Python variable or in a closure" in finding.message
    assert "return it among the residuals" in finding.message
    assert finding.where is not None and "y * y_bar" in finding.where.text


def test_a_stack_beside_the_residuals_is_a_hidden_state() -> None:
    stack: list[Any] = []

    def forward(x):
        stack.append(jnp.exp(x))
        return stack[-1], None

    made = exponential(forward, lambda _, y_bar: (stack.pop() * y_bar,))
    (finding,) = check(made, X).findings
    assert finding.kind == "hidden state" and "a place that calls share" in finding.message


def test_residuals_in_a_pytree_with_a_function_are_right() -> None:
    def forward(x):
        y = jnp.exp(x)
        return y, jax.tree_util.Partial(lambda y, y_bar: y * y_bar, y)

    report = check(exponential(forward, lambda pullback, y_bar: (pullback(y_bar),)), X)
    assert report.ok, report.findings
    assert any(row.checked == "scan under grad" and row.outcome == "right" for row in report.rows)


def shared_dense(collect: Callable, own: Callable = lambda x: x) -> Any:
    """x w with the rows of x on two devices; ``collect`` gathers w's cotangent."""
    mesh = jax.make_mesh((2,), ("d",), (AxisType.Auto,), devices=jax.devices()[:2])

    def forward(w, x):
        product = jax.shard_map(
            lambda w, x: x @ w, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d")
        )
        return product(w, x), (w, x)

    def backward(residuals, y_bar):
        def of_its_rows(w, x, y_bar):
            w_bar = collect(x.T @ y_bar)
            return w_bar, own(y_bar @ w.T)

        specs = (P(), P("d"), P("d"))
        pull = jax.shard_map(
            of_its_rows, mesh=mesh, in_specs=specs, out_specs=specs[:2], check_vma=False
        )
        return pull(*residuals, y_bar)

    made = jax.custom_vjp(lambda w, x: x @ w)
    made.defvjp(forward, backward)
    return made


def summed(x: Any) -> Any:
    return lax.psum(x, "d")


SHARED = [  # the first of an argument by default, the others with the long tests
    ("w", "the sum over the devices (lax.psum) is missing", shared_dense(lambda x: x)),
    ("w", "lax.pmean", shared_dense(lambda x: lax.pmean(x, "d"))),
    ("w", "divided again", shared_dense(lambda x: summed(x) / lax.axis_size("d"))),
    ("w", "each of them has the whole", shared_dense(lambda x: summed(summed(x)))),
    ("x", "entries of its own", shared_dense(summed, own=summed)),
]


@pytest.mark.parametrize(
    ("argument", "said", "subject"),
    sampled(SHARED, 9, kind=lambda argument, *_: argument),
    ids=[said for _, said, _ in SHARED],
)
def test_a_fault_of_a_collective_is_told_as_one(argument: str, said: str, subject: Any) -> None:
    report = check(subject, W, X)
    finding = report.findings[0]
    assert report.verdict == "wrong" and finding.argument == argument
    assert finding.kind == "sharding" and said in finding.message
    assert finding.where is not None and finding.where.file == __file__


def test_a_right_backward_pass_over_devices_is_right() -> None:
    assert check(shared_dense(summed), W, X).ok


def column_scale(of_weights: Callable, of_rows: Callable = lambda y_bar: y_bar) -> Any:
    """x w, a weight a column, with hand-written cotangents."""
    made = jax.custom_vjp(lambda x, w: x * w)
    made.defvjp(
        lambda x, w: (x * w, (x, w)),
        lambda kept, y_bar: (of_rows(y_bar) * kept[1], of_weights(kept[0], y_bar)),
    )
    return made


def is_concrete(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer)


def first_part(x: Any) -> Any:
    return x.addressable_shards[0].data if is_concrete(x) else x


def devices_of(x: Any) -> int:
    return len(x.sharding.device_set) if is_concrete(x) else 1


PLACED = [
    ("another gradient", column_scale(lambda x, y_bar: (first_part(x) * first_part(y_bar)).sum(0))),
    ("another gradient", column_scale(lambda x, y_bar: (x * y_bar).sum(0) * devices_of(y_bar))),
    ("raise", column_scale(lambda x, y_bar: (x * y_bar).sum(0), of_rows=first_part)),
]


@pytest.mark.parametrize(("said", "subject"), sampled(PLACED, 9, kind=lambda said, _: said))
def test_a_backward_pass_that_looks_at_the_shards_is_found(said: str, subject: Any) -> None:
    report = check(subject, X, W[:, 0])
    (finding,) = report.findings
    assert report.verdict == "wrong" and finding.kind == "sharding"
    assert f"inputs that two devices share {said}" in finding.message or said in finding.message
    assert finding.stage == "sharded inputs, without jit"
    assert any(row.outcome == "wrong" and "sharded" in row.checked for row in report.rows)
