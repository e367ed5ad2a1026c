"""``bp.grad`` runs wherever ``jax.grad`` runs: Python that looks at values, closures, references.

Each kind is a function that cannot be staged to a graph beforehand; JAX is the witness.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from measuring import compiled, inexact
from properties import close
from rule_cases import one_of_three, sampled_cases

import functional_bp as bp
from functional_bp.engine.rule import Rule

X = jnp.array([0.4, -0.7, 1.1])


# --- closures over what the differentiated function made ------------------------------------------


def own_rule(over: Any) -> Callable[[Any], Any]:
    """v ↦ v · over with a backward pass of five times its gradient, so that it shows."""
    scaled = jax.custom_vjp(lambda v: v * over)
    scaled.defvjp(lambda v: (v * over, None), lambda _, bar: (5 * bar * over,))
    return scaled


def own_tangent(over: Any) -> Callable[[Any], Any]:
    scaled = jax.custom_jvp(lambda v: v * over)
    scaled.defjvp(lambda primals, dots: (primals[0] * over, 5 * dots[0] * over))
    return scaled


def with_static_array(x: Any) -> Any:
    """A custom rule that is handed an array made here in ``nondiff_argnums``."""

    def scaled(v: Any, over: Any) -> Any:
        return v * over

    made = jax.custom_jvp(scaled, nondiff_argnums=(1,))
    made.defjvp(lambda over, primals, dots: (primals[0] * over, 5 * dots[0] * over))
    return jnp.sum(made(x, jnp.arange(3.0)))


class Layer:
    """Builds its operation on the fly, out of attributes."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights
        self.apply = jax.custom_vjp(self._forward)
        self.apply.defvjp(lambda v: (self._forward(v), None), self._backward)

    def _forward(self, v: Any) -> Any:
        return v * self.weights

    def _backward(self, _: None, bar: Any) -> Any:
        return (5 * bar * self.weights,)


def in_a_loop(x: Any) -> Any:
    """A rule made outside of a scan, called inside."""
    scaled = own_rule(jnp.arange(1.0, 4.0))
    return jnp.sum(lax.scan(lambda c, _: (jnp.sin(scaled(c)), None), x, None, length=3)[0])


CLOSURES: dict[str, Callable[[Any], Any]] = {
    "a number": lambda x: jnp.sum(own_rule(jnp.asarray(3.0))(x)),
    "an array": lambda x: jnp.sum(own_rule(jnp.arange(3.0))(x)),
    "without a gradient": lambda x: jnp.sum(own_rule(lax.stop_gradient(x))(x)),
    "a comparison": lambda x: jnp.sum(own_rule((x > 0) * 2.0)(x)),
    "tangent: an array": lambda x: jnp.sum(own_tangent(jnp.arange(3.0))(x)),
    "tangent: without a gradient": lambda x: jnp.sum(own_tangent(lax.stop_gradient(x))(x)),
    "nondiff_argnums": with_static_array,
    "an object": lambda x: jnp.sum(Layer(jnp.arange(3.0)).apply(x)),
    "another argument": lambda x, y=X * 2: jnp.sum(own_rule(jnp.exp(y))(x)),
    "in a loop": in_a_loop,
}


@pytest.mark.parametrize("name", CLOSURES)
def test_a_rule_closes_over_what_was_made_inside(name: str) -> None:
    function = CLOSURES[name]
    true = jax.grad(function)(X)
    np.testing.assert_allclose(bp.grad(function)(X), true, rtol=1e-14)
    np.testing.assert_allclose(jax.jit(bp.grad(function))(X), true, rtol=1e-14)
    ahead = jax.export.export(jax.jit(bp.grad(function)))(X)
    np.testing.assert_allclose(ahead.call(X), true, rtol=1e-14)
    both = bp.jacrev(bp.grad(function))(X), jax.jacrev(jax.grad(function))(X)
    np.testing.assert_allclose(*both, rtol=1e-13, atol=1e-14)
    if "tangent" in name or "nondiff" in name:
        np.testing.assert_allclose(bp.jvp(function, (X,), (X,)), jax.jvp(function, (X,), (X,)))


def test_the_rule_of_the_closure_was_used() -> None:
    """So that the comparisons above can fail."""
    np.testing.assert_allclose(bp.grad(CLOSURES["an array"])(X), 5 * jnp.arange(3.0))


def test_a_closure_over_a_differentiated_value_is_refused_as_in_jax() -> None:
    for grad in (jax.grad, bp.grad):
        with pytest.raises(jax.errors.UnexpectedTracerError) as caught:
            grad(lambda x: jnp.sum(own_rule(jnp.sin(x))(x)))(X)
    assert "pass the value as an argument" in str(caught.value)


