"""Stretches whose rows do not know each other run in pieces, and are the same function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import functional_bp as bp
from functional_bp.engine.axes import AxisPlace
from functional_bp.layouts.pieces import divided
from functional_bp.memory.footprint import FootprintError
from functional_bp.memory.recompute import _Call
from functional_bp.memory.residual_costs import costs_of
from functional_bp.memory.schedule import Segment
from functional_bp.memory.stretches import Stretches

F = jnp.float32


def draw(seed: int, *sizes: int) -> Any:
    return jax.random.normal(jax.random.key(seed), sizes, F) / float(np.sqrt(sizes[-1]))


def layers(params: Any, x: Any, y: Any) -> Any:
    for w in params:
        x = jax.nn.relu(x @ w)
    return jnp.mean((x - y) ** 2)


def weighted(params: Any, x: Any, weights: Any) -> Any:
    errors = jnp.sum(layers_out(params, x) ** 2, -1)
    return jnp.sum(weights * errors) / jnp.sum(weights)


def layers_out(params: Any, x: Any) -> Any:
    for w in params:
        x = jax.nn.gelu(x @ w)
    return x


def tokens(params: Any, x: Any, labels: Any) -> Any:
    logits = jnp.tanh(x @ params["w"]) @ params["out"]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
    return -jnp.mean(chosen)


def distances(scale: Any, x: Any) -> Any:
    """Between all points: rows are one dimension, columns another."""
    squares = jnp.sum((x[:, None] - x[None]) ** 2, -1)
    return jnp.sum(jnp.exp(-scale * squares) * jnp.cos(squares))


def causal(params: Any, x: Any) -> Any:
    b, t, d = x.shape
    q, k, v = ((x @ w).reshape(b, t, 2, d // 2) for w in params)
    scores = jnp.einsum("bthd,bshd->bhts", q, k)
    scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -jnp.inf)
    mixed = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
    return jnp.mean(jnp.sin(mixed.reshape(b * t, d)) ** 2)


def recurrent(params: Any, xs: Any) -> Any:
    """The rows of a batch, over a loop in which a branch and a checkpoint stand."""

    @jax.checkpoint
    def cell(h: Any, x: Any) -> Any:
        even = lax.cond(jnp.sum(params) < 9, jnp.tanh, jnp.sin, h @ params)
        return jax.nn.silu(even + x), jnp.sum(h, -1)

    h, ys = lax.scan(cell, jnp.zeros(xs.shape[1:], F), xs)
    return jnp.sum(h**2) + jnp.sum(ys**2)


def images(params: Any, x: Any) -> Any:
    for w in params:
        x = jax.nn.softplus(lax.conv_general_dilated(x, w, (1, 1), "SAME"))
    return jnp.mean(jnp.max(x, (2, 3)) ** 2)


def dropped(params: Any, key: Any, x: Any) -> Any:
    for k, w in enumerate(params):
        keep = jax.random.bernoulli(jax.random.fold_in(key, k), 0.7, x.shape)
        x = jnp.where(keep, jnp.sin(x @ w), 0)
    return jnp.mean(x**2)


def normalized(params: Any, x: Any) -> Any:
    """Rows know each other, by their mean."""
    for w in params:
        x = x @ w
        x = jnp.tanh((x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-3))
    return jnp.mean(x**4)


SQUARE = [draw(k, 16, 16) for k in range(4)]
ROWS = draw(8, 256, 16)
ONCE = {  # with the share of its memory that a loss is given
    "layers": (layers, (SQUARE, ROWS, draw(9, 256, 16)), 0.4),
    "weighted": (weighted, (SQUARE, ROWS, jnp.arange(256.0, dtype=F)), 0.4),
    "tokens": (
        tokens, ({"w": SQUARE[0], "out": draw(7, 16, 300)}, ROWS, jnp.arange(256) % 300), 0.3),
    "distances": (distances, (F(0.3), draw(1, 96, 4)), 0.3),
    "attention": (causal, (SQUARE[:3], draw(2, 8, 24, 16)), 0.5),
    "recurrent": (recurrent, (SQUARE[0], draw(3, 20, 32, 16)), 0.6),
    "dropout": (dropped, (SQUARE, jax.random.key(0), ROWS), 0.8),
    "images": (images, ([draw(k, 3, 3, 3, 3) for k in range(4)], draw(4, 8, 3, 12, 12)), 0.6),
}  # fmt: skip
AGAIN = {
    "normalized": (normalized, (SQUARE, draw(5, 512, 16)), 0.6),
}
SLOW = "images", "recurrent", "weighted", "dropout"


def parametrized(losses: dict[str, Any]) -> Any:
    marked = [pytest.param(n, marks=[pytest.mark.long] * (n in SLOW)) for n in losses]
    return pytest.mark.parametrize("name", marked)


def in_pieces(segments: Sequence[Segment]) -> list[Any]:
    return [s.pieces for s in segments if s.pieces is not None]


def compared(fun: Callable[..., Any], args: Any, share: float) -> Any:
    lean = bp.recompute(fun, share)
    choice = lean.choice(*args)
    assert choice.program.temporary_bytes <= share * choice.plain.temporary_bytes
    both = lambda *args: (bp.value_and_grad(lean)(*args), jax.value_and_grad(fun)(*args))
    found, expected = jax.jit(both)(*args)
    chex.assert_trees_all_close(found, expected, rtol=3e-4, atol=1e-6)
    return choice


@parametrized(ONCE)
def test_independent_rows_are_reversed_as_soon_as_they_have_run(name: str) -> None:
    choice = compared(*ONCE[name])
    (pieces,) = in_pieces(choice.schedule.segments)
    assert pieces.total is not None and pieces.count > 1
    assert choice.program.flops <= 1.1 * choice.plain.flops  # again would be 1.3
    assert "none runs again" in str(choice)


@parametrized(AGAIN)
@pytest.mark.long
def test_rows_that_know_each_other_run_in_pieces_between(name: str) -> None:
    choice = compared(*AGAIN[name])
    assert all(pieces.total is None for pieces in in_pieces(choice.schedule.segments))


def test_derivatives_of_what_ran_in_pieces() -> None:
    """Second ones, forward ones, and by arguments that no search knew of."""
    _, (params, x, y), share = ONCE["layers"]
    fun = lambda params, x, y: jnp.mean((layers_out(params, x) - y) ** 2)
    lean = bp.recompute(fun, share)
    assert in_pieces(lean.choice(params, x, y).schedule.segments)

    def everything(f: Any) -> Any:
        of_params = lambda p: f(p, x, y)
        return (
            bp.hvp(of_params, (params,), (params,)),
            jax.jvp(f, (params, x, y), (params, y, x)),
            bp.grad(f, argnums=(1, 2))(params, x, y),
            jax.grad(f)(params, x, y),
            f(params, x, y),
        )

    found, expected = jax.jit(lambda: (everything(lean), everything(fun)))()
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-6)


def test_sums_over_many_pieces_of_half_precision_are_exact_to_it() -> None:
    half = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    fun = lambda w, x: jnp.mean(jnp.sum(jnp.square(jnp.tanh(x @ w)), -1).astype(F))
    w, x = half(draw(0, 16, 64)), half(1 + ROWS)
    lean = bp.recompute(fun, 0.5)
    found, expected = jax.jit(lambda: (bp.grad(lean)(w, x), jax.grad(fun)(w, x)))()
    chex.assert_trees_all_close(found.astype(F), expected.astype(F), rtol=2**-6)


def flat(fun: Callable[..., Any], *args: Any) -> Any:
    return _Call(fun, args, {}, (0,)).graph.opened


def divides(fun: Callable[..., Any], x: Any) -> bool:
    """Whether all of it can be computed for a part of the first axis of x, where that is read."""
    graph = flat(fun, x)
    reads = [i for i, eqn in enumerate(graph.eqns) if graph.invars[0] in eqn.invars[:1]]
    place = reads[0], AxisPlace(False, 0, 0)
    return divided(graph.eqns, 0, len(graph.eqns), place) is not None


@pytest.mark.parametrize(
    ("is_divisible", "fun"),
    [
        (True, lambda x: jnp.sin(x).sum()),
        (True, lambda x: jnp.sin(x).sum(0) ** 2),  # on the sum nothing is divided
        (True, lambda x: (jnp.sin(x) / jnp.sin(x).sum(0)).sum()),  # they are two values
        (False, lambda x: jax.nn.softmax(jnp.sin(x), 0).sum()),
        (False, lambda x: jnp.sort(jnp.sin(x), 0).sum()),
        (True, lambda x: jnp.sort(jnp.sin(x), 1).sum()),
        (False, lambda x: jnp.cumsum(x, 0).sum()),
        (True, lambda x: jnp.zeros(4).at[jnp.arange(8) % 4].add(jnp.sin(x[:, 0]), mode="drop")),
        (False, lambda x: jnp.ones(4).at[jnp.arange(8) % 4].add(jnp.sin(x[:, 0]), mode="drop")),
        (False, lambda x: jnp.max(jnp.sin(x), 0).sum()),  # no sum
        (False, lambda x: jnp.sin(x)[::-1].sum()),
        (False, lambda x: (lambda y: (y @ y.T).sum())(jnp.sin(x))),  # twice in one array
        (False, lambda x: lax.scan(lambda c, x: (c + jnp.sin(x), c), jnp.sin(x[0]), x)[1].sum()),
        (True, lambda x: (jnp.sin(x) * jnp.arange(8.0)[:, None]).sum()),
        (False, lambda x: (lambda y: y.sum() + y[3, 0])(jnp.sin(x))),
    ],
)  # fmt: skip
def test_what_divides_and_what_does_not(is_divisible: bool, fun: Any) -> None:
    assert divides(fun, draw(0, 8, 4)) is is_divisible


@pytest.mark.parametrize("loss", [layers, pytest.param(normalized, marks=pytest.mark.long)])
def test_a_number_of_rows_that_nothing_divides(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # else each has a part of every piece
    args = SQUARE, draw(0, 1021, 16), *[draw(1, 1021, 16)] * (loss is layers)
    choice = compared(loss, args, 0.4 if loss is layers else 0.7)
    pieces = in_pieces(choice.schedule.segments)
    assert loss is normalized or [p.place[1].axis for p in pieces] == [0]


def classified(params: Any, x: Any, labels: Any) -> Any:
    """A loss, and what people return beside it."""
    logits = layers_out(params, x)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    counts = jnp.maximum(jnp.sum(labels > 3), 1)  # of the rows that count
    loss = jnp.sum(losses * (labels > 3)) / counts
    aux = {"accuracy": jnp.mean(logits.argmax(-1) == labels), "logits": logits, "count": counts}
    return loss, aux


def test_what_stands_beside_a_loss_runs_no_second_time() -> None:
    args = SQUARE, ROWS, jnp.arange(256) % 16
    lean = bp.recompute(classified, 0.5, has_aux=True)
    choice = lean.choice(*args)
    (pieces,) = in_pieces(choice.schedule.segments)
    assert pieces.total is not None
    assert choice.extra_flops <= 0.05 * choice.flops

    def everything(f: Any) -> Any:
        logits = lambda params: jnp.sum(jnp.sin(f(params, *args[1:])[1]["logits"]))
        both = bp.value_and_grad(f, has_aux=True)(*args)
        return both, bp.grad(logits)(SQUARE), jax.jvp(logits, (SQUARE,), (SQUARE,))

    found, expected = jax.jit(lambda: (everything(lean), everything(classified)))()
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-6)
    with pytest.raises(FootprintError, match="has to return"):
        bp.recompute(layers, 0.5, has_aux=True)(SQUARE, ROWS, ROWS)


def test_stretches_may_end_where_nothing_is_kept() -> None:
    def fun(w: Any, x: Any) -> Any:
        y = jnp.sum(jnp.tanh(x @ w), -1)
        for _ in range(30):
            y = jnp.sin(y)
        return jnp.sum(y)

    graph = flat(fun, draw(0, 16, 4096), draw(1, 64, 16))
    borders = Stretches(costs_of(graph, (True, False))).borders
    assert sum(graph.eqns[b - 1].primitive.name == "sin" for b in borders) > 5
