"""``explanation.first_nonfinite()``: faults planted where the test knows them, and none."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from sampling import sampled

import functional_bp as bp
from functional_bp.explanation.nonfinite import FirstNonfinite

X = jnp.array([1.0, 0.0, 2.0])
DEPTH = 10  # layers of three equations each


def first(fun: Callable[..., Any], *args: Any, **options: Any) -> FirstNonfinite:
    """The finding, which must be there, print, and be plain data."""
    found = bp.explain(fun, *args, **options).first_nonfinite()
    assert found is not None
    assert found.cause and found.cause in " ".join(str(found).split())
    json.dumps(found.as_data(), allow_nan=False)
    return found


def line_of(fun: Callable[..., Any], offset: int) -> int:
    return fun.__code__.co_firstlineno + offset


def network(
    fault: Callable[[Any], Any], at: int, activation: Callable[[Any], Any] = jnp.sin
) -> Callable[[Any], Any]:
    """Thirty equations and a fault after so many layers; all else is finite."""

    def loss(x: Any) -> Any:
        h = x
        for layer in range(DEPTH):
            if layer == at:
                h = fault(h)
            h = activation(0.9 * h + 0.1)
        return jnp.sum(h)

    return loss


def without(h: Any, k: int) -> Any:
    """h − hₖ, exactly 0 at k however the compiler fuses what computes it once more."""
    return jnp.where(np.arange(h.size) == k, 0.0, h - h[k])


FORWARD = {  # a fault that is applied to h: the operation, and how its entries read
    "log of 0": (lambda h: jnp.log(without(h, 1)), "log", " = 0.0", "pole"),
    "division by 0": (lambda h: h / without(h, 0), "div", " = 0.0", "pole"),
    "0 / 0": (lambda h: without(h, 2) / without(h, 2), "div", " = 0.0", "no value"),
    "root of −1": (lambda h: jnp.sqrt(h * 0 - 1), "sqrt", " = −1.0", "domain"),
    "overflow": (lambda h: jnp.exp(h * 0 + 1e4), "exp", " = 10000.0", "exceeds the largest"),
}


@pytest.mark.parametrize(("fault", "at"), sampled(itertools.product(FORWARD, [0, 4, 9]), 7))
def test_forward_in_thirty_equations(fault: str, at: int) -> None:
    planted, operation, entry, cause = FORWARD[fault]
    loss = network(planted, at)
    assert len(bp.explain(loss, X).graph) >= 30
    found = first(loss, X)
    assert (found.direction, found.operation) == ("forward", operation)
    assert any(str(e).endswith(entry) for e in found.operands)
    assert cause in found.cause
    assert found.source == (__file__, line_of(planted, 0))
    # The witness: the first equation with a bad output, whatever feeds it.
    assert found.equation is not None
    assert found.equation.index == first_bad_equation(bp.explain(loss, X))


@pytest.mark.parametrize("fault", ["log of 0", "division by 0", "overflow"])
def test_an_infinity_that_saturates_is_found_in_reverse(fault: str) -> None:
    planted, operation, _, cause = FORWARD[fault]
    loss = network(planted, 4, jnp.tanh)
    assert np.isfinite(loss(X))
    found = first(loss, X)
    assert (found.direction, found.operation) == ("reverse", operation)
    assert cause in found.cause.partition("Forward, ")[2]
    assert found.source == (__file__, line_of(planted, 0))


def first_bad_equation(explanation: bp.Explanation) -> int:
    """The first equation with a bad value, without any thought about what feeds it."""
    return min(
        e.index
        for e in explanation.graph
        for v in e.outputs
        if not np.isfinite(np.asarray(explanation.values[v], np.float64)).all()
    )


@pytest.mark.parametrize("at", [0, 4, 9])
def test_reverse_in_thirty_equations(at: int) -> None:
    def planted(h: Any) -> Any:
        shifted = without(h, 1)
        return jnp.where(shifted > 0, jnp.log(shifted), 0.0)

    found = first(network(planted, at), X)
    assert np.isfinite(network(planted, at)(X))
    assert (found.direction, found.operation) == ("reverse", "log")
    assert found.source == (__file__, line_of(planted, 2))
    assert [e.value for e in found.upstream] == [0.0]
    assert [e.value for e in found.kept] == [0.0]
    assert found.entry.index == (1,)
    assert np.isnan(found.entry.value)
    assert "0 · ∞ = NaN. Forward, ln 0.0 = −∞" in found.cause
    assert "masked out" in found.cause
    assert "where(ok, f(jnp.where(ok, x, 1.0)), 0.0)" in found.advice


def test_all_finite() -> None:
    assert bp.explain(network(jnp.sin, 3), X).first_nonfinite() is None


def test_the_rule_and_its_kink_are_told() -> None:
    found = first(lambda x: jnp.sum(jnp.sqrt(x)), X)
    assert (found.direction, found.operation) == ("reverse", "sqrt")
    assert "x = 0: inf" in found.rule
    assert [e.value for e in found.upstream] == [1.0]
    assert found.cause == "0.5 / 0.0 = ∞: a pole"
    assert list(found.inputs) == ["x"]
    np.testing.assert_array_equal(found.inputs["x"], X)


def test_inside_jit_and_checkpoint() -> None:
    inner = jax.jit(lambda y: jnp.sum(jnp.log(y)))
    found = first(lambda x: jax.checkpoint(inner)(x) * 2.0, X)
    assert (found.operation, str(found.operands[0])) == ("log", "x[1] = 0.0")


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_names_the_step_forward(reverse: bool) -> None:
    ts = jnp.array([0.1, 0.2, 0.3, 9.0, 0.1])

    def loss(x: Any) -> Any:
        return lax.scan(lambda h, t: (jnp.sqrt(h - t), h), x, ts, reverse=reverse)[0]

    x, state = 4.0, 4.0
    for step in range(5)[:: -1 if reverse else 1]:  # the witness: NumPy, step by step
        if state - float(ts[step]) < 0:
            break
        state = np.sqrt(state - float(ts[step]))
    else:
        raise AssertionError("no fault was planted")
    found = first(loss, x)
    assert (found.step, found.operation) == (step, "sqrt")
    assert found.inside[0].equation.operation == "scan"
    np.testing.assert_allclose(found.operands[0].value, state - float(ts[step]), rtol=1e-6)
    assert f"step {step} of 0 … 4" in str(found)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_names_the_step_in_reverse(reverse: bool) -> None:
    def loss(ts: Any) -> Any:
        body = lambda h, t: (h + jnp.where(t > 0, jnp.sqrt(t), 0.0), h * t)
        return lax.scan(body, 1.0, ts, reverse=reverse)[0]

    found = first(loss, jnp.array([1.0, 2.0, 0.0, 4.0, 3.0]))
    assert (found.direction, found.operation, found.step) == ("reverse", "sqrt", 2)
    unrolled = first(loss, jnp.array([1.0, 2.0, 0.0, 4.0, 3.0]), unroll=True)
    assert unrolled.operation == "sqrt"
    assert unrolled.equation is not None
    assert unrolled.equation.scope.endswith("t2")


def test_of_a_state_the_last_bad_step_is_first_in_reverse() -> None:
    def loss(w: Any) -> Any:
        def step(h: Any, t: Any) -> Any:
            return h * w + jnp.where(t > 0, jnp.log(t * w), 0.0), None

        return lax.scan(step, 1.0, jnp.array([0.0, 1.0, 0.0, 2.0]))[0]

    assert first(loss, 0.5).step == 2


def test_scan_in_scan() -> None:
    def loss(x: Any, ts: Any) -> Any:
        inner = lambda h, u: (h + jnp.log(u), None)
        outer = lambda h, row: (lax.scan(inner, h, row)[0], None)
        return lax.scan(outer, x, ts)[0]

    found = first(loss, 1.0, jnp.array([[1.0, 2.0, 1.0], [3.0, 1.0, 0.0]]))
    assert [i.step for i in found.inside] == [1, 2]
    assert found.operation == "log"


def test_while_with_a_bound() -> None:
    def loss(x: Any) -> Any:
        body = lambda s: (s[0] + 1, jnp.log(s[1]))
        return lax.while_loop(lambda s: s[0] < 6, body, (0, x))[1]

    found = first(loss, 2.0, max_steps=10)
    assert (found.direction, found.operation, found.step) == ("forward", "log", 2)
    np.testing.assert_allclose(found.operands[0].value, np.log(np.log(2.0)), rtol=1e-6)

    def masked(x: Any) -> Any:
        term = lambda t: jnp.where(t > 0, jnp.sqrt(x - 1), 1.0)
        body = lambda s: (s[0] + 1, s[1] + term(s[0] - 10.0))
        return lax.while_loop(lambda s: s[1] < 4, body, (0, 0.0 * x))[1]

    found = first(masked, 1.0, max_steps=10)
    assert (found.direction, found.operation, found.step) == ("reverse", "sqrt", 3)


def test_cond_is_the_branch_that_ran() -> None:
    def loss(x: Any) -> Any:
        return lax.cond(x > 0, lambda x: jnp.log(x - 1), lambda x: jnp.sqrt(x), x)

    assert first(loss, -1.0).operation == "sqrt"
    assert first(loss, 1.0).operation == "log"
    body = lambda h, t: (lax.cond(t > 0, jnp.log, jnp.sin, h), None)
    found = first(lambda x: lax.scan(body, x, jnp.array([-1, -1, 1]))[0], -0.5)
    assert (found.operation, found.step) == ("log", 2)


def test_custom_vjp_with_a_wrong_backward_function() -> None:
    @jax.custom_vjp
    def gate(x: Any) -> Any:
        return jnp.sin(x)

    gate.defvjp(lambda x: (jnp.sin(x), x), lambda x, y_bar: (y_bar / x,))
    found = first(lambda x: jnp.sum(gate(x)), X)
    assert (found.direction, found.operation) == ("reverse", "custom_vjp_call")
    assert found.formula.endswith("gate(x)")
    assert [str(e) for e in found.kept] == ["x[1] = 0.0"]
    assert "in its own backward function, 1.0 / 0.0 = ∞" in found.cause


def test_custom_jvp_is_opened() -> None:
    @jax.custom_jvp
    def gate(x: Any) -> Any:
        return 3.0 / x

    gate.defjvp(lambda x, x_dot: (gate(*x), x_dot[0]))
    found = first(lambda x: jnp.sum(gate(x)), X)
    assert (found.operation, str(found.operands[0])) == ("div", "x[1] = 0.0")
    assert [i.equation.operation for i in found.inside] == ["custom_jvp_call"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_overflows(dtype: str) -> None:
    most = float(jnp.finfo(dtype).max)
    x = jnp.array([1.0, most**0.5 * 2], dtype)
    found = first(lambda x: jnp.sum(x * x), x)
    assert (found.operation, found.operands[0].index) == ("mul", (1,))
    assert f"exceeds the largest {dtype}" in found.cause
    assert bp.explain(lambda x: jnp.sum(x * x), x.astype("float64")).first_nonfinite() is None


def test_a_product_of_matrices_names_the_heaviest_entries() -> None:
    a = jnp.full((3, 400), 2.0, "float16").at[1, 7].set(300.0).at[1, 9].set(-200.0)
    b = jnp.full((400, 2), 2.0, "float16").at[7, 1].set(300.0)
    found = first(lambda a, b: jnp.sum(a @ b), a, b)
    assert found.operation == "dot_general"
    assert found.entry.index == (1, 1)
    assert {str(e) for e in found.operands[:1]} == {"a[1, 7] = 300.0"}
    assert "b[7, 1] = 300.0" in map(str, found.operands)
    true = a[1].astype("float64") @ b[:, 1].astype("float64")
    assert f"{true} of 400 terms" in found.cause.replace(",", "")


def test_a_sum_of_finite_shares_overflows() -> None:
    scales = [jnp.float16(4e4), jnp.float16(3e4)]
    found = first(lambda x: jnp.sum(x * scales[0]) + jnp.sum(x * scales[1]), jnp.float16([0.01]))
    assert found.direction == "reverse"
    assert sorted(e.value for e in found.upstream) == [30000.0, 40000.0]
    assert "sum of the shares" in found.cause


def test_complex_numbers() -> None:
    found = first(lambda z: jnp.abs(jnp.sum(jnp.log(z))), jnp.array([1j, 0j]))
    assert (found.operation, str(found.operands[0])) == ("log", "z[1] = 0.0 + 0.0i")
    found = first(lambda z: jnp.sum(jnp.abs(jnp.sqrt(z))), jnp.array([1j, 0j]))
    assert (found.direction, found.operation) == ("reverse", "sqrt")


def test_integers_are_ignored() -> None:
    def loss(i: Any, x: Any) -> Any:
        return jnp.sum(x[i // (i - i + 1)] * (i.max() + jnp.iinfo(i.dtype).max))

    assert bp.explain(loss, jnp.array([0, 1]), X).first_nonfinite() is None


def test_a_mask_of_minus_infinity_is_no_fault() -> None:
    def attention(x: Any, on: Any) -> Any:
        scores = jnp.where(on, x @ x.T, -jnp.inf)
        return jnp.sum(jax.nn.softmax(scores) ** 2)

    x = jnp.arange(6.0).reshape(3, 2) / 5
    causal = jnp.tril(jnp.ones((3, 3), bool))
    assert bp.explain(attention, x, causal).first_nonfinite() is None
    found = first(attention, x, causal.at[1].set(False))
    assert (found.operation, found.entry.index) == ("sub", (1, 0))
    assert {e.value for e in found.operands} == {-np.inf}
    assert "∞ − ∞" in found.cause


def test_an_overflow_beside_a_masked_entry_is_not_blamed_on_the_mask() -> None:
    scores = jnp.where(jnp.tril(jnp.ones((3, 3), bool)), 1e4, -jnp.inf)
    found = first(lambda s: jnp.sum(jnp.exp(s)), scores)
    assert (found.operation, found.operands[0].value) == ("exp", 1e4)


def test_what_is_masked_out_may_come_back_in_reverse() -> None:
    found = first(lambda x: jnp.sum(jnp.where(x < 1, x * jnp.exp(x * 1e4), 0.0)), X)
    assert (found.direction, found.operation) == ("forward", "exp")
    assert "in the reverse sweep the rule of" in found.cause
    assert "jnp.where(ok, x, 1.0)" in found.advice


def test_what_is_masked_out_for_good_is_harmless() -> None:
    def loss(x: Any) -> Any:
        return jnp.sum(jnp.where(lax.stop_gradient(jnp.log(x)) > -5, x, 0.0))

    found = first(loss, X)
    assert (found.operation, found.reaches) == ("log", False)
    assert "reaches neither" in found.cause
    assert first(lambda x: jnp.sum(jnp.log(x)), X).reaches


def test_given_values_are_named_as_such() -> None:
    found = first(lambda x: jnp.sum(2.0 * x), X.at[2].set(jnp.nan))
    assert (found.operation, str(found.entry)) == ("", "x[2] = NaN")
    assert "the input x is not finite itself" in found.cause
    found = first(lambda x: jnp.sum(jnp.nan * x), X)
    assert "a number in the code is not finite itself" in found.cause
    table = jnp.array([1.0, np.inf, 1.0])
    found = first(lambda x: jnp.sum(x * table), X + 1)
    assert str(found.entry) == "table[1] = ∞"
    found = first(lambda x: 2.0 * x, X, cotangent=X.at[0].set(jnp.inf))
    assert found.direction == "reverse"
    assert "the cotangent given for result" in found.cause


def test_it_is_frozen_and_says_what_it_found() -> None:
    found = first(lambda z: jnp.sum(jnp.log(z)), X)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.direction = "reverse"  # pyright: ignore[reportAttributeAccessIssue]
    assert found.as_data()["operands"] == [{"name": "z", "index": [1], "value": 0.0}]
    assert found.as_data()["entry"]["value"] == "−∞"
    text = str(found)
    for part in ("ln z", "z[1] = 0.0", "test_explain_nonfinite.py:", "z = (1.00 0.00 2.00)"):
        assert part in text