def test_no_graph_keeps_a_value_of_a_trace_that_has_ended() -> None:
    """Under ``staged=True`` the rule's closure is dead: it is an error, no wrong number."""
    for name in ("a number", "an array", "an object"):
        with pytest.raises(jax.errors.UnexpectedTracerError, match="staged=True"):
            jax.jit(bp.grad(CLOSURES[name], staged=True))(X)


# --- Python that looks at values ----------------------------------------------------------------


def newton(x: Any) -> Any:
    """√x, in as many steps as it takes."""
    y = x
    while jnp.abs(y * y - x) > 1e-12:
        y = 0.5 * (y + x / y)
    return y


def checked_at_the_door(x: Any) -> Any:
    if not bool(jnp.all(jnp.isfinite(x))):
        raise ValueError("not finite")
    return jnp.sum(jnp.sin(x))


def logged(x: Any) -> Any:
    """Σ x · |x₀| · |x₁| · |x₂|, with each factor's number in a list."""
    seen = []
    product = 1.0
    for part in x:
        seen.append(float(part))
        product = product * (part if part > 0 else -part)
    assert seen == [0.4, -0.7, 1.1]
    return jnp.sum(x) * product


def branching(x: Any) -> Any:
    return x**3 if x > 0 else -x


def as_many_as(x: Any) -> Any:
    total = x
    for _ in range(int(x)):
        total = total * x
    return total


# The function, where, and its derivative by hand.
LOOKING: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
    "while": (newton, 3.0, 0.5 / math.sqrt(3.0)),
    "if": (branching, 2.0, 12.0),
    "else": (branching, -2.0, -1.0),
    "int": (as_many_as, 2.5, 3 * 2.5**2),
    "a check": (checked_at_the_door, X, np.cos(X)),
    "float": (
        logged, X, 0.308 + np.sum(X) * np.array([0.77, -0.44, 0.28])
    ),
    "item": (lambda x: x * x if x.item() > 1 else x, 3.0, 6.0),
    "a list": (lambda x: jnp.sum(x) * len([v for v in x.tolist() if v > 0]), X, np.full(3, 2.0)),
    "max of Python": (lambda x: max(x, 2 * x, 3 * x), 1.5, 3.0),
    "a text": (lambda x: x * len(f"{x:.3f}"), 1.5, 5.0),
}  # fmt: skip


def test_a_number_that_drops_a_gradient_is_told() -> None:
    with pytest.warns(UserWarning, match="no gradient flows through the number"):
        assert bp.grad(lambda x: math.sin(x) * x)(2.0) == math.sin(2.0)
    assert bp.grad(lambda x: float(lax.stop_gradient(x)) * x)(2.0) == 2.0


@pytest.mark.filterwarnings("ignore:A number is made")
@pytest.mark.parametrize("name", LOOKING)
def test_python_looks_at_a_value(name: str) -> None:
    function, at, true = LOOKING[name]
    np.testing.assert_allclose(bp.grad(function)(at), true, rtol=1e-12)
    value, grad = bp.value_and_grad(function)(at)
    np.testing.assert_allclose(value, function(jnp.asarray(at)), rtol=1e-14)
    dot = jnp.ones_like(jnp.asarray(at))
    pushed = bp.jvp(function, (at,), (dot,))[1]
    np.testing.assert_allclose(pushed, np.sum(true), rtol=1e-12)
    with pytest.raises(TypeError):  # of which JAX's errors of tracers are kinds
        jax.jit(bp.grad(function))(at)


def test_what_a_function_does_beside_is_done_once() -> None:
    calls: list[Any] = []

    def counted(x: Any) -> Any:
        calls.append(None)
        return jnp.sum(x * x)

    bp.grad(counted)(X)
    assert len(calls) == 1


def test_second_derivatives_of_a_loop_of_python() -> None:
    true = -0.25 * 3.0**-1.5
    np.testing.assert_allclose(bp.grad(bp.grad(newton))(3.0), true, rtol=1e-9)
    np.testing.assert_allclose(bp.hvp(newton, (3.0,), (1.0,)), true, rtol=1e-9)
    np.testing.assert_allclose(jax.grad(bp.grad(newton))(3.0), true, rtol=1e-9)
    np.testing.assert_allclose(bp.grad(jax.grad(newton))(3.0), true, rtol=1e-9)


def test_a_value_that_has_escaped_is_refused() -> None:
    kept: list[Any] = []
    bp.grad(lambda x: kept.append(x) or x * x)(2.0)
    with pytest.raises(jax.errors.UnexpectedTracerError):
        jnp.sin(kept[0])


# --- which way was taken ------------------------------------------------------------------------


