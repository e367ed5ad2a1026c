"""What is computed and kept is decided before anything runs, and it is the least."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from planted import planted, primitive_of

import functional_bp as bp

X = jnp.linspace(0.1, 1.0, 12).reshape(4, 3)
W = jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)


def operations(function: Any, *args: Any) -> Counter[str]:
    """How often each primitive occurs in the function's graph, nested graphs included."""
    found: Counter[str] = Counter()

    def walk(jaxpr: Any) -> None:
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        for eqn in jaxpr.eqns:
            found[eqn.primitive.name] += 1
            for parameter in eqn.params.values():
                for inner in parameter if isinstance(parameter, list | tuple) else [parameter]:
                    if hasattr(getattr(inner, "jaxpr", inner), "eqns"):
                        walk(inner)

    walk(jax.make_jaxpr(function)(*args))
    return found


def kept_bytes(function: Any, *args: Any) -> int:
    """The bytes of what the pullback holds, the arguments themselves not counted."""
    inputs = {id(x) for x in jax.tree.leaves(args)}
    leaves = jax.tree.leaves(bp.vjp(function, *args, staged=True)[1])
    return sum(x.nbytes for x in {id(x): x for x in leaves}.values() if id(x) not in inputs)


def product(x: Any, w: Any) -> Any:
    return jnp.sum(jnp.dot(x, w))


def test_only_the_wanted_cotangent_is_computed() -> None:
    # One product for the value, one for each cotangent.
    assert operations(bp.grad(product, 0), X, W)["dot_general"] == 2
    assert operations(bp.grad(product, 1), X, W)["dot_general"] == 2
    assert operations(bp.grad(product, (0, 1)), X, W)["dot_general"] == 3


def test_a_constant_gets_no_cotangent() -> None:
    function = lambda x: jnp.sum(jnp.tanh(X @ W) * x)
    assert operations(bp.grad(function), jnp.ones((4, 2)))["dot_general"] == 1


def test_a_chain_that_leads_to_no_wanted_input_is_not_pulled_back() -> None:
    function = lambda x, y: jnp.sum(x * jnp.sin(jnp.cos(y)))
    found = operations(bp.grad(function, 0), X, X)
    assert found["sin"] == 1 and found["cos"] == 1 and found["neg"] == 0


def test_no_zeros_are_made() -> None:
    """Outputs without a cotangent, unused arguments and stopped values: nothing to add up."""

    def several(x: Any, y: Any) -> Any:
        parts = jnp.split(x, 2)
        low, high = lax.sort([x[:, 0], x[:, 1]], num_keys=1)
        return jnp.sum(parts[0] ** 2) + jnp.sum(high) + jnp.sum(lax.stop_gradient(y) * x)

    jaxpr = jax.make_jaxpr(bp.grad(several))(X, X)
    zeros = [
        eqn
        for eqn in jaxpr.jaxpr.eqns
        if eqn.primitive.name == "broadcast_in_dim"
        and hasattr(eqn.invars[0], "val")
        and float(eqn.invars[0].val) == 0.0
        and eqn.outvars[0].aval.size >= X.size
    ]
    assert not zeros
    assert operations(bp.grad(several), X, X)["add_any"] == 0


def test_a_single_use_is_not_added_to_anything() -> None:
    found = operations(bp.grad(lambda x: jnp.sum(jnp.sin(jnp.exp(x)))), X)
    assert found["add"] == found["add_any"] == 0


def test_two_uses_are_added_once() -> None:
    found = operations(bp.grad(lambda x: jnp.sum(jnp.sin(x) * jnp.exp(x))), X)
    assert found["add"] + found["add_any"] == 1


def test_linear_functions_keep_nothing() -> None:
    assert kept_bytes(lambda x: jnp.transpose(3.0 * x[1:] - jnp.flip(x, 0)[1:]), X) == 0


def test_what_is_kept_is_what_the_rules_name() -> None:
    # exp keeps its output, sin its operand, a product both factors of which one is the argument.
    assert kept_bytes(jnp.exp, X) == X.nbytes
    assert kept_bytes(jnp.sin, X) == 0
    assert kept_bytes(lambda x: jnp.sin(jnp.exp(x)), X) == X.nbytes
    assert kept_bytes(lambda x, w: jnp.dot(x, w), X, W) == 0
    assert kept_bytes(lambda x, w: jnp.dot(jnp.tanh(x), w), X, W) == X.nbytes