def test_the_graph_tells_which_way_was_taken() -> None:
    assert bp.trace(jnp.sin, 2.0).staged
    assert not bp.trace(jnp.sin, 2.0, staged=False).staged
    graph = bp.trace(newton, 3.0)
    assert not graph.staged
    assert [e.operation for e in graph].count("div") == 5  # one for each step of the loop
    assert bp.trace(newton, 1.0)["x"].name == "x"
    with pytest.raises(TypeError, match="pass arrays"):
        bp.trace(jnp.sin, jax.ShapeDtypeStruct((), float), staged=False)


def test_explain_and_check_take_what_python_decides() -> None:
    explained = bp.explain(newton, 3.0)
    np.testing.assert_allclose(
        explained.cotangent[explained.graph["x"]], 0.5 / math.sqrt(3.0), rtol=1e-12
    )
    explained = bp.explain(CLOSURES["an array"], X)
    assert explained.cotangent[explained.graph["x"]].tolist() == [0.0, 5.0, 10.0]


def test_constants_made_inside_are_arrays_to_a_rule() -> None:
    """Under ``jit`` they are constants of the staged graph, for which JAX has NumPy-like arrays."""

    def picked(v: Any, table: Any) -> Any:
        return v * table[1]

    made = jax.custom_vjp(picked)
    made.defvjp(lambda v, t: (picked(v, t), t),
                lambda t, bar: (bar * lax.map(lambda i: t[i], jnp.arange(2))[1], None))  # fmt: skip
    assert jax.jit(bp.grad(lambda x: made(x, jnp.array([2.0, 3.0]))))(1.0) == 3.0


def test_each_way_can_be_forced() -> None:
    assert bp.grad(branching, staged=False)(2.0) == 12.0
    with pytest.raises(jax.errors.TracerBoolConversionError):
        bp.grad(branching, staged=True)(2.0)
    loss = lambda x: jnp.sum(jnp.tanh(x) ** 2)
    ways = [jax.jit(bp.grad(loss, staged=staged))(X) for staged in (True, False)]
    np.testing.assert_allclose(*ways, rtol=1e-15)


def test_references_are_followed() -> None:
    def in_place(x: Any) -> Any:
        ref = jax.new_ref(jnp.zeros(3))
        ref[...] = jnp.sin(x)
        ref[0] = ref[1] * 2
        return jnp.sum(ref[...] * x)

    true = bp.grad(lambda x: jnp.sum(jnp.sin(x).at[0].set(2 * jnp.sin(x)[1]) * x))(X)
    for grad in (bp.grad(in_place), jax.jit(bp.grad(in_place))):
        np.testing.assert_allclose(grad(X), true, rtol=1e-14)
    np.testing.assert_allclose(bp.jvp(in_place, (X,), (X,))[1], jnp.sum(true * X), rtol=1e-14)

    calls: list[Any] = []

    def looking(x: Any) -> Any:
        calls.append(None)
        total = jax.new_ref(jnp.zeros(()))
        for part in x:
            if part > 0:
                total[...] += part * part
        lax.fori_loop(0, 2, lambda i, _: total.__setitem__(..., total[...] * 2), None)
        return jax.ref.freeze(total)

    np.testing.assert_allclose(bp.grad(looking)(X), jnp.where(X > 0, 8 * X, 0), rtol=1e-14)
    assert len(calls) == 1
    np.testing.assert_allclose(
        bp.hessian(looking)(X), jnp.diag(jnp.where(X > 0, 8.0, 0.0)), rtol=1e-14
    )


# --- a state that comes to nothing ---------------------------------------------------------------


def scanned(w: Any) -> Any:
    return lax.scan(lambda c, _: ((c[0] * c[0], jnp.sqrt(0 * c[0])), None), (w, 0.0), None, 3)[0][0]


def looped(w: Any) -> Any:
    """The last step's error stands in the state, as a stopping criterion does."""
    return lax.fori_loop(0, 3, lambda _, c: (c[0] * c[0], jnp.sqrt(c[0] - c[0])), (w, 0.0))[0]


def until(w: Any) -> Any:
    step = lambda c: (c[0] * c[0], jnp.sqrt(0 * c[0]), c[2] + 1)
    return lax.while_loop(lambda c: c[2] < 3, step, (w, 0.0, 0))[0]


def of_a_constant(w: Any) -> Any:
    """An operand of the loop that feeds nothing else."""
    step = lambda c, _: ((c[0] * c[0], jnp.sqrt(0 * w)), None)
    return lax.scan(step, (w, 0.0), None, 3)[0][0]


@pytest.mark.parametrize("function", [scanned, looped, until, of_a_constant])
def test_an_unread_state_with_an_infinite_slope_adds_nothing(function: Any) -> None:
    """Zero times infinity would be no number: w⁸ has 8 w⁷ and 56 w⁶."""
    assert bp.grad(function)(1.0) == jax.jit(bp.grad(function))(1.0) == 8.0
    assert bp.hessian(function)(1.0) == 56.0
    assert bp.grad(bp.grad(function))(1.0) == 56.0
    assert bp.linearize(function, 1.0)[1](1.0) == 8.0


@pytest.mark.parametrize(("inline", "recorded"), [(False, ["jit"]), (True, ["sin", "mul"])])
def test_a_jitted_function_stays_a_call_unless_it_is_inlined(
    inline: bool, recorded: list[str]
) -> None:
    function = jax.jit(lambda x: jnp.sin(x) * x, inline=inline)
    graph = bp.trace(lambda x: function(function(x)), 1.0, staged=False)
    assert [equation.operation for equation in graph] == recorded * 2


# --- what libraries ask of values -----------------------------------------------------------------


def test_closures_are_converted() -> None:
    def scaled(a: Any) -> Any:
        function, hoisted = jax.closure_convert(lambda x: a * x, 1.0)
        assert len(hoisted) == 1
        made = jax.custom_vjp(function)
        made.defvjp(lambda x, *c: (function(x, *c), (x, c)),
                    lambda kept, bar: (bar * kept[1][0], bar * kept[0]))  # fmt: skip
        return made(2.0, *hoisted)

    assert bp.grad(scaled)(0.3) == jax.jit(bp.grad(scaled))(0.3) == 2.0


def test_values_say_that_they_are_of_jax() -> None:
    packages: list[str] = []
    look = lambda x: packages.append(type(x).__module__.partition(".")[0]) or x
    bp.grad(look)(1.0)
    bp.jvp(look, (1.0,), (1.0,))
    assert packages == ["jax", "jax"]


def test_ours_in_the_place_of_jax_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "vjp", bp.vjp)
    monkeypatch.setattr(jax, "jvp", bp.jvp)
    square = jax.custom_vjp(lambda x: x * x)
    square.defvjp(lambda x: (x * x, x), lambda x, bar: (3 * x * bar,))
    cube = jax.custom_jvp(lambda x: x**3)
    cube.defjvp(lambda primals, dots: (primals[0] ** 3, 5 * primals[0] * dots[0]))
    assert bp.grad(square)(2.0) == 6.0 and bp.grad(cube)(2.0) == 10.0
    assert bp.jvp(square, (2.0,), (1.0,))[1] == 6.0 and bp.jvp(cube, (2.0,), (1.0,))[1] == 10.0


# --- every rule, recorded -----------------------------------------------------------------------


def both_ways(rule: Rule, k: int) -> int:
    """Compare cotangents, and tangents by what is kept for them, of a graph and of a record.

    Returns the number of arrays compared.
    """
    case = rule.cases[k]
    args = case.draw(k)
    none = lambda x: np.zeros(x.shape, jax.dtypes.float0)
    ones = lambda leaves: [jnp.ones_like(x) if inexact(x) else none(x) for x in leaves]
    floats = lambda leaves: [x for x in leaves if inexact(x)]
    leaves_of = lambda *args: jax.tree.leaves(case.function(*args))

    def run(*args: Any) -> Any:
        dots = [jnp.cos(x).astype(x.dtype) if inexact(x) else none(x) for x in args]
        bars, pushed = [], [floats(bp.jvp(leaves_of, args, dots)[1])]
        for staged in (True, False):
            how: Any = {"staged": staged, "max_steps": 8}
            outs, pullback = bp.vjp(leaves_of, *args, **how)
            bars.append(floats(pullback(ones(outs))))
            pushed.append(floats(bp.linearize(leaves_of, *args, **how)[1](*dots)))
        return bars, pushed

    (staged, recorded), (pushed, *along) = compiled(run)(*args)
    for i, (got, want) in enumerate(zip(recorded, staged, strict=True)):
        close(got, want, 1e-12, f"cotangent {i}")
    for found in along:
        for i, (got, want) in enumerate(zip(found, pushed, strict=True)):
            close(got, want, 1e-9, f"tangent {i} by what is kept")
    return len(staged)


@pytest.mark.parametrize(("rule", "k"), sampled_cases()[::4])
def test_a_record_gives_what_a_graph_gives_and_its_map_what_jvp_gives(rule: Rule, k: int) -> None:
    both_ways(rule, k)


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
def test_records_of_every_rule(part: int) -> None:
    chosen = [*one_of_three(2), *sampled_cases()[2::4]][part::4]
    assert sum(both_ways(*parameter.values) for parameter in chosen) > 40