def test_only_one_argument_active_keeps_only_the_other() -> None:
    leaves = jax.tree.leaves(bp.vjp(lambda x: x * (2.0 * X), X)[1])
    assert sum(leaf.nbytes for leaf in leaves) == X.nbytes
    leaves = jax.tree.leaves(bp.vjp(lambda x: jnp.dot(x, 2.0 * W), X)[1])
    assert sum(leaf.nbytes for leaf in leaves) == W.nbytes


def test_a_scan_keeps_no_more_than_its_reverse_body_names() -> None:
    step = lambda h, x: (jnp.tanh(h + x), None)
    function = lambda h, xs: lax.scan(step, h, xs)[0]
    # tanh keeps its output: one row per step, and no copy of the inputs.
    assert kept_bytes(function, X[0], X) <= X.nbytes


def scanned(step: Any) -> Any:
    """Eight times h ← step(h, w)."""
    return lambda h, w: lax.scan(lambda h, _: (step(h, w), None), h, None, length=8)[0]


def test_a_scan_keeps_a_value_once_however_often_it_is_computed_and_viewed() -> None:
    def step(h: Any, w: Any) -> Any:
        views = [jnp.sin(h).T, jax.jit(jnp.sin)(h)[:2].T, jnp.sin(h).reshape(3, 4)]
        return h + w * sum(jnp.sum(view**2) for view in views)

    # h for cos h, sin h, and the sum that w multiplies.
    assert kept_bytes(scanned(step), X, jnp.ones(())) == 8 * (2 * X.nbytes + X.itemsize)


def test_a_scan_keeps_views_or_what_they_are_views_of_whichever_is_less() -> None:
    def step(h: Any, w: Any, count: int) -> Any:
        wave = jnp.sin(h) * 2.0  # named by the squares of its views alone
        return h * w + sum(jnp.sum(wave[i : i + 2] ** 2) for i in range(count))

    def keep(count: int) -> int:
        return kept_bytes(scanned(lambda h, w: step(h, w, count)), X, jnp.ones(()))

    # h for cos h and w; of the wave two rows, or all four for three views of two rows.
    assert keep(1) == 8 * (X.nbytes + 2 * X[0].nbytes)
    assert keep(3) == 8 * (X.nbytes + 4 * X[0].nbytes)


def test_a_scan_keeps_once_what_no_step_changes_also_inside_a_call() -> None:
    @jax.jit
    def weighted(h: Any, w: Any) -> Any:
        return h * jnp.exp(w)[:, None] * jnp.diag(jnp.ones(4)).sum(0)[:, None]

    # The states, e^w and the diagonal; not eight of the latter.
    assert kept_bytes(scanned(weighted), X, X[:, 0]) == 8 * X.nbytes + 2 * X[:, 0].nbytes


def test_a_plan_is_made_once() -> None:
    from functional_bp.engine.plan import make_plan

    gradient = jax.jit(bp.grad(lambda x: jnp.sum(jnp.sin(x))))
    gradient(X)
    before = make_plan.cache_info().misses
    gradient(2 * X)
    assert make_plan.cache_info().misses == before


def test_the_count_can_fail() -> None:
    both = lambda x, w: jax.vjp(jnp.dot, x, w)[1](jnp.ones((4, 2)))
    assert operations(both, X, W)["dot_general"] != 1


def test_a_pushforward_is_forward_mode_alone() -> None:
    treble = primitive_of("treble", lambda x: 3 * x, lambda x: x)
    f = lambda x: treble.bind(x)
    marked: Any = {"x": lambda y_bar: 3 * y_bar, "pushforward": lambda x_dot, y: 5 * x_dot + 0 * y}
    with planted(treble, "x -> y", **marked):
        assert bp.grad(f)(2.0) == 3.0
        assert bp.jvp(f, (2.0,), (1.0,)) == (6.0, 5.0)
        assert jax.jit(lambda x: bp.jvp(f, (x,), (1.0,))[1])(2.0) == 5.0
        assert bp.linearize(f, 2.0)[1](1.0) == 3.0  # y is not kept: the pullback's transpose
